"""DPM-Solver-v3 and its statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad

import jaxdiff as jd
from jaxdiff import processes, solvers, testing
from jaxdiff.solvers.statistics import ModelStatistics, signature

LAW = [[1.0, 0.3], [-0.8, -0.5]], [[0.3, 0.1], [0.2, 0.4]], [0.7, 0.3]
TARGET = testing.gaussian_mixture(*LAW)
PROCESSES = [processes.VP(), processes.EDM(), processes.RectifiedFlow()]
NAMES = [type(p).__name__ for p in PROCESSES]


def constant(process, l, s, b, low=-7.0, high=7.0):  # noqa: E741
    grid = np.linspace(low, high, 61)
    return ModelStatistics(grid, *(np.full((61, 2), v) for v in (l, s, b)), process=signature(process))


def between(process, steps):
    grid = process.time_of_log_snr(np.linspace(-4.382, 4.0, steps + 1))
    return np.minimum(grid, process.t_max)


@pytest.mark.slow
@pytest.mark.parametrize("order", [1, 2, 3])
def test_limits_are_dpm_solver_and_plus_plus(x64, order):
    x = 5 * np.random.default_rng(0).normal(size=(4, 2))
    for process in PROCESSES:
        walk = jax.jit(lambda rows, p=process: jd.sample(None, TARGET.denoiser(p), p, rows, x=x))
        run = lambda solver, p=process, w=walk: w(solver.plan(p, jd.grids.log_snr(p, 8)))  # noqa: E731
        for numbers, make in (
            ((1.0, 0.0, 0.0), solvers.dpmpp_multistep),
            ((0.0, -1.0, 0.0), solvers.dpm_multistep),
        ):
            v3 = solvers.dpm_solver_v3(
                constant(process, *numbers), order, corrector=None, lower_order_final=False
            )
            np.testing.assert_allclose(run(v3), run(make(order, rule="lagrange")), rtol=1e-7, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("corrector", [None, "full"])
def test_orders_with_any_statistics(x64, corrector, longer, mixed):
    """The step is exact but for the polynomial: whatever l, s and b are, the order is that of the method."""
    process = processes.VP()
    grid = np.linspace(-4.5, 4.2, 401)[:, None]
    phase = np.array([0.0, 1.0])
    bump = np.exp(-((grid / 1.7) ** 2))  # data prediction at the start, where the first step has order one
    stats = ModelStatistics(
        grid[:, 0],
        1 - bump * (0.5 + 0.4 * np.sin(grid + phase)),
        bump * (0.3 * np.cos(grid) - 0.5 + 0 * phase),
        bump * 0.4 * np.sin(0.7 * grid - phase),
        process=signature(process),
    )
    start, end = between(process, 1)
    a, _, c = process.coefficients(start)
    x = a * mixed(*LAW, 16) + c * np.random.default_rng(1).normal(size=(16, 2))
    exact = testing.flow_map(TARGET, process, x, start, end)
    walk = jax.jit(lambda rows: jd.sample(None, TARGET.denoiser(process), process, rows, x=x))
    for order in (1, 2, 3):
        solver = solvers.dpm_solver_v3(stats, order, corrector, lower_order_final=False)
        found = testing.measure_order(
            lambda n, s=solver: walk(longer(s.plan(process, between(process, n)), 192)),
            exact,
            (48, 96, 192),
        )
        assert found.slope > order - 0.35, (order, found)
        assert corrector or found.slope < order + 0.35, (order, found)


@pytest.mark.slow
def test_statistics_of_a_gaussian_are_its_closed_form():
    """D is affine: l is its linear part, f = -l m does not vary, and one step is exact."""
    process, m, v = processes.RectifiedFlow(), np.array([0.7, -0.4]), np.array([0.3, 0.05])
    target = testing.gaussian(m, v)
    rng = np.random.default_rng(0)
    x0 = (m + np.sqrt(v) * rng.normal(size=(64, 2))).astype(np.float32)
    for trace in ("exact", "hutchinson"):
        stats = solvers.fit_model_statistics(
            jax.random.key(1), target.denoiser(process), process, x0, trace=trace
        )
        ratio = np.exp(-2 * stats.log_snr)[:, None]
        np.testing.assert_allclose(stats.l, ratio / (v + ratio), rtol=2e-3, atol=2e-5)
        np.testing.assert_allclose(stats.s, 0.0, atol=1e-6)
        slope = 2 * m * stats.l * (1 - stats.l)  # -m dl / dlog_snr
        np.testing.assert_allclose(stats.b[3:-3], slope[3:-3], atol=5e-3)
    grid = process.time_of_log_snr(np.array([-4.0, 0.0, 4.0]))
    a, _, c = process.coefficients(grid[0])
    x = (a * x0 + c * rng.normal(size=x0.shape)).astype(np.float32)
    each = solvers.ddim(), solvers.dpm_solver_v3(stats, 1, None), solvers.dpm_solver_v3(stats, 2)

    @jax.jit
    def run(x):
        exact = testing.flow_map(target, process, x, grid[0], grid[-1])
        return [jd.sample(None, target.denoiser(process), process, s, grid, x=x) - exact for s in each]

    plain, first, second = (np.abs(np.asarray(gap)).max() for gap in run(x))
    assert first < 0.02 * plain and second < 0.02 * plain, (first, second, plain)


def test_statistics_are_moments_along_the_ode(x64):
    """D = sin(log_snr / 2 + 1) tanh(x / a): its derivatives are known, and the moments of the same draws."""
    process, n = processes.VP(), 64

    def denoise(x, t):
        a, _, _ = process.coefficients(t)
        return jnp.sin(process.log_snr(t) / 2 + 1) * jnp.tanh(x / a)

    keys = jax.random.split(jax.random.key(0), n)
    x0 = np.random.default_rng(0).normal(size=(n, 2))
    stats = solvers.fit_model_statistics(keys, denoise, process, x0, 20, -1.5, 2.0, trace="exact")
    noise = jax.jit(lambda keys: jd.core.normal_like(jd.core.fold_in(keys, 0), x0))(keys)
    u = x0 + np.exp(-stats.log_snr)[:, None, None] * np.asarray(noise)
    half = 0.5 * stats.log_snr[:, None, None] + 1
    clean, slope = np.sin(half) * np.tanh(u), np.sin(half) / np.cosh(u) ** 2
    l = 1 - slope.mean(1)  # noqa: E741
    np.testing.assert_allclose(stats.l, l, rtol=1e-6)
    du, rest = clean - u, (1 - l)[:, None]
    f = rest * u - clean
    df = rest * du - np.gradient(l, stats.log_snr, axis=0)[:, None] * u
    df = df - slope * du - 0.5 * np.cos(half) * np.tanh(u)
    s = ((f * df).mean(1) - f.mean(1) * df.mean(1)) / f.var(1)
    np.testing.assert_allclose(stats.s, s, rtol=1e-6)
    np.testing.assert_allclose(stats.b, df.mean(1) - s * f.mean(1), rtol=1e-6, atol=1e-9)


def test_pseudo_orders_are_powers_of_divided_differences():
    """Predictor, and a corrector with one more value: that of the step's end, next to its start."""
    process = processes.VP()
    log_snr = np.array([-2.0, -1.2, -0.9, 0.3, 0.8, 1.9])
    grid = process.time_of_log_snr(log_snr)
    plain = constant(process, 1.0, 0.0, 0.0)  # what is remembered is -D
    rows = solvers.dpm_solver_v3(plain, 3, None, pseudo=True, lower_order_final=False).plan(process, grid)
    same = solvers.unified(3, rules="differences", correctors=False).plan(process, grid)
    np.testing.assert_allclose(rows.next[:, 2:5, 0], -same.next[:, [2, 3, 5]], atol=1e-12)
    rows = solvers.dpm_solver_v3(plain, 2, lower_order_final=False).plan(process, grid)
    a, _, c = process.coefficients(grid)
    for i in (2, 3, 4):  # the step from i - 1 to i
        h, back = log_snr[i] - log_snr[i - 1], log_snr[i - 2] - log_snr[i - 1]
        weights = [quad(lambda u: np.exp(u - h) * u**p, 0, h)[0] for p in range(3)]  # noqa: B023
        first = np.array([1, -1, 0]) / h  # on the end, the start and before: D[start, end]
        second = (first - np.array([1, 0, -1]) / (h - back)) / -back  # D[start, end, before]
        expected = weights[0] * np.array([0, 1, 0]) + weights[1] * first + weights[2] * second
        taken = c[i + 1] / c[i] * a[i]
        np.testing.assert_allclose(rows.base[i, 2:5, 0], -taken * expected, rtol=1e-9)


@pytest.mark.slow
def test_fitted_statistics_help_at_few_evaluations(tmp_path, mixed):
    process = processes.VP()
    denoise = TARGET.denoiser(process)
    stats = solvers.fit_model_statistics(
        jax.random.key(0), denoise, process, mixed(*LAW, 2048).astype(np.float32), trace="exact"
    )
    stats.save(tmp_path / "stats.npz")
    kept = solvers.ModelStatistics.load(tmp_path / "stats.npz")
    jax.tree.map(np.testing.assert_array_equal, kept, stats)
    x = np.random.default_rng(2).normal(size=(2000, 2)).astype(np.float32)
    walk = jax.jit(lambda rows: jd.sample(None, denoise, process, rows, x=x))

    def end(solver, steps=6):
        return np.asarray(walk(solver.plan(process, jd.grids.log_snr(process, steps))))

    exact = end(solvers.dpmpp_multistep(3), 800)

    def error(solver):
        return np.median(np.linalg.norm(end(solver) - exact, axis=1))

    best = min(error(s) for s in (solvers.dpmpp_multistep(2), solvers.unipc(2), solvers.unipc(3)))
    found = error(solvers.dpm_solver_v3(kept, 2))
    assert found < best, (found, best)


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_every_step_count_ends_at_the_estimate(process, longer):
    denoise, stats = TARGET.denoiser(process), constant(process, 0.5, -0.2, 0.1)
    x = process.coefficients(process.t_max)[2] * np.random.default_rng(0).normal(size=(4, 2))
    x = x.astype(np.float32)

    @jax.jit
    def run(rows, steps, last):
        path = jd.sample(None, denoise, process, rows, x=x, save="all")
        return path, path[steps], denoise(path[steps - 1], last)

    for steps in (1, 2, 3, 5):
        grid = jd.grids.log_snr(process, steps)
        for corrector in ("pseudo", "full", None):
            rows = solvers.dpm_solver_v3(stats, 3, corrector).plan(process, grid)
            path, end, clean = run(longer(rows, 5), steps, grid[-2])
            assert np.isfinite(path).all() and rows.nfe == steps
            np.testing.assert_allclose(end, clean, rtol=1e-4, atol=1e-5)


def test_statistics_of_something_else_are_refused():
    process = processes.VP()
    stats = constant(process, 1.0, 0.0, 0.0, low=-3.0)
    solver = solvers.dpm_solver_v3(stats)
    with pytest.raises(ValueError, match=r"fitted for, VP \(.*got EDM"):
        solver.plan(processes.EDM(), np.array([1.0, 0.1]))
    with pytest.raises(ValueError, match="fitted for"):
        solver.plan(processes.VP(beta_max=10.0), np.array([0.5, 0.1]))
    with pytest.raises(ValueError, match="log-SNR -3.000 to 7.000"):
        solver.plan(process, np.array([1.0, 0.1]))
    with pytest.raises(ValueError, match=r"shape \(2,\), got \(3,\)"):
        jd.sample(None, lambda x, t: x, process, solver, np.array([0.5, 0.1]), x=jnp.ones((4, 3)))
    with pytest.raises(ValueError, match="known"):
        jax.jit(lambda g: solver.plan(process, g).next)(jnp.array([0.5, 0.1]))
    with pytest.raises(ValueError, match="order 1, 2 or 3"):
        solvers.dpm_solver_v3(stats, 4)
