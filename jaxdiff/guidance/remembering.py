"""Guidance with memory: what a guide has seen in earlier steps, carried beside a solver's state."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.core import dataclass, fold_in, static_field
from jaxdiff.guidance.classifier_free import pair, strength_at
from jaxdiff.guidance.directions import along, shortened
from jaxdiff.solvers.tableau import check_rows


class Remembered(NamedTuple):
    """A solver's state, and the guide's memory."""

    inner: object
    memory: object

    @property
    def x(self):
        """The point."""
        return self.inner.x


@dataclass
class Remembering:
    """A solver whose denoiser is guided with memory; made by `remembering`."""

    solver: object
    guide: Callable = static_field()
    start: Callable = static_field()

    def plan(self, process, grid=None):
        """The solver's own plan."""
        rows = self.solver.plan(process, grid)
        check_rows("remembering", rows)
        if hasattr(rows, "process"):
            raise ValueError("remembering: expected a linear solver, got one of tokens")
        return rows

    def init(self, x, rows):
        """The solver's start, and a memory of nothing."""
        return Remembered(self.solver.init(x, rows), self.start(x))

    def step(self, denoise, state, row, draw):
        """One row: the guide turns what `denoise` gives into one clean estimate."""
        seen = []

        def guided(x, t):
            clean, memory = self.guide(x, t, denoise(x, t), state.memory)
            seen.append(memory)
            return clean

        inner = self.solver.step(guided, state.inner, row, draw)
        return Remembered(inner, seen[-1])


def remembering(solver, guide, start):
    """A solver -> solver: guidance that carries a memory from evaluation to evaluation.

    Args:
      solver: a linear solver of `jd.solvers`.
      guide: `guide(x, t, estimates, memory) -> (clean estimate, memory)`, where `estimates` is whatever
        the denoiser given to `sample` returns, such as the pair of `in_one_call`, and `x` is the solver's
        point: `x - b(t) y` where the process has a second endpoint.
      start: `x -> memory`, the memory of nothing.
    """
    return Remembering(solver, guide, start)


def momentum(solver, scale, beta=-0.5, eta=0.0, norm=None):
    """Adaptive projected guidance with (reverse) momentum, for a denoiser that returns `(D_c, D_u)`.

        d_k = D_c - D_u + beta d_(k-1);   then as `projected`

    Sadat et al. (2025), arXiv:2410.02416, algorithm 1.

    Args:
      solver: a linear solver.
      scale, eta, norm: as of `projected`.
      beta: momentum; negative in the paper.
    """

    def guide(x, t, estimates, memory):
        positive, negative = pair(estimates)
        strength = strength_at(scale, positive, t, "momentum")
        d = positive - negative + beta * memory
        return positive + (strength - 1) * along(positive, shortened(d, norm), eta), d

    return remembering(solver, guide, lambda x: jax.tree.map(jnp.zeros_like, x))


def precision_weighted(solver, scale, decay=0.7, floor=1e-4):
    """Stronger guidance where the model is sure of itself: a scale per value, for a pair `(D_c, D_u)`.

        precision = 1 / (running variance of D_c over the steps so far + floor), of mean 1 per example
        D = D_u + (1 + (scale - 1) precision) (D_c - D_u)

    Chen et al. (2024), arXiv:2405.02384 (CogDPM).

    Args:
      solver: a linear solver.
      scale: as of `classifier_free`.
      decay: of the running mean and variance, in [0, 1).
      floor: added to the variance.
    """
    if not 0 <= decay < 1:
        raise ValueError(f"precision_weighted: expected decay in [0, 1), got {decay}")

    def guide(x, t, estimates, memory):
        positive, negative = pair(estimates)
        strength = strength_at(scale, positive, t, "precision_weighted")
        mean, variance, weight = memory
        weight = decay * weight + 1 - decay
        gap = positive - mean
        rate = (1 - decay) / weight  # debiased: the first estimate is the mean
        mean, variance = mean + rate * gap, (1 - rate) * (variance + rate * gap**2)
        precision = 1 / (variance + floor)
        axes = tuple(range(1, x.ndim))
        precision = precision / jnp.mean(precision, axis=axes, keepdims=True)
        return negative + (1 + (strength - 1) * precision) * (positive - negative), (mean, variance, weight)

    def start(x):
        return jnp.zeros_like(x), jnp.zeros_like(x), jnp.zeros((), x.dtype)

    return remembering(solver, guide, start)


def plug_and_play(keys, denoise, x, t, log_prob, *, steps, prior=0.5, condition=0.5, noise=None):
    """A latent Langevin chain under a denoising prior and a plug-in condition; the end, `(batch, ...)`.

        h = h + prior (D(h, t) - h) + condition c^2 grad log p(y | h) + noise,  `noise` of the given scale

    For a process with a = 1 the first term is `prior c^2` times the score, so with `noise = c sqrt(2 prior)`
    and `condition = prior` it is unadjusted Langevin on `p_t(h) p(y | h)`; with no noise it climbs to a mode.
    Nguyen et al. (2017), arXiv:1612.00005 (its epsilon 1, 2, 3).

    Args:
      keys: `(batch,)` keys.
      denoise: `(x, t) -> clean estimate`.
      x: `(batch, ...)` start.
      t: the noise level of the prior, of a process with a = 1 and c = t (`EDM`).
      log_prob: `log_prob(h) -> (batch,)`, of the condition.
      steps: number of steps.
      prior, condition: step sizes, in units of `t^2`.
      noise: scale of the noise; `t sqrt(2 prior)` by default.
    """
    noise = t * jnp.sqrt(2 * prior) if noise is None else noise

    def step(h, i):
        slope = jax.grad(lambda h: jnp.sum(log_prob(h)))(h)
        draw = jax.vmap(lambda key: jax.random.normal(key, h.shape[1:], h.dtype))(fold_in(keys, i))
        h = h + prior * (denoise(h, t) - h) + condition * t**2 * slope + noise * draw
        return h, None

    return jax.lax.scan(step, x, jnp.arange(steps))[0]
