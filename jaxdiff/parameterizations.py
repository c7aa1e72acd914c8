"""What a network's output means: four coefficient functions tie a network to a denoiser.

    D(x, t) = c_skip x + c_out F(c_in x, c_noise)

A network predicts `F = p x0 + q noise`; with `x = a x0 + c noise` this fixes `c_skip = q / (a q - c p)` and
`c_out = -c / (a q - c p)`. So training targets, clean estimates and conversions are one linear formula.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import (
    check_made,
    check_output,
    check_positive,
    concrete,
    dataclass,
    host,
    is_concrete,
    match_dims,
    namespace,
    safe_divide,
    safe_sqrt,
    static_field,
)


class Coefficients(NamedTuple):
    """The four coefficients of a denoiser at a time, each of the time's shape."""

    c_skip: object
    c_out: object
    c_in: object
    c_noise: object


@dataclass
class Parameterization:
    """The meaning of a network's output.

    Attributes:
      name: how it is called.
      rule: `(process, t, **numbers) -> (c_skip, c_out, p, q)`, the output being `p x0 + q noise`.
      on_y: `(process, t, **numbers) -> r`, where the output is `p x0 + q noise + r y` (`y` the second
        endpoint of processes that have one); None where r is 0.
      numbers: parameters of the rule, e.g. `sigma_data`.
      scaled: whether the network's input is scaled and its time is a log-SNR (EDM preconditioning).
    """

    name: str = static_field()
    rule: Callable = static_field()
    numbers: dict
    on_y: Callable | None = static_field(default=None)
    scaled: bool = static_field(default=False)

    def coefficients(self, process, t):
        """`Coefficients(c_skip, c_out, c_in, c_noise)` of `process` at times `t`."""
        c_skip, c_out, _, _ = self.rule(process, t, **self.numbers)
        if not self.scaled:
            return Coefficients(c_skip, c_out, namespace(t, process).ones_like(c_out), process.c_noise(t))
        xp = namespace(t, process, self)
        c_in = 1 / xp.sqrt(_variance(process, t, **self.numbers))
        if self.on_y is not None:  # between two endpoints the log-SNR goes to -inf where little changes
            return Coefficients(c_skip, c_out, c_in, process.c_noise(t))
        # log(sigma) / 4, held finite at the exact ends of time
        return Coefficients(c_skip, c_out, c_in, -xp.clip(process.log_snr(t), -20.0, 20.0) / 4)

    def target_coefficients(self, process, t):
        """`(p, q)` such that the ideal output is the expectation of `p x0 + q noise`."""
        return self.rule(process, t, **self.numbers)[2:]

    def target(self, process, x0, noise, t, y=None):
        """The network's training target `p x0 + q noise (+ r y)`; `t` matches `x0` from the left.

        Infinite at c = 0 for the score, and for velocities whose `c'` is.
        """
        p, q = (_match(k, x0, "target") for k in self.target_coefficients(process, t))
        return self.add_y(p * x0 + q * noise, process, t, y)

    def add_y(self, output, process, t, y, sign=1):
        """`output + sign r y`: what the second endpoint adds to the output."""
        if process.endpoint(y) is None or self.on_y is None:
            return output
        return output + sign * _match(self.on_y(process, t, **self.numbers), output, "add_y") * y


def noise():
    """The network predicts the noise: `D = (x - c F) / a` (Ho et al. (2020), arXiv:2006.11239).

    Has no clean estimate at alpha = 0.
    """
    return Parameterization("noise", _noise_rule, {})


def _noise_rule(process, t):
    a, _, c = process.coefficients(t)
    zero, one = _like_time(process, t)
    return safe_divide(1.0, a, np.inf), -safe_divide(c, a, np.inf), zero, one


def data():
    """The network predicts the clean data: `D = F`."""
    return Parameterization("data", _data_rule, {})


def _data_rule(process, t):
    zero, one = _like_time(process, t)
    return zero, one, one, zero


def v():
    """The network predicts `v = a noise - c x0`: `D = (a x - c F) / (a^2 + c^2)`.

    Salimans and Ho (2022), arXiv:2202.00512.
    """
    return Parameterization("v", _v_rule, {})


def _v_rule(process, t):
    a, _, c = process.coefficients(t)
    norm = a**2 + c**2
    return a / norm, -c / norm, -c, a


def velocity():
    """The network predicts `dx_t / dt = a' x0 + c' noise`: `D = (c' x - c F) / (a c' - a' c)`.

    Lipman et al. (2023), arXiv:2210.02747; for rectified flow `F = noise - x0`. At c = 0, where `c'`
    need not be finite (it is infinite for variance preserving processes), `D = x / a`. With a second
    endpoint `b' y` is part of the velocity (Albergo et al. (2023), arXiv:2303.08797, eq. 2.10).
    """
    return Parameterization("velocity", _velocity_rule, {}, on_y=lambda process, t: process.derivatives(t)[1])


def _velocity_rule(process, t):
    xp = namespace(t, process)
    a, _, c = process.coefficients(t)
    da, _, dc = process.derivatives(t)
    wronskian, exact = a * dc - da * c, c == 0
    return (
        xp.where(exact, safe_divide(1.0, a, np.inf), safe_divide(dc, wronskian, np.inf)),
        xp.where(exact, 0.0, -safe_divide(c, wronskian, np.inf)),
        da,
        xp.where(exact & (dc == 0), xp.inf, dc),  # forward mode gives 0 for the slope of a root at 0
    )


def residual():
    """The network predicts what was lost, `y - x0`, of a process with a second endpoint: `D = y - F`.

    Liu et al. (2024), arXiv:2308.13712 (the residual head of RDDM).
    """
    return Parameterization("residual", _residual_rule, {}, on_y=lambda process, t: _like_time(process, t)[1])


def _residual_rule(process, t):
    zero, one = _like_time(process, t)
    return zero, -one, -one, zero


def _like_time(process, t):
    """0 and 1 in the shape of the time."""
    zero = namespace(t, process).zeros_like(process.coefficients(t)[0])
    return zero, zero + 1


def score():
    """The network predicts `grad log p_t(x) = -noise / c`: `D = (x + c^2 F) / a`.

    Song et al. (2021), arXiv:2011.13456. Has no clean estimate at alpha = 0.
    """
    return Parameterization("score", _score_rule, {})


def _score_rule(process, t):
    a, _, c = process.coefficients(t)
    zero = namespace(t, process).zeros_like(a)
    return (
        safe_divide(1.0, a, np.inf),
        safe_divide(c**2, a, np.inf),
        zero,
        -safe_divide(1.0, c, np.inf),
    )


def edm(sigma_data=0.5):
    """EDM preconditioning for data of standard deviation `sigma_data`, for any process.

    With `S^2 = c^2 + a^2 sigma_data^2`:

        c_skip = a sigma_data^2 / S^2,  c_out = c sigma_data / S,  c_in = 1 / S,  c_noise = log(c / a) / 4

    With a second endpoint, taken to have the same deviation, `c_in = 1 / sqrt(S^2 + b^2 sigma_data^2)`.

    Karras et al. (2022), arXiv:2206.00364, table 1 (a = 1).
    """
    check_positive("edm", sigma_data=sigma_data)
    return Parameterization("edm", _edm_rule, {"sigma_data": host(sigma_data)}, scaled=True)


def _edm_rule(process, t, sigma_data):
    a, _, c = process.coefficients(t)
    total = namespace(t, process, sigma_data).sqrt(c**2 + a**2 * sigma_data**2)
    noise = safe_divide(c, total, 1.0)  # 1 where a bridge ends in its second endpoint: a = c = 0
    clean = safe_divide(a * sigma_data, total)
    return safe_divide(clean * sigma_data, total), noise * sigma_data, noise / sigma_data, -clean


def _variance(process, t, sigma_data, sigma_end=None, covariance=0.0):
    """Variance of `x_t`, for data and second endpoints of known deviations and covariance."""
    a, b, c = process.coefficients(t)
    sigma_end = sigma_data if sigma_end is None else sigma_end
    return c**2 + (a * sigma_data) ** 2 + (b * sigma_end) ** 2 + 2 * a * b * covariance


def bridge(sigma_data=0.5, sigma_end=0.5, covariance=0.0, given_y=False):
    """EDM preconditioning between two endpoints that are correlated: unit variance in and out.

    For any process with a `y`, with `V = a^2 sigma_data^2 + b^2 sigma_end^2 + 2 a b covariance + c^2`:

        D = c_skip x + c_out F,  c_in = 1 / sqrt(V),  c_skip = (a sigma_data^2 + b covariance) / V
        c_out = sqrt((b^2 (sigma_data^2 sigma_end^2 - covariance^2) + c^2 sigma_data^2) / V)

    `c_skip x` is the best linear estimate of the data from `x`. Zhou et al. (2024), arXiv:2309.16948, eq. 13
    ff., with their a and b exchanged. For networks that see `y` beside `x` the best estimate from both is
    nearer: `edm` for what `k y` leaves open of the data, of deviation `s`,

        D = k y + c_skip (x - b y - a k y) + c_out F,  c_skip = a s^2 / (a^2 s^2 + c^2)
        c_out = c s / sqrt(a^2 s^2 + c^2),  k = covariance / sigma_end^2,  s^2 = sigma_data^2 - k covariance

    Args:
      sigma_data, sigma_end: standard deviations of `x0` and `y`, above 0.
      covariance: of a value of `x0` with that of `y`, below `sigma_data sigma_end` in size.
      given_y: whether the second form is meant.
    """
    check_positive("bridge", sigma_data=sigma_data, sigma_end=sigma_end)
    most = sigma_data * sigma_end
    if is_concrete(most, covariance) and abs(covariance) >= most:
        raise ValueError(f"bridge: expected covariance within {most:g} of 0, got {covariance}")
    numbers = host({"sigma_data": sigma_data, "sigma_end": sigma_end, "covariance": covariance})
    rule, on_y = (_given_rule, _given_on_y) if given_y else (_bridge_rule, _bridge_on_y)
    return Parameterization("bridge", rule, numbers, on_y=on_y, scaled=True)


def _bridge_rule(process, t, sigma_data, sigma_end, covariance):
    a, b, c = process.coefficients(t)
    xp = namespace(t, process, sigma_data, sigma_end, covariance)
    total = xp.sqrt(_variance(process, t, sigma_data, sigma_end, covariance))
    spread = (sigma_data * sigma_end) ** 2 - covariance**2
    c_skip = (a * sigma_data**2 + b * covariance) / total**2
    c_out = safe_sqrt(b**2 * spread + (c * sigma_data) ** 2) / total
    # 1 - c_skip a, without a difference of near-equal numbers where there is little noise
    rest = ((b * sigma_end) ** 2 + a * b * covariance + c**2) / total**2
    return c_skip, c_out, safe_divide(rest, c_out), -safe_divide(c_skip * c, c_out)


def _bridge_on_y(process, t, **numbers):
    c_skip, c_out, _, _ = _bridge_rule(process, t, **numbers)
    return -safe_divide(c_skip * process.coefficients(t)[1], c_out)


def _given_rule(process, t, sigma_data, sigma_end, covariance):
    xp = namespace(t, process, sigma_data, sigma_end, covariance)
    return _edm_rule(process, t, xp.sqrt(sigma_data**2 - (covariance / sigma_end) ** 2))


def _given_on_y(process, t, sigma_data, sigma_end, covariance):
    p = _given_rule(process, t, sigma_data, sigma_end, covariance)[2]
    return -p * covariance / sigma_end**2


def difference():
    """The network predicts what is to be taken off, `x_t - x0`: `D = x - F`.

    Li et al. (2023), arXiv:2205.07680, eq. 8, and Lyu et al. (2024), arXiv:2405.05953 (Brownian bridges).
    """
    return Parameterization("difference", _difference_rule, {}, on_y=_second)


def _second(process, t):
    return process.coefficients(t)[1]


def _difference_rule(process, t):
    a, _, c = process.coefficients(t)
    zero, one = _like_time(process, t)
    return one, -one, a - 1, c


def two_heads(net, process, parameterization, y):
    """A network with heads for residual and noise, as one that predicts what `parameterization` says.

        F = p (y - residual) + q noise + r y

    `velocity()` mixes them as Liu et al. (2024), arXiv:2308.13712 (SM-Res-N), do: `b' residual + c' noise`;
    `v()` with the least error where the heads' errors are alike, and a clean estimate at t = 1 too;
    `residual()` and `noise()` take one alone. To train, add `jd.losses.denoising` of either head by itself,
    under the same key: both then see the same `x_t`.

    Args:
      net: `net(x, c_noise) -> (residual, noise)`, both of the shape of `x`.
      process: one that tells networks its time, such as `jd.processes.Residual`.
      parameterization: one that does not scale the network's input: all but `edm` and `bridge`.
      y: the second endpoint, the shape of `x`.
    """
    if parameterization.scaled:
        raise ValueError(f"two_heads: expected velocity(), v() or the like, got {parameterization.name}")

    def combined(x, c_noise):
        lost, noise = net(x, c_noise)
        return parameterization.target(process, y - lost, noise, c_noise, y)

    return combined


def denoiser(net, process, parameterization, y=None):
    """The clean estimate of a network: `denoise(x, t) -> c_skip z + c_out net(c_in x, c_noise)`, z = x - b y.

    Args:
      net: `net(x, c_noise) -> F`, pure; `c_noise` has the shape of `t`, `(batch,)` for a scalar `t`. It may
        look at `y` by closing over it.
      process: the forward process of `x`; of a pytree every leaf follows it, at the same times.
      parameterization: what `F` means.
      y: the second endpoint, the shape of `x`, for processes that have one.

    Returns:
      `denoise(x, t)`; `t` is a scalar, `(batch,)` or of a shape that `x` starts with.

    Raises:
      ValueError: if the parameterization has no clean estimate at `process.t_max`.
    """
    check_made("denoiser", "process", process, "endpoint", "jd.processes.VP()")
    check_made("denoiser", "parameterization", parameterization, "coefficients", "jd.parameterizations.v()")
    process.endpoint(y)
    known = host(process)
    _refuse_singular("denoiser", parameterization, known, known.t_max)

    def denoise(x, t):
        if y is not None and jax.tree.map(np.shape, y) != jax.tree.map(np.shape, x):
            got = [jax.tree.map(np.shape, tree) for tree in (x, y)]
            raise ValueError("denoiser: expected y of x's shape {}, got {}".format(*got))
        first = jax.tree.leaves(x)[0]
        if not jnp.issubdtype(first.dtype, jnp.inexact):
            raise ValueError(
                f"denoiser: expected a floating x, got {first.dtype}; cast it first, or take "
                "jd.solvers.discrete.denoiser for tokens"
            )
        wide = jnp.promote_types(first.dtype, jnp.float32)  # bfloat16 rounds times to two digits
        t = t if np.ndim(t) else jnp.full(first.shape[:1], t, wide)
        k = parameterization.coefficients(process, t)
        scaled = jax.tree.map(lambda x: _match(k.c_in, x, "denoise") * x, x)
        output = check_output("denoiser", net(scaled, jnp.asarray(k.c_noise, wide)), x)

        def clean(x, output, y=None):
            c_skip, c_out = (_match(c, x, "denoise") for c in k[:2])
            output = parameterization.add_y(output.astype(x.dtype), process, t, y, sign=-1)
            z = x if y is None else x - _match(process.coefficients(t)[1], x, "denoise") * y
            return c_skip * z + c_out * output

        return jax.tree.map(clean, x, output, *(() if y is None else (y,)))

    return denoise


def convert(output, x, t, process, source, target, y=None):
    """The output that `target` would give where `source` gave `output`.

    Both are linear in clean data and noise, so with `z = x - b y = a x0 + c noise`, `F = p x0 + q noise`
    (the part of `y` taken off) and `d = a q - c p`: `F' = (p' q - q' p) / d z + (a q' - c p') / d F`.

    Args:
      output: `F` of `source` at `x`, `(batch, ...)`.
      x: the noisy sample, the shape of `output`.
      t: its times: scalar, `(batch,)` or matching `x` from the left.
      process: the forward process.
      source, target: parameterizations.
      y: the second endpoint, the shape of `x`, for processes that have one.

    Raises:
      ValueError: at known times where `x` and `F` do not tell `F'`: at alpha = 0 from noise to data, at
        c = 0 from data to noise, or to an infinite score.
    """
    keep, change = _conversion(process, t, source, target)
    known = concrete(keep + change)
    if known is not None and not np.all(np.isfinite(known)):
        raise ValueError(
            f"convert: {source.name} prediction leaves {target.name} prediction open or infinite where "
            f"alpha or c is 0 (t = {t} of {type(process).__name__}); use v(), velocity() or edm() as the "
            "source, or times above 0 and below t_max"
        )
    z = x if process.endpoint(y) is None else x - _match(process.coefficients(t)[1], x, "convert") * y
    output = source.add_y(output, process, t, y, sign=-1)
    output = _match(keep, x, "convert") * z + _match(change, x, "convert") * output
    return target.add_y(output, process, t, y)


def _conversion(process, t, source, target):
    """`(keep, change)` of `F' = keep x + change F`; not finite where `x` and `F` do not tell `F'`."""
    xp = namespace(t, process, source, target)
    a, _, c = process.coefficients(t)
    p, q = source.target_coefficients(process, t)
    p_to, q_to = target.target_coefficients(process, t)
    infinite = xp.isinf(q)  # a finite output then means no noise: x alone tells
    p, q = xp.where(infinite, 0.0, p), xp.where(infinite, 1.0, q)
    with np.errstate(invalid="ignore"):
        cross, d = p_to * q - q_to * p, a * q - c * p
        parallel = cross == 0  # multiples of each other, also where neither gives a clean estimate
        keep = xp.where(parallel, 0.0, safe_divide(cross, d, np.inf))
        multiple = (p * p_to + q * q_to) / (p**2 + q**2)
        change = xp.where(parallel, multiple, safe_divide(a * q_to - c * p_to, d, np.inf))
    return keep, xp.where(infinite & xp.isfinite(q_to), 0.0, change)


def _refuse_singular(where, parameterization, process, t):
    with np.errstate(all="ignore"):
        numbers = concrete(parameterization.rule(process, t, **parameterization.numbers)[:2])
    if numbers is not None and not np.all(np.isfinite(numbers)):
        others = "v()" if parameterization.name == "velocity" else "v() or velocity()"
        raise ValueError(
            f"{where}: {parameterization.name} prediction has no clean estimate where alpha = 0 "
            f"(t = {t} of {type(process).__name__}); use data() or edm(), {others} if there is "
            "noise there, or a process with t_max below that time"
        )


def _match(coefficient, x, where):
    return match_dims(jnp.asarray(coefficient, jnp.result_type(x)), x, where)


__all__ = [
    "Coefficients",
    "Parameterization",
    "bridge",
    "convert",
    "data",
    "denoiser",
    "difference",
    "edm",
    "noise",
    "residual",
    "score",
    "two_heads",
    "v",
    "velocity",
]
