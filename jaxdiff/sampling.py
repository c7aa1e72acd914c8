"""`sample`: the one entry point, for every process, solver, grid and transform."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_made, concrete, fold_in, host, match_dims
from jaxdiff.core.keys import batch_keys, is_key, typed
from jaxdiff.solvers.gradients import check_gradient, walk
from jaxdiff.solvers.heavy_tails import stepper


def sample(
    keys, denoise, process, solver, grid=None, *, shape=None, x=None, y=None, save="final",
    gradient="full", progress=False,
):  # fmt: skip
    """Samples by walking a solver down a time grid, in one `lax.scan`.

    A sample depends on its own key alone: the same key gives the same sample at any batch size and on
    any number of devices. Pure: works under `jit`, `vmap`, `grad` and `shard_map` (solvers that adapt their
    steps or count their evaluations with `check_vma=False`).

    Args:
      keys: `(batch,)` keys, one per sample. With `x`, also one key, of which sample i gets
        `fold_in(key, i)`; or recorded noise to replay, `(nfe, *x.shape)`; or None where the solver is
        deterministic.
      denoise: `(x, t) -> clean estimate`; `jd.denoiser` makes it from a network. For tokens, which stay
        integers, logits of the clean ones, `(*x.shape, size)`; see `jd.solvers.discrete`.
      process: forward process.
      solver: a solver of `jd.solvers`, or a plan (`solver.plan(process, grid)`).
      grid: `(steps + 1,)` decreasing times, of `jd.grids` or any array; None with a plan.
      shape: shape of one sample; starts from the prior at `process.t_max`.
      x: `(batch, ...)` start at `grid[0]`, instead of `shape`; a pytree is walked leaf by leaf.
      y: the second endpoint, `(batch, ...)`, for processes that have one. Solvers walk `z = x - b(t) y`,
        which is a process with the coefficients `(a, 0, c)`; only here is `y` taken off and put back.
      save: "final" returns `(batch, ...)`; "all" returns the whole path, `(steps + 1, batch, ...)`, start
        included; an integer k returns every k-th point and the last; "state" returns `(samples, state)`
        with what the solver itself carries at the end, such as the `evaluations` of adaptive ones.
      gradient: what reverse-mode differentiation remembers of n evaluations. "full": all of them.
        "checkpointed": the square root, for twice the forward work (Chen et al. (2016),
        arXiv:1604.06174). "reversible": one, for solvers whose steps can be undone exactly. An integer k:
        the last k evaluations; what comes before counts as constant (Clark et al. (2024),
        arXiv:2309.17400, DRaFT-K).
      progress: show a bar, also from inside `jit`.

    Returns:
      The samples, or the saved path, in the dtype of `x` (float32 at least).

    Raises:
      ValueError: for a grid, keys, shape, `y`, `save` or `gradient` that do not fit together, or integers as
        the start of a continuous process; before compilation.
    """
    _check_parts(denoise, process, solver)
    rows = solver.plan(process, grid)
    step = stepper(solver, process, rows, keys)
    check_gradient(gradient, solver, rows)
    x = _start(keys, process, rows, shape, x, y)
    dtype = jnp.result_type(*jax.tree.leaves(x), jnp.float32)
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, _numeric(leaf, dtype)), rows)
    draw = _noise_source(keys, process, x, rows)
    tick = _progress_bar(rows.nfe) if progress else None
    path, slot = _path(save, x, rows)
    add = _shift(process, y)

    def shifted(z, t):
        return denoise(add(z, t), t)

    def body(carry, row):
        (state, path), (row, number) = carry, row
        state = step(shifted, state, row, draw(row, number))
        if path is not None:
            point, place = add(state.x, row.to), slot(row.arrives)
            path = jax.tree.map(lambda p, x: p.at[place].set(x, mode="drop"), path, point)
        if tick is not None:
            jax.debug.callback(tick, number)
        return state, path

    def back(state, row):
        row, number = row
        return rows.unstep(shifted, state, row, draw(row, number))

    carry = (solver.init(add(x, rows.t[0], -1), rows), path)
    state, path = walk(body, back, carry, (rows, jnp.arange(rows.nfe)), gradient)
    if path is not None:
        return path
    x = add(state.x, rows.to[-1])
    return (x, state) if save == "state" else x


def _check_parts(denoise, process, solver):
    check_made("sample", "process", process, "endpoint", "jd.processes.VP()")
    if not callable(denoise) and (denoise is not None or getattr(solver, "denoises", True)):
        raise ValueError(f"sample: expected denoise to be a function of (x, t), got {denoise!r}")
    if not hasattr(solver, "plan"):
        raise ValueError(
            f"sample: expected a solver of jd.solvers, such as jd.solvers.heun(), or a plan, got {solver!r}"
        )


def _shift(process, y):
    """`(x, t, sign) -> x + sign b(t) y`, or `x` itself where there is no `y`."""
    if y is None:
        return lambda x, t, sign=1: x

    def add(x, t, sign=1):
        b = sign * process.coefficients(t)[1]  # of adaptive solvers a number per sample

        def leaf(x, y):
            return x + match_dims(jnp.asarray(b, x.dtype), x) * jnp.asarray(y, x.dtype)

        return jax.tree.map(leaf, x, y)

    return add


def _wide(leaf):
    if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
        got = jnp.result_type(leaf)
        raise ValueError(f"sample: expected a floating x, got {got}; scale it to floats first")
    return jnp.asarray(leaf, jnp.result_type(leaf, jnp.float32))


def _numeric(leaf, dtype):
    return dtype if jnp.issubdtype(jnp.result_type(leaf), jnp.floating) else jnp.int32


def _start(keys, process, rows, shape, x, y):
    """The start of the walk, in float32 or wider; tokens stay integers."""
    process.endpoint(y)
    if (shape is None) == (x is None):
        raise ValueError("sample: expected either shape= (of one sample) or x= (the start), not both")
    if x is not None:
        _check_endpoint(y, [np.shape(leaf) for leaf in jax.tree.leaves(x)])
        return _checked(process, x)
    if isinstance(shape, (int, np.integer)):
        raise ValueError(f"sample: expected shape to be a tuple, the shape of one sample, got {shape}")
    parts = getattr(rows, "parts", None) or {None: rows}
    for name, part in parts.items():
        t_max = concrete(process.t_max if name is None else process.t_max[name])
        first = concrete(part.t)
        if first is not None and t_max is not None and not np.isclose(first[0], t_max, rtol=1e-5):
            of = "" if name is None else f" of {name!r}"
            raise ValueError(
                f"sample: the grid{of} starts at {first[0]:g} and the prior is at t_max = {t_max:g}; pass "
                "the start at that time as x="
            )
    keys = getattr(keys, "keys", keys)  # of a Brownian path
    keys = keys if keys is None else typed(keys, "sample")
    if keys is None or keys.ndim != 1:
        got = None if keys is None else f"shape {keys.shape}"
        raise ValueError(
            f"sample: expected (batch,) keys, one per sample, as of jax.random.split(key, n); got {got}"
        )

    if y is not None:
        _check_endpoint(y, [(len(keys), *shape)])

    if hasattr(process, "log_snr"):
        process = host(process)

    def prior(key, y):
        return process.prior(
            jax.random.fold_in(key, 0), shape if isinstance(shape, dict) else tuple(shape), y
        )

    return jax.vmap(prior, in_axes=(0, None if y is None else 0))(keys, y)


def _checked(process, x):
    parts = getattr(process, "parts", None)
    if parts and isinstance(x, dict) and x.keys() == parts.keys():
        return {name: _checked(parts[name], leaf) for name, leaf in x.items()}
    return jax.tree.map(getattr(process, "check_start", _wide), x)


def _check_endpoint(y, shapes):
    """Refuses a `y` of other shapes than those of `x`: it would broadcast, or fail within the walk."""
    got = shapes if y is None else [np.shape(leaf) for leaf in jax.tree.leaves(y)]
    if got != shapes:
        raise ValueError(f"sample: expected y of x's shape {shapes[0]}, got {got[0]}; pass one per sample")


class Draw(NamedTuple):
    """The randomness of one row: `draw()` is noise in the structure of `x`, `draw.keys` `(batch,)` keys.

    `draw.of(keys)` is noise of the process by any `(batch,)` keys, in the structure of `x` or of a second
    argument; `draw.more(number)` by `draw.own(number)`, keys of its own.
    """

    make: Callable
    keys: object = None
    of: Callable | None = None

    def __call__(self):
        return self.make()

    def own(self, number=None):
        """`(batch,)` keys: those of the row, or of one of any number of further draws.

        Raises:
          ValueError: without keys: of a Brownian path, or where noise is replayed.
        """
        if self.keys is None:
            raise ValueError("sample: expected (batch,) keys; this solver draws several times in a row")
        return self.keys if number is None else fold_in(self.keys, number)

    def more(self, number):
        """One of any number of further draws of noise."""
        return self.of(self.own(number))


def _noise_source(keys, process, x, rows):
    """`(row, row number) -> Draw` from keys, a Brownian path or recorded noise."""
    leaves = jax.tree.leaves(x)
    batch = leaves[0].shape[0]
    if hasattr(keys, "noise"):
        keys.check(process, rows)
        keys = keys.replace(keys=batch_keys(keys.keys, batch, "sample"))
        return lambda row, number: Draw(lambda: keys.noise(row.t, row.to, x))
    recorded = None if keys is None or _looks_like_keys(keys) else jax.tree.leaves(keys)
    if recorded is not None:
        expected = [(rows.nfe, *leaf.shape) for leaf in leaves]
        if [np.shape(leaf) for leaf in recorded] != expected:
            raise ValueError(
                f"sample: expected keys, or noise to replay of shape {expected[0]} (nfe, batch, ...), "
                f"got shape {np.shape(recorded[0])}"
            )
        return lambda row, number: Draw(lambda: jax.tree.map(lambda leaf: jnp.asarray(leaf)[number], keys))
    if keys is None:
        if rows.noisy:
            raise ValueError("sample: this solver draws noise; expected (batch,) keys, got None")
        return lambda row, number: Draw(lambda: None)
    keys = batch_keys(keys, batch, "sample")

    def of(keys, like=x):
        return process.noise(keys, like)

    def draw(row, number):
        own = fold_in(keys, number + 1)
        return Draw(lambda: of(own), own, of)

    return draw


def _looks_like_keys(keys):
    return is_key(keys) or jnp.result_type(jax.tree.leaves(keys)[0]) == jnp.uint32


def _path(save, x, rows):
    """Storage for the saved points, the start in place, and the place of a grid point in it."""
    if save in ("final", "state"):
        return None, None
    every = 1 if save == "all" else save
    if isinstance(every, bool) or not isinstance(every, (int, np.integer)) or every < 1:
        raise ValueError(f"sample: expected save to be 'final', 'all', 'state' or an integer k, got {save!r}")
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
