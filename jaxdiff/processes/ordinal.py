"""Discretised Gaussian diffusion of ordered values, such as grey levels."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import batch_keys, check_count, dataclass, safe_divide, static_field
from jaxdiff.core.categorical import fine_uniform, inverse_cdf
from jaxdiff.processes import schedules
from jaxdiff.processes.discrete import DiscreteProcess, Uniforms, excess, normalised, times_for, values

NEVER = -1e30  # the logarithm of what cannot happen


@dataclass
class DiscretisedGaussian(DiscreteProcess):
    """A random walk on the values 0 ... K - 1 that is reflected at the ends: a Gaussian on the integers.

        q(x_t = j | x0 = i) = g(j - i) + g(j + i + 1),    g(d) = (1 / 2K) sum_k alpha(t)^m_k cos(pi k d / K)

    with `m_k = (1 - cos(pi k / K)) / (1 - cos(pi / K))` and k over a period of 2K. `alpha` is what is left
    of the slowest mode, so the same schedules serve: the variance is `-log(alpha) / (1 - cos(pi / K))`, and
    alpha = 0 is uniform. Transitions are the same kernel at `alpha_t / alpha_s`: no product of K x K
    matrices as in the discretised Gaussian of Austin et al. (2021), arXiv:2107.03006, appendix A.2.3, which
    this is in continuous time. O(K) memory per token. The kernel is exact in its tails, in logarithms by a
    recurrence over distances, so that a network may believe what is all but impossible: the FFT's rounding
    would answer for that instead, or nothing. The mean over logits of `ratios` and `posterior` takes O(K^2)
    work; training by `elbo` and sampling take O(K).

    Args:
      size: number K of values.
      schedule: of `jd.processes.schedules`.
    """

    size: int = static_field()
    schedule: schedules.Schedule

    def __post_init__(self):
        check_count("DiscretisedGaussian", least=2, size=self.size)
        schedules.check_schedule("DiscretisedGaussian", self.schedule)

    mask = None
    states = property(lambda self: self.size)

    def noise(self, keys, like):
        """`Uniforms` in the shape of the tokens `like`, for one key or `(batch,)` keys."""
        return Uniforms(fine_uniform(batch_keys(keys, like.shape[0], "noise"), like.shape[1:]))

    def perturb(self, x0, noise, t, y=None):
        """`x_t ~ q(x_t | x0)`: one step of the walk on the circle of 2K values, folded back."""
        self.endpoint(y)
        x0 = self.check_clean(x0, "perturb")
        self.check_noise(noise, x0, "perturb")
        g = jnp.exp(self._log_kernel(self.schedule.alpha(times_for(x0, t, "perturb"))))
        moved = (x0 + inverse_cdf(jnp.broadcast_to(g, (*x0.shape, 2 * self.size)), noise.u)) % (2 * self.size)
        return jnp.where(moved < self.size, moved, 2 * self.size - 1 - moved)

    def prior(self, key, shape, y=None):
        """One example at t = 1: uniform."""
        self.endpoint(y)
        return jax.random.randint(key, shape, 0, self.size, jnp.int32)

    def reverse(self, noise, x_t, x0, t, s):
        """`x_s ~ q(x_s | x_t, x0)` from `Uniforms`, in O(K); an x0 of -1, no token, stays."""
        return jnp.where(x0 < 0, x0, inverse_cdf(self.posterior(x_t, x0, t, s), noise.u))

    def likelihood(self, x_t, t):
        return jnp.exp(self._log_likelihood(x_t, t))

    def transition(self, x_t, t, s):
        return jnp.exp(self._log_transition(x_t, t, s))

    def _log_likelihood(self, x_t, t):
        return self._log_at(x_t, self.schedule.alpha(times_for(x_t, t, "likelihood")))

    def _log_transition(self, x_t, t, s):
        t, s = (times_for(x_t, time, "transition") for time in (t, s))
        return self._log_at(x_t, safe_divide(self.schedule.alpha(t), self.schedule.alpha(s)))

    def spread(self, w, t):
        """By the FFT: exact to rounding of the largest weight."""
        decay = self._decay(self.schedule.alpha(times_for(w[..., 0], t, "spread")))
        waves = jnp.fft.rfft(jnp.concatenate([w, w[..., ::-1]], axis=-1))
        return jnp.maximum(jnp.fft.irfft(waves * decay, 2 * self.size)[..., : self.size], 0)

    def marginal(self, x0, t):
        return self.likelihood(x0, t)  # the kernel is symmetric

    def ratios(self, x_t, x0, t):
        def ratio(k):
            q = self.likelihood(k, t)
            return safe_divide(q, jnp.take_along_axis(q, x_t[..., None], -1))

        return self._mean(ratio, x0, self.likelihood(x_t, t) > 0)

    def posterior(self, x_t, x0, t, s):
        possible = self._log_likelihood(x_t, t) > 0.1 * NEVER
        back = jnp.maximum(self._log_transition(x_t, t, s), 0.1 * NEVER)  # where alpha is 1, x0 decides
        return self._mean(lambda k: jax.nn.softmax(back + self._log_likelihood(k, s)), x0, possible)

    def rate_divergence(self, logits, x0, x_t, t):
        here, rate = self._log_likelihood(x_t, t), self._rate(times_for(x_t, t, "rate_divergence"))
        possible = here > 0.1 * NEVER
        p = normalised(jnp.where(possible, jax.nn.softmax(logits.astype(here.dtype)), 0.0))
        total = jnp.zeros_like(rate)
        for y in (x_t - 1, x_t + 1):  # the walk goes to neighbours
            there = self._log_likelihood(jnp.clip(y, 0, self.size - 1), t)
            ratio = jnp.where(possible, jnp.exp(there - jnp.where(possible, here, 0.0)), 0.0)
            s, r = jnp.sum(p * ratio, -1), jnp.take_along_axis(ratio, x0[..., None], -1)[..., 0]
            inside = (y >= 0) & (y < self.size)
            total += jnp.where(inside, rate * excess(jnp.where(inside, s, 1.0), r), 0.0)
        return total

    def _mean(self, f, x0, possible):
        """`f(x0)`, or where x0 are logits its mean over the clean values that are possible, one by one."""
        if jnp.issubdtype(jnp.result_type(x0), jnp.integer):
            return f(x0)
        x0 = x0.astype(jnp.promote_types(x0.dtype, jnp.float32))
        p = normalised(jnp.where(possible, jax.nn.softmax(x0), 0.0))

        @jax.checkpoint
        def add(total, k):
            value = jnp.full(p.shape[:-1], k, jnp.int32)
            weight = jax.lax.dynamic_index_in_dim(p, k, -1)
            return total + jnp.where(weight > 0, weight * f(value), 0.0), None

        return jax.lax.scan(add, jnp.zeros_like(p), jnp.arange(self.size))[0]

    def rates(self, x_t, t):
        distance = jnp.abs(values(x_t, self.size) - x_t[..., None])
        return jnp.where(distance == 1, self._rate(times_for(x_t, t, "rates"))[..., None], 0.0)

    def _rate(self, t):
        """The rate to each neighbour."""
        return 0.5 * safe_divide(self.schedule.slope(t), self.schedule.alpha(t)) * self._variance

    def _decay(self, alpha):
        """What is left of each wave, `(..., K + 1)`."""
        waves = 1 - np.cos(np.pi * np.arange(self.size + 1) / self.size)
        power = jnp.asarray(waves / waves[1], alpha.dtype).reshape((1,) * alpha.ndim + (-1,))
        return jnp.where(power == 0, 1.0, jnp.maximum(alpha[..., None], 0)) ** power

    @property
    def _variance(self):
        """Of the walk, per unit of -log(alpha)."""
        return 1 / (1 - np.cos(np.pi / self.size))

    def _log_kernel(self, alpha):
        """`log g` over the circle, `(..., 2K)`: a wrapped Bessel law while narrow, waves once it is wide."""
        wide = _log(jnp.fft.irfft(self._decay(alpha), 2 * self.size))
        variance = -jnp.log(jnp.clip(alpha, 0.5, 1.0)) * self._variance
        around = -(-(3 * self.size + 24) // (2 * self.size))
        half = log_bessel_law(variance, 2 * self.size * around)
        line = jnp.concatenate([half[..., :0:-1], half[..., :-1]], -1)
        narrow = jax.nn.logsumexp(line.reshape(*alpha.shape, 2 * around, 2 * self.size), axis=-2)
        return jnp.where(alpha[..., None] > 0.5, narrow, wide)

    def _log_at(self, x, alpha):
        """The logarithm of the kernel from every value to `x`, `(..., K)`."""
        g = jnp.broadcast_to(self._log_kernel(alpha), (*x.shape, 2 * self.size))
        other, x = values(x, self.size), x[..., None]
        near, mirror = (x - other) % (2 * self.size), (x + other + 1) % (2 * self.size)
        return jnp.logaddexp(jnp.take_along_axis(g, near, -1), jnp.take_along_axis(g, mirror, -1))


def log_bessel_law(variance, reach):
    """`log(exp(-v) I_d(v))` for d = 0 ... reach, `(..., reach + 1)`: where a random walk is.

    Ratios `I_(d + 1) / I_d = v / (2 (d + 1) + v I_(d + 2) / I_(d + 1))` from far out inwards, and the sums
    of their logarithms, normalised.
    """
    first = variance / (reach + 1 + jnp.sqrt((reach + 1) ** 2 + variance**2))

    def inwards(ratio, d):
        ratio = variance / (2 * (d + 1) + variance * ratio)
        return ratio, ratio

    ratios = jax.lax.scan(inwards, first, jnp.arange(reach - 1, -1, -1, dtype=variance.dtype))[1]
    ratios = jnp.moveaxis(ratios[::-1], 0, -1)
    centre = -jnp.log1p(2 * jnp.sum(jnp.cumprod(ratios, -1), -1, keepdims=True))
    return jnp.concatenate([centre, centre + jnp.cumsum(_log(ratios), -1)], -1)


def _log(value):
    """The logarithm where there is one, else `NEVER`, without a gradient: finite, as sums of it are."""
    positive = value > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, value, 1.0)), NEVER)


def discretised_gaussian(size, schedule=None):
    """`DiscretisedGaussian` with a linear schedule by default."""
    return DiscretisedGaussian(size, schedules.linear() if schedule is None else schedule)
