"""Information in nats from denoising errors: how much a condition tells about an example."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.core import batch_keys, check_noise, check_one_ended, floating, fold_in
from jaxdiff.grids import log_snr_range


def mutual_information(key, conditional, unconditional, process, x0, samples=16):
    """Pointwise information `log p(x0 | y) / p(x0)` in nats, `(batch,)`; its mean is the mutual information.

        i(x0, y) = int |D(x_t) - x0|^2 - |D(x_t, y) - x0|^2  dSNR / 2

    with the same times and noises for both, uniform in log-SNR. Kong et al. (2023), arXiv:2310.07972, eq. 9;
    Dewan et al. (2024), arXiv:2406.05191.

    Args:
      key: one key or `(batch,)` keys.
      conditional: `(x, t) -> clean estimate` given what is known of each example; t is `(batch,)`.
      unconditional: `(x, t) -> clean estimate` without it.
      process: forward process without a second endpoint.
      x0: `(batch, ...)` data.
      samples: times and noises per example, stratified.

    Raises:
      ValueError: for a process with a second endpoint, or whose noise is not normal and independent.
    """
    check_one_ended("mutual_information", process)
    check_noise("mutual_information", process)
    x0 = floating("mutual_information", x0)
    keys = batch_keys(key, x0.shape[0], "mutual_information")
    high, low = log_snr_range(process)

    def term(i):
        own = fold_in(keys, i)
        u = (i + jax.vmap(lambda k: jax.random.uniform(k, ()))(fold_in(own, 0))) / samples
        level = high + (low - high) * u
        t = process.time_of_log_snr(level)
        x_t = process.perturb(x0, process.noise(fold_in(own, 1), x0), t)
        without, given = (_sum(jnp.square(denoise(x_t, t) - x0)) for denoise in (unconditional, conditional))
        return (high - low) * jnp.exp(2 * level) * (without - given)

    return jnp.mean(jax.lax.map(term, jnp.arange(samples)), 0)


class Parts(NamedTuple):
    """What two conditions tell, apart and together, in nats."""

    redundancy: jax.Array
    unique_first: jax.Array
    unique_second: jax.Array
    synergy: jax.Array


def information_parts(first, second, both, surprisals=None):
    """Decomposes the information of two conditions about an example into parts.

        unique_k = I_k - redundancy,  synergy = I12 - I1 - I2 + redundancy

    Without surprisals the `I` are averages and the redundancy is their minimum (Dewan et al. (2024),
    arXiv:2406.05191). With them every example has its own parts, of either sign, by

        redundancy = min(h1, h2) - min(h1 - I1, h2 - I2),   h_k = -log p(y_k)

    what both conditions rule out less what both mislead (Finn and Lizier (2018), arXiv:1801.09010).

    Args:
      first, second, both: `(batch,)` pointwise informations of each condition and of the two together.
      surprisals: `(h1, h2)` of the two conditions, `(batch,)` or numbers, in nats; None for averages.

    Returns:
      `Parts` of scalars, or of `(batch,)` with surprisals.
    """
    if surprisals is None:
        first, second, both = (jnp.mean(part) for part in (first, second, both))
        redundancy = jnp.minimum(first, second)
    else:
        h1, h2 = surprisals
        redundancy = jnp.minimum(h1, h2) - jnp.minimum(h1 - first, h2 - second)
    return Parts(redundancy, first - redundancy, second - redundancy, both - first - second + redundancy)


_sum = jax.vmap(jnp.sum)
