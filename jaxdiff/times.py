"""Training-time distributions of t: a quantile function applied to one uniform number per example.

Uniform numbers are stratified over the global batch, apart from `uniform()`: example `i` of `n` draws from
`[i / n, (i + 1) / n)`, which lowers the variance of the batch loss and changes no expectation.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import logit, ndtri
from jax.scipy.stats import norm

from jaxdiff.core import check_positive, concrete, dataclass, host, namespace, static_field, typed


@dataclass
class Times:
    """A distribution of training times.

    Attributes:
      quantile: `(process, u, **numbers) -> t`, from uniform numbers in (0, 1) to times.
      numbers: parameters of the quantile function.
      stratified: whether the uniform numbers are stratified over the batch.
      law: `(process, t, **numbers) -> density`, or None where it is not known.
    """

    quantile: Callable = static_field()
    numbers: dict
    stratified: bool = static_field(default=True)
    law: Callable | None = static_field(default=None)

    def draw(self, keys, process, strata=None):
        """`(batch,)` times for `(batch,)` keys; `strata` is `(index in the global batch, its size)`."""
        u = jax.vmap(lambda key: jax.random.uniform(key, ()))(typed(keys, "times"))
        if self.stratified:
            index, count = (jnp.arange(len(u)), len(u)) if strata is None else strata
            u = (index + u) / count
        # the open interval: every quantile function is finite on it, also after rounding
        edge = jnp.finfo(u.dtype).epsneg
        t = self.quantile(process, jnp.clip(u, edge, 1 - edge), **self.numbers)
        return jnp.clip(t, process.t_min, process.t_max)

    def density(self, process, t):
        """Probability density at times `t` within (t_min, t_max), the shape of `t`."""
        if self.law is None:
            raise ValueError(
                "times: expected a distribution with a known density, such as uniform(), log_snr(), "
                "log_normal() or logit_normal(); or pass law="
            )
        return self.law(process, t, **self.numbers)


def uniform(stratified=False):
    """Uniform on [t_min, t_max], each example's time drawn by itself."""
    return Times(_uniform, {}, stratified, _uniform_density)


def stratified():
    """Uniform on [t_min, t_max], stratified over the batch (Kingma et al. (2021), arXiv:2107.00630)."""
    return uniform(stratified=True)


def log_snr(stratified=True):
    """Uniform in log-SNR: importance sampling for the likelihood.

        p(t) = -d log_snr / dt / range = g^2 / (2 c^2 range)

    the density proportional to the likelihood's weight on the error of the noise, so that no weight is left
    on it: with `jd.weightings.likelihood(times)` the loss has the mean of uniform times and a far smaller
    variance. Song et al. (2021), arXiv:2101.09258 (p proportional to g^2 / c^2); Kingma et al. (2021),
    arXiv:2107.00630, for any schedule.
    """
    return Times(_log_snr, {}, stratified, _log_snr_density)


def log_normal(mean=-1.2, std=1.2, stratified=True):
    """`log(c / a)` normal: EDM's noise levels, on any process (arXiv:2206.00364, table 1)."""
    check_positive("log_normal", std=std)
    return Times(_log_normal, {"mean": mean, "std": std}, stratified, _log_normal_density)


def logit_normal(mean=0.0, std=1.0, shift=1.0, stratified=True):
    """`logit(t / t_max)` normal, then shifted (Esser et al. (2024), arXiv:2403.03206, eq. 19, 23)."""
    check_positive("logit_normal", std=std, shift=shift)
    numbers = {"mean": mean, "std": std, "shift": shift}
    return Times(_logit_normal, numbers, stratified, _logit_normal_density)


def mode(scale=1.29, shift=1.0, stratified=True):
    """More weight at the middle of time, heavy tails (arXiv:2403.03206, eq. 20): for `u` uniform,
    `t = 1 - u - scale (cos(pi u / 2)^2 - 1 + u)`, with `scale` in [-1, 2 / (pi - 2)]."""
    if isinstance(scale, (int, float)) and not -1 <= scale <= 2 / (jnp.pi - 2):
        raise ValueError(f"mode: expected scale in [-1, 2 / (pi - 2)] = [-1, 1.752], got {scale}")
    check_positive("mode", shift=shift)
    return Times(_mode, {"scale": scale, "shift": shift}, stratified)


def shift_times(t, shift):
    """`shift t / (1 + (shift - 1) t)` for t in [0, 1]: more noise for larger images where shift > 1."""
    return shift * t / (1 + (shift - 1) * t)


def log_snr_range(process):
    """Log-SNR at `t_min` and at `t_max`; for the last its mirror image of the first where it is infinite."""
    check_snr("log_snr", process)
    process = host(process)
    xp, high, low = namespace(0.0, process), process.log_snr(process.t_min), process.log_snr(process.t_max)
    known = concrete(high)
    if known is not None and (known == float("inf")).any():
        raise ValueError(
            f"log_snr: expected a process with noise at t_min, got {type(process).__name__} with c = 0 at "
            f"{process.t_min}; take a grid in t, such as uniform"
        )
    return high, xp.where(xp.isfinite(low), low, -high)


def check_snr(where, process):
    """Raises ValueError for a process without a signal-to-noise ratio, such as one of tokens."""
    if not hasattr(process, "time_of_log_snr"):
        raise ValueError(
            f"{where}: expected a process with a signal-to-noise ratio, got {type(process).__name__}; for "
            "tokens take times and grids in t, such as uniform, for a product one of each part"
        )


def _uniform(process, u):
    return process.t_min + (process.t_max - process.t_min) * u


def _uniform_density(process, t):
    return jnp.full(jnp.shape(t), 1 / (process.t_max - process.t_min))


def _log_snr(process, u):
    high, low = log_snr_range(process)
    return process.time_of_log_snr(high + (low - high) * u)


def _log_snr_density(process, t):
    high, low = log_snr_range(process)
    return -_slope(process, t)[1] / (high - low)


def _slope(process, t):
    """Log-SNR and its derivative."""
    t = jnp.asarray(t)
    return jax.jvp(process.log_snr, (t,), (jnp.ones_like(t),))


def _log_normal(process, u, mean, std):
    check_snr("log_normal", process)
    return process.time_of_log_snr(-(mean + std * ndtri(u)))


def _log_normal_density(process, t, mean, std):
    level, slope = _slope(process, t)
    return -slope * norm.pdf(-level, mean, std)


def _logit_normal(process, u, mean, std, shift):
    return process.t_max * shift_times(jax.nn.sigmoid(mean + std * ndtri(u)), shift)


def _logit_normal_density(process, t, mean, std, shift):
    u = shift_times(t / process.t_max, 1 / shift)
    back = shift / (shift - (shift - 1) * t / process.t_max) ** 2
    return norm.pdf(logit(u), mean, std) / (u * (1 - u)) * back / process.t_max


def _mode(process, u, scale, shift):
    u = 1 - u  # so that t rises with the uniform number
    t = 1 - u - scale * (jnp.cos(0.5 * jnp.pi * u) ** 2 - 1 + u)
    return process.t_max * shift_times(t, shift)
