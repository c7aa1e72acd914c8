"""Reversible Heun: its formulas, its order, and that every step is undone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

LAW = [[1.0, 0.3], [-0.8, -0.5]], [[0.3, 0.1], [0.2, 0.4]], [0.7, 0.3]
TARGET = testing.gaussian_mixture(*LAW)
PROCESSES = [processes.VP(), processes.EDM(), processes.RectifiedFlow()]
NAMES = [type(p).__name__ for p in PROCESSES]


def between(process, steps):
    grid = process.time_of_log_snr(np.linspace(-4.382, 4.0, steps + 1))
    return np.minimum(grid, process.t_max)


@functools.cache
def walk(process):
    denoise = TARGET.denoiser(process)
    return jax.jit(lambda rows, x: jd.sample(None, denoise, process, rows, x=x))


@pytest.mark.slow
@pytest.mark.parametrize("coordinate", ["log_snr", "sigma", "time"])
def test_second_order_and_undone_to_rounding(x64, coordinate, mixed, longer):
    clean, noise = mixed(*LAW, 16), np.random.default_rng(1).normal(size=(16, 2))
    for process in PROCESSES:
        start, end = between(process, 1)
        a, _, c = process.coefficients(start)
        x = a * clean + c * noise
        exact, denoise = testing.flow_map(TARGET, process, x, start, end), TARGET.denoiser(process)
        solver = solvers.reversible_heun(coordinate)

        def run(n, process=process, solver=solver, x=x):
            return walk(process)(longer(solver.plan(process, between(process, n)), 385), x)

        found = testing.measure_order(run, exact, (96, 192, 384))
        assert abs(found.slope - 2) < 0.1, (process, found)

        @jax.jit
        def undone(x, process=process, denoise=denoise, solver=solver):
            rows = solver.plan(process, between(process, 40))
            _, state = jd.sample(None, denoise, process, rows, x=x, save="state")
            return solvers.rewind(denoise, rows, state)

        back = undone(x)
        np.testing.assert_allclose(back.x, x, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(back.base, x, rtol=1e-10, atol=1e-10)


def test_formulas_by_hand(x64):
    process = processes.RectifiedFlow()
    grid, denoise = np.array([0.8, 0.5, 0.3, 0.1]), lambda x, t, xp=jnp: 0.6 * xp.tanh(x) + 0.1 * t
    f = lambda x, t: (x - denoise(x, t, np)) / t  # noqa: E731  dx / dt of rectified flow
    x = np.array([[0.4, -1.3]])
    z = zhat = x
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        ahead = 2 * z - zhat + (s - t) * f(zhat, t)
        z, zhat = z + 0.5 * (s - t) * (f(zhat, t) + f(ahead, s)), ahead
    rows = solvers.reversible_heun("time").plan(process, grid)
    assert rows.nfe == 4 and rows.steps == 3
    np.testing.assert_allclose(jd.sample(None, denoise, process, rows, x=x), z, rtol=1e-12)
    to_data = jd.sample(None, denoise, process, solvers.reversible_heun("time"), np.append(grid, 0.0), x=x)
    np.testing.assert_allclose(to_data, denoise(z, 0.1, np), rtol=1e-12)


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_ends_are_finite_and_lead_to_the_estimate(process, longer):
    denoise = TARGET.denoiser(process)
    x = process.coefficients(process.t_max)[2] * np.random.default_rng(0).normal(size=(4, 2))
    x = x.astype(np.float32)
    walk = jax.jit(lambda rows: jd.sample(None, denoise, process, rows, x=x, save="all"))
    for coordinate in ("log_snr", "sigma", "time"):
        for steps in (1, 2, 5):
            rows = solvers.reversible_heun(coordinate).plan(process, jd.grids.log_snr(process, steps))
            assert rows.steps == steps and rows.nfe <= 6
            path = np.asarray(walk(longer(rows, 6)))
            assert np.isfinite(path).all() and (np.abs(path[: steps + 1]).max((1, 2)) > 0).all()
    both, fine = (solvers.reversible_heun(), solvers.dpmpp_multistep(3)), jd.grids.log_snr(process, 1000)
    run = jax.jit(lambda: [jd.sample(None, denoise, process, each, fine, x=x) for each in both])
    np.testing.assert_allclose(*run(), atol=3e-3)


def test_what_cannot_be_undone_is_refused():
    process = processes.RectifiedFlow()
    denoise, x = TARGET.denoiser(process), jnp.ones((2, 2))
    with pytest.raises(ValueError, match="reversible_heun"):
        jd.sample(None, denoise, process, solvers.heun(), between(process, 4), x=x, gradient="reversible")
    rows = solvers.reversible_heun().plan(process, jd.grids.log_snr(process, 4))
    _, state = jd.sample(None, denoise, process, rows, x=x, save="state")
    with pytest.raises(ValueError, match="row 0 of 5 forgets"):
        solvers.rewind(denoise, rows, state)
    with pytest.raises(ValueError, match="reversible solver"):
        solvers.rewind(denoise, solvers.ddim().plan(process, between(process, 4)), state)
