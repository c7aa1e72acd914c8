"""Denoising MCMC: a Markov chain over samples and their noise levels, and the way home from any level.

A point of the product space is `{"x": (batch, ...), "t": (batch,)}`: samples, and the time at which each
of them is noisy data, one of a few `levels`. Both solvers here walk such points through `jd.sample`:

    space = jd.solvers.levels(process, 40, start=2.0)
    chain = jd.solvers.langevin_gibbs(space, conditional, steps=400)
    path  = jd.sample(keys, denoise, process, chain, x={"x": x, "t": t}, save=20)
    home  = jd.solvers.from_level(jd.solvers.dpmpp_multistep(2), space, steps=6)
    clean = jd.sample(None, denoise, process, home, x=point)["x"]

The chain never leaves the neighbourhood of the data, so the way home is short: a clean sample costs the
steps between two points of the chain and a few more. Kim and Ye (2023), arXiv:2209.14593.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff.core import (
    batch_keys,
    check_count,
    check_positive,
    concrete,
    dataclass,
    match_dims,
    namespace,
    static_field,
)
from jaxdiff.processes.linear import OfBase
from jaxdiff.solvers import tableau


def levels(process, count, start=None, end=None):
    """`(count,)` decreasing times, equal steps in log-SNR: the noise levels of the chain.

    Args:
      process: forward process.
      count: number of levels, at least 2.
      start: the highest time; `process.t_max` by default, if its log-SNR is finite.
      end: the lowest time; `process.t_min` by default.

    Raises:
      ValueError: for ends without finite log-SNR, or out of order.
    """
    start = process.t_max if start is None else start
    end = process.t_min if end is None else end
    low, high = (float(process.log_snr(np.float64(t))) for t in (start, end))
    if count < 2 or not np.isfinite([low, high]).all() or low >= high:
        raise ValueError(
            f"levels: expected at least 2 levels between times with noise and data, got {count} from "
            f"{start} to {end} (log-SNR {low} to {high})"
        )
    t = np.asarray(process.time_of_log_snr(np.linspace(low, high, count)), np.float64)
    t[0], t[-1] = start, end
    return t


def level_conditional(log_prob, times, log_prior=None):
    """The exact conditional of the level: `x -> log p(x | t_k) + log prior_k`, up to a constant.

    Args:
      log_prob: `(x, t) -> (batch,)` log-density of noisy data, e.g. of `jd.testing` or an energy model.
      times: `(levels,)`.
      log_prior: `(levels,)` logarithms of the weights of the levels; equal by default.
    """
    prior = np.zeros(len(times)) if log_prior is None else np.asarray(log_prior, np.float64)

    def conditional(x):
        t = jnp.asarray(times, x.dtype)
        return jax.lax.map(lambda t: log_prob(x, t), t).T + jnp.asarray(prior, x.dtype)[None]

    return conditional


def level_loss(classifier, key, x0, process, times, log_prior=None):
    """Cross-entropy of a noise-level classifier on noisy data, `(batch,)` nats.

    `classifier(x) -> (batch, levels)` logits that minimise it are the conditional of `langevin_gibbs`:
    Kim and Ye (2023), arXiv:2209.14593.

    Args:
      classifier: network, parameters closed over.
      key: one key.
      x0: clean data, `(batch, ...)`.
      times: `(levels,)`.
      log_prior: `(levels,)`, by which the level of an example is drawn; equal by default.
    """
    pick, draw = jax.random.split(key)
    logits = jnp.zeros(len(times)) if log_prior is None else jnp.asarray(log_prior)
    level = jax.random.categorical(pick, logits, shape=x0.shape[:1])
    noise = process.noise(batch_keys(draw, x0.shape[0], "level_loss"), x0)
    x = process.perturb(x0, noise, jnp.asarray(times, x0.dtype)[level])
    found = jax.nn.log_softmax(classifier(x), axis=-1)
    return -jnp.take_along_axis(found, level[:, None], axis=1)[:, 0]


@dataclass
class ChainPlan:
    """The levels, once for each step of the chain: row k is one Langevin step and one draw of the level.

    Attributes:
      t, to: `(nfe,)`, the highest level, for `sample`; the points carry times of their own.
      times: `(nfe, levels)`.
      a, c: `(nfe, levels)` coefficients there.
      size: `(nfe,)` size of a Langevin step over `c^2`.
    """

    t: jax.Array
    to: jax.Array
    times: jax.Array
    a: jax.Array
    c: jax.Array
    size: jax.Array
    arrives: jax.Array
    steps: int = static_field()
    noisy: bool = static_field(default=True)

    nfe = property(lambda self: self.t.shape[-1])


@dataclass
class LangevinGibbs:
    """See `langevin_gibbs`."""

    times: object
    size: float
    conditional: object = static_field()
    steps: int = static_field()

    def plan(self, process, grid=None):
        """The `ChainPlan`; a chain has no grid."""
        if grid is not None:
            raise ValueError("langevin_gibbs: expected no grid, got one; the chain stays at its levels")
        a, _, c = process.coefficients(self.times)
        times, a, c = (np.broadcast_to(v, (self.steps, len(self.times))) for v in (self.times, a, c))
        nominal = np.full(self.steps, self.times[0])
        size = self.size * namespace(self.size).ones(self.steps)
        arrives = np.arange(1, self.steps + 1)
        return ChainPlan(nominal, nominal, times, a, c, size, arrives, steps=self.steps)

    def init(self, x, rows):
        """The point itself is the state."""
        del rows
        return Point(_checked(x, "langevin_gibbs"))

    def step(self, denoise, state, row, draw):
        """One Langevin step at each sample's own level, then a draw of its level."""
        x, level = state.x["x"], _nearest(state.x["t"], row.times)
        t, a, c = (table[level] for table in (row.times, row.a, row.c))
        size = match_dims(row.size * c**2, x)
        a, c = match_dims(a, x), match_dims(c, x)
        score = (a * denoise(x, t).astype(x.dtype) - x) / c**2
        x = x + size * score + jnp.sqrt(2 * size) * draw.of(draw.own(0), x)
        drawn = jax.vmap(jax.random.categorical)(draw.own(1), self.conditional(x))
        return Point({"x": x, "t": row.times[drawn]})


class Point(NamedTuple):
    """The state of both solvers where nothing else is carried."""

    x: dict


def langevin_gibbs(times, conditional, steps, step_size=0.1):
    """Denoising Langevin Gibbs: a chain with `p(x, t_k) ~ p_k(x) prior_k` as its stationary law.

        x = x + size c^2 score(x, t) + sqrt(2 size) c noise
        t ~ p(t | x)

    Kim and Ye (2023), arXiv:2209.14593, for any process. Rows that `jd.sample(save=k)` keeps
    are points of the chain, far from independent: keep every tenth or so.

    Args:
      times: `(levels,)` decreasing times, of `levels`.
      conditional: `x -> (batch, levels)` unnormalised log-probabilities of the level, of
        `level_conditional` or a classifier trained with `level_loss`.
      steps: number of steps, one network evaluation each.
      step_size: of Langevin, over `c^2`; the law is exact as it goes to 0.

    Raises:
      ValueError: for settings out of range.
    """
    check_positive("langevin_gibbs", step_size=step_size)
    check_count("langevin_gibbs", steps=steps)
    return LangevinGibbs(_decreasing(times, "langevin_gibbs"), step_size, conditional, steps)


@dataclass
class HomePlan:
    """A linear solver's tableau from every level: rows of all levels, one below the other.

    Attributes:
      tables: `Tableau` whose arrays are `(nfe, levels, ...)`.
      t, to: `(nfe,)`, of the highest level.
      start: `(nfe, levels)`, the levels, to find an example's own by its time.
    """

    tables: tableau.Tableau
    t: jax.Array
    to: jax.Array
    start: jax.Array
    arrives: jax.Array
    steps: int = static_field()
    noisy: bool = static_field()

    nfe = property(lambda self: self.t.shape[-1])


class HomeState(NamedTuple):
    """The samples' linear solver state, and the level each of them started from."""

    inner: tableau.State
    level: jax.Array
    t: jax.Array

    @property
    def x(self):
        return {"x": self.inner.x, "t": self.t}


@dataclass
class FromLevel:
    """See `from_level`."""

    solver: tableau.LinearSolver
    times: object
    grid: object = static_field()
    steps: int = static_field()

    def plan(self, process, grid=None):
        """The `HomePlan`: the solver's plan on a grid of its own from every level."""
        if grid is not None:
            raise ValueError("from_level: expected no grid, got one; every level has a grid of its own")
        levels = [self.grid(_from(process, float(t)), self.steps) for t in self.times]
        plans = [tableau.linear_plan("from_level", self.solver, process, grid) for grid in levels]
        rows = plans[0]
        shapes = {(plan.nfe, plan.memory) for plan in plans}
        if len(shapes) != 1:
            raise ValueError(
                f"from_level: expected plans of one shape from every level, got {sorted(shapes)}"
            )
        flags = {name: getattr(rows, name) for name in ("steps", "plain", "based", "noisy")}
        plans = [plan.replace(**flags) for plan in plans]
        tables = jax.tree.map(lambda *leaves: np.stack(leaves, axis=1), *plans)
        start = np.broadcast_to(self.times, (rows.nfe, len(self.times)))
        return HomePlan(tables, rows.t, rows.to, start, np.asarray(rows.arrives), rows.steps, rows.noisy)

    def init(self, x, rows):
        """The linear solver's state at the samples; their times say where they start."""
        point = _checked(x, "from_level")
        level = _nearest(point["t"], rows.start[0])
        return HomeState(tableau.init(point["x"], rows.tables), level, point["t"])

    def step(self, denoise, state, row, draw):
        """One row of every sample's own plan."""
        own = jax.tree.map(lambda leaf: leaf[state.level], row.tables)
        x = state.inner.x
        clean, noise = denoise(x, own.t).astype(x.dtype), draw.of(draw.own(), x) if row.noisy else None

        def one(row, state, clean, noise):
            return row.step(lambda x, t: clean, state, row, lambda: noise)

        singles = jax.tree.map(lambda v: v[:, None], (state.inner, clean, noise))
        inner = jax.tree.map(lambda v: v[:, 0], jax.vmap(one)(own, *singles))
        return HomeState(inner, state.level, own.to)


def from_level(solver, times, steps, grid=grids.log_snr):
    """Takes every sample from its own noise level to data, with a linear solver.

    All samples take the same number of steps, each on a grid between its own time and data.

    Args:
      solver: a linear solver, e.g. `dpmpp_multistep(2)`.
      times: `(levels,)` decreasing times at which samples may start; the nearest is taken.
      steps: of every sample's grid.
      grid: `(process, steps) -> times` of `jd.grids`, called with the level as the process's `t_max`.

    Raises:
      ValueError: for times that do not decrease.
    """
    return FromLevel(solver, _decreasing(times, "from_level"), grid, steps)


def _from(process, t):
    """The process as grids see it that start at `t`."""
    while isinstance(process, OfBase):
        process = process.base
    if isinstance(getattr(type(process), "t_max", None), property):
        got = type(process).__name__
        raise ValueError(f"from_level: expected a process with a t_max of its own, got {got}")
    return process.replace(t_max=t, t_min=min(process.t_min, 0.1 * t))


def _nearest(t, times):
    """`(batch,)` indices of the levels next to times `(batch,)`."""
    return jnp.argmin(jnp.abs(t[:, None] - times[None].astype(t.dtype)), axis=1)


def _decreasing(times, where):
    known = concrete(times)
    if known is None or known.ndim != 1 or known.size < 2 or np.any(np.diff(known) >= 0) or known[-1] <= 0:
        raise ValueError(f"{where}: expected (levels,) decreasing times above 0, known before tracing")
    return np.asarray(known, np.float64)


def _checked(x, where):
    if not isinstance(x, dict) or set(x) != {"x", "t"} or x["t"].shape != x["x"].shape[:1]:
        raise ValueError(
            f'{where}: expected x={{"x": (batch, ...), "t": (batch,)}}, samples with the time of each'
        )
    return x
