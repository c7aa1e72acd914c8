"""Solvers that meet a measurement as they walk: replacement and its cycles, spectral steps, steering.

Each is built from the clean estimate D and the noise estimate `e = (x_t - a_t D) / c_t` of a row, and what
the method makes of them. One row is one evaluation of the network, without its gradient.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff.core import (
    check_count,
    check_one_ended,
    dataclass,
    namespace,
    safe_divide,
    safe_sqrt,
    static_field,
)
from jaxdiff.inverse.noise import model
from jaxdiff.inverse.operators import Operator, check_measurement


@dataclass
class Rows:
    """First-order steps, one row per evaluation.

    Attributes:
      t, to: `(nfe,)` times of a row's evaluation and of the point it leads to.
      before, after: `(nfe, 2)` coefficients `(a, c)` at these times.
      spread: `(nfe,)` deviation of `q(x_s | x_t, x0)`, the noise of an ancestral step.
      back: `(nfe,)` time to which noise takes the point afterwards; `to` where nothing follows.
      renoise: `(nfe, 2)` weights of the point and of noise that take it there.
      arrives: `(nfe,)` number of the grid point that a row arrives at for the last time, else 0.
    """

    t: jax.Array
    to: jax.Array
    before: jax.Array
    after: jax.Array
    spread: jax.Array
    back: jax.Array
    renoise: jax.Array
    arrives: jax.Array
    steps: int = static_field()
    noisy: bool = static_field(default=True)

    nfe = property(lambda self: self.t.shape[-1])


class Point(NamedTuple):
    """The state of a method that remembers nothing."""

    x: jax.Array


def rows_of(process, grid, schedule=None):
    """`Rows` of a walk down a grid, each step once, or as `schedule(steps)` says.

    Args:
      process: forward process without a second endpoint.
      grid: `(steps + 1,)` decreasing times.
      schedule: `steps -> [(from, back), ...]`: a row from grid point k to k + 1, and the grid point to
        which noise takes it then, k + 1 for none.
    """
    check_one_ended("inverse", process)
    grid = grids.explicit(process, grid)
    steps = len(grid) - 1
    walk = np.array(schedule(steps) if schedule else [(k, k + 1) for k in range(steps)])
    first, back = walk[:, 0], walk[:, 1]
    a, _, c = process.coefficients(grid)
    s, t = first + 1, back  # noise goes from the less noisy time of point s to that of point t
    xp = namespace(grid, process)
    gain = xp.where(t < s, process.gain(grid[t], grid[s]), 1.0)
    renoise = xp.where(t < s, safe_sqrt(c[t] ** 2 - gain**2 * c[s] ** 2), 0.0)
    step = safe_sqrt(c[first] ** 2 - process.gain(grid[first], grid[s]) ** 2 * c[s] ** 2)
    last = {int(point): row for row, point in enumerate(s)}
    arrives = [int(point) if last[int(point)] == row else 0 for row, point in enumerate(s)]
    pairs = xp.stack([a, c], 1)
    return Rows(
        grid[first], grid[s], pairs[first], pairs[s], step * c[s] / c[first], grid[t],
        xp.stack([gain, renoise], 1), np.array(arrives), steps=steps,
    )  # fmt: skip


def parts(denoise, x, row):
    """The clean estimate and the noise estimate `e` of a row."""
    clean = denoise(x, row.t).astype(x.dtype)
    a, c = row.before
    return clean, safe_divide(1.0, c) * (x - a * clean)


@dataclass
class Replacement:
    """See `replacement` and `repaint`."""

    operator: Operator
    y: jax.Array
    eta: float
    schedule: object = static_field()

    def plan(self, process, grid):
        """The `Rows` of the walk with its cycles."""
        return rows_of(process, grid, self.schedule)

    def init(self, x, rows):
        """The point itself."""
        del rows
        check_measurement(self.operator, x, self.y, "replacement")
        return Point(x)

    def step(self, denoise, state, row, draw):
        """One step; then what is measured is replaced by the measurement at that noise."""
        clean, e = parts(denoise, state.x, row)
        (a, c), spread = row.after, self.eta * row.spread
        stepped = a * clean + safe_sqrt(c**2 - spread**2) * e + spread * draw.more(0)
        known = a * self.y + c * self.operator.forward(draw.more(1))
        x = stepped + self.operator.pinv(known - self.operator.forward(stepped))
        return Point(row.renoise[0] * x + row.renoise[1] * draw.more(2))


def replacement(operator, y, eta=1.0):
    """What is measured is replaced, at every noise level, by the measurement with noise of that level.

        x_s = x_s + A^+ (a_s y + c_s A noise - A x_s)

    Song et al. (2021), arXiv:2011.13456, app. I.2; no gradient of the network. The rest of the sample
    learns of the measurement only through the network, one step later: biased, towards the prior.

    Args:
      operator: a `mask`, or any operator with a pseudo-inverse.
      y: measurement without noise.
      eta: 1 for ancestral steps, 0 for those of `ddim`.
    """
    return _replacement("replacement", operator, y, eta, None)


def repaint(operator, y, jump=4, cycles=5, eta=1.0):
    """`replacement` with resampling: after every `jump` steps down, noise takes the sample as far up again.

    Each stretch is walked `cycles` times, so the rest comes into harmony with what is measured: the bias of
    `replacement` shrinks as cycles grow and stretches become short. Costs about `cycles` times the
    evaluations of the grid. Lugmayr et al. (2022), arXiv:2201.09865, sec. 4.2.

    Args:
      operator, y, eta: as of `replacement`.
      jump: steps of a stretch, at least 1.
      cycles: times that a stretch is walked, at least 1.
    """
    check_count("repaint", jump=jump, cycles=cycles)

    def schedule(steps):
        walk = []
        for start in range(0, steps, jump):
            end = min(start + jump, steps)
            for cycle in range(cycles):
                stretch = [(k, k + 1) for k in range(start, end)]
                again = cycle < cycles - 1 and end < steps  # from exact data nothing is taken back
                walk += [*stretch[:-1], (end - 1, start)] if again else stretch
                if not again:
                    break
        return walk

    return _replacement("repaint", operator, y, eta, schedule)


def cyclic_one_way(operator, y, high=0.7, low=0.3, cycles=10, eta=1.0):
    """Cyclic one-way diffusion: the middle of the walk again and again, the seed planted in every step.

    Information goes from the seed, which is replaced in each step, to what surrounds it, and never back.
    Biased as `replacement` is, however many the cycles, for each of them is one long stretch. Wang
    et al. (2023), arXiv:2306.08247.

    Args:
      operator: a `mask` of the seed's place.
      y: the seed in its place.
      high, low: where the cycles begin and end, as shares of the grid's steps that are left.
      cycles: at least 1; 1 is `replacement`.
      eta: as of `replacement`.
    """
    check_count("cyclic_one_way", cycles=cycles)
    if not 0 < low < high <= 1:
        raise ValueError(f"cyclic_one_way: expected 0 < low < high <= 1, got low={low} and high={high}")

    def schedule(steps):
        start, end = round(steps * (1 - high)), min(round(steps * (1 - low)), steps - 1)
        if start >= end and cycles > 1:
            raise ValueError(
                f"cyclic_one_way: expected a grid with a step between high={high} and low={low} "
                f"of its steps, got {steps} steps"
            )
        once = [(k, k + 1) for k in range(steps)]
        cycle = [*once[start : end - 1], (end - 1, start)]
        return [*once[:start], *cycle * (cycles - 1), *once[start:]]

    return _replacement("cyclic_one_way", operator, y, eta, schedule)


def _replacement(where, operator, y, eta, schedule):
    if isinstance(eta, (int, float)) and not 0 <= eta <= 1:
        raise ValueError(f"{where}: expected eta in [0, 1], got {eta}")
    return Replacement(operator, y, eta, schedule)


@dataclass
class DDRM:
    """See `ddrm`."""

    operator: Operator
    y: jax.Array
    sigma: jax.Array
    eta: float
    eta_b: float

    def plan(self, process, grid):
        """The `Rows` of the walk."""
        return rows_of(process, grid)

    def init(self, x, rows):
        """The start, in the measured directions around the measurement."""
        check_measurement(self.operator, x, self.y, "ddrm")
        if self.operator.singular(x) is None:
            raise ValueError("ddrm: expected an operator with singular vectors, got one without; use mmps")
        seen, _, measured = self._measured(x)
        start = self.operator.to(x) + rows.before[0, 0] * jnp.where(seen, measured, 0.0)
        return Point(self.operator.back(start))

    def step(self, denoise, state, row, draw):
        """One step of every coefficient, by its own noise level."""
        x = state.x
        clean, e = parts(denoise, x, row)
        (a, c), (seen, spread, measured) = row.after, self._measured(x)
        clean, e, noise = (self.operator.to(v) for v in (clean, e, draw()))
        keep = safe_sqrt(1 - self.eta**2)
        free = a * clean + c * (keep * e + self.eta * noise)
        quiet = a * clean + c * (keep * safe_divide(measured - clean, spread) + self.eta * noise)
        rest = safe_sqrt(c**2 - (a * spread * self.eta_b) ** 2)
        led = a * ((1 - self.eta_b) * clean + self.eta_b * measured) + rest * noise
        x = jnp.where(seen, jnp.where(c < a * spread, quiet, led), free)
        return Point(self.operator.back(x))

    def _measured(self, x):
        """Which coefficients are measured, the noise of their measurement, and its value."""
        raw = self.operator.to(self.operator.adjoint(self.y))
        s = jnp.broadcast_to(self.operator.singular(x), raw.shape[1:])[None]
        seen = s > 1e-3 * jnp.max(s)
        s = jnp.where(seen, s, 0.0)
        return seen, safe_divide(self.sigma, s), safe_divide(raw, s**2)


def ddrm(operator, y, noise_level=0.0, eta=0.85, eta_b=1.0):
    """Denoising diffusion restoration: each singular direction by its own rule.

    With `s` a singular value, y' = U^T y / s and sigma = c / a, a direction of the next point is

        s = 0                 a D + c (sqrt(1 - eta^2) e + eta noise)
        sigma < noise / s     a D + c (sqrt(1 - eta^2) (y' - D) s / noise + eta noise)
        else                  a ((1 - eta_b) D + eta_b y') + sqrt(c^2 - (a eta_b noise / s)^2) noise

    Kawar et al. (2022), arXiv:2201.11793, eq. 7 and 8, for any process. No gradient of the network; what
    is not measured learns of the measurement through the network alone.

    Args:
      operator: with singular vectors: every named one, or a `dense` matrix.
      y: measurement. It is added to the start: one given to `jd.sample` as `x=` holds nothing but noise,
        `c noise`, in the measured directions.
      noise_level: standard deviation of its noise, a number of at least 0.
      eta, eta_b: the paper's, in [0, 1].

    Raises:
      ValueError: for settings out of range, or an operator without singular vectors.
    """
    for name, value in (("eta", eta), ("eta_b", eta_b)):
        if isinstance(value, (int, float)) and not 0 <= value <= 1:
            raise ValueError(f"ddrm: expected {name} in [0, 1], got {value}")
    noise = model(noise_level, "ddrm")
    if jnp.ndim(getattr(noise, "sigma", jnp.zeros(1))):
        raise ValueError("ddrm: expected one standard deviation for all measured values; use mmps")
    return DDRM(operator, y, noise.sigma, eta, eta_b)


@dataclass
class FlowChef:
    """See `flow_chef`."""

    operator: Operator
    y: jax.Array
    step_size: float
    updates: int = static_field()

    def plan(self, process, grid):
        """The `Rows` of the walk."""
        rows = rows_of(process, grid)
        return rows.replace(noisy=False)

    def init(self, x, rows):
        """The point itself."""
        del rows
        check_measurement(self.operator, x, self.y, "flow_chef")
        return Point(x)

    def step(self, denoise, state, row, draw):
        """One step along the flow, and the gradient of the cost at the clean estimate."""
        del draw
        clean, e = parts(denoise, state.x, row)
        aim = clean
        for _ in range(self.updates):
            near = self.operator.at(aim)
            aim = aim + self.step_size * near.adjoint(self.y - self.operator.forward(aim))
        a, c = row.after
        return Point(a * clean + c * e + (a + c) * (aim - clean))


def flow_chef(operator, y, step_size=0.5, updates=1):
    """Gradient-skipping steering of a flow: the gradient at the clean estimate moves the point itself.

        x_s = a_s D + c_s e - (a_s + c_s) step_size grad_D |y - A D|^2 / 2

    The derivative of the estimate with respect to the point counts as the identity, so the network is not
    differentiated. With a + c = 1, as in a flow, it is the paper's step; other processes take the same way
    in their own scale. Patel et al. (2024), arXiv:2412.00100, algorithm 1. A point estimate: samples agree
    with the measurement, their spread is not the posterior's.

    Args:
      operator: any, also `nonlinear`.
      y: measurement.
      step_size: of a gradient step, below 2 over the largest squared singular value.
      updates: gradient steps in a row of the walk, at least 1.
    """
    check_count("flow_chef", updates=updates)
    if isinstance(step_size, (int, float)) and not step_size > 0:
        raise ValueError(f"flow_chef: expected step_size above 0, got {step_size}")
    return FlowChef(operator, y, step_size, updates)
