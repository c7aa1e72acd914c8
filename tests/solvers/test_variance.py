"""Optimal variances of the reverse steps: the statistic, and the steps that use it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

S = jd.solvers
PROCESSES = [jd.processes.VP(), jd.processes.EDM(), jd.processes.RectifiedFlow(), jd.processes.SubVP()]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


@each
def test_fitted_error_is_that_of_the_score_s_second_moment(process):
    """`(c / a)^2 (1 - c^2 Gamma)`, Gamma = E|score|^2 / d; on Gaussian data both are known."""
    mean, covariance = np.array([0.5, -1.0]), np.array([[0.5, 0.3], [0.3, 0.4]])
    target = jd.testing.gaussian(mean, covariance)
    x0 = np.random.default_rng(0).multivariate_normal(mean, covariance, 20_000).astype(np.float32)
    times = process.time_of_log_snr(np.array([2.0, -1.0, 0.5]))
    stat = S.fit_estimate_error(jax.random.key(1), target.denoiser(process), process, x0, [*times, 0.0])
    np.testing.assert_allclose(stat.t, np.sort(times))
    a, _, c = process.coefficients(stat.t)
    for a_t, c_t, value in zip(a, c, stat.value, strict=True):
        inverse = np.linalg.inv(a_t**2 * covariance + c_t**2 * np.eye(2))
        gamma = np.trace(inverse) / 2  # E|score|^2 of a Gaussian is the trace of its precision
        np.testing.assert_allclose(value, (c_t / a_t) ** 2 * (1 - c_t**2 * gamma), rtol=0.05)


def exact(process, variance, grid):
    """The statistic of 1-D data N(0, variance)."""
    t = np.sort(grid[grid > 0])
    a, _, c = process.coefficients(t)
    return S.EstimateError(t=t, value=variance * c**2 / (a**2 * variance + c**2), process=process)


@each
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_a_gaussian_is_sampled_exactly_in_any_number_of_steps(process, eta):
    """Analytic-DPM and Analytic-DDIM: the reverse kernel of Gaussian data has that variance."""
    variance = 0.3
    for steps in (1, 2, 5):
        grid = jd.grids.karras(process, steps, end=process.t_min)
        solver = S.ddim(eta, variance=exact(process, variance, grid))
        law = None
        for t, next_x in zip(grid[:-1], solver.plan(process, grid).next, strict=True):
            a, _, c = process.coefficients(t)
            law = a**2 * variance + c**2 if law is None else law
            gain = a * variance / (a**2 * variance + c**2)
            law = (next_x[0] + next_x[2] * gain) ** 2 * law + next_x[-1] ** 2
        a, _, c = process.coefficients(grid[-1])
        np.testing.assert_allclose(law, a**2 * variance + c**2, rtol=1e-9)


@each
def test_large_is_the_optimum_of_unit_data(process):
    grid = jd.grids.karras(process, 6)
    fitted = S.ancestral(exact(process, 1.0, grid)).plan(process, grid).next
    np.testing.assert_allclose(S.ancestral("large").plan(process, grid).next, fitted, rtol=1e-9, atol=1e-12)


def test_large_is_beta_of_ho_et_al():
    process = jd.processes.VP()
    grid = jd.grids.uniform(process, 6, end=1e-3)
    a = process.coefficients(grid)[0]
    rows = S.ancestral("large").plan(process, grid).next
    np.testing.assert_allclose(rows[:, -1] ** 2, 1 - (a[:-1] / a[1:]) ** 2, rtol=1e-9)
    small = S.ancestral().plan(process, grid).next
    np.testing.assert_array_equal(rows[:, :3], small[:, :3])
    assert (rows[:, -1] > small[:, -1]).all()


def test_between_fitted_times_the_error_is_interpolated():
    process, variance = jd.processes.VP(), 0.3
    stat = exact(process, variance, process.time_of_log_snr(np.linspace(-4, 4, 33)))
    t = process.time_of_log_snr(np.linspace(-3.9, 3.9, 50))
    a, _, c = process.coefficients(t)
    truth = variance * c**2 / (a**2 * variance + c**2)
    np.testing.assert_allclose(stat.at(process, t), truth, rtol=0.01)
    traced = jax.jit(lambda stat, t: stat.at(process, t))(stat, jnp.asarray(t))
    np.testing.assert_allclose(traced, truth, rtol=0.01)


def test_wrong_statistics_are_refused():
    process = jd.processes.VP()
    grid = jd.grids.log_snr(process, 6)
    stat = exact(process, 0.3, grid[1:])
    with pytest.raises(ValueError, match=r"times within the fitted \[.*\], got 1"):
        S.ancestral(stat).plan(process, grid)
    whole = exact(process, 0.3, grid)
    for other in (jd.processes.VP(beta_max=10.0), jd.processes.SubVP()):
        with pytest.raises(ValueError, match="was fitted for VP"):
            S.ancestral(whole).plan(other, grid)
    with pytest.raises(ValueError, match="unknown variance 'huge'"):
        S.ancestral("huge")
    with pytest.raises(ValueError, match="fit_estimate_error, got 0.5"):
        S.ddim(0.5, variance=0.5)
    with pytest.raises(ValueError, match="times above 0"):
        S.fit_estimate_error(jax.random.key(0), None, process, np.ones((2, 3)), [0.0])


@pytest.mark.parametrize("bridge", [
    jd.processes.BrownianBridge(), jd.processes.DiffusionBridge(PROCESSES[0])
], ids=["brownian", "diffusion"])  # fmt: skip
def test_fitted_error_of_a_bridge_is_interpolated_up_to_its_pinned_end(bridge):
    fitted = S.EstimateError(np.array([0.2, 0.6, 1.0]), np.array([0.1, 0.2, 0.4]), bridge)
    between = fitted.at(bridge, np.array([0.6, 0.7, 0.9, 0.99, 1.0]))
    np.testing.assert_allclose(between[[0, -1]], [0.2, 0.4])
    assert np.all(np.diff(between) > 0)
    rows = S.ancestral(variance=fitted).plan(bridge, np.array([1.0, 0.9, 0.5, 0.2, 0.0]))
    assert np.all(rows.next[:-1, -1] > 0.1)
