"""The solver and grid to start with, for any process and number of evaluations."""

import numpy as np

from jaxdiff import grids
from jaxdiff.core import check_count, namespace
from jaxdiff.solvers.fitted import FITTED
from jaxdiff.solvers.multistep import unipc
from jaxdiff.solvers.tableau import table

# of the rule for other numbers of evaluations and other ends: log-SNR that the start stands for, that of the
# last step before data, and the power, by evaluations
EVALUATIONS = (1, 5, 8, 10, 15, 20, 50)
FIRST = (-3.25, -2.85, -3.3, -3.45, -2.3, -3.25, -3.25)
LAST = (0.0, 2.0, 3.6, 4.35, 4.55, 5.0, 6.0)
POWER = (1.0, 1.05, 0.8, 0.8, 1.1, 0.85, 1.0)


def default(process, nfe):
    """A plan of `nfe` evaluations that needs no choice.

    With 3 to 20 evaluations: `from_levels` with the levels and slopes of `jaxdiff.solvers.fitted`, the same
    for every process that has these levels between `t_max` and `t_min`; those for processes that go further
    towards data reach further. They were fitted by `benchmarks/default_fit.py`: Levenberg-Marquardt on the
    worst ratio to the best of all published solvers and grids, over rings of narrow modes, anisotropic
    mixtures and low-rank components, all with values of order one, on VP, EDM and rectified flow (none of
    them a target of `benchmarks/work_precision.py`). Otherwise UniPC-2 on powers of the step in log-SNR,
    with ends that depend on `nfe`.

    Strong guidance is another matter: at scale 7.5 the fits are worse than published solvers at 5
    evaluations, and at 8 and 10 a tenth of the samples of a 64-D mixture goes far astray while the median
    is nearer; tune with the guided denoiser there, or take `dpmpp_multistep(2)`.

    Args:
      process: forward process.
      nfe: evaluations of the network, at least 1.

    Returns:
      A `Tableau`: `jd.sample(keys, denoise, process, jd.solvers.default(process, 10), shape=...)`.
    """
    check_count("default", nfe=nfe)
    high, low = (float(level) for level in grids.log_snr_range(process))
    if float(process.coefficients(process.t_max)[2]) > 0:  # else a bridge, pinned to its end
        for end in sorted((end for end, n in FITTED if n == nfe), reverse=True):
            levels, slopes = (np.array(numbers) for numbers in FITTED[end, nfe])
            if low < levels[0] and levels[-1] <= high:
                return from_levels(process, levels, spread(slopes, nfe))
    return by_rule(process, nfe, low, high)


def by_rule(process, nfe, low, high):
    """UniPC-2 from `FIRST(nfe)` to `LAST(nfe)` within the process's log-SNR, and then to exact data."""
    first, last, power = (
        np.interp(np.log(nfe), np.log(EVALUATIONS), values) for values in (FIRST, LAST, POWER)
    )
    first = max(first, low)
    last = min(max(last, first + 0.5), high)
    levels = first + (last - first) * np.linspace(0, 1, nfe) ** power
    return unipc(2, published=True).plan(process, on_levels(process, levels))


def spread(numbers, nfe):
    """`(nfe, 3)` slopes from those that there are estimates for, row by row."""
    slopes = np.zeros((nfe, 3))
    slopes[slots(nfe)] = numbers
    return slopes


def slots(nfe):
    """Where slopes have estimates before them."""
    return np.nonzero(np.arange(nfe)[:, None] > np.arange(3)[None])


def from_levels(process, levels, slopes):
    """A multistep plan from log-SNR levels and what each step makes of its last four estimates.

        x_(k+1) = (c_(k+1) / c_k) x_k + (a_(k+1) - a_k c_(k+1) / c_k) E_k
        E_k = D_k + sum_j slopes_kj (D_(k-j) - D_(k-j-1)),    j = 0, 1, 2

    the exact solution for an estimate that stays `E_k` (DDIM's step), so that data which are one point are
    exact for any slopes. Traceable.

    Args:
      process: forward process with noise at `t_max`, where the plan starts.
      levels: `(nfe - 1,)` increasing log-SNR of the further evaluations; the last step leads to data.
      slopes: `(nfe, 3)`, 0 where there are no such estimates.
    """
    xp = namespace(levels, slopes, process)
    t = xp.concatenate([xp.reshape(process.t_max, 1), process.time_of_log_snr(levels), np.zeros(1)])
    a, _, c = process.coefficients(t)
    ratio = c[1:] / c[:-1]
    weights = [1 + slopes[:, 0], slopes[:, 1] - slopes[:, 0], slopes[:, 2] - slopes[:, 1], -slopes[:, 2]]
    scale = a[1:] - a[:-1] * ratio
    return table(t[:-1], [ratio, 0.0, *[scale * w for w in weights], 0.0], noisy=False)


def on_levels(process, levels):
    """The grid that starts at `t_max`, has these increasing log-SNR levels after it, and ends at data.

    Args:
      levels: `(steps,)`; the first stands for `t_max` itself.
    """
    t = np.append(process.time_of_log_snr(np.asarray(levels, np.float64)), 0.0)
    t[0] = process.t_max
    return grids.explicit(process, t)
