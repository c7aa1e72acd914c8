"""Data as the noise of a stochastic sampler, replayed under another condition; and moves in noise space."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.core import (
    batch_keys,
    check_choice,
    check_one_ended,
    concrete,
    dataclass,
    floating,
    fold_in,
    safe_divide,
)
from jaxdiff.sampling import sample
from jaxdiff.solvers import tableau


class NoiseMaps(NamedTuple):
    """A start and the noise of every row.

    For `jd.sample(maps.noise, denoise, process, solver, grid, x=maps.start)`.
    """

    start: jax.Array
    noise: jax.Array


def encode(keys, denoise, process, solver, grid, x0, path="independent"):
    """The noise with which a stochastic solver makes `x0`, exactly.

    A noisy path to the data is drawn, and each row's noise is what the solver needs to follow it:
    `z_k = (x_(k+1) - mean_k(x_k)) / std_k`. Replayed with the same denoiser it gives `x0` up to rounding;
    with another condition, an edit; with another model, a translation (CycleDiffusion).

    Args:
      keys: one key or `(batch,)` keys, for the path.
      denoise: `(x, t) -> clean estimate`.
      process: forward process without a second endpoint.
      solver: a stochastic solver of one evaluation a step that remembers nothing, with noise in every
        step: `ancestral()`, `dpmpp_multistep(1, tau=1.0)`, `euler_maruyama()`.
      grid: `(steps + 1,)` decreasing times above 0; `x0` is taken as the point at grid[-1]. Start it below
        t_max to keep more of the data.
      x0: `(batch, ...)` data.
      path: "independent": fresh noise for every point, which leaves more of the data in the maps
        (Huberman-Spiegelglas et al. (2024), arXiv:2304.06140); "chain": the forward chain (the DPM-Encoder
        of Wu and De la Torre (2023), arXiv:2210.05559).

    Returns:
      `NoiseMaps`, noise `(steps, batch, ...)`.
    """
    check_choice("encode", "path", path, ("independent", "chain"))
    check_one_ended("encode", process)
    rows = tableau.linear_plan("encode", solver, process, grid)
    end, spread = concrete(rows.to), concrete(rows.next[:, -1])
    quiet = not rows.noisy or (spread is not None and not spread.all())
    if rows.based or rows.memory > 1 or quiet or (end is not None and end[-1] <= 0):
        raise ValueError(
            "encode: expected a stochastic solver of one evaluation a step without memory, with noise in "
            f"every step, on a grid that ends above exact data; got {getattr(solver, 'name', 'a plan')}"
            + ("" if end is None else f" to t = {end[-1]:g}")
        )
    x0 = floating("encode", x0)
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, x0.dtype), rows)
    keys = batch_keys(keys, x0.shape[0], "encode")
    points = (
        _independent(keys, process, rows, x0) if path == "independent" else _chain(keys, process, rows, x0)
    )

    def needed(pair):
        row, x, after = pair
        clean = denoise(x, row.t).astype(x.dtype)
        e = clean if row.plain else row.keep[0] * x + row.keep[1] * clean
        mean = row.next[0] * x + row.next[2] * e
        return (after - mean) / row.next[-1]

    after = jnp.concatenate([points[1:], x0[None]])
    return NoiseMaps(points[0], jax.lax.map(needed, (rows, points, after)))


def _independent(keys, process, rows, x0):
    def point(row):
        number, t = row
        return process.perturb(x0, process.noise(fold_in(keys, number), x0), t)

    return jax.lax.map(point, (jnp.arange(rows.nfe), rows.t))


def _chain(keys, process, rows, x0):
    def step(x, row):
        number, t, s = row
        mean, std = process.posterior(x, x0, t, s)
        x = mean + std * process.noise(fold_in(keys, number), x0)
        return x, x

    start = process.perturb(x0, process.noise(fold_in(keys, 0), x0), rows.t[0])
    steps = (jnp.arange(1, rows.nfe), rows.t[:-1], rows.t[1:])
    return jnp.concatenate([start[None], jax.lax.scan(step, start, steps)[1]])


def sdedit(keys, denoise, process, solver, grid, x0, **settings):
    """Noise data to the start of a grid and sample from there: what the noise hides is made anew.

    Meng et al. (2022), arXiv:2108.01073.

    Args:
      keys: `(batch,)` keys.
      grid: decreasing times from the level that hides what is to change, below `t_max`.
      x0: `(batch, ...)` data, or a sketch of it.
      settings: further arguments of `jd.sample`.
    """
    x0 = floating("sdedit", x0)
    keys = batch_keys(keys, x0.shape[0], "sdedit")
    known, noise = concrete(grid), process.noise(fold_in(keys, 0), x0)
    x = process.perturb(x0, noise, grid[0] if known is None else known[0].item(), settings.get("y"))
    return sample(fold_in(keys, 1), denoise, process, solver, grid, x=x, **settings)


def slerp(one, other, weight):
    """Spherical interpolation of two noises, example by example: as long as noise is, all the way.

    Args:
      one, other: `(batch, ...)` noise.
      weight: in [0, 1], a number.
    """
    dtype, axes = jnp.result_type(one, other), tuple(range(1, one.ndim))
    one, other = (jnp.asarray(x, jnp.promote_types(dtype, jnp.float32)) for x in (one, other))
    dot = jnp.sum(one * other, axes, keepdims=True)
    norms = jnp.sqrt(jnp.sum(one**2, axes, keepdims=True) * jnp.sum(other**2, axes, keepdims=True))
    angle = jnp.arccos(jnp.clip(safe_divide(dot, norms), -1 + 1e-6, 1 - 1e-6))
    between = jnp.sin((1 - weight) * angle) * one + jnp.sin(weight * angle) * other
    return (between / jnp.sin(angle)).astype(dtype)


def smoothness(path):
    """The interpolation standard deviation: how unevenly samples change along paths in noise space.

    The standard deviation of the changes' sizes over their mean; 0 for an even path. Guo et al. (2024),
    arXiv:2312.04410.

    Args:
      path: `(points, batch, ...)` samples at equal steps along each path.

    Returns:
      `(batch,)`.
    """
    change = jnp.sqrt(jnp.mean(jnp.square(path[1:] - path[:-1]), axis=tuple(range(2, path.ndim))))
    return jnp.std(change, axis=0) / jnp.maximum(jnp.mean(change, axis=0), 1e-12)


@dataclass
class Aligned:
    """A solver whose points take on the statistics of a chain; made by `aligned`."""

    solver: object
    chain: object
    until: float

    def plan(self, process, grid=None):
        """The solver's plan."""
        check_one_ended("aligned", process)  # solvers walk x - b y, which is not what the chain holds
        rows = self.solver.plan(process, grid)
        if self.chain.shape[0] != rows.steps + 1:
            raise ValueError(
                f"aligned: expected a chain of {rows.steps + 1} points, one per time of the grid, got "
                f"{self.chain.shape[0]}"
            )
        return rows

    def init(self, x, rows):
        """The solver's start."""
        return self.solver.init(x, rows)

    def step(self, denoise, state, row, draw):
        """One row, its arrival moved to the mean and deviation of the chain there."""
        state = self.solver.step(denoise, state, row, draw)
        place, axes = self.chain[row.arrives], tuple(range(1, state.x.ndim - 1))

        def statistics(x):
            return jnp.mean(x, axes, keepdims=True), jnp.std(x, axes, keepdims=True)

        (mean, std), (wanted, spread) = statistics(state.x), statistics(place)
        x = (state.x - mean) / jnp.maximum(std, 1e-6) * spread + wanted
        return tableau.moved(state, jnp.where((row.arrives > 0) & (row.to >= self.until), x, state.x))


def shuffled(keys, noise):
    """Noise with its places in another order, channels together: a start of its own for every variation.

    Of an exemplar's inversion it keeps mean, deviation and all that is not its layout. Zhang et al. (2023),
    arXiv:2305.18729, section 3.3.

    Args:
      keys: one key or `(batch,)` keys.
      noise: `(batch, ..., channels)`.
    """
    flat = noise.reshape(noise.shape[0], -1, noise.shape[-1])
    own = batch_keys(keys, noise.shape[0], "shuffled")
    return jax.vmap(jax.random.permutation)(own, flat).reshape(noise.shape)


def chain_at(chain, grid):
    """`at(t)`: the point of a chain at a time, one for all examples; between times of the grid, on a line.

    Args:
      chain: `(steps + 1, batch, ...)`, as of `aligned`.
      grid: its decreasing times.
    """
    times, chain = jnp.asarray(grid)[::-1], jnp.asarray(chain)[::-1]

    def at(t):
        place = jnp.interp(jnp.ravel(t)[0], times, jnp.arange(len(times), dtype=chain.dtype))
        low = jnp.clip(jnp.floor(place).astype(int), 0, len(times) - 2)
        return chain[low] + (place - low) * (chain[low + 1] - chain[low])

    return at


def aligned(solver, chain, until=0.5):
    """A solver whose points take on, channel by channel, the mean and deviation of an exemplar's inversion.

    Variations of a real image keep its look. Zhang et al. (2023), arXiv:2305.18729 (RIVAL), who start from
    the exemplar's inversion `shuffled`, and whose attention across images is `jd.models.attending`, with
    `chain_at` for the exemplar at a time. Their code moves the noise estimate to the exemplar's statistics,
    of which the points' follow; here it is the points, as for any solver.

    Args:
      solver: a linear solver.
      chain: `(steps + 1, batch, ..., channels)`: the exemplar inverted on the same grid, in its order: the
        path of `jd.sample(..., grid[::-1], save="all")`, reversed.
      until: time down to which points are aligned.
    """
    return Aligned(solver, jnp.asarray(chain), until)
