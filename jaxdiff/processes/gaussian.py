"""Processes without a second endpoint: `x_t = a(t) x0 + c(t) noise`.

Data is exact at t = 0 and the prior is at `t_max`. Each class gives its two coefficient functions and
the inverse of its log-SNR in closed form; everything else follows in `linear`.
"""

import numpy as np

from jaxdiff.core import check_positive, dataclass, is_concrete, namespace, safe_sqrt
from jaxdiff.processes.linear import LinearProcess


def _integrated_beta(process, t):
    """`int_0^t beta`, for `beta(t) = beta_min + t (beta_max - beta_min)`."""
    return process.beta_min * t + 0.5 * (process.beta_max - process.beta_min) * t**2


def _time_of_integrated_beta(process, integral):
    """The root of the quadratic, in the form that does not cancel near t = 0."""
    xp = namespace(integral, process)
    slope = process.beta_max - process.beta_min
    return 2 * integral / (process.beta_min + xp.sqrt(process.beta_min**2 + 2 * slope * integral))


def _check_betas(process):
    check_positive(type(process).__name__, beta_min=process.beta_min, beta_max=process.beta_max)
    check_times(process)


def check_sigmas(process):
    """Raises ValueError unless 0 < sigma_min < sigma_max."""
    name, low, high = type(process).__name__, process.sigma_min, process.sigma_max
    check_positive(name, sigma_min=low, sigma_max=high)
    if is_concrete(low, high) and np.any(low >= high):
        raise ValueError(f"{name}: expected sigma_min < sigma_max, got {low} and {high}")


def check_times(process):
    """Refuses `t_min` and `t_max` that are not `0 < t_min < t_max`."""
    check_positive(type(process).__name__, t_min=process.t_min, t_max=process.t_max)
    ends, latest = (process.t_min, process.t_max), getattr(process, "latest", np.inf)
    known = all(isinstance(t, (int, float)) for t in ends)
    if known and not ends[0] < ends[1] <= latest:
        limit = "" if latest == np.inf else f" <= {latest:g}"
        raise ValueError(
            f"{type(process).__name__}: expected t_min < t_max{limit}, got {ends[0]} and {ends[1]}"
        )


@dataclass
class VP(LinearProcess):
    """Variance preserving with linear beta, times in [0, 1].

        a = exp(-B(t) / 2),  c = sqrt(1 - exp(-B(t))),  B(t) = beta_min t + (beta_max - beta_min) t^2 / 2

    Song et al. (2021), arXiv:2011.13456, eq. 33.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    __post_init__ = _check_betas

    def coefficients(self, t):
        xp = namespace(t, self)
        a = xp.exp(-0.5 * _integrated_beta(self, t))
        return a, xp.zeros_like(a), safe_sqrt(self.variance(t))

    def variance(self, t):
        return -namespace(t, self).expm1(-_integrated_beta(self, t))

    def time_of_log_snr(self, log_snr):
        xp = namespace(log_snr, self)
        return _time_of_integrated_beta(self, xp.logaddexp(0.0, -2 * log_snr))


@dataclass
class SubVP(LinearProcess):
    """Sub-variance preserving with linear beta, times in [0, 1].

        a = exp(-B(t) / 2),  c = 1 - exp(-B(t))

    Song et al. (2021), arXiv:2011.13456, eq. 29.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0
    t_min: float = 1e-3
    t_max: float = 1.0
    __post_init__ = _check_betas

    def coefficients(self, t):
        xp = namespace(t, self)
        integral = _integrated_beta(self, t)
        a = xp.exp(-0.5 * integral)
        return a, xp.zeros_like(a), -xp.expm1(-integral)

    def time_of_log_snr(self, log_snr):
        # a / (1 - a^2) = 1 / (2 sinh(B / 2))
        xp = namespace(log_snr, self)
        return _time_of_integrated_beta(self, 2 * xp.arcsinh(0.5 * xp.exp(-log_snr)))


@dataclass
class CosineVP(LinearProcess):
    """Variance preserving with a cosine alpha, times in [0, 1]; alpha is exactly 0 at t = 1.

        a = cos(u) / cos(u_0),  c = sqrt(1 - a^2),  u = (t + offset) / (1 + offset) pi / 2

    Nichol and Dhariwal (2021), arXiv:2102.09672, eq. 17, without the discrete clipping of beta: for
    noise prediction, which has no clean estimate at alpha = 0, choose `t_max` below 1.
    """

    offset: float = 0.008
    t_min: float = 1e-3
    t_max: float = 1.0
    latest = 1.0

    def __post_init__(self):
        check_positive("CosineVP", offset=self.offset)
        check_times(self)

    def _angles(self, t):
        quarter = 0.5 * np.pi / (1 + self.offset)
        return (1 - t) * quarter, t * quarter, self.offset * quarter

    def coefficients(self, t):
        xp = namespace(t, self)
        rest, _, first = self._angles(t)
        a = xp.sin(rest) / xp.cos(first)
        return a, xp.zeros_like(a), safe_sqrt(self.variance(t))

    def variance(self, t):
        # 1 - cos(u)^2 / cos(u0)^2 = sin(u - u0) sin(u + u0) / cos(u0)^2
        xp = namespace(t, self)
        _, turned, first = self._angles(t)
        return xp.sin(turned) * xp.sin(turned + 2 * first) / xp.cos(first) ** 2

    def time_of_log_snr(self, log_snr):
        xp = namespace(log_snr, self)
        first = self._angles(0.0)[2]
        a2, c2 = _sigmoid(xp, 2 * log_snr), _sigmoid(xp, -2 * log_snr)
        cosine, sine = xp.cos(first), xp.sin(first)
        angle = xp.arctan2(xp.sqrt(sine**2 + c2 * cosine**2), xp.sqrt(a2) * cosine)
        return (angle - first) * (1 + self.offset) * 2 / np.pi


@dataclass
class VE(LinearProcess):
    """Variance exploding, times in (0, 1], and exact data at 0.

        a = 1,  c = sigma_min (sigma_max / sigma_min)^t,  c(0) = 0

    Song et al. (2021), arXiv:2011.13456, eq. 31: c jumps from 0 to sigma_min at t = 0, which the last
    step of a grid takes as one exact step to the clean estimate.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = 1e-5
    t_max: float = 1.0

    def __post_init__(self):
        check_sigmas(self)
        check_times(self)

    def coefficients(self, t):
        xp = namespace(t, self)
        c = self.sigma_min * (self.sigma_max / self.sigma_min) ** t
        c = xp.where(t > 0, c, 0.0)
        return xp.ones_like(c), xp.zeros_like(c), c

    def time_of_log_snr(self, log_snr):
        xp = namespace(log_snr, self)
        octaves = -log_snr - xp.log(self.sigma_min)
        return xp.maximum(octaves / xp.log(self.sigma_max / self.sigma_min), 0.0)


@dataclass
class EDM(LinearProcess):
    """Time is the noise level: `a = 1, c = t`, times in [0, 80]; `t_min` is EDM's sigma_min.

    Karras et al. (2022), arXiv:2206.00364.
    """

    t_min: float = 0.002
    t_max: float = 80.0
    __post_init__ = check_times

    def coefficients(self, t):
        xp = namespace(t, self)
        c = 1.0 * t
        return xp.ones_like(c), xp.zeros_like(c), c

    def time_of_log_snr(self, log_snr):
        return namespace(log_snr, self).exp(-log_snr)

    def c_noise(self, t):
        xp = namespace(t, self)
        return xp.log(xp.maximum(t, 1e-12)) / 4


@dataclass
class RectifiedFlow(LinearProcess):
    """Straight lines between data and noise: `a = 1 - t, c = t`, times in [0, 1].

    Liu et al. (2023), arXiv:2209.03003; conditional optimal transport of Lipman et al. (2023),
    arXiv:2210.02747, with time reversed so that data is at 0.
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    latest = 1.0
    __post_init__ = check_times

    def coefficients(self, t):
        xp = namespace(t, self)
        a = 1.0 - t
        return a, xp.zeros_like(a), 1.0 * t

    def time_of_log_snr(self, log_snr):
        return _sigmoid(namespace(log_snr, self), -log_snr)


@dataclass
class Trigonometric(LinearProcess):
    """A quarter turn from data to noise: `a = cos(pi t / 2), c = sin(pi t / 2)`, times in [0, 1].

    Albergo et al. (2023), arXiv:2303.08797, eq. 4.4 (trigonometric interpolant).
    """

    t_min: float = 1e-3
    t_max: float = 1.0
    latest = 1.0
    __post_init__ = check_times

    def coefficients(self, t):
        xp = namespace(t, self)
        a = xp.sin(0.5 * np.pi * (1.0 - t))
        return a, xp.zeros_like(a), xp.sin(0.5 * np.pi * t)

    def time_of_log_snr(self, log_snr):
        xp = namespace(log_snr, self)
        a, c = _sigmoid(xp, 2 * log_snr), _sigmoid(xp, -2 * log_snr)
        return xp.arctan2(xp.sqrt(c), xp.sqrt(a)) * 2 / np.pi


def _sigmoid(xp, value):
    return xp.exp(-xp.logaddexp(0.0, -value))
