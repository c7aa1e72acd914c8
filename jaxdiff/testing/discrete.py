"""Distributions over a few tokens that can be enumerated: exact denoiser, probabilities and samples."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import batch_keys, check_count, einsum
from jaxdiff.core.categorical import categorical


class Joint:
    """A distribution over sequences of `length` tokens in [0, size); made by `joint` and its siblings.

    Attributes:
      states: `(size^length, length)` all sequences, the last token fastest.
      probabilities: `(size^length,)`, float64.
    """

    def __init__(self, table):
        self.size, self.length = table.shape[0], table.ndim
        self.states = np.array(list(itertools.product(range(self.size), repeat=self.length)))
        self.probabilities = table.reshape(-1)
        with np.errstate(divide="ignore"):
            self._log = np.log(self.probabilities)

    def log_prob(self, x):
        """Log-probability of sequences `(..., length)`, `(...)` nats."""
        return jnp.asarray(self._log, jnp.result_type(float))[self.index(x)]

    def index(self, x):
        """Row of `states` of sequences `(..., length)`."""
        return _index(x, self.size)

    def log_marginal(self, x):
        """`log p(x_S)` of partly masked sequences, `(..., length)` with tokens of `size` where unknown."""
        return self._row(self._log_marginals)[0][_index(x, self.size + 1)]

    @functools.cached_property
    def _log_marginals(self):
        """Log-probabilities of all partly masked sequences, `((size + 1)^length,)`."""
        p = self.probabilities.reshape((self.size,) * self.length)
        for axis in range(self.length):
            p = np.concatenate([p, p.sum(axis, keepdims=True)], axis)
        with np.errstate(divide="ignore"):
            return np.log(p.reshape(-1))

    def sample(self, key, n):
        """`(n, length)` draws; `key` is one key or `(n,)` keys."""
        logits = jnp.broadcast_to(self._row(self._log), (n, len(self.states)))
        return jnp.asarray(self.states, jnp.int32)[categorical(batch_keys(key, n, "sample"), logits)]

    def posterior(self, process, x, t):
        """`p(x0 | x_t = x)` over `states`, `(batch, size^length)`."""
        likelihood = jnp.log(process.likelihood(x, t))
        seen = sum(likelihood[:, i][:, self.states[:, i]] for i in range(self.length))
        return jax.nn.softmax(self._row(self._log) + seen, axis=-1)

    def denoiser(self, process):
        """`denoise(x, t) -> log p(x0_i | x_t)`, `(batch, length, size)`, exact at any t of any process.

        For the absorbing process it does not depend on t, which may be None.
        """
        if getattr(process, "mask_share", 0) == 1:
            return lambda x, t: self._conditionals(x)
        one_hot = jax.nn.one_hot(self.states, self.size)
        noisy = np.array(list(itertools.product(range(process.states), repeat=self.length)))

        def denoise(x, t):
            if jnp.ndim(t) == 0 and len(noisy) < len(x):  # fewer noisy sequences than samples
                return denoise(jnp.asarray(noisy), jnp.full(len(noisy), t))[_index(x, process.states)]
            p = self.posterior(process, x, t)
            return jnp.log(einsum("bn,nlk->blk", p, one_hot))

        return denoise

    def _conditionals(self, x):
        """`log p(x0_i | unmasked tokens)`: a difference of two marginals."""
        table, base = self._row(self._log_marginals)[0], _index(x, self.size + 1)
        places = _places(self.length, self.size + 1).reshape(1, -1, 1)
        values = np.arange(self.size).reshape(1, 1, -1)
        found = table[base[:, None, None] + (values - x[..., None]) * places] - table[base][:, None, None]
        shown = jnp.where(values == x[..., None], 0.0, -jnp.inf)
        return jnp.where(x[..., None] == self.size, found, shown)

    def entropy(self):
        """Entropy of a sequence in nats: the least mean negative log-likelihood."""
        p = self.probabilities[self.probabilities > 0]
        return float(-np.sum(p * np.log(p)))

    def total_variation(self, x):
        """Total variation distance between the frequencies of samples `(n, length)` and the law."""
        x = np.asarray(x)
        if x.size and (x.min() < 0 or x.max() >= self.size):
            raise ValueError(
                f"total_variation: expected tokens in [0, {self.size}), got {x.min()} to {x.max()}"
            )
        found = np.bincount(np.asarray(self.index(x)), minlength=len(self.states)) / len(x)
        return float(0.5 * np.abs(found - self.probabilities).sum())

    def _row(self, values):
        return jnp.asarray(values, jnp.result_type(float))[None]


def _places(length, size):
    return size ** np.arange(length - 1, -1, -1)


def _index(x, size):
    places = _places(jnp.shape(x)[-1], size)
    return jnp.sum(x * places.reshape((1,) * (jnp.ndim(x) - 1) + (-1,)), axis=-1)


def joint(table):
    """Any distribution: `table` `(size,) * length` of weights, normalised here.

    Raises:
      ValueError: for a table that is not `(size, ..., size)` or has negative weights.
    """
    table = np.asarray(table, np.float64)
    if table.ndim < 1 or len(set(table.shape)) != 1 or not (table >= 0).all() or table.sum() <= 0:
        got = f"shape {table.shape}" + (f" with {table.min():g} to {table.max():g}" if table.size else "")
        raise ValueError(f"joint: expected weights (size, ..., size), at least 0, got {got}")
    return Joint(table / table.sum())


def markov_chain(initial, transition, length):
    """`p(x_1) prod p(x_(i+1) | x_i)` from `(size,)` and `(size, size)` with rows that sum to 1."""
    check_count("markov_chain", length=length)
    initial, transition = np.asarray(initial, np.float64), np.asarray(transition, np.float64)
    if transition.shape != 2 * initial.shape or not np.allclose(transition.sum(1), 1):
        raise ValueError(
            f"markov_chain: expected (size,) and (size, size) with rows that sum to 1, got {initial.shape} "
            f"and {transition.shape}"
        )
    add = lambda table, _: table[..., None] * transition  # noqa: E731
    return joint(functools.reduce(add, range(length - 1), initial))


def ising_chain(length, coupling, field=0.0):
    """Spins on a ring, `p ~ exp(coupling sum s_i s_(i+1) + field sum s_i)`; token 0 is s = -1, 1 is +1."""
    check_count("ising_chain", length=length)
    spins = 2 * np.array(list(itertools.product(range(2), repeat=length))) - 1
    energy = coupling * np.sum(spins * np.roll(spins, 1, axis=1), 1) + field * spins.sum(1)
    return joint(np.exp(energy).reshape((2,) * length))
