"""Projected, zero-star and frequency-decoupled guidance; gradients; memory; variety."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

G = jd.guidance
VP = jd.processes.VP()
X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 2)), jnp.float32)


def cond(x, t):
    return 0.8 * x + 0.1


def uncond(x, t):
    return 0.5 * jnp.roll(x, 1, 1) - 0.2


def inner(one, other):
    return np.sum(np.asarray(one) * np.asarray(other), axis=(1, 2, 3))


def test_projection():
    every = (
        cond, G.classifier_free(cond, uncond, 3.0), G.projected(cond, uncond, 3.0, eta=1.0),
        G.projected(cond, uncond, 3.0), G.projected(cond, uncond, 3.0, eta=1.0, norm=0.5),
    )  # fmt: skip
    found = jax.jit(lambda x: [denoise(x, 0.5) for denoise in every])(X)
    clean, plain, whole, across, near = (np.asarray(estimate) for estimate in found)
    np.testing.assert_allclose(whole, plain, rtol=1e-4, atol=1e-5)
    change = across - clean
    np.testing.assert_allclose(inner(change, clean), 0, atol=1e-3)
    along = plain - clean - change
    share = inner(along, clean) / inner(clean, clean)
    np.testing.assert_allclose(along, share[:, None, None, None] * clean, atol=1e-4)
    short = near - clean
    np.testing.assert_allclose(np.sqrt(inner(short, short)), 2 * 0.5, rtol=1e-4)


@pytest.mark.parametrize("process", [VP, jd.processes.RectifiedFlow(), jd.processes.EDM()])
def test_zero_star_fits_the_velocity(process):
    t = 0.4
    a, _, c = process.coefficients(t)
    da, _, dc = process.derivatives(t)
    resting = G.zero_star(cond, uncond, 3.0, process, zero_from=0.3)
    every = cond, uncond, G.zero_star(cond, uncond, 3.0, process), resting
    grid = np.array([0.4, 0.35])

    @jax.jit
    def found(x):
        moved = jd.sample(None, resting, process, jd.solvers.euler(), grid, x=x)
        return moved, [dc / c * x + (da - a * dc / c) * denoise(x, t) for denoise in every]

    moved, velocities = found(X)
    v_c, v_u, guided, still = (np.asarray(velocity) for velocity in velocities)
    s = (inner(v_c, v_u) / inner(v_u, v_u))[:, None, None, None]
    np.testing.assert_allclose(guided, s * v_u + 3.0 * (v_c - s * v_u), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(still, 0, atol=1e-4)
    np.testing.assert_allclose(moved, X, atol=1e-4)


def test_bands_have_their_own_scales():
    flat = lambda x, t: 0 * x + 1.0  # noqa: E731
    fine = lambda x, t: 0 * x + jnp.where(jnp.arange(8) % 2, 1.0, -1.0)[None, :, None, None]  # noqa: E731
    none = lambda x, t: 0 * x  # noqa: E731
    bands = G.frequency_decoupled
    every = (
        bands(cond, uncond, [3.0, 3.0, 3.0]), G.classifier_free(cond, uncond, 3.0),
        bands(flat, none, [5.0, 5.0, 2.0]), bands(fine, none, [5.0, 2.0, 2.0]), fine,
    )  # fmt: skip
    found = jax.jit(lambda x: [denoise(x, 0.5) for denoise in every])(X)
    same, plain, coarse, detail, once = (np.asarray(estimate) for estimate in found)
    np.testing.assert_allclose(same, plain, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(coarse, 2.0, rtol=1e-5)
    np.testing.assert_allclose(detail, 5.0 * once, rtol=1e-5)
    with pytest.raises(ValueError, match="divisible"):
        G.frequency_decoupled(cond, uncond, [1.0, 1.0])(jnp.zeros((1, 7, 8, 1)), 0.5)


@pytest.mark.slow
def test_an_exact_classifier_gives_the_exact_conditional():
    means, process, t = np.array([[1.0, 0.0], [-1.0, 0.5]]), VP, 0.4
    parts = [jd.testing.gaussian(m, np.full(2, 0.3)) for m in means]
    whole = jd.testing.gaussian_mixture(means, np.full((2, 2), 0.3), np.array([0.5, 0.5]))
    x = jax.random.normal(jax.random.key(1), (16, 2))

    def log_prob(x, t):
        logs = jnp.stack([part.log_prob(process, x, t) for part in parts], -1)
        return jax.nn.log_softmax(logs, -1)[:, 0]

    guided = G.classifier(whole.denoiser(process), process, log_prob)
    np.testing.assert_allclose(guided(x, t), parts[0].denoiser(process)(x, t), rtol=1e-3, atol=1e-3)
    assert np.isfinite(
        G.classifier(whole.denoiser(jd.processes.RectifiedFlow()), jd.processes.RectifiedFlow(), log_prob)(
            x, 1.0
        )
    ).all()


@pytest.mark.slow
def test_a_linear_loss_tilts_a_gaussian_exactly():
    """N(m, V) exp(-w . x) is N(m - V w, V)."""
    mean, variance, w = np.array([0.5, -0.2]), np.array([0.3, 0.8]), jnp.array([1.0, -0.5])
    base = jd.testing.gaussian(mean, variance).denoiser(VP)
    tilted = jd.testing.gaussian(mean - variance * np.asarray(w), variance).denoiser(VP)
    x = jax.random.normal(jax.random.key(1), (16, 2))
    out = G.energy(base, VP, lambda x0: x0 @ w)(x, 0.4)
    np.testing.assert_allclose(out, tilted(x, 0.4), rtol=1e-3, atol=1e-4)
    a, _, c = VP.coefficients(0.4)
    free = G.energy(base, VP, lambda x0: x0 @ w, through=False)(x, 0.4)
    np.testing.assert_allclose(free, base(x, 0.4) - (c / a) ** 2 * w[None], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_momentum_and_precision_remember():
    keys, grid = jax.random.split(jax.random.key(0), 4), jd.grids.uniform(VP, 4)
    pair = lambda x, t: (cond(x, t), uncond(x, t))  # noqa: E731
    solver = jd.solvers.ddim()

    def run(solver, denoise):
        return jd.sample(keys, denoise, VP, solver, grid, shape=(8, 8, 2))

    plain = run(solver, G.projected(cond, uncond, 3.0, eta=0.3))
    np.testing.assert_allclose(
        run(G.momentum(solver, 3.0, beta=0.0, eta=0.3), pair), plain, rtol=1e-4, atol=1e-4
    )
    assert float(jnp.abs(run(G.momentum(solver, 3.0, beta=-0.5, eta=0.3), pair) - plain).max()) > 1e-2
    one = G.precision_weighted(solver, 3.0)
    first = one.guide(X, 0.5, pair(X, 0.5), one.start(X))
    np.testing.assert_allclose(first[0], G.classifier_free(cond, uncond, 3.0)(X, 0.5), rtol=1e-4, atol=1e-4)
    calm = X.at[:, :4].add(0.5)  # the upper half changed: less sure there
    later, _ = one.guide(calm, 0.5, pair(calm, 0.5), first[1])
    strength = (later - uncond(calm, 0.5)) / (cond(calm, 0.5) - uncond(calm, 0.5))
    assert float(strength[:, :4].mean()) < 1.5 < float(strength[:, 4:].mean())
    assert np.isfinite(run(one, pair)).all()


def test_a_precision_per_value_and_a_scale_per_example():
    scales = jnp.array([0.0, 1.0, 2.0, 3.0])
    guide, plain = G.precision_weighted(jd.solvers.ddim(), scales), G.classifier_free(cond, uncond, scales)

    @jax.jit
    def both(x):
        return guide.guide(x, 0.5, (cond(x, 0.5), uncond(x, 0.5)), guide.start(x))[0], plain(x, 0.5)

    np.testing.assert_allclose(*both(X), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_precision_finds_what_can_be_predicted():
    """Values of known spread: the running variance over the steps ranks them as they are."""
    spread = np.geomspace(0.01, 1.0, 32)
    sure = jd.testing.gaussian(np.linspace(-1, 1, 32)[::-1].copy(), spread).denoiser(VP)
    solver = G.precision_weighted(jd.solvers.ddim(), 2.0)
    keys, grid = jax.random.split(jax.random.key(0), 64), jd.grids.log_snr(VP, 20)
    pair = lambda x, t: (sure(x, t), sure(x, t))  # noqa: E731
    _, state = jd.sample(keys, pair, VP, solver, grid, shape=(32,), save="state")
    precision = (1 / (state.memory[1] + 1e-4)).mean(0)
    ranks = np.argsort(np.argsort(precision))
    assert np.corrcoef(ranks, -np.arange(32))[0, 1] > 0.7, ranks


@pytest.mark.slow
def test_vendi_counts_and_guides():
    np.testing.assert_allclose(G.vendi_score(jnp.eye(5)), 5, rtol=1e-4)
    np.testing.assert_allclose(G.vendi_score(jnp.ones((5, 3))), 1, rtol=1e-4)
    images = 50 * jnp.arange(12.0).reshape(3, 4) % 256
    np.testing.assert_allclose(G.vendi_score(images.astype(jnp.uint8)), G.vendi_score(images), rtol=1e-4)
    np.testing.assert_allclose(G.vendi_score(jnp.repeat(jnp.eye(2), 3, 0)), 2, rtol=1e-4)
    kernel = jd.guidance.vendi.gaussian(1.0)
    x = jax.random.normal(jax.random.key(2), (6, 2))
    loss = G.vendi_loss(bank=x[:2], exemplars=x[2:4] + 1, weight=0.5, kernel=kernel)
    slope = jax.grad(lambda x: jnp.sum(loss(x)))(x)
    step = jnp.zeros_like(x).at[3, 1].set(1e-2)
    measured = (jnp.sum(loss(x + step)) - jnp.sum(loss(x - step))) / 2e-2
    np.testing.assert_allclose(slope[3, 1], measured, rtol=2e-2, atol=1e-4)
    # guided samples cover the rare mode of an unequal mixture more often
    target = jd.testing.gaussian_mixture(
        np.array([[2.0, 0], [-2.0, 0]]), np.full((2, 2), 0.05), np.array([0.95, 0.05])
    )
    keys, grid = jax.random.split(jax.random.key(3), 64), jd.grids.log_snr(VP, 30)
    base = target.denoiser(VP)
    spread = G.energy(base, VP, G.vendi_loss(kernel=kernel), 300.0)
    share = [
        float(jnp.mean(jd.sample(keys, D, VP, jd.solvers.ddim(), grid, shape=(2,))[:, 0] < 0))
        for D in (base, spread)
    ]
    assert share[1] > share[0] + 0.1, share


@pytest.mark.slow
def test_plug_and_play_is_langevin_on_prior_and_condition():
    """Prior N(0, 1) seen at level t, condition N(y; h, 1/2): the chain's law is their product's."""
    target = jd.testing.gaussian(np.zeros(1), np.ones(1))
    edm, t, y = jd.processes.EDM(), 0.5, 1.0
    keys = jax.random.split(jax.random.key(0), 3000)
    log_prob = lambda h: -jnp.sum((y - h) ** 2, -1)  # noqa: E731
    x = jnp.zeros((3000, 1))
    out = G.plug_and_play(keys, target.denoiser(edm), x, t, log_prob, steps=600, prior=0.05, condition=0.05)
    precision = 1 / (1 + t**2) + 2.0
    np.testing.assert_allclose([out.mean(), out.var()], [2.0 * y / precision, 1 / precision], atol=0.03)
    still = G.plug_and_play(
        keys, target.denoiser(edm), x, t, log_prob, steps=600, prior=0.05, condition=0.05, noise=0.0
    )
    np.testing.assert_allclose(still, 2.0 * y / precision, atol=1e-3)
