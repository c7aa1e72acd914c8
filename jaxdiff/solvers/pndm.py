"""Pseudo numerical methods on manifolds: a pseudo Runge-Kutta start, then pseudo linear multistep."""

import numpy as np

from jaxdiff.core import check_order, is_concrete
from jaxdiff.solvers.multistep import PLMS
from jaxdiff.solvers.tableau import linear, table

START = {2: 1, 4: 3}  # how many steps are taken without history


def pndm(order=4):
    """PNDM: a pseudo Runge-Kutta start, then a pseudo linear multistep; one evaluation a step from there.

    With the transfer `phi_t(x, e) = (a_t / a_s) x + (c_t - a_t c_s / a_s) e` of DDIM and `m` the middle
    of the step in time, order 4 (F-PNDM) starts with three steps of

        e_1 = E(x, s),  e_2 = E(phi_m(x, e_1), m),  e_3 = E(phi_m(x, e_2), m),  e_4 = E(phi_t(x, e_3), t)
        x_t = phi_t(x, (e_1 + 2 e_2 + 2 e_3 + e_4) / 6)

    and goes on as `plms(4)`: `steps + 9` evaluations. Order 2 (S-PNDM) starts with one step of the
    pseudo improved Euler method and goes on as `plms(2)`, `steps + 1` evaluations:

        e_1 = E(x, s),  e_2 = E(phi_t(x, e_1), t),    x_t = phi_t(x, (e_1 + e_2) / 2)

    Liu et al. (2022), arXiv:2202.09778, algorithm 2 and eq. 12 to 14, for grids uniform in time. A step
    to c = 0, or from a = 0, is one of DDIM and is not remembered. Process and grid have to be known
    before tracing.

    Args:
      order: 4 (F-PNDM) or 2 (S-PNDM).
    """
    order = check_order("pndm", order, tuple(START))
    return linear(f"pndm({order})", _pndm, order=order)


def _pndm(process, grid, order):
    if not is_concrete(process, grid):
        raise ValueError("pndm: expected a process and a grid that are known, got traced ones; use plms()")
    a, _, c = process.coefficients(grid)
    begin = {2: _improved_euler_rows, 4: _runge_kutta_rows}[order]
    rows, marks = [], []  # marks: at which row the estimate at a grid point was made
    for i in range(len(grid) - 1):
        if c[i + 1] == 0 or a[i] == 0:
            direct = {"x": c[i + 1] / c[i], 0: a[i + 1]}
            rows.append((grid[i], (0.0, 1.0), direct, None, i + 1))
            marks = []
            continue
        keep = 1 / c[i], -a[i] / c[i]
        marks.append(len(rows))
        if len(marks) <= START[order]:
            rows += begin(process, grid[i], grid[i + 1], keep, i + 1)
        else:
            to_point, to_noise = _transfer(process, grid[i], grid[i + 1])
            pairs = zip(marks[::-1], PLMS[order - 1], strict=False)
            average = {marks[-1] - mark: to_noise * w for mark, w in pairs}
            rows.append((grid[i], keep, {"x": to_point, **average}, None, i + 1))
    return _assemble(rows)


def _transfer(process, s, t):
    (a_s, _, c_s), (a_t, _, c_t) = process.coefficients(s), process.coefficients(t)
    return a_t / a_s, c_t - a_t * c_s / a_s


def _improved_euler_rows(process, s, t, keep, point):
    a, _, c = process.coefficients(t)
    x_t, e_t = _transfer(process, s, t)
    last = {"base": x_t, 0: e_t / 2, 1: e_t / 2}
    return [(s, keep, {"x": x_t, 0: e_t}, {"x": 1.0}, 0), (t, (1 / c, -a / c), last, None, point)]


def _runge_kutta_rows(process, s, t, keep, point):
    middle = 0.5 * (s + t)
    a, _, c = process.coefficients(np.array([middle, t]))
    (x_m, e_m), (x_t, e_t) = _transfer(process, s, middle), _transfer(process, s, t)
    at_middle, at_end = ((1 / c[i], -a[i] / c[i]) for i in (0, 1))
    last = {"base": x_t, 0: e_t / 6, 1: e_t / 3, 2: e_t / 3, 3: e_t / 6}
    return [
        (s, keep, {"x": x_m, 0: e_m}, {"x": 1.0}, 0),
        (middle, at_middle, {"base": x_m, 0: e_m}, {"base": 1.0}, 0),
        (middle, at_middle, {"base": x_t, 0: e_t}, {"base": 1.0}, 0),
        (t, at_end, last, None, point),
    ]


def _assemble(rows):
    """A tableau from rows of weights by name: `x`, `base`, or how many rows ago an estimate was made."""
    memory = 1 + max(k for _, _, weights, _, _ in rows for k in weights if not isinstance(k, str))
    place = {"x": 0, "base": 1} | {age: 2 + age for age in range(memory)}

    def columns(which):
        filled = np.zeros((len(rows), 3 + memory))
        for i, row in enumerate(rows):
            for name, weight in (row[which] or row[2]).items():
                filled[i, place[name]] = weight
        return list(filled.T)

    times, keeps, arrives = (np.array([row[j] for row in rows]) for j in (0, 1, 4))
    return table(times, columns(2), next_base=columns(3), keep=list(keeps.T), arrives=arrives, noisy=False)
