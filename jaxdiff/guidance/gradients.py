"""Guidance by gradients: of a noise-aware classifier, or of any loss on the clean estimate."""

import jax
import jax.numpy as jnp

from jaxdiff.core import check_noise
from jaxdiff.guidance.classifier_free import strength_at


def classifier(denoise, process, log_prob, scale=1.0):
    """Classifier guidance: `D + scale (c^2 / a) grad_x log p(y | x_t)`.

    With scale 1 and the exact classifier it is the exact conditional clean estimate. Dhariwal and Nichol
    (2021), arXiv:2105.05233.

    Args:
      denoise: denoiser without condition.
      process: forward process.
      log_prob: `log_prob(x, t) -> (batch,)`, of noisy samples.
      scale: as of `classifier_free`.

    Undefined where a = 0, where nothing is known of the data yet: start the grid below, or use an interval.

    Raises:
      ValueError: for a process whose noise is not normal and independent, under which it is another formula.
    """
    check_noise("classifier", process)

    def guided(x, t):
        slope = jax.grad(lambda x: jnp.sum(log_prob(x, t)))(x)
        return denoise(x, t) + strength_at(scale, x, t, "classifier") * _gain(process, x, t) * slope

    return guided


def energy(denoise, process, loss, scale=1.0, through=True):
    """Guidance by a loss on the clean estimate: `D - scale (c^2 / a) grad_x loss(D(x))`.

    Approximates `p(x0) exp(-scale loss(x0))` by the loss at the mean, which is exact for linear losses
    under a Gaussian. Chung et al. (2023), arXiv:2209.14687; Bansal et al. (2023), arXiv:2302.07121.

    Args:
      denoise: denoiser.
      process: forward process.
      loss: `loss(x0) -> (batch,)`.
      scale: as of `classifier_free`.
      through: whether the gradient runs through the denoiser; if not, `dD / dx` counts as the identity
        over a (Patel et al. (2024), arXiv:2412.00100), and the network is not differentiated.

    Raises:
      ValueError: as `classifier`.
    """
    check_noise("energy", process)

    def guided(x, t):
        if through:
            clean, pull = jax.vjp(lambda x: denoise(x, t), x)
            slope = pull(jax.grad(lambda x0: jnp.sum(loss(x0)))(clean))[0]
        else:
            clean = denoise(x, t)
            a = process.coefficients_for(x, t, "energy")[0]
            slope = jax.grad(lambda x0: jnp.sum(loss(x0)))(clean) / jnp.where(a > 0, a, 1.0)
        return clean - strength_at(scale, x, t, "energy") * _gain(process, x, t) * slope

    return guided


def _gain(process, x, t):
    a, _, c = process.coefficients_for(x, t, "guidance")
    return jnp.where(a > 0, c**2 / jnp.where(a > 0, a, 1.0), 0.0)
