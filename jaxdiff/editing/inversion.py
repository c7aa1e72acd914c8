"""From data to the noise it comes from: approximately, by fixed points, or exactly.

DDIM and flow inversion need nothing new: `jd.sample` on an increasing grid, with any deterministic solver.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff import grids
from jaxdiff.core import check_one_ended, concrete, dataclass, floating
from jaxdiff.solvers import Tableau, ddim, rewind
from jaxdiff.solvers.tableau import State


def fixed_point(denoise, process, grid, x0, iterations=5):
    """DDIM inversion whose every step is solved: sampling from the result gives `x0` back.

        x_t <- (c_t / c_s) (x_s - (a_s - a_t c_s / c_t) D(x_t, t))

    by fixed-point iteration from the explicit step, each an evaluation. Pan et al. (2023), arXiv:2309.04907.

    Args:
      denoise: `(x, t) -> clean estimate`.
      process: forward process without a second endpoint.
      grid: `(steps + 1,)` decreasing times above 0, as sampled with afterwards by `ddim()`.
      x0: `(batch, ...)` data, taken as the point at grid[-1].
      iterations: evaluations a step, at least 1; the error shrinks geometrically where steps are short.

    Returns:
      `(batch, ...)` points at grid[0].
    """
    check_one_ended("fixed_point", process)
    rows = _rows_above_zero("fixed_point", ddim().plan(process, grid))
    if iterations < 1:
        raise ValueError(f"fixed_point: expected at least 1 iteration, got {iterations}")
    x0 = floating("fixed_point", x0)
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, x0.dtype), rows)

    def back(x_s, row):
        on_x, _, on_clean, _ = row.next

        def solve(_, x_t):
            return (x_s - on_clean * denoise(x_t, row.t)) / on_x

        return jax.lax.fori_loop(0, iterations, solve, x_s), None

    return jax.lax.scan(back, x0, rows, reverse=True)[0]


class Latents(NamedTuple):
    """What `invert` finds: a solver's whole state at the start of its plan, and the plan."""

    state: State
    rows: Tableau

    @property
    def x(self):
        """The noise."""
        return self.state.x


def invert(denoise, process, solver, grid, x0):
    """Exact inversion by an invertible solver: the state from which it leads to `x0`, up to rounding.

    A `jd.solvers.reversible_heun()` is walked upwards instead and rewound, with this denoiser or another:

        rows = jd.solvers.reversible_heun().plan(process, grid[::-1])
        x_T, state = jd.sample(None, denoise, process, rows, x=x0, save="state")
        x0 = jd.solvers.rewind(denoise, rows, state).x

    Args:
      denoise: `(x, t) -> clean estimate`.
      process: forward process without a second endpoint.
      solver: `jd.solvers.edict()` or `jd.solvers.bdia()`.
      grid: `(steps + 1,)` decreasing times above 0.
      x0: `(batch, ...)` data, taken as the point at grid[-1].

    Returns:
      `Latents`; sample from them, with this denoiser or another, by `resume`.

    Raises:
      ValueError: for a solver that cannot be undone, or a grid that ends at exact data.
    """
    check_one_ended("invert", process)
    rows = _rows_above_zero("invert", solver.plan(process, grid))
    if not (hasattr(rows, "unstep") and hasattr(solver, "name")):
        raise ValueError(
            "invert: expected an invertible solver, jd.solvers.edict() or jd.solvers.bdia(), not "
            f"its plan; got {getattr(solver, 'name', type(solver).__name__)}; other solvers invert by "
            "jd.sample(None, denoise, process, solver, grid[::-1], x=x0), DDIM by fixed_point too"
        )
    x0 = floating("invert", x0)
    other = x0
    if solver.name == "bdia":  # its second sequence is the point before: by one explicit step
        other = jax.lax.stop_gradient(_explicit(denoise, process, grid, x0))
        rows = jax.tree.map(lambda leaf: leaf[1:], rows)
        rows = rows.replace(arrives=rows.arrives - 1, steps=rows.steps - 1)
    return Latents(rewind(denoise, rows, State(x0, other, ())), rows)


def _explicit(denoise, process, grid, x0):
    step = grids.explicit(process, grid)[-2:][::-1]
    rows = ddim().plan(process, step)
    on_x, _, on_clean, _ = (jnp.asarray(k, x0.dtype) for k in rows.next[0])
    return on_x * x0 + on_clean * denoise(x0, jnp.asarray(step[0], x0.dtype))


@dataclass
class Resumed:
    """A plan that starts from a given state; made by `resume`."""

    latents: Latents
    by_rows = True

    def plan(self, process, grid=None):
        """The plan that the latents belong to."""
        del process, grid
        return self.latents.rows

    def init(self, x, rows):
        """The latents' state, whatever the start."""
        del x, rows
        return self.latents.state

    def step(self, denoise, state, row, draw):
        """One row of the plan."""
        return row.step(denoise, state, row, draw)


def resume(latents):
    """A solver that goes on from `Latents`.

    As in `jd.sample(None, denoise, process, resume(latents), x=latents.x)`.
    """
    return Resumed(latents)


def _rows_above_zero(where, rows):
    last = concrete(rows.to)
    if last is not None and last[-1] <= 0:
        raise ValueError(
            f"{where}: expected a grid that ends above exact data, e.g. end=process.t_min, got 0"
        )
    return rows
