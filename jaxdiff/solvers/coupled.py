"""DDIM made invertible by a second sequence: EDICT and BDIA, for exact inversion of real data."""

import dataclasses

import numpy as np

from jaxdiff.core import as_number, namespace
from jaxdiff.solvers.reversible import ReversibleTableau
from jaxdiff.solvers.tableau import linear, table


def edict(mixing=0.93):
    """EDICT: two coupled sequences x and y of DDIM steps, each asked at the other, then mixed.

        x' = A x + B D(y),  y' = A y + B D(x'),  x = p x' + (1 - p) y',  y = p y' + (1 - p) x

    with the DDIM step `z_t = A z_s + B D`. Two evaluations a step; every step can be undone exactly, which
    `jd.editing.invert` does. Wallace et al. (2023), arXiv:2211.12446. Between a > 0 and
    c > 0: end the grid at `t_min`.

    Args:
      mixing: p, in (0, 1]; 1 leaves the sequences to drift apart when sampling. Inversion divides their
        difference by p twice a step, so that with many steps a small p takes it far from noise.
    """
    if isinstance(mixing, (int, float)) and not 0 < mixing <= 1:
        raise ValueError(f"edict: expected mixing in (0, 1], got {mixing}")
    return linear("edict", _edict, mixing=as_number(mixing))


def bdia(gamma=0.96):
    """BDIA: the step back from a point, put right by what the step forward from it misses.

        z_(i+1) = A z_i + B D_i + gamma (z_(i-1) - A' z_i - B' D_i)

    with the DDIM step forward `(A, B)` and the one back to where it came from, `(A', B')`. One evaluation a
    step, and every step but the first can be undone exactly. Zhang et al. (2023), arXiv:2307.10829.

    Args:
      gamma: in (0, 1]; 0 would be DDIM.
    """
    if isinstance(gamma, (int, float)) and not 0 < gamma <= 1:
        raise ValueError(f"bdia: expected gamma in (0, 1], got {gamma}")
    return linear("bdia", _bdia, gamma=as_number(gamma))


def _ddim_step(process, s, t):
    """`(A, B)` of the deterministic step from `s` to `t`, either way."""
    (a_s, _, c_s), (a_t, _, c_t) = process.coefficients(s), process.coefficients(t)
    return c_t / c_s, a_t - a_s * c_t / c_s


def _reversible(rows):
    return ReversibleTableau(**{f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)})


def _edict(process, grid, mixing):
    xp, steps, p = namespace(grid, process, mixing), grid.shape[0] - 1, mixing
    a, b = _ddim_step(process, grid[:-1], grid[1:])
    other = p + (1 - p) ** 2  # what of y' is in the new y
    first = [[0.0 * a, a, b], [1.0 + 0.0 * a, 0.0 * a, 0.0 * a]]
    second = [
        [(1 - p) * p + 0.0 * a, other * a, other * b],
        [p + 0.0 * a, (1 - p) * a, (1 - p) * b],
    ]

    def rows(one, two):
        return xp.stack([one, two], -1).reshape(-1)

    move, base = ([rows(f, s) for f, s in zip(first[k], second[k], strict=True)] for k in (0, 1))
    arrives = np.stack([np.zeros(steps, int), np.arange(1, steps + 1)], -1).reshape(-1)
    t = rows(grid[:-1], grid[:-1])
    return _reversible(table(t, [*move, 0.0], next_base=[*base, 0.0], arrives=arrives, noisy=False))


def _bdia(process, grid, gamma):
    xp = namespace(grid, process, gamma)
    a, b = _ddim_step(process, grid[:-1], grid[1:])
    back_a, back_b = _ddim_step(process, grid[1:-1], grid[:-2])
    zero = xp.zeros(1)
    pull = gamma * xp.append(zero, xp.ones_like(back_a))
    move = [a - gamma * xp.append(zero, back_a), pull, b - gamma * xp.append(zero, back_b)]
    return _reversible(table(grid[:-1], [*move, 0.0], next_base=[1.0, 0.0, 0.0, 0.0], noisy=False))
