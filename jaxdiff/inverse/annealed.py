"""Decoupled annealing: a clean estimate, a posterior sample around it, and noise again."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff.core import (
    check_count,
    check_one_ended,
    check_positive,
    dataclass,
    namespace,
    safe_divide,
    static_field,
)
from jaxdiff.inverse.noise import check_noisy, model
from jaxdiff.inverse.operators import Operator, check_measurement
from jaxdiff.inverse.walks import Point, parts


@dataclass
class Rows:
    """Rows of DDIM from every level to data, the last of each with the jump to the next level.

    Attributes:
      t, to: `(nfe,)` times of a row's evaluation and of where it leads.
      before, after: `(nfe, 2)` coefficients `(a, c)` there; `after` is data's where a row ends a level.
      level: `(nfe, 2)` coefficients of the level that the estimate belongs to.
      following: `(nfe, 2)` coefficients of the next level.
      ends: `(nfe,)` whether the row ends a level.
    """

    t: jax.Array
    to: jax.Array
    before: jax.Array
    after: jax.Array
    level: jax.Array
    following: jax.Array
    ends: jax.Array
    arrives: jax.Array
    steps: int = static_field()
    noisy: bool = static_field(default=True)

    nfe = property(lambda self: self.t.shape[-1])


@dataclass
class DAPS:
    """See `daps`."""

    operator: Operator
    y: jax.Array
    noise: object
    step_size: float
    sigma_data: float
    ode_steps: int = static_field()
    langevin_steps: int = static_field()

    def plan(self, process, grid):
        """The `Rows`: `ode_steps` of them for every level of the grid."""
        check_one_ended("daps", process)
        grid = grids.explicit(process, grid)
        xp, levels, n = namespace(grid, process), len(grid) - 1, self.ode_steps
        top = process.log_snr(grid[:-1, None])
        top = xp.where(xp.isfinite(top), top, -4.0)
        bottom = xp.maximum(process.log_snr(process.t_min), top)
        inner = process.time_of_log_snr(top + (bottom - top) * np.linspace(0, 1, n + 1)[None, 1:-1])
        t = xp.concatenate([grid[:-1, None], inner], 1).reshape(-1)
        to = xp.concatenate([inner, np.zeros((levels, 1))], 1).reshape(-1)
        ends = np.arange(1, levels * n + 1) % n == 0
        level, following = (xp.repeat(v, n) for v in (grid[:-1], grid[1:]))
        arrives = np.where(ends, np.repeat(np.arange(1, levels + 1), n), 0)
        coefficients = lambda t: xp.stack(process.coefficients(t)[::2], 1)  # noqa: E731
        return Rows(
            t, xp.where(ends, following, to), coefficients(t), coefficients(to), coefficients(level),
            coefficients(following), ends, arrives, steps=levels,
        )  # fmt: skip

    def init(self, x, rows):
        """The point itself."""
        del rows
        check_measurement(self.operator, x, self.y, "daps")
        return Point(x)

    def step(self, denoise, state, row, draw):
        """One row of the inner equation; at its end Langevin steps, and noise of the next level."""
        clean, e = parts(denoise, state.x, row)
        inner = row.after[0] * clean + row.after[1] * e

        def onward(inner):
            (a, c), (a_s, c_s) = row.level, row.following
            r2 = c**2 * self.sigma_data**2 / (a**2 * self.sigma_data**2 + c**2)
            x0 = self._langevin(inner, r2, draw)
            return a_s * x0 + c_s * draw.more(0)

        return Point(jax.lax.cond(row.ends, onward, lambda inner: inner, inner))

    def _langevin(self, estimate, r2, draw):
        """Steps on `log p(y | x0) - |x0 - estimate|^2 / (2 r^2)`, from the estimate."""

        def slope(x):
            likelihood = jax.grad(lambda x: jnp.sum(self.noise.log_prob(self.y, self.operator.forward(x))))(x)
            return likelihood - safe_divide(x - estimate, r2)

        def step(x, number):
            h = self.step_size * r2
            return x + h * slope(x) + jnp.sqrt(2 * h) * draw.more(1 + number), None

        return jax.lax.scan(step, estimate, jnp.arange(self.langevin_steps))[0]


def daps(operator, y, noise_level, ode_steps=5, langevin_steps=100, step_size=0.01, sigma_data=1.0):
    """Decoupled annealing posterior sampling.

    At each level: the probability-flow equation to a clean estimate, Langevin steps on the posterior of
    `x0 ~ N(estimate, r^2)` given y, noise of the next level. Zhang et al. (2024), arXiv:2407.01521,
    algorithm 1. `ode_steps` evaluations a level and no gradient of the network; an early error is not
    carried on. Biased by taking `x0 | x_t` for a Gaussian of variance r^2, less so at low noise.

    Args:
      operator: any differentiable one.
      y: measurement.
      noise_level: its deviation, above 0, or a noise model.
      ode_steps: evaluations for a clean estimate, at least 1.
      langevin_steps: at least 1.
      step_size: of a Langevin step, over r^2; stable below about `noise_level^2 / (r^2 + noise_level^2)`.
      sigma_data: standard deviation of the data's values, in `r^2 = c^2 s^2 / (a^2 s^2 + c^2)`.
    """
    check_count("daps", ode_steps=ode_steps, langevin_steps=langevin_steps)
    check_positive("daps", step_size=step_size, sigma_data=sigma_data)
    noise = model(noise_level, "daps")
    check_noisy("daps", noise)
    return DAPS(operator, y, noise, step_size, sigma_data, ode_steps, langevin_steps)
