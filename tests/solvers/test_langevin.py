"""Predictor-corrector sampling against laws that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

PROCESSES = [processes.VP(), processes.SubVP(), processes.VE(), processes.RectifiedFlow(), processes.EDM()]
NAMES = [type(p).__name__ for p in PROCESSES]
LAW = [[1.0, 0.3], [-0.8, -0.5]], [[0.3, 0.1], [0.2, 0.4]], [0.7, 0.3]
MIXTURE = testing.gaussian_mixture(*LAW)


def still(name="still"):
    """A predictor that only waits: the corrector is all that moves."""
    return solvers.linear(name, lambda process, grid: solvers.table(grid[:-1], [1.0, 0.0, 0.0, 0.0]))


def at_noise_level(process, sigma):
    return float(process.time_of_log_snr(np.float64(-np.log(sigma))))


def sample(keys, *settings, x=None, **options):
    """`jd.sample` as one program."""
    run = jax.jit(lambda keys, x: jd.sample(keys, *settings, x=x, **options))
    return np.asarray(run(keys, x))


def bent(x, t, xp=jnp):
    return 0.3 * xp.tanh(x) + 0.1 * t


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_langevin_variance_is_that_of_its_recurrence(process):
    """On N(0, v) data one step takes variance V to (1 - size / v_t)^2 V + 2 size."""
    t, snr, v, steps, n = at_noise_level(process, 0.7), 0.4, 0.5, 3, 60_000
    grid = np.array([t * 1.001, t])
    plan = solvers.predictor_corrector(still(), steps, snr, "level").plan(process, grid)
    a, _, c = process.coefficients(t)
    size, v_t = 2 * (snr * c) ** 2, a**2 * v + c**2
    np.testing.assert_allclose(plan.size, [0.0] + [size] * steps, rtol=1e-12)
    expected = 3.0
    for _ in range(steps):
        expected = (1 - size / v_t) ** 2 * expected + 2 * size
    keys = jax.random.split(jax.random.key(0), n)
    x = np.float32(np.sqrt(3.0)) * normal(n, 1)
    found = sample(keys, testing.gaussian([0.0], v).denoiser(process), process, plan, x=x)
    assert abs(np.var(found) / expected - 1) < 4 * np.sqrt(2 / n)


@pytest.mark.parametrize("process", [
    PROCESSES[0], pytest.param(PROCESSES[3], marks=pytest.mark.slow),
], ids=["VP", "RectifiedFlow"])  # fmt: skip
def test_langevin_keeps_the_marginals_of_a_mixture(process, mixed):
    """Small steps of a size that does not look at the example keep mean, covariance and weights, and
    bring a start that is too wide back to them."""
    t, n = at_noise_level(process, 0.6), 20_000
    a, _, c = process.coefficients(t)
    plan = solvers.predictor_corrector(still(), 100, 0.2, "level").plan(process, np.array([t * 1.001, t]))
    exact = (a * mixed(*LAW, n) + c * normal(n, 2)).astype(np.float32)
    keys = jax.random.split(jax.random.key(2), n)
    walk = lambda x: jd.sample(keys, MIXTURE.denoiser(process), process, plan, x=x)  # noqa: E731
    run = jax.jit(walk, compiler_options={"xla_backend_optimization_level": 1})  # the loop is what costs
    bound = 4 / np.sqrt(n)
    scale = np.std(exact, axis=0)
    kept = np.asarray(run(exact))
    np.testing.assert_allclose(kept.mean(0), np.mean(exact, 0), atol=(1.5 * bound * scale).max())
    np.testing.assert_allclose(np.cov(kept.T), np.cov(exact.T), atol=0.05 * scale.max() ** 2)
    weight = np.mean(kept @ [1.0, 0.4] > 0) - np.mean(exact @ [1.0, 0.4] > 0)
    assert abs(weight) < bound
    wide = np.asarray(run(1.4 * exact))
    np.testing.assert_allclose(np.cov(wide.T), np.cov(exact.T), atol=0.08 * scale.max() ** 2)


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_corrector_lowers_the_error_of_a_crude_predictor(process):
    """In 64-D the sizes of the paper correct the variance that a few steps of the ODE get wrong."""
    target = testing.gaussian(np.zeros(64), 0.25)
    grid = jd.grids.log_snr(process, 6, end=at_noise_level(process, 0.5))
    keys = jax.random.split(jax.random.key(0), 200)
    a, _, c = process.coefficients(grid[-1])
    exact = a**2 * 0.25 + c**2

    def error(solver):
        x = sample(keys, target.denoiser(process), process, solver, grid, shape=(64,))
        return abs(np.var(x) / exact - 1)

    plain = error(solvers.ddim())
    assert plain > 0.1
    assert error(solvers.predictor_corrector(solvers.ddim(), 4, 0.25)) < 0.6 * plain


def test_rows_count_evaluations_and_arrive_after_the_correctors():
    process = processes.VP()
    grid = jd.grids.uniform(process, 4)
    plan = solvers.predictor_corrector(solvers.ddim(), 2).plan(process, grid)
    assert plan.nfe == 4 + 2 * 3 and plan.steps == 4 and plan.noisy
    np.testing.assert_array_equal(plan.correct, [0, 1, 1, 0, 1, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(plan.arrives, [0, 0, 1, 0, 0, 2, 0, 0, 3, 4])
    np.testing.assert_allclose(plan.t, np.array(grid)[[0, 1, 1, 1, 2, 2, 2, 3, 3, 3]])
    target = MIXTURE.denoiser(process)
    path = sample(normal(10, 4, 2, seed=1), target, process, plan, x=normal(4, 2), save="all")
    assert path.shape == (5, 4, 2)
    np.testing.assert_allclose(path[-1], jax.jit(target)(path[-2], grid[-2]), rtol=1e-4, atol=1e-5)


def test_alpha_is_that_of_the_table():
    betas = np.linspace(1e-4, 0.02, 1000)
    process = processes.DiscreteVP(betas)
    grid = np.append(process.time_of_index(np.array([999, 998, 500, 499])), 0.0)
    plan = solvers.predictor_corrector(solvers.ddim(), 1, 0.5).plan(process, grid)
    c2 = process.coefficients(grid[1:4])[2] ** 2
    alpha = (plan.size[plan.correct] / c2 / (2 * 0.25))[1]
    np.testing.assert_allclose(alpha, 1 - betas[500], rtol=1e-9)


@pytest.mark.parametrize("name", ["heun", "dpmpp 2", "unipc"])
def test_without_correctors_it_is_the_predictor(name):
    predictor = {
        "heun": solvers.heun(),
        "dpmpp 2": solvers.dpmpp_multistep(2),
        "unipc": solvers.unipc(2),
    }[name]
    process = processes.RectifiedFlow()
    grid = jd.grids.log_snr(process, 5)
    of, denoise = solvers.predictor_corrector, MIXTURE.denoiser(process)
    walks = predictor, of(predictor, 0), of(predictor, 1, 1e-4), of(predictor, 2)
    plans = [each.plan(process, grid) for each in walks]

    @jax.jit
    def run(noise, x):
        return [jd.sample(noise[: plan.nfe], denoise, process, plan, x=x) for plan in plans]

    plain, without, corrected, twice = run(normal(30, 6, 2, seed=1), normal(6, 2))
    np.testing.assert_allclose(without, plain, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(corrected, plain, atol=5e-3)
    assert np.isfinite(twice).all()


def test_levenberg_marquardt_direction_solves_its_linear_system():
    process, damping, kappa = processes.VP(), 0.7, 0.4
    grid = np.array([0.9, 0.6, 0.4])
    x, denoise = normal(3, 2), jax.jit(MIXTURE.denoiser(process))
    curvature = solvers.LevenbergMarquardt(damping, kappa)
    path = sample(
        None, denoise, process, solvers.predictor_corrector(solvers.ddim(), 0, curvature=curvature), grid,
        x=x, save="all",
    )  # fmt: skip
    (a0, _, c0), (a1, _, c1), (a2, _, c2) = (process.coefficients(t) for t in grid)
    np.testing.assert_allclose(
        path[1], sample(None, denoise, process, solvers.ddim(), grid[:2], x=x), rtol=1e-5, atol=1e-6
    )
    e0 = (x - a0 * np.asarray(denoise(x, grid[0]))) / c0
    clean = np.asarray(denoise(path[1], grid[1]))
    e1 = (path[1] - a1 * clean) / c1
    for i in range(3):
        m = kappa * e0[i] + (1 - kappa) * e1[i]
        direction = np.linalg.solve(damping * np.eye(2) + np.outer(m, m), e1[i])
        direction *= np.linalg.norm(e1[i]) / np.linalg.norm(direction)
        np.testing.assert_allclose(path[2, i], a2 * clean[i] + c2 * direction, rtol=1e-4, atol=1e-5)


def test_langevin_steps_sized_by_norms_along_the_turned_direction(x64):
    """Each example's own norms, and noise that is recorded: two corrector steps by hand."""
    process, snr, damping, kappa = processes.EDM(), 0.3, 0.7, 0.4
    grid = np.array([0.51, 0.5])
    solver = solvers.predictor_corrector(still(), 2, snr, "norms", solvers.LevenbergMarquardt(damping, kappa))
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(3, 2)), rng.normal(size=(3, 3, 2))
    found = sample(noise, bent, process, solver, grid, x=x)
    for i in range(3):
        point, before = x[i], (x[i] - bent(x[i], 0.51, np)) / 0.51
        for z in noise[1:, i]:
            e = (point - bent(point, 0.5, np)) / 0.5
            m = kappa * before + (1 - kappa) * e
            turned = np.linalg.solve(damping * np.eye(2) + np.outer(m, m), e)
            turned *= np.linalg.norm(e) / np.linalg.norm(turned)
            size = 2 * (snr * np.linalg.norm(z) / np.linalg.norm(e / 0.5)) ** 2
            point, before = point - size * turned / 0.5 + np.sqrt(2 * size) * z, e
        np.testing.assert_allclose(found[i], point, rtol=1e-9)


def test_what_follows_starts_from_the_corrected_point(x64):
    """With a clean estimate of 0 a step scales the point by `c_t / c_s`: also the base point was moved."""
    process, snr = processes.EDM(), 0.4
    grid = np.array([5.0, 2.0, 1.5, 0.4])
    stats = solvers.ModelStatistics(
        np.linspace(-2, 2, 5), np.ones((5, 2)), np.zeros((5, 2)), np.zeros((5, 2)),
        solvers.statistics.signature(process),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(3, 2)), rng.normal(size=(9, 3, 2))
    zero = lambda x, t: jnp.zeros_like(x)  # noqa: E731
    for predictor in (solvers.unipc(2), solvers.dpm_solver_v3(stats, 2), solvers.heun("log_snr")):
        plan = solvers.predictor_corrector(predictor, 1, snr, "level").plan(process, grid)
        expected, size = x, 2 * snr**2
        for t, s, row in zip(grid[:-1], grid[1:], np.flatnonzero(plan.correct), strict=True):
            expected = s / t * expected * (1 - size) + np.sqrt(2 * size) * s * noise[row]
        out = sample(noise[: plan.nfe], zero, process, plan, x=x)
        np.testing.assert_allclose(out, expected, rtol=1e-9, err_msg=predictor.name)
    curved = [
        sample(
            None, lambda x, t: 0 * x + jnp.array([[1.0, 0.0]]), process,
            solvers.predictor_corrector(each, 0, curvature=solvers.LevenbergMarquardt(0.1, 0.5)), grid, x=x,
        )
        for each in (solvers.ddim(), solvers.unipc(2))
    ]  # fmt: skip
    np.testing.assert_allclose(*curved, rtol=1e-9)


def test_levenberg_marquardt_turns_what_a_noisy_step_keeps_of_the_noise(x64):
    """`a_t D + sqrt(c_t^2 - std^2) direction + std noise`, as published for DDIM with eta."""
    process, grid, eta = processes.VP(), np.array([0.9, 0.6, 0.4]), 0.7
    rng = np.random.default_rng(0)
    x, noise = rng.normal(size=(3, 2)), rng.normal(size=(2, 3, 2))
    solver = solvers.predictor_corrector(solvers.ddim(eta), 0, curvature=solvers.LevenbergMarquardt(0.1, 0.5))
    path = sample(noise, bent, process, solver, grid, x=x, save="all")
    (a, _, c), before = process.coefficients(grid), None
    std = eta * c[1:] * np.sqrt(-np.expm1(-2 * np.diff(process.log_snr(grid))))
    for k in range(2):
        clean = bent(path[k], grid[k], np)
        e = (path[k] - a[k] * clean) / c[k]
        m = e if before is None else 0.5 * before + 0.5 * e
        turned = e - m * ((m * e).sum(1) / (0.1 + (m * m).sum(1)))[:, None]
        turned *= (np.linalg.norm(e, axis=1) / np.linalg.norm(turned, axis=1))[:, None]
        kept = np.sqrt(c[k + 1] ** 2 - std[k] ** 2)
        expected = a[k + 1] * clean + kept * turned + std[k] * noise[k]
        np.testing.assert_allclose(path[k + 1], expected, rtol=1e-9)
        before = e


def test_levenberg_marquardt_turns_every_slope_of_a_step(x64):
    """Heun on EDM, two steps of two evaluations: the step goes on from its turned start."""
    process, grid = processes.EDM(), np.array([3.0, 1.4, 0.6])
    solver = solvers.predictor_corrector(solvers.heun(), 0, curvature=solvers.LevenbergMarquardt(0.1, 0.5))
    x = np.random.default_rng(0).normal(size=(3, 2))
    found = sample(None, bent, process, solver, grid, x=x)
    before = None

    def turned(x, t):
        nonlocal before
        clean = bent(x, t, np)
        e = (x - clean) / t
        m = e if before is None else 0.5 * before + 0.5 * e
        before, d = e, e - m * ((m * e).sum(1) / (0.1 + (m * m).sum(1)))[:, None]
        d *= (np.linalg.norm(e, axis=1) / np.linalg.norm(d, axis=1))[:, None]
        return clean + t * d, d

    for t, s in zip(grid[:-1], grid[1:], strict=True):
        x, first = turned(x, t)
        _, second = turned(x + (s - t) * first, s)
        x = x + (s - t) * (first + second) / 2
    np.testing.assert_allclose(found, x, rtol=1e-9)


@jax.jit
def of_plan(noise, plan):
    process = processes.SubVP()
    return jd.sample(noise, MIXTURE.denoiser(process), process, plan, x=normal(4, 2))


@pytest.mark.parametrize("curvature", [(1.0, 0.0, 0.0), (1e9, 0.5, 0.0), (0.1, 0.5, 1.0)])
def test_levenberg_marquardt_limits_are_plain(curvature):
    process = processes.SubVP()
    grid = jd.grids.log_snr(process, 5)

    def run(curvature):
        solver = solvers.predictor_corrector(solvers.ddim(), 1, sizes="level", curvature=curvature)
        return np.asarray(of_plan(normal(9, 4, 2, seed=1), solver.plan(process, grid)))

    np.testing.assert_allclose(run(solvers.LevenbergMarquardt(*curvature)), run(None), atol=2e-4)
    turned = run(solvers.LevenbergMarquardt(0.1, 0.5))
    assert np.abs(turned - run(None)).max() > 1e-2


@pytest.mark.slow
def test_a_sample_depends_on_its_key_alone(x64):
    """In float64: steps that are sized by norms enlarge what float32 rounds."""
    process = processes.EDM()
    solver = solvers.predictor_corrector(curvature=solvers.LevenbergMarquardt())
    grid = jd.grids.karras(process, 4)

    def run(keys):
        return jd.sample(keys, MIXTURE.denoiser(process), process, solver, grid, shape=(2,))

    testing.invariance(jax.jit(run), jax.random.split(jax.random.key(0), 8), rtol=1e-8)
    testing.key_reuse(run, jax.random.split(jax.random.key(1), 3))
    keys = jax.random.split(jax.random.key(2), 8)
    np.testing.assert_allclose(jax.jit(run)(keys), run(keys), rtol=1e-8, atol=1e-8)


@pytest.mark.slow
def test_gradients_and_traced_numbers():
    process, grid = processes.VP(), jd.grids.uniform(processes.VP(), 4)
    keys = jax.random.split(jax.random.key(0), 4)

    def loss(snr, grid):
        solver = solvers.predictor_corrector(solvers.ddim(), 1, snr)
        return jnp.mean(jd.sample(keys, MIXTURE.denoiser(process), process, solver, grid, shape=(2,)) ** 2)

    gradients = jax.jit(jax.grad(loss, argnums=(0, 1)))(0.2, jnp.asarray(grid))
    assert all(np.isfinite(g).all() for g in gradients) and gradients[0] != 0


@pytest.mark.parametrize(
    "build",
    [
        lambda: solvers.predictor_corrector(correctors=-1),
        lambda: solvers.predictor_corrector(snr=0.0),
        lambda: solvers.predictor_corrector(sizes="big"),
        lambda: solvers.LevenbergMarquardt(damping=0.0),
        lambda: solvers.LevenbergMarquardt(kappa=1.5),
        lambda: solvers.predictor_corrector(solvers.ddim()).plan(processes.VP(), np.array([0.1, 0.5])),
    ],
)
def test_settings_out_of_range_are_refused(build):
    with pytest.raises(ValueError):
        build()


@pytest.mark.slow
@pytest.mark.parametrize(
    "process", [processes.BrownianBridge(), processes.MeanReverting()], ids=lambda p: type(p).__name__
)
def test_with_a_second_endpoint_the_law_around_it_is_kept(process, mixed):
    n, t = 4000, 0.5 * process.t_max
    a, b, c = process.coefficients(t)
    y = 3 + normal(n, 2)
    exact = (a * mixed(*LAW, n) + b * y + c * normal(n, 2, seed=1)).astype(np.float32)
    solver = solvers.predictor_corrector(still(), 30, 0.2, "level")
    keys, grid = jax.random.split(jax.random.key(3), n), np.array([t * 1.001, t])
    kept = sample(keys, MIXTURE.denoiser(process, y), process, solver, grid, x=exact, y=y)
    off, before = kept - b * y, exact - b * y
    assert np.abs(off - before).max() > 0.1 * before.std()
    np.testing.assert_allclose(off.mean(0), before.mean(0), atol=6 / np.sqrt(n) * before.std())
    np.testing.assert_allclose(np.cov(off.T), np.cov(before.T), atol=0.1 * before.var())
    path = sample(
        jax.random.split(jax.random.key(4), 4), MIXTURE.denoiser(process, y[:4]), process,
        solvers.predictor_corrector(), jd.grids.uniform(process, 4), shape=(2,), y=y[:4], save="all",
    )  # fmt: skip
    assert np.isfinite(path).all()
