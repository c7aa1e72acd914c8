"""A solver fitted to one model: all numbers of its table, by least squares through the sampler."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff import grids
from jaxdiff.core import check_count, fold_in, matmul
from jaxdiff.solvers.exponential import dpmpp_multistep
from jaxdiff.solvers.multistep import unipc
from jaxdiff.solvers.presets import on_levels
from jaxdiff.solvers.search import numeric, seed_of, walk_to_end
from jaxdiff.solvers.tableau import Tableau, stack
from jaxdiff.solvers.tuned import Tuned, describe

FLOOR = 1e-4  # of the ends' root mean square value: errors below it are not worth more effort
NATS = 4.0  # of log-SNR beyond t_min, for reference paths
CHUNK = 2**19  # values of a Jacobian held at once


def tune(
    key, denoise, process, nfe, *, shape, samples=128, proposals=250, updates=60, grid_only=False,
    reference=None, condition=None, about=None,
):  # fmt: skip
    """A solver of `nfe` evaluations whose grid and coefficients fit one denoiser: found in seconds.

    The best of `proposals` grids and solvers is the start. With all clean estimates so far at hand, a
    deterministic table of n evaluations is

        x_(k+1) = r_k x_k + sum_(j <= k) w_kj D(x_j, t_j)

    and all of r, w and the log-SNR of t are fitted by Levenberg-Marquardt on
    `mean log(|x - x_ref|^2 + floor^2) / 2` over reference paths: least squares with each example weighted by
    the inverse square of its own error, so that the few that end in another mode do not rule. A quarter as
    many further paths choose among the start and what was found on the way.

    Args:
      key: a key.
      denoise: `(x, t) -> clean estimate`, deterministic, with forward derivatives; or a list of them
        (conditions of one family), over which the error is averaged.
      process: forward process without a second endpoint.
      nfe: evaluations, at least 2.
      shape: of one example.
      samples: reference paths.
      proposals: grids tried.
      updates: of Levenberg-Marquardt; each costs `nfe (nfe + 5) / 2` derivatives and some samples.
      grid_only: only the levels of the best proposal's grid are free; its coefficients stay the solver's.
      reference: the plan whose ends are to be reached; by default 256 steps of UniPC-3, which go further
        towards data than `t_min`, so that what noise is left there does not limit the result.
      condition: array or pytree of `(m, ...)` conditions that the paths take in turn, such as
        `np.arange(10)`; the denoiser is then called as `denoise(x, t, condition)`.
      about: dict of notes to keep with the result, such as the guidance scale.

    Returns:
      `Tuned`: a solver for `jd.sample` without a grid, and a file by `save`.

    Raises:
      ValueError: for fewer than 2 evaluations, a process with a second endpoint or without a signal-to-noise
        ratio, or a denoiser whose reference paths are not finite.
    """
    check_count("tune", 2, nfe=nfe)
    check_count("tune", samples=samples, proposals=proposals)
    check_count("tune", 0, updates=updates)
    if not isinstance(shape, (tuple, list)):
        raise ValueError(f"tune: expected shape, of one example, to be a tuple, got {shape!r}")
    if not hasattr(process, "log_snr") or process.paired:
        raise ValueError(
            f"tune: expected a process between data and noise, got {type(process).__name__}; take "
            "jd.solvers.default, or a solver of its own kind"
        )
    family = list(denoise) if isinstance(denoise, (list, tuple)) else [denoise]
    held = max(samples // 4, 16)
    keys = jax.random.split(fold_in(key, 0), samples + held)
    x = jax.vmap(lambda k: process.prior(k, tuple(shape)))(keys)
    fine = fine_plan(process) if reference is None else reference
    condition = jax.tree.map(lambda c: jnp.asarray(c)[np.arange(len(x)) % len(c)], condition)
    ends = [jax.jit(lambda x, given, D=D: walk_given(D, fine, x, given))(x, condition) for D in family]
    ends = jnp.stack(ends)
    if not np.isfinite(ends).all():
        raise ValueError("tune: expected finite reference paths, got some that are not; look at the denoiser")
    fit = Fit(family, float(FLOOR * jnp.sqrt(jnp.mean(ends**2))))
    paths, check = (
        (x[part], ends[:, part], jax.tree.map(lambda c, part=part: c[part], condition))
        for part in (slice(samples), slice(samples, None))
    )
    pairs = proposed(process, nfe, proposals, np.random.default_rng(seed_of(key)))
    plans = [solver.plan(process, on_levels(process, levels)) for solver, levels in pairs]
    best = int(np.argmin(scored(fit, plans, paths)))
    free = free_levels(process, *pairs[best]) if grid_only else free_table(process, plans[best])
    rows = fit.descend(free, plans[best], paths, check, updates)
    errors = np.asarray(jax.jit(fit.errors)(numeric(rows), *check))
    notes = {"error": f"{np.median(errors):.3g}", "kept": "start" if rows is plans[best] else "tuned"}
    notes = {name: str(value) for name, value in (notes | (about or {})).items()}
    return Tuned(rows, describe(process), tuple(shape), tuple(sorted(notes.items())))


def walk_given(denoise, rows, x, condition=None):
    """The end of a plan from `x`, of a denoiser that is told the conditions, if there are any."""
    told = denoise if condition is None else lambda x, t: denoise(x, t, condition)
    return walk_to_end(told, rows, x)


def fine_plan(process, steps=256):
    """A plan for reference paths, whose last step to data starts up to `NATS` further than at `t_min`."""
    high, low = _levels_beyond(process, NATS)
    return unipc(3).plan(process, on_levels(process, np.linspace(low, high, steps)))


def _levels_beyond(process, nats):
    """The range of log-SNR, with so many nats beyond `t_min` where the process has such levels."""
    high, low = (float(level) for level in grids.log_snr_range(process))
    there = np.isfinite(process.log_snr(process.time_of_log_snr(np.float64(high + nats))))
    return high + nats if there else high, low


def proposed(process, nfe, count, rng):
    """Strong solvers with levels of log-SNR: warps of its range, and random changes of them."""
    high, low = (float(level) for level in grids.log_snr_range(process))
    solvers = [unipc(2), unipc(3), dpmpp_multistep(2), dpmpp_multistep(3, lower_order_final=True)]
    pairs = []
    for i in range(count):
        first, last = max(low, rng.uniform(-5.0, -1.5)), min(high, rng.uniform(1.5, 4.5))
        u = np.linspace(0, 1, nfe) ** rng.uniform(0.6, 1.4)
        levels = first + (last - first) * u
        levels[1:] += 0.1 * (i % 3) * (last - first) / nfe * rng.normal(size=nfe - 1)
        pairs.append((solvers[i % len(solvers)], np.sort(levels)))
    return pairs


def scored(fit, plans, paths, batch=32):
    """The objective of every plan, many in one program."""
    rows = numeric(stack(plans))
    run = jax.jit(jax.vmap(lambda rows: fit.objective(rows, *paths)))
    scores = []
    for first in range(0, len(plans), batch):
        index = np.minimum(np.arange(first, first + batch), len(plans) - 1)
        scores.append(np.asarray(run(jax.tree.map(lambda leaf, i=index: leaf[i], rows))))
    return np.nan_to_num(np.concatenate(scores)[: len(plans)], nan=np.inf)


class Fit:
    """Distances of samplers' ends from reference ends, and the descent on them.

    Paths are `(x, ends, condition)`: starts `(n, ...)`, ends `(denoisers, n, ...)`, and conditions
    `(n, ...)` or None.
    """

    def __init__(self, family, floor):
        self.family, self.floor = family, floor

    def residuals(self, rows, x, ends, condition=None):
        """`(denoisers n, values)`, sampled end minus reference end."""
        runs = [walk_given(D, rows, x, condition) for D in self.family]
        return (jnp.stack(runs) - ends).reshape(len(self.family) * len(x), -1)

    def errors(self, rows, *paths):
        """`(denoisers n,)` distances."""
        return jnp.linalg.norm(self.residuals(rows, *paths), axis=1)

    def objective(self, rows, *paths):
        """The mean of `log(distance^2 + floor^2) / 2`."""
        squares = jnp.sum(self.residuals(rows, *paths) ** 2, axis=1)
        return 0.5 * jnp.mean(jnp.log(squares + self.floor**2))

    def normal_equations(self, table, size, paths):
        """`change -> (gradient, Gauss-Newton curvature)` of the objective, examples in chunks."""
        count, (x, ends, *condition) = len(paths[0]), paths
        most = max(CHUNK // (size * len(self.family) * x[0].size), 1)
        chunk = max(n for n in range(1, min(most, count) + 1) if count % n == 0)
        x, condition = jax.tree.map(lambda v: v.reshape(-1, chunk, *v.shape[1:]), (x, condition))
        ends = jnp.moveaxis(ends.reshape(len(ends), -1, chunk, *ends.shape[2:]), 1, 0)

        def part(change, paths):
            value, push = jax.linearize(lambda change: self.residuals(table(change), *paths), change)
            slope = jax.vmap(push)(jnp.eye(size))
            scale = jax.lax.rsqrt(jnp.sum(value**2, axis=1) + self.floor**2)[:, None]
            slope, value = (slope * scale[None]).reshape(size, -1), (value * scale).reshape(-1)
            return matmul(slope, value), matmul(slope, slope.T)

        def total(change):
            parts = jax.lax.map(lambda paths: part(change, paths), (x, ends, *condition))
            return jax.tree.map(lambda p: jnp.sum(p, axis=0) / (count * len(self.family)), parts)

        return jax.jit(total)

    def descend(self, free, start, paths, check, updates):
        """The plan best on `check` on the way of Levenberg-Marquardt from `start` on `paths`; or `start`.

        Args:
          free: how many numbers are free, and `change of them -> plan`.
        """
        size, table = free
        equations = self.normal_equations(table, size, paths)
        score = jax.jit(lambda change, *paths: self.objective(table(change), *paths))

        def single(change):
            return jnp.asarray(change, jnp.float32)

        change, damping, best = np.zeros(size), 1e-2, None
        value, least = float(score(single(change), *paths)), float(score(single(change), *check))
        gradient, curvature = (np.asarray(v, np.float64) for v in equations(single(change)))
        for _ in range(updates):
            scale = np.diag(curvature) + 1e-8 * np.diag(curvature).max()
            trial = change - np.linalg.solve(curvature + damping * np.diag(scale), gradient)
            found = float(score(single(trial), *paths))
            if not found < value:  # NaN too
                damping *= 4
                if damping > 1e6:
                    break
                continue
            change, value, damping = trial, found, max(damping / 3, 1e-7)
            fresh = float(score(single(change), *check))
            if fresh < least:
                least, best = fresh, change
            gradient, curvature = (np.asarray(v, np.float64) for v in equations(single(change)))
        if best is None:
            return start
        found = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), table(single(best)))
        return found.replace(arrives=start.arrives)


def free_levels(process, solver, levels):
    """How many gaps between levels of a solver's grid are free, and `change of their logarithms -> plan`."""
    gaps = jnp.asarray(np.maximum(np.diff(levels), 1e-3), jnp.float32)  # so that levels keep their order
    first, last = jnp.full(1, process.t_max), jnp.zeros(1)

    def table(change):
        level = levels[0] + jnp.cumsum(gaps * jnp.exp(change))
        return solver.plan(process, jnp.concatenate([first, process.time_of_log_snr(level), last]))

    return len(levels) - 1, table


def free_table(process, start):
    """How many numbers of a deterministic plan are free, and `change of them -> plan`; none is `start`."""
    n = start.nfe
    t, carried, weights = unrolled(start)
    a, _, c = process.coefficients(t)
    high, low = _levels_beyond(process, 2.0)
    levels = jnp.asarray(np.clip(process.log_snr(t), low, high), jnp.float32)
    size = jnp.asarray(np.sqrt(a**2 + c**2), jnp.float32)  # of what `carried` acts on
    t, carried, weights = (jnp.asarray(v, jnp.float32) for v in (t, carried, weights))
    row, column = np.tril_indices(n)

    def table(change):
        level, carry, weight = jnp.split(change, [n - 1, 2 * n - 1])
        level = jnp.clip(levels[1:] + level, low, high)
        times = jnp.concatenate([t[:1], process.time_of_log_snr(level)])
        estimates = weights.at[row, row - column].add(weight)
        still = jnp.zeros((n, 1))
        move = jnp.concatenate([(carried + carry / size)[:, None], still, estimates, still], axis=1)
        return Tableau(
            t=times, to=jnp.append(times[1:], 0.0), keep=jnp.tile(jnp.array([[0.0, 1.0]]), (n, 1)),
            next=move, base=move, arrives=jnp.asarray(start.arrives), steps=start.steps, plain=True,
            based=False, noisy=False,
        )  # fmt: skip

    return 2 * n - 1 + len(row), table


def unrolled(rows):
    """A deterministic plan in its general form: `(t, r (n,), w (n, n))`, w on the newest estimate first."""
    n, unit = rows.nfe, np.eye(rows.nfe + 1)
    point = base = unit[0]  # on x_0, D_0, D_1, ...
    memory, points = [np.zeros(n + 1)] * rows.memory, [unit[0]]
    for k in range(n):
        p, q = (0.0, 1.0) if rows.plain else rows.keep[k]
        memory = [p * point + q * unit[k + 1], *memory[:-1]]
        columns = np.stack([point, base, *memory])
        base = rows.base[k, :-1] @ columns if rows.based else base
        point = rows.next[k, :-1] @ columns
        points.append(point)
    points = np.stack(points)
    before = np.where(points[:-1, 0] == 0, 1.0, points[:-1, 0])
    carried = points[1:, 0] / before
    rest = points[1:] - carried[:, None] * points[:-1]
    weights = np.zeros((n, n))
    for k in range(n):
        weights[k, : k + 1] = rest[k, k + 1 : 0 : -1]
    return np.asarray(rows.t, np.float64), carried, weights
