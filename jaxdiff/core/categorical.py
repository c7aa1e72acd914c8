"""Exact draws from categorical distributions, and log-probabilities that cost no more than the logits.

Float32 Gumbel noise ends near 16.6, so `argmax(logits + gumbel)` never takes what is less likely than about
1e-7: rare events are cut off, which lowers the temperature of masked diffusion (Zheng et al. (2025),
arXiv:2409.02908). Here numbers near 0 have bits down to 2^-64, and one token takes two of them, not K.
"""

import math

import jax
import jax.numpy as jnp

from jaxdiff.core.keys import typed
from jaxdiff.core.tree import dataclass


def fine_uniform(keys, shape=()):
    """`(batch, *shape)` float32 uniform numbers in [0, 1), exact to 2^-64 near 0, for `(batch,)` keys.

    `u < p` then has probability p to float32 precision for every p, however small.
    """

    def one(key):
        high, low = jax.random.bits(key, (2, *shape), jnp.uint32).astype(jnp.float32)
        return jnp.minimum(high * 2.0**-32 + low * 2.0**-64, 1 - 2.0**-24)

    return jax.vmap(one)(typed(keys, "fine_uniform"))


def inverse_cdf(weights, u):
    """The index at which the running sum of `weights` `(..., K)` passes `u` `(...)` of the total.

    Entries of weight 0 are never taken.
    """
    total = jnp.cumsum(weights, axis=-1)
    below = jnp.minimum(u, 1 - 2.0**-23).astype(total.dtype) * total[..., -1]  # below the total, rounded too
    return jnp.sum(total <= below[..., None], axis=-1, dtype=jnp.int32)


def categorical(keys, logits):
    """One exact draw per distribution.

    By inverse distribution function in two levels, first a block of about sqrt(K) entries and then one of
    it, each with a uniform number of its own: sums are short, and no noise of size K is drawn.

    Args:
      keys: `(batch,)` keys.
      logits: `(batch, ..., K)`, unnormalised log-probabilities; -inf is never drawn.

    Returns:
      `(batch, ...)` int32 indices; -1, which is none, where a logit is NaN or all are -inf. Of entries of
      logit +inf any one is drawn.
    """
    logits, size = dense(logits), logits.shape[-1]
    u = fine_uniform(keys, (*logits.shape[1:-1], 2))
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    most = jnp.max(logits, axis=-1, keepdims=True)
    weights = jnp.exp(jnp.where(logits == most, 0.0, logits - most))
    width = math.isqrt(size - 1) + 1
    rest = -size % width
    folded = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, rest)])
    folded = folded.reshape(*weights.shape[:-1], -1, width)
    block = inverse_cdf(jnp.sum(folded, axis=-1), u[..., 0])
    inside = jnp.take_along_axis(folded, block[..., None, None], axis=-2)[..., 0, :]
    drawn = block * width + inverse_cdf(inside, u[..., 1])
    return jnp.where(most[..., 0] > -jnp.inf, drawn, -1)


@dataclass
class FactoredLogits:
    """Logits that are not multiplied out, for the losses of the absorbing process.

    A matrix product keeps its result for the backward pass and its gradient beside it; `token_log_prob`
    takes these a block of tokens at a time and works each out twice.

    Attributes:
      features: `(..., width)`, in the dtype of the product.
      kernel: `(width, K)`.
    """

    features: jax.Array
    kernel: jax.Array

    shape = property(lambda self: (*self.features.shape[:-1], self.kernel.shape[-1]))

    def dense(self):
        """The logits, `(..., K)`."""
        flat = self.features.reshape(-1, self.features.shape[-1])
        return (flat @ self.kernel.astype(flat.dtype)).reshape(self.shape)


def dense(logits):
    """`logits`, multiplied out if they are `FactoredLogits`."""
    return logits.dense() if isinstance(logits, FactoredLogits) else logits


BLOCK = 64


def token_log_prob(logits, tokens):
    """`log_softmax(logits)[tokens]`, `(...)` in float32 or wider, for logits `(..., K)` and tokens `(...)`.

    NaN for tokens outside [0, K), such as the -1 of a draw from no law.

    Neither the log-softmax nor a one-hot array is formed, forwards or backwards: the gradient is worked out
    in one pass over the logits, and can take their place in memory. Of `FactoredLogits` no more than 64
    rows are there at a time.
    """
    if not isinstance(logits, FactoredLogits):
        return _dense_log_prob(logits, tokens)

    @jax.checkpoint
    def one(row):
        own = FactoredLogits(row[0][None], logits.kernel)
        return _dense_log_prob(own.dense(), row[1][None])[0]

    rows = logits.features.reshape(-1, logits.features.shape[-1]), tokens.reshape(-1)
    return jax.lax.map(one, rows, batch_size=BLOCK).reshape(tokens.shape)


@jax.custom_vjp
def _dense_log_prob(logits, tokens):
    return _token_log_prob(logits, tokens)[0]


def _token_log_prob(logits, tokens):
    dtype = jnp.promote_types(logits.dtype, jnp.float32)
    normalizer = jax.nn.logsumexp(logits.astype(dtype), axis=-1)
    place = jnp.where(tokens < 0, logits.shape[-1], jnp.asarray(tokens, jnp.int32))
    chosen = jnp.take_along_axis(logits, place[..., None], axis=-1)[..., 0]
    return chosen.astype(dtype) - normalizer, (logits, tokens, normalizer)


def _token_log_prob_backward(kept, g):
    logits, tokens, normalizer = kept
    p = jnp.exp(logits.astype(normalizer.dtype) - normalizer[..., None])
    # compared in passing, which a vocabulary cut over devices can do where it lies; a scatter cannot
    position = jax.lax.broadcasted_iota(jnp.int32, logits.shape, logits.ndim - 1)
    gradient = jnp.where(position == tokens[..., None], 1 - p, -p) * g[..., None]
    return gradient.astype(logits.dtype), None


_dense_log_prob.defvjp(_token_log_prob, _token_log_prob_backward)
