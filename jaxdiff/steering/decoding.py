"""Value decoding: several proposals for every step, chosen by the reward of their clean estimates."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.core import check_count, check_positive, concrete, dataclass, match_dims, static_field
from jaxdiff.sampling import Draw
from jaxdiff.solvers.tableau import check_rows
from jaxdiff.steering.particles import _reward, check_solver, estimate


class Candidates(NamedTuple):
    """Proposals of the last step.

    Attributes:
      inner: the solver's state with a leading axis of `proposals`.
      dropped: `(batch,)` number of rewards that were not finite.
    """

    inner: object
    dropped: jax.Array

    @property
    def x(self):
        """The first of them; at exact data they are all alike."""
        return jax.tree.map(lambda leaf: leaf[0], self.inner.x)


@dataclass
class ValueDecoding:
    """A solver that chooses among proposals; made by `value_decoding`."""

    solver: object
    alpha: float
    reward: Callable = static_field()
    proposals: int = static_field()

    def plan(self, process, grid=None):
        """The solver's plan; it has to draw noise."""
        rows = self.solver.plan(process, grid)
        check_solver("value_decoding", self.solver, rows)
        if not rows.noisy:
            raise ValueError("value_decoding: expected a solver that draws noise, so that proposals differ")
        return rows

    def init(self, x, rows):
        """The start, as all proposals of it."""
        inner = self.solver.init(x, rows)
        dropped = jnp.zeros_like(x.reshape(len(x), -1)[:, 0], jnp.int32)  # on the devices of x
        return Candidates(jax.tree.map(lambda leaf: jnp.stack([leaf] * self.proposals), inner), dropped)

    def step(self, denoise, state, row, draw):
        """One row: one evaluation of every proposal, one choice per sample, and its proposals."""
        every = jax.vmap(draw.own)(jnp.arange(self.proposals))

        def judge(x, keys):  # of a whole batch, as conditions and rewards may be one per example
            seen, clean = estimate(self.solver, denoise, x, row, keys)
            return _reward(self.reward, seen), clean

        r, clean = jax.vmap(judge)(state.inner.x, every)
        usable = jnp.isfinite(r)
        logits = jnp.where(usable, r / self.alpha, -jnp.inf)
        logits = jnp.where(jnp.any(usable, 0, keepdims=True), logits, 0.0)  # none is: any may go on
        which = jax.vmap(jax.random.categorical, (0, 1))(draw.own(2**20), logits)

        def choose(leaf):
            if leaf.ndim < 2:  # such as a count of evaluations
                return leaf[0]
            return jnp.take_along_axis(leaf, match_dims(which[None], leaf[:1]), 0)[0]

        inner, clean = jax.tree.map(choose, state.inner), choose(clean)

        def propose(own):
            noise = Draw(lambda: draw.of(own), own, draw.of)
            return self.solver.step(lambda x, t: clean, inner, row, noise)

        dropped = state.dropped + jnp.sum(~usable, 0, dtype=jnp.int32)
        return Candidates(jax.vmap(propose)(every), dropped)


def value_decoding(solver, reward, proposals, alpha=1.0):
    """Soft value decoding: of M proposals a step, one is kept with probability `softmax(reward / alpha)`.

    Towards `p(x0) exp(reward(x0) / alpha)`; M evaluations a step. The reward need not be differentiable. Few
    proposals leave it nearer to `p(x0)`; with many a bias remains where the reward of the clean estimate is
    not the value `alpha log E exp(reward(x0) / alpha)`. Of tokens it is, on average: the reward is asked of
    a draw of `p(x0 | x_t)`. Li et al. (2024), arXiv:2408.08252.

    Args:
      solver: a stochastic solver of one evaluation a step; or `jd.solvers.discrete.ancestral()` or
        `tau_leaping()`.
      reward: `reward(x0) -> (batch,)`; proposals whose reward is not finite are not chosen, and `dropped`
        of `sample(..., save="state")` counts them.
      proposals: M; 1 is plain sampling.
      alpha: temperature, above 0; towards 0 the best proposal is kept.
    """
    check_positive("value_decoding", alpha=alpha)
    check_count("value_decoding", proposals=proposals)
    return ValueDecoding(solver, alpha, reward, int(proposals))


class Budgeted(NamedTuple):
    """A sample with what is left to spend on it.

    Attributes:
      inner: the solver's state before the pending row.
      clean: its clean estimate.
      row: the pending row, whose noise is still to be chosen.
      reward: `(batch,)` of the clean estimate.
      left: `(batch,)` evaluations left over.
      used: `(batch,)` evaluations spent.
      dropped: `(batch,)` rewards that were not a number; such a proposal is the last choice.
      point: the point reported.
    """

    inner: object
    clean: jax.Array
    row: object
    reward: jax.Array
    left: jax.Array
    used: jax.Array
    dropped: jax.Array
    point: jax.Array

    @property
    def x(self):
        """The point."""
        return self.point


@dataclass
class Rollover:
    """A solver that tries noises until one improves; made by `rollover`."""

    solver: object
    reward: Callable = static_field()
    budget: int = static_field()

    def plan(self, process, grid=None):
        """The solver's plan; it has to draw noise and to end at exact data."""
        rows = self.solver.plan(process, grid)
        last = concrete(rows.to)
        check_rows("rollover", rows)
        if hasattr(rows, "process"):
            raise ValueError("rollover: expected a continuous process; for tokens use value_decoding")
        if not rows.noisy or (last is not None and last[-1] != 0):
            raise ValueError(
                "rollover: expected a solver that draws noise, on a grid that ends at exact data, t = 0"
            )
        return rows

    def init(self, x, rows):
        """Nothing is pending at the start, and the first reward to beat is any."""
        zero = jnp.zeros(x.shape[0], jnp.int32)
        pending = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), rows)
        low = jnp.full(x.shape[0], -jnp.inf, jnp.promote_types(x.dtype, jnp.float32))
        return Budgeted(self.solver.init(x, rows), jnp.zeros_like(x), pending, low, zero, zero, zero, x)

    def step(self, denoise, state, row, draw):
        """One row: draw the pending step's noise until its estimate is better, then make this row pending."""
        first = jnp.all(state.used == 0)
        left = state.left + jnp.where(first, 1, self.budget)

        def propose(i):
            noise = draw.more(i)
            moved = self.solver.step(lambda x, t: state.clean, state.inner, state.row, lambda: noise)
            moved = jax.tree.map(lambda new, old: jnp.where(first, old, new), moved, state.inner)
            clean = denoise(moved.x, row.t).astype(moved.x.dtype)
            return moved, clean, jnp.asarray(_reward(self.reward, clean), state.reward.dtype)

        def better(new, old, active):
            take = active & ((new[2] > old[2]) | jnp.isnan(old[2]))
            return jax.tree.map(lambda n, o: jnp.where(match_dims(take, n), n, o), new, old)

        def wanting(best, spent):
            return ~(best[2] > state.reward) & (spent < left)

        def search(carry):
            i, best, spent, dropped = carry
            active, new = wanting(best, spent), propose(i)
            return i + 1, better(new, best, active), spent + active, dropped + (active & jnp.isnan(new[2]))

        start = propose(0)
        carry = 1, start, jnp.ones_like(left), state.dropped + jnp.isnan(start[2])
        _, (inner, clean, r), spent, dropped = jax.lax.while_loop(
            lambda carry: jnp.any(wanting(*carry[1:3])), search, carry
        )
        r, point = jnp.where(jnp.isnan(r), -jnp.inf, r), jnp.where(row.to == 0, clean, inner.x)
        return Budgeted(inner, clean, row, r, left - spent, state.used + spent, dropped, point)


def rollover(solver, reward, budget):
    """Rollover budget forcing: each step tries noises until one beats its parent's reward.

    A step may spend `budget` evaluations and whatever earlier steps have left; if none is better, the best
    of them goes on. What comes out is of no known law: it has less spread than any tilted one.
    `sample(..., save="state")` tells the evaluations `used` and the rewards `dropped`. For flows, change
    the process to one whose SDE has variety (`change_process`). Kim et al. (2025), arXiv:2503.19385,
    algorithm 1. The points of `save="all"` are one row late, as their noise is chosen in the next row: the
    start comes twice, and the point before the last is left out.

    Args:
      solver: a stochastic solver of one evaluation a step, on a grid that ends at exact data.
      reward: `reward(x0) -> (batch,)`.
      budget: evaluations a step on average, at least 1.
    """
    check_count("rollover", budget=budget)
    return Rollover(solver, reward, int(budget))
