"""Adaptive solvers: tolerances are met, per sample, and evaluations are counted as they happen."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing
from jaxdiff.solvers.adaptive import _both_orders

pytestmark = pytest.mark.skipif(importlib.util.find_spec("diffrax") is None, reason="without diffrax")
LAW = [[1.0, 0.3], [-0.8, -0.5]], [[0.3, 0.1], [0.2, 0.4]], [0.7, 0.3]
TARGET = testing.gaussian_mixture(*LAW)
PROCESSES = [processes.VP(), processes.EDM(), processes.RectifiedFlow()]
KEYS = jax.random.split(jax.random.key(0), 16)


def keys():
    return jax.random.clone(KEYS)


def between(process, first=-4.382, last=4.0):
    return np.minimum(process.time_of_log_snr(np.array([first, last])), process.t_max)


ODE = {
    "tsit5": lambda tol: solvers.adaptive(tol, tol),
    "dopri5, time": lambda tol: solvers.adaptive(tol, tol, "dopri5", coordinate="time"),
    "dpm23": lambda tol: solvers.dpm_adaptive(3, 10 * tol, 10 * tol, "data"),
    "dpm12": lambda tol: solvers.dpm_adaptive(2, 10 * tol, 10 * tol),
}


@pytest.mark.slow
@pytest.mark.parametrize("name, which", [
    ("tsit5", PROCESSES), ("dopri5, time", PROCESSES), ("dpm23", PROCESSES[1:]), ("dpm12", PROCESSES[:1]),
], ids=ODE)  # fmt: skip
def test_error_falls_with_the_tolerance_to_the_exact_flow(x64, name, which, mixed):
    for process in which:
        grid = between(process)
        a, _, c = process.coefficients(grid[0])
        x = a * mixed(*LAW, 8) + c * np.random.default_rng(1).normal(size=(8, 2))
        exact, denoise = testing.flow_map(TARGET, process, x, *grid), TARGET.denoiser(process)
        run = jax.jit(lambda plan, d=denoise, p=process, x=x: jd.sample(None, d, p, plan, x=x, save="state"))
        errors, counts = [], []
        for tolerance in (1e-3, 1e-5):
            out, state = jax.tree.map(np.asarray, run(ODE[name](tolerance).plan(process, grid)))
            errors.append(np.median(np.linalg.norm(out - exact, axis=1)))
            counts.append(state.evaluations.mean())
        assert errors[1] < 0.15 * errors[0] and errors[1] < 2e-3, (process, errors)
        assert counts[1] > counts[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [lambda: solvers.adaptive(1e-4, 1e-4), lambda: solvers.dpm_adaptive(3)], ids=["adaptive", "dpm 3"]
)
def test_evaluations_are_counted_and_belong_to_the_sample(make):
    """The network is called as often as the slowest sample needs, with every sample's own time; a sample
    alone takes the same steps, and conditions keep their place in the batch."""
    process, solver, calls = processes.RectifiedFlow(), make(), []
    condition = jnp.linspace(0.9, 1.1, 16)

    def run(keys, condition):
        def denoise(x, t):
            jax.debug.callback(lambda: calls.append(1))
            return condition[:, None] * TARGET.denoiser(process)(x, t)

        grid = jd.grids.uniform(process, 1)
        return jax.jit(lambda k: jd.sample(k, denoise, process, solver, grid, shape=(2,), save="state"))(keys)

    x, state = run(keys(), condition)
    jax.effects_barrier()
    assert len(calls) == state.evaluations.max() > state.evaluations.min()
    alone, own = run(keys()[3:5], condition[3:5])
    np.testing.assert_allclose(alone, x[3:5], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(own.evaluations, state.evaluations[3:5])


@pytest.mark.parametrize("prediction", ["noise", "data"])
def test_embedded_steps_are_those_of_dpm_solver(prediction, x64, walk):
    """One step from log-SNR -1 to 0.5: of order 1 and 2, and of order 2 with its node at 1/3, and 3."""
    process, h = processes.VP(), 1.5
    x = np.random.default_rng(0).normal(size=(2, 4))
    denoise = lambda x, t: 0.6 * np.tanh(x) + 0.1 * np.reshape(t, (-1, 1))  # noqa: E731
    log_snr, none = np.full(2, -1.0), np.zeros((3, 2, 4))
    grid = process.time_of_log_snr(np.array([-1.0, 0.5]))
    make = solvers.dpm_singlestep if prediction == "noise" else solvers.dpmpp_singlestep
    low, third = (
        _both_orders(denoise, process, x, log_snr, np.full(2, h), order, prediction) for order in (2, 3)
    )
    for found, order in ((low[0], 1), (low[1], 2), (third[1], 3)):
        expected = walk(make(order).plan(process, grid), x, none, denoise)
        np.testing.assert_allclose(found, expected, rtol=1e-8)
    t = process.time_of_log_snr(-1.0 + h * np.array([0, 1 / 3, 1]))
    a, _, c = process.coefficients(t)
    own, other, sign = (c, a, 1) if prediction == "noise" else (a, c, -1)

    def estimate(x, i):
        clean = denoise(x, t[i])
        return (x - a[i] * clean) / c[i] if prediction == "noise" else clean

    first = estimate(x, 0)
    node = estimate(other[1] / other[0] * x - own[1] * np.expm1(sign * h / 3) * first, 1)
    expected = other[2] / other[0] * x - own[2] * np.expm1(sign * h) * (first + 1.5 * (node - first))
    np.testing.assert_allclose(third[0], expected, rtol=1e-8)


@pytest.mark.slow
def test_dpm_solver_12_is_its_algorithm(x64):
    """Lu et al. (2022), appendix C, one sample at a time; some of its steps are not taken."""
    process, rtol, atol = processes.VP(), 0.01, 0.002
    grid = between(process, -3.0, 4.0)
    x, denoise = 1.2 * np.random.default_rng(0).normal(size=(3, 2)), TARGET.denoiser(process)
    solver = solvers.dpm_adaptive(2, rtol, atol, first=0.8)
    run = jax.jit(lambda x: jd.sample(None, denoise, process, solver, grid, x=x, save="state"))
    found, state = jax.tree.map(np.asarray, run(x))
    at, end, refused = jax.jit(denoise), process.log_snr(grid[1]), 0
    for i in range(3):
        point = previous = np.asarray(x[i])
        log_snr, h, count = process.log_snr(grid[0]), 0.8, 0
        while log_snr < end - 1e-12:
            h = min(h, end - log_snr)
            t = process.time_of_log_snr(log_snr + h * np.array([0, 0.5, 1]))
            a, _, c = process.coefficients(t)
            e_0 = (point - a[0] * np.asarray(at(point[None], t[0]))[0]) / c[0]
            middle = a[1] / a[0] * point - c[1] * np.expm1(h / 2) * e_0
            e_1 = (middle - a[1] * np.asarray(at(middle[None], t[1]))[0]) / c[1]
            low, high = (a[2] / a[0] * point - c[2] * np.expm1(h) * e for e in (e_0, e_1))
            delta = np.maximum(atol, rtol * np.maximum(np.abs(low), np.abs(previous)))
            error, count = np.sqrt(np.mean(((high - low) / delta) ** 2)), count + 2
            if error <= 1:
                point, previous, log_snr = high, low, log_snr + h
            refused += error > 1
            h = 0.9 * h * error ** (-1 / 2)
        np.testing.assert_allclose(found[i], point, rtol=1e-7, atol=1e-9)
        assert state.evaluations[i] == count
    assert refused > 0


@pytest.mark.slow
def test_reverse_sde_has_the_law_of_the_data():
    """And on the way there, where most of the variance is noise. Other processes scale x alone: the ODEs."""
    process = PROCESSES[2]
    n, mean, variance = 4000, np.array([0.5, -0.2]), np.array([0.25, 0.04])
    solver, target = solvers.adaptive(3e-2, 3e-2, tau=1.0), testing.gaussian(mean, variance)
    grid = np.array([process.t_max, process.time_of_log_snr(np.float64(0.5)), 0.0])

    def run(keys):
        return jd.sample(keys, target.denoiser(process), process, solver, grid, shape=(2,), save="all")

    run = jax.jit(run, compiler_options={"xla_backend_optimization_level": 1})  # here the loop costs
    path = run(jax.random.split(jax.random.key(1), n))
    for x, t in zip(path[1:], grid[1:], strict=True):
        a, _, c = process.coefficients(t)
        spread = a**2 * variance + c**2
        np.testing.assert_allclose(np.mean(x, 0), a * mean, atol=4 * np.sqrt(spread.max() / n))
        np.testing.assert_allclose(np.var(x, 0), spread, rtol=4 * np.sqrt(2 / n) + 0.01)


@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda tol: solvers.adaptive(tol, tol), lambda tol: solvers.dpm_adaptive(3, 10 * tol, 10 * tol),
], ids=["adaptive", "dpm_adaptive"])  # fmt: skip
def test_way_back_vmap_devices_and_save(make):
    process, solver = processes.VP(), make(1e-5)
    denoise, grid = TARGET.denoiser(process), between(process, -4.0, 3.0)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spread = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    x = np.random.default_rng(2).normal(size=(16, 2)).astype(np.float32)

    @jax.jit
    def run(x, grid, scale=1.0):
        return jd.sample(None, lambda x, t: scale * denoise(x, t), process, solver, grid, x=x)

    there = run(x, grid)
    np.testing.assert_allclose(run(jax.device_put(x, spread), grid), there, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(run(there, grid[::-1]), x, atol=3e-3)
    times = np.array([grid[0], 0.3, grid[1]])
    path = np.asarray(jax.jit(lambda x: jd.sample(None, denoise, process, solver, times, x=x, save="all"))(x))
    np.testing.assert_allclose(path[-1], there, atol=3e-3)
    np.testing.assert_allclose(path[1], run(x, np.array([grid[0], 0.3])), rtol=1e-4, atol=1e-5)
    if solver.method == "tsit5":  # the loop is diffrax's
        both = jax.vmap(run, (None, None, 0))(x, grid, np.float32([1.0, 0.9]))
        np.testing.assert_allclose(np.asarray(both)[1], run(x, grid, 0.9), rtol=1e-4, atol=1e-5)


def test_tolerances_may_be_traced():
    process = processes.VP()
    grid = jd.grids.uniform(process, 2)
    legs = jax.jit(lambda rtol: solvers.adaptive(rtol).plan(process, grid))(1e-2)
    np.testing.assert_allclose(legs.settings.rtol, [1e-2] * 2, rtol=1e-6)


@pytest.mark.slow
def test_unfinished_samples_are_nan_and_short_legs_are_the_estimate():
    process = processes.EDM()
    denoise, x = TARGET.denoiser(process), np.full((3, 2), 80, np.float32)
    expected = jax.jit(denoise)(x / 80, 0.001)
    for solver in (solvers.adaptive(1e-6, 1e-6, max_steps=5), solvers.dpm_adaptive(max_steps=3)):
        run = jax.jit(lambda x, grid, s=solver: jd.sample(None, denoise, process, s, grid, x=x))
        assert np.isnan(run(x, jd.grids.uniform(process, 1))).all()
        short = run(x / 80, np.array([0.001, 0.0]))
        np.testing.assert_allclose(short, expected, rtol=1e-5)


@pytest.mark.parametrize(
    "build, message",
    [
        (lambda: solvers.adaptive(rtol=0.0), "rtol"),
        (lambda: solvers.adaptive(method="shark"), "method"),
        (lambda: solvers.adaptive(tau=1.0, coordinate="time"), "coordinate"),
        (lambda: solvers.dpm_adaptive(4), "order 2 or 3, got 4"),
        (lambda: solvers.adaptive(tau=1.0).plan(processes.VP(), np.array([0.1, 0.5])), "decreasing grid"),
        (
            lambda: solvers.adaptive().plan(processes.RectifiedFlow(), np.array([0.1, 1.0])),
            "ends before a = 0",
        ),
        (
            lambda: solvers.adaptive(tau=1.0).plan(processes.Symmetric(processes.VP()), np.array([0.5, 0.1])),
            "tau = 0 for Symmetric",
        ),
    ],
)
def test_wrong_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()
