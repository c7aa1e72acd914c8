"""ER-SDE-Solver: extended reverse-time SDEs, given by a function of the noise level."""

import dataclasses

import numpy as np

from jaxdiff.core import check_order, concrete, namespace, safe_sqrt
from jaxdiff.solvers.exponential import MASSES, POINTS, Form, check_level, history_nodes
from jaxdiff.solvers.tableau import linear


def er_sde(order=3, noise_scale=None, published=False):
    """ER-SDE-Solver-1, -2, -3, on the estimates in `rho = c / a`.

    With the noise scale function f and `r = f(rho_t) / f(rho_s)`, and D(u) the polynomial through the
    last estimates at their rho:

        x_t = (a_t / a_s) r x_s + a_t ((1 - r) D_0 - integral_(rho_t)^(rho_s) (1 - f(rho_t) / f(u)) D'(u) du)
              + a_t sqrt(rho_t^2 - r^2 rho_s^2) noise

    Cui et al. (2023), arXiv:2309.06169, proposition 2 and algorithms 1 to 3. f(rho) = rho is the ODE,
    rho^(1 + tau^2) the reverse SDE of noise level tau. The paper's third order takes a backward
    difference for the first derivative and measures second order; this one is centred, and third. The
    first steps have order 1, 2, ...; a step to c = 0 returns the clean estimate, and one from a = 0 is
    that of DDIM, or of ancestral sampling where there is noise.

    Args:
      order: 1, 2 or 3.
      noise_scale: f, a function of `(...,)` positive rho for which f(rho) / rho does not decrease; a
        number tau of at least 0; by default the paper's `rho (exp(rho^0.3) + 10)`.
      published: third order with the paper's backward difference.
    """
    order = check_order("er_sde", order, (1, 2, 3))
    if published and order != 3:
        raise ValueError(f"er_sde: published=True is a third order, got order {order}; leave it out")
    scale = default_noise_scale if noise_scale is None else noise_scale
    if not callable(scale):
        scale = check_level("er_sde", scale)
        if np.ndim(scale):
            raise ValueError(f"er_sde: expected one number or a function of rho, got shape {np.shape(scale)}")
    return linear(f"er_sde({order})", _er_sde, order=order, noise_scale=scale, published=published)


def default_noise_scale(rho):
    """`rho (exp(rho^0.3) + 10)`, the SDE that Cui et al. (2023), arXiv:2309.06169, prefer."""
    return rho * (namespace(rho).exp(rho**0.3) + 10)


def _er_sde(process, grid, order, noise_scale, published):
    given = callable(noise_scale)
    form = Form.of(process, grid, tau=1.0 if given else noise_scale)
    xp = form.xp
    f = noise_scale if given else lambda rho: rho ** (1 + noise_scale**2)
    h = xp.where(form.finite, form.h, 1.0)
    rho = xp.exp(-xp.where(form.finite, form.start, 0.0))
    end = rho * xp.exp(-h)
    u = rho[:, None] * xp.exp(-h[:, None] * POINTS)
    measure = (1 - f(end)[:, None] / f(u)) * u * h[:, None] * MASSES  # du = -u d log_snr
    first, second = (-(measure * (u - rho[:, None]) ** power).sum(-1) for power in (0, 1))
    left = f(end) / f(rho)
    nodes, valid = history_nodes(form, order)
    gaps = rho[:, None] * xp.expm1(-nodes)
    total = xp.where(form.finite, 1 - left, 1.0)
    weights = _taylor_weights(xp, total, first, second, gaps, valid, published)
    if given:
        form = _with_noise_of(form, process.coefficients(grid)[2], left * xp.exp(h), rho)
    return form.table(weights)


def _with_noise_of(form, c, kept, rho):
    """The form with the share `r rho_s / rho_t` of the noise in x_s kept, and the rest drawn."""
    xp, known = form.xp, concrete(kept)
    if known is not None and not np.all(known <= 1 + 1e-9):
        raise ValueError(
            "er_sde: expected noise_scale f with f(rho) / rho not decreasing, got one that grows below "
            f"rho = {rho[np.argmax(known)]:g}"
        )
    kept = xp.minimum(kept, 1.0)
    return dataclasses.replace(
        form,
        x_s=xp.where(form.finite, c[1:] / c[:-1] * kept, form.x_s),
        noise=xp.where(form.finite, c[1:] * safe_sqrt(1 - kept**2), form.noise),
    )


def _taylor_weights(xp, total, first, second, gaps, valid, published):
    """Weights on the estimates from the integrals of 1, `D'` and `D''`, `rho_j = rho + gaps_j`."""
    if gaps.shape[1] == 1:
        return total[:, None]
    use = valid[:, 1]
    one = xp.where(use, gaps[:, 1], 1.0)
    slope, bend, between = xp.where(use, first, 0.0), 0.0, 1.0
    if gaps.shape[1] == 3:
        use = valid[:, 2]
        two = xp.where(use, gaps[:, 2], 2 * one)
        between = two - one
        centre = 0.0 if published else 0.5 * one
        bend = xp.where(use, 2 * (second - centre * first) / two, 0.0)
    rest = [slope / one - bend * (1 / between + 1 / one), bend / between][: gaps.shape[1] - 1]
    return xp.stack([total - sum(rest), *rest], axis=-1)
