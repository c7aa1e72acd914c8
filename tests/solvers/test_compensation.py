"""Dynamic compensation of UniPC."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

VP = processes.VP()
MEANS, SPREADS = np.array([[1.0, 0.3], [-0.8, -0.5]]), np.array([[0.3, 0.1], [0.2, 0.4]])
TARGET = testing.gaussian_mixture(MEANS, SPREADS, [0.7, 0.3])


def test_ratios_of_one_are_unipc(x64):
    x, kinds = np.random.default_rng(0).normal(size=(4, 2)), ("data", "noise")
    plain = [solvers.unipc(3, prediction=kind) for kind in kinds]
    own = [solvers.dc_solver(np.ones(7), prediction=kind) for kind in kinds]
    for process in (VP, processes.RectifiedFlow()):
        denoise, grid = TARGET.denoiser(process), jd.grids.log_snr(process, 7)
        run = lambda s, p=process, d=denoise, g=grid: jd.sample(None, d, p, s, g, x=x)  # noqa: E731
        found = jax.jit(lambda run=run: [[run(s) for s in each] for each in (own, plain)])()
        np.testing.assert_allclose(*found, rtol=1e-12, atol=1e-12)


def test_compensation_by_hand(x64):
    """Order 1 and depth 1 in the loop's own words: predict, evaluate, correct, compensate."""
    process, ratios = VP, np.array([9.0, 1.3, 0.7, 1.2])
    grid = np.array([0.9, 0.7, 0.5, 0.3, 0.1])
    denoise, start = jax.jit(TARGET.denoiser(process)), np.random.default_rng(0).normal(size=(4, 2))
    (a, _, c), lam = process.coefficients(grid), process.log_snr(grid)
    x, base, past = start, start, []
    for i in range(4):
        raw = np.asarray(denoise(x, grid[i]))
        if i > 0:
            h = lam[i] - lam[i - 1]
            whole = -np.expm1(-h)
            new = 1 - whole / h  # integral of e^-(h-u) u / h
            base = c[i] / c[i - 1] * base + a[i] * (new * raw + (whole - new) * past[-1])
        else:
            base = x
        kept = raw
        if i >= 1:
            at = ratios[i] * grid[i] + (1 - ratios[i]) * grid[i - 1]
            share = (at - grid[i - 1]) / (grid[i] - grid[i - 1])
            kept = share * raw + (1 - share) * past[-1]
        past.append(kept)
        x = c[i + 1] / c[i] * base - a[i + 1] * np.expm1(lam[i] - lam[i + 1]) * kept
    out = jd.sample(None, denoise, process, solvers.dc_solver(ratios, order=1, depth=1), grid, x=start)
    np.testing.assert_allclose(out, x, rtol=1e-10)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_compensated_estimates_are_read_from_the_polynomial_in_time(depth):
    """Powers of the time up to the depth, as estimates, become those of `rho t_i + (1 - rho) t_(i-1)`."""
    grid, ratios = np.array([0.95, 0.8, 0.62, 0.5, 0.3, 0.1]), np.array([9.0, 1.3, 0.7, 1.2, 0.4])
    rows = solvers.dc_solver(ratios, order=3, depth=depth).plan(VP, grid)
    for i in range(5):
        past = grid[np.maximum(i - np.arange(rows.memory), 0)]
        at = ratios[i] * grid[i] + (1 - ratios[i]) * grid[i - 1] if i >= depth else grid[i]
        for power in range(depth + 1):
            np.testing.assert_allclose(rows.push[i] @ past**power, at**power, rtol=1e-12)


def guided(scale):
    cond = testing.gaussian(MEANS[1], SPREADS[1]).denoiser(VP)
    return jd.guidance.classifier_free(cond, TARGET.denoiser(VP), scale=scale)


def paths(scale, steps, x):
    denoise, grid = guided(scale), jd.grids.uniform(VP, steps, end=1e-3)

    def run(solver):
        return jd.sample(None, denoise, VP, solver, grid, x=x, save="all")

    fine = solvers.dpmpp_multistep(3).plan(VP, solvers.refined(grid, 40))
    return run, jax.jit(lambda x: jd.sample(None, denoise, VP, fine, x=x, save=40))(x)


@pytest.mark.slow
def test_fitted_on_ten_paths_it_is_below_unipc_on_fresh_ones():
    few, fresh = np.split(np.random.default_rng(0).normal(size=(510, 2)).astype(np.float32), [10])
    run, exact = paths(7.5, 6, few)
    ratios = solvers.fit_compensation(lambda r: run(solvers.dc_solver(r)), exact, 6)
    run, exact = paths(7.5, 6, fresh)
    each = solvers.dc_solver(ratios), solvers.unipc(3)
    errors = jax.jit(lambda: [jnp.mean((run(solver)[-1] - exact[-1]) ** 2) for solver in each])()
    assert float(errors[0]) < 0.8 * float(errors[1]), ratios


def test_regression_reaches_unseen_settings():
    true = lambda n, s: 1 + 0.3 * np.arange(n) / (n - 1) - 2.0 / n * s  # noqa: E731
    fits = [(n, s, true(n, s)) for n in (6, 8, 12) for s in (1.0, 4.0, 7.5)]
    model = solvers.CompensationRegression.fit(fits, degrees=(2, 1, 1))
    np.testing.assert_allclose(model.ratios(10, 5.0), true(10, 5.0), atol=1e-12)
    with pytest.raises(ValueError, match="at least 16 ratios"):
        solvers.CompensationRegression.fit(fits[:1])


@pytest.mark.slow
def test_gradients_reach_ratios_and_wrong_settings_are_refused():
    run, exact = paths(4.0, 6, np.ones((3, 2), np.float32))
    slope = jax.grad(lambda r: jnp.mean((run(solvers.dc_solver(r))[-1] - exact[-1]) ** 2))
    slope = np.asarray(jax.jit(slope)(np.ones(6, np.float32)))
    assert np.isfinite(slope).all() and (slope[:2] == 0).all() and (slope[2:] != 0).all()
    with pytest.raises(ValueError, match="depth 3, order 2"):
        solvers.dc_solver(np.ones(6), order=2, depth=3)
    with pytest.raises(ValueError, match="each of 6 steps, got 5"):
        run(solvers.dc_solver(np.ones(5)))
    with pytest.raises(ValueError, match=r"shape \(steps,\)"):
        solvers.dc_solver(1.0)
