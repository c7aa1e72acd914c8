"""Time grids for sampling: `(steps + 1,)` float64 times, strictly decreasing from `t_max`.

By default a grid ends at exact data (t = 0, where c = 0). Grids laid out in noise level or log-SNR reach
`t_min` in `steps - 1` steps and take the last one to data; with `end=` they reach `end` in `steps`. Where
log-SNR is infinite at `t_max`, they are laid out from its mirror image of `t_min` and begin at `t_max`.
"""

import numpy as np

from jaxdiff.core import check_choice, check_count, check_made, check_positive, concrete, namespace
from jaxdiff.times import log_snr_range, shift_times


def uniform(process, steps, end=None):
    """Equal steps in time."""
    return _in_time(process, steps, end, lambda u: u, "uniform")


def quadratic(process, steps, end=None):
    """Equal steps in the square root of time: denser near data (Song et al. (2021),
    arXiv:2010.02502, appendix D)."""
    steps = _check_steps("quadratic", process, steps)
    first, last = process.t_max, _end(process, end)
    xp = namespace(0.0, process, last)
    root = xp.sqrt(first) + np.linspace(0, 1, steps + 1) * (xp.sqrt(last) - xp.sqrt(first))
    return explicit(process, _pin(root**2, first, last))


def cosine(process, steps, end=None):
    """`t = end + (t_max - end) (1 - sin(pi u / 2))` for u from 0 to 1: denser near data."""
    return _in_time(process, steps, end, lambda u: np.sin(0.5 * np.pi * u), "cosine")


def beta(process, steps, alpha=0.6, beta=0.6, end=None):
    """Quantiles of a Beta distribution in time: denser at both ends where alpha and beta are below 1.

    Lee et al. (2024), arXiv:2407.12173.
    """
    from scipy.stats import beta as law

    check_positive("beta", alpha=alpha, beta=beta)
    return _in_time(process, steps, end, lambda u: 1 - law.ppf(1 - u, alpha, beta), "beta")


def shifted(process, steps, shift=3.0, end=None, power=1.0, terminal=None):
    """Uniform in time, then shifted towards noise, t in [0, 1].

        t <- shift / (shift + (1 / t - 1)^power)

    With power 1 it is `shift t / (1 + (shift - 1) t)`: Esser et al. (2024), arXiv:2403.03206, eq. 23. For a
    shift that grows with resolution see `shift_of_length`.

    Args:
      shift: above 0; above 1 towards noise.
      end: last time.
      power: above 0.
      terminal: stretches the times so that the last before `end` is this one, in (0, t_max): for models
        that were not trained nearer to data.
    """
    check_positive("shifted", shift=shift, power=power)
    steps = _check_steps("shifted", process, steps)
    first, last = process.t_max, _end(process, end)
    left = last / first  # what the shift maps to the end
    left = 1 / (1 + (shift * (1 / left - 1)) ** (1 / power)) if not _is_zero(left) else 0.0
    u = 1 + (left - 1) * np.linspace(0, 1, steps + 1)
    if power == 1:
        t = shift_times(u, shift)
    else:
        xp = namespace(0.0, process, last, shift)
        ahead = xp.where(u > 0, u, 1.0)
        t = xp.where(u > 0, shift / (shift + (1 / ahead - 1) ** power), 0.0)
    if terminal is not None and steps > 1:
        if not (_end(process, terminal) > last):
            raise ValueError(f"shifted: expected terminal in ({last}, {first}), got {terminal}")
        inner = 1 - (1 - t[:-1]) * (1 - terminal / first) / (1 - t[-2])
        t = np.append(inner, t[-1:])
    return explicit(process, _pin(first * t, first, last))


def shift_of_length(length, short=256, long=4096, low=0.5, high=1.15):
    """The shift for a sequence of `length` tokens: the exponential of a line through two lengths.

    Black Forest Labs' FLUX.1 (2024): `exp(low)` at 256 tokens and `exp(high)` at 4,096.
    """
    return float(np.exp(low + (high - low) * (length - short) / (long - short)))


def log_snr(process, steps, end=None):
    """Equal steps in log-SNR (Lu et al. (2022), arXiv:2206.00927, section 3.3)."""
    return _in_log_snr(process, steps, end, lambda a, b, u: a + (b - a) * u, "log_snr")


def karras(process, steps, rho=7.0, end=None):
    """Equal steps in `sigma^(1 / rho)`, sigma = c / a (Karras et al. (2022), arXiv:2206.00364, eq. 5)."""
    check_positive("karras", rho=rho)

    def interpolate(a, b, u):
        xp = namespace(a, b)
        first, last = xp.exp(-a / rho), xp.exp(-b / rho)
        return -rho * xp.log(first + u * (last - first))

    return _in_log_snr(process, steps, end, interpolate, "karras")


def polyexponential(process, steps, rho=1.0, end=None):
    """Log-SNR falls from data as the power `rho` of the step: `log_snr` at 1, denser near data above.

    Katherine Crowson's k-diffusion; equal steps in log sigma (its "exponential") at rho = 1.
    """
    check_positive("polyexponential", rho=rho)
    return _in_log_snr(process, steps, end, lambda a, b, u: b - (b - a) * (1 - u) ** rho, "polyexponential")


def exponential(process, steps, end=None):
    """Equal steps in log sigma: `log_snr` by its other name."""
    return log_snr(process, steps, end)


ALIGNED = {
    "sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def align_your_steps(process, steps, model="sdxl"):
    """The published noise levels of Align Your Steps, interpolated in log sigma; ends at exact data.

    Sabour et al. (2024), arXiv:2404.14507, for Stable Diffusion 1.5 ("sd15"), XL ("sdxl") and Video
    ("svd"), ten steps. Starts at `t_max`; levels that the process does not reach are left to it.
    """
    check_choice("align_your_steps", "model", model, tuple(ALIGNED))
    steps = _check_steps("align_your_steps", process, steps)
    levels = -np.log(ALIGNED[model])
    wanted = np.interp(np.linspace(0, 1, steps + 1), np.linspace(0, 1, len(levels)), levels)[:-1]
    t = process.time_of_log_snr(np.maximum(wanted, log_snr_range(process)[1] + 1e-3 * np.arange(steps)))
    return explicit(process, _pin(np.append(t, 0.0), process.t_max, 0.0))


SPACINGS = ("leading", "linspace", "trailing")


def spaced(process, steps, spacing="trailing", offset=0, end=None):
    """Equally spaced entries of a table of betas, as schedulers of pretrained checkpoints choose them.

        leading   0, T // n, 2 (T // n), ..., plus the offset: does not reach the last entry
        linspace  n entries from 0 to T - 1
        trailing  T - 1, T - 1 - T / n, ...: does not reach the first entry

    Lin et al. (2024), arXiv:2305.08891, table 2. Sampling from the prior needs a grid that starts at the
    last entry: linspace or trailing.

    Args:
      process: `DiscreteVP`.
      steps: n, at most T.
      spacing: see above.
      offset: added to leading entries (1 for Stable Diffusion).
      end: last time; by default exact data.
    """
    check_choice("spaced", "spacing", spacing, SPACINGS)
    steps, size = _check_steps("spaced", process, steps), _table_size("spaced", process)
    if steps > size:
        raise ValueError(f"spaced: expected at most {size} steps, the entries of the table, got {steps}")
    if spacing == "leading":
        indices = (np.arange(steps) * (size // steps))[::-1] + offset
    elif spacing == "linspace":
        indices = np.round(np.linspace(0, size - 1, steps))[::-1] if steps > 1 else np.array([size - 1])
    else:
        indices = np.round(np.arange(size, 0, -size / steps))[:steps] - 1
    return from_indices(process, indices, end)


def from_indices(process, indices, end=None):
    """The times of table entries, largest first, and then `end` (by default exact data).

    Args:
      process: `DiscreteVP`.
      indices: decreasing 0-based entries, integers.
    """
    size, indices = _table_size("from_indices", process), np.asarray(indices)
    if indices.ndim != 1 or np.any(indices != np.round(indices)) or np.any((indices < 0) | (indices >= size)):
        raise ValueError(f"from_indices: expected integers in [0, {size - 1}], got {indices}")
    return explicit(process, np.append(process.time_of_index(indices.astype(int)), _end(process, end)))


def _table_size(where, process):
    if not hasattr(process, "time_of_index"):
        raise ValueError(
            f"{where}: expected a process with a table, DiscreteVP, got {type(process).__name__}"
        )
    return process.size


def _is_zero(value):
    known = concrete(value)
    return known is not None and np.all(known == 0)


def explicit(process, times):
    """The given times, checked.

    Args:
      process: forward process.
      times: `(steps + 1,)` times in [0, t_max], strictly decreasing.

    Raises:
      ValueError: naming the first offending pair or time.
    """
    known = _known_times(times)
    return times if known is None else check_grid(process, known)


def either_way(process, times):
    """`explicit`, or times that increase strictly from above 0: the way from data to noise."""
    known = _known_times(times)
    if known is None:
        return times
    if known.ndim == 1 and known.size > 1 and np.all(np.diff(known) > 0) and known[0] > 0:
        return check_grid(process, known[::-1])[::-1]
    return check_grid(process, known)


def _known_times(times):
    """Times as float64, or None where they are traced."""
    try:
        known = concrete(times)
        return None if known is None else np.asarray(known, np.float64)
    except (TypeError, ValueError):
        raise ValueError(
            f"grid: expected (steps + 1,) times, such as jd.grids.karras(process, 18), got {times!r}"
        ) from None


def check_grid(process, grid):
    """`grid` as float64, refused unless it is 1-D, decreases strictly and lies in [0, t_max]."""
    if grid.ndim != 1 or grid.size < 2:
        raise ValueError(f"grid: expected (steps + 1,) times, at least 2, got shape {grid.shape}")
    if not np.all(np.isfinite(grid)):
        raise ValueError(f"grid: expected finite times, got {grid[~np.isfinite(grid)][0]}")
    rises = np.flatnonzero(np.diff(grid) >= 0)
    if rises.size:
        i = rises[0]
        raise ValueError(
            f"grid: expected strictly decreasing times, got {grid[i]:g} then {grid[i + 1]:g} at "
            f"positions {i} and {i + 1}"
        )
    t_max = concrete(process.t_max)
    if grid[-1] < 0 or (t_max is not None and grid[0] > t_max * (1 + 1e-6)):
        raise ValueError(
            f"grid: expected times within [0, {t_max}] of {type(process).__name__}, got "
            f"{grid[0]:g} to {grid[-1]:g}"
        )
    return grid


def _in_time(process, steps, end, progress, where):
    steps = _check_steps(where, process, steps)
    first, last = process.t_max, _end(process, end)
    u = progress(np.linspace(0, 1, steps + 1))
    return explicit(process, _pin(first + (last - first) * u, first, last))


def _in_log_snr(process, steps, end, interpolate, where):
    steps = _check_steps(where, process, steps)
    xp = namespace(0.0, process)
    if concrete(end) is not None and np.all(concrete(end) == 0):
        end = None  # exact data has no finite log-SNR: the last step goes there from t_min
    inner = steps if end is None else steps + 1
    last = process.t_min if end is None else _end(process, end)
    low, high = log_snr_range(process)[1], process.log_snr(last)
    t = process.time_of_log_snr(interpolate(low, high, np.linspace(0, 1, max(inner, 2))))
    t = _pin(t, process.t_max, last)[:inner]
    return explicit(process, t if end is not None else xp.append(t, 0.0))


def _end(process, end):
    if end is None:
        return 0.0
    known, first = concrete(end), concrete(process.t_max)
    if known is not None and first is not None and not 0 <= known < first:
        raise ValueError(f"grid: expected end in [0, {first}), got {known}")
    return end


def _check_steps(where, process, steps):
    check_made(where, "process", process, "t_max", "jd.processes.VP()")
    check_count(where, steps=steps)
    return int(steps)


def _pin(t, first, last):
    """Rounding must not move the two ends."""
    xp = namespace(t, first, last)
    rest = np.arange(1, len(t) - 1)
    ends = (xp.reshape(first, 1), t[rest], xp.reshape(last, 1))
    return xp.concatenate([xp.asarray(part, float) for part in ends])
