"""`sample`: the one entry point, for every process, solver, grid and transform."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import concrete, fold_in, normal_like
from jaxdiff.core.keys import batch_keys, is_key


def sample(
    keys, denoise, process, solver, grid=None, *, shape=None, x=None, y=None, save="final", progress=False
):
    """Samples by walking a solver down a time grid, in one `lax.scan`.

    A sample depends on its own key alone: the same key gives the same sample at any batch size and on
    any number of devices. Pure: works under `jit`, `vmap`, `grad` and `shard_map`.

    Args:
      keys: `(batch,)` keys, one per sample. With `x`, also one key, of which sample i gets
        `fold_in(key, i)`; or recorded noise to replay, `(nfe, *x.shape)`; or None where the solver is
        deterministic.
      denoise: `(x, t) -> clean estimate`; `jd.denoiser` makes it from a network.
      process: forward process.
      solver: a solver of `jd.solvers`, or a plan (`solver.plan(process, grid)`).
      grid: `(steps + 1,)` decreasing times, of `jd.grids` or any array; None with a plan.
      shape: shape of one sample; starts from the prior at `process.t_max`.
      x: `(batch, ...)` start at `grid[0]`, instead of `shape`; a pytree is walked leaf by leaf.
      y: the second endpoint, for processes that have one.
      save: "final" returns `(batch, ...)`; "all" returns the whole path, `(steps + 1, batch, ...)`, start
        included; an integer k returns every k-th point and the last.
      progress: show a bar, also from inside `jit`.

    Returns:
      The samples, or the saved path, in the dtype of `x` (float32 at least).

    Raises:
      ValueError: for a grid, keys, shape or `save` that do not fit together; before compilation.
    """
    rows = solver.plan(process, grid)
    x = _start(keys, process, rows, shape, x, y)
    dtype = jax.tree.leaves(x)[0].dtype
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, _numeric(leaf, dtype)), rows)
    draw = _noise_source(keys, x, rows)
    tick = _progress_bar(rows.nfe) if progress else None
    path, slot = _path(save, x, rows)

    def body(carry, row):
        state, path = carry
        row, number = row
        state = solver.step(denoise, state, row, lambda: draw(number))
        if path is not None:
            path = jax.tree.map(
                lambda p, x: p.at[slot(row.arrives)].set(x, mode="drop"), path, state.x
            )
        if tick is not None:
            jax.debug.callback(tick, number)
        return (state, path), None

    carry = (solver.init(x, rows), path)
    (state, path), _ = jax.lax.scan(body, carry, (rows, jnp.arange(rows.nfe)))
    return state.x if path is None else path


def _numeric(leaf, dtype):
    return dtype if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else jnp.int32


def _start(keys, process, rows, shape, x, y):
    """The start of the walk, in float32 or wider."""
    process.endpoint(y)
    if (shape is None) == (x is None):
        raise ValueError("sample: expected either shape= (of one sample) or x= (the start), not both")
    if x is not None:
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(leaf, jnp.float32)), x)
    if isinstance(shape, (int, np.integer)):
        raise ValueError(f"sample: expected shape to be a tuple, the shape of one sample, got {shape}")
    first, t_max = concrete(rows.t), concrete(process.t_max)
    if first is not None and t_max is not None and not np.isclose(first[0], t_max, rtol=1e-5):
        raise ValueError(
            f"sample: the grid starts at {first[0]:g} and the prior is at t_max = {t_max:g}; pass the "
            "start at that time as x="
        )
    if not is_key(keys) or keys.ndim != 1:
        got = f"shape {keys.shape}" if is_key(keys) else getattr(keys, "dtype", type(keys).__name__)
        raise ValueError(
            f"sample: expected (batch,) keys, one per sample, as of jax.random.split(key, n); got {got}"
        )
    return jax.vmap(lambda key: process.prior(jax.random.fold_in(key, 0), tuple(shape), y))(keys)


def _noise_source(keys, x, rows):
    """`draw(row number) -> noise` from keys or from recorded noise."""
    leaves = jax.tree.leaves(x)
    batch = leaves[0].shape[0]
    recorded = None if keys is None or _looks_like_keys(keys) else jax.tree.leaves(keys)
    if recorded is not None:
        expected = [(rows.nfe, *leaf.shape) for leaf in leaves]
        if [np.shape(leaf) for leaf in recorded] != expected:
            raise ValueError(
                f"sample: expected keys, or noise to replay of shape {expected[0]} (nfe, batch, ...), "
                f"got shape {np.shape(recorded[0])}"
            )
        return lambda number: jax.tree.map(lambda leaf: jnp.asarray(leaf)[number], keys)
    if keys is None:
        if rows.noisy:
            raise ValueError("sample: this solver draws noise; expected (batch,) keys, got None")
        return lambda number: None
    keys = batch_keys(keys, batch, "sample")
    return lambda number: normal_like(fold_in(keys, number + 1), x)


def _looks_like_keys(keys):
    return is_key(keys) or jnp.result_type(jax.tree.leaves(keys)[0]) == jnp.uint32


def _path(save, x, rows):
    """Storage for the saved points, the start in place, and the place of a grid point in it."""
    if save == "final":
        return None, None
    every = 1 if save == "all" else save
    if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
        raise ValueError(f"sample: expected save to be 'final', 'all' or an integer k, got {save!r}")
    last = -(-rows.steps // every)
    path = jax.tree.map(lambda leaf: jnp.zeros((last + 1, *leaf.shape), leaf.dtype).at[0].set(leaf), x)

    def slot(point):
        kept = (point > 0) & ((point % every == 0) | (point == rows.steps))
        return jnp.where(kept, -(-point // every), last + 1)  # out of range: dropped

    return path, slot


def _progress_bar(total):
    """A callback that draws a bar on the host."""
    from tqdm import tqdm

    bars = []

    def tick(number):
        if number == 0 or not bars:
            bars.append(tqdm(total=total, desc="sample", unit="evaluation"))
        bars[-1].update(1)
        if bars[-1].n >= total:
            bars.pop().close()

    return tick
