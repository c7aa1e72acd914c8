"""Ancestral sampling with a residual energy, by self-normalised importance sampling."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxdiff.core import check_count, dataclass, fold_in, static_field
from jaxdiff.core.categorical import categorical
from jaxdiff.solvers.discrete.steps import Tokens, Walk, lay_out


@dataclass
class Importance(Walk):
    """See `importance`."""

    energy: Callable = static_field()
    candidates: int = static_field()
    window: float

    alone = "chooses among draws by their energies"

    def plan(self, process, grid):
        """The `DiscretePlan`."""
        return lay_out("importance", process, grid)

    def step(self, denoise, state, row, draw):
        """Candidates for all clean tokens at once, one of them by its energy, then the posterior step."""
        x, process = state.x, row.process
        noise, pick, values = (draw.own(i) for i in range(3))
        logits = self.logits(denoise, x, row.t, process)

        def candidate(i):
            x0 = process.consistent(categorical(fold_in(values, i), logits), x)
            return x0, -self.energy(x0, x, row.t, logits)

        def weighed(_):
            x0, log_weight = jax.lax.map(candidate, jnp.arange(self.candidates))
            which = categorical(pick, jnp.moveaxis(log_weight, 0, -1))
            which = which.reshape(1, -1, *(1,) * (x.ndim - 1))
            return jnp.where(which < 0, which, jnp.take_along_axis(x0, which, axis=0))[0]

        x0 = jax.lax.cond(row.t >= self.window, weighed, lambda _: candidate(0)[0], None)
        x = process.reverse(process.noise(noise, x), x, x0, row.t, row.to)
        return Tokens(x, state.evaluations + 1)


def importance(energy, candidates=8, window=0.0):
    """Steps towards `mu(x0 | x_t) exp(-E)`: of k draws of the denoiser one is kept by `softmax(-E)`.

    The tokens of a factorised denoiser are independent, so few steps miss how they go together; the energy
    puts it back, exactly as k grows. One network call a step and k of the energy. Xu et al. (2025),
    arXiv:2410.21357.

    Args:
      energy: `energy(x0, x_t, t, logits) -> (batch,)`; see `jd.losses.discrete`.
      candidates: k, at least 1.
      window: steps that start before this time, the last ones, draw without it.
    """
    check_count("importance", candidates=candidates)
    return Importance(energy, int(candidates), window)
