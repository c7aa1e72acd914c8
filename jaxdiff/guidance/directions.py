"""Guidance that changes the direction: projected, with its own zero, by frequency."""

import jax
import jax.numpy as jnp

from jaxdiff.core import check_one_ended, match_dims, safe_divide
from jaxdiff.guidance.classifier_free import both, strength_at


def projected(cond, uncond, scale, eta=0.0, norm=None):
    """Adaptive projected guidance: the part of the direction along the estimate is weakened.

        d = D_c - D_u, shortened to at most `norm`;   D = D_c + (scale - 1) (d_orthogonal + eta d_parallel)

    with the split along `D_c`; the parallel part is what saturates. Sadat et al. (2025), arXiv:2410.02416,
    algorithm 1; its momentum needs memory between steps: `remembering` and `momentum`.

    Args:
      cond, uncond, scale: as of `classifier_free`.
      eta: weight of the parallel part; 1 is classifier-free guidance.
      norm: bound on `|d|` of an example, or None.
    """

    def denoise(x, t):
        positive, negative = both(cond, uncond, x, t)
        strength = strength_at(scale, positive, t, "projected")
        return positive + (strength - 1) * along(positive, shortened(positive - negative, norm), eta)

    return denoise


def shortened(d, norm):
    """`d` with the norm of each example at most `norm`."""
    if norm is None:
        return d
    return d * jnp.minimum(1.0, safe_divide(norm, _norm(d), 1.0))


def along(reference, d, eta):
    """`d` with its part along the reference, example by example, multiplied by `eta`."""
    share = safe_divide(_dot(d, reference), _dot(reference, reference))
    return d + (eta - 1) * share * reference


def zero_star(cond, uncond, scale, process, zero_from=None):
    """CFG-Zero*: the unconditional velocity is scaled to fit the conditional one, and the start rests.

        s = <v_c, v_u> / |v_u|^2,   v = s v_u + scale (v_c - s v_u),   v = 0 for t >= zero_from

    with `v = P x + Q D`, `P = c' / c`, `Q = a' - a c' / c`, the velocity of the probability-flow ODE. Fan et
    al. (2025), arXiv:2503.18886.

    Args:
      cond, uncond, scale: as of `classifier_free`.
      process: forward process without a second endpoint.
      zero_from: time from which up to t_max the sample stays where it is; None for nowhere.
    """
    check_one_ended("zero_star", process)

    def denoise(x, t):
        positive, negative = both(cond, uncond, x, t)
        a, _, c = process.coefficients(t)
        da, _, dc = process.derivatives(t)
        p = safe_divide(dc, c)
        p, q = (match_dims(jnp.asarray(k, x.dtype), x, "zero_star") for k in (p, da - a * p))
        v_c, v_u = p * x + q * positive, p * x + q * negative
        fitted = safe_divide(_dot(v_c, v_u), _dot(v_u, v_u)) * v_u
        v = fitted + strength_at(scale, x, t, "zero_star") * (v_c - fitted)
        if zero_from is not None:
            v = jnp.where(match_dims(jnp.asarray(t) >= zero_from, x, "zero_star"), 0.0, v)
        return (v - p * x) / q

    return denoise


def frequency_decoupled(cond, uncond, scales):
    """A guidance scale for each band of a Laplacian pyramid, from fine to coarse.

    Low frequencies want little guidance and high ones more. Sadat et al. (2025), arXiv:2506.19713.

    Args:
      cond, uncond: as of `classifier_free`, for images `(batch, height, width, channels)`.
      scales: one per level; the sides have to be divisible by `2^(levels - 1)`.
    """
    if not scales:
        raise ValueError("frequency_decoupled: expected at least one scale, got none")

    def denoise(x, t):
        positive, negative = both(cond, uncond, x, t)
        bands = pyramid(positive - negative, len(scales))
        d = sum(
            strength_at(s, x, t, "frequency_decoupled") * band for s, band in zip(scales, bands, strict=True)
        )
        return negative + d

    return denoise


def pyramid(x, levels):
    """The bands of a Laplacian pyramid at full size, fine to coarse, with the sum `x`."""
    factor = 2 ** (levels - 1)
    if x.ndim != 4 or x.shape[1] % factor or x.shape[2] % factor:
        raise ValueError(
            f"frequency_decoupled: expected images (batch, height, width, channels) with sides divisible by "
            f"{factor} for {levels} levels, got {x.shape}"
        )
    lows = [x]
    for level in range(1, levels):
        small = x.reshape(x.shape[0], x.shape[1] // 2**level, 2**level, x.shape[2] // 2**level, 2**level, -1)
        lows.append(jax.image.resize(jnp.mean(small, axis=(2, 4)), x.shape, "bilinear"))
    return [fine - coarse for fine, coarse in zip(lows[:-1], lows[1:], strict=True)] + lows[-1:]


def _dot(one, other):
    return jnp.sum(one * other, axis=tuple(range(1, one.ndim)), keepdims=True)


def _norm(d):
    square = _dot(d, d)
    return jnp.sqrt(jnp.where(square > 0, square, 1.0)) * (square > 0)
