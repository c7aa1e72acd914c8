"""Inverse problems as optimisation: of a mean against the denoiser (RED-Diff), or of the start noise."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.core import as_number, check_count, check_positive, dataclass
from jaxdiff.inverse.noise import check_noisy, model
from jaxdiff.inverse.operators import Operator, check_measurement
from jaxdiff.inverse.walks import rows_of
from jaxdiff.sampling import sample


class State(NamedTuple):
    """The mean, and Adam's moments of it."""

    x: jax.Array
    moments: object


@dataclass
class REDDiff:
    """See `red_diff`."""

    operator: Operator
    y: jax.Array
    variance: jax.Array
    weight: float
    learning_rate: float

    def plan(self, process, grid):
        """The `Rows` of the walk; no noise level is left behind, they only order the weights."""
        return rows_of(process, grid)

    def init(self, x, rows):
        """The mean starts at the pseudo-inverse of the measurement, or at 0 without one."""
        del rows
        check_measurement(self.operator, x, self.y, "red_diff")
        try:
            mean = self.operator.pinv(self.y).astype(x.dtype) + 0 * x
        except ValueError:
            mean = jnp.zeros_like(x)
        return State(mean, self._adam().init(mean))

    def step(self, denoise, state, row, draw):
        """One update of Adam at one noise level."""
        mean, noise = state.x, draw()
        a, c = row.before
        clean = denoise(a * mean + c * noise, row.t).astype(mean.dtype)
        # lam (e_hat - e) with lam = weight c / a, and e_hat - e = (a / c)(mean - D)
        regular = self.weight * (mean - clean)
        near = self.operator.at(mean)
        data = near.adjoint((self.operator.forward(mean) - self.y) / self.variance)
        update, moments = self._adam().update(data + regular, state.moments)
        return State(mean + update, moments)

    def _adam(self):
        return _adam(self.learning_rate, 0.99)


def red_diff(operator, y, noise_level, weight=0.25, learning_rate=0.1):
    """Regularisation by denoising diffusion: the mode-seeking variational posterior, by Adam.

        |y - A mu|^2 / (2 noise_level^2) + lambda_t sg(e_hat(x_t) - e)^T mu,    x_t = a mu + c e

    at falling t, with `lambda_t = weight c / a`. Mardani et al. (2023), arXiv:2305.04391, algorithm 1. No
    gradient of the network; the result is one point per sample, near the posterior's mode, and not a draw.

    Args:
      operator: any differentiable one.
      y: measurement.
      noise_level: its deviation, above 0.
      weight: of the denoiser, above 0.
      learning_rate: of Adam.
    """
    check_positive("red_diff", weight=weight, learning_rate=learning_rate)
    noise = model(noise_level, "red_diff")
    check_noisy("red_diff", noise)
    return REDDiff(operator, y, jnp.asarray(noise.variance(y)), weight, learning_rate)


def latent(
    denoise, process, solver, grid, operator, y, x, *, updates=50, learning_rate=0.1, weight=None, loss=None
):
    """Start noise whose sample agrees with a measurement, by gradient through the sampler.

        argmin_x  mean |y - A sample(x)|^2 + weight mean |x|^2 / c_T^2 + loss(sample(x))

    Pan et al. (2024), arXiv:2407.08019, for inpainting: the known part as measurement, and as `loss`
    whatever else is wanted of the sample. One point for each start, near the posterior's mode, and not a
    draw. Memory as of `sample(gradient="checkpointed")`.

    Args:
      denoise, process: as of `jd.sample`.
      solver: a deterministic one; `grid` its times, which may begin below `t_max`.
      operator: any differentiable one.
      y: measurement, `(batch, ...)`.
      x: `(batch, ...)` first start noise, e.g. inverted from a rough guess.
      updates: of Adam, each one walk forwards, one more and one back.
      learning_rate: over the noise's size c_T.
      weight: of the noise's own prior; 0.01 by default.
      loss: `sample -> (batch,)`; None for none.

    Returns:
      `(x, sample, losses)`: the start, its sample, and `(updates, batch)` values on the way.
    """
    check_count("latent", updates=updates)
    check_positive("latent", learning_rate=learning_rate)
    check_measurement(operator, x, y, "latent")
    rows = solver.plan(process, grid)
    if rows.noisy:
        raise ValueError("latent: expected a deterministic solver, got one that draws noise; use ddim()")
    c = as_number(process.coefficients(rows.t[0])[2])
    weight = 0.01 if weight is None else weight
    mean = lambda v: jnp.mean(v.reshape(len(v), -1) ** 2, axis=1)  # noqa: E731

    def value(x):
        x0 = sample(None, denoise, process, solver, grid, x=x, gradient="checkpointed")
        cost = mean(y - operator.forward(x0)) + weight * mean(x / c)
        cost = cost if loss is None else cost + loss(x0)
        return jnp.sum(cost), cost

    adam = _adam(learning_rate * c)

    def update(carry, _):
        x, moments = carry
        (_, cost), slope = jax.value_and_grad(value, has_aux=True)(x)
        step, moments = adam.update(slope, moments)
        return (x + step, moments), cost

    (x, _), losses = jax.lax.scan(update, (x, adam.init(x)), None, length=updates)
    return x, sample(None, denoise, process, solver, grid, x=x), losses


def _adam(learning_rate, beta2=0.999):
    import optax  # only these two optimise

    return optax.adam(learning_rate, b2=beta2)
