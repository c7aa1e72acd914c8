"""Exact answers under Student-t noise: averages over its scale."""

import jax
import jax.numpy as jnp

COARSE, FINE = 256, 512  # nodes that find where the scale is, and those of the quadrature
FAR = 30.0  # nats below the top at which a density counts as nothing
FARTHEST = 30.0  # up to which log kappa is looked for: of points so many times their noise from the data


class Scaled:
    """A target under noise of `kappa` times a normal draw, `1 / kappa^2 ~ Gamma(tail / 2, tail / 2)`.

    Made by `Target.under`. Given kappa all is that of normal noise `kappa c`. The rest is one integral over
    `log kappa` by the trapezoidal rule, exact to rounding, where a coarser one has found its density.
    """

    def __init__(self, target, tail):
        self.target, self.tail, self.degenerate = target, tail, target.degenerate

    def denoise(self, z, a, c):
        return self._average(z, a, c, lambda kappa: self.target.denoise(z, a, kappa * c))[1]

    def score_of(self, z, a, c):
        return self._average(z, a, c, lambda kappa: self.target.score_of(z, a, kappa * c))[1]

    def pull(self, z, a, c):
        def given(kappa):
            return kappa[:, None] ** 2 * self.target.score_of(z, a, kappa * c)

        return self._average(z, a, c, given)[1]

    def log_density(self, z, a, c):
        return self._average(z, a, c, lambda kappa: jnp.zeros_like(z))[0]

    def _average(self, z, a, c, value):
        """Log-density `(n,)` of z, and the mean of `value(kappa)`, `(n, d)`, over kappa given z."""
        a, c = (jnp.broadcast_to(k, z.shape[:1]) for k in (a, c))
        prior, span = self._prior(z)
        noisy = c > 0  # what there is no noise in tells nothing of its scale

        def level(u):
            density = self.target.log_density(z, a, jnp.where(noisy, jnp.exp(u) * c, 1.0))
            return prior(u) + jnp.where(noisy, density, 0.0)

        coarse = jnp.linspace(*span, COARSE, dtype=z.dtype)
        found = jax.lax.stop_gradient(jax.lax.map(lambda u: level(jnp.full_like(c, u)), coarse))
        there = found > jnp.max(found, 0, keepdims=True) - FAR
        first, last = jnp.argmax(there, 0), COARSE - 1 - jnp.argmax(there[::-1], 0)
        low, high = coarse[jnp.maximum(first - 1, 0)], coarse[jnp.minimum(last + 1, COARSE - 1)]
        step = (high - low) / (FINE - 1)

        def add(carry, number):
            top, total, mean = carry
            u = low + number * step
            now = level(u) + jnp.log(step)
            highest = jax.lax.stop_gradient(jnp.maximum(top, now))
            kept, new = jnp.exp(top - highest), jnp.exp(now - highest)
            mean = kept[:, None] * mean + new[:, None] * value(jnp.exp(u))
            return (highest, kept * total + new, mean), None

        lowest = jnp.full(z.shape[:1], jnp.finfo(z.dtype).min)
        start = (lowest, jnp.zeros_like(lowest), jnp.zeros_like(z))
        (top, total, mean), _ = jax.lax.scan(add, start, jnp.arange(FINE, dtype=z.dtype))
        return top + jnp.log(total), mean / total[:, None]

    def _prior(self, z):
        """The log-density of `u = log kappa`, and how far u may be for any z."""
        tail = jnp.minimum(jnp.asarray(self.tail, z.dtype), 1e6)  # so many are normal noise
        far, near = 2 * FAR / tail, 2 * FAR / (tail + z.shape[1])  # z next to the data shows a small scale
        low = -jnp.maximum(_below(far), 0.5 * jnp.log1p(z.shape[1] / tail) + _below(near))
        high = 0.5 * (far + jnp.sqrt(2 * far))

        def density(u):
            return -tail * (u + 0.5 * jnp.expm1(-2 * u))

        nodes = jnp.linspace(-_below(far), high, FINE)
        norm = jax.nn.logsumexp(density(nodes)) + jnp.log(nodes[1] - nodes[0])
        return lambda u: density(u) - norm, (low, jnp.maximum(high, FARTHEST))


def _below(far):
    """How far below 0 `log kappa` reaches: at s half of `exp(2 s) - 1 - 2 s` is at least `far`."""
    return 0.5 * jnp.log1p(far + jnp.sqrt(2 * far))
