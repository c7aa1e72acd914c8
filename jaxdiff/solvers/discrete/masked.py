"""Samplers of the absorbing process: at the times of its events, and in order of confidence."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_choice, check_count, dataclass, static_field
from jaxdiff.core.categorical import categorical, fine_uniform
from jaxdiff.solvers.discrete.steps import DiscretePlan, Walk, check_process, lay_out, per_row

RULES = ("probability", "margin", "entropy", "token")


class Events(NamedTuple):
    """Tokens at the time of an event.

    Attributes:
      x: `(batch, length)` int32.
      evaluations: network calls so far.
      log_level: `(batch,)`, log(1 - alpha) at each sample's own time.
    """

    x: jax.Array
    evaluations: jax.Array
    log_level: jax.Array


@dataclass
class FirstHitting(Walk):
    """See `first_hitting`."""

    length: int = static_field()
    per_event: int = static_field()

    alone = "asks at times of its own"

    def plan(self, process, grid=None):
        """One row per event; there is no grid."""
        check_process("first_hitting", process, masked=True)
        if grid is not None:
            raise ValueError("first_hitting: expected no grid, got one; it draws its own times")
        per_token = [leaf for leaf in jax.tree.leaves(process.schedule) if np.ndim(leaf)]
        if per_token and process.schedule.per_token:
            raise ValueError("first_hitting: expected one schedule for all tokens, got one per token")
        events = -(-self.length // self.per_event)
        t = np.linspace(1, 0, events + 1)  # for show: every sample has its own times
        return DiscretePlan(t[:-1], t[1:], np.arange(1, events + 1), per_row(process, events), events)

    def init(self, x, rows):
        """Everything masked is masked at t = 1."""
        if x.shape[1:] != (self.length,):
            raise ValueError(
                f"first_hitting: expected samples of shape ({self.length},), got {x.shape[1:]}; pass the "
                "length to first_hitting(length)"
            )
        return Events(x, jnp.int32(0), jnp.sum(jnp.zeros_like(x, float), axis=1))

    def step(self, denoise, state, row, draw):
        """One event, unless nothing is left to unmask."""
        left = jnp.any(state.x == row.process.mask)
        return jax.lax.cond(left, lambda s: self._event(denoise, s, row, draw), lambda s: s, state)

    def _event(self, denoise, state, row, draw):
        x, process, k = state.x, row.process, self.per_event
        times, places, values = (draw.own(i) for i in range(3))
        masked = x == process.mask
        n = jnp.sum(masked, axis=1, keepdims=True) - jnp.arange(k)[None]
        waits = jnp.log(fine_uniform(times, (k,))) / jnp.maximum(n, 1)
        log_level = state.log_level + jnp.sum(jnp.where(n > 0, waits, 0.0), axis=1)
        t = process.schedule.time(jnp.exp(log_level))
        order = jnp.where(masked, fine_uniform(places, x.shape[1:]), 2.0)
        which = jnp.argsort(order, axis=1)[:, :k]
        logits = self.logits(denoise, x, t, process)
        tokens = categorical(values, jnp.take_along_axis(logits, which[..., None], axis=1))
        tokens = jnp.where(n > 0, tokens, jnp.take_along_axis(x, which, axis=1))
        x = jnp.put_along_axis(x, which, tokens, axis=1, inplace=False)
        return Events(x, state.evaluations + 1, log_level)


def first_hitting(length, per_event=1):
    """Walks from one unmasking to the next: exact, in `length` evaluations whatever the schedule.

    With n masked tokens the next event is at `level' = level u^(1 / n)`, level = 1 - alpha, for any one of
    them. With `per_event` = k, k of them are unmasked together at the time of the k-th, in `ceil(length / k)`
    evaluations. Zheng et al. (2025), arXiv:2409.02908.

    Args:
      length: number of tokens of a sample, `shape=(length,)`.
      per_event: tokens unmasked per evaluation; above 1 they are taken as independent.

    The network sees the time of the event, `(batch,)`; rows' own times mean nothing.
    """
    check_count("first_hitting", length=length, per_event=per_event)
    return FirstHitting(int(length), int(min(per_event, length)))


def _flat(x):
    return x.reshape(x.shape[0], -1)


class Ordered(NamedTuple):
    """Tokens, network calls, and how many were masked at the start, `(batch, 1)`."""

    x: jax.Array
    evaluations: jax.Array
    total: jax.Array


@dataclass
class Confidence(Walk):
    """See `confidence`."""

    rule: str = static_field()

    def plan(self, process, grid):
        """The `DiscretePlan`."""
        return lay_out("confidence", process, grid, masked=True)

    def init(self, x, rows):
        """The start, and its number of masks."""
        return Ordered(x, jnp.int32(0), jnp.sum(_flat(x) == rows.process.size, axis=1, keepdims=True))

    def step(self, denoise, state, row, draw):
        """Draws every masked token, and keeps as many of the surest as the schedule says."""
        x, process = state.x, row.process
        logits = self.logits(denoise, x, row.t, process)
        tokens = categorical(draw.own(0), logits)
        masked = _flat(x == process.mask)
        sure = jnp.where(masked, _flat(self._confidence(logits, tokens)), -jnp.inf)
        ties = _flat(fine_uniform(draw.own(1), x.shape[1:]))
        rank = jnp.argsort(jnp.lexsort((ties, -sure), axis=1), axis=1)
        stay = jnp.round(jnp.mean(process.schedule.level(row.to)) * state.total)
        count = jnp.sum(masked, axis=1, keepdims=True) - jnp.where(row.to == 0, 0, stay)
        x = jnp.where((masked & (rank < count)).reshape(x.shape), tokens, x)
        return Ordered(x, state.evaluations + 1, state.total)

    def _confidence(self, logits, tokens):
        log_p = jax.nn.log_softmax(logits, axis=-1)
        if self.rule == "token":
            return jnp.take_along_axis(log_p, tokens[..., None], axis=-1)[..., 0]
        if self.rule == "entropy":
            return jnp.sum(jnp.exp(log_p) * jnp.where(log_p > -jnp.inf, log_p, 0.0), axis=-1)
        best = jnp.exp(jax.lax.top_k(log_p, 2)[0])
        return best[..., 0] if self.rule == "probability" else best[..., 0] - best[..., 1]


def confidence(rule="entropy"):
    """Unmasks the tokens that the network is surest of first, as many a step as the schedule leaves.

    After the step to s, `round((1 - alpha_s) n)` of the n masks of the start are left. One token a step (a
    uniform grid of n steps, linear schedule) is exact autoregression in an order of the network's choice,
    but for "token", which looks at what was drawn and so prefers likely sequences. Chang et al. (2022),
    arXiv:2202.04200 ("token"); Kim et al. (2025), arXiv:2502.06768 (the others).

    Args:
      rule: surest by the greatest "probability", the "margin" of the two greatest, least "entropy", or the
        probability of the drawn "token".
    """
    check_choice("confidence", "rule", rule, RULES)
    return Confidence(rule)
