"""What every process over tokens has in common: Bayes' rule over a finite alphabet."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import concrete, match_dims, safe_divide
from jaxdiff.core.categorical import dense


class Uniforms(NamedTuple):
    """The noise of discrete processes.

    Attributes:
      u: uniform numbers in [0, 1), the shape of the tokens, fine near 0.
      token: draws of what replaces a token, the same shape; None where nothing does.
    """

    u: jax.Array
    token: object = None


class DiscreteProcess:
    """A forward process over tokens, each by itself, from clean at t = 0 to the prior at t = 1.

    Clean tokens are integers in [0, size); noisy ones in [0, states), where `states = size + 1` if there is
    a mask token, which is the last. A subclass gives, per token and over all values of one side,

        likelihood(x_t, t)     q(x_t | x0 = k),   (..., size)
        spread(w, t)           sum_k w(k) q(y | x0 = k),   (..., states)
        transition(x_t, t, s)  q(x_t | x_s = y),   (..., states)
        rates(x_t, t)          forward rates from y to x_t, y != x_t,   (..., states)

    and the formulas here follow. They take O(K) memory per token; what sampling and the masked loss use
    takes O(1). Times are scalars, `(batch,)` or the shape of the tokens.
    """

    t_min, t_max = 0.0, 1.0
    paired = False

    def marginal(self, x0, t):
        """`q(x_t | x0)` for every x_t, `(*x0.shape, states)`."""
        return self.spread(jax.nn.one_hot(x0, self.size), t)

    def ratios(self, x_t, x0, t):
        """The concrete score `sum_k p(k) q(y | k) / q(x_t | k)` for every y, `(..., states)`.

        Args:
          x_t: noisy tokens.
          x0: clean tokens, of which p is the indicator, or logits of p, `(..., size)`.
          t: times.
        """
        likelihood = self.likelihood(x_t, t)
        p = normalised(jnp.where(likelihood > 0, _probabilities(x0, self.size), 0.0))
        return self.spread(safe_divide(p, likelihood), t)

    def posterior(self, x_t, x0, t, s):
        """`q(x_s | x_t, x0)` for every x_s, `(..., states)`, s < t; its mean over p where x0 are logits."""
        likelihood = self.likelihood(x_t, t)
        p = normalised(jnp.where(likelihood > 0, _probabilities(x0, self.size), 0.0))
        return self.transition(x_t, t, s) * self.spread(safe_divide(p, likelihood), s)

    def divergence(self, logits, x0, x_t, t, s):
        """KL divergence of the posterior of `logits` from that of `x0`, nats per token."""
        true, model = self.posterior(x_t, x0, t, s), self.posterior(x_t, logits, t, s)
        model = jnp.maximum(model, jnp.finfo(model.dtype).tiny)
        return jnp.sum(jax.scipy.special.kl_div(true, model), axis=-1)

    def rate_divergence(self, logits, x0, x_t, t):
        """What the continuous-time bound integrates over t, nats per token and unit of time."""
        ratios = self.ratios(x_t, logits, t)
        least = jnp.finfo(ratios.dtype).tiny  # where a ratio is 0 its logarithm has no use, nor a gradient
        return self.entropy_of_ratios(jnp.log(jnp.maximum(ratios, least)), x0, x_t, t)

    def entropy_of_ratios(self, log_ratios, x0, x_t, t):
        """Score entropy: `sum_y rate(y, x_t) (s - r + r log(r / s))`, s = exp(log_ratios), r the true ones.

        Lou et al. (2024), arXiv:2310.16834.
        """
        r = self.ratios(x_t, x0, t)
        log_ratios = log_ratios.astype(jnp.promote_types(log_ratios.dtype, jnp.float32))
        other = (values(x_t, self.states) != x_t[..., None]) & (self.rates(x_t, t) > 0)
        term = excess_of_log(jnp.where(other, log_ratios, 0.0), jnp.where(other, r, 1.0))
        return jnp.sum(jnp.where(other, self.rates(x_t, t) * term, 0.0), axis=-1)

    def hidden(self, x_t):
        """Whether a noisy token leaves its clean one open, the shape of `x_t`."""
        return jnp.ones(jnp.shape(x_t), bool)

    def consistent(self, x0, x_t):
        """Clean tokens with those that `x_t` shows."""
        return jnp.where(self.hidden(x_t), x0, x_t)

    def c_noise(self, t):
        """What a network is told of the time."""
        return t

    def endpoint(self, y):
        """None: discrete processes have no second endpoint."""
        if y is not None:
            raise ValueError(f"{type(self).__name__} has no second endpoint; leave y out")

    def check_clean(self, x0, where):
        """`x0`, refused unless it is an integer array of clean tokens, as far as is known.

        Narrow integers are widened: the mask token need not fit into them.
        """
        if not jnp.issubdtype(jnp.result_type(x0), jnp.integer) or jnp.ndim(x0) < 1:
            raise ValueError(
                f"{where}: expected integer tokens (batch, ...), got {jnp.result_type(x0)} of shape "
                f"{jnp.shape(x0)}"
            )
        known = concrete(x0)
        if known is not None and known.size and (known.min() < 0 or known.max() >= self.size):
            wrong = known[(known < 0) | (known >= self.size)][0]
            what = "the mask token" if self.states > self.size and wrong == self.size else f"token {wrong}"
            raise ValueError(f"{where}: expected clean tokens in [0, {self.size}), got {what}")
        return jnp.asarray(x0, jnp.promote_types(jnp.result_type(x0), jnp.int32))

    def check_noise(self, noise, x0, where):
        """Refuses what is no `Uniforms`, or of another shape than the tokens `x0`."""
        if not isinstance(noise, Uniforms):
            raise ValueError(
                f"{where}: expected noise of process.noise(keys, x0), got {type(noise).__name__}"
            )
        if np.shape(noise.u) != np.shape(x0):
            raise ValueError(f"{where}: expected noise of x0's shape {np.shape(x0)}, got {np.shape(noise.u)}")

    def check_start(self, x, where="sample"):
        """`x` as int32, refused unless its known values are noisy tokens, in [0, states)."""
        known = concrete(x)
        if not jnp.issubdtype(jnp.result_type(x), jnp.integer) or (
            known is not None and known.size and (known.min() < 0 or known.max() >= self.states)
        ):
            raise ValueError(
                f"{where}: expected integer tokens in [0, {self.states}), got {jnp.result_type(x)}"
                + (f" from {known.min()} to {known.max()}" if known is not None and known.size else "")
            )
        return jnp.asarray(x, jnp.int32)

    def check_logits(self, logits, x, where):
        """`logits`, refused unless they are `(*x.shape, size)`; multiplied out, but of the absorbing one."""
        if np.shape(logits) != (*np.shape(x), self.size):
            raise ValueError(
                f"{where}: expected net(tokens, c_noise) to return logits of the {self.size} clean tokens, "
                f"{(*np.shape(x), self.size)}, got {np.shape(logits)}"
            )
        return logits if getattr(self, "mask_share", 0) == 1 else dense(logits)


def check_discrete(where, process):
    """Raises ValueError for a process that is not discrete."""
    if not isinstance(process, DiscreteProcess):
        raise ValueError(f"{where}: expected a discrete process, got {type(process).__name__}")


def values(x, size):
    """0 ... size - 1 behind the axes of the tokens `x`, `(*x.shape, size)`."""
    x = jnp.asarray(x)  # of numpy's integers in the width that JAX has
    return jax.lax.broadcasted_iota(x.dtype, (*x.shape, size), x.ndim)


def times_for(x, t, where):
    """Times in floating point with the rank of the tokens."""
    t = jnp.asarray(t, jnp.promote_types(jnp.result_type(t, float), jnp.float32))
    return t.reshape((1,) * jnp.ndim(x)) if t.ndim == 0 else match_dims(t, x, where)


def normalised(p):
    """`p` over its sum along the last axis; 0 where that is 0."""
    return safe_divide(p, jnp.sum(p, axis=-1, keepdims=True))


def excess(s, r):
    """`s - r + r log(r / s)`, at least 0, elementwise for s, r >= 0."""
    return excess_of_log(jnp.log(jnp.maximum(s, jnp.finfo(s.dtype).tiny)), r)


def excess_of_log(log_s, r):
    """`excess` of `exp(log_s)`, without a difference of near-equal numbers."""
    d = jnp.where(r > 0, log_s - jnp.log(jnp.where(r > 0, r, 1.0)), 0.0)
    return jnp.where(r > 0, r * (jnp.expm1(d) - d), jnp.exp(jnp.where(r > 0, 0.0, log_s)))


def _probabilities(x0, size):
    if jnp.issubdtype(jnp.result_type(x0), jnp.integer):
        return jax.nn.one_hot(x0, size)
    return jax.nn.softmax(x0.astype(jnp.promote_types(x0.dtype, jnp.float32)), axis=-1)
