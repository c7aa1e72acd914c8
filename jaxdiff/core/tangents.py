"""Directions to push through the Jacobian of every example of a batch, and what comes out along them."""

import jax
import jax.numpy as jnp

from jaxdiff.core.keys import fold_in


def unit_tangents(x):
    """The n unit vectors of one example of `x` `(batch, ...)`, each for the whole batch: `(n, *x.shape)`."""
    basis = jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, 1, *x.shape[1:])
    return jnp.zeros_like(x)[None] + basis  # on the devices of x


def random_tangents(keys, x, count, law=jax.random.rademacher):
    """`(count, *x.shape)` random directions; those of an example are its key's alone."""
    draw = jax.vmap(lambda key: law(key, x.shape[1:], x.dtype))
    return jax.vmap(lambda i: draw(fold_in(keys, i)))(jnp.arange(count))


def quadratic_forms(derivative, tangents):
    """`v^T J v` of tangents `(k, batch, ...)` and a Jacobian given as a linear map of batches: `(k, batch)`.

    Their sum over `unit_tangents` is the trace, their mean over `random_tangents` estimates it.
    """
    along = jax.vmap(derivative)(tangents) * tangents
    return jax.vmap(jax.vmap(jnp.sum))(along)
