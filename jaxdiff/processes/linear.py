"""The one formula of every continuous process: linear in clean data, a second endpoint and noise."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import is_concrete, match_dims, namespace, safe_sqrt


class LinearProcess:
    """A forward process with the marginals

        x_t = a(t) x0 + b(t) y + c(t) noise,    noise ~ N(0, I).

    Time runs from exact data at 0 (`a = 1`, `c = 0`) to the prior at `t_max`; near `t_min` a sample
    is data to the eye, and above it `log_snr` is finite. A subclass is a pytree dataclass with fields
    `t_min` and `t_max`, and gives `coefficients` and `time_of_log_snr`. Every formula accepts Python
    and numpy times (answered in float64) and jax times (answered in jax, differentiable).
    """

    def coefficients(self, t):
        """`(a, b, c)` at times `t` in [0, t_max], each of the shape of `t`."""
        raise TypeError(f"{type(self).__name__} has to define coefficients(t)")

    def time_of_log_snr(self, log_snr):
        """The time at which `log(a / c)` equals `log_snr`: the inverse of `log_snr(t)`."""
        raise TypeError(f"{type(self).__name__} has to define time_of_log_snr(log_snr)")

    def variance(self, t):
        """`c(t)**2`; overridden where its derivative is finite and that of `c` is not."""
        return self.coefficients(t)[2] ** 2

    def log_snr(self, t):
        """`log(a / c)`, half the logarithm of the signal-to-noise ratio; +-inf at exact ends."""
        a, _, c = self.coefficients(t)
        return _log(a, self) - _log(c, self)

    def c_noise(self, t):
        """What a network is told of the time `t`, unless its parameterization says otherwise."""
        return t

    def perturb(self, x0, noise, t, y=None):
        """`x_t = a x0 + b y + c noise`.

        Args:
          x0: clean data, `(batch, ...)`.
          noise: standard normal, the shape of `x0`.
          t: times in [0, t_max]: scalar, `(batch,)` or matching `x0` from the left.
          y: the second endpoint, the shape of `x0`, for processes that have one.

        Raises:
          ValueError: for times of another shape, noise of another shape, or a `y` without use.
        """
        if np.shape(noise) != np.shape(x0):
            raise ValueError(
                f"perturb: expected noise of x0's shape {np.shape(x0)}, got {np.shape(noise)}"
            )
        a, b, c = self.coefficients_for(x0, t, "perturb")
        x_t = a * x0 + c * noise
        return x_t if self.endpoint(y) is None else x_t + b * y

    def prior(self, key, shape, y=None, dtype=None):
        """One example of the prior at `t_max`, scale included: `c(t_max) noise (+ b(t_max) y)`."""
        _, b, c = self.coefficients(self.t_max)
        noise = jax.random.normal(key, shape, dtype or jnp.result_type(float))
        x = jnp.asarray(c, noise.dtype) * noise
        return x if self.endpoint(y) is None else x + jnp.asarray(b, noise.dtype) * y

    def posterior(self, x_t, x0, t, s, y=None):
        """Mean and standard deviation of `q(x_s | x_t, x0)` for times `s < t`.

        With `z = x - b y` and `r = a_t c_s / (a_s c_t)`:

            mean = (c_s / c_t) r z_t + a_s (1 - r^2) x0 + b_s y,    std = c_s sqrt(1 - r^2)

        (Ho et al. (2020), arXiv:2006.11239, eq. 7, for any a and c). Exact at c_s = 0 and a_t = 0.
        """
        if is_concrete(t, s) and np.any(np.asarray(s) >= np.asarray(t)):
            raise ValueError(f"posterior: expected s < t, got s = {s} and t = {t}")
        a_t, b_t, c_t = self.coefficients_for(x_t, t, "posterior")
        a_s, b_s, c_s = self.coefficients_for(x_t, s, "posterior")
        r = (a_t * c_s) / (a_s * c_t)
        z_t = x_t if self.endpoint(y) is None else x_t - b_t * y
        mean = (c_s / c_t) * r * z_t + a_s * (1 - r**2) * x0
        if y is not None:
            mean = mean + b_s * y
        return mean, c_s * safe_sqrt((1 - r) * (1 + r))

    def derivatives(self, t):
        """Time derivatives `(a', b', c')` by forward mode."""
        return _forward_mode(self.coefficients, t, self)

    def drift(self, x, t):
        """Drift `f(t) x` of the forward SDE `dx = f x dt + g dw`, `f = a' / a`; singular at a = 0."""
        return match_dims(jnp.asarray(self.sde(t)[0], x.dtype), x, "drift") * x

    def diffusion(self, t):
        """Diffusion `g(t)` of the forward SDE, `g^2 = (c^2)' - 2 f c^2`; singular at a = 0."""
        return safe_sqrt(self.sde(t)[1])

    def sde(self, t):
        """`(f, g^2)` of the forward SDE at `t` (Song et al. (2021), arXiv:2011.13456)."""
        a, variance = self.coefficients(t)[0], self.variance(t)
        slope = _forward_mode(lambda t: (self.coefficients(t)[0], self.variance(t)), t, self)
        with np.errstate(divide="ignore", invalid="ignore"):
            f = slope[0] / a
            return f, slope[1] - 2 * f * variance

    def coefficients_for(self, x, t, where):
        """`coefficients(t)` in the floating dtype of `x`, with axes that broadcast against it."""
        dtype = jnp.result_type(x)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{where}: expected a floating array, got {dtype}; scale it to floats first")
        return tuple(
            match_dims(jnp.asarray(k, dtype), x, where) for k in self.coefficients(_times(t))
        )

    def endpoint(self, y):
        """`y`, refused where the process has no second endpoint."""
        if y is not None:
            raise ValueError(f"{type(self).__name__} has no second endpoint; leave y out")
        return y


def _times(t):
    return t if isinstance(t, (jax.Array, np.ndarray)) or np.ndim(t) == 0 else np.asarray(t, float)


def _log(value, process):
    xp = jnp if isinstance(value, jax.Array) else namespace(value, process)
    positive = value > 0
    return xp.where(positive, xp.log(xp.where(positive, value, 1.0)), -xp.inf)


def _forward_mode(fn, t, process):
    """Derivative of `fn` along `t`: in float64 on the host where all is known, traced otherwise."""
    if namespace(t, process) is jnp:
        t = jnp.asarray(t, jnp.result_type(t, float))
        return jax.jvp(fn, (t,), (jnp.ones_like(t),))[1]
    with jax.ensure_compile_time_eval(), _x64():
        t = jnp.asarray(t, jnp.float64)
        return tuple(np.asarray(d) for d in jax.jvp(fn, (t,), (jnp.ones_like(t),))[1])


def _x64():
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else contextlib.nullcontext()


