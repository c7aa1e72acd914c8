"""Noise of measurements: its variance and log-likelihood."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_positive, concrete, dataclass


@dataclass
class Gaussian:
    """Gaussian noise of standard deviation `sigma`, 0 for none.

    Attributes:
      sigma: a number, or an array of the shape of one measurement.
    """

    sigma: jax.Array

    def variance(self, y):
        """The variance of the noise in `y`: a number, or `(1, ...)`."""
        sigma = jnp.asarray(self.sigma)
        if sigma.ndim and sigma.shape != jnp.shape(y)[1:]:
            raise ValueError(
                f"noise_level: expected a number or one measurement's shape, {jnp.shape(y)[1:]}, got "
                f"{sigma.shape}"
            )
        return sigma**2 if sigma.ndim == 0 else sigma[None] ** 2

    def log_prob(self, y, mean):
        """`(batch,)` nats, up to a constant."""
        return -0.5 * _total((y - mean) ** 2 / self.variance(y))


@dataclass
class Poisson:
    """Counts: `y = Poisson(peak mean) / peak`.

    Attributes:
      peak: number of counts of a value of one, above 0.
    """

    peak: jax.Array

    def variance(self, y):
        """About `y / peak`, and never less than that of one count."""
        return jnp.maximum(y, 1 / self.peak) / self.peak

    def log_prob(self, y, mean):
        """`(batch,)` nats, up to what does not depend on `mean`; values below 0 count as 1e-6."""
        rate = self.peak * jnp.maximum(mean, 1e-6)
        return _total(self.peak * y * jnp.log(rate) - rate)


def gaussian(sigma):
    """Gaussian noise of standard deviation `sigma`, at least 0."""
    return model(sigma, "gaussian")


def poisson(peak):
    """Photon noise, `peak` counts at a value of one."""
    check_positive("poisson", peak=peak)
    return Poisson(peak)


def model(noise_level, where):
    """The noise model that a number or a model stands for."""
    if hasattr(noise_level, "log_prob"):
        return noise_level
    known = concrete(noise_level)
    if known is not None and not np.all((known >= 0) & np.isfinite(known)):
        raise ValueError(f"{where}: expected a finite noise_level of at least 0, got {noise_level}")
    return Gaussian(noise_level)


def check_noiseless(where, noise_level):
    """Raises ValueError for methods that copy a measurement, where its noise is known not to be 0."""
    known = concrete(getattr(noise_level, "sigma", 1.0 if hasattr(noise_level, "log_prob") else noise_level))
    if known is not None and np.any(known > 0):
        raise ValueError(
            f"{where}: expected a measurement without noise, got noise_level={noise_level}; it would be "
            'copied into the sample: use "jacobian_free" or "mmps"'
        )


def check_noisy(where, noise, instead=""):
    """Raises ValueError for methods that divide by a measurement's noise, where it is known to be 0."""
    known = concrete(getattr(noise, "sigma", 1.0))
    if known is not None and np.any(known == 0):
        raise ValueError(f"{where}: expected noise_level above 0{instead}, got {noise.sigma}")


def _total(values):
    return jnp.sum(values.reshape(len(values), -1), axis=1)
