"""The process of a table of betas, as pretrained checkpoints carry it."""

import numpy as np

from jaxdiff.core import concrete, dataclass, namespace
from jaxdiff.processes.gaussian import check_times
from jaxdiff.processes.linear import LinearProcess


@dataclass
class DiscreteVP(LinearProcess):
    """Variance preserving with `T` given betas, continued between its entries, times in [0, 1].

    Entry `n` (0-based) stands at `t = (n + 1) / T`, with `a^2 = prod_{i <= n} (1 - beta_i)`; between
    entries log-SNR is linear in time. Below the first entry `c / a` falls linearly to exact data at
    t = 0; if the last beta is 1 (zero terminal SNR), `a / c` falls linearly to 0 at t = 1. A network is
    told the (fractional) index `t T - 1`.

    Args:
      betas: `(T,)`, in (0, 1), the last possibly 1.
      t_min: 1 / T by default.
    """

    betas: object
    t_min: float | None = None
    t_max: float = 1.0
    latest = 1.0

    def __post_init__(self):
        betas = concrete(self.betas)
        if betas is not None:
            inside = betas.ndim == 1 and betas.size > 1 and np.all(betas > 0)
            if not (inside and np.all(betas[:-1] < 1) and betas[-1] <= 1):
                values = f", values from {betas.min()} to {betas.max()}" if betas.size else ""
                raise ValueError(
                    "DiscreteVP: expected betas of shape (T,), T > 1, in (0, 1) with the last at most "
                    f"1, got shape {betas.shape}{values}"
                )
            object.__setattr__(self, "betas", np.asarray(betas, np.float64))
        if self.t_min is None:
            object.__setattr__(self, "t_min", 1.0 / np.shape(self.betas)[0])
        check_times(self)

    @property
    def size(self):
        """Number of entries `T`."""
        return np.shape(self.betas)[0]

    def time_of_index(self, index):
        """The time of table entry `index` (0-based): `(index + 1) / T`."""
        return (index + 1) / self.size

    def _table(self):
        """Times and log-SNR of the entries, and whether that of the last one is -inf; it is finite here."""
        xp = namespace(self.betas)
        ends_in_noise = self.betas[-1] == 1
        last = xp.where(ends_in_noise, 0.5, self.betas[-1])[None]
        log_a2 = xp.cumsum(xp.log1p(-xp.concatenate([self.betas[:-1], last])))
        log_snr = 0.5 * (log_a2 - xp.log(-xp.expm1(log_a2)))
        return np.arange(1, self.size + 1) / self.size, log_snr, ends_in_noise

    def coefficients(self, t):
        xp = namespace(t, self)
        times, table, ends_in_noise = self._table()
        log_snr = xp.interp(t, times, table)
        noise_to_data = xp.exp(-table[0]) * t * self.size  # c / a below the first entry
        a, c = _sides(xp, xp.where(t < times[0], noise_to_data, xp.exp(-log_snr)))
        tail = _sides(xp, xp.exp(table[-2]) * (1.0 - t) * self.size)  # a / c above the last finite one
        late = ends_in_noise & (t > times[-2])
        a, c = xp.where(late, tail[1], a), xp.where(late, tail[0], c)
        return a, xp.zeros_like(a), c

    def time_of_log_snr(self, log_snr):
        xp = namespace(log_snr, self)
        times, table, ends_in_noise = self._table()
        t = xp.interp(-log_snr, -table, times)
        t = xp.where(log_snr > table[0], xp.exp(table[0] - log_snr) / self.size, t)
        late = ends_in_noise & (log_snr < table[-2])
        return xp.where(late, 1 - xp.exp(log_snr - table[-2]) / self.size, t)

    def c_noise(self, t):
        return t * self.size - 1


@dataclass
class Aggregating(LinearProcess):
    """A forward process that keeps taking in information: multi-task diffusion, times in [0, 1].

        q(z_n | z_(n-1), x) = N(sqrt(1 - beta_n) (z_(n-1) + w_n x0), beta_n),  z_0 = x0 = E(x_1, ..., x_N)
        a_n = sqrt(1 - beta_n) (a_(n-1) + w_n),  c_n^2 = 1 - prod (1 - beta)

    where `x0` is the common encoding of all modalities, which the caller works out, and each modality is
    decoded from the same clean estimate. Entry n (from 1) stands at t = n / T; log(a / c) and log(a) are
    interpolated between. Weights of 0 are `DiscreteVP`. Chen et al. (2024), arXiv:2407.17571, eq. 3.

    Args:
      betas: `(T,)`, in (0, 1).
      weights: `(T,)`, at least 0, small enough that a / c decreases.
    """

    betas: object
    weights: object
    t_min: float | None = None
    t_max: float = 1.0

    def __post_init__(self):
        betas, weights = concrete(self.betas), concrete(self.weights)
        if betas is not None and weights is not None:
            if betas.ndim != 1 or betas.shape != weights.shape or not np.all((betas > 0) & (betas < 1)):
                raise ValueError(
                    "Aggregating: expected betas (T,) in (0, 1) and weights (T,), got shapes "
                    f"{betas.shape} and {weights.shape} with betas from {betas.min()} to {betas.max()}"
                )
            object.__setattr__(self, "betas", np.asarray(betas, np.float64))
            object.__setattr__(self, "weights", np.asarray(weights, np.float64))
            rises = np.flatnonzero(np.diff(self._table()[1]) >= 0)
            if rises.size:
                raise ValueError(
                    f"Aggregating: expected weights with which a / c decreases, but it rises at entry "
                    f"{rises[0] + 2} of {len(betas)}; lower the weights there"
                )
        if self.t_min is None:
            object.__setattr__(self, "t_min", 1.0 / np.shape(self.betas)[0])
        check_times(self)

    def _table(self):
        """Times, log(a / c) and log(a) of the entries, and the log of the noise's gain from the start."""
        xp, size = namespace(self.betas, self.weights), np.shape(self.betas)[0]
        log_gain = 0.5 * xp.cumsum(xp.log1p(-self.betas))
        before = xp.exp(log_gain - 0.5 * xp.log1p(-self.betas))
        log_a = log_gain + xp.log1p(xp.cumsum(self.weights / before))
        return np.arange(1, size + 1) / size, log_a - 0.5 * xp.log(-xp.expm1(2 * log_gain)), log_a, log_gain

    def coefficients(self, t):
        xp = namespace(t, self)
        times, log_snr, log_a, _ = self._table()
        a = xp.exp(xp.interp(t, np.append(0.0, times), xp.append(0.0, log_a)))
        early = xp.exp(-log_snr[0]) * t / times[0]
        c = a * xp.where(t < times[0], early, xp.exp(-xp.interp(t, times, log_snr)))
        return a, xp.zeros_like(a), c

    def time_of_log_snr(self, log_snr):
        xp = namespace(log_snr, self)
        times, table, _, _ = self._table()
        t = xp.interp(-log_snr, -table, times)
        return xp.where(log_snr > table[0], xp.exp(table[0] - log_snr) * times[0], t)

    def gain(self, t, s):
        xp = namespace(t, s, self)
        times, _, _, log_gain = self._table()
        times, log_gain = np.append(0.0, times), xp.append(0.0, log_gain)
        return xp.exp(xp.interp(t, times, log_gain) - xp.interp(s, times, log_gain))

    def c_noise(self, t):
        return t * np.shape(self.betas)[0] - 1


def _sides(xp, tangent):
    """Cosine and sine of the angle with this tangent."""
    cosine = 1 / xp.sqrt(1 + tangent**2)
    return cosine, tangent * cosine
