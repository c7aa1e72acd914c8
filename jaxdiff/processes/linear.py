"""The one formula of every continuous process: linear in clean data, a second endpoint and noise."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import (
    host,
    is_concrete,
    match_dims,
    namespace,
    normal_like,
    on_host,
    quick,
    safe_divide,
    safe_sqrt,
)


class LinearProcess:
    """A forward process with the marginals

        x_t = a(t) x0 + b(t) y + c(t) noise,    noise ~ N(0, I).

    Time runs from exact data at 0 (`a = 1`, `c = 0`) to the prior at `t_max`; near `t_min` a sample
    is data to the eye, and above it `log_snr` is finite. A subclass is a pytree dataclass with fields
    `t_min` and `t_max`, and gives `coefficients`; `paired` says that there is a second endpoint. Every
    formula accepts Python and numpy times (answered in float64) and jax times (answered in jax,
    differentiable). Fields that are jax arrays, or hold them, are read as numpy's unless they are traced;
    `jax.tree` has them as they are stored.
    """

    paired = False
    pinned = None  # the time at which a process is its second endpoint, without data or noise
    normal = True  # whether the noise is: what solvers and bounds that draw it themselves go by
    repeats = False  # whether entries of the noise repeat others

    def __getattribute__(self, name):
        """Known jax arrays are read as numpy's: within `jit`, what is made of them would be traced."""
        value = object.__getattribute__(self, name)
        held = isinstance(value, (jax.Array, dict, list, tuple)) and not name.startswith("__")
        return host(value) if held else value

    def coefficients(self, t):
        """`(a, b, c)` at times `t` in [0, t_max], each of the shape of `t`."""
        raise TypeError(f"{type(self).__name__} has to define coefficients(t)")

    def time_of_log_snr(self, log_snr):
        """The time at which `log(a / c)` equals `log_snr`: the inverse of `log_snr(t)`.

        By bisection, to rounding, and differentiable; subclasses override it where a closed form exists.
        """
        return _bisection(self, log_snr)

    def variance(self, t):
        """`c(t)**2`; overridden where its derivative is finite and that of `c` is not."""
        return self.coefficients(t)[2] ** 2

    def log_snr(self, t):
        """`log(a / c)`, half the logarithm of the signal-to-noise ratio; +-inf at exact ends.

        -inf also where a bridge ends in its second endpoint, a = c = 0.
        """
        a, _, c = self.coefficients(t)
        xp = jnp if isinstance(a, jax.Array) else namespace(a, self)
        noise = log_or_infinite(c, self)
        return log_or_infinite(a, self) - xp.where(a == 0, 0.0, noise)

    def c_noise(self, t):
        """What a network is told of the time `t`, unless its parameterization says otherwise."""
        return t

    def perturb(self, x0, noise, t, y=None):
        """`x_t = a x0 + b y + c noise`.

        Args:
          x0: clean data, `(batch, ...)`; of a pytree every leaf is perturbed, at the same times.
          noise: standard normal, the shape of `x0`.
          t: times in [0, t_max]: scalar, `(batch,)` or matching `x0` from the left.
          y: the second endpoint, the shape of `x0`, for processes that have one.

        Raises:
          ValueError: for times of another shape, noise of another shape, or a `y` without use.
        """
        if not jax.tree_util.all_leaves([x0]):
            ends = () if self.endpoint(y) is None else (y,)
            return jax.tree.map(lambda x0, noise, *y: self.perturb(x0, noise, t, *y), x0, noise, *ends)
        if np.shape(noise) != np.shape(x0):
            raise ValueError(f"perturb: expected noise of x0's shape {np.shape(x0)}, got {np.shape(noise)}")
        if self.endpoint(y) is not None and np.shape(y) != np.shape(x0):
            raise ValueError(f"perturb: expected y of x0's shape {np.shape(x0)}, got {np.shape(y)}")
        dtype = jnp.result_type(x0, noise, *(() if y is None else (y,)))
        if jnp.issubdtype(jnp.result_type(x0), jnp.floating):  # a and c are not rounded to half precision
            x0 = jnp.asarray(x0, jnp.promote_types(dtype, jnp.float32))
        a, b, c = self.coefficients_for(x0, t, "perturb")
        x_t = a * x0 + c * noise
        return (x_t if y is None else x_t + b * y).astype(dtype)

    def noise(self, keys, like):
        """The noise of `perturb`, standard normal in the structure of `like`; one key or `(batch,)` keys."""
        return normal_like(keys, like)

    def log_noise(self, noise):
        """Log-density of noise `(batch, ...)` in nats, `(batch,)`: of the standard normal law."""
        squares = jnp.sum(jnp.square(noise), axis=tuple(range(1, noise.ndim)))
        return -0.5 * (squares + noise[0].size * np.log(2 * np.pi))

    def prior(self, key, shape, y=None, dtype=None):
        """One example of the prior at `t_max`: `c noise`, around `(a + b) y` where there is a `y`.

        `key` is one key, `shape` the example's, to which `y` broadcasts; `jax.vmap` makes a batch.
        """
        if np.ndim(shape) != 1 or (y is not None and np.ndim(y) > len(shape)):
            got = f"{shape!r}" if y is None else f"{shape!r} and a y of shape {np.shape(y)}"
            raise ValueError(
                "prior: expected shape to be a tuple, that of one example and of its y, got "
                f"{got}; vmap over keys and y for a batch"
            )
        a, b, c = self.coefficients(self.t_max)
        like = jnp.zeros((1, *shape), dtype or jnp.result_type(float))
        noise = self.noise(key[None], like)[0]
        x = jnp.asarray(c, noise.dtype) * noise
        x = x if self.endpoint(y) is None else x + jnp.asarray(a + b, noise.dtype) * y
        return x.astype(like.dtype)

    def gain(self, t, s):
        """Weight of `z_s` in `q(z_t | z_s, x0)`, s < t: `a_t / a_s` where the transition knows no `x0`."""
        return self.coefficients(t)[0] / self.coefficients(s)[0]

    def reverse(self, t, s):
        """What `q(z_s | z_t, x0)`, s < t, is made of: weights of `z_t` and `x0`, standard deviation.

        With `z = x - b y` and `r = gain c_s / c_t`: `r c_s / c_t`, `a_s - (r c_s / c_t) a_t` and
        `c_s sqrt(1 - r^2)` (Ho et al. (2020), arXiv:2006.11239, eq. 7, for any process). Exact at c_s = 0
        and at a_t = 0, where a bridge has c_t = 0.
        """
        (a_t, _, c_t), (a_s, _, c_s) = self.coefficients(t), self.coefficients(s)
        r = self.gain(t, s) * safe_divide(c_s, c_t)
        on_z = r * safe_divide(c_s, c_t)
        return on_z, a_s - on_z * a_t, c_s * safe_sqrt((1 - r) * (1 + r))

    def posterior(self, x_t, x0, t, s, y=None):
        """Mean and standard deviation of `q(x_s | x_t, x0)` for times `s < t`; see `reverse`."""
        if is_concrete(t, s) and np.any(np.asarray(s) >= np.asarray(t)):
            raise ValueError(f"posterior: expected s < t, got s = {s} and t = {t}")
        on_z, on_x0, std = self._matched(self.reverse(_times(t), _times(s)), x_t, "posterior")
        if self.endpoint(y) is None:
            return on_z * x_t + on_x0 * x0, std
        b_t, b_s = (self.coefficients_for(x_t, time, "posterior")[1] for time in (t, s))
        return on_z * (x_t - b_t * y) + on_x0 * x0 + b_s * y, std

    def derivatives(self, t):
        """Time derivatives `(a', b', c')` by forward mode."""
        return _forward_mode(_coefficients, t, self)

    def drift(self, x, t, y=None):
        """Drift of the forward SDE `dx = f x dt + g dw`, `f = a' / a`; singular at a = 0.

        With a second endpoint, `x - b y` in the place of x: `f (x - b y) + b' y`.
        """
        (f,) = self._matched(self.sde(t)[:1], x, "drift")
        if self.endpoint(y) is None:
            return f * x
        b, slope = self._matched((self.coefficients(t)[1], self.derivatives(t)[1]), x, "drift")
        return f * (x - b * y) + slope * y

    def diffusion(self, t):
        """Diffusion `g(t)` of the forward SDE, `g^2 = (c^2)' - 2 f c^2`; singular at a = 0."""
        return safe_sqrt(self.sde(t)[1])

    def sde(self, t):
        """`(f, g^2)` of the forward SDE at `t` (Song et al. (2021), arXiv:2011.13456)."""
        a, variance = self.coefficients(t)[0], self.variance(t)
        slope = _forward_mode(_mean_and_variance, t, self)
        with np.errstate(divide="ignore", invalid="ignore"):
            f = slope[0] / a
            return f, slope[1] - 2 * f * variance

    def coefficients_for(self, x, t, where):
        """`coefficients(t)` in the floating dtype of `x`, with axes that broadcast against it."""
        dtype = jnp.result_type(x)
        if not jnp.issubdtype(dtype, jnp.floating):
            raise ValueError(f"{where}: expected a floating array, got {dtype}; scale it to floats first")
        return self._matched(self.coefficients(_times(t)), x, where)

    def _matched(self, numbers, x, where):
        return tuple(match_dims(jnp.asarray(k, jnp.result_type(x)), x, where) for k in numbers)

    def endpoint(self, y):
        """`y`, refused where the process has no second endpoint and missed where it has one."""
        if y is not None and not self.paired:
            raise ValueError(f"{type(self).__name__} has no second endpoint; leave y out")
        if y is None and self.paired:
            raise ValueError(f"{type(self).__name__} runs from x0 to a second endpoint; pass it as y=")
        return y


class OfBase(LinearProcess):
    """A process with the coefficients and the transition of another one, its field `base`."""

    pinned = property(lambda self: self.base.pinned)
    paired = property(lambda self: self.base.paired)
    t_min = property(lambda self: self.base.t_min)
    t_max = property(lambda self: self.base.t_max)

    def coefficients(self, t):
        return self.base.coefficients(t)

    def variance(self, t):
        return self.base.variance(t)

    def log_snr(self, t):
        return self.base.log_snr(t)

    def time_of_log_snr(self, log_snr):
        return self.base.time_of_log_snr(log_snr)

    def gain(self, t, s):
        return self.base.gain(t, s)

    def c_noise(self, t):
        return self.base.c_noise(t)


def _times(t):
    return t if isinstance(t, (jax.Array, np.ndarray)) or np.ndim(t) == 0 else np.asarray(t, float)


def log_or_infinite(value, process):
    """`log(value)`, and -inf without a bad gradient at 0."""
    xp = jnp if isinstance(value, jax.Array) else namespace(value, process)
    positive = value > 0
    return xp.where(positive, xp.log(xp.where(positive, value, 1.0)), -xp.inf)


def _bisection(process, log_snr):
    xp = namespace(log_snr, process)
    if xp is np:
        return _halved(np, process, np.asarray(log_snr, float))
    fixed, level = jax.lax.stop_gradient((process, jnp.asarray(log_snr)))
    t = _halved(jnp, fixed, level)
    slope = jax.jvp(fixed.log_snr, (t,), (jnp.ones_like(t),))[1]
    inside = jnp.isfinite(slope) & (slope < 0) & jnp.isfinite(level)
    at = jnp.where(inside, t, 0.5 * fixed.t_max)
    miss = process.log_snr(at) - log_snr  # for its gradient, that of the implicit function
    miss = jnp.where(inside, miss - jax.lax.stop_gradient(miss), 0.0)
    return t - miss / jnp.where(inside, slope, 1.0)


def _halved(xp, process, log_snr):
    """Bisection until the ends are neighbours, also next to t = 0."""

    def halve(_, ends):
        middle = 0.5 * (ends[0] + ends[1])
        early = process.log_snr(middle) > log_snr
        return xp.where(early, middle, ends[0]), xp.where(early, ends[1], middle)

    ends = (xp.zeros_like(log_snr), xp.zeros_like(log_snr) + process.t_max)
    if xp is np:
        for number in range(100):
            ends = halve(number, ends)
    else:
        ends = jax.lax.fori_loop(0, 60, halve, ends)
    return xp.where(log_snr == xp.inf, 0.0, ends[1])


def _forward_mode(fn, t, process):
    """Derivative of `fn(process, t)` along `t`: in float64 on the host where all is known, traced otherwise.

    Host times are brought to one of few lengths, for each of which the derivative is compiled, unless `jit`
    cannot take the process.
    """
    if namespace(t, process) is jnp:
        t = jnp.asarray(t, jnp.result_type(t, float))
        return jax.jvp(lambda t: fn(process, t), (t,), (jnp.ones_like(t),))[1]
    size, shape = np.size(t), np.shape(t)
    repeated = np.resize(np.asarray(t, np.float64), max(64, 1 << (size - 1).bit_length()))
    with jax.ensure_compile_time_eval(), on_host(), _x64():
        slopes = (_compiled_slopes() if _is_argument(process) else _slopes)(fn, host(process), repeated)
        slopes = [np.asarray(slope) for slope in slopes]
    return tuple(slope[:size].reshape(shape) if slope.ndim else slope for slope in slopes)


def _slopes(fn, process, t):
    t = jnp.asarray(t)
    return jax.jvp(lambda t: fn(process, t), (t,), (jnp.ones_like(t),))[1]


@functools.cache
def _compiled_slopes():
    return jax.jit(_slopes, static_argnums=0, **quick())


def _is_argument(process):
    """Whether `jit` takes it as an argument: a pytree of numbers; those of users need not be."""
    leaves, structure = jax.tree.flatten(process)
    try:
        hash(structure)
    except TypeError:
        return False
    return all(isinstance(leaf, (int, float, np.generic, np.ndarray, jax.Array)) for leaf in leaves)


def _coefficients(process, t):
    return process.coefficients(t)


def _mean_and_variance(process, t):
    return process.coefficients(t)[0], process.variance(t)


def _x64():
    return jax.enable_x64(True) if hasattr(jax, "enable_x64") else contextlib.nullcontext()
