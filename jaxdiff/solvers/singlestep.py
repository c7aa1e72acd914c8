"""DPM-Solver singlestep methods: two or three evaluations within a step, at nodes in log-SNR.

A step to c = 0, or from a = 0, has no log-SNR nodes inside: it is one evaluation of first order.
"""

import numpy as np

from jaxdiff.core import namespace
from jaxdiff.solvers.exponential import Form
from jaxdiff.solvers.tableau import linear, staged


def dpmpp_singlestep(order=2, rule="midpoint"):
    """DPM-Solver++ singlestep (1, 2S, 3S): data prediction, `order` evaluations a step.

    With `h` the log-SNR step, nodes `r_1 = 1/2` (2S), `r_1 = 1/3, r_2 = 2/3` (3S), `x(r)` the point at node
    r, `D_i` the estimates there and `phi_2(z) = (exp(-z) - 1) / z + 1`:

        2S, midpoint  (c_t / c_s) x_s - a_t (exp(-h) - 1) (D_0 + (D_1 - D_0) / (2 r_1))
        2S, lagrange  (c_t / c_s) x_s - a_t (exp(-h) - 1) D_0 + a_t phi_2(h) (D_1 - D_0) / r_1
        3S, midpoint  (c_t / c_s) x_s - a_t (exp(-h) - 1) D_0 + a_t phi_2(h) (D_2 - D_0) / r_2
        3S, lagrange  the quadratic through D_0, D_1, D_2, integrated exactly

    Lu et al. (2022), arXiv:2211.01095, algorithm 1, and arXiv:2206.00927, algorithms 4 and 5.
    """
    return _checked("dpmpp_singlestep", "data", order, rule)


def dpm_singlestep(order=2, rule="midpoint"):
    """DPM-Solver-1, -2, -3: `dpmpp_singlestep` in noise prediction.

    With `E = (x - a D) / c`, `x_t = (a_t / a_s) x_s - c_t (exp(h) - 1) E_0` and corrections as in data
    prediction. Lu et al. (2022), arXiv:2206.00927, algorithms 1 and 2 and eq. 3.7.
    """
    return _checked("dpm_singlestep", "noise", order, rule)


def _checked(where, prediction, order, rule):
    if order not in (1, 2, 3):
        raise ValueError(f"{where}: expected order 1, 2 or 3, got {order}")
    if rule not in ("midpoint", "lagrange"):
        raise ValueError(f"{where}: expected rule 'midpoint' or 'lagrange', got {rule!r}")
    return linear(f"{where}({order})", _singlestep, prediction=prediction, order=order, rule=rule)


NODES = {1: (0.0,), 2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}


def _singlestep(process, grid, prediction, order, rule):
    """Every stage is a step of the generator from the grid point to the next node."""
    xp = namespace(grid, process)
    whole = Form.of(process, grid, prediction)
    h = xp.where(whole.finite, whole.h, 1.0)
    start = xp.where(whole.finite, whole.start, 0.0)
    nodes = NODES[order]
    inside = xp.where(whole.finite, grid[:-1], 0.5 * (grid[:-1] + grid[1:]))  # where log-SNR is finite
    times = [grid[:-1]] + [
        xp.where(whole.finite, process.time_of_log_snr(start + r * h), inside) for r in nodes[1:]
    ]
    stages = []
    for j, t in enumerate(times):
        final = j + 1 == order
        form = whole if final else Form.between(process, inside, times[j + 1], prediction)
        e = [form.scale * w for w in _weights(form, h, nodes[: j + 1], rule, final and order)]
        point = [form.x_s, 0.0] if j == 0 else [0.0, form.x_s]
        if j == 0:  # what an infinite step does
            point[0] = xp.where(whole.finite, point[0], whole.x_s)
            e = [xp.where(whole.finite, e[0], whole.scale)]
        move = [*point, *e, 0.0]
        hold = [float(j == 0), float(j > 0), *[0.0] * (len(e) + 1)]
        keep = (0.0, 1.0) if prediction == "data" else _noise_estimate(process, t, whole)
        stages.append((t, move, move if final else hold, keep))
    return staged(stages, [~whole.finite] * (order - 1))


def _weights(form, h, nodes, rule, final_order):
    """Weights on the estimates at the nodes, the newest first."""
    xp = form.xp
    places = xp.stack([r * h for r in reversed(nodes)], axis=-1)
    valid = np.ones((h.shape[0], len(nodes)), bool)
    if rule == "midpoint" and final_order == 2:
        return form.mass / (2 * nodes[1]), form.mass * (1 - 1 / (2 * nodes[1]))
    if rule == "midpoint" and final_order == 3:
        valid[:, 1] = False
    weights = form.weights(places, valid)
    return [weights[:, j] for j in range(len(nodes))]


def _noise_estimate(process, t, whole):
    xp = whole.xp
    a, _, c = process.coefficients(t)
    return xp.where(whole.finite, 1 / c, 0.0), xp.where(whole.finite, -a / c, 1.0)
