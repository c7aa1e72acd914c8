"""Exponential multistep methods in log-SNR: one generator of weights, and its presets.

For the step from `s` to `t`, `h = log_snr(t) - log_snr(s)`, the reverse SDE with noise level `tau`
(0: the probability-flow ODE, 1: the reverse of the forward SDE) has the exact solution

    x_t = (c_t / c_s) exp(-tau^2 h) x_s + a_t integral_0^h k exp(-k (h - u)) D(u) du
          + c_t sqrt(1 - exp(-2 tau^2 h)) noise,    k = 1 + tau^2

and a method replaces `D` by the polynomial through its last evaluations.
"""

import dataclasses

import numpy as np

from jaxdiff.core import concrete, namespace, safe_sqrt
from jaxdiff.solvers.tableau import linear, table

POINTS, MASSES = np.polynomial.legendre.leggauss(64)
POINTS, MASSES = 0.5 * (POINTS + 1)[None], 0.5 * MASSES[None]  # on [0, 1]; exact to rounding for k h <= 100


def dpmpp_multistep(order=2, tau=0.0, rule=None, lower_order_final=False):
    """DPM-Solver++ multistep, of order 1, 2 or 3, and its SDE variants.

    With `m = 1 - exp(-(1 + tau^2) h)` and `r = h_prev / h`:

        order 1    x_t = (c_t / c_s) exp(-tau^2 h) x_s + a_t m D_0 + c_t sqrt(1 - exp(-2 tau^2 h)) noise
        order 2    D_0 + (D_0 - D_1) / (2 r) in place of D_0
        order 3    the quadratic through the last three estimates, integrated exactly

    Lu et al. (2022), arXiv:2211.01095 (2M, and SDE-2M at tau = 1). The published third order lacks a
    factor 2 in its second difference and measures second order; this one measures third. The first
    steps have order 1, 2, ..., which shows as second order where a grid starts at moderate noise
    instead of the prior; a step to c = 0 returns the clean estimate. With tau > 0 the law of the
    samples converges at second order at most: the noise within a step limits it.

    Args:
      order: 1, 2 or 3.
      tau: noise level of the reverse SDE, at least 0.
      rule: "midpoint" (the paper's second order, above; its default) or "lagrange" (the polynomial
        integrated exactly; the only rule of other orders).
      lower_order_final: whether the order falls to 2 and 1 in the last steps, as is advised for few
        steps to an end with c > 0.
    """
    return _checked_multistep("dpmpp_multistep", "data", order, tau, rule, lower_order_final)


def dpm_multistep(order=2, tau=0.0, rule=None, lower_order_final=False):
    """DPM-Solver multistep: `dpmpp_multistep` in noise prediction, and its SDE variants.

    With `m = (1 + tau^2) (exp(h) - 1)`, `r = h_prev / h` and `E = (x - a D) / c`:

        order 1    x_t = (a_t / a_s) x_s - c_t m E_0 + tau c_t sqrt(exp(2 h) - 1) noise
        order 2    E_0 + (E_0 - E_1) / (2 r) in place of E_0
        order 3    the quadratic through the last three, integrated exactly

    Lu et al. (2022), arXiv:2206.00927, and (2022), arXiv:2211.01095. Arguments as `dpmpp_multistep`.
    """
    return _checked_multistep("dpm_multistep", "noise", order, tau, rule, lower_order_final)


def ddim(eta=0.0):
    """DDIM: the first-order method, with `eta` from the ODE (0) to ancestral sampling (1).

        x_t = a_t D + c_t sqrt(1 - eta^2 kappa) E + eta c_t sqrt(kappa) noise
        E = (x_s - a_s D) / c_s,    kappa = 1 - exp(-2 h)

    Song et al. (2021), arXiv:2010.02502, eq. 12 and 16, for any process.
    """
    if isinstance(eta, (int, float)) and not 0 <= eta <= 1:
        raise ValueError(f"ddim: expected eta in [0, 1], got {eta}")
    return linear("ddim", _ddim, eta=_number(eta))


def ancestral():
    """Ancestral sampling: the exact posterior `q(x_t | x_s, x0 = D)`, t < s; `ddim(eta=1)`.

    Ho et al. (2020), arXiv:2006.11239, algorithm 2, with the smaller of its two variances.
    """
    return linear("ancestral", _ddim, eta=1.0)


def _number(value):
    return float(value) if isinstance(value, int) else value


def _checked_multistep(where, prediction, order, tau, rule, lower_order_final):
    if order not in (1, 2, 3):
        raise ValueError(f"{where}: expected order 1, 2 or 3, got {order}")
    rule = rule or ("midpoint" if order == 2 else "lagrange")
    if rule not in ("midpoint", "lagrange") or (rule == "midpoint" and order != 2):
        raise ValueError(
            f"{where}: expected rule 'lagrange', or 'midpoint' for order 2, got {rule!r} for order {order}"
        )
    if isinstance(tau, (int, float)) and tau < 0:
        raise ValueError(f"{where}: expected tau of at least 0, got {tau}")
    return linear(
        f"{where}({order})",
        _multistep,
        prediction=prediction,
        order=order,
        rule=rule,
        lower_order_final=lower_order_final,
        tau=_number(tau),
    )


def _multistep(process, grid, prediction, order, rule, lower_order_final, tau):
    form = Form.of(process, grid, prediction, tau)
    nodes, valid = history_nodes(form, order, lower_order_final)
    if rule == "midpoint":
        weights = _midpoint_weights(form, nodes, valid)
    else:
        weights = form.weights(nodes, valid)
    return form.table(weights)


@dataclasses.dataclass(frozen=True)
class Form:
    """The exact solution of a step, in data or in noise prediction, but for the integral's weights.

    Data prediction is displayed at the top of this module. In noise prediction, E = (x - a D) / c,

        x_t = (a_t / a_s) x_s - c_t integral_0^h k exp(h - u) E(u) du + tau c_t sqrt(exp(2 h) - 1) noise

    Steps from or to a = 0, or to c = 0, have no finite log-SNR step: they are the limit of the
    first-order step in data prediction, whatever the form. Arrays have one entry a step.
    """

    xp: object
    t: object  # times of the steps' starts
    start: object  # log-SNR there
    h: object
    finite: object
    x_s: object
    scale: object  # of the integral: a_t or -c_t
    noise: object
    keep: object
    gain: object  # k
    rate: object  # of the kernel k exp(rate (h - u))
    noisy: bool

    @classmethod
    def of(cls, process, grid, prediction="data", tau=0.0):
        """The steps of a grid."""
        return cls.between(process, grid[:-1], grid[1:], prediction, tau)

    @classmethod
    def between(cls, process, s, t, prediction="data", tau=0.0):
        """The steps from times `s` to times `t`, both `(steps,)`."""
        (a_s, _, c_s), (a_t, _, c_t) = process.coefficients(s), process.coefficients(t)
        start = process.log_snr(s)
        xp = namespace(s, start, t, tau)
        h = process.log_snr(t) - start
        finite, k = xp.isfinite(h), 1 + tau**2
        x_s, noise = transition(xp, c_s, c_t, h, tau)
        limit = a_t - a_s * c_t / c_s  # what is left of the first-order step where h is infinite
        scale, keep, rate = xp.where(finite, a_t, limit), None, -k
        if prediction == "noise":
            step = xp.where(finite, h, 0.0)
            x_s = xp.where(finite, a_t / xp.where(finite, a_s, 1.0), x_s)
            noise = xp.where(finite, tau * c_t * safe_sqrt(xp.expm1(2 * step)), noise)
            scale = xp.where(finite, -c_t, limit)
            keep = (xp.where(finite, 1 / c_s, 0.0), xp.where(finite, -a_s / c_s, 1.0))
            rate = 1.0
        noisy = concrete(tau) is None or bool(np.any(concrete(tau) > 0))
        return cls(xp, s, start, h, finite, x_s, scale, noise, keep, k, rate, noisy)

    @property
    def mass(self):
        """`integral_0^h k exp(rate (h - u)) du`: the weight of a constant estimate."""
        step = self.xp.where(self.finite, self.h, 1.0)
        return self.xp.where(self.finite, self.gain * self.xp.expm1(self.rate * step) / self.rate, 1.0)

    def weights(self, nodes, valid, coordinate=None):
        """`w_j = integral_0^h k exp(rate (h - u)) l_j du` for Lagrange polynomials on the nodes.

        Args:
          nodes: `(steps, q)`, relative to the start of the step in log-SNR; or in the values of
            `coordinate`.
          valid: `(steps, q)`, which nodes take part.
          coordinate: log-SNR -> the variable in which the estimates are interpolated; log-SNR if None.

        Returns:
          `(steps, q)` weights, with a sum of `mass` exactly.
        """
        xp = self.xp
        step = xp.where(self.finite, self.h, 1.0)[:, None]
        kernel = self.gain * step * xp.exp(self.rate * step * (1 - POINTS)) * MASSES  # (steps, points)
        points = step * POINTS
        if coordinate is not None:
            start = xp.where(xp.isfinite(self.start), self.start, 0.0)
            points = coordinate(start[:, None] + points)
        rest = [
            (kernel * lagrange(xp, j, points, nodes, valid)).sum(-1) for j in range(1, nodes.shape[1])
        ]
        return xp.stack([self.mass - sum(rest), *rest], axis=-1)

    def table(self, weights):
        """The multistep tableau with these weights on the present and the past."""
        columns = [self.scale * weights[:, j] for j in range(weights.shape[1])]
        columns = [self.x_s, 0.0, *columns, self.noise]
        return table(self.t, columns, keep=self.keep, noisy=self.noisy)


def transition(xp, c_s, c_t, h, tau):
    """Weights of `x_s` and of the noise: `(c_t / c_s) exp(-tau^2 h)`, `c_t sqrt(1 - exp(-2 tau^2 h))`.

    Where `h` is infinite (a step from a = 0, or to c = 0) they are the limits.
    """
    finite = xp.isfinite(h)
    exponent = tau**2 * xp.where(finite, h, 0.0)
    still = xp.where(finite, xp.exp(-exponent), xp.where(tau > 0, 0.0, 1.0))
    drawn = xp.where(finite, -xp.expm1(-2 * exponent), xp.where(tau > 0, 1.0, 0.0))
    return c_t / c_s * still, c_t * safe_sqrt(drawn)


def history_nodes(form, order, lower_order_final=False):
    """Where on the log-SNR axis the last evaluations lie, relative to the present one.

    Returns:
      Nodes `(steps, order)`, the present one (0) first; and which of them may be used, `(steps, order)`:
      those that exist, have a finite log-SNR and do not enter an infinite step.
    """
    xp, steps = form.xp, form.t.shape[0]
    row, back = np.arange(steps)[:, None], np.arange(order)[None]
    past = form.start[np.maximum(row - back, 0)]
    limit = np.minimum(order, steps - row) if lower_order_final else np.full_like(row, order)
    usable = xp.isfinite(past) & form.finite[:, None] & (row - back >= 0) & (back < limit)
    present = xp.where(xp.isfinite(form.start), form.start, 0.0)[:, None]
    return xp.where(usable, past - present, 0.0), usable | (back == 0)


def lagrange(xp, j, u, nodes, valid):
    """`l_j(u)` for points `u` `(steps, points)`; 0 where node j takes no part."""
    value = xp.where(valid[:, j : j + 1], xp.ones_like(u), 0.0)
    for m in range(nodes.shape[1]):
        if m != j:
            use = (valid[:, j] & valid[:, m])[:, None]
            gap = xp.where(use, (nodes[:, j] - nodes[:, m])[:, None], 1.0)
            value = value * xp.where(use, (u - nodes[:, m : m + 1]) / gap, 1.0)
    return value


def _midpoint_weights(form, nodes, valid):
    xp = form.xp
    back = xp.where(valid[:, 1], -nodes[:, 1], 1.0)
    slope = xp.where(valid[:, 1], form.mass * xp.where(form.finite, form.h, 0.0) / (2 * back), 0.0)
    return xp.stack([form.mass + slope, -slope], axis=-1)


def _ddim(process, grid, eta):
    a, _, c = process.coefficients(grid)
    log_snr = process.log_snr(grid)
    xp = namespace(grid, log_snr, eta)
    h = log_snr[1:] - log_snr[:-1]
    kappa = xp.where(xp.isfinite(h), -xp.expm1(-2 * xp.where(xp.isfinite(h), h, 0.0)), 1.0)
    x_s = c[1:] / c[:-1] * safe_sqrt(1 - eta**2 * kappa)
    noise = eta * c[1:] * safe_sqrt(kappa)
    columns = [x_s, 0.0, a[1:] - a[:-1] * x_s, noise]
    return table(grid[:-1], columns, noisy=concrete(eta) is None or eta > 0)
