"""Score matching without a denoiser: explicit, implicit and sliced, for scores and energies."""

import jax
import jax.numpy as jnp

from jaxdiff.core import batch_keys, check_count, quadratic_forms, random_tangents, unit_tangents


def score_of(energy):
    """The score `-grad E` of an energy network, `energy(x) -> (batch,)`."""

    def score(x):
        return -jax.grad(lambda x: jnp.sum(energy(x)))(x)

    return score


def explicit(score, x, exact):
    """`|score(x) - exact|^2 / 2`, `(batch,)`: for data whose score is known.

    Args:
      score: `score(x) -> (batch, ...)`, of an energy by `score_of`.
      x: data, `(batch, ...)`.
      exact: its score, the shape of `x`.
    """
    return 0.5 * _sum(jnp.square(score(x) - exact))


def implicit(score, x):
    """`tr grad score(x) + |score(x)|^2 / 2`, `(batch,)`: equal to `explicit` in expectation, less a constant.

    The trace is exact, by one forward derivative per dimension. Hyvaerinen (2005).
    """
    value, derivative = jax.linearize(score, x)
    trace = jnp.sum(quadratic_forms(derivative, unit_tangents(x)), 0)
    return trace + 0.5 * _sum(jnp.square(value))


def sliced(score, key, x, probes=1):
    """`v^T grad score(x) v + |score(x)|^2 / 2` over random directions: unbiased for `implicit`.

    The variance-reduced form, with normal `v`. Song et al. (2019), arXiv:1905.07088, eq. 8.

    Args:
      key: one key or `(batch,)` keys.
      probes: directions per example.
    """
    check_count("sliced", probes=probes)
    keys = batch_keys(key, x.shape[0], "sliced")
    value, derivative = jax.linearize(score, x)
    trace = jnp.mean(quadratic_forms(derivative, random_tangents(keys, x, probes, jax.random.normal)), 0)
    return trace + 0.5 * _sum(jnp.square(value))


_sum = jax.vmap(jnp.sum)
