"""Exponential multistep methods in log-SNR: one generator of weights, and its presets.

For the step from `s` to `t`, `h = log_snr(t) - log_snr(s)`, the reverse SDE with noise level `tau`
(0: the probability-flow ODE, 1: the reverse of the forward SDE) has the exact solution

    x_t = (c_t / c_s) exp(-tau^2 h) x_s + a_t integral_0^h k exp(-k (h - u)) D(u) du
          + c_t sqrt(1 - exp(-2 tau^2 h)) noise,    k = 1 + tau^2

and a method replaces `D` by the polynomial through its last evaluations.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_choice, check_order, concrete, namespace, safe_divide, safe_sqrt
from jaxdiff.processes.linear import LinearProcess
from jaxdiff.solvers.tableau import linear, table
from jaxdiff.solvers.variance import EstimateError

POINTS, MASSES = np.polynomial.legendre.leggauss(64)
POINTS, MASSES = 0.5 * (POINTS + 1)[None], 0.5 * MASSES[None]  # on [0, 1]; exact to rounding for k h <= 100


def dpmpp_multistep(order=2, tau=0.0, rule=None, lower_order_final=False, published=False):
    """DPM-Solver++ multistep, of order 1, 2 or 3, and its SDE variants.

    With `m = 1 - exp(-(1 + tau^2) h)` and `r = h_prev / h`:

        order 1    x_t = (c_t / c_s) exp(-tau^2 h) x_s + a_t m D_0 + c_t sqrt(1 - exp(-2 tau^2 h)) noise
        order 2    D_0 + (D_0 - D_1) / (2 r) in place of D_0
        order 3    the quadratic through the last three estimates, integrated exactly

    Lu et al. (2022), arXiv:2211.01095 (2M, and SDE-2M at tau = 1). The third order of the published
    code lacks a factor 2 in its second difference and measures second order; this one measures third.
    The first steps have order 1, 2, ..., which shows as second order where a grid starts at moderate
    noise instead of the prior; a step to c = 0 returns the clean estimate. With tau > 0 the law of the
    samples converges at second order at most: the noise within a step limits it.

    Args:
      order: 1, 2 or 3.
      tau: noise level of the reverse SDE, at least 0 (0: the ODE, 1: the forward SDE's, more: more): a
        number, `(steps,)` numbers, or a function of the `(steps,)` times at which the steps start.
      rule: "midpoint" (the paper's second order, above; its default) or "lagrange" (the polynomial
        integrated exactly; the only rule of other orders).
      lower_order_final: whether the order falls to 2 and 1 in the last steps, as is advised for few
        steps to an end with c > 0.
      published: third order as published, for parity. `rule` is then that of its second-order steps:
        "lagrange" (k-diffusion) or "midpoint" (diffusers).
    """
    return _checked_multistep("dpmpp_multistep", "data", order, tau, rule, lower_order_final, published)


def dpm_multistep(order=2, tau=0.0, rule=None, lower_order_final=False, published=False):
    """DPM-Solver multistep: `dpmpp_multistep` in noise prediction, and its SDE variants.

    With `m = (1 + tau^2) (exp(h) - 1)`, `r = h_prev / h` and `E = (x - a D) / c`:

        order 1    x_t = (a_t / a_s) x_s - c_t m E_0 + tau c_t sqrt(exp(2 h) - 1) noise
        order 2    E_0 + (E_0 - E_1) / (2 r) in place of E_0
        order 3    the quadratic through the last three, integrated exactly

    Lu et al. (2022), arXiv:2206.00927, and (2022), arXiv:2211.01095. Arguments as `dpmpp_multistep`.
    """
    return _checked_multistep("dpm_multistep", "noise", order, tau, rule, lower_order_final, published)


def ddim(eta=0.0, variance="small"):
    """DDIM: the first-order method, with `eta` from the ODE (0) to ancestral sampling (1).

        x_t = a_t D + c_t sqrt(1 - eta^2 kappa) E + sqrt(eta^2 c_t^2 kappa + A^2 v) noise
        E = (x_s - a_s D) / c_s,    kappa = 1 - exp(-2 h),    A = a_t - a_s (c_t / c_s) sqrt(1 - eta^2 kappa)

    with `v = 0`: Song et al. (2021), arXiv:2010.02502, eq. 12 and 16, for any process. `A` is the
    weight of D in the step and `v` the variance of x0 given x_s, which other choices of `variance` add.

    Args:
      eta: in [0, 1]: a number, `(steps,)` numbers or a function of time, as `tau` in `dpmpp_multistep`.
      variance: "small" (v = 0), "large" (v = c_s^2 / (a_s^2 + c_s^2), as of data with variance 1), or
        statistics of `fit_estimate_error`: v as measured, the optimum of Bao et al. (2022),
        arXiv:2201.06503, theorem 1 (Analytic-DDIM). The step to data adds no noise.
    """
    return _first_order("ddim", eta, variance)


def ancestral(variance="small"):
    """Ancestral sampling: the posterior `q(x_t | x_s, x0 = D)`, t < s; `ddim(1, variance)`.

    Ho et al. (2020), arXiv:2006.11239, algorithm 2: "small" is the posterior's own variance, "large" is
    their beta_t for variance preserving processes, and statistics of `fit_estimate_error` give
    Analytic-DPM (Bao et al. (2022), arXiv:2201.06503).
    """
    return _first_order("ancestral", 1.0, variance)


def _first_order(where, eta, variance):
    if isinstance(variance, str):
        check_choice(where, "variance", variance, ("small", "large"))
    elif not isinstance(variance, EstimateError):
        raise ValueError(
            f"{where}: expected variance 'small', 'large' or the EstimateError of fit_estimate_error, got "
            f"{variance!r}"
        )
    return linear(where, _ddim, eta=check_level(where, eta, "eta in [0, 1]", 1.0), variance=variance)


def check_level(where, value, expected="tau of at least 0", most=np.inf):
    """A noise level as a setting: a number, `(steps,)` numbers or a function of time; checked."""
    known = None if callable(value) else concrete(value)
    if known is None:
        return value
    number = known.ndim < 2 and known.dtype.kind in "iuf"
    if not number or not np.all((known >= 0) & (known <= most) & (known < np.inf)):
        raise ValueError(f"{where}: expected {expected}, got {value}")
    return float(known) if known.ndim == 0 else known.astype(np.float64)


def level_of_steps(tau, grid, where="tau", *limits):
    """The noise level of every step, `(steps,)`; `limits` as of `check_level`, for functions of time."""
    steps = grid.shape[0] - 1
    if callable(tau):
        tau = check_level(where, 1.0 * tau(grid[:-1]), *limits)
    if np.shape(tau) not in ((), (steps,)):
        raise ValueError(
            f"noise level: expected a number or one for each of {steps} steps, got shape {np.shape(tau)}"
        )
    known = concrete(tau)
    return jnp.broadcast_to(tau, (steps,)) if known is None else np.full(steps, known, np.float64)


def is_noisy(tau):
    """Whether a noise level may be above 0."""
    known = concrete(tau)
    return known is None or bool(np.any(known > 0))


def _checked_multistep(where, prediction, order, tau, rule, lower_order_final, published):
    order = check_order(where, order, (1, 2, 3))
    if published and order != 3:
        raise ValueError(f"{where}: published=True is a third order, got order {order}; leave it out")
    rule = rule or ("midpoint" if order == 2 else "lagrange")
    if rule not in ("midpoint", "lagrange") or (rule == "midpoint" and order != 2 and not published):
        raise ValueError(
            f"{where}: expected rule 'lagrange', or 'midpoint' for order 2, got {rule!r} for order {order}"
        )
    return linear(
        f"{where}({order})",
        _multistep,
        prediction=prediction,
        order=order,
        rule=rule,
        lower_order_final=lower_order_final,
        published=published,
        tau=check_level(where, tau),
    )


def _multistep(process, grid, prediction, order, rule, lower_order_final, published, tau):
    form = Form.of(process, grid, prediction, tau)
    nodes, valid = history_nodes(form, order, lower_order_final)
    weights = form.weights(nodes, valid)
    if rule == "midpoint":
        second = widened(form.xp, _midpoint_weights(form, nodes, valid), order)
        weights = form.xp.where((valid.sum(-1) == 2)[:, None], second, weights)
    if published:
        weights = _with_half_the_second_difference(form, nodes, valid, weights)
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
        """The steps of a grid; `tau` as in `dpmpp_multistep`."""
        return cls.between(process, grid[:-1], grid[1:], prediction, level_of_steps(tau, grid))

    @classmethod
    def between(cls, process, s, t, prediction="data", tau=0.0):
        """The steps from times `s` to times `t`, both `(steps,)`; `tau` a number or `(steps,)`."""
        (a_s, _, c_s), (a_t, _, c_t) = process.coefficients(s), process.coefficients(t)
        start = process.log_snr(s)
        xp = namespace(s, start, t, tau)
        with np.errstate(invalid="ignore"):  # NaN, which is not finite, where neither time has noise
            h = process.log_snr(t) - start
        finite = namespace(h).isfinite(h)  # known where the grid is, whatever tau
        k = 1 + tau**2 * xp.ones_like(h)
        x_s, noise = transition(xp, c_s, c_t, h, tau)
        limit = a_t - a_s * noise_ratio(c_s, c_t)  # what is left of the first-order step where h is infinite
        scale, keep, rate = xp.where(finite, a_t, limit), None, -k
        if prediction == "noise":
            step = xp.where(finite, h, 0.0)
            x_s = xp.where(finite, a_t / xp.where(finite, a_s, 1.0), x_s)
            noise = xp.where(finite, tau * c_t * safe_sqrt(xp.expm1(2 * step)), noise)
            scale = xp.where(finite, -c_t, limit)
            safe = xp.where(finite, c_s, 1.0)
            keep = [xp.where(finite, 1 / safe, 0.0), xp.where(finite, -a_s / safe, 1.0)]
            rate = xp.ones_like(h)
        return cls(xp, s, start, h, finite, x_s, scale, noise, keep, k, rate, is_noisy(tau))

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
        points, kernel = self._quadrature
        if coordinate is not None:
            start = xp.where(xp.isfinite(self.start), self.start, 0.0)
            points = coordinate(start[:, None] + points)
        rest = [(kernel * lagrange(xp, j, points, nodes, valid)).sum(-1) for j in range(1, nodes.shape[1])]
        return xp.stack([self.mass - sum(rest), *rest], axis=-1)

    @property
    def _quadrature(self):
        """Points within the steps and what they weigh there with the kernel, both `(steps, points)`."""
        step = self.xp.where(self.finite, self.h, 1.0)[:, None]
        decay = self.xp.exp(self.rate[:, None] * step * (1 - POINTS))
        return step * POINTS, self.gain[:, None] * step * decay * MASSES

    def moment(self, power):
        """`integral_0^h k exp(rate (h - u)) u^power du`, `(steps,)`."""
        points, kernel = self._quadrature
        return (kernel * points**power).sum(-1)

    def table(self, weights):
        """The multistep tableau with these weights on the present and the past."""
        columns = [self.scale * weights[:, j] for j in range(weights.shape[1])]
        columns = [self.x_s, 0.0, *columns, self.noise]
        return table(self.t, columns, keep=self.keep, noisy=self.noisy)


def noise_ratio(c_s, c_t):
    """`c_t / c_s`, and 0 between times that both have no noise, as on a path of `c = 0`."""
    xp = namespace(c_s, c_t)
    return c_t / xp.where((c_s == 0) & (c_t == 0), 1.0, c_s)


def transition(xp, c_s, c_t, h, tau):
    """Weights of `x_s` and of the noise: `(c_t / c_s) exp(-tau^2 h)`, `c_t sqrt(1 - exp(-2 tau^2 h))`.

    Where `h` is infinite (a step from a = 0, or to c = 0) they are the limits.
    """
    finite = xp.isfinite(h)
    exponent = tau**2 * xp.where(finite, h, 0.0)
    still = xp.where(finite, xp.exp(-exponent), xp.where(tau > 0, 0.0, 1.0))
    drawn = xp.where(finite, -xp.expm1(-2 * exponent), xp.where(tau > 0, 1.0, 0.0))
    return noise_ratio(c_s, c_t) * still, c_t * safe_sqrt(drawn)


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


def widened(xp, weights, width):
    """`(steps, n)` weights with columns of zeros up to `width`."""
    return xp.concatenate([weights, np.zeros((weights.shape[0], width - weights.shape[1]))], axis=-1)


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
    """The second order that takes the slope at the middle of the step: on the last two estimates."""
    xp = form.xp
    back = xp.where(valid[:, 1], -nodes[:, 1], 1.0)
    slope = xp.where(valid[:, 1], form.mass * xp.where(form.finite, form.h, 0.0) / (2 * back), 0.0)
    return xp.stack([form.mass + slope, -slope], axis=-1)


def _with_half_the_second_difference(form, nodes, valid, weights):
    """The third order of published code: the quadratic less half of its square term."""
    xp, full = form.xp, valid.all(-1)[:, None]
    zero, one, two = (xp.where(full, nodes, -np.arange(3.0))[:, j] for j in range(3))
    gaps = ((zero - one) * (zero - two), (one - zero) * (one - two), (two - zero) * (two - one))
    square = xp.stack([form.moment(2) / gap for gap in gaps], axis=-1)
    return xp.where(full, weights - 0.5 * square, weights)


def _ddim(process, grid, eta, variance):
    eta = level_of_steps(eta, grid, "ddim", "eta of at least 0 and at most 1", 1.0)
    a, _, c = process.coefficients(grid)
    log_snr = process.log_snr(grid)
    xp = namespace(grid, log_snr, eta, variance)
    with np.errstate(invalid="ignore"):  # no noise at either end
        h = log_snr[1:] - log_snr[:-1]
    kappa = xp.where(xp.isfinite(h), -xp.expm1(-2 * xp.where(xp.isfinite(h), h, 0.0)), 1.0)
    if getattr(type(process), "gain", None) not in (None, LinearProcess.gain):
        # a transition of its own, which a / c does not tell
        with np.errstate(divide="ignore", invalid="ignore"):  # from data up to a = 0
            r = process.gain(grid[:-1], grid[1:]) * safe_divide(c[1:], c[:-1])
            kappa = (1 - r) * (1 + r)
        kappa = xp.where(xp.isfinite(kappa), kappa, 1.0)
    x_s = safe_divide(c[1:], c[:-1]) * safe_sqrt(1 - eta**2 * kappa)
    clean = a[1:] - a[:-1] * x_s
    noise = eta * c[1:] * safe_sqrt(kappa)
    if variance != "small":
        large = c[:-1] ** 2 / (a[:-1] ** 2 + c[:-1] ** 2)
        spread = large if isinstance(variance, str) else variance.at(process, grid[:-1])
        noise = xp.where(c[1:] == 0, 0.0, safe_sqrt(noise**2 + clean**2 * spread))
    return table(grid[:-1], [x_s, 0.0, clean, noise], noisy=is_noisy(eta) or variance != "small")
