"""Known tokens: prompts, infilling, and schemas with slack."""

import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_count, concrete, dataclass
from jaxdiff.solvers.discrete.steps import settled


def prompt(process, tokens, length, batch=1):
    """A start `(batch, length)` that begins with known tokens and is masked after them, for `x=`.

    Args:
      process: the absorbing process: others do not keep the tokens of a start; see `clamped`.
      tokens: `(n,)` or `(batch, n)` clean tokens, or masked ones where they are open.
      length: tokens of a sample, at least n.

    Raises:
      ValueError: for a prompt longer than the sequence, or tokens that are none.
    """
    _need_absorbing("prompt", process)
    tokens = np.atleast_2d(np.asarray(tokens))
    if tokens.shape[1] > length:
        raise ValueError(
            f"prompt: expected at most length = {length} tokens, got {tokens.shape[1]}; cut the prompt or "
            "raise the length"
        )
    if batch != 1 and len(tokens) not in (1, batch):
        raise ValueError(f"prompt: expected one prompt or batch = {batch} of them, got {len(tokens)}")
    process.check_start(tokens, "prompt")
    start = np.full((max(batch, len(tokens)), length), process.mask, np.int32)
    start[:, : tokens.shape[1]] = tokens
    return jnp.asarray(start)


@dataclass
class Clamped:
    """See `clamped`."""

    solver: object
    tokens: object
    known: object

    alone = property(lambda self: getattr(self.solver, "alone", None))

    def plan(self, process, grid=None):
        """The solver's plan."""
        return self.solver.plan(process, grid)

    def init(self, x, rows):
        """The solver's, at a start with the known tokens if noise is masks."""
        rows.process.check_clean(self.tokens, "clamped")
        if np.shape(self.tokens)[1:] != x.shape[1:] or np.shape(self.tokens)[0] not in (1, len(x)):
            raise ValueError(
                f"clamped: expected tokens of the samples' shape {x.shape}, got {np.shape(self.tokens)}"
            )
        return self.solver.init(self._hold(x, self.tokens) if _absorbs(rows.process) else x, rows)

    def step(self, denoise, state, row, draw):
        """The solver's step, then the known tokens as noisy as the others; clean if noise is masks."""
        state, process = self.solver.step(denoise, state, row, draw), row.process
        tokens = jnp.broadcast_to(jnp.asarray(self.tokens), state.x.shape)
        if not _absorbs(process):
            tokens = process.perturb(tokens, process.noise(draw.own(2**20 + 2), tokens), row.to)
        return state._replace(x=self._hold(state.x, tokens))

    def clean(self, process, x0, x):
        """The solver's, with the known tokens."""
        return self._hold(settled(self.solver, process, x0, x), self.tokens)

    def _hold(self, x, tokens):
        return jnp.where(jnp.asarray(self.known), jnp.asarray(tokens), x).astype(x.dtype)


def clamped(solver, tokens, known):
    """A solver that holds known tokens, for infilling with any process.

    With the absorbing process it is exact, and the same as a start that shows the known tokens. With others
    known tokens are drawn at the noise level of each step (Lugmayr et al. (2022), arXiv:2201.09865), which
    is approximate.

    Args:
      solver: a solver of this module.
      tokens: `(batch, length)` or `(1, length)` clean tokens.
      known: the same shape, boolean.
    """
    if np.shape(tokens) != np.shape(known) or np.ndim(tokens) != 2:
        raise ValueError(
            f"clamped: expected tokens and known of one shape (batch, length), got {np.shape(tokens)} and "
            f"{np.shape(known)}"
        )
    if hasattr(solver, "solver") and not isinstance(solver, Clamped):
        raise ValueError(
            f"clamped: expected a solver of jd.solvers.discrete, got {type(solver).__name__}; particles and "
            "others that take a solver take clamped(solver)"
        )
    return Clamped(solver, tokens, known)


@dataclass
class Scaffold:
    """A schema: fixed tokens around open slots.

    Attributes:
      tokens: `(length,)`, the mask token in open slots.
      null: token that fills what a slot does not need.
    """

    tokens: object
    null: int

    def start(self, batch):
        """`(batch, length)` starts, for `x=`."""
        return jnp.broadcast_to(jnp.asarray(self.tokens, jnp.int32), (batch, len(self.tokens)))

    def strip(self, x):
        """Samples `(batch, length)` without their null tokens: a list of arrays of different lengths."""
        x = concrete(x)
        return [row[row != self.null] for row in x]


def scaffold(process, pieces, null):
    """Schema scaffolding: structure is clamped, only values are sampled, in fewer steps.

    Args:
      process: the absorbing process.
      pieces: fixed token sequences and slots in order; an integer n is a slot of n tokens, of which a value
        may use fewer and leave the rest to `null`.
      null: the slack token, a clean token that the network knows as nothing.

    Returns:
      A `Scaffold`; sample from `x=scaffold.start(batch)` by a solver of the absorbing process that changes no
      token that is not masked (all but `remasking(spread="even")`; wrap that in `clamped`), then
      `scaffold.strip(samples)`. Xiong et al. (2025), arXiv:2507.04504.
    """
    _need_absorbing("scaffold", process)
    parts = []
    for piece in pieces:
        if isinstance(piece, (int, np.integer)):
            check_count("scaffold", slot=piece)
            parts.append(np.full(piece, process.mask))
        else:
            parts.append(np.asarray(process.check_clean(np.asarray(piece), "scaffold")))
    process.check_clean(np.array([null]), "scaffold")
    return Scaffold(np.concatenate(parts), int(null))


def _absorbs(process):
    return getattr(process, "mask_share", 0) == 1


def _need_absorbing(where, process):
    if not _absorbs(process):
        raise ValueError(
            f"{where}: expected the absorbing process, which keeps the tokens of a start, got "
            f"{type(process).__name__}; use clamped"
        )
