"""Runge-Kutta methods on the probability-flow ODE, in time, noise level or log-SNR.

The ODE is integrated as `z = x / s` along a coordinate `theta`, whose slope is linear in the point and the
clean estimate:

    coordinate   theta      s    slope dz / dtheta
    time         t          1    (c' / c) x + (a' - a c' / c) D
    sigma        c / a      a    (x - a D) / c
    log_snr      log(a/c)   c    (a / c) D

A step to c = 0 is one evaluation that returns the clean estimate; where the coordinate is infinite (a = 0, at
the start, or at the end of a way from data to noise), the step is one of DDIM.
"""

from jaxdiff.core import check_choice, namespace
from jaxdiff.solvers.exponential import noise_ratio
from jaxdiff.solvers.tableau import linear, staged, table

COORDINATES = ("time", "sigma", "log_snr")


def euler(coordinate="time"):
    """Euler's method: `x_t = x_s + (t - s) (P x_s + Q D)`, `P = c' / c`, `Q = a' - a c' / c`.

    In sigma, and for EDM and rectified flow, this is DDIM.
    """
    return _method("euler", ((),), (1.0,), coordinate)


def midpoint(coordinate="time"):
    """The midpoint rule, second order: an Euler half step, then a full step with the slope found there.

    In sigma, DPM-Solver-2 of Karras et al. (2022), arXiv:2206.00364, with alpha = 1/2.
    """
    return _method("midpoint", ((), (0.5,)), (0.0, 1.0), coordinate)


def heun(coordinate="time"):
    """Heun's second-order method, two evaluations a step.

        x' = x_s + (t - s) d_s,    x_t = x_s + (t - s) (d_s + d_t(x')) / 2,    d = P x + Q D

    Karras et al. (2022), arXiv:2206.00364, algorithm 1, in the time of any process. The default grids,
    which end at c = 0, take `2 steps - 1` evaluations.
    """
    return _method("heun", ((), (1.0,)), (0.5, 0.5), coordinate)


def ralston(coordinate="time"):
    """Ralston's second-order method: slopes at the start and at 2/3, weights 1/4 and 3/4."""
    return _method("ralston", ((), (2 / 3,)), (0.25, 0.75), coordinate)


def rk4(coordinate="time"):
    """The classical fourth-order method, four evaluations a step."""
    return _method("rk4", ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6), coordinate)


def _method(name, stages, weights, coordinate):
    check_choice(name, "coordinate", coordinate, COORDINATES)
    return linear(name, _runge_kutta, stages=stages, weights=weights, coordinate=coordinate)


def slope(process, t, coordinate):
    """`(s, p, q)` at times `t`: the scale of `x`, and the slope `p x + q D` of `x / s`; 0 at c = 0."""
    xp = namespace(t, process)
    a, _, c = process.coefficients(t)
    safe = xp.where(c == 0, 1.0, c)
    if coordinate == "sigma":
        return a, 1 / safe, -a / safe
    if coordinate == "log_snr":
        return c, 0.0 * c, a / safe
    da, _, dc = process.derivatives(t)
    p = xp.where(c == 0, 0.0, dc / safe)
    return xp.ones_like(a), p, da - a * p


def _runge_kutta(process, grid, stages, weights, coordinate):
    xp = namespace(grid, process)
    a, _, c = process.coefficients(grid)
    to_data = c[1:] == 0
    single = to_data if coordinate == "time" else to_data | (a[:-1] == 0) | (a[1:] == 0)
    theta_s, theta_t = (_theta(process, t, coordinate, single) for t in (grid[:-1], grid[1:]))
    step = theta_t - theta_s
    nodes = [sum(row) for row in stages]
    times = [grid[:-1]] + [
        grid[1:] if node == 1 else _time(process, theta_s + node * step, coordinate) for node in nodes[1:]
    ]
    slopes = [slope(process, t, coordinate) for t in times]
    arrival = slope(process, grid[1:], coordinate)[0]
    start = xp.where(slopes[0][0] == 0, 1.0, slopes[0][0])
    rows = []
    for j, (t, (_, p, q)) in enumerate(zip(times, slopes, strict=True)):
        final = j + 1 == len(stages)
        scale = arrival if final else slopes[j + 1][0]
        ahead = weights if final else stages[j + 1]
        slopes_so_far = [scale * step * weight for weight in reversed(ahead)]
        point = [scale / start, 0.0] if j == 0 else [0.0, scale / start]
        move = [*point, *slopes_so_far, 0.0]
        if j == 0:
            still = noise_ratio(c[:-1], c[1:])
            direct = [still, 0.0, a[1:] - a[:-1] * still, 0.0]
            move = [xp.where(single, one, other) for one, other in zip(direct, move, strict=True)]
            p, q = xp.where(single, 0.0, p), xp.where(single, 1.0, q)
        hold = [float(j == 0), float(j > 0), *[0.0] * (len(move) - 2)]
        rows.append((t, move, move if final else hold, (p, q)))
    if len(rows) == 1:  # nothing is remembered: the slope's weights fold into the point's and D's
        (_, (x, _, e, _), _, (p, q)) = rows[0]
        return table(grid[:-1], [x + e * p, 0.0, e * q, 0.0], noisy=False)
    return staged(rows, [single] * (len(rows) - 1), noisy=False)


def _theta(process, t, coordinate, single):
    """The coordinate at `t`, with finite numbers at steps that do not use it."""
    xp = namespace(t, process)
    if coordinate == "time":
        return t
    log_snr = xp.where(single, 0.0, process.log_snr(t))
    return log_snr if coordinate == "log_snr" else xp.exp(-log_snr)


def _time(process, theta, coordinate):
    if coordinate == "time":
        return theta
    xp = namespace(theta, process)
    return process.time_of_log_snr(theta if coordinate == "log_snr" else -xp.log(theta))
