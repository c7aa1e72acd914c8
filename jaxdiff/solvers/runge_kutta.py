"""Runge-Kutta methods on the probability-flow ODE in time, `dx / dt = P x + Q D`.

    P = c' / c,    Q = a' - a c' / c
"""

import numpy as np

from jaxdiff.core import concrete, namespace
from jaxdiff.solvers.tableau import linear, table


def euler():
    """Euler's method: `x_t = x_s + (t - s) (P x_s + Q D)`; a step to c = 0 returns the clean estimate.

    For EDM and rectified flow this is DDIM.
    """
    return linear("euler", _euler)


def heun():
    """Heun's second-order method, two evaluations a step.

        x' = x_s + (t - s) d_s,    x_t = x_s + (t - s) (d_s + d_t(x')) / 2,    d = P x + Q D

    Karras et al. (2022), arXiv:2206.00364, algorithm 1, in the time of any process. A step to c = 0 is
    one evaluation that returns the clean estimate, so the default grids take `2 steps - 1`.
    """
    return linear("heun", _heun)


def flow(process, t):
    """`(P, Q)` of the probability-flow ODE at times `t`; 0 where c = 0, where no row evaluates it."""
    a, _, c = process.coefficients(t)
    da, _, dc = process.derivatives(t)
    xp = namespace(t, process)
    p = xp.where(c == 0, 0.0, dc / xp.where(c == 0, 1.0, c))
    return p, da - a * p


def _euler(process, grid):
    xp = namespace(grid, process)
    p, q = flow(process, grid[:-1])
    dt = grid[1:] - grid[:-1]
    to_data = process.coefficients(grid[1:])[2] == 0
    x_s = xp.where(to_data, 0.0, 1 + dt * p)
    estimate = xp.where(to_data, 1.0, dt * q)
    return table(grid[:-1], [x_s, 0.0, estimate, 0.0], noisy=False)


def _heun(process, grid):
    xp = namespace(grid, process)
    steps = grid.shape[0] - 1
    p, q = flow(process, grid)
    dt = grid[1:] - grid[:-1]
    to_data = process.coefficients(grid[1:])[2] == 0

    def rows(first, second):
        """Alternates the two stages; a step to data is its first stage alone."""
        return xp.reshape(xp.stack([first, second], axis=-1), (-1,))

    zero, one = xp.zeros_like(dt), xp.ones_like(dt)
    columns = [
        rows(xp.where(to_data, 0.0, one), xp.where(to_data, 1.0, zero)),
        rows(zero, xp.where(to_data, 0.0, one)),
        rows(xp.where(to_data, 1.0, dt), xp.where(to_data, 0.0, dt / 2)),
        rows(zero, xp.where(to_data, 0.0, dt / 2)),
        rows(zero, zero),
    ]
    base = [rows(one, columns[0][1::2]), *[rows(zero, column[1::2]) for column in columns[1:]]]
    keep = (
        rows(xp.where(to_data, 0.0, p[:-1]), p[1:]),
        rows(xp.where(to_data, 1.0, q[:-1]), q[1:]),
    )
    t = rows(grid[:-1], grid[1:])
    arrives = np.stack([np.zeros(steps, int), np.arange(1, steps + 1)], axis=-1).reshape(-1)
    ends = concrete(to_data)
    if ends is not None and ends[-1]:  # its second stage does nothing: spare the evaluation
        arrives = np.append(arrives[:-2], steps)
        t, *rest = (column[:-1] for column in (t, *columns, *base, *keep))
        columns, base, keep = rest[:5], rest[5:10], rest[10:]
    return table(t, columns, next_base=base, keep=keep, arrives=arrives, noisy=False)
