"""The Vendi score: how many different things a set holds, as a number to measure and as a guide."""

import jax
import jax.numpy as jnp

from jaxdiff.core import matmul


def vendi_score(features, kernel=None):
    """`exp(entropy of the eigenvalues of K / n)`: 1 for equal examples, n for n unlike ones.

    Friedman and Dieng (2023), arXiv:2210.02410.

    Args:
      features: `(n, ...)`.
      kernel: `(n, d), (m, d) -> (n, m)` with ones on the diagonal; cosine similarity by default.
    """
    features = jnp.asarray(features)
    flat = features.reshape(len(features), -1).astype(jnp.promote_types(features.dtype, jnp.float32))
    k = (kernel or cosine)(flat, flat) / flat.shape[0]
    values = jnp.linalg.eigvalsh(0.5 * (k + k.T))
    positive = values > 1e-7
    entropy = -jnp.sum(jnp.where(positive, values * jnp.log(jnp.where(positive, values, 1.0)), 0.0))
    return jnp.exp(entropy)


def vendi_loss(features=None, bank=None, exemplars=None, weight=1.0, kernel=None):
    """A loss for `energy` that makes a batch varied, and with exemplars, varied as they are.

        loss = -log Vendi(f(x0) and bank) + weight log Vendi(f(x0) and exemplars)

    The first term leads away from what the batch and a memory bank hold already; the second keeps to the
    variety of real exemplars: contextualised Vendi guidance. Hemmat et al. (2024), arXiv:2406.04551.

    Args:
      features: `x0 -> (batch, d)`; the values themselves by default.
      bank: `(m, d)` features of earlier samples, or None.
      exemplars: `(k, d)` features of real examples, or None.
      weight: of the second term.
      kernel: as of `vendi_score`; one that is not flat where examples are equal.

    Returns:
      `loss(x0) -> (batch,)`, the common value divided among the examples.
    """

    def loss(x0):
        own = features(x0) if features is not None else x0.reshape(x0.shape[0], -1)
        value = -_log_vendi(own, bank, kernel)
        if exemplars is not None:
            value = value + weight * _log_vendi(own, exemplars, kernel)
        return jnp.full(x0.shape[0], value / x0.shape[0])

    return loss


def _log_vendi(own, others, kernel):
    together = own if others is None else jnp.concatenate([own, jnp.asarray(others, own.dtype)])
    return jnp.log(vendi_score(together, kernel))


def cosine(one, other):
    """Cosine similarity of rows."""
    return matmul(_unit(one), _unit(other).T)


def gaussian(width):
    """The kernel `exp(-|x - y|^2 / (2 width^2))`."""

    def kernel(one, other):
        squares = jnp.sum(one**2, 1)[:, None] + jnp.sum(other**2, 1)[None] - matmul(2 * one, other.T)
        return jnp.exp(-0.5 * jnp.maximum(squares, 0.0) / width**2)

    return kernel


def _unit(x):
    return x * jax.lax.rsqrt(jnp.sum(x**2, axis=1, keepdims=True) + 1e-12)
