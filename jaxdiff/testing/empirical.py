"""The distribution of finitely many points: what a network that memorises its data would answer."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import batch_keys, einsum
from jaxdiff.testing.targets import Target, normalised


class Empirical(Target):
    """`sum_i weights_i delta(points_i)`; made by `empirical`.

    The denoiser is a softmax over the points (Karras et al. (2022), arXiv:2206.00364, eq. 57). Points
    are visited in chunks with a running maximum, so memory does not grow with their number. At
    c = 0 the answer is the nearest point.
    """

    degenerate = True
    working_set = 2**22  # differences held at a time: 16 MiB in float32

    def __init__(self, points, weights):
        self.event = points.shape[1:]
        self.points = points.reshape(len(points), -1)
        self.weights = weights

    def denoise(self, z, a, c):
        _, total, mean = self._visit(z, a, c)
        return mean / total[:, None]

    def score_of(self, z, a, c):
        return (a[:, None] * self.denoise(z, a, c) - z) / (c**2)[:, None]

    def log_density(self, z, a, c):
        largest, total, _ = self._visit(z, a, c)
        return largest + jnp.log(total) - 0.5 * z.shape[1] * jnp.log(2 * jnp.pi * c**2)

    def sample(self, key, n):
        dtype = jnp.result_type(float)
        with np.errstate(divide="ignore"):
            logits = jnp.asarray(np.log(self.weights), dtype)
        pick = jax.vmap(lambda k: jax.random.categorical(k, logits))
        which = pick(batch_keys(key, n, "sample"))
        return jnp.asarray(self.points, dtype)[which].reshape(n, *self.event)

    def _visit(self, z, a, c):
        """Running `max_i l_i`, `sum_i exp(l_i - max)` and `sum_i exp(l_i - max) point_i`.

        Here `l_i = log weights_i - |z - a point_i|^2 / (2 c^2)`.
        """
        # The floor picks the nearest point at c = 0 and keeps every gradient finite.
        variance = jnp.maximum(c**2, jnp.finfo(z.dtype).tiny ** 0.45)

        def visit(carry, chunk):
            points, log_weights = chunk
            difference = z[:, None, :] - a[:, None, None] * points[None]
            logits = -0.5 * jnp.sum(difference**2, -1) / variance[:, None] + log_weights[None]
            largest = jnp.maximum(carry[0], jnp.max(logits, axis=1))
            keep, p = jnp.exp(carry[0] - largest), jnp.exp(logits - largest[:, None])
            mean = einsum("nk,kd->nd", p, points)
            return (
                largest,
                keep * carry[1] + jnp.sum(p, axis=1),
                keep[:, None] * carry[2] + mean,
            ), None

        lowest = jnp.full(z.shape[:1], jnp.finfo(z.dtype).min)
        start = (lowest, jnp.zeros_like(lowest), jnp.zeros_like(z))
        return jax.lax.scan(visit, start, self._chunks(z))[0]

    def _chunks(self, z):
        """Points `(chunks, size, d)` and log-weights `(chunks, size)`; what pads the last weighs 0."""
        count = len(self.points)
        chunks = -(-count // max(1, min(count, self.working_set // max(1, z.size))))
        size = -(-count // chunks)
        padding = ((0, size * chunks - count), (0, 0))
        points = np.pad(self.points, padding, mode="edge").reshape(chunks, size, -1)
        with np.errstate(divide="ignore"):
            log_weights = np.log(np.pad(self.weights, padding[0])).reshape(chunks, size)
        return jnp.asarray(points, z.dtype), jnp.asarray(log_weights, z.dtype)


def empirical(points, weights=None):
    """The empirical distribution of data points.

    Args:
      points: `(N, *event)`.
      weights: `(N,)`, at least 0, normalised here; equal by default.

    Raises:
      ValueError: for points that are not finite, or weights that do not fit.
    """
    points = np.asarray(points, np.float64)
    if points.ndim == 0 or points.size == 0 or not np.isfinite(points).all():
        raise ValueError(f"empirical: expected finite points (N, *event), got {points.shape}")
    return Empirical(points, normalised(weights, len(points), "empirical"))
