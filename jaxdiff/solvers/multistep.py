"""Multistep methods beside DPM-Solver: UniPC, DEIS, LMS, Adams-Bashforth, pseudo numerical methods."""

import numpy as np

from jaxdiff.core import check_choice, check_order, namespace
from jaxdiff.solvers.exponential import Form, history_nodes, lagrange
from jaxdiff.solvers.runge_kutta import COORDINATES, slope
from jaxdiff.solvers.sa import adams
from jaxdiff.solvers.tableau import linear, table


def unipc(order=3, variant="bh2", corrector=True, prediction="data", lower_order_final=True, published=False):
    """UniPC: an exponential Adams-Bashforth predictor and, at no further evaluation, its corrector.

    Row i corrects the last step with its new estimate, then predicts from the corrected point:

        x~_i    = (c_i / c_(i-1)) x~_(i-1) + a_i sum_j w_j D_(i-j),       polynomial through i, i - 1, ...
        x_(i+1) = (c_(i+1) / c_i) x~_i + a_(i+1) sum_j v_j D_(i-j)

    Order p + 1 with corrector, p without. Zhao et al. (2023), arXiv:2302.04867. The weights solve the
    paper's system exactly, and then its two choices of B(h) agree; with `published=True` the predictor
    of order 2 and the corrector of order 1 use the paper's coefficient 1/2, where they differ.

    Args:
      order: p, 1 to 4; 1, 2, ... in the first steps.
      variant: "bh1" (B = h) or "bh2" (B = exp(h) - 1).
      corrector: whether steps are corrected; the last one never is.
      prediction: "data" or "noise".
      lower_order_final: whether the order falls to 1 in the last steps, as in the paper.
      published: use the paper's 1/2.
    """
    order = check_order("unipc", order, (1, 2, 3, 4))
    check_choice("unipc", "variant", variant, ("bh1", "bh2"))
    check_choice("unipc", "prediction", prediction, ("data", "noise"))
    check_choice("unipc", "corrector", corrector, (True, False))
    return linear(
        f"unipc({order})",
        adams,
        predictor=order,
        corrector=order + 1 if corrector else 0,
        prediction=prediction,
        lower_order_final=lower_order_final,
        half=variant if published else None,
        tau=0,
    )


def deis(order=3, coordinate="time", lower_order_final=False):
    """DEIS: noise prediction interpolated by a polynomial in time (tAB) or in sigma (rhoAB).

        x_t = a_t (x_s / a_s + sum_j C_j E_j),    C_j = integral l_j d(c / a)

    Zhang and Chen (2023), arXiv:2204.13902, eq. 14 and 15. In log-SNR it is `dpm_multistep`.

    Args:
      order: number of noise estimates, 1 to 4 (the paper's tAB r is order r + 1).
      coordinate: "time", "sigma" or "log_snr".
      lower_order_final: whether the order falls to 1 in the last steps.
    """
    return _adams("deis", order, coordinate, lower_order_final)


def lms(order=4):
    """Linear multistep on `dx / dsigma = E` in sigma = c / a, polynomials integrated exactly.

    `deis` in sigma; Katherine Crowson's k-diffusion, at any process. Order 1, 2, ... in the first steps.
    """
    return _adams("lms", order, "sigma", False)


def adams_bashforth(order=2, coordinate="time"):
    """Adams-Bashforth on the probability-flow ODE, step sizes free: for flows, on the velocity.

        z_t = z_s + sum_j (integral l_j dtheta) slope_j,    z = x / s(t), theta the coordinate

    with the coordinates of `runge_kutta`.
    """
    order = check_order("adams_bashforth", order, (1, 2, 3, 4))
    check_choice("adams_bashforth", "coordinate", coordinate, COORDINATES)
    return linear(f"adams_bashforth({order})", _adams_bashforth, order=order, coordinate=coordinate)


PLMS = ((1.0,), (1.5, -0.5), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def plms(order=4):
    """Pseudo linear multistep: DDIM steps with an Adams-Bashforth average of the noise estimates.

        x_t = (a_t / a_s) x_s + (c_t - a_t c_s / a_s) e',    e' = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24

    Liu et al. (2022), arXiv:2202.09778, eq. 12, started by the lower orders ((3 e_0 - e_1) / 2, then
    (23 e_0 - 16 e_1 + 5 e_2) / 12): one evaluation a step. Order 2 is S-PNDM's. For grids uniform in time.
    """
    order = check_order("plms", order, (1, 2, 3, 4))
    return linear(f"plms({order})", _plms, order=order)


def ipndm(order=4):
    """Improved PNDM: `plms` by its other name, a multistep average from the first step on.

        x_t = (a_t / a_s) x_s + (c_t - a_t c_s / a_s) e',    e' = e_0, (3 e_0 - e_1) / 2, ... , as `plms`

    Zhang and Chen (2023), arXiv:2204.13902, appendix; in the coordinates `a = cos, c = sin` of its first
    implementation, `e = c x + a v` is the noise estimate whatever the process. The averages are those of
    equal steps; with the steps taken into account the method is `lms`.

    Args:
      order: number of noise estimates averaged, 1 to 4.
    """
    order = check_order("ipndm", order, (1, 2, 3, 4))
    return plms(order).replace(name=f"ipndm({order})")


def _adams(name, order, coordinate, lower_order_final):
    order = check_order(name, order, (1, 2, 3, 4))
    check_choice(name, "coordinate", coordinate, COORDINATES)
    return linear(
        f"{name}({order})", _deis, order=order, coordinate=coordinate, lower_order_final=lower_order_final
    )


def _deis(process, grid, order, coordinate, lower_order_final):
    form = Form.of(process, grid, "noise")
    nodes, valid = history_nodes(form, order, lower_order_final)
    if coordinate == "log_snr":
        return form.table(form.weights(nodes, valid))
    xp = form.xp
    variable = {"time": process.time_of_log_snr, "sigma": lambda log_snr: xp.exp(-log_snr)}[coordinate]
    start = xp.where(xp.isfinite(form.start), form.start, 0.0)[:, None]
    return form.table(form.weights(variable(start + nodes), valid, variable))


def _adams_bashforth(process, grid, order, coordinate):
    xp = namespace(grid, process)
    form = Form.of(process, grid)  # for which steps are finite, and for the limits of those that are not
    scale, p, q = slope(process, grid, coordinate)
    single = ~form.finite if coordinate != "time" else process.coefficients(grid[1:])[2] == 0
    log_snr = xp.where(xp.isfinite(process.log_snr(grid)), process.log_snr(grid), 0.0)
    theta = {"time": grid, "log_snr": log_snr, "sigma": xp.exp(-log_snr)}[coordinate]
    row, back = np.arange(grid.shape[0] - 1)[:, None], np.arange(order)[None]
    known = xp.isfinite(form.start) | (coordinate == "time")
    valid = (row >= back) & known[np.maximum(row - back, 0)]
    nodes = theta[np.maximum(row - back, 0)] - theta[:-1, None]
    weights = _polynomial_weights(xp, theta[1:] - theta[:-1], nodes, valid)
    ratio = scale[1:] / xp.where(scale[:-1] == 0, 1.0, scale[:-1])
    move = [ratio, 0.0, *[scale[1:] * weights[:, j] for j in range(order)], 0.0]
    direct = [form.x_s, 0.0, form.scale, *[0.0] * (order - 1), 0.0]
    move = [xp.where(single, d, m) for d, m in zip(direct, move, strict=True)]
    keep = (xp.where(single, 0.0, p[:-1]), xp.where(single, 1.0, q[:-1]))
    return table(grid[:-1], move, keep=keep, noisy=False)


def _polynomial_weights(xp, step, nodes, valid):
    """Integrals of Lagrange polynomials over a step: the kernel is 1."""
    points, masses = np.polynomial.legendre.leggauss(4)
    u = step[:, None] * (0.5 * (points + 1)[None])
    return xp.stack(
        [
            (lagrange(xp, j, u, nodes, valid) * (0.5 * masses[None]) * step[:, None]).sum(-1)
            for j in range(nodes.shape[1])
        ],
        axis=-1,
    )


def _plms(process, grid, order):
    form = Form.of(process, grid, "noise")
    _, valid = history_nodes(form, order)
    xp = form.xp
    averages = xp.asarray([[*w, *[0.0] * (4 - len(w))] for w in PLMS])[:, :order]
    return form.table(form.mass[:, None] * averages[valid.sum(-1) - 1])
