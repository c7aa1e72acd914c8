"""Projected, zero-star and frequency-decoupled guidance; gradients; memory; variety."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

G = jd.guidance
VP = jd.processes.VP()
X = np.random.default_rng(0).normal(size=(4, 8, 8, 2)).astype(np.float32)


def cond(x, t):
    return 0.8 * x + 0.1


def uncond(x, t):
    return 0.5 * jnp.roll(x, 1, 1) - 0.2


def estimates(denoisers, x, t):
    """What each of them says, in one program."""
    return jax.device_get(jax.jit(lambda x: [denoise(x, t) for denoise in denoisers])(x))


def inner(one, other):
    return np.sum(np.asarray(one) * np.asarray(other), axis=(1, 2, 3))


def test_projection():
    every = (
        cond, G.classifier_free(cond, uncond, 3.0), G.projected(cond, uncond, 3.0, eta=1.0),
        G.projected(cond, uncond, 3.0), G.projected(cond, uncond, 3.0, eta=1.0, norm=0.5),
    )  # fmt: skip
    clean, plain, whole, across, near = estimates(every, X, 0.5)
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
    same, plain, coarse, detail, once = estimates(every, X, 0.5)
    np.testing.assert_allclose(same, plain, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(coarse, 2.0, rtol=1e-5)
    np.testing.assert_allclose(detail, 5.0 * once, rtol=1e-5)
    with pytest.raises(ValueError, match="divisible"):
        G.frequency_decoupled(cond, uncond, [1.0, 1.0])(jnp.zeros((1, 7, 8, 1)), 0.5)


@pytest.mark.slow
def test_an_exact_classifier_gives_the_exact_conditional():
    means, flow = np.array([[1.0, 0.0], [-1.0, 0.5]]), jd.processes.RectifiedFlow()
    parts = [jd.testing.gaussian(m, np.full(2, 0.3)) for m in means]
    whole = jd.testing.gaussian_mixture(means, np.full((2, 2), 0.3), np.array([0.5, 0.5]))
    x = np.random.default_rng(1).normal(size=(16, 2)).astype(np.float32)

    def log_prob(x, t):
        logs = jnp.stack([part.log_prob(VP, x, t) for part in parts], -1)
        return jax.nn.log_softmax(logs, -1)[:, 0]

    guided, late = (G.classifier(whole.denoiser(process), process, log_prob) for process in (VP, flow))
    found, exact, end = estimates((guided, parts[0].denoiser(VP), lambda x, t: late(x, 1.0)), x, 0.4)
    np.testing.assert_allclose(found, exact, rtol=1e-3, atol=1e-3)
    assert np.isfinite(end).all()


@pytest.mark.slow
def test_a_linear_loss_tilts_a_gaussian_exactly():
    """N(m, V) exp(-w . x) is N(m - V w, V)."""
    mean, variance, w = np.array([0.5, -0.2]), np.array([0.3, 0.8]), np.float32([1.0, -0.5])
    base = jd.testing.gaussian(mean, variance).denoiser(VP)
    tilted = jd.testing.gaussian(mean - variance * w, variance).denoiser(VP)
    x = np.random.default_rng(1).normal(size=(16, 2)).astype(np.float32)
    led, direct = (G.energy(base, VP, lambda x0: x0 @ w, through=through) for through in (True, False))
    out, exact, free, plain = estimates((led, tilted, direct, base), x, 0.4)
    np.testing.assert_allclose(out, exact, rtol=1e-3, atol=1e-4)
    a, _, c = VP.coefficients(0.4)
    np.testing.assert_allclose(free, plain - (c / a) ** 2 * w[None], rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_momentum_and_precision_remember():
    pair = lambda x, t: (cond(x, t), uncond(x, t))  # noqa: E731
    solver, grid = jd.solvers.ddim(), jd.grids.uniform(VP, 4)
    one = G.precision_weighted(solver, 3.0)

    @jax.jit
    def runs():
        def run(solver, denoise=pair):
            keys = jax.random.split(jax.random.key(0), 4)
            return jd.sample(keys, denoise, VP, solver, grid, shape=(8, 8, 2))

        none, some = (run(G.momentum(solver, 3.0, beta=beta, eta=0.3)) for beta in (0.0, -0.5))
        return run(solver, G.projected(cond, uncond, 3.0, eta=0.3)), none, some, run(one)

    plain, none, some, weighted = jax.device_get(runs())
    np.testing.assert_allclose(none, plain, rtol=1e-4, atol=1e-4)
    assert np.abs(some - plain).max() > 1e-2
    assert np.isfinite(weighted).all()

    calm = X.copy()
    calm[:, :4] += 0.5  # the upper half changed: less sure there

    @jax.jit
    def twice(x, calm):
        first, memory = one.guide(x, 0.5, pair(x, 0.5), one.start(x))
        later, _ = one.guide(calm, 0.5, pair(calm, 0.5), memory)
        return first, G.classifier_free(cond, uncond, 3.0)(x, 0.5), later, pair(calm, 0.5)

    first, free, later, (told, untold) = jax.device_get(twice(X, calm))
    np.testing.assert_allclose(first, free, rtol=1e-4, atol=1e-4)
    strength = (later - untold) / (told - untold)
    assert strength[:, :4].mean() < 1.5 < strength[:, 4:].mean()


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
    grid, pair = jd.grids.log_snr(VP, 20), lambda x, t: (sure(x, t), sure(x, t))

    @jax.jit
    def memory(key):
        keys = jax.random.split(key, 64)
        return jd.sample(keys, pair, VP, solver, grid, shape=(32,), save="state")[1].memory

    precision = (1 / (np.asarray(memory(jax.random.key(0))[1]) + 1e-4)).mean(0)
    ranks = np.argsort(np.argsort(precision))
    assert np.corrcoef(ranks, -np.arange(32))[0, 1] > 0.7, ranks


@pytest.mark.slow
def test_vendi_counts_and_guides():
    images = 50 * np.arange(12, dtype=np.float32).reshape(3, 4) % 256
    five, alike, two = np.eye(5), np.ones((5, 3)), np.repeat(np.eye(2), 3, 0)
    sets = *(np.float32(v) for v in (five, alike, two)), images, images.astype(np.uint8)
    *scores, whole, stored = jax.jit(lambda *sets: [G.vendi_score(v) for v in sets])(*sets)
    np.testing.assert_allclose(scores, [5, 1, 2], rtol=1e-4)
    np.testing.assert_allclose(stored, whole, rtol=1e-4)
    kernel = jd.guidance.vendi.gaussian(1.0)
    x, step = np.random.default_rng(2).normal(size=(6, 2)).astype(np.float32), np.zeros((6, 2), np.float32)
    step[3, 1] = 1e-2
    loss = G.vendi_loss(bank=x[:2], exemplars=x[2:4] + 1, weight=0.5, kernel=kernel)

    @jax.jit
    def slopes(x, step):
        total = lambda x: jnp.sum(loss(x))  # noqa: E731
        return jax.grad(total)(x)[3, 1], (total(x + step) - total(x - step)) / 2e-2

    np.testing.assert_allclose(*slopes(x, step), rtol=2e-2, atol=1e-4)
    # guided samples cover the rare mode of an unequal mixture more often
    target = jd.testing.gaussian_mixture(
        np.array([[2.0, 0], [-2.0, 0]]), np.full((2, 2), 0.05), np.array([0.95, 0.05])
    )
    grid, base = jd.grids.log_snr(VP, 30), target.denoiser(VP)
    spread = G.energy(base, VP, G.vendi_loss(kernel=kernel), 300.0)

    @jax.jit
    def shares():
        def share(denoise):
            keys = jax.random.split(jax.random.key(3), 64)
            return jnp.mean(jd.sample(keys, denoise, VP, jd.solvers.ddim(), grid, shape=(2,))[:, 0] < 0)

        return share(base), share(spread)

    plain, guided = (float(share) for share in shares())
    assert guided > plain + 0.1, (plain, guided)


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
