"""Exponential moving averages of parameters, debiased as they are kept."""

import math

import jax
import jax.numpy as jnp

from jaxdiff.core import check_positive


def init(params):
    """An average that holds no value yet: copies of `params`, in float32 or wider.

    Copies, never the same buffers: a donated train step would give one buffer away twice.
    """
    return jax.tree.map(lambda p: jnp.array(p, jnp.promote_types(p.dtype, jnp.float32)), params)


def update(average, params, half_life, step):
    """The average after `step` updates, of which `params` are the newest.

        e_k = (1 - w_k) e_(k-1) + w_k p_k,  w_k = (1 - d) / (1 - d^k),  d = 2^(-1 / half_life)

    This is the bias-corrected average of Adam (Kingma and Ba (2015), arXiv:1412.6980, section 3),
    `(1 - d) / (1 - d^k) sum_j d^(k-j) p_j`, kept in its corrected form: it can be served at any step,
    and after the first one it equals the parameters.

    Args:
      average: pytree of the structure of `params`; its values do not matter at step 1.
      params: the newest parameters.
      half_life: updates after which a parameter's weight has halved, above 0.
      step: number of updates so far, this one included, at least 1.
    """
    check_positive("ema.update", half_life=half_life)
    rate = -math.log(2) / half_life
    weight = jnp.expm1(rate) / jnp.expm1(rate * step)
    return jax.tree.map(lambda e, p: (1 - weight) * e + weight * p.astype(e.dtype), average, params)
