"""Discrete processes that interpolate on the simplex: absorbing, uniform, both, bits, marginals."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import batch_keys, check_count, concrete, dataclass, safe_divide, static_field
from jaxdiff.core.categorical import fine_uniform, inverse_cdf, token_log_prob
from jaxdiff.processes import schedules
from jaxdiff.processes.discrete import DiscreteProcess, Uniforms, excess, times_for, values


@dataclass
class Categorical(DiscreteProcess):
    """Tokens that are replaced from a fixed distribution, or masked for good.

        q(x_t | x0) = Cat(alpha(t) onehot(x0) + (1 - alpha(t)) (rho onehot(mask) + (1 - rho) pi))

    rho = 1 is the absorbing process and rho = 0 the uniform one. With `beta = (1 - rho)(1 - alpha)` and
    `gamma = rho (1 - alpha)`, a token that is not masked at s is, at t > s, the same with probability
    `a = alpha_t / alpha_s`, masked with `g = (gamma_t - gamma_s) / (1 - gamma_s)`, else drawn from pi. So
    `q(x_s | x_t, x0)` is a mixture of three: it stays x_t, is x0 (`clean`) or is drawn from pi (`fresh`),

        x_t = mask:  clean = g alpha_s / gamma_t,             fresh = g beta_s / gamma_t
        else:        clean = b pi(x_t) alpha_s / q(x_t | x0), fresh = b pi(x_t) beta_s / q(x_t | x0)

    with `b = 1 - a - g`: O(1) per token. Austin et al. (2021), arXiv:2107.03006; Gu et al. (2022),
    arXiv:2111.14822.

    Args:
      size: number K of clean tokens.
      schedule: of `jd.processes.schedules`.
      mask_share: rho in [0, 1].
      replacement: pi, `(K,)`, at least 0, normalised here; uniform if None.
    """

    size: int = static_field()
    schedule: schedules.Schedule
    mask_share: float = static_field()
    replacement: object = None

    def __post_init__(self):
        check_count("Categorical", least=2, size=self.size)
        schedules.check_schedule("Categorical", self.schedule)
        if not 0 <= self.mask_share <= 1:
            raise ValueError(f"Categorical: expected mask_share in [0, 1], got {self.mask_share}")
        if self.replacement is None:
            return
        known = concrete(self.replacement)
        pi = self.replacement if known is None else known
        usable = known is None or (np.isfinite(pi).all() and pi.min(initial=1) >= 0 and pi.sum() > 0)
        if pi.shape != (self.size,) or not usable:
            got = f"shape {pi.shape}" if pi.shape != (self.size,) else pi
            raise ValueError(
                f"Categorical: expected replacement to be ({self.size},) probabilities, got {got}"
            )
        object.__setattr__(self, "replacement", pi / pi.sum())

    @property
    def mask(self):
        """The mask token, `size`, or None."""
        return self.size if self.mask_share > 0 else None

    @property
    def states(self):
        """Number of values of a noisy token."""
        return self.size + (self.mask_share > 0)

    def coefficients(self, t):
        """`(alpha, beta, gamma)`: shares of clean, replaced and masked tokens."""
        level = self.schedule.level(t)
        return 1 - level, (1 - self.mask_share) * level, self.mask_share * level

    def between(self, t, s):
        """`(a, b, g)` of a token that is not masked at s < t: kept, replaced, masked."""
        l_t, l_s, rho = self.schedule.level(t), self.schedule.level(s), self.mask_share
        step = safe_divide(l_t - l_s, 1 - rho * l_s)
        return safe_divide(1 - l_t, 1 - l_s, 1.0), safe_divide((1 - rho) * step, 1 - l_s), rho * step

    def noise(self, keys, like):
        """`Uniforms` in the shape of the tokens `like`, for one key or `(batch,)` keys."""
        own = jax.vmap(jax.random.split)(batch_keys(keys, like.shape[0], "noise"))
        u = fine_uniform(own[:, 0], like.shape[1:])
        return Uniforms(u, None if self.mask_share == 1 else self._replacements(own[:, 1], like.shape[1:]))

    def _replacements(self, keys, shape):
        if self.replacement is None:
            return jax.vmap(lambda key: jax.random.randint(key, shape, 0, self.size, jnp.int32))(keys)
        u = fine_uniform(keys, shape)
        pi = jnp.asarray(self.replacement, u.dtype)
        return inverse_cdf(jnp.broadcast_to(pi, (*u.shape, self.size)), u)

    def perturb(self, x0, noise, t, y=None):
        """`x_t ~ q(x_t | x0)`: masked where u < gamma, replaced where u < gamma + beta, else x0.

        Args:
          x0: clean tokens, `(batch, ...)` integers.
          noise: `Uniforms` of `noise(keys, x0)`.
          t: times in [0, 1].

        Raises:
          ValueError: for tokens that are not clean, or times or noise of another shape.
        """
        self.endpoint(y)
        x0 = self.check_clean(x0, "perturb")
        self.check_noise(noise, x0, "perturb")
        _, beta, gamma = self.coefficients(times_for(x0, t, "perturb"))
        x_t = x0 if noise.token is None else jnp.where(noise.u < gamma + beta, noise.token, x0)
        return jnp.where(noise.u < gamma, self.size, x_t)

    def prior(self, key, shape, y=None):
        """One example at t = 1, `shape` int32: masked with probability rho, else drawn from pi."""
        self.endpoint(y)
        u, token = self.noise(key[None], jnp.zeros((1, *shape)))
        x = jnp.where(u < self.mask_share, self.size, 0 if token is None else token)[0]
        return x.astype(jnp.int32)

    def jump(self, x_t, x0, t, s=None):
        """Weights `(clean, fresh)` of `q(x_s | x_t, x0)`; their rates at t, backwards in time, if s is None.

        Tokens that contradict x0 where there is no replacement stay as they are.
        """
        t = times_for(x_t, t, "jump")
        (alpha_t, beta_t, gamma_t), rho = self.coefficients(t), self.mask_share
        if s is None:
            # forwards, tokens are replaced at (1 - rho) slope / (left alpha) and masked at rho slope / left
            slope, left = self.schedule.slope(t), 1 - gamma_t
            b = (1 - rho) * safe_divide(slope, left)
            b_fresh = b * safe_divide(beta_t, alpha_t, jnp.inf if rho < 1 else 0.0)
            g = rho * slope * safe_divide(alpha_t, left, 1.0)
            g_fresh = rho * slope * safe_divide(beta_t, left)
        else:
            s = times_for(x_t, s, "jump")
            (alpha_s, beta_s, _), (_, b, g) = self.coefficients(s), self.between(t, s)
            b, b_fresh, g, g_fresh = b * alpha_s, b * beta_s, g * alpha_s, g * beta_s
        pi = self._pi(x_t)
        total = jnp.where(x_t == x0, alpha_t, 0.0) + beta_t * pi
        masked = x_t == self.size
        return tuple(
            jnp.where(masked, safe_divide(hidden, gamma_t), safe_divide(seen * pi, total))
            for hidden, seen in ((g, b), (g_fresh, b_fresh))
        )

    def reverse(self, noise, x_t, x0, t, s):
        """`x_s ~ q(x_s | x_t, x0)` from `Uniforms`: with `x0 ~ p` it is the model's step."""
        return self.move(noise, x_t, x0, *self.jump(x_t, x0, t, s))

    def move(self, noise, x, x0, clean, fresh):
        """`x0` where u < clean, what replaces tokens where u < clean + fresh, else `x`."""
        x_s = x if noise.token is None else jnp.where(noise.u < clean + fresh, noise.token, x)
        return jnp.where(noise.u < clean, x0, x_s)

    def hidden(self, x_t):
        return x_t == self.size if self.mask_share == 1 else super().hidden(x_t)

    def likelihood(self, x_t, t):
        alpha, beta, gamma = _columns(self.coefficients(times_for(x_t, t, "likelihood")))
        kept = jnp.where(values(x_t, self.size) == x_t[..., None], alpha, 0.0)
        return jnp.where(self._is_mask(x_t), gamma, kept + beta * self._pi(x_t)[..., None])

    def spread(self, w, t):
        alpha, beta, gamma = _columns(self.coefficients(times_for(w[..., 0], t, "spread")))
        mass = jnp.sum(w, axis=-1, keepdims=True)
        return self._with_mask(alpha * w + beta * mass * self._row(w), gamma * mass)

    def transition(self, x_t, t, s):
        t, s = (times_for(x_t, time, "transition") for time in (t, s))
        a, b, g = _columns(self.between(t, s))
        kept = jnp.where(values(x_t, self.size) == x_t[..., None], a, 0.0)
        masked = self._is_mask(x_t)
        q = jnp.where(masked, g, kept + b * self._pi(x_t)[..., None])
        return self._with_mask(q, masked.astype(q.dtype))

    def rates(self, x_t, t):
        into = self._into(x_t, times_for(x_t, t, "rates"))
        into = jnp.broadcast_to(into[..., None], (*x_t.shape, self.size))
        return self._with_mask(into, jnp.zeros_like(into[..., :1]))

    def _into(self, x_t, t):
        """The forward rate to `x_t`, the same from every other token."""
        alpha, _, gamma = self.coefficients(t)
        slope, rho = self.schedule.slope(t) / (1 - gamma), self.mask_share
        return jnp.where(x_t == self.size, rho * slope, (1 - rho) * safe_divide(slope, alpha) * self._pi(x_t))

    def divergence(self, logits, x0, x_t, t, s):
        if self.mask_share == 1:
            return _cross_entropy(self.jump(x_t, x0, t, s)[0], logits, x0)
        (clean, fresh), (clean_same, fresh_same) = (self.jump(x_t, x, t, s) for x in (-1, x_t))
        likely = self._two(x_t, times_for(x_t, t, "divergence"))[0]
        p, same = self._kept(logits, x_t, likely), 1.0 * (x0 == x_t)
        total = self._excess(logits, x0, x_t, clean, *(_mix(q, fresh_same, fresh) for q in (p, same)))
        left = 1 - self._pi(x_t)
        stay, stay_same = jnp.maximum(1 - clean - fresh * left, 0.0), 1 - fresh_same * left
        own = excess(*(_mix(q, stay_same, stay) for q in (p, same)))
        return total + jnp.where(x_t == self.size, 0.0, own)

    def rate_divergence(self, logits, x0, x_t, t):
        if self.mask_share == 1:
            return _cross_entropy(self.jump(x_t, x0, t)[0], logits, x0)
        t = times_for(x_t, t, "rate_divergence")
        alpha, beta, _ = self.coefficients(t)
        likely, likely_same = self._two(x_t, t)
        scale, scale_same = safe_divide(beta, likely), safe_divide(beta, likely_same)
        fresh = (_mix(q, scale_same, scale) for q in (self._kept(logits, x_t, likely), 1.0 * (x0 == x_t)))
        return self._into(x_t, t) * self._excess(logits, x0, x_t, safe_divide(alpha, likely), *fresh)

    def _two(self, x_t, t):
        """`q(x_t | x0)` for x0 other than x_t, and for x0 = x_t."""
        alpha, beta, gamma = self.coefficients(t)
        masked, drawn = x_t == self.size, beta * self._pi(x_t)
        return jnp.where(masked, gamma, drawn), jnp.where(masked, gamma, alpha + drawn)

    def _kept(self, logits, x_t, likely):
        """What the network gives x0 = x_t; all of it where no other one is likely to come to x_t."""
        p = jnp.exp(token_log_prob(logits, jnp.minimum(x_t, self.size - 1)))
        return jnp.where(likely > 0, p, 1.0)

    def _excess(self, logits, x0, x_t, clean, fresh, true_fresh):
        """Sum over tokens y but x_t of `excess(clean p(y) + fresh pi(y), clean [y = x0] + true_fresh pi(y))`,
        elementwise and then a sum."""
        clean, fresh, true_fresh = _columns((clean, fresh, true_fresh))
        p = jax.nn.softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=-1)
        y, pi = values(x_t, self.size), self._row(p)
        true = jnp.where(y == x0[..., None], clean, 0.0) + true_fresh * pi
        return jnp.sum(jnp.where(y == x_t[..., None], 0.0, excess(clean * p + fresh * pi, true)), axis=-1)

    def _pi(self, x):
        """pi(x); for the mask that of no token in particular."""
        if self.replacement is None:
            return jnp.full(x.shape, 1 / self.size)
        return jnp.asarray(self.replacement, jnp.result_type(float))[jnp.minimum(x, self.size - 1)]

    def _is_mask(self, x):
        return (x == self.size)[..., None]

    def _with_mask(self, q, masked):
        if self.mask is None:
            return q
        return jnp.concatenate([q, jnp.broadcast_to(masked, q[..., :1].shape)], axis=-1)

    def _row(self, w):
        pi = np.full(self.size, 1 / self.size) if self.replacement is None else self.replacement
        return jnp.asarray(pi, w.dtype).reshape((1,) * (w.ndim - 1) + (-1,))


def _mix(p, one, other):
    """`p one + (1 - p) other`."""
    return p * one + (1 - p) * other


def _columns(numbers):
    return tuple(k[..., None] for k in numbers)


def _cross_entropy(weight, logits, x0):
    """`-weight log p(x0)`, 0 where the weight is, whatever p."""
    counts = weight > 0
    return -jnp.where(counts, weight * jnp.where(counts, token_log_prob(logits, x0), 0.0), 0.0)


def absorbing(size, schedule=None):
    """Masked diffusion: tokens turn into the mask token `size` (Sahoo et al. (2024), arXiv:2406.07524)."""
    return mask_and_replace(size, 1.0, schedule)


def uniform(size, schedule=None):
    """Tokens turn into uniform ones (Hoogeboom et al. (2021), arXiv:2102.05379)."""
    return mask_and_replace(size, 0.0, schedule)


def mask_and_replace(size, mask_share=0.9, schedule=None):
    """Both: of the altered tokens a share is masked, the others are uniform (VQ-Diffusion, Gu et al. (2022),
    arXiv:2111.14822)."""
    return Categorical(size, schedules.linear() if schedule is None else schedule, mask_share)


def bits(schedule=None):
    """Bernoulli bits: `q = Ber((1 - b) z + b / 2)` (Wang et al. (2023), arXiv:2304.04820)."""
    return uniform(2, schedule)


def marginal(probabilities, schedule=None):
    """Tokens turn into draws from the data's own frequencies, `(K,)`: nodes and edges of graphs.

    Vignac et al. (2023), arXiv:2209.14734.
    """
    if np.ndim(probabilities) != 1:
        raise ValueError(f"marginal: expected (K,) probabilities, got {probabilities!r}")
    schedule = schedules.linear() if schedule is None else schedule
    return Categorical(np.shape(probabilities)[0], schedule, 0.0, probabilities)
