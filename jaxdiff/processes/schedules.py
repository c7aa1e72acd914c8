"""Schedules of discrete processes: the share `alpha(t)` of tokens that are still clean, from 1 to 0."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_positive, concrete, dataclass, is_concrete, static_field


@dataclass
class Schedule:
    """`alpha(t)` for t in [0, 1]; kept as `level = 1 - alpha`, which is exact near data.

    Attributes:
      law: `(t, **numbers) -> 1 - alpha(t)`, in jax, increasing from 0 to 1.
      numbers: parameters of the law: scalars, or arrays of the shape of an example's tokens.
      per_token: whether arrays among the numbers are one value per token.

    Raises:
      ValueError: for a law that does not run from 0 to 1 (to 2e-3), where its numbers are known.
    """

    law: Callable = static_field()
    numbers: dict
    per_token: bool = static_field(default=True)

    def __post_init__(self):
        if not is_concrete(self.numbers):
            return
        with jax.ensure_compile_time_eval():
            levels = np.stack([np.asarray(self.level(jnp.float32(t))) for t in (0.0, 0.25, 0.5, 0.75, 1.0)])
        ends = abs(levels[0]).max() < 2e-3 and abs(levels[-1] - 1).max() < 2e-3
        if not (np.isfinite(levels).all() and ends and (np.diff(levels, axis=0) >= 0).all()):
            raise ValueError(
                "Schedule: expected alpha to run from 1 at t = 0 down to 0 at t = 1, got "
                f"{1 - levels[0].max():g} to {1 - levels[-1].min():g}"
            )

    def level(self, t):
        """`1 - alpha(t)`; the shape of `t`, or wider where the numbers have the shape of the tokens."""
        numbers = self.numbers
        if self.per_token:
            numbers = {name: _behind(value, t) for name, value in numbers.items()}
        return self.law(t, **numbers)

    def alpha(self, t):
        """The share of tokens that are clean at `t`."""
        return 1 - self.level(t)

    def slope(self, t):
        """`-alpha'(t)`, at least 0."""
        return jax.jvp(self.level, (t,), (jnp.ones_like(t),))[1]

    def time(self, level):
        """The time at which `1 - alpha` is `level`, by bisection."""

        def halve(_, ends):
            middle = 0.5 * (ends[0] + ends[1])
            early = self.level(middle) < level
            return jnp.where(early, middle, ends[0]), jnp.where(early, ends[1], middle)

        return jax.lax.fori_loop(0, 40, halve, (jnp.zeros_like(level), jnp.ones_like(level)))[1]


def check_schedule(where, schedule):
    """Refuses what is no schedule of this module."""
    if not isinstance(schedule, Schedule):
        raise ValueError(f"{where}: expected a schedule of jd.processes.schedules, got {schedule!r}")


def _behind(value, t):
    """Numbers with the shape of tokens, with leading axes up to those of `t`."""
    missing = jnp.ndim(t) - jnp.ndim(value)
    return jnp.asarray(value).reshape((1,) * missing + jnp.shape(value)) if missing > 0 else value


def linear():
    """`alpha = 1 - t`."""
    return Schedule(_linear, {})


def cosine():
    """`alpha = cos(pi t / 2)`: more time near data."""
    return Schedule(_cosine, {})


def polynomial(power):
    """`alpha = 1 - t^power`; a power per token, `(length,)`, can be learned (Shi et al. (2024),
    arXiv:2406.04329)."""
    check_positive("polynomial", power=power)
    return Schedule(_polynomial, {"power": power})


def log_linear(eps=1e-3):
    """`-log alpha = -log(1 - (1 - eps) t)`, ending at alpha = eps (Lou et al. (2024), arXiv:2310.16834)."""
    check_positive("log_linear", eps=eps)
    return Schedule(_log_linear, {"eps": eps})


def table(alphas):
    """A finite process of T steps: `alphas` `(T,)` at t = 1 / T, ..., 1, decreasing to 0, linear between."""
    known = concrete(alphas)
    if known is not None and (known.ndim != 1 or known.size < 1):
        raise ValueError(f"table: expected alphas of shape (T,), got {known.shape}")
    if known is not None and not (np.diff(known, prepend=1.0) <= 1e-6).all():
        raise ValueError(f"table: expected alphas that decrease from 1, got {known}; sort them")
    return Schedule(_table, {"levels": 1 - jnp.asarray(alphas)}, per_token=False)


def _linear(t):
    return t


def _cosine(t):
    return 2 * jnp.sin(0.25 * jnp.pi * t) ** 2


def _polynomial(t, power):
    positive = t > 0  # the derivative of 0^power is not finite below 1
    return jnp.where(positive, jnp.where(positive, t, 1.0) ** power, 0.0)


def _log_linear(t, eps):
    return (1 - eps) * t


def _table(t, levels):
    t = jnp.asarray(t, jnp.result_type(t, jnp.float32))
    levels = jnp.concatenate([jnp.zeros(1, levels.dtype), levels])
    return jnp.interp(t, jnp.linspace(0, 1, len(levels)), levels).astype(t.dtype)
