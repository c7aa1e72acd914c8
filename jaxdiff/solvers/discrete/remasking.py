"""Remasking: unmasked tokens of the absorbing process are masked again, to correct them.

Wang et al. (2025), arXiv:2503.00307 (ReMDM).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_choice, check_count, concrete, dataclass, safe_divide, static_field
from jaxdiff.core.categorical import categorical, fine_uniform, token_log_prob
from jaxdiff.processes.discrete import times_for
from jaxdiff.solvers.discrete.steps import DiscretePlan, Tokens, Walk, lay_out, per_row

LIMITS = ("rescale", "cap")
SPREADS = ("even", "confidence")


class Scored(NamedTuple):
    """Tokens, network calls, and how likely each token was when it was drawn.

    Attributes:
      x: `(batch, ...)` int32.
      evaluations: network calls so far.
      score: the shape of `x`, in [0, 1]; infinite where nothing was drawn: masks, and tokens of the start.
    """

    x: jax.Array
    evaluations: jax.Array
    score: jax.Array


@dataclass
class Remasking(Walk):
    """See `remasking`."""

    eta: float
    limit: str = static_field()
    spread: str = static_field()
    start: float
    loop: int = static_field()

    def plan(self, process, grid):
        """The `DiscretePlan`, with the rows of the loop at their time."""
        rows = lay_out("remasking", process, grid, masked=True)
        return rows if self.loop == 0 else self._with_loop(process, rows)

    def _with_loop(self, process, rows):
        times, start = concrete(rows.t), concrete(self.start)
        if times is None or start is None:
            raise ValueError("remasking: expected known times with a loop, got traced ones; pass an array")
        place = int(np.sum(times > start * (1 + 1e-6)))
        if place in (0, len(times)):
            raise ValueError(
                f"remasking: expected a grid with times above and in (0, start = {start:g}], where the loop "
                f"is, got {times[0]:g} to {times[-1]:g} and then {rows.to[-1]:g}"
            )
        stay = np.full(self.loop, times[place])
        arrives = np.concatenate([rows.arrives[:place], np.zeros(self.loop, int), rows.arrives[place:]])
        arrives[[place - 1, place + self.loop - 1]] = 0, place  # there for the last time
        return DiscretePlan(
            np.concatenate([times[:place], stay, times[place:]]),
            np.concatenate([rows.to[:place], stay, rows.to[place:]]),
            arrives, per_row(process, len(arrives)), rows.steps,
        )  # fmt: skip

    def init(self, x, rows):
        """The start; by confidence, its tokens are as good as certain."""
        state = super().init(x, rows)
        return state if self.spread == "even" else Scored(*state, jnp.full(x.shape, jnp.inf))

    def step(self, denoise, state, row, draw):
        """Masked tokens are unmasked and others masked again, each with its probability."""
        x, process = state.x, row.process
        logits = self.logits(denoise, x, row.t, process)
        x0 = categorical(draw.own(1), logits)
        u = fine_uniform(draw.own(0), x.shape[1:])
        level_t, level_s = (process.schedule.level(times_for(x, t, "remasking")) for t in (row.t, row.to))
        sigma = self._sigma(state, row, level_t, level_s)
        unmask = safe_divide(1 - level_s - (1 - sigma) * (1 - level_t), level_t)
        masked = x == process.mask
        changed = u < jnp.where(masked, unmask, sigma)
        moved = jnp.where(changed, jnp.where(masked, x0, process.mask), x)
        if self.spread == "even":
            return Tokens(moved, state.evaluations + 1)
        score = jnp.where(masked, jnp.exp(token_log_prob(logits, x0)), jnp.inf)
        return Scored(moved, state.evaluations + 1, jnp.where(changed, score, state.score))

    def _sigma(self, state, row, level_t, level_s):
        """The probability of being masked again; at a mask, what decides how soon it is unmasked."""
        most = jnp.minimum(1.0, safe_divide(level_s, 1 - level_t, jnp.sign(level_s)))
        sigma = self.eta * most if self.limit == "rescale" else jnp.minimum(self.eta, most)
        on = row.t == row.to if self.loop else row.t <= self.start
        sigma = jnp.where(on, sigma, 0.0)
        if self.spread == "even":
            return sigma
        unsure = jnp.exp(-state.score)
        total = jnp.sum(unsure, axis=tuple(range(1, unsure.ndim)), keepdims=True)
        return sigma * safe_divide(unsure, total)


def remasking(eta=0.1, limit="rescale", spread="even", start=1.0, loop=0):
    """Ancestral sampling that masks tokens again, to correct them.

        unmasked:  masked with probability sigma
        masked:    unmasked with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t)

    for any sigma up to `sigma_max = min(1, (1 - alpha_s) / alpha_t)`. Wang et al. (2025), arXiv:2503.00307,
    eq. 6 and 7.

    Spread evenly, every sigma gives each token the marginals of the absorbing process, in the loop too
    (theorem 3.1); as in ancestral sampling, tokens that are unmasked in one step are drawn independently of
    each other, so the law of all is exact as steps become short, and in the loop as eta becomes small.
    By confidence it is not: whether a token is drawn again depends on its value, unless how sure the network
    is of a token says nothing of that; and masks are unmasked as without remasking, so more of them are left
    than the process has, and more are drawn together in the last steps. That part falls about as the
    root of eta: three tokens of even parity are .04 from their law at eta = 1 in 200 steps, .01 at .05.

    Args:
      eta: in [0, 1]; 0 is ancestral sampling.
      limit: sigma = eta sigma_max ("rescale") or min(eta, sigma_max) ("cap").
      spread: "even", or by "confidence": an unmasked token gets the share `softmax(-psi)` of sigma among the
        unmasked, psi its probability when it was drawn, and a mask none. Tokens of the start stay. It is
        at most one token's worth for a whole sequence, so for long ones eta is 1, as published.
      start: remasking is on in steps from this time down (ReMDM-switch, eq. 10).
      loop: further evaluations at `start` (the first time of the grid that is not above it), in which alpha
        stands still, and which alone remask (ReMDM-loop). Published: 450 steps to alpha = .9, 500 in the
        loop with "cap" at eta = .02, and 50 steps to the end.
    """
    check_choice("remasking", "limit", limit, LIMITS)
    check_choice("remasking", "spread", spread, SPREADS)
    if isinstance(eta, (int, float)) and not 0 <= eta <= 1:
        raise ValueError(f"remasking: expected eta in [0, 1], got {eta}")
    if isinstance(start, (int, float)) and not 0 < start <= 1:
        raise ValueError(f"remasking: expected start in (0, 1], got {start}")
    check_count("remasking", least=0, loop=loop)
    return Remasking(eta, limit, spread, start, int(loop))
