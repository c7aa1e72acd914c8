"""Processes with a second endpoint: `x_t = a(t) x0 + b(t) y + c(t) noise`.

Data is exact at t = 0. Where a and c both vanish at `t_max` the process is pinned to `y` there: a bridge.
Knowing `y`, `z = x - b y` is a Gaussian process with the coefficients `(a, c)`, and every solver of those
runs on it; from the pinned end a grid's first step is one exact draw given the clean estimate.
"""

from collections.abc import Callable

import numpy as np

from jaxdiff.core import (
    check_choice,
    check_noise,
    check_one_ended,
    check_positive,
    concrete,
    dataclass,
    namespace,
    safe_sqrt,
    static_field,
)
from jaxdiff.processes.gaussian import check_sigmas, check_times
from jaxdiff.processes.linear import LinearProcess, log_or_infinite

INTERPOLANTS = ("linear", "trigonometric")


class Paired(LinearProcess):
    """A process with a second endpoint."""

    paired = True


@dataclass
class StochasticInterpolant(Paired):
    """From data to a second sample, with noise between, times in [0, 1].

        linear         a = 1 - t,          b = t,            c = gamma(t)
        trigonometric  a = cos(pi t / 2),  b = sin(pi t / 2)

    with `gamma = scale sqrt(t (1 - t))` by default. Given `y` it is a process like any other; for the flow
    and the SDEs between the two marginals, which need no `y`, see `jd.losses.flow_matching` and
    `jd.solvers.field`. Without a second endpoint (one-sided) it is `RectifiedFlow` or
    `Trigonometric`. Albergo et al. (2023), arXiv:2303.08797, eq. 2.1 and table 3.

    Args:
      path: "linear" or "trigonometric".
      scale: of the default gamma, above 0; `sqrt(2)` in the paper.
      gamma: any other `t -> gamma(t)`, differentiable inside (0, 1) with `gamma(0) = gamma(1) = 0`, written
        for numpy and jax arrays; times of a given log-SNR need `a / gamma` to decrease.
    """

    pinned = latest = 1.0

    path: str = static_field(default="linear")
    scale: float = 1.0
    gamma: Callable | None = static_field(default=None)
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        check_choice("StochasticInterpolant", "path", self.path, INTERPOLANTS)
        check_positive("StochasticInterpolant", scale=self.scale)
        check_times(self)

    def coefficients(self, t):
        xp = namespace(t, self)
        if self.path == "linear":
            a, b = 1.0 - t, 1.0 * t
        else:
            a, b = xp.sin(0.5 * np.pi * (1.0 - t)), xp.sin(0.5 * np.pi * t)
        c = self.scale * safe_sqrt(t * (1.0 - t)) if self.gamma is None else self.gamma(t)
        return a, b, c

    def variance(self, t):
        return self.scale**2 * t * (1.0 - t) if self.gamma is None else self.gamma(t) ** 2


@dataclass
class BrownianBridge(Paired):
    """A Brownian motion of the given scale pinned at data and at `y`, times in [0, 1].

        a = 1 - t,  b = t,  c = scale sqrt(t (1 - t))

    Li et al. (2023), arXiv:2205.07680. Consecutive bridges (Lyu et al. (2024), arXiv:2405.05953, with
    `scale = sqrt(2 c)`) are this process from the middle frame (data) to either neighbour (`y`): one
    network, told which, and the same solver from either end. Both papers sample by `ancestral()` and predict
    `jd.parameterizations.difference()`, the second with `jd.weightings.inverse_deviation()`.
    """

    pinned = latest = 1.0

    scale: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        check_positive("BrownianBridge", scale=self.scale)
        check_times(self)

    def coefficients(self, t):
        return 1.0 - t, 1.0 * t, self.scale * safe_sqrt(t * (1.0 - t))

    def variance(self, t):
        return self.scale**2 * t * (1.0 - t)

    def log_snr(self, t):
        # (1 - t) / c = sqrt((1 - t) / t) / scale, finite nowhere at the ends but never 0 / 0
        xp = namespace(t, self)
        return 0.5 * (log_or_infinite(1.0 - t, self) - log_or_infinite(t, self)) - xp.log(self.scale)

    def time_of_log_snr(self, log_snr):
        xp = namespace(log_snr, self)
        return xp.exp(-xp.logaddexp(0.0, 2 * (log_snr + xp.log(self.scale))))


@dataclass
class DiffusionBridge(Paired):
    """A Gaussian process conditioned to end in `y` at its `t_max` (a Doob transform).

    With the base's `(a, c)`, T = t_max and `k = SNR_T / SNR_t`, `SNR = a^2 / c^2`:

        a' = a (1 - k),  b' = k a / a_T,  c' = c sqrt(1 - k)

    Zhou et al. (2024), arXiv:2309.16948, eq. 7, for VP and VE bases; any base with a(t_max) > 0 will do.
    """

    pinned = property(lambda self: self.t_max)

    base: LinearProcess

    def __post_init__(self):
        check_one_ended("DiffusionBridge", self.base)
        check_noise("DiffusionBridge", self.base, "wrap the bridge")
        a = concrete(self.base.coefficients(self.base.t_max)[0])
        if a is not None and np.all(a == 0):
            raise ValueError(
                f"DiffusionBridge: expected a base with signal left at t_max, got {type(self.base).__name__} "
                f"with a = 0 at {self.base.t_max}; choose its t_max below that time"
            )

    @property
    def t_min(self):
        """Of the base."""
        return self.base.t_min

    @property
    def t_max(self):
        """Of the base."""
        return self.base.t_max

    def _share(self, t):
        """`(k, 1 - k)`."""
        gap = 2 * (self.base.log_snr(self.t_max) - self.base.log_snr(t))
        xp = namespace(t, self)
        inside = xp.where(gap < 0, gap, -0.0)
        finite = xp.isfinite(inside)
        inside = xp.where(finite, inside, 0.0)
        return xp.where(finite, xp.exp(inside), 0.0), xp.where(finite, -xp.expm1(inside), 1.0)

    def coefficients(self, t):
        (a, _, c), (k, rest) = self.base.coefficients(t), self._share(t)
        return a * rest, k * a / self.base.coefficients(self.t_max)[0], c * safe_sqrt(rest)

    def variance(self, t):
        return self.base.variance(t) * self._share(t)[1]

    def log_snr(self, t):
        return self.base.log_snr(t) + 0.5 * log_or_infinite(self._share(t)[1], self)

    def time_of_log_snr(self, log_snr):
        # exp(2 log_snr) + SNR_T is the base's SNR
        xp = namespace(log_snr, self)
        last = self.base.log_snr(self.t_max)
        return self.base.time_of_log_snr(0.5 * xp.logaddexp(2 * log_snr, 2 * last))

    def c_noise(self, t):
        return self.base.c_noise(t)


@dataclass
class SchrodingerBridge(Paired):
    """The image-to-image Schroedinger bridge: a bridge with a symmetric beta, times in [0, 1].

        beta(t) = (sqrt(beta_min) + (sqrt(beta_max) - sqrt(beta_min)) (1 - |2 t - 1|))^2,  s = int_0^t beta
        a = (S - s) / S,  b = s / S,  c = sqrt(s (S - s) / S),  S = int_0^1 beta

    Liu et al. (2023), arXiv:2302.05872, eq. 11: little noise at both ends, most of it between.
    """

    pinned = latest = 1.0

    beta_min: float = 0.1
    beta_max: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        check_positive("SchrodingerBridge", beta_min=self.beta_min, beta_max=self.beta_max)
        check_times(self)

    def _passed(self, t):
        """`int_0^t beta` and `int_t^1 beta`."""
        xp = namespace(t, self)
        low, slope = xp.sqrt(self.beta_min), 2 * (xp.sqrt(self.beta_max) - xp.sqrt(self.beta_min))

        def early(t):  # int_0^t (low + slope t)^2 for t up to 1/2
            return t * (low**2 + low * slope * t + slope**2 * t**2 / 3)

        near, whole = early(xp.where(t < 0.5, t, 1.0 - t)), 2 * early(0.5)
        return xp.where(t < 0.5, near, whole - near), xp.where(t < 0.5, whole - near, near)

    def coefficients(self, t):
        passed, left = self._passed(t)
        whole = passed + left
        return left / whole, passed / whole, safe_sqrt(passed * left / whole)

    def variance(self, t):
        passed, left = self._passed(t)
        return passed * left / (passed + left)

    def log_snr(self, t):
        # a / c = sqrt(left / (passed S))
        passed, left = self._passed(t)
        ratio = log_or_infinite(left, self) - log_or_infinite(passed, self)
        return 0.5 * (ratio - log_or_infinite(passed + left, self))


@dataclass
class MeanReverting(Paired):
    """An Ornstein-Uhlenbeck process that forgets the data and settles around `y`, times in [0, 1].

        dx = theta (y - x) dt + scale sqrt(2 theta) dw
        a = exp(-B(t)),  b = 1 - a,  c = scale sqrt(1 - a^2),  B = int_0^t theta,  exp(-B(1)) = remains

    Luo et al. (2023), arXiv:2301.11699 (IR-SDE), eq. 3 and 6; DPM-Solver++ on it is the MR Sampler.

    Args:
      scale: noise level around `y`, above 0 (10 / 255 to 70 / 255 of the images' range in the paper).
      remains: share of the data left at t = 1, in (0, 1).
      schedule: "cosine" (the paper's: theta grows like sin^2) or "constant".
    """

    scale: float = 0.2
    remains: float = 0.005
    schedule: str = static_field(default="cosine")
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        check_choice("MeanReverting", "schedule", self.schedule, ("cosine", "constant"))
        check_positive("MeanReverting", scale=self.scale, remains=self.remains)
        if isinstance(self.remains, (int, float)) and self.remains >= 1:
            raise ValueError(f"MeanReverting: expected remains in (0, 1), got {self.remains}")
        check_times(self)

    def _integral(self, t):
        xp = namespace(t, self)
        if self.schedule == "constant":
            return -xp.log(self.remains) * t
        square = (np.pi * t) ** 2  # t - sin(pi t) / pi cancels near t = 0: its series there
        series = 1 - square / 20 * (1 - square / 42 * (1 - square / 72 * (1 - square / 110)))
        share = xp.where(t < 0.1, t * square / 6 * series, t - xp.sin(np.pi * t) / np.pi)
        return -xp.log(self.remains) * share

    def coefficients(self, t):
        xp = namespace(t, self)
        integral = self._integral(t)
        return xp.exp(-integral), -xp.expm1(-integral), safe_sqrt(self.variance(t))

    def variance(self, t):
        return -(self.scale**2) * namespace(t, self).expm1(-2 * self._integral(t))


@dataclass
class OrnsteinUhlenbeckVE(Paired):
    """Reversion to `y` under a growing noise: speech enhancement, times in [0, 1].

        dx = gamma (y - x) dt + sigma_min r^t sqrt(2 log r) dw,  r = sigma_max / sigma_min
        a = exp(-gamma t),  b = 1 - a,  c^2 = sigma_min^2 (r^(2t) - a^2) log r / (gamma + log r)

    Richter et al. (2023), arXiv:2208.05830, eq. 4 and 6.
    """

    gamma: float = 1.5
    sigma_min: float = 0.05
    sigma_max: float = 0.5
    t_min: float = 0.03
    t_max: float = 1.0

    def __post_init__(self):
        check_positive("OrnsteinUhlenbeckVE", gamma=self.gamma)
        check_sigmas(self)
        check_times(self)

    def coefficients(self, t):
        xp = namespace(t, self)
        return xp.exp(-self.gamma * t), -xp.expm1(-self.gamma * t), safe_sqrt(self.variance(t))

    def variance(self, t):
        xp = namespace(t, self)
        octaves = xp.log(self.sigma_max / self.sigma_min)
        grown = xp.exp(-2 * self.gamma * t) * xp.expm1(2 * (self.gamma + octaves) * t)
        return self.sigma_min**2 * grown * octaves / (self.gamma + octaves)


@dataclass
class Residual(Paired):
    """Residual denoising diffusion: the residual `y - x0` and noise enter on schedules of their own.

        x_t = x0 + r(t) (y - x0) + c(t) noise,    r = 1 - (1 - t)^p,  c = scale t^q,  t in [0, 1]
        a = 1 - r,  b = r
        q(x_s | x_t, x0):  mean x_t - (r_t - r_s) (y - x0) - (c_t - c_s^2 / c_t) E,
                           variance c_s^2 (c_t^2 - c_s^2) / c_t^2,  E = (x_t - a_t x0 - b_t y) / c_t

    Liu et al. (2024), arXiv:2308.13712, eq. 7, 13 and 14. Residual and noise are both added up step by step,
    so the posterior is not that of the Gaussian process with the same marginals; `posterior`, `ancestral()`
    and `ddim(eta)` follow it (the paper's eta is `eta**2`). `scale = 0` is a deterministic path from `y` to
    the data, which `pndm`, `churn`, `edict`, `bdia` and adaptive solvers cannot walk. A network of two heads,
    for residual and noise, enters by `jd.parameterizations.two_heads`.

    Args:
      scale: noise level at t = 1, at least 0.
      residual_power: p, above 0.
      noise_power: q, above 0.
    """

    scale: float = 1.0
    residual_power: float = 2.0
    noise_power: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1.0

    def __post_init__(self):
        check_positive("Residual", residual_power=self.residual_power, noise_power=self.noise_power)
        if isinstance(self.scale, (int, float)) and self.scale < 0:
            raise ValueError(f"Residual: expected scale of at least 0, got {self.scale}")
        check_times(self)

    def coefficients(self, t):
        xp = namespace(t, self)
        left = xp.where(t <= 1, 1.0 - t, 0.0)
        last = xp.where(self.residual_power == 1, left, 0.0)  # straight to the very end
        a = xp.where(left > 0, xp.where(left > 0, left, 1.0) ** self.residual_power, last)
        c = xp.where(t > 0, self.scale * xp.where(t > 0, t, 1.0) ** self.noise_power, 0.0)
        return a, 1.0 - a, c

    def gain(self, t, s):
        return namespace(t, s, self).ones_like(self.coefficients(t)[0])


@dataclass
class ResShift(Paired):
    """Residual shifting, with a transition of its own, times in [0, 1].

        x_t = x0 + eta (y - x0) + kappa sqrt(eta) noise,  a = 1 - eta,  b = eta,  c = kappa sqrt(eta)
        q(x_s | x_t, x0) = N(k x_t + (1 - k) x0, kappa^2 k (eta_t - eta_s)),  k = eta_s / eta_t
        sqrt(eta) = sqrt(eta_min) (eta_max / eta_min)^(t^power / 2),  eta(0) = 0

    Yue et al. (2023), arXiv:2307.12348, eq. 2, 6 and 14. The process is a random walk in `eta`: the noise
    is never scaled down, so its posterior is not that of the Gaussian process with the same marginals;
    `posterior` and `ancestral()` follow it.
    """

    kappa: float = 2.0
    eta_min: float = 1e-3
    eta_max: float = 0.999
    power: float = 0.3
    t_min: float = 1e-4
    t_max: float = 1.0

    def __post_init__(self):
        check_positive(
            "ResShift", kappa=self.kappa, eta_min=self.eta_min, eta_max=self.eta_max, power=self.power
        )
        if isinstance(self.eta_max, float) and not self.eta_min < self.eta_max <= 1:
            raise ValueError(
                f"ResShift: expected eta_min < eta_max <= 1, got {self.eta_min} and {self.eta_max}"
            )
        check_times(self)

    def _eta(self, t):
        xp = namespace(t, self)
        inside = xp.where(t > 0, t, 1.0)
        eta = self.eta_min * (self.eta_max / self.eta_min) ** (inside**self.power)
        return xp.where(t > 0, eta, 0.0)

    def coefficients(self, t):
        eta = self._eta(t)
        return 1.0 - eta, eta, self.kappa * safe_sqrt(eta)

    def gain(self, t, s):
        return namespace(t, s, self).ones_like(self._eta(t))
