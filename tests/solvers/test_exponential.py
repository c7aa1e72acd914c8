"""Exponential methods: exact weights, and the limits in which they are one method."""

import jax
import numpy as np
import pytest
from scipy.integrate import quad

from jaxdiff import grids, processes, solvers

PROCESSES = [processes.VP(), processes.EDM(), processes.RectifiedFlow(), processes.SubVP()]


def uneven_grid(process, steps=6):
    log_snr = np.sort(np.random.default_rng(0).uniform(-3.0, 3.0, steps + 1))
    return process.time_of_log_snr(log_snr)


def quantities(process, grid):
    """`a_s, a_t, c_s, c_t, h` of every step."""
    a, _, c = process.coefficients(grid)
    return a[:-1], a[1:], c[:-1], c[1:], np.diff(process.log_snr(grid))


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0])
def test_weights_are_the_integrals_of_lagrange_polynomials(order, tau):
    log_snr = np.array([-3.0, -2.2, -1.9, -0.5, 0.1, 2.6])
    process = processes.VP()
    grid = process.time_of_log_snr(log_snr)
    plan = solvers.dpmpp_multistep(order=order, tau=tau, rule="lagrange").plan(process, grid)
    weights = plan.next[:, 2:-1] / process.coefficients(grid)[0][1:, None]
    h, k = np.diff(log_snr), 1 + tau**2
    for i in range(len(h)):
        used = log_snr[i - np.arange(min(order, i + 1))] - log_snr[i]
        for j in range(order):
            expected = 0.0
            if j < len(used):
                others = np.delete(used, j)

                def integrand(u, j=j, others=others, i=i, used=used):
                    return k * np.exp(-k * (h[i] - u)) * np.prod((u - others) / (used[j] - others))

                expected = quad(integrand, 0, h[i], epsabs=1e-14)[0]
            assert abs(weights[i, j] - expected) < 1e-11


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_third_order_reproduces_a_quadratic_estimate(process):
    """With D = 1 + 2 u + 3 u^2 along the step, a third-order method is exact (the missing factor 2
    of the published one is not)."""
    grid = uneven_grid(process)
    a_s, a_t, c_s, c_t, h = quantities(process, grid)
    plan = solvers.dpmpp_multistep(order=3).plan(process, grid)
    log_snr = process.log_snr(grid)
    for i in range(2, len(h)):
        past = log_snr[i] - log_snr[[i, i - 1, i - 2]]
        estimates = 1 - 2 * past + 3 * past**2
        expected = quad(lambda u: np.exp(u - h[i]) * (1 + 2 * u + 3 * u**2), 0, h[i])[0]  # noqa: B023
        np.testing.assert_allclose(plan.next[i, 2:5] @ estimates, a_t[i] * expected, rtol=1e-10)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_first_order_methods_are_one_method(process):
    """DDIM = DPM-Solver++ 1; ancestral = DDIM(1) = SDE-DPM-Solver++ 1 = the posterior."""
    grid = grids.log_snr(process, 7)
    first = solvers.dpmpp_multistep(order=1).plan(process, grid).next
    np.testing.assert_allclose(solvers.ddim().plan(process, grid).next, first, atol=1e-12)
    ancestral = solvers.ancestral().plan(process, grid).next
    assert np.array_equal(solvers.ddim(eta=1.0).plan(process, grid).next, ancestral)
    sde = solvers.dpmpp_multistep(order=1, tau=1.0).plan(process, grid).next
    np.testing.assert_allclose(sde, ancestral, atol=1e-10)
    with jax.enable_x64(True):
        one, zero = np.ones(7), np.zeros(7)
        mean_x, std = process.posterior(one, zero, grid[:-1], grid[1:])
        mean_d, _ = process.posterior(zero, one, grid[:-1], grid[1:])
    np.testing.assert_allclose(ancestral[:, 0], mean_x, atol=1e-10)
    np.testing.assert_allclose(ancestral[:, 2], mean_d, atol=1e-10)
    np.testing.assert_allclose(ancestral[:, -1], std, atol=1e-10)


@pytest.mark.parametrize("process", [processes.EDM(), processes.RectifiedFlow()], ids=["EDM", "flow"])
def test_euler_is_ddim_where_paths_are_straight(process):
    for grid in [grids.uniform(process, 5), grids.karras(process, 5)]:
        ddim, euler = solvers.ddim().plan(process, grid), solvers.euler().plan(process, grid)
        slope, intercept = euler.keep.T  # Euler remembers d = p x + q D
        x_s = euler.next[:, 0] + euler.next[:, 2] * slope
        np.testing.assert_allclose(x_s, ddim.next[:, 0], atol=1e-10)
        np.testing.assert_allclose(euler.next[:, 2] * intercept, ddim.next[:, 2], atol=1e-10)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_processes_differ_by_time_and_scale_only(order, tau):
    """On the same log-SNR, `x / sqrt(a^2 + c^2)` takes the same steps under every process."""
    log_snr = np.linspace(-3, 3, 8)
    tables = []
    for process in PROCESSES:
        grid = process.time_of_log_snr(log_snr)
        a, _, c = process.coefficients(grid)
        scale = np.hypot(a, c)
        rows = solvers.dpmpp_multistep(order=order, tau=tau).plan(process, grid).next.copy()
        rows[:, 0] *= scale[:-1]
        tables.append(rows / scale[1:, None])
    for rows in tables[1:]:
        np.testing.assert_allclose(rows, tables[0], atol=1e-10)


def test_lower_order_final_ends_in_first_order():
    process = processes.VP()
    grid = grids.log_snr(process, 8, end=1e-3)
    plan = solvers.dpmpp_multistep(order=3, lower_order_final=True).plan(process, grid)
    full = solvers.dpmpp_multistep(order=3).plan(process, grid)
    used = (plan.next[:, 2:5] != 0).sum(1)
    assert used.tolist() == [1, 2, 3, 3, 3, 3, 2, 1]
    assert (full.next[:, 2:5] != 0).sum(1).tolist() == [1, 2, 3, 3, 3, 3, 3, 3]
    np.testing.assert_array_equal(plan.next[:6], full.next[:6])
