"""Feynman-Kac particles: samples that compete for a reward while they are made.

Groups of particles walk a stochastic solver. Each row asks the network once for every particle, weighs the
particles by the reward of their clean estimates, resamples within the group where the weights have
become uneven, and lets the solver step. At exact data the weights amount to `exp(scale reward(x0))`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.core import (
    check_choice,
    check_count,
    check_noise,
    concrete,
    dataclass,
    fold_in,
    match_dims,
    safe_divide,
    static_field,
)
from jaxdiff.core.categorical import categorical, dense
from jaxdiff.solvers.discrete.steps import settled
from jaxdiff.solvers.tableau import check_rows

POTENTIALS = ("difference", "max", "sum")


class Particles(NamedTuple):
    """The state of a group of particles; arrays are `(groups, count)` unless said otherwise.

    Attributes:
      inner: the solver's state.
      log_weights: since the last resampling.
      spent: sum of the logarithms of the potentials so far.
      best: largest reward, or sum of rewards, of a particle's path.
      log_ratio: log density of the model's step over the proposal's, for guided proposals.
      log_normaliser: `(groups,)` estimate of `log E exp(scale reward(x0))`.
      dropped: `(groups,)` number of rewards that were not finite.
    """

    inner: object
    log_weights: jax.Array
    spent: jax.Array
    best: jax.Array
    log_ratio: jax.Array
    log_normaliser: jax.Array
    dropped: jax.Array

    @property
    def x(self):
        """The particles, `(groups * count, ...)`."""
        return self.inner.x


@dataclass
class Rows:
    """A solver's rows, and how much a reward's gradient moves the clean estimate in each."""

    rows: object
    gain: object

    t = property(lambda self: self.rows.t)
    to = property(lambda self: self.rows.to)
    arrives = property(lambda self: self.rows.arrives)
    nfe = property(lambda self: self.rows.nfe)
    steps = property(lambda self: self.rows.steps)
    noisy = property(lambda self: self.rows.noisy)
    parts = property(lambda self: getattr(self.rows, "parts", None))


@dataclass
class Steered:
    """A solver whose samples compete in groups; made by `particles` and `twisted`."""

    solver: object
    scale: float
    guide: float
    threshold: float
    reward: Callable = static_field()
    count: int = static_field()
    potential: str = static_field()
    every: int = static_field()
    guided: bool = static_field()

    name = property(lambda self: "twisted" if self.guided else "particles")

    def plan(self, process, grid=None):
        """The solver's plan, checked: it has to draw noise and to end at exact data."""
        if self.guided:
            check_noise("twisted", process)
        rows = self.solver.plan(process, grid)
        check_solver(self.name, self.solver, rows)
        if not rows.noisy:
            raise ValueError(
                f"{self.name}: expected a solver that draws noise, so that copies part again; use "
                "ancestral(), dpmpp_multistep(tau=1.0) or euler_maruyama()"
            )
        for part in (getattr(rows, "parts", None) or {"": rows}).values():  # of a product process, each
            last = concrete(part.to)
            if last is not None and last[-1] != 0:
                raise ValueError(
                    f"{self.name}: expected a grid that ends at exact data, t = 0, got {last[-1]:g}"
                )
        if self.guided and getattr(rows, "based", True):
            raise ValueError("twisted: expected a solver of one evaluation a step, without a corrector")
        return Rows(rows, _gains(process, rows.t) if self.guided else jnp.zeros(rows.nfe))

    def init(self, x, rows):
        """The particles at the start, all of one weight."""
        batch = jax.tree.leaves(x)[0].shape[0]
        if batch % self.count:
            raise ValueError(
                f"{self.name}: expected a batch of whole groups of {self.count}, a multiple of it, "
                f"got {batch}"
            )
        groups = batch // self.count
        first = jax.tree.leaves(x)[0].reshape(batch, -1)[:, 0]
        zero = jnp.zeros_like(first, jnp.promote_types(first.dtype, jnp.float32))  # on the devices of x
        zero = zero.reshape(groups, self.count)
        best = zero - jnp.inf if self.potential == "max" else zero
        inner = self.solver.init(x, rows.rows)
        return Particles(inner, zero, zero, best, zero, zero[:, 0], zero[:, 0].astype(jnp.int32))

    def step(self, denoise, state, row, draw):
        """One row: evaluate, weigh, resample, step."""
        x = state.inner.x

        def value(x):
            seen, clean = estimate(self.solver, denoise, x, row.rows, draw.own())
            return _reward(self.reward, seen), clean.astype(x.dtype) if self.guided else clean

        if self.guided:
            (_, slope), (r, clean) = _with_gradient(value, x)
        else:
            r, clean = value(x)
        r = jnp.asarray(r, state.spent.dtype).reshape(-1, self.count)
        weighed, index = self._weigh(state, r, row, draw.own())
        take = _taker(index, self.count)
        inner, clean = jax.tree.map(take, (state.inner, clean))
        if not self.guided:
            return weighed._replace(inner=self.solver.step(lambda x, t: clean, inner, row.rows, draw))
        noise = draw()
        drawn = row.rows.next[-1] > 0  # a step without noise cannot be weighed
        lead = self.guide * jnp.where((row.to > 0) & drawn, row.gain, 0.0)  # the last gives what was weighed
        led = clean + lead * take(jnp.where(jnp.isfinite(slope), slope, 0.0))
        moved = self.solver.step(lambda x, t: led, inner, row.rows, lambda: noise)
        # the model's own step from here: it remembers its own estimates, whoever proposes the points
        model = self.solver.step(lambda x, t: clean, inner, row.rows, lambda: noise)
        ratio = _log_ratio(row.rows, clean - led, noise).reshape(-1, self.count)
        inner = model._replace(x=moved.x)
        return weighed._replace(inner=inner, log_ratio=ratio)

    def _weigh(self, state, r, row, keys):
        """The state with new weights, and the particles `(groups, count)` that go on."""
        final, usable = row.to == 0, jnp.isfinite(r)
        counted = final | (row.arrives % self.every == 0)
        r = jnp.where(usable, r, -jnp.inf)
        spent, best = (
            jnp.where(counted, new, old)
            for new, old in zip(self._spent(state, r, final), (state.spent, state.best), strict=True)
        )
        log_w = state.log_weights + state.log_ratio + jnp.where(usable, spent - state.spent, -jnp.inf)
        log_w = jnp.where(jnp.any(jnp.isfinite(log_w), 1, keepdims=True), log_w, 0.0)  # none left: all go on
        p = jax.nn.softmax(log_w, axis=1)
        uneven = (1 / jnp.sum(p**2, 1) < self.threshold * self.count) | final
        mean = jax.nn.logsumexp(log_w, axis=1) - jnp.log(self.count)
        chosen = jax.vmap(_systematic)(fold_in(keys[:: self.count], 2**20), p)
        index = jnp.where(uneven[:, None], chosen, jnp.arange(self.count)[None])
        spent, best = (jnp.take_along_axis(jnp.where(usable, k, 0.0), index, 1) for k in (spent, best))
        return state._replace(
            log_weights=jnp.where(uneven[:, None], 0.0, log_w),
            spent=spent,
            best=best,
            log_normaliser=state.log_normaliser + jnp.where(uneven, mean, 0.0),
            dropped=state.dropped + jnp.sum(~usable, 1, dtype=jnp.int32),
        ), index

    def _spent(self, state, r, final):
        """Sum of log potentials after this row; with the last, `scale reward(x0)` whatever the potential."""
        if self.potential == "difference":
            return self.scale * r, r
        best = jnp.maximum(state.best, r) if self.potential == "max" else state.best + r
        return jnp.where(final, self.scale * r, state.spent + self.scale * best), best


def particles(solver, reward, count, scale=1.0, potential="difference", threshold=0.5, every=1):
    """Samples of `p(x0) exp(scale reward(x0))` by groups of particles; a solver -> solver.

    Give `sample` groups * count keys: sample i is particle i % count of group i // count, all alike at the
    end. One evaluation a particle and row. Consistent as count grows, for any reward; with few particles
    biased towards `p(x0)`; unbiased in `log_normaliser`'s exponential. `sample(..., save="state")` returns
    the `Particles` too. Singhal et al. (2025), arXiv:2501.06848.

    Args:
      solver: a stochastic solver of one evaluation a step, on a grid that ends at exact data; or
        `jd.solvers.discrete.ancestral()` or `tau_leaping()`.
      reward: `reward(x0) -> (batch,)`, of clean estimates; of tokens, one draw of `p(x0 | x_t)`. A particle
        whose reward is not finite is dropped and counted.
      count: particles in a group; 1 is plain sampling.
      scale: of the reward: 1 / alpha.
      potential: "difference" (of the rewards of successive estimates), or "max" or "sum" (of the rewards
        along the path, one factor `exp(scale max)` or `exp(scale sum)` for each step that counts, taken
        back by the last): these look further ahead, and with many steps that count few particles are left.
      threshold: resample where the effective sample size is below this share of count; 0 only at the end.
      every: steps between those that count, e.g. a fifth of all for "max" and "sum".

    Raises:
      ValueError: for no particles, a batch that is no whole number of groups (on several
        devices: of each device's share), a solver without noise, or a reward of another shape.
    """
    return _steered("particles", solver, reward, count, scale, potential, threshold, 0.0, every)


def twisted(solver, log_likelihood, count, guide=1.0, threshold=0.5):
    """Twisted particles: proposals led by the gradient of the likelihood, with weights that make up for it.

        proposal: D + guide (c^2 / a) grad_x log p(y | D(x));   weight: times p / q and the twists' ratio

    Consistent for `p(x0) p(y | x0)` as count grows, whatever `guide` is. One backward pass a row. Wu et al.
    (2023), arXiv:2306.17775, algorithm 1.

    Args:
      solver, threshold: as of `particles`.
      log_likelihood: `(x0) -> (batch,)`, differentiable.
      count: particles in a group; one follows the gradient alone, which is not exact.
      guide: strength of the proposals' gradient. At high noise the likelihood of the clean estimate is too
        sure of itself, and the weights of 1 uneven: 0.3 to 0.5 needs fewer particles.
    """
    return _steered("twisted", solver, log_likelihood, count, 1.0, "difference", threshold, guide)


def _steered(where, solver, reward, count, scale, potential, threshold, guide, every=1):
    check_choice(where, "potential", potential, POTENTIALS)
    check_count(where, count=count, every=every)
    if isinstance(threshold, (int, float)) and not 0 <= threshold <= 1:
        raise ValueError(f"{where}: expected threshold in [0, 1], got {threshold}")
    guided = not (isinstance(guide, (int, float)) and guide == 0)
    return Steered(solver, scale, guide, threshold, reward, int(count), potential, int(every), guided)


def check_solver(where, solver, rows):
    """Refuses solvers that do not ask the network once a row, at its time, for what they draw from."""
    check_rows(where, rows)
    parts = getattr(rows, "parts", None) or {}
    if tokens := [name for name, part in parts.items() if hasattr(part, "process")]:
        raise ValueError(f"{where}: expected a product of numbers, or tokens alone, got tokens for {tokens}")
    if alone := getattr(solver, "alone", None):
        raise ValueError(
            f"{where}: expected a solver that draws from the network's logits at the time of each row, got "
            f"{type(solver).__name__}, which {alone}"
        )


def estimate(solver, denoise, x, row, keys):
    """What a reward is asked of, and what the solver is given in place of the network.

    Both are the clean estimate; of tokens, a draw of it and its logits. The last step makes that draw: with
    the rewards of what comes out, the weights telescope to the tilted law.
    """
    parts = getattr(row, "parts", None)  # of a product process, each at its own time
    t = {name: part.t for name, part in parts.items()} if parts else row.t
    clean, process = denoise(x, t), getattr(row, "process", None)
    if process is None:
        return clean, clean
    logits = dense(process.check_logits(clean, x, "steering"))
    x0 = settled(solver, process, categorical(fold_in(keys, 2**20 + 1), logits), x)
    drawn = jax.lax.broadcasted_iota(x0.dtype, logits.shape, logits.ndim - 1) == x0[..., None]
    return x0, jnp.where((row.to > 0) | drawn, logits, -jnp.inf)


def _gains(process, t):
    """`c^2 / a`, which takes a gradient of the log-likelihood to the clean estimate; 0 at a = 0."""
    a, _, c = process.coefficients(t)
    return safe_divide(c**2, a)


def _reward(reward, clean):
    batch = jax.tree.leaves(clean)[0].shape[:1]
    r = reward(clean)
    if jnp.shape(r) != batch:
        raise ValueError(
            f"steering: expected reward to return one number per example, {batch}, got {jnp.shape(r)}"
        )
    return r


def _with_gradient(value, x):
    """Value and gradient of the first of two outputs, and both."""
    (r, clean), pull = jax.vjp(value, x)
    slope = pull((jnp.ones_like(r), jnp.zeros_like(clean)))[0]
    return (r, slope), (r, clean)


def _log_ratio(rows, gap, noise):
    """`log p(x' | x) - log q(x' | x)` for means that differ by the weight of `gap` = D_p - D_q."""
    weight = rows.next[2] * (1.0 if rows.plain else rows.keep[1])
    std = rows.next[-1]
    shift = jnp.where(std > 0, weight / jnp.where(std > 0, std, 1.0), 0.0) * gap
    axes = tuple(range(1, gap.ndim))
    return jnp.sum(shift * noise - 0.5 * shift**2, axis=axes)


def _systematic(key, p):
    """Indices of systematic resampling: particle i occurs `count p_i` times, rounded up or down."""
    count = p.shape[0]
    points = (jnp.arange(count) + jax.random.uniform(key, ())) / count
    return jnp.clip(jnp.searchsorted(jnp.cumsum(p), points), 0, count - 1)


def _taker(index, count):
    """Reorders arrays `(groups * count, ...)` within their groups."""

    def take(leaf):
        if leaf.ndim == 0:  # such as a count of evaluations
            return leaf
        grouped = leaf.reshape(-1, count, *leaf.shape[1:])
        return jnp.take_along_axis(grouped, match_dims(index, grouped), 1).reshape(leaf.shape)

    return take
