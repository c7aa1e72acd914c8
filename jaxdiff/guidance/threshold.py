"""Keeping the clean estimate within the range of the data."""

import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_positive, match_dims


def threshold(denoise, limit=1.0, quantile=None):
    """Clips the clean estimate to [-limit, limit].

    Static: a plain clip. Dynamic, with `quantile`: with `s` the quantile of `|D|` over an example, but at
    least `limit`, `D` is clipped to [-s, s] and scaled by `limit / s` (Saharia et al. (2022),
    arXiv:2205.11487, section 2.3).

    Args:
      denoise: denoiser.
      limit: the data's largest absolute value.
      quantile: in (0, 1], e.g. 0.995; None for the static clip.
    """
    check_positive("threshold", limit=limit)
    if quantile is not None and not 0 < quantile <= 1:
        raise ValueError(f"threshold: expected quantile in (0, 1], got {quantile}")

    def clipped(x, t):
        clean = denoise(x, t)
        if quantile is None:
            return jnp.clip(clean, -limit, limit)
        size = jnp.quantile(jnp.abs(clean), quantile, axis=tuple(range(1, np.ndim(x))))
        bound = match_dims(jnp.maximum(size, limit).astype(clean.dtype), clean, "threshold")
        return jnp.clip(clean, -bound, bound) * (limit / bound)

    return clipped
