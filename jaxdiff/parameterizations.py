"""What a network's output means: four coefficient functions tie a network to a denoiser.

    D(x, t) = c_skip x + c_out F(c_in x, c_noise)

A network predicts `F = p x0 + q noise`; with `x = a x0 + c noise` this fixes `c_skip = q / (a q - c p)` and
`c_out = -c / (a q - c p)`. So training targets, clean estimates and conversions are one linear formula.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxdiff.core import (
    check_positive,
    concrete,
    dataclass,
    match_dims,
    namespace,
    safe_divide,
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
      numbers: parameters of the rule, e.g. `sigma_data`.
      scaled: whether the network's input is scaled and its time is a log-SNR (EDM preconditioning).
      singular_at_noise: whether no clean estimate exists at alpha = 0.
    """

    name: str = static_field()
    rule: Callable = static_field()
    numbers: dict
    scaled: bool = static_field(default=False)
    singular_at_noise: bool = static_field(default=False)

    def coefficients(self, process, t):
        """`Coefficients(c_skip, c_out, c_in, c_noise)` of `process` at times `t`."""
        c_skip, c_out, _, _ = self.rule(process, t, **self.numbers)
        if not self.scaled:
            return Coefficients(c_skip, c_out, namespace(t, process).ones_like(c_out), process.c_noise(t))
        a, _, c = process.coefficients(t)
        xp = namespace(t, process, self)
        c_in = 1 / xp.sqrt(c**2 + a**2 * self.numbers["sigma_data"] ** 2)
        # log(sigma) / 4, held finite at the exact ends of time
        return Coefficients(c_skip, c_out, c_in, -xp.clip(process.log_snr(t), -20.0, 20.0) / 4)

    def target_coefficients(self, process, t):
        """`(p, q)` such that the ideal output is the expectation of `p x0 + q noise`."""
        return self.rule(process, t, **self.numbers)[2:]

    def target(self, process, x0, noise, t):
        """The network's training target `p x0 + q noise`; `t` matches `x0` from the left."""
        p, q = (_match(k, x0, "target") for k in self.target_coefficients(process, t))
        return p * x0 + q * noise


def noise():
    """The network predicts the noise: `D = (x - c F) / a` (Ho et al. (2020), arXiv:2006.11239).

    Has no clean estimate at alpha = 0.
    """
    return Parameterization("noise", _noise_rule, {}, singular_at_noise=True)


def _noise_rule(process, t):
    a, _, c = process.coefficients(t)
    zero = namespace(t, process).zeros_like(a)
    return safe_divide(1.0, a, np.inf), -safe_divide(c, a, np.inf), zero, zero + 1


def data():
    """The network predicts the clean data: `D = F`."""
    return Parameterization("data", _data_rule, {})


def _data_rule(process, t):
    a, _, _ = process.coefficients(t)
    zero = namespace(t, process).zeros_like(a)
    return zero, zero + 1, zero + 1, zero


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
    need not be finite, `D = x / a`.
    """
    return Parameterization("velocity", _velocity_rule, {})


def _velocity_rule(process, t):
    xp = namespace(t, process)
    a, _, c = process.coefficients(t)
    da, _, dc = process.derivatives(t)
    wronskian, exact = a * dc - da * c, c == 0
    return (
        xp.where(exact, safe_divide(1.0, a), safe_divide(dc, wronskian)),
        xp.where(exact, 0.0, -safe_divide(c, wronskian)),
        da,
        dc,
    )


def score():
    """The network predicts `grad log p_t(x) = -noise / c`: `D = (x + c^2 F) / a`.

    Song et al. (2021), arXiv:2011.13456. Has no clean estimate at alpha = 0.
    """
    return Parameterization("score", _score_rule, {}, singular_at_noise=True)


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

    Karras et al. (2022), arXiv:2206.00364, table 1 (a = 1).
    """
    check_positive("edm", sigma_data=sigma_data)
    return Parameterization("edm", _edm_rule, {"sigma_data": sigma_data}, scaled=True)


def _edm_rule(process, t, sigma_data):
    a, _, c = process.coefficients(t)
    total = namespace(t, process, sigma_data).sqrt(c**2 + a**2 * sigma_data**2)
    return (
        a * (sigma_data / total) ** 2,
        c * sigma_data / total,
        c / (total * sigma_data),
        -a * sigma_data / total,
    )


def denoiser(net, process, parameterization):
    """The clean estimate of a network: `denoise(x, t) -> c_skip x + c_out net(c_in x, c_noise)`.

    Args:
      net: `net(x, c_noise) -> F`, pure; `c_noise` has the shape of `t`, `(batch,)` for a scalar `t`.
      process: the forward process of `x`.
      parameterization: what `F` means.

    Returns:
      `denoise(x, t)`; `t` is a scalar, `(batch,)` or of a shape that `x` starts with.

    Raises:
      ValueError: if the parameterization has no clean estimate at `process.t_max`.
    """
    _refuse_singular("denoiser", parameterization, process, process.t_max)

    def denoise(x, t):
        t = t if np.ndim(t) else jnp.full(x.shape[:1], t, jnp.result_type(x))
        k = parameterization.coefficients(process, t)
        c_skip, c_out, c_in = (_match(c, x, "denoise") for c in k[:3])
        return c_skip * x + c_out * net(c_in * x, jnp.asarray(k.c_noise, x.dtype)).astype(x.dtype)

    return denoise


def convert(output, x, t, process, source, target):
    """The output that `target` would give where `source` gave `output`.

    Both are linear in clean data and noise, so with `x = a x0 + c noise`, `F = p x0 + q noise` and
    `d = a q - c p`: `F' = (p' q - q' p) / d x + (a q' - c p') / d F`.

    Args:
      output: `F` of `source` at `x`, `(batch, ...)`.
      x: the noisy sample, the shape of `output`.
      t: its times: scalar, `(batch,)` or matching `x` from the left.
      process: the forward process.
      source, target: parameterizations.

    Raises:
      ValueError: at alpha = 0 from a parameterization that has no clean estimate there.
    """
    _refuse_singular("convert", source, process, t)
    a, _, c = process.coefficients(t)
    p, q = source.target_coefficients(process, t)
    p_to, q_to = target.target_coefficients(process, t)
    d = a * q - c * p
    keep, change = (p_to * q - q_to * p) / d, (a * q_to - c * p_to) / d
    return _match(keep, x, "convert") * x + _match(change, x, "convert") * output


def _refuse_singular(where, parameterization, process, t):
    a = concrete(process.coefficients(t)[0]) if parameterization.singular_at_noise else None
    if a is not None and np.any(a == 0):
        raise ValueError(
            f"{where}: {parameterization.name} prediction has no clean estimate where alpha = 0 "
            f"(t = {t} of {type(process).__name__}); use v(), velocity(), data() or edm(), or a "
            "process with t_max below that time"
        )


def _match(coefficient, x, where):
    return match_dims(jnp.asarray(coefficient, jnp.result_type(x)), x, where)


__all__ = [
    "Coefficients",
    "Parameterization",
    "convert",
    "data",
    "denoiser",
    "edm",
    "noise",
    "score",
    "v",
    "velocity",
]
