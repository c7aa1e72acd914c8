"""DPM-Solver singlestep methods: two or three evaluations within a step, at nodes in log-SNR.

A step to c = 0, or from a = 0, has no log-SNR nodes inside: it is one evaluation of first order.
"""

import numpy as np

from jaxdiff.core import check_order
from jaxdiff.solvers.exponential import Form, check_level, level_of_steps
from jaxdiff.solvers.tableau import linear, staged


def dpmpp_singlestep(order=2, rule="midpoint", tau=0.0):
    """DPM-Solver++ singlestep (1, 2S, 3S): data prediction, `order` evaluations a step.

    With `h` the log-SNR step, nodes `r_1 = 1/2` (2S), `r_1 = 1/3, r_2 = 2/3` (3S), `x(r)` the point at node
    r, `D_i` the estimates there and `phi_2(z) = (exp(-z) - 1) / z + 1`:

        2S, midpoint  (c_t / c_s) x_s - a_t (exp(-h) - 1) (D_0 + (D_1 - D_0) / (2 r_1))
        2S, lagrange  (c_t / c_s) x_s - a_t (exp(-h) - 1) D_0 + a_t phi_2(h) (D_1 - D_0) / r_1
        3S, midpoint  (c_t / c_s) x_s - a_t (exp(-h) - 1) D_0 + a_t phi_2(h) (D_2 - D_0) / r_2
        3S, lagrange  the quadratic through D_0, D_1, D_2, integrated exactly

    Lu et al. (2022), arXiv:2211.01095, algorithm 1, and arXiv:2206.00927, algorithms 4 and 5. With
    `tau > 0`, as in `dpmpp_multistep`, the nodes lie on one path of the reverse SDE: `k = 1 + tau^2` times
    `h` in the weights, and what a node was moved by noise is carried to the next,

        n(r') = (c(r') / c(r)) exp(-tau^2 d) n(r) + c(r') sqrt(1 - exp(-2 tau^2 d)) noise,  d = (r' - r) h

    (`seeds`; at tau = 1, 2S midpoint is also k-diffusion's SDE sampler but for the dependence between the
    noise of the middle and of the end, which here is that of the SDE).
    """
    return _checked("dpmpp_singlestep", "data", order, rule, tau)


def dpm_singlestep(order=2, rule="midpoint", tau=0.0):
    """DPM-Solver-1, -2, -3: `dpmpp_singlestep` in noise prediction.

    With `E = (x - a D) / c`, `x_t = (a_t / a_s) x_s - c_t (exp(h) - 1) E_0` and corrections as in data
    prediction. Lu et al. (2022), arXiv:2206.00927, algorithms 1 and 2 and eq. 3.7.
    """
    return _checked("dpm_singlestep", "noise", order, rule, tau)


def _checked(where, prediction, order, rule, tau):
    order = check_order(where, order, tuple(NODES))
    if rule not in ("midpoint", "lagrange"):
        raise ValueError(f"{where}: expected rule 'midpoint' or 'lagrange', got {rule!r}")
    tau = check_level(where, tau)
    return linear(f"{where}({order})", _singlestep, prediction=prediction, order=order, rule=rule, tau=tau)


NODES = {1: (0.0,), 2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}


def _singlestep(process, grid, prediction, order, rule, tau):
    """Every stage is a step of the generator from the grid point to the next node.

    The base point is the grid's, taken along to the node without any estimate: moved and noised.
    """
    tau = level_of_steps(tau, grid)
    whole = Form.of(process, grid, prediction, tau)
    xp, finite = whole.xp, whole.finite
    h, start = xp.where(finite, whole.h, 1.0), xp.where(finite, whole.start, 0.0)
    nodes = NODES[order]
    inside = xp.where(finite, grid[:-1], 0.5 * (grid[:-1] + grid[1:]))  # where log-SNR is finite
    times = [inside, *[xp.where(finite, process.time_of_log_snr(start + r * h), inside) for r in nodes[1:]]]
    times.append(grid[1:])
    stages = []
    for j, t in enumerate(times[:-1]):
        form = Form.between(process, inside, times[j + 1], prediction, tau)
        hop = Form.between(process, t, times[j + 1], prediction, tau)
        e = [form.scale * w for w in _weights(form, h, nodes[: j + 1], rule, order)]
        point = [hop.x_s, 0.0] if j == 0 else [0.0, hop.x_s]
        move, place = ([*point, *weights, hop.noise] for weights in (e, [0.0] * len(e)))
        if j == 0:  # what an infinite step does
            direct = [whole.x_s, 0.0, whole.scale, whole.noise]
            move = [xp.where(finite, m, d) for m, d in zip(move, direct, strict=True)]
        keep = (0.0, 1.0) if prediction == "data" else _noise_estimate(process, t, whole)
        stages.append((t if j else grid[:-1], move, move if j + 1 == order else place, keep))
    return staged(stages, [~finite] * (order - 1), noisy=whole.noisy)


def _weights(form, h, nodes, rule, order):
    """Weights on the estimates at the nodes, the newest first."""
    xp, final_order = form.xp, order if len(nodes) == order else 0
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
