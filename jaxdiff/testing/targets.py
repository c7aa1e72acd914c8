"""Distributions whose diffusion is known exactly: denoiser, score and density at any time."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import batch_keys, check_noise, einsum, is_concrete, match_dims
from jaxdiff.testing.heavy_tails import Scaled
from jaxdiff.testing.spectral import spectrum


def _floating(x):
    """The dtype of answers at `x`: its own, of integers float32."""
    dtype = jnp.result_type(x)
    return dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.promote_types(dtype, jnp.float32)


class Target:
    """A data distribution with an exact answer for every process `x_t = a x0 + b y + c noise`.

    Everywhere `x` is `lead + event` with any leading shape, times in [0, t_max] are scalars or match
    `lead` from the left, and `y` (the shape of `x`) is the second endpoint of processes that have
    one. Answers have the dtype of `x` and are worked out in float32 at least, float64 for float64.

    Under Student-t noise they are averages over its scale, by quadrature.

    A subclass has `event`, `degenerate` (some direction without variance: no density at c = 0) and
    three functions of `z = x - b y` `(n, d)` and coefficients `(n,)` or `(1,)`: `denoise`, `score_of`
    and `log_density`.
    """

    def denoiser(self, process, y=None):
        """`denoise(x, t) -> E[x0 | x_t = x]`, the shape of `x`; exact at c = 0 and a = 0."""

        law = self.under("denoiser", process)

        def denoise(x, t):
            z, a, c = self.unpack("denoiser", process, x, t, y)
            return law.denoise(z, a, c).reshape(jnp.shape(x)).astype(_floating(x))

        return denoise

    def score(self, process, y=None):
        """`score(x, t)`, the gradient of `log_prob` with respect to `x`."""

        law = self.under("score", process)

        def score(x, t):
            z, a, c = self.unpack("score", process, x, t, y, density=True)
            return law.score_of(z, a, c).reshape(jnp.shape(x)).astype(_floating(x))

        return score

    def log_prob(self, process, x, t, y=None):
        """Log-density of `x_t` at `x` in nats, of shape `lead`.

        Raises:
          ValueError: where there is no density: c = 0 (known before tracing) of a degenerate target.
        """
        z, a, c = self.unpack("log_prob", process, x, t, y, density=True)
        lead = jnp.shape(x)[: jnp.ndim(x) - len(self.event)]
        law = self.under("log_prob", process)
        return law.log_density(z, a, c).reshape(lead).astype(_floating(x))

    def sample(self, key, n):
        """`(n, *event)` draws of clean data; `key` is one key or `(n,)` keys."""
        raise TypeError(f"{type(self).__name__} has to define sample(key, n)")

    def under(self, where, process):
        """What answers for the noise of the process: the target, or an average over the noise's scale.

        Raises:
          ValueError: for noise of another law, or that repeats entries.
        """
        tail = getattr(process, "tail", None)
        if tail is None or process.normal or process.repeats:
            check_noise(where, process)
            return self
        return Scaled(self, tail)

    def pull(self, z, a, c):
        """`(a D - z) / c^2`, finite at c = 0: the score under normal noise."""
        return self.score_of(z, a, c)

    def unpack(self, where, process, x, t, y, density=False):
        """`z = x - b y` as `(n, d)` and the coefficients as `(n,)`, or `(1,)` for one common time."""
        dtype = jnp.promote_types(jnp.result_type(x), jnp.float32)
        shape = jnp.shape(x)
        lead = shape[: len(shape) - len(self.event)]
        if lead + self.event != shape:
            raise ValueError(f"{where}: expected x of shape (..., *{self.event}), got {shape}")
        if isinstance(t, jax.Array):
            t = t.astype(jnp.promote_types(t.dtype, dtype))
        a, b, c = process.coefficients(t)
        if density:
            self._check_density(where, c)
        a, b, c = (jnp.asarray(k) for k in (a, b, c))
        z = jnp.asarray(x, dtype)
        if process.endpoint(y) is not None:
            z = z - match_dims(b.astype(dtype), z, where) * jnp.asarray(y, dtype)
        per_example = jnp.zeros(lead)
        a, c = (match_dims(k, per_example, where) for k in (a, c))
        if a.ndim:
            a, c = (jnp.broadcast_to(k, lead).reshape(-1) for k in (a, c))
        return z.reshape(-1, int(np.prod(self.event))), *(k.astype(dtype).reshape(-1) for k in (a, c))

    def _check_density(self, where, c):
        if self.degenerate and is_concrete(c) and (np.asarray(c) == 0).any():
            raise ValueError(
                f"{where}: expected a time with noise (c > 0), got c = 0, where this target has no "
                "density; use a later time, or covariances above 0"
            )


class GaussianMixture(Target):
    """`sum_k weights_k N(means_k, S_k)`; made by `gaussian_mixture`."""

    def __init__(self, means, covariances, weights):
        self.event = means.shape[1:]
        self.means = means.reshape(len(means), -1)
        self.weights = weights
        with np.errstate(divide="ignore"):
            self._log_weights = np.log(weights)
        self.spectrum = spectrum(covariances, len(means), self.event)
        self.degenerate = self.spectrum.singular

    def denoise(self, z, a, c):
        # E[x0 | z] = sum_k p_k (mean_k + a S_k (a^2 S_k + c^2)^-1 (z - a mean_k))
        inside, outside = self.residuals(z, a, c)
        p = self._posterior(inside, outside)
        gain = _gain(a, _constant(self.spectrum.variances[None], z), inside)
        if outside is not None:
            outside = _gain(a, _constant(self.spectrum.rest[None, :, None], z), outside)
        return _dot("nk,kd->nd", p, self.means) + self.combine(p, gain, outside)

    def score_of(self, z, a, c):
        # sum_k p_k (a^2 S_k + c^2)^-1 (a mean_k - z): no division by c, so finite at c = 0
        inside, outside = self.residuals(z, a, c)
        p = self._posterior(inside, outside)
        outside = None if outside is None else outside[0] / outside[1]
        return -self.combine(p, inside[0] / inside[1], outside)

    def log_density(self, z, a, c):
        return jax.nn.logsumexp(self._joint(*self.residuals(z, a, c)), axis=-1)

    def sample(self, key, n):
        which, noise = jax.vmap(self._draw)(batch_keys(key, n, "sample"))
        table = self.spectrum
        scales = np.sqrt(table.variances)
        rest = np.zeros(len(scales)) if table.rest is None else np.sqrt(table.rest)

        def add(x, row):
            k, mean, scale, u, outside = row
            if u is None:
                drawn = scale[None] * noise
            else:
                inside = _dot("nd,dr->nr", noise, u)
                drawn = _dot("nr,dr->nd", (scale - outside)[None] * inside, u) + outside * noise
            return jnp.where((which == k)[:, None], mean[None] + drawn, x), None

        # One component after another: gathering a basis for every sample would take n d r numbers.
        rows = jax.tree.map(lambda v: _constant(v, noise), (self.means, scales, table.basis, rest))
        x, _ = jax.lax.scan(add, jnp.zeros_like(noise), (jnp.arange(len(scales)), *rows))
        return x.reshape(n, *self.event)

    def _draw(self, key):
        pick, draw = jax.random.split(key)
        noise = jax.random.normal(draw, self.means.shape[1:])
        return jax.random.categorical(pick, _constant(self._log_weights, noise)), noise

    def residuals(self, z, a, c):
        """`(z - a mean_k, variance)` along the basis, `(n, K, r)`, and outside of it or None."""
        table = self.spectrum
        v, w = self.variances(z, a, c)
        a = a[:, None, None]
        if table.basis is None:
            return (z[:, None, :] - a * _constant(self.means[None], z), v), None
        centre = np.einsum("kd,kdr->kr", self.means, table.basis)
        inside = _dot("nd,kdr->nkr", z, table.basis) - a * _constant(centre[None], z)
        if table.rest is None:
            return (inside, v), None
        residual = z[:, None, :] - a * _constant(self.means[None], z)
        outside = residual - _dot("nkr,kdr->nkd", inside, table.basis)
        return (inside, v), (outside, w)

    def variances(self, z, a, c):
        """`a^2 S_k + c^2` along the basis, `(1 or n, K, r)`, and outside of it or None."""
        tiny = jnp.finfo(z.dtype).tiny ** 0.45  # keeps quotients finite where there is no density

        def variance(data):
            return jnp.maximum((a**2)[:, None, None] * data + (c**2)[:, None, None], tiny)

        table = self.spectrum
        inside = variance(_constant(table.variances[None], z))
        outside = None if table.rest is None else table.rest[None, :, None]
        return inside, None if outside is None else variance(_constant(outside, z))

    def _joint(self, inside, outside):
        """`log weights_k + log N(z; a mean_k, a^2 S_k + c^2)`, `(n, K)`."""
        y, v = inside
        quadratic, log_det = jnp.sum(y**2 / v, -1), jnp.sum(jnp.log(v), -1)
        size, rank = self.means.shape[1], self.spectrum.variances.shape[1]
        if outside is not None:
            quadratic = quadratic + jnp.sum(outside[0] ** 2 / outside[1], -1)
            log_det = log_det + (size - rank) * jnp.log(outside[1])[..., 0]
        constant = self._log_weights - 0.5 * size * np.log(2 * np.pi)
        return _constant(constant[None], y) - 0.5 * (quadratic + log_det)

    def _posterior(self, inside, outside):
        return jax.nn.softmax(self._joint(inside, outside), axis=-1)

    def combine(self, p, inside, outside):
        """`sum_k p_k (U_k inside_k + outside_k)`, `(n, d)`."""
        weighted = p[..., None] * inside
        if self.spectrum.basis is None:
            return jnp.sum(weighted, axis=1)
        total = _dot("nkr,kdr->nd", weighted, self.spectrum.basis)
        return total if outside is None else total + jnp.sum(p[..., None] * outside, axis=1)


def _gain(a, data_variance, residual):
    return a[:, None, None] * data_variance * residual[0] / residual[1]


def gaussian_mixture(means, covariances, weights=None):
    """A mixture of Gaussians.

    Args:
      means: `(K, *event)`; an example may have any shape, of d values.
      covariances: by shape: `(K,)` or scalar, one variance per component; `(K, d)` or `(K, *event)`,
        one per value; `(K, d, d)`, full; or `low_rank(factor, diagonal)`.
      weights: `(K,)`, at least 0, normalised here; equal by default.

    Raises:
      ValueError: for shapes that do not fit, or covariances that are none.
    """
    means = np.asarray(means, np.float64)
    if means.ndim == 0 or not np.isfinite(means).all():
        raise ValueError(f"gaussian_mixture: expected finite means (K, *event), got {means.shape}")
    return GaussianMixture(means, covariances, normalised(weights, len(means), "gaussian_mixture"))


def gaussian(mean, covariance):
    """One Gaussian: `mean` of shape `event`, `covariance` as one component of `gaussian_mixture`."""
    mean = np.asarray(mean, np.float64)[None]
    if not hasattr(covariance, "variances"):
        covariance = np.asarray(covariance, np.float64)[None]
    return gaussian_mixture(mean, covariance)


def normalised(weights, count, where):
    """Weights that sum to one, equal if None; checked."""
    weights = np.ones(count) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (count,) or not (weights >= 0).all() or not 0 < weights.sum() < np.inf:
        raise ValueError(
            f"{where}: expected weights of shape ({count},), at least 0 and not all 0, got {weights}"
        )
    return weights / weights.sum()


def _constant(value, like):
    """A float64 constant of the host in the dtype at work, rounded once."""
    return jnp.asarray(value, like.dtype)


def _dot(formula, x, constant):
    return einsum(formula, x, _constant(constant, x))
