"""SA-Solver: stochastic Adams methods, UniPC's rows for the reverse SDE."""

import numpy as np

from jaxdiff.core import check_choice, check_order
from jaxdiff.solvers.exponential import Form, check_level, history_nodes, widened
from jaxdiff.solvers.tableau import linear, table


def sa_solver(predictor=2, corrector=2, tau=1.0, prediction="data", lower_order_final=True, published=False):
    """SA-Solver: an Adams-Bashforth predictor and an Adams-Moulton corrector on one draw of the noise.

    Row i corrects the last step with its new estimate, then predicts from the corrected point:

        x~_i    = T_(i-1) x~_(i-1) + n_(i-1) z_(i-1) + a_i sum_j w_j D_(i-j)
        x_(i+1) = T_i x~_i + n_i z_i + a_(i+1) sum_j v_j D_(i-j)
        T = (c_t / c_s) exp(-tau^2 h),    n = c_t sqrt(1 - exp(-2 tau^2 h))

    with the exact integrals of the polynomials through the estimates, as in `dpmpp_multistep`; the same
    `z_i` moves x_(i+1) and x~_(i+1). One evaluation a step. Xue et al. (2023), arXiv:2309.05019,
    algorithm 1, eq. 14 to 18; at tau = 0, `sa_solver(p, p + 1)` is `unipc(p)`. In noise prediction the
    exact solution and the integrals are those of `dpm_multistep`.

    Args:
      predictor: number of estimates of the predictor, 1 to 4; 1, 2, ... in the first steps.
      corrector: number of estimates of the corrector, the new one included, 0 (none) to 5. The last
        step is not corrected.
      tau: noise level, as in `dpmpp_multistep`; the paper's tau(t) is 1 in the middle of the times and 0
        at the ends: `lambda t: (t > 0.2) & (t < 0.8)`. Many estimates with much noise need many steps.
      prediction: "data" (the paper's choice) or "noise".
      lower_order_final: whether the order falls to 1 in the last steps, as in the paper.
      published: weights of two estimates as in the published code ("simple" order 2, appendix D): the
        slope counts `(1 + tau^2) h^2 / 2`, which is the exact integral up to order h^3, and far above it
        in long steps.
    """
    predictor = check_order("sa_solver", predictor, range(1, 5), "predictor")
    corrector = check_order("sa_solver", corrector, range(6), "corrector")
    check_choice("sa_solver", "prediction", prediction, ("data", "noise"))
    return linear(
        f"sa_solver({predictor}, {corrector})",
        adams,
        predictor=predictor,
        corrector=corrector,
        prediction=prediction,
        lower_order_final=lower_order_final,
        half="bh1" if published else None,
        tau=check_level("sa_solver", tau),
    )


def adams(process, grid, predictor, corrector, prediction, lower_order_final, half, tau):
    """Rows of a predictor and a corrector, of so many estimates, on the same evaluations.

    The base point is the last corrected one, taken along without estimates: moved and noised. With `half`,
    "bh1" or "bh2", weights of two estimates are those of published code: the slope counts `h B / 2` with
    B the step `k h`, or the mass of the kernel.
    """
    form = Form.of(process, grid, prediction, tau)
    xp, steps = form.xp, grid.shape[0] - 1
    nodes, valid = history_nodes(form, predictor, lower_order_final)
    ahead = _weights(form, nodes, valid, half)
    if corrector == 0:
        return form.table(ahead)
    weights = form.scale[:, None] * _corrector_weights(form, corrector, lower_order_final, half)
    last = np.maximum(np.arange(steps) - 1, 0)  # row i corrects the step before it
    happens = form.finite & form.finite[last] & (np.arange(steps) > 0)
    correct = xp.where(happens[:, None], weights[last], 0.0)
    width = max(predictor, corrector)
    correct, ahead = widened(xp, correct, width), widened(xp, form.scale[:, None] * ahead, width)
    point = [xp.where(happens, 0.0, form.x_s), xp.where(happens, form.x_s, 0.0)]
    taken = form.x_s[:, None] * correct
    return table(
        form.t,
        [*point, *(taken + ahead).T, form.noise],
        next_base=[*point, *taken.T, form.noise],
        keep=form.keep,
        noisy=form.noisy,
    )


def _corrector_weights(form, count, lower_order_final, half):
    """Weights of every step on the estimate at its end and those before."""
    xp = form.xp
    nodes, valid = history_nodes(form, max(count - 1, 1), lower_order_final)
    end = xp.where(form.finite, form.h, 1.0)[:, None]
    nodes = xp.concatenate([end, nodes], axis=-1)[:, :count]
    valid = np.ones_like(nodes, bool) if count == 1 else xp.concatenate([end == end, valid], axis=-1)
    return _weights(form, nodes, valid, half)


def _weights(form, nodes, valid, half):
    weights = form.weights(nodes, valid)
    if half is None or nodes.shape[1] < 2:
        return weights
    xp, two = form.xp, valid.sum(-1) == 2
    h = xp.where(form.finite, form.h, 1.0)
    gap = xp.where(two, nodes[:, 1] - nodes[:, 0], 1.0)
    slope = 0.5 * h * (form.gain * h if half == "bh1" else form.mass)
    second = (slope - nodes[:, 0] * form.mass) / gap  # nodes are relative to the step's start
    simple = widened(xp, xp.stack([form.mass - second, second], axis=-1), nodes.shape[1])
    return xp.where(two[:, None], simple, weights)
