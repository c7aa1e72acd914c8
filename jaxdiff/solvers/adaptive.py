"""Adaptive steps: every sample has its own step sizes, and its error is held to tolerances.

A row of the plan is a leg between two grid points, in which a sample takes as many steps as it needs; the
grid only says where the path is saved. Samples go on together until the slowest has arrived.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff.core import (
    check_choice,
    check_order,
    check_positive,
    concrete,
    dataclass,
    match_dims,
    namespace,
    static_field,
)
from jaxdiff.solvers import through_diffrax
from jaxdiff.solvers.runge_kutta import COORDINATES
from jaxdiff.solvers.tableau import check_linear
from jaxdiff.solvers.through_diffrax import ODE_METHODS, SDE_METHODS


@dataclass
class Adaptive:
    """See `adaptive` and `dpm_adaptive`."""

    rtol: float
    atol: float
    tau: float
    first: float
    safety: float
    method: str = static_field()
    coordinate: str = static_field()
    prediction: str = static_field()
    stochastic: bool = static_field()
    max_steps: int = static_field()

    def plan(self, process, grid):
        """The `Legs` for a process and `(steps + 1,)` decreasing times, or increasing ones for ODEs.

        Raises:
          ValueError: for a grid that does not decrease, or leads where there is no noise to start from.
        """
        if grid is None:
            raise ValueError("adaptive: expected a grid of times, got None; see jd.grids")
        check_linear("adaptive", process)
        grid = grids.either_way(process, grid)
        self._check(process, grid)
        xp = namespace(grid, process, self)
        s, t, t_min = grid[:-1], grid[1:], process.t_min
        (a_s, _, c_s), (a_t, _, c_t) = process.coefficients(s), process.coefficients(t)
        stop = xp.where(c_t == 0, xp.minimum(s, t_min), t)
        leads = a_s == 0
        mirrored = process.time_of_log_snr(-process.log_snr(1.0 * t_min))
        start = xp.where(leads, xp.maximum(mirrored, stop), s)
        a_1, _, c_1 = process.coefficients(start)
        steps = grid.shape[0] - 1
        spread = lambda leaf: xp.broadcast_to(xp.asarray(leaf), (steps, *np.shape(leaf)))  # noqa: E731
        return Legs(
            t=s,
            to=t,
            start=start,
            stop=stop,
            leads=leads,
            ends=c_t == 0,
            lead_x=c_1 / c_s,
            lead_d=a_1,
            end_d=a_t,
            moves=start != stop,
            arrives=np.arange(1, steps + 1),
            settings=jax.tree.map(spread, self),
            process=jax.tree.map(spread, process),
            steps=steps,
            noisy=self.stochastic,
        )

    def _check(self, process, grid):
        if self.stochastic and getattr(process, "repeats", False):
            raise ValueError(
                f"adaptive: expected tau = 0 for {type(process).__name__}, whose noise repeats entries"
            )
        known = concrete(grid)
        if known is None:
            return
        upwards = known[0] < known[-1]
        if upwards and self.stochastic:
            raise ValueError(
                f"adaptive: expected a decreasing grid with tau > 0, got {known[0]:g} to {known[-1]:g}"
            )
        a, c = (concrete(process.coefficients(known)[i]) for i in (0, 2))
        if c is not None and c[0] == 0 or (upwards and a is not None and a[-1] == 0):
            raise ValueError(
                "adaptive: expected a grid that starts with noise, and ends before a = 0 if it increases, "
                f"got {known[0]:g} to {known[-1]:g}"
            )

    def init(self, x, rows):
        """The sampler's state at the start."""
        return rows.init(x, rows)

    def step(self, denoise, state, row, draw):
        """One leg."""
        return row.step(denoise, state, row, draw)


class State(NamedTuple):
    """The points, and the number of network evaluations that each has taken, `(batch,)`."""

    x: object
    evaluations: jax.Array


@dataclass
class Legs:
    """What an adaptive solver needs of a grid, one row per leg.

    Attributes:
      t: `(steps,)` times of the legs' starts.
      to: `(steps,)` times that they lead to.
      start: `(steps,)` where integration starts: at `t`, or after a first step from a = 0.
      stop: `(steps,)` where it stops: at `to`, or at `t_min` before a last step to c = 0.
      leads: `(steps,)`, whether there is such a first step, `lead_x x + lead_d D`.
      ends: `(steps,)`, whether there is such a last step, `end_d D`.
      moves: `(steps,)`, whether there is anything in between.
    """

    t: jax.Array
    to: jax.Array
    start: jax.Array
    stop: jax.Array
    leads: jax.Array
    ends: jax.Array
    lead_x: jax.Array
    lead_d: jax.Array
    end_d: jax.Array
    moves: jax.Array
    arrives: jax.Array
    settings: Adaptive
    process: object
    steps: int = static_field()
    noisy: bool = static_field()

    @property
    def nfe(self):
        """Number of rows; evaluations are counted in the state, as they differ from sample to sample."""
        return self.t.shape[-1]

    def plan(self, process, grid=None):
        """The plan itself."""
        del process, grid
        return self

    def init(self, x, rows):
        """The state at `x`."""
        return State(x, jnp.zeros(jax.tree.leaves(x)[0].shape[0], jnp.int32))

    def step(self, denoise, state, row, draw):
        """One leg: a step from a = 0 if it starts there, integration, a step to c = 0 if it ends there."""

        def single(x, t, of_x, of_clean):
            clean = jax.tree.map(lambda d, x: d.astype(x.dtype), denoise(x, t), x)
            return jax.tree.map(lambda x, d: of_x * x + of_clean * d, x, clean)

        def integrate(x):
            solve = _embedded if row.settings.method.startswith("dpm") else through_diffrax.solve_batch
            return solve(denoise, x, row, draw)

        x, count = state
        lead = lambda x: single(x, row.t, row.lead_x, row.lead_d)  # noqa: E731
        end = lambda x: single(x, row.stop, 0.0, row.end_d)  # noqa: E731
        x = jax.lax.cond(row.leads > 0, lead, lambda x: x, x)
        x, more = jax.lax.cond(row.moves > 0, integrate, lambda x: (x, jnp.zeros_like(count)), x)
        x = jax.lax.cond(row.ends > 0, end, lambda x: x, x)
        return State(x, count + more + (row.leads > 0) + (row.ends > 0))


def adaptive(rtol=1e-3, atol=1e-3, method=None, tau=0.0, coordinate="log_snr", max_steps=4096):
    """Adaptive steps through diffrax: Runge-Kutta on the probability-flow ODE, or the reverse SDE.

        x, state = jd.sample(keys, denoise, process, jd.solvers.adaptive(), grid, shape=shape, save="state")
        state.evaluations    # (batch,), what each sample took

    In log-SNR, `z = x / sqrt(a^2 + c^2)`, `A = a / sqrt(a^2 + c^2)` and `C = c / sqrt(a^2 + c^2)`:

        dz = (-A^2 z + A D + tau^2 (A D - z)) dlog_snr + sqrt(2) tau C dW

    whose noise is additive, for methods of strong order 1.5, and drawn from a virtual Brownian tree of
    the sample's key: a rejected step is repeated on the same path (Kidger (2021), arXiv:2202.02435;
    Jolicoeur-Martineau et al. (2021), arXiv:2105.14080). Errors are controlled in units of z.

    Steps from a = 0 and to c = 0 are one evaluation each, as in every solver. A sample that has not arrived
    after `max_steps` is NaN. Works under `jit`, `vmap` and on many devices; not under `grad`.

    Args:
      rtol: relative tolerance of a step.
      atol: absolute tolerance of a step.
      method: "bosh3", "tsit5" (the default), "dopri5" or "dopri8"; with tau > 0 "shark" (the default)
        or "sra1".
      tau: noise level of the reverse SDE, 0 for the ODE.
      coordinate: of the ODE: "log_snr", or "time" or "sigma" of `runge_kutta` (then `z = x` or `x / a`).
      max_steps: of one sample in one leg of the grid.

    Raises:
      ValueError: for settings out of range.
      ImportError: where diffrax is not installed.
    """
    check_positive("adaptive", rtol=rtol, atol=atol, max_steps=max_steps)
    if isinstance(tau, bool) or not isinstance(tau, (int, float)) or tau < 0:
        raise ValueError(f"adaptive: expected tau to be a number of at least 0, got {tau!r}")
    check_choice("adaptive", "coordinate", coordinate, COORDINATES if tau == 0 else ("log_snr",))
    method = method or ("tsit5" if tau == 0 else "shark")
    check_choice("adaptive", "method", method, ODE_METHODS if tau == 0 else SDE_METHODS)
    through_diffrax.load()
    return Adaptive(rtol, atol, float(tau), 0.0, 0.0, method, coordinate, "data", tau > 0, max_steps)


def dpm_adaptive(order=3, rtol=0.05, atol=0.0078, prediction="noise", first=0.05, safety=0.9, max_steps=4096):
    """Adaptive DPM-Solver-12 or -23: DPM-Solver of two orders that share their evaluations.

        delta = max(atol, rtol max(|x_low|, |x_previous|)),    E = rms((x_high - x_low) / delta)

    A step of log-SNR `h` is taken (`x = x_high, x_previous = x_low`) where `E <= 1`; then
    `h = safety h E^(-1 / order)`. Lu et al. (2022), arXiv:2206.00927, appendix C; with data prediction
    DPM-Solver++. Here each sample has its own `E` and `h`, where the published code takes the largest `E`
    of the batch; and log-SNR may decrease (from data to noise), where it does not stop. Not under `grad`.

    Args:
      order: 2 (12) or 3 (23); so many evaluations a step, taken or not.
      rtol: relative tolerance; the defaults are the paper's, for images in [-1, 1].
      atol: absolute tolerance.
      prediction: "noise" or "data".
      first: the first step in log-SNR.
      safety: factor of the next step.
      max_steps: of one sample in one leg of the grid; one that has not arrived then is NaN.
    """
    check_positive("dpm_adaptive", rtol=rtol, atol=atol, first=first, safety=safety, max_steps=max_steps)
    order = check_order("dpm_adaptive", order, (2, 3))
    check_choice("dpm_adaptive", "prediction", prediction, ("noise", "data"))
    return Adaptive(
        rtol, atol, 0.0, first, safety, f"dpm{order - 1}{order}", "log_snr", prediction, False, max_steps
    )


def _embedded(denoise, x, row, draw):
    """Every sample of the batch from log-SNR `start` to `stop` by DPM-Solver-12 or -23."""
    del draw
    own, process = row.settings, row.process
    order = int(own.method[-1])
    batch, dtype = jax.tree.leaves(x)[0].shape[0], jax.tree.leaves(x)[0].dtype
    first, last = (jnp.asarray(process.log_snr(t), dtype) for t in (row.start, row.stop))
    way = jnp.sign(last - first)

    def busy(state):
        return (state[2] != last) & (state[5] < own.max_steps)

    def body(state):
        x, previous, log_snr, size, count, tries = state
        active = busy(state)
        size = jnp.minimum(size, jnp.abs(last - log_snr))
        h = way * jnp.where(active, size, 1.0)
        low, high = _both_orders(denoise, process, x, log_snr, h, order, own.prediction)
        error = _error(low, high, previous, own)
        taken = active & (error <= 1)
        keep = lambda new, old: jax.tree.map(  # noqa: E731
            lambda n, o: jnp.where(match_dims(taken, n), n, o), new, old
        )
        arrives = size >= jnp.abs(last - log_snr)
        log_snr = jnp.where(taken, jnp.where(arrives, last, log_snr + h), log_snr)
        size = own.safety * size * jnp.maximum(error, 1e-8) ** (-1 / order)
        count = count + jnp.where(active, order, 0)
        return keep(high, x), keep(low, previous), log_snr, size, count, tries + 1

    full = lambda value, kind=dtype: jnp.full(batch, value, kind)  # noqa: E731
    start = (x, x, full(first), full(own.first), full(0, jnp.int32), full(0, jnp.int32))
    x, _, log_snr, _, count, _ = jax.lax.while_loop(lambda state: busy(state).any(), body, start)
    arrived = log_snr == last
    return jax.tree.map(lambda x: jnp.where(match_dims(arrived, x), x, jnp.nan), x), count


def _both_orders(denoise, process, x, log_snr, h, order, prediction):
    """The steps `h`, `(batch,)`, of the lower and the higher order from `log_snr`, `(batch,)`."""
    nodes = {2: (0.0, 1 / 2), 3: (0.0, 1 / 3, 2 / 3)}[order]
    own = 2 if prediction == "data" else 0  # the coefficient that scales x; the other one scales the estimate
    hh = -h if prediction == "data" else h
    cast = functools.partial(jnp.asarray, dtype=log_snr.dtype)  # coefficients of tables may be wider
    time = lambda r: cast(process.time_of_log_snr(log_snr + r * h))  # noqa: E731
    at = lambda r: tuple(map(cast, process.coefficients(time(r))))  # noqa: E731
    start = at(0.0)

    def estimate(point, r):
        t = time(r)
        a, _, c = at(r)
        clean = jax.tree.map(lambda d, x: d.astype(x.dtype), denoise(point, t), point)
        if prediction == "data":
            return clean
        return jax.tree.map(lambda x, d: (x - match_dims(a, x) * d) / match_dims(c, x), point, clean)

    def move(r, weights):
        """`x` at node r: a constant estimate, and the weights on differences to the first one."""
        end = at(r)
        lead, gain = end[own] / start[own], -end[2 - own]
        of_e = [gain * jnp.expm1(r * hh), *(gain * w for w in weights)]

        def leaf(x, first, *others):
            total = match_dims(lead, x) * x + match_dims(of_e[0], x) * first
            return total + sum(match_dims(w, x) * (e - first) for w, e in zip(of_e[1:], others, strict=False))

        return jax.tree.map(leaf, x, *estimates)

    def second(r):
        return jnp.expm1(r * hh) / (r * hh) - 1

    estimates = [estimate(x, 0.0)]
    estimates.append(estimate(move(nodes[1], []), nodes[1]))
    half = move(1.0, [jnp.expm1(hh) / (2 * nodes[1])])
    if order == 2:
        return move(1.0, []), half
    point = move(nodes[2], [nodes[2] / nodes[1] * second(nodes[2])])
    estimates.append(estimate(point, nodes[2]))
    return half, move(1.0, [0.0 * h, second(1.0) / nodes[2]])


def _error(low, high, previous, own):
    """`(batch,)` root mean squares over all values of an example."""

    def squares(low, high, previous):
        delta = jnp.maximum(own.atol, own.rtol * jnp.maximum(jnp.abs(low), jnp.abs(previous)))
        return jnp.sum(((high - low) / delta).reshape(low.shape[0], -1) ** 2, axis=1)

    total = sum(jax.tree.leaves(jax.tree.map(squares, low, high, previous)))
    return jnp.sqrt(total / sum(leaf[0].size for leaf in jax.tree.leaves(low)))
