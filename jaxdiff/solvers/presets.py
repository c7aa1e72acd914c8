"""The solver and grid to start with, for any process and number of evaluations."""

import numpy as np

from jaxdiff import grids
from jaxdiff.solvers.multistep import unipc

# log-SNR that the start stands for, that of the last step before data, and the power, by evaluations
EVALUATIONS = (1, 5, 8, 10, 15, 20, 50)
FIRST = (-3.25, -2.85, -3.3, -3.45, -2.3, -3.25, -3.25)
LAST = (0.0, 2.0, 3.6, 4.35, 4.55, 5.0, 6.0)
POWER = (1.0, 1.05, 0.8, 0.8, 1.1, 0.85, 1.0)


def default(process, nfe):
    """A plan of `nfe` evaluations that needs no choice: UniPC-2 on levels of log-SNR that depend on `nfe`.

        log-SNR from `FIRST(nfe)` to `LAST(nfe)`, as a power of the step, and then exact data

    Few evaluations are best spent where most of a sample is decided; more of them go nearer to data. The
    numbers were chosen for the worst ratio to the best of all published solvers and grids, over rings of
    narrow modes, anisotropic mixtures in 64 dimensions and low-rank ones in 256, all with values of order one
    (other ones than those of `benchmarks/work_precision.py`).

    Args:
      process: forward process.
      nfe: evaluations of the network, at least 1.

    Returns:
      A `Tableau`: `jd.sample(keys, denoise, process, jd.solvers.default(process, 10), shape=...)`.
    """
    if isinstance(nfe, bool) or not isinstance(nfe, (int, np.integer)) or nfe < 1:
        raise ValueError(f"default: expected nfe to be an integer of at least 1, got {nfe}")
    high, low = (float(level) for level in grids.log_snr_range(process))
    first, last, power = (
        np.interp(np.log(nfe), np.log(EVALUATIONS), values) for values in (FIRST, LAST, POWER)
    )
    first = max(first, low)
    last = min(max(last, first + 0.5), high)
    levels = first + (last - first) * np.linspace(0, 1, nfe) ** power
    return unipc(2, published=True).plan(process, on_levels(process, levels))


def on_levels(process, levels):
    """The grid that starts at `t_max`, has these increasing log-SNR levels after it, and ends at data.

    Args:
      levels: `(steps,)`; the first stands for `t_max` itself.
    """
    t = np.append(process.time_of_log_snr(np.asarray(levels, np.float64)), 0.0)
    t[0] = process.t_max
    return grids.explicit(process, t)
