"""Denoising MCMC: the chain's law on the product space, and the way home from every level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

PROCESSES = [processes.VP(), processes.SubVP(), processes.VE(), processes.RectifiedFlow(), processes.EDM()]
NAMES = [type(p).__name__ for p in PROCESSES]
LAW = np.array([[1.5, 0.5], [-1.5, -0.5]]), np.array([[0.2, 0.3], [0.3, 0.2]]), [0.7, 0.3]
TARGET = testing.gaussian_mixture(*LAW)


def space(process, count=8, low=0.15, high=2.5):
    """Noise levels between sigma = 0.15 and 2.5."""
    ends = process.time_of_log_snr(-np.log([high, low]))
    return solvers.levels(process, count, *(float(t) for t in ends))


def draws(process, times, weights, n, seed=0):
    """Points from the product law, with the level of each."""
    rng, (means, variances, shares) = np.random.default_rng(seed), LAW
    level, mode = rng.choice(len(times), n, p=weights), rng.choice(2, n, p=shares)
    clean = means[mode] + np.sqrt(variances[mode]) * rng.normal(size=(n, 2))
    a, _, c = (k[level, None] for k in process.coefficients(times))
    x = a * clean + c * rng.normal(size=(n, 2))
    return level, x.astype(np.float32), times[level].astype(np.float32)


def conditional(process, times, log_prior=None):
    log_prob = lambda x, t: TARGET.log_prob(process, x, t)  # noqa: E731
    return solvers.level_conditional(log_prob, times, log_prior)


def test_levels_are_equal_steps_in_log_snr():
    for process in PROCESSES:
        times = space(process)
        np.testing.assert_allclose(np.exp(-process.log_snr(times)[[0, -1]]), [2.5, 0.15], rtol=1e-6)
        np.testing.assert_allclose(np.diff(process.log_snr(times), 2), 0, atol=1e-6)
    with pytest.raises(ValueError, match="log-SNR"):
        solvers.levels(processes.RectifiedFlow(), 5)


def test_one_step_of_the_chain_has_the_moments_of_its_rule():
    """On N(0, v) data, from 3 at level 0: `3 (1 - size c^2 / v_t)` on average, with variance 2 size c^2."""
    process, times, size, v, n = processes.VP(), np.array([0.5, 0.3]), 0.2, 0.4, 40_000
    chain = solvers.langevin_gibbs(times, lambda x: jnp.log(jnp.array([[0.3, 0.7]])) + 0 * x, 1, size)
    denoise = testing.gaussian([0.0], v).denoiser(process)
    start = {"x": np.full((n, 1), 3.0, np.float32), "t": np.full(n, 0.5, np.float32)}
    run = jax.jit(lambda keys, x: jd.sample(keys, denoise, process, chain, x=x))
    point = jax.tree.map(np.asarray, run(jax.random.split(jax.random.key(0), n), start))
    a, _, c = process.coefficients(0.5)
    spread = 2 * size * c**2
    mean = 3 * (1 - size * c**2 / (a**2 * v + c**2))
    np.testing.assert_allclose(np.mean(point["x"]), mean, atol=4 * np.sqrt(spread / n))
    np.testing.assert_allclose(np.var(point["x"]), spread, rtol=4 * np.sqrt(2 / n))
    assert abs(np.mean(point["t"] < 0.4) - 0.7) < 4 * np.sqrt(0.21 / n)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_the_chain_keeps_the_law_of_the_product_space(process):
    n, times = 8000, space(process)
    weights = np.arange(1.0, 9.0) / 36
    chain = solvers.langevin_gibbs(times, conditional(process, times, np.log(weights)), 12, 0.02)
    _, x, t = draws(process, times, weights, n)

    @jax.jit
    def run(key, start):
        keys = jax.random.split(key, n)
        return jd.sample(keys, TARGET.denoiser(process), process, chain, x=start)

    point = run(jax.random.key(5), {"x": x, "t": t})
    level = np.argmin(np.abs(np.asarray(point["t"])[:, None] - times), axis=1)
    np.testing.assert_allclose(np.bincount(level, minlength=8) / n, weights, atol=4 * np.sqrt(0.25 / n))
    for k in (0, 4, 7):
        a, _, c = process.coefficients(times[k])
        here = np.asarray(point["x"])[level == k]
        mean = a * np.array([0.6, 0.2])
        cov = a**2 * (np.diag([0.23, 0.27]) + 0.21 * np.outer([3.0, 1.0], [3.0, 1.0])) + c**2 * np.eye(2)
        bound = 5 / np.sqrt(len(here))
        np.testing.assert_allclose(here.mean(0), mean, atol=bound * np.sqrt(cov.max()))
        np.testing.assert_allclose(np.cov(here.T), cov, atol=(bound + 0.04) * cov.max())


@pytest.mark.slow
def test_the_chain_finds_every_mode_through_the_high_levels():
    """From one mode at the lowest level, weights and levels come right."""
    process, n = processes.EDM(), 4000
    times = space(process)
    chain = solvers.langevin_gibbs(times, conditional(process, times), 150, 0.1)
    x = 0.3 * np.random.default_rng(0).normal(size=(n, 2)) + [1.5, 0.5]
    start = {"x": x.astype(np.float32), "t": np.full(n, times[-1], np.float32)}
    home = solvers.from_level(solvers.dpmpp_multistep(2), times, 8)

    @jax.jit
    def run(key, start):
        keys, denoise = jax.random.split(key, n), TARGET.denoiser(process)
        return jd.sample(None, denoise, process, home, x=jd.sample(keys, denoise, process, chain, x=start))

    clean = np.asarray(run(jax.random.key(1), start)["x"])
    assert abs(np.mean(clean @ [3.0, 1.0] > 0) - 0.7) < 0.05
    near = clean[clean @ [3.0, 1.0] > 0]
    np.testing.assert_allclose(near.mean(0), [1.5, 0.5], atol=0.07)
    np.testing.assert_allclose(np.var(near, axis=0), [0.2, 0.3], atol=0.05)


@pytest.mark.slow
@pytest.mark.parametrize("process", [processes.VP(), processes.EDM()], ids=["VP", "EDM"])
@pytest.mark.parametrize("name", ["dpmpp 2", "heun", "unipc", "ancestral"])
def test_the_way_home_is_the_solver_on_a_grid_of_each_samples_own(process, name):
    solver = {
        "dpmpp 2": solvers.dpmpp_multistep(2),
        "heun": solvers.heun(),
        "unipc": solvers.unipc(2),
        "ancestral": solvers.ancestral(),
    }[name]
    times, denoise = space(process, 4), TARGET.denoiser(process)
    level, x, t = draws(process, times, np.full(4, 0.25), 12)
    home = solvers.from_level(solver, times, 5)
    grids = [jd.grids.log_snr(process.replace(t_max=float(t)), 5) for t in times]
    plans = jax.tree.map(lambda *leaves: np.stack(leaves), *[solver.plan(process, grid) for grid in grids])

    @jax.jit
    def run(key, x, t):
        keys = jax.random.split(key, 12)
        alone = jax.vmap(lambda rows: jd.sample(keys, denoise, process, rows, x=x))(plans)
        return jd.sample(keys, denoise, process, home, x={"x": x, "t": t}), alone

    found, alone = jax.tree.map(np.asarray, run(jax.random.key(3), x, t))
    np.testing.assert_array_equal(found["t"], 0.0)
    np.testing.assert_allclose(found["x"], alone[level, np.arange(12)], rtol=2e-4, atol=2e-5)
    assert len(set(level)) == 4


@pytest.mark.slow
def test_a_classifier_learns_the_conditional():
    """The loss of the exact conditional is its entropy, and any other classifier's is larger."""
    process = processes.EDM()
    times, weights = space(process, 4), np.array([0.4, 0.3, 0.2, 0.1])
    exact = conditional(process, times, np.log(weights))

    @jax.jit
    def loss(key, shift, scale):
        draw, key = jax.random.split(key)
        classifier, clean = lambda x: exact(x) * scale + shift[None], TARGET.sample(draw, 4000)
        return solvers.level_loss(classifier, key, clean, process, times, np.log(weights))

    best, *others = (np.asarray(loss(jax.random.key(2), np.float32(shift), scale)) for shift, scale in [
        (np.zeros(4), 1.0), ([0.4, 0, 0, 0], 1.0), ([0, -0.4, 0, 0.4], 1.0), (np.zeros(4), 1.5)
    ])  # fmt: skip
    assert best.shape == (4000,) and best.mean() < np.sum(-weights * np.log(weights))
    assert all(other.mean() > best.mean() for other in others)


@pytest.mark.slow
def test_ten_evaluations_a_sample_beat_ten_from_noise():
    """Eight modes in 16-D: five steps along the chain and five home, against all ten from noise."""
    process, rng = processes.EDM(), np.random.default_rng(1)
    means = rng.normal(size=(8, 16))
    target = testing.gaussian_mixture(means, np.full(8, 0.05), np.arange(1.0, 9.0))
    real = np.asarray(jax.jit(lambda key: target.sample(key, 3000))(jax.random.key(9)))
    lines = np.concatenate([np.linalg.qr(rng.normal(size=(16, 16)))[0] for _ in range(6)], axis=1)

    def distance(x):
        return np.sqrt(np.mean((np.sort(np.asarray(x) @ lines, 0) - np.sort(real @ lines, 0)) ** 2))

    denoise, solver = target.denoiser(process), solvers.dpmpp_multistep(2)
    times = solvers.levels(process, 12, 2.0, 0.1)
    exact = solvers.level_conditional(lambda x, t: target.log_prob(process, x, t), times)
    chain = solvers.langevin_gibbs(times, exact, steps=75, step_size=0.2)
    home = solvers.from_level(solver, times, 5)
    plans = [solver.plan(process, grid(process, 10)) for grid in (jd.grids.karras, jd.grids.log_snr)]

    @jax.jit
    def run():
        keys = jax.random.split(jax.random.key(0), 3000)
        x = 2.0 * jax.random.normal(jax.random.key(3), (1000, 16)) + real.mean(0)[None]
        plain = [jd.sample(keys, denoise, process, rows, shape=(16,)) for rows in plans]
        start = {"x": x, "t": jnp.full(1000, 2.0)}
        path = jd.sample(keys[:1000], denoise, process, chain, x=start, save=5)
        points = jax.tree.map(lambda v: v[-3:].reshape(-1, *v.shape[2:]), path)
        return plain, jd.sample(None, denoise, process, home, x=points)["x"]

    plain, clean = run()
    assert distance(clean) < 0.8 * min(map(distance, plain))


@pytest.mark.slow
def test_a_point_depends_on_its_key_alone():
    process = processes.VP()
    times = space(process)
    chain = solvers.langevin_gibbs(times, conditional(process, times), 5)
    _, x, t = draws(process, times, np.full(8, 1 / 8), 8)

    def run(keys, x, t):
        path = jd.sample(keys, TARGET.denoiser(process), process, chain, x={"x": x, "t": t}, save=2)
        return jax.tree.map(lambda v: jnp.moveaxis(v, 1, 0), path)

    keys = jax.random.split(jax.random.key(0), 8)
    assert jax.eval_shape(run, keys, x, t)["x"].shape == (8, 4, 2)
    testing.invariance(jax.jit(run), jax.random.split(jax.random.key(0), 8), x, t, rtol=1e-4)
    testing.key_reuse(run, jax.random.split(jax.random.key(1), 8), x, t)
    keys = jax.random.split(jax.random.key(2), 8)
    jitted, eager = (walk(keys, x, t)["x"] for walk in (jax.jit(run), run))
    np.testing.assert_allclose(jitted, eager, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        lambda: solvers.langevin_gibbs([1.0, 2.0], None, 3),
        lambda: solvers.langevin_gibbs([2.0, 1.0], None, 0),
        lambda: solvers.langevin_gibbs([2.0, 1.0], None, 3, step_size=0.0),
        lambda: solvers.from_level(solvers.ddim(), [0.5, 0.0], 3),
        lambda: solvers.from_level(solvers.ddim(), [0.5, 0.2], 3).plan(processes.VP(), np.array([1.0, 0.0])),
        lambda: jd.sample(
            None, None, processes.VP(), solvers.from_level(solvers.ddim(), [0.5, 0.2], 3), x=jnp.zeros((2, 2))
        ),
    ],
)
def test_settings_out_of_range_are_refused(build):
    with pytest.raises(ValueError):
        build()
