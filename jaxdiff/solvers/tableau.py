"""A solver is a table: the type, and the one executor that runs any of them.

Row k of a tableau is one network evaluation. With the point `x`, the step's base point `base`, what
the method remembers `e_k, e_k-1, ...` and fresh noise:

    D    = denoise(x, t)
    e    = p x + q D
    x    = next . [x, base, e_k, ..., e_k-H+1, noise]
    base = base . [x, base, e_k, ..., e_k-H+1, noise]

Numbers are float64 on the host where process and grid are known, and rounded once.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff.core import check_output, concrete, dataclass, host, is_concrete, namespace, static_field


@dataclass
class Tableau:
    """The numbers of a sampler, one row per network evaluation.

    Attributes:
      t: `(nfe,)` times of the evaluations.
      to: `(nfe,)` times of the points that the rows lead to.
      keep: `(nfe, 2)`, the weights `(p, q)` of what is remembered.
      next: `(nfe, 3 + H)`, weights of the next point on `[x, base, H remembered, noise]`; a weight may
        also have the shape of one example, `(nfe, 3 + H, *event)`.
      base: the same for the next base point.
      arrives: `(nfe,)` number of the grid point that a row arrives at, 0 inside a step.
      steps: number of steps of the grid.
      plain: the clean estimate itself is remembered; `keep` is not looked at.
      based: the method has a base point; else `base` is not looked at.
      noisy: the noise column is used; else no noise is drawn.
    """

    t: jax.Array
    to: jax.Array
    keep: jax.Array
    next: jax.Array
    base: jax.Array
    arrives: jax.Array
    steps: int = static_field()
    plain: bool = static_field(default=False)
    based: bool = static_field(default=True)
    noisy: bool = static_field(default=True)
    by_rows = True  # a solver whose steps are those of its rows, and nothing else

    @property
    def nfe(self):
        """Number of network evaluations."""
        return self.t.shape[-1]

    @property
    def memory(self):
        """Number of evaluations remembered, the present one included."""
        return self.next.shape[self.t.ndim] - 3

    def plan(self, process, grid=None):
        """The table itself: a plan takes the place of a solver anywhere."""
        del process, grid
        return self

    def init(self, x, rows):
        """The sampler's state at the start."""
        return init(x, rows)

    def step(self, denoise, state, row, draw):
        """One row of the plan; see `step` of this module."""
        return step(denoise, state, row, draw)


class State(NamedTuple):
    """What a linear solver carries: the point, the step's base point, what it remembers."""

    x: object
    base: object
    history: tuple


def init(x, rows):
    """The state at `x`: nothing remembered yet."""
    blank = tuple(jax.tree.map(jnp.zeros_like, x) for _ in range(rows.memory - 1))
    return State(x, x if rows.based else None, blank)


def step(denoise, state, row, draw):
    """One row: one network call and one linear combination.

    Args:
      denoise: `(x, t) -> clean estimate`.
      state: `State`.
      row: a `Tableau` with one row.
      draw: `draw()` is standard normal noise in the structure of `x`; `draw.keys` are the `(batch,)` keys
        of this row, for solvers that draw otherwise.

    Returns:
      The next `State`.
    """
    clean = denoise(state.x, row.t)
    clean = jax.tree.map(lambda d, x: check_output("sample", d, x).astype(x.dtype), clean, state.x)
    e = clean if row.plain else _combine(row.keep, (state.x, clean))
    remembered = (e, *state.history)
    columns = (state.x, state.base, *remembered, draw() if row.noisy else None)
    base = _combine(row.base, columns) if row.based else None
    return State(_combine(row.next, columns), base, remembered[: len(state.history)])


def moved(state, x):
    """The state at another point of the same time, at a grid point: the base point moves along.

    It is as far along as the point there (in every solver but `bdia`), and inside a step it is not.
    """
    if getattr(state, "base", None) is None:
        return state._replace(x=x)
    base = jax.tree.map(lambda b, new, old: b + (new - old), state.base, x, state.x)
    return state._replace(x=x, base=base)


def _combine(weights, columns):
    used = [(w, column) for w, column in zip(weights, columns, strict=True) if column is not None]

    def leaf(*values):
        return sum(_spread(w, v) * v for (w, _), v in zip(used, values, strict=True))

    return jax.tree.map(leaf, *(column for _, column in used))


def _spread(weight, value):
    return weight if weight.ndim == 0 else weight[None]


@dataclass
class LinearSolver:
    """A solver that is a rule for a tableau.

    Attributes:
      name: how it is called.
      rule: `(process, grid, **options, **numbers) -> Tableau`.
      options: settings that shape the table, as sorted `(name, value)` pairs.
      numbers: settings that only change its numbers; `vmap` and `grad` reach them.
      both_ways: whether its noise is right for increasing times as well.
      after_draw: whether its rule may start after the first step away from a bridge's pinned end.
      by_step: whether tuples among `options` have an entry for each step.
    """

    name: str = static_field()
    rule: Callable = static_field()
    options: tuple = static_field()
    numbers: dict
    both_ways: bool = static_field(default=False)
    after_draw: bool = static_field(default=True)
    by_step: bool = static_field(default=False)
    by_rows = True

    def plan(self, process, grid):
        """The `Tableau` of this solver for a process and `(steps + 1,)` decreasing times.

        Times that increase from above 0 take data to noise: inversion, for deterministic solvers.

        Raises:
          ValueError: for a grid that does not decrease or leaves the process's times, or a process of
            another kind.
        """
        if grid is None:
            raise ValueError(f"{self.name}: expected a grid of times, got None; see jd.grids")
        check_linear(self.name, process)
        process = host(process)
        grid = grids.either_way(process, grid)
        rule = functools.partial(self.rule, process, **dict(self.options), **self.numbers)
        upwards = is_concrete(grid) and grid[0] < grid[-1]
        if upwards and not self.both_ways and rule(grid=grid[::-1]).noisy:
            raise ValueError(
                f"{self.name}: expected a decreasing grid, got one from {grid[0]:g} to {grid[-1]:g}; only "
                "deterministic solvers go from data to noise"
            )
        pinned = is_pinned(process, grid)
        if pinned and not self.after_draw:
            raise ValueError(
                f"{self.name}: expected a grid that starts where there is noise, got one from {grid[0]:g}, "
                f"where {type(process).__name__} is pinned to its end; start later with x=, or take unipc()"
            )
        if pinned:  # its own first step has no setting
            settings = self.numbers | (dict(self.options) if self.by_step else {})
            rest = {k: v[1:] if np.shape(v) == (len(grid) - 1,) else v for k, v in settings.items()}
            rows = _from_pinned(functools.partial(rule, **rest), process, grid)
        else:
            rows = rule(grid=grid)
        xp = namespace(rows.t, grid)
        return rows.replace(to=xp.concatenate([rows.t[1:], grid[-1:]]))

    def init(self, x, rows):
        """The sampler's state at the start."""
        return rows.init(x, rows)

    def step(self, denoise, state, row, draw):
        """One row of the plan, by the plan's own step."""
        return row.step(denoise, state, row, draw)


def is_pinned(process, grid):
    """Whether the grid starts where a bridge has neither data nor noise left."""
    a, _, c = process.coefficients(grid[:1])
    if is_concrete(a, c):
        return a[0] == 0 and c[0] == 0
    end = getattr(process, "pinned", None)
    if end is None:
        return False
    if not is_concrete(grid, end):
        what = "grid" if is_concrete(end) else "process"
        raise ValueError(
            f"grid: expected known times for {type(process).__name__}, which is pinned to its end, got a "
            f"traced {what}; make the {what} outside of jit"
        )
    return grid[0] == end


def _from_pinned(rule, process, grid):
    """Rows whose first step is the exact draw `a D + c noise`: no solver has a slope at the pinned end."""
    a, _, c = (k[0] for k in process.coefficients(grid[1:2]))
    xp = namespace(grid, process)
    if len(grid) == 2:
        return table(grid[:1], [0.0, 0.0, xp.reshape(a, 1), xp.reshape(c, 1)])
    rest = rule(grid=grid[1:])
    xp = namespace(grid, process, rest)
    width = rest.next.shape[1]
    first = xp.stack([a if j == 2 else c if j == width - 1 else 0.0 * a for j in range(width)])[None]
    return rest.replace(
        t=xp.concatenate([grid[:1], rest.t]),
        to=xp.concatenate([rest.t[:1], rest.to]),
        keep=xp.concatenate([np.array([[0.0, 1.0]]), rest.keep]),
        next=xp.concatenate([first, rest.next]),
        base=xp.concatenate([first, rest.base]),
        arrives=np.append(1, np.where(rest.arrives > 0, rest.arrives + 1, 0)),
        steps=rest.steps + 1,
        noisy=True,
    )


def linear(name, rule, /, **settings):
    """A `LinearSolver`; floats and arrays among `settings` become leaves, everything else is static."""

    def fixed(v):
        return v is None or callable(v) or isinstance(v, (bool, int, str, tuple))

    static = {k: v for k, v in settings.items() if fixed(v)}
    numbers = {k: v for k, v in settings.items() if k not in static}
    return LinearSolver(name, rule, tuple(sorted(static.items())), numbers)


def check_linear(where, process):
    """Raises ValueError for a process of another kind than `x_t = a x0 + b y + c noise`."""
    if not (hasattr(process, "log_snr") and hasattr(process, "coefficients")):
        raise ValueError(
            f"{where}: expected a process x_t = a x0 + b y + c noise, got {type(process).__name__}; tokens "
            "are sampled by jd.solvers.discrete, product processes by jd.solvers.joint"
        )


def check_rows(where, rows):
    """Refuses a plan, of adaptive solvers, whose rows are not one evaluation each."""
    if hasattr(rows, "process") and not hasattr(rows.process, "check_logits"):
        got = type(rows).__name__
        raise ValueError(f"{where}: expected a solver of one evaluation a row, got one that plans {got}")


def linear_plan(where, solver, process, grid):
    """The plan of a solver that has to be linear; a ValueError says so."""
    rows = solver.plan(process, grid)
    if not isinstance(rows, Tableau):
        raise ValueError(
            f"{where}: expected a linear solver, such as ddim() or dpmpp_multistep(2), got one that plans "
            f"{type(rows).__name__}"
        )
    return rows


def table(t, next_x, *, next_base=None, keep=None, arrives=None, noisy=True):
    """A `Tableau` from its columns, on a grid that ends at exact data (`LinearSolver.plan` sets another).

    Args:
      t: `(nfe,)` times.
      next_x: list of the columns of `next` on `[x, base, remembered..., noise]`, each `(nfe,)` or a
        number.
      next_base: the same for `base`; None where the method has no base point.
      keep: columns `(p, q)`; None where the clean estimate itself is remembered.
      arrives: `(nfe,)` grid points arrived at; by default every row is a step.
      noisy: whether noise may be used; a column of known zeros says no by itself.
    """
    xp = namespace(t, next_x, next_base, keep)
    rows = t.shape[0]

    def columns(values):
        return xp.stack([xp.broadcast_to(xp.asarray(v, float), (rows,)) for v in values], axis=-1)

    noise = concrete(next_x[-1])
    arrives = np.arange(1, rows + 1) if arrives is None else np.asarray(arrives)
    return Tableau(
        t=t,
        to=xp.append(t[1:], 0.0),
        keep=columns((0.0, 1.0) if keep is None else keep),
        next=columns(next_x),
        base=columns(next_x if next_base is None else next_base),
        arrives=arrives,
        steps=int(arrives.max()),
        plain=keep is None,
        based=next_base is not None,
        noisy=noisy and not (noise is not None and not np.any(noise)),
    )


def staged(stages, skip, noisy=True):
    """A `Tableau` of steps with several evaluations each.

    Args:
      stages: one `(t, next, base, keep)` a stage, as `table` takes them, every entry `(steps,)` or a
        number; `next` of the last stage arrives at the grid point.
      skip: for each stage after the first, `(steps,)`, whether it is left out; where that is only known
        in the trace, it is an evaluation without effect.
      noisy: as of `table`.
    """
    t, *_ = stages[0]
    xp, steps, count = namespace(t, stages, skip), t.shape[0], len(stages)
    skip = [np.zeros(steps, bool), *skip]
    width = max(len(stage[1]) for stage in stages)

    def rows(parts):
        return xp.stack([xp.broadcast_to(xp.asarray(p, float), (steps,)) for p in parts], -1).reshape(-1)

    def columns(which, idle):
        filled = [_widened(stage[which], width) if which < 3 else stage[which] for stage in stages]
        return [
            rows([xp.where(skip[s], idle[j], filled[s][j]) for s in range(count)])
            for j in range(len(filled[0]))
        ]

    stay, hold = [1.0, *[0.0] * (width - 1)], [0.0, 1.0, *[0.0] * (width - 2)]
    next_x, base, keep = columns(1, stay), columns(2, hold), columns(3, (0.0, 0.0))
    last = np.arange(1, steps + 1)
    known = [concrete(s) for s in skip]
    if any(s is None for s in known):
        arrives = np.stack([*[0 * last] * (count - 1), last], -1).reshape(-1)
        t = rows([s[0] for s in stages])
        return table(t, next_x, next_base=base, keep=keep, arrives=arrives, noisy=noisy)
    use = ~np.stack([np.broadcast_to(s, (steps,)) for s in known], -1)
    final = use & (np.cumsum(use[:, ::-1], -1)[:, ::-1] == 1)
    use, arrives = use.reshape(-1), (final * last[:, None]).reshape(-1)
    return table(
        rows([s[0] for s in stages])[use],
        [column[use] for column in next_x],
        next_base=[column[use] for column in base],
        keep=[column[use] for column in keep],
        arrives=arrives[use],
        noisy=noisy,
    )


def _widened(columns, width):
    return [*columns[:-1], *[0.0] * (width - len(columns)), columns[-1]]


def stack(plans):
    """Plans of equal length as one, with a leading axis for `vmap`; narrower ones are widened.

    Raises:
      ValueError: if the plans differ in rows or steps, or have steps of their own and are not of one kind.
    """
    kinds = sorted({type(plan).__name__ for plan in plans})
    if not all(isinstance(plan, Tableau) for plan in plans):
        raise ValueError(f"stack: expected plans that are tables, got {' and '.join(kinds)}")
    if len(kinds) != 1:
        raise ValueError(f"stack: expected plans of one kind, got {' and '.join(kinds)}")
    shapes = {(plan.nfe, plan.steps) for plan in plans}
    if len(shapes) != 1:
        raise ValueError(f"stack: expected plans of equal (nfe, steps), got {sorted(shapes)}")
    memory = max(plan.memory for plan in plans)
    flags = {name: any(getattr(plan, name) for plan in plans) for name in ("based", "noisy")}
    flags["plain"] = all(plan.plain for plan in plans)

    def widen(plan):
        def pad(columns):
            blank = np.zeros((plan.nfe, memory - plan.memory, *columns.shape[2:]))
            return np.concatenate([columns[:, :-1], blank, columns[:, -1:]], axis=1)

        return plan.replace(next=pad(plan.next), base=pad(plan.base), **flags)

    plans = [widen(plan) for plan in plans]
    tables = sorted({tuple(np.shape(leaf) for leaf in jax.tree.leaves(plan)) for plan in plans})
    if len(tables) != 1:
        raise ValueError(f"stack: expected plans whose tables have equal shapes, got {tables}")
    return jax.tree.map(lambda *leaves: np.stack(leaves), *plans)
