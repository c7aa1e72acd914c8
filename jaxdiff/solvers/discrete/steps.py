"""Steps of every discrete process: from its posterior, or from its rates."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff.core import dataclass, safe_divide, static_field
from jaxdiff.core.categorical import categorical, dense
from jaxdiff.processes.discrete import DiscreteProcess, check_discrete


@dataclass
class DiscretePlan:
    """One row per step; the process travels with the rows.

    Attributes:
      t, to: `(steps,)` times before and after each step.
      arrives: `(steps,)` grid point that it reaches.
      process: the process, its arrays with a leading axis of steps.
    """

    t: jax.Array
    to: jax.Array
    arrives: jax.Array
    process: DiscreteProcess
    steps: int = static_field()
    noisy: bool = static_field(default=True)

    nfe = property(lambda self: self.t.shape[-1])


class Tokens(NamedTuple):
    """The state of a walk over tokens.

    Attributes:
      x: `(batch, ...)` int32.
      evaluations: network calls so far.
    """

    x: jax.Array
    evaluations: jax.Array


def lay_out(where, process, grid, masked=False):
    """The `DiscretePlan` of a grid; `masked` if only the absorbing process will do.

    Raises:
      ValueError: for a process that is not discrete or not absorbing, or a grid that is none.
    """
    check_process(where, process, masked)
    if grid is None:
        raise ValueError(f"{where}: expected a grid of times from 1 to 0, as of jd.grids.uniform; got None")
    grid = grids.explicit(process, grid)
    steps = len(grid) - 1
    return DiscretePlan(grid[:-1], grid[1:], np.arange(1, steps + 1), per_row(process, steps), steps)


def check_process(where, process, masked):
    """Raises ValueError for a process that is not discrete, or not absorbing where it has to be."""
    check_discrete(where, process)
    if masked and getattr(process, "mask_share", 0) != 1:
        raise ValueError(f"{where}: expected the absorbing process, in which every altered token is masked")


def per_row(process, steps):
    """The process with a leading axis of `steps` on its arrays."""
    return jax.tree.map(lambda leaf: jnp.broadcast_to(jnp.asarray(leaf), (steps, *np.shape(leaf))), process)


def settled(solver, process, x0, x):
    """What a draw `x0` of the clean tokens amounts to at `x`: with what a solver holds, or `x` shows."""
    return solver.clean(process, x0, x) if hasattr(solver, "clean") else process.consistent(x0, x)


class Walk:
    """What discrete solvers share: tokens for a state, and checked logits.

    Attributes:
      alone: None, or why a solver's clean tokens cannot be drawn, and judged, in its place.
    """

    alone = None

    def init(self, x, rows):
        """The start, without evaluations."""
        del rows
        return Tokens(x, jnp.int32(0))

    def logits(self, denoise, x, t, process):
        """`denoise(x, t)`, refused unless it has one logit per clean token."""
        return dense(process.check_logits(denoise(x, t), x, type(self).__name__))


@dataclass
class Ancestral(Walk):
    """See `ancestral`."""

    cache: bool = static_field()

    def plan(self, process, grid):
        """The `DiscretePlan`."""
        return lay_out("ancestral", process, grid, masked=self.cache)

    def step(self, denoise, state, row, draw):
        """Clean tokens from the logits, then `x_s ~ q(x_s | x_t, x0)`."""
        x, process = state.x, row.process
        noise = process.noise(draw.own(0), x)

        def evaluate(x):
            logits = self.logits(denoise, x, row.t, process)
            x0 = categorical(draw.own(1), logits)
            return process.reverse(noise, x, x0, row.t, row.to)

        if not self.cache:
            return Tokens(evaluate(x), state.evaluations + 1)
        moves = jnp.any(process.hidden(x) & (noise.u < process.jump(x, x, row.t, row.to)[0]))
        x = jax.lax.cond(moves, evaluate, lambda x: x, x)
        return Tokens(x, state.evaluations + moves)


def ancestral(cache=False):
    """The reverse chain: `x0 ~ p(. | x_t)`, then `x_s ~ q(x_s | x_t, x0)`, for every discrete process.

    A token of -1 in a sample says that the network gave no law for it: not-a-number, or nothing possible.
    Both draws together are one of `sum_k q(x_s | x_t, k) p(k | x_t)`, in O(1) memory per token beyond the
    logits. Austin et al. (2021), arXiv:2107.03006.

    Args:
      cache: skip the network in steps in which no token of the batch is unmasked: who is does not depend on
        the logits, so the samples are the same. For the absorbing process and a network without time, or
        one that sees the time of the call. Ou et al. (2024), arXiv:2406.03736.
    """
    return Ancestral(bool(cache))


@dataclass
class TauLeaping(Walk):
    """See `tau_leaping`."""

    def plan(self, process, grid):
        """The `DiscretePlan`, of a process that jumps to any token."""
        rows = lay_out("tau_leaping", process, grid)
        if not hasattr(process, "jump"):
            raise ValueError(
                f"tau_leaping: expected a process of jd.processes.Categorical, got {type(process).__name__}; "
                "use ancestral()"
            )
        return rows

    def step(self, denoise, state, row, draw):
        """Clean tokens from the logits, then at most one jump a token at the rates of the step's start."""
        x, process = state.x, row.process
        noise = process.noise(draw.own(0), x)
        x0 = categorical(draw.own(1), self.logits(denoise, x, row.t, process))
        clean, fresh = process.jump(x, x0, row.t)
        total = clean + fresh
        jumps = jnp.where(total > 0, -jnp.expm1(-(row.t - row.to) * total), 0.0)
        clean = jumps * safe_divide(clean, total)
        moved = process.move(noise, x, x0, clean, jumps - clean)
        x = jnp.where(row.to == 0, process.consistent(x0, x), moved)
        return Tokens(x, state.evaluations + 1)


def tau_leaping():
    """Jumps at fixed rates within a step: a token jumps with probability `1 - exp(-h rate)`.

    Given `x0 ~ p(. | x_t)` the reverse rates to x0 and to replacements are those of `Categorical.jump`; a
    last step to t = 0 takes x0. Order one in the step. Campbell et al. (2022), arXiv:2205.14987; with x0
    drawn, the Euler step of Gat et al. (2024), arXiv:2407.15595.
    """
    return TauLeaping()
