"""Stochastic churn: noise is added before each step of Euler or Heun in sigma, and removed by it."""

import numpy as np

from jaxdiff.core import as_number, check_choice, concrete, namespace, safe_sqrt
from jaxdiff.solvers.exponential import is_noisy
from jaxdiff.solvers.runge_kutta import slope
from jaxdiff.solvers.tableau import linear, staged, table


def churn(s_churn=40.0, s_min=0.05, s_max=50.0, s_noise=1.003, method="heun"):
    """EDM's stochastic sampler, for any process: with z = x / a and sigma = c / a, step i is

        gamma = min(s_churn / steps, sqrt(2) - 1) where s_min <= sigma_i <= s_max, else 0
        sigma^ = (1 + gamma) sigma_i,    z^ = z_i + s_noise sqrt(sigma^^2 - sigma_i^2) noise
        d = (z^ - D(z^, sigma^)) / sigma^,    z' = z^ + (sigma_(i+1) - sigma^) d
        z_(i+1) = z^ + (sigma_(i+1) - sigma^) (d + (z' - D(z', sigma_(i+1))) / sigma_(i+1)) / 2

    or z' itself, with Euler and where sigma_(i+1) = 0. Karras et al. (2022), arXiv:2206.00364,
    algorithm 2; the defaults are theirs for ImageNet-64. The model sees the point after the noise, as
    there. A row of the table adds the noise of the next step, so that saved points are the z^; the
    first step, which starts at the prior or at a given x, has none, and sigma^ stays within the process's
    times. With s_churn = 0 this is `heun("sigma")` or `euler("sigma")`; with much noise and few steps
    the samples lose variance, which s_noise > 1 counters.

    Args:
      s_churn: at least 0; `steps (sqrt(2) - 1)` and more are the most that is added.
      s_min, s_max: range of sigma in which noise is added.
      s_noise: factor of the noise added.
      method: "heun" (2 steps - 1 evaluations to c = 0) or "euler" (steps).
    """
    check_choice("churn", "method", method, ("heun", "euler"))
    numbers = {"s_churn": s_churn, "s_min": s_min, "s_max": s_max, "s_noise": s_noise}
    for name, value in numbers.items():
        known = concrete(value)
        if known is not None and (known.ndim or known.dtype.kind not in "iuf" or not known >= 0):
            raise ValueError(f"churn: expected {name} of at least 0, got {value!r}")
        numbers[name] = as_number(value)
    if all(isinstance(numbers[name], float) for name in ("s_min", "s_max")) and s_min > s_max:
        raise ValueError(f"churn: expected s_min <= s_max, got {s_min} and {s_max}")
    return linear(f"churn({method})", _churn, method=method, **numbers)


def _churn(process, grid, method, s_churn, s_min, s_max, s_noise):
    xp = namespace(grid, process, s_churn, s_min, s_max, s_noise)
    a, _, c = process.coefficients(grid)
    times, added = _raised(process, grid, s_churn, s_min, s_max)
    a_hat, _, c_hat = process.coefficients(times)
    single = (c[1:] == 0) | (a[:-1] == 0) | (a[1:] == 0)
    sigma = c / xp.where(a == 0, 1.0, a)
    sigma_hat = c_hat / xp.where(a_hat == 0, 1.0, a_hat)
    noise = a_hat[1:] * s_noise * added[1:]
    reached = xp.where(a[1:] == 0, c[1:], a_hat[1:] * sigma[1:])
    direct = [reached / c_hat[:-1], 0.0]  # z' scaled to the time that the noise takes it to
    direct = [*direct, a_hat[1:] - direct[0] * a_hat[:-1], noise]
    keep = slope(process, times[:-1], "sigma")[1:]
    at_start = [xp.where(single, clean, k) for clean, k in zip((0.0, 1.0), keep, strict=True)]
    scale, move = 1 / xp.where(a_hat[:-1] == 0, 1.0, a_hat[:-1]), sigma[1:] - sigma_hat[:-1]
    noisy = is_noisy(s_churn)
    if method == "euler":
        return table(times[:-1], direct, noisy=noisy)
    first = [a[1:] * scale, 0.0, a[1:] * move, 0.0]
    first = [xp.where(single, one, other) for one, other in zip(direct, first, strict=True)]
    hold = [1.0, 0.0, 0.0, 0.0]
    half = 0.5 * a_hat[1:] * move
    second = [0.0, a_hat[1:] * scale, half, half, noise]
    end = slope(process, grid[1:], "sigma")[1:]
    stages = [(times[:-1], first, hold, at_start), (grid[1:], second, second, end)]
    return staged(stages, [single], noisy=noisy)


def _raised(process, grid, s_churn, s_min, s_max):
    """Times to which the grid's points are taken by noise, and how much that is, in sigma."""
    xp = namespace(grid, process, s_churn, s_min, s_max)
    log_snr = process.log_snr(grid)
    finite = xp.isfinite(log_snr)
    log_snr = xp.where(finite, log_snr, 0.0)
    sigma = xp.exp(-log_snr)
    gamma = xp.minimum(s_churn / (grid.shape[0] - 1), np.sqrt(2) - 1)
    inside = finite & (sigma >= s_min) & (sigma <= s_max)
    inner = np.array([False, *[True] * (grid.shape[0] - 2), False])  # where a row ends and another starts
    inside = inside & inner
    raised = xp.where(inside, log_snr - xp.log1p(gamma), log_snr)
    limit = process.log_snr(process.t_max)
    raised = xp.maximum(raised, xp.where(inside, limit, raised))
    moved = inside & (raised < log_snr)
    times = xp.where(moved, process.time_of_log_snr(raised), grid)
    return times, xp.where(moved, sigma * safe_sqrt(xp.expm1(2 * (log_snr - raised))), 0.0)
