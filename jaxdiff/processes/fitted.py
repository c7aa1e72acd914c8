"""Schedules that are fitted: the kinetically optimal path of a data set, and learned log-SNR."""

import numpy as np

from jaxdiff.core import check_count, check_one_ended, check_positive, dataclass, namespace
from jaxdiff.processes.gaussian import check_times
from jaxdiff.processes.linear import LinearProcess


@dataclass
class KineticOptimal(LinearProcess):
    """The Gaussian path of least kinetic energy for a data set, times in [0, 1].

    With data of mean square `scale^2` per dimension, `scale a = R sin(theta)` and `c = R cos(theta)`, the
    kinetic energy is, per dimension,

        int R'^2 + R^2 psi'^2 dt,    dpsi / dtheta = sqrt(1 - (1 - L(tan theta)) / cos(theta)^2)

    with the data separation `L(r) = E |E[x0 | r x0 / scale + noise]|^2 / E |x0|^2`. That is a flat cone, on
    which the path of least energy from noise (R = 1, psi = 0) to data (R = scale, psi = angle) is the
    straight chord, of energy `1 + scale^2 - 2 scale cos(angle)`. L = 1 (few points in many dimensions) gives
    rectified flow, a Gaussian gives a variance preserving path.
    Shaul et al. (2023), arXiv:2306.06626, eq. 16.

    Args:
      theta: `(n,)` increasing angles from 0 to pi / 2.
      psi: `(n,)` increasing angles from 0: psi at theta.
      scale: root mean square of the data, per dimension.

    `kinetic_optimal(data)` makes it.
    """

    theta: object
    psi: object
    scale: float = 1.0
    t_min: float = 1e-3
    t_max: float = 1.0
    latest = 1.0
    __post_init__ = check_times

    @property
    def angle(self):
        """The whole angle of the cone, at most pi / 2."""
        return self.psi[-1]

    @property
    def kinetic_energy(self):
        """Of the path, per dimension."""
        return 1 + self.scale**2 - 2 * self.scale * np.cos(self.angle)

    def coefficients(self, t):
        xp = namespace(t, self)
        across = (1.0 - t) * self.scale * xp.sin(self.angle)
        along = t + (1.0 - t) * self.scale * xp.cos(self.angle)
        left = self.angle - xp.arctan2(across, along)
        rest = xp.interp(left, self.angle - self.psi[::-1], 0.5 * np.pi - self.theta[::-1])
        rest = xp.where(t == 0, 0.0, rest)
        radius = xp.hypot(across, along)
        last = (1.0 - t) * xp.sin(self.angle) * self.theta[1] / self.psi[1]  # its value and slope at t = 1
        a = xp.where(t == 1, last, radius * xp.cos(rest) / self.scale)
        return a, xp.zeros_like(a), radius * xp.sin(rest)

    def time_of_log_snr(self, log_snr):
        # the law of sines in the triangle of the apex and the chord's two parts
        xp = namespace(log_snr, self)
        theta = xp.arctan(self.scale * xp.exp(log_snr))
        psi = xp.interp(theta, self.theta, self.psi)
        passed, left = xp.sin(psi), xp.sin(self.angle - psi)
        return left * self.scale / (passed + left * self.scale)


def kinetic_optimal(data, *, queries=512, nodes=129, seed=0):
    """`KineticOptimal` for a data set: its separation estimated, and the optimal path.

    Args:
      data: `(n, ...)` examples; a few thousand are enough.
      queries: noisy points per noise level that the separation is averaged over.
      nodes: noise levels.
      seed: of the noise.

    Raises:
      ValueError: for fewer than two examples or data that is all zero.
    """
    data = np.asarray(data, np.float64).reshape(len(data), -1)
    scale = np.sqrt(np.mean(data**2))
    if len(data) < 2 or not scale > 0:
        raise ValueError(f"kinetic_optimal: expected two different examples at least, got shape {data.shape}")
    theta = np.linspace(0, 0.5 * np.pi, nodes)
    inner = 0.5 * (theta[1:] + theta[:-1])
    separation = data_separation(data, np.tan(inner), queries=queries, seed=seed)
    stretch = np.sqrt(np.clip(1 - (1 - separation) / np.cos(inner) ** 2, 1e-6, 1.0))
    psi = np.append(0.0, np.cumsum(stretch) * theta[1])
    return KineticOptimal(theta, psi, float(scale))


def data_separation(data, ratios, *, queries=512, seed=0):
    """`L(r) = E |E[x0 | r x0 / scale + noise]|^2 / E |x0|^2` of a data set, `scale` its root mean square.

    1 where every noisy point tells which example it was. Estimated as 1 less the posterior variance, which is
    exact at large ratios. Shaul et al. (2023), arXiv:2306.06626, eq. 15.

    Args:
      data: `(n, ...)` examples.
      ratios: `(m,)` signal-to-noise ratios r, at least 0.

    Returns:
      `(m,)` numbers in [0, 1].
    """
    data = np.asarray(data, np.float64).reshape(len(data), -1)
    data = data / np.sqrt(np.mean(data**2))
    rng = np.random.default_rng(seed)
    own = rng.integers(len(data), size=queries)
    noise = rng.normal(size=(queries, data.shape[1]))
    squares, products, cross = np.sum(data**2, 1), data[own] @ data.T, noise @ data.T
    separations = []
    for r in np.asarray(ratios):
        logits = r**2 * products + r * cross - 0.5 * r**2 * squares
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        spread = weights @ squares - np.sum((weights @ data) ** 2, 1)  # of the posterior
        separations.append(1 - np.mean(spread) / np.mean(squares))
    return np.clip(separations, 0.0, 1.0)


def kinetic_energy(process, separation, scale=1.0, nodes=400):
    """Kinetic energy of a process's flow, per dimension, over its time from 0 to `t_max`.

        int m'^2 + c'^2 - (1 - L(m / c)) (m' - m c' / c)^2 dt,   m = scale a

    by Gauss-Legendre quadrature. On N(0, I) data a variance preserving path costs nothing and rectified flow
    2 - pi / 2; of paths in one unit of time `KineticOptimal` has the least. Infinite, so that it grows slowly
    with `nodes`, where the noise begins as the root of time and the data are points apart: of VP processes on
    finite sets. Shaul et al. (2023), arXiv:2306.06626, eq. 14.

    Args:
      process: forward process without a second endpoint.
      separation: `ratios (m,) -> L (m,)`, such as `functools.partial(data_separation, data)`, or
        `lambda r: r**2 / (1 + r**2)` for a Gaussian.
      scale: root mean square of the data, per dimension.
      nodes: of the quadrature, at each of which the separation is asked for.
    """
    check_one_ended("kinetic_energy", process)
    check_positive("kinetic_energy", scale=scale)
    check_count("kinetic_energy", nodes=nodes)
    at, weights = np.polynomial.legendre.leggauss(nodes)
    half = 0.5 * float(process.t_max)
    t = half * (1 + at)
    a, _, c = (np.asarray(k, np.float64) for k in process.coefficients(t))
    da, _, dc = (np.asarray(k, np.float64) for k in process.derivatives(t))
    lost = 1 - np.asarray(separation(scale * a / c), np.float64)
    return float(half * weights @ ((scale * da) ** 2 + dc**2 - lost * (scale * (da - a / c * dc)) ** 2))


@dataclass
class LearnedVP(LinearProcess):
    """Variance preserving with a learned, monotone log-SNR, times in [0, 1].

        log_snr(t) falls from log_snr_max at t_min to log_snr_min at 1, linearly between nodes, by shares
        softmax(heights);  a^2 = sigmoid(2 log_snr),  c^2 = sigmoid(-2 log_snr)

    and c / a falls linearly to 0 below t_min. `heights` is trained by gradient: the variational bound does
    not depend on it, its variance does (`jd.losses.schedule`). Kingma et al. (2021), arXiv:2107.00630,
    section 5 and appendix I.

    Args:
      heights: `(n,)` unconstrained numbers; zeros make log-SNR linear in time.
      log_snr_max, log_snr_min: log(a / c) at the two ends.
    """

    heights: object
    log_snr_max: float = 6.0
    log_snr_min: float = -5.0
    t_min: float = 1e-3
    t_max: float = 1.0
    latest = 1.0

    def __post_init__(self):
        check_positive("LearnedVP", range=self.log_snr_max - self.log_snr_min)
        check_times(self)

    def _nodes(self):
        xp = namespace(self.heights)
        shares = xp.exp(self.heights - xp.max(self.heights))
        passed = xp.cumsum(shares / xp.sum(shares))
        passed = xp.concatenate([xp.zeros(1), passed])
        t = np.linspace(0, 1, len(passed)) * (1.0 - self.t_min) + self.t_min
        return t, self.log_snr_max - (self.log_snr_max - self.log_snr_min) * passed

    def coefficients(self, t):
        xp = namespace(t, self)
        nodes, levels = self._nodes()
        inside = xp.exp(-xp.interp(t, nodes, levels))
        ratio = xp.where(t < self.t_min, xp.exp(-levels[0]) * t / self.t_min, inside)
        a = 1 / xp.sqrt(1 + ratio**2)
        return a, xp.zeros_like(a), ratio * a

    def time_of_log_snr(self, log_snr):
        xp = namespace(log_snr, self)
        nodes, levels = self._nodes()
        t = xp.interp(-log_snr, -levels, nodes)
        return xp.where(log_snr > levels[0], self.t_min * xp.exp(levels[0] - log_snr), t)
