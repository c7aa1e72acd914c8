"""ER-SDE-Solver against its displayed rule with integrals by adaptive quadrature, and its limits."""

import numpy as np
import pytest
from scipy.integrate import quad

import jaxdiff as jd
from jaxdiff.solvers.er_sde import default_noise_scale

S = jd.solvers
PROCESSES = [jd.processes.VP(), jd.processes.EDM(), jd.processes.RectifiedFlow()]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def uneven(process, steps=6):
    return process.time_of_log_snr(np.sort(np.random.default_rng(1).uniform(-3, 3, steps + 1)))


@each
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(
    "scale", [None, 0.0, 0.7, lambda rho: rho * (rho**0.9 + 5)], ids=["default", "0", "0.7", "f"]
)
def test_it_is_the_published_rule(process, order, scale):
    grid = uneven(process)
    a, _, c = process.coefficients(grid)
    rho = c / a
    f = scale if callable(scale) else default_noise_scale if scale is None else lambda u: u ** (1 + scale**2)
    rows = S.er_sde(order, scale).plan(process, grid)
    for i in range(6):
        s, t = rho[i], rho[i + 1]
        r = f(t) / f(s)
        np.testing.assert_allclose(rows.next[i, 0], a[i + 1] / a[i] * r, rtol=1e-9)
        noise = a[i + 1] * np.sqrt(max(t**2 - r**2 * s**2, 0.0))
        np.testing.assert_allclose(rows.next[i, -1], noise, rtol=1e-6, atol=1e-6 * c[i + 1])
        # 1, rho and rho^2 as estimates: the interpolation is exact up to the order of the step
        for power in range(min(order, i + 1)):
            slope = quad(lambda u: (1 - f(t) / f(u)) * power * u ** max(power - 1, 0), t, s, epsabs=1e-12)[0]  # noqa: B023
            expected = a[i + 1] * ((1 - r) * s**power - slope)
            past = (
                rho[i - np.arange(order)]
                if i + 1 >= order
                else np.append(rho[i::-1], np.zeros(order - i - 1))
            )
            found = rows.next[i, 2:-1] @ past**power
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_published_third_order_is_the_paper_s_stage_3():
    """`D'` as a backward difference and `D''` as displayed in their code, for the default scale."""
    process = jd.processes.EDM()
    grid = uneven(process)
    rho, f = grid, default_noise_scale
    rows = S.er_sde(3, published=True).plan(process, grid).next
    estimates = np.random.default_rng(2).normal(size=6)
    for i in range(2, 6):
        s, t = rho[i], rho[i + 1]
        first = (estimates[i] - estimates[i - 1]) / (rho[i] - rho[i - 1])
        before = (estimates[i - 1] - estimates[i - 2]) / (rho[i - 1] - rho[i - 2])
        second = 2 * (first - before) / (rho[i] - rho[i - 2])
        linear = t - s + f(t) * quad(lambda u: 1 / f(u), t, s)[0]
        square = (t - s) ** 2 / 2 + f(t) * quad(lambda u: (u - s) / f(u), t, s)[0]  # noqa: B023
        expected = (1 - f(t) / f(s)) * estimates[i] + linear * first + square * second
        np.testing.assert_allclose(rows[i, 2:-1] @ estimates[i - np.arange(3)], expected, rtol=1e-9)


@each
def test_limits(process):
    """First order at constant tau is the exponential step; f = rho is deterministic."""
    grid = uneven(process)
    for tau in (0.0, 0.6, 1.0, 1.5):
        ours = S.er_sde(1, tau).plan(process, grid)
        other = S.dpmpp_multistep(1, tau=tau).plan(process, grid)
        np.testing.assert_allclose(ours.next, other.next, rtol=1e-9, atol=1e-12)
        assert ours.noisy == (tau > 0)
    ode, function = S.er_sde(3, 0.0), S.er_sde(3, lambda rho: 1.0 * rho)
    np.testing.assert_allclose(
        ode.plan(process, grid).next, function.plan(process, grid).next, atol=1e-6 * grid.max()
    )


def test_the_default_noise_scale_is_the_paper_s():
    """`rho (exp(rho^0.3) + 10)` at 1e-10, 1 and 2^(10 / 3)."""
    rho = np.array([1e-10, 1.0, 2 ** (10 / 3)])
    expected = rho * (np.exp([0.001, 1.0, 2.0]) + 10)
    np.testing.assert_allclose(default_noise_scale(rho), expected, rtol=1e-12)


def test_from_no_data_at_all():
    """At a = 0 the first step draws its noise; the default process times are walked to the data."""
    process = jd.processes.RectifiedFlow()
    rows = S.er_sde().plan(process, jd.grids.uniform(process, 4)).next
    a, _, c = process.coefficients(0.75)
    np.testing.assert_allclose(rows[0], [0, 0, a, 0, 0, c], atol=1e-12)
    still = S.er_sde(3, 0.0).plan(process, jd.grids.uniform(process, 4)).next
    np.testing.assert_allclose(still[0], [c, 0, a, 0, 0, 0], atol=1e-12)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: S.er_sde(4), "order 1, 2 or 3, got 4"),
        (lambda: S.er_sde(2, published=True), "third order, got order 2"),
        (lambda: S.er_sde(2, -1.0), "at least 0, got -1"),
        (lambda: S.er_sde(2, np.ones(3)), "one number or a function"),
        (
            lambda: S.er_sde(2, lambda rho: rho**0.5).plan(PROCESSES[1], uneven(PROCESSES[1])),
            "not decreasing",
        ),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
