"""Classifier-free guidance: two clean estimates and the line through them."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import match_dims, safe_divide


def classifier_free(cond, uncond, scale, interval=None, rescale=0.0):
    """Extrapolates from the unconditional to the conditional clean estimate.

        D = D_u + scale (D_c - D_u)

    Ho and Salimans (2022), arXiv:2207.12598, with `scale = 1 + w`. A known scale of 1 or 0 evaluates
    one denoiser only. With a negative condition in the place of none, guidance leads away from it. Of tokens
    the estimates are logits, and their law is `p_u^(1 - scale) p_c^scale`. Pytrees of estimates are guided
    leaf by leaf, those of a product process at the times of its parts.

    Args:
      cond, uncond: denoisers `(x, t) -> clean estimate`; or, as `cond`, one function that gives both, such
        as of `in_one_call`, and None.
      scale: number, or `(batch,)`, one per example, or a function of t that gives either: a dynamic scale.
      interval: `(low, high)` times within which to guide; outside, the conditional estimate is returned
        (Kynkaanniemi et al. (2024), arXiv:2404.07724).
      rescale: in [0, 1], how far each guided estimate is scaled to the standard deviation of the
        conditional one (Lin et al. (2024), arXiv:2305.08891, eq. 15, 16).

    Raises:
      ValueError: for an empty interval or a rescale outside [0, 1].
    """
    if interval is not None and not interval[0] < interval[1]:
        raise ValueError(f"classifier_free: expected interval (low, high) with low < high, got {interval}")
    if isinstance(rescale, (int, float)) and not 0 <= rescale <= 1:
        raise ValueError(f"classifier_free: expected rescale in [0, 1], got {rescale}")
    if uncond is not None and isinstance(scale, (int, float)) and scale == 1:
        return cond
    if (
        uncond is not None
        and isinstance(scale, (int, float))
        and scale == 0
        and interval is None
        and rescale == 0
    ):
        return uncond

    def leaf(t, positive, negative):
        strength = strength_at(scale, positive, t, "classifier_free")
        guided = along(negative, [(strength, positive, negative)])
        if not (isinstance(rescale, (int, float)) and rescale == 0):
            axes = tuple(range(1, np.ndim(positive)))
            wanted, found = (jnp.std(clean, axes, keepdims=True) for clean in (positive, guided))
            ratio = safe_divide(wanted, found, 1.0)  # an estimate of zeros has no contrast
            guided = guided * (rescale * ratio + 1 - rescale)
        if interval is None:
            return guided
        inside = (t >= interval[0]) & (t <= interval[1])
        return jnp.where(match_dims(inside, positive, "classifier_free"), guided, positive)

    return lambda x, t: leafwise(leaf, t, *both(cond, uncond, x, t))


def in_one_call(denoise, cond, uncond):
    """Both clean estimates from one call on twice the batch: `(x, t) -> (positive, negative)`.

    Args:
      denoise: `denoise(x, t, condition)`.
      cond, uncond: conditions, pytrees of `(batch, ...)` arrays of equal structure.
    """
    stacked = jax.tree.map(lambda c, u: jnp.concatenate([c, u]), cond, uncond)

    def twofold(x, t):
        twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), x)
        t = jax.tree.map(lambda t: jnp.concatenate([t, t]) if np.ndim(t) else t, t)
        clean = denoise(twice, t, stacked)
        return tuple(jax.tree.map(lambda clean, i=i: jnp.split(clean, 2)[i], clean) for i in range(2))

    return twofold


def both(cond, uncond, x, t):
    """The two estimates of two denoisers, or of one function that gives both."""
    return pair(cond(x, t)) if uncond is None else (cond(x, t), uncond(x, t))


def pair(estimates):
    """What a denoiser of two estimates returns; ValueError for one that gives an array."""
    if not (isinstance(estimates, (tuple, list)) and len(estimates) == 2):
        got = jax.tree.map(np.shape, estimates)
        raise ValueError(
            f"guidance: expected a denoiser that returns the pair (D_c, D_u), as of in_one_call, got {got}"
        )
    return estimates


def leafwise(leaf, t, *estimates):
    """`leaf(t, *estimates)` of arrays, leaf by leaf of pytrees; a dict of times goes with its parts."""
    if isinstance(t, dict):
        return {name: leafwise(leaf, t[name], *(clean[name] for clean in estimates)) for name in t}
    return jax.tree.map(lambda *parts: leaf(t, *parts), *estimates)


def along(base, steps):
    """`base` plus the sum of `strength (one - other)` over the steps `(strength, one, other)`.

    Where some of them are -inf, logits of what they hold for impossible, the limit as these fall together:
    impossible, or certain (a very large number), by the sign of their share in the sum, and the rest of the
    sum where that is 0.
    """
    (start, share), moved, least = _rest(base), 0.0, 1e-6
    for strength, *ends in steps:
        (one, lost), (other, gained) = map(_rest, ends)
        moved, share = moved + strength * (one - other), share + strength * (lost - gained)
        least = least + jnp.finfo(one.dtype).eps * jnp.abs(strength)  # what rounding may leave
    certain = jnp.finfo(start.dtype).max / 4
    return jnp.where(share > least, -jnp.inf, jnp.where(share < -least, certain, start + moved))


def _rest(x):
    """`x` with 0 in the place of -inf, and where that was, as 0 and 1."""
    endless = jnp.isneginf(x)
    return jnp.where(endless, 0.0, x), endless.astype(jnp.float32)


def strength_at(scale, x, t, where):
    """A scale as a factor of the estimate `x`: a number, one per example, or a function of t."""
    if not hasattr(x, "dtype"):
        raise ValueError(f"{where}: expected estimates that are one array, got {jax.tree.structure(x)}")
    return match_dims(jnp.asarray(scale(t) if callable(scale) else scale, x.dtype), x, where, "scale")
