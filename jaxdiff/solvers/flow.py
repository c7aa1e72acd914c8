"""Walking a velocity field: flows and SDEs between the ends of an interpolant, and learned flow maps."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff.core import as_number, concrete, dataclass, match_dims, namespace, safe_sqrt, static_field
from jaxdiff.solvers.tableau import LinearSolver, table


def field(velocity, score=None, epsilon=0.0, forward=False):
    """A velocity field as the denoiser of `RectifiedFlow`: `D = x - t u(x, t)`, so that `(x - D) / t = u`.

    Every deterministic solver then integrates `dx / dt = u`, either way, from any start: the flow of a
    stochastic interpolant from one marginal to the other. With a score and `epsilon`, `u = velocity -
    epsilon score` towards t = 0 and `velocity + epsilon score` away from it: the drift of the SDEs with the
    same marginals, for `interpolant_sde`. Albergo et al. (2023), arXiv:2303.08797, eq. 2.15 and 2.16.

    Args:
      velocity: `velocity(x, t) -> (batch, ...)`, as `jd.losses.flow_matching` trains it with `y`.
      score: `score(x, t)`, needed where epsilon is not 0.
      epsilon: noise level, a number of at least 0 or a function of t; let it vanish where the
        interpolant's gamma does.
      forward: whether times increase.
    """
    level = epsilon if callable(epsilon) else lambda t: epsilon
    if score is None and (callable(epsilon) or concrete(epsilon) is None or epsilon != 0):
        raise ValueError(f"field: expected a score for epsilon = {epsilon}, got None")

    def denoise(x, t):
        u = velocity(x, t)
        if score is not None:
            of_score = match_dims(jnp.asarray(level(t), x.dtype), x, "field", "epsilon")
            u = u + (1 if forward else -1) * of_score * score(x, t)
        return x - match_dims(jnp.asarray(t, x.dtype), x, "field") * u

    return denoise


def interpolant_sde(epsilon=1.0):
    """Euler-Maruyama on `dx = u dt + sqrt(2 epsilon) dw`, `u` the drift of `field`, in either direction.

        x_t = x_s + (t - s) (x_s - D) / s + sqrt(2 epsilon |t - s|) noise,   D = x - s u

    For `RectifiedFlow` and the denoiser of `field` with the same epsilon: a number of at least 0, or a
    function of time written for numpy and jax. Needs times above 0. Albergo et al. (2023),
    arXiv:2303.08797, algorithm 4.
    """
    if isinstance(epsilon, (int, float)) and epsilon < 0:
        raise ValueError(f"interpolant_sde: expected epsilon of at least 0, got {epsilon}")
    if callable(epsilon):
        return LinearSolver("interpolant_sde", _interpolant_sde, (("level", epsilon),), {}, both_ways=True)
    numbers = {"epsilon": as_number(epsilon)}
    return LinearSolver("interpolant_sde", _interpolant_sde, (), numbers, both_ways=True)


def _interpolant_sde(process, grid, epsilon=0.0, level=None):
    del process
    xp = namespace(grid, epsilon)
    s, h = grid[:-1], grid[1:] - grid[:-1]
    epsilon = epsilon if level is None else level(s)
    noise = safe_sqrt(2 * epsilon * xp.abs(h)) * xp.ones_like(s)
    return table(s, [1 + h / s, 0.0, -h / s, noise])


class Map(NamedTuple):
    """The point of a flow map."""

    x: jax.Array


@dataclass
class Steps:
    """Rows of a solver that needs nothing but its times."""

    t: object
    to: object
    arrives: object
    noisy: bool = static_field(default=False)

    @property
    def nfe(self):
        """Number of network evaluations."""
        return self.t.shape[-1]

    steps = nfe


@dataclass
class FlowMap:
    """Steps `x_r = x_t - (t - r) u(x_t, t, r)` of an average velocity; made by `flow_map`."""

    net: Callable = static_field()
    denoises = False  # `sample` takes None for the denoiser

    def plan(self, process, grid):
        """The times of a `(steps + 1,)` grid."""
        grid = grids.either_way(process, grid)
        return Steps(grid[:-1], grid[1:], np.arange(1, len(grid)))

    def init(self, x, rows):
        """The start."""
        del rows
        return Map(x)

    def step(self, denoise, state, row, draw):
        """One jump."""
        del denoise, draw
        t, r = (jnp.full(state.x.shape[:1], time, state.x.dtype) for time in (row.t, row.to))
        return Map(state.x - (row.t - row.to) * self.net(state.x, t, r))


def flow_map(net):
    """Sampling with an average velocity `net(x, t, r) -> u`, in one step or a few; see `jd.losses.mean_flow`.

    `sample` takes None in the denoiser's place. Geng et al. (2025), arXiv:2505.13447, eq. 12.
    """
    return FlowMap(net)
