"""The loss of a learned schedule: the variance of the variational bound."""

import jax.numpy as jnp

from jaxdiff import weightings
from jaxdiff.losses.denoising import denoising


def schedule(net, key, x0, *, process, parameterization, times=None):
    """Squares of the bound's diffusion term, to be minimised over the process (`LearnedVP`).

        (w(t) mean |D - x0|^2)^2,  w the weighting of the likelihood

    with t uniform, or of `times` that have a density, by which w is then divided.
    The mean of the bound depends on a schedule's ends alone, so the mean of its square falls exactly as
    its variance does. Stop the gradient into the network's parameters, and train those with `denoising`
    and `jd.weightings.likelihood()`. Kingma et al. (2021), arXiv:2107.00630, appendix I.2.

    Returns:
      `(batch,)` squared losses.
    """
    losses = denoising(
        net,
        key,
        x0,
        process=process,
        parameterization=parameterization,
        weighting=weightings.likelihood(times),
        times=times,
    )
    return jnp.square(losses)
