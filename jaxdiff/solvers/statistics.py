"""Empirical model statistics of DPM-Solver-v3: what a model's estimate does along the ODE."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import (
    batch_keys,
    check_choice,
    concrete,
    dataclass,
    floating,
    fold_in,
    random_tangents,
    safe_divide,
    static_field,
    unit_tangents,
)


@dataclass
class ModelStatistics:
    """Statistics of one model, made by `fit_model_statistics`; a number per log-SNR and value of an example.

    With `u = x / a`, `f = (c E - l x) / a = (1 - l) u - D` and `'` the derivative in log-SNR along the ODE
    `u' = -(u - D)`: `l` makes `f` depend least on `x`, and `f' = s f + b` as nearly as can be.

    Attributes:
      log_snr: `(n + 1,)`, increasing.
      l: `(n + 1, *event)`; 1 is data prediction, 0 with s = -1 noise prediction.
      s: the same.
      b: the same.
      process: the process it was fitted for, in words.
    """

    log_snr: np.ndarray
    l: np.ndarray  # noqa: E741  the paper's letter
    s: np.ndarray
    b: np.ndarray
    process: str = static_field()

    def save(self, path):
        """Writes a npz file."""
        arrays = {name: getattr(self, name) for name in ("log_snr", "l", "s", "b")}
        with open(path, "wb") as file:
            np.savez(file, process=self.process, **arrays)

    @classmethod
    def load(cls, path):
        """Reads a file that `save` has written."""
        with np.load(path) as kept:
            return cls(*(kept[name] for name in ("log_snr", "l", "s", "b")), process=str(kept["process"]))

    def check(self, process, log_snr):
        """Raises ValueError unless fitted for `process` and over the finite ones of `log_snr`."""
        if signature(process) != self.process:
            raise ValueError(
                f"dpm_solver_v3: expected the process that the statistics were fitted for, {self.process}; "
                f"got {signature(process)}"
            )
        inside = log_snr[np.isfinite(log_snr)]
        low, high = self.log_snr[0], self.log_snr[-1]
        slack = 1e-6 * (high - low)
        if inside.size and (inside.min() < low - slack or inside.max() > high + slack):
            raise ValueError(
                f"dpm_solver_v3: expected a grid within the statistics' log-SNR {low:.3f} to {high:.3f}, got "
                f"{inside.min():.3f} to {inside.max():.3f}; fit with low= and high="
            )


def signature(process):
    """A process's type and a digest of its settings and numbers, and of those of processes within it."""
    return f"{type(process).__name__} ({hashlib.sha256(_settings(process)).hexdigest()[:12]})"


def _settings(value):
    """Bytes that tell one setting from another: types and fields of processes, numbers, names."""
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        value = {"type": type(value).__name__} | {name: getattr(value, name) for name in names}
    if isinstance(value, dict):
        return b";".join(name.encode() + b"=" + _settings(value[name]) for name in sorted(value))
    if callable(value):
        return value.__qualname__.encode()
    numbers = np.asarray(value)
    return numbers.astype(np.float64).tobytes() if numbers.dtype.kind in "biuf" else repr(value).encode()


def fit_model_statistics(
    key, denoise, process, x0, steps=120, low=None, high=None, trace="hutchinson", probes=4
):
    """Fits the statistics that `dpm_solver_v3` takes, on data that is perturbed to every log-SNR.

        l = mean(diagonal of c dE/dx) = 1 - a mean(diagonal of dD/dx)
        s = cov(f, f') / var(f),    b = mean(f') - s mean(f)

    Zheng et al. (2023), arXiv:2310.13268, eq. 8 and 11, for each value of an example by itself. `f'` is
    total, along the ODE, by forward differentiation; where `f` does not vary, s = 0. The same noise is used
    at every log-SNR, so that the statistics are smooth in it. Costs `(steps + 1) (probes + 2)` derivatives of
    a batch.

    Args:
      key: one key or `(batch,)` keys.
      denoise: `(x, t) -> clean estimate`, guidance included.
      process: forward process, known.
      x0: `(batch, *event)` data or samples; a thousand is plenty.
      steps: intervals of the uniform log-SNR grid.
      low: its start; the prior's by default, or the mirror image of `t_min`'s where that is infinite.
      high: its end; that of `t_min` by default.
      trace: "hutchinson", or "exact" (as many derivatives as an example has values).
      probes: Rademacher probes of the estimated diagonal.

    Raises:
      ValueError: for a process that is traced, or settings out of range.
    """
    check_choice("fit_model_statistics", "trace", trace, ("hutchinson", "exact"))
    if concrete(process.log_snr(process.t_min)) is None:
        raise ValueError("fit_model_statistics: expected a process that is known, got a traced one")
    end = float(process.log_snr(process.t_min))
    start = float(process.log_snr(process.t_max))
    low = (start if np.isfinite(start) else -end) if low is None else low
    grid = np.linspace(low, end if high is None else high, steps + 1)
    x0 = floating("fit_model_statistics", x0)
    keys = batch_keys(key, x0.shape[0], "fit_model_statistics")
    noise = process.noise(fold_in(keys, 0), x0)
    points = jnp.asarray(grid, x0.dtype)
    exact, own = trace == "exact", fold_in(keys, 1)
    vectors = unit_tangents(x0) if exact else random_tangents(own, x0, probes)

    def clean(u, log_snr):
        t = process.time_of_log_snr(log_snr)
        return denoise(process.coefficients(t)[0] * u, t).astype(u.dtype)

    def at(log_snr):
        return x0 + jnp.exp(-log_snr) * noise  # u = x / a

    def linear_part(log_snr):
        _, derivative = jax.linearize(lambda u: clean(u, log_snr), at(log_snr))
        share = jax.lax.map(lambda v: jnp.mean(v * derivative(v), axis=0), vectors)
        return 1 - (jnp.sum(share, 0) if exact else jnp.mean(share, 0))

    def moments(row):
        log_snr, l, dl = row  # noqa: E741
        u = at(log_snr)
        du = -(u - clean(u, log_snr))
        d, dd = jax.jvp(clean, (u, log_snr), (du, jnp.ones_like(log_snr)))
        f, df = (1 - l)[None] * u - d, (1 - l)[None] * du - dl[None] * u - dd
        mean, slope = jnp.mean(f, 0), jnp.mean(df, 0)
        rest = f - mean[None]
        variance = jnp.mean(rest**2, 0)
        rounding = (64 * jnp.finfo(u.dtype).eps) ** 2 * jnp.mean(u**2, 0)
        s = safe_divide(jnp.mean(rest * (df - slope[None]), 0), jnp.where(variance > rounding, variance, 0))
        return s, slope - s * mean

    l = np.asarray(jax.jit(lambda p: jax.lax.map(linear_part, p))(points), np.float64)  # noqa: E741
    dl = np.gradient(l, grid, axis=0)
    rows = (points, jnp.asarray(l, x0.dtype), jnp.asarray(dl, x0.dtype))
    found = jax.jit(lambda rows: jax.lax.map(moments, rows))(rows)
    s, b = (np.asarray(part, np.float64) for part in found)
    return ModelStatistics(grid, l, s, b, signature(process))
