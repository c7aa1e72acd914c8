"""Checkers of what every function of the package promises about batches, devices and keys."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl
from jax.sharding import NamedSharding, PartitionSpec

from jaxdiff.core.keys import is_key


def invariance(fn, *batches, rtol=1e-5, atol=1e-5):
    """Checks that a result per example depends on that example alone.

    `fn(*batches)` is compared, row by row, with itself in reverse order, on the first row and on the
    first half alone, under `jit`, under `vmap` over single rows, and under `jit` and `shard_map` with
    the batch cut over all devices (as many rows as they divide).

    Args:
      fn: takes arrays with a leading batch axis (keys, one per example, come first as a rule), and
        returns a pytree of arrays with that axis.
      *batches: pytrees of arrays, `(batch, ...)`, of at least two rows.
      rtol: relative to the largest entry of each array of the result.
      atol: absolute.

    Returns:
      A dict of the largest deviation found in each of the comparisons.

    Raises:
      AssertionError: naming every comparison that deviates by more than the tolerance.
      ValueError: for fewer than two rows.
    """
    rows = {leaf.shape[0] for leaf in jax.tree.leaves(batches)}
    if len(rows) != 1 or min(rows) < 2:
        raise ValueError(f"invariance: expected one batch size of at least 2, got {sorted(rows)}")
    batch = rows.pop()
    reference = fn(*_take(batches, np.arange(batch)))
    found, wrong = {}, []
    for name, rows, variant in _variants(fn, batch):
        result = variant(*_take(batches, rows))
        deviation, allowed = _deviation(result, _take(reference, rows), rtol, atol)
        found[name] = deviation
        if not deviation <= allowed:
            wrong.append(f"{name}: {deviation:.3g} > {allowed:.3g}")
    if wrong:
        raise AssertionError(f"invariance: rows depend on more than their own input: {wrong}")
    return found


def _variants(fn, batch):
    """`(name, rows, function)` of every comparison."""
    devices = jax.devices()
    mesh = jax.sharding.Mesh(np.array(devices), ("batch",))
    cut = PartitionSpec("batch")
    shards = np.arange(batch - batch % len(devices))
    yield "reversed", np.arange(batch)[::-1], fn
    yield "one row", np.arange(1), fn
    yield "half", np.arange(batch // 2), fn
    yield "jit", np.arange(batch), jax.jit(fn)
    yield "vmap", np.arange(batch), _by_vmap(fn)
    if len(devices) > 1 and shards.size:
        yield "sharded jit", shards, jax.jit(fn, in_shardings=NamedSharding(mesh, cut))
        mapped = jax.shard_map(fn, mesh=mesh, in_specs=cut, out_specs=cut, check_vma=False)
        yield "shard_map", shards, jax.jit(mapped)


def _by_vmap(fn):
    def one(*rows):
        return jax.tree.map(lambda v: v[0], fn(*jax.tree.map(lambda v: v[None], rows)))

    return jax.vmap(one)


def _deviation(result, reference, rtol, atol):
    """The largest difference between two trees, and what is allowed where it was found."""
    worst = (0.0, atol)
    for a, b in zip(jax.tree.leaves(result), jax.tree.leaves(reference), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        if a.shape != b.shape:
            return np.inf, 0.0
        deviation, allowed = np.max(np.abs(a - b)), atol + rtol * np.max(np.abs(b))
        if np.isnan(deviation):
            return np.nan, 0.0
        if deviation - allowed > worst[0] - worst[1]:
            worst = (float(deviation), float(allowed))
    return worst


def _take(tree, rows):
    """These rows, taken by numpy: jax would compile a program for every shape."""

    def take(v):
        if not is_key(v):
            return jnp.asarray(np.asarray(v)[rows])
        return jax.random.wrap_key_data(np.asarray(jax.random.key_data(v))[rows], impl=jax.random.key_impl(v))

    return jax.tree.map(take, _clone(tree))


def _clone(tree):
    """Fresh copies of keys, for they are meant to be used again here."""
    return jax.tree.map(lambda v: jax.random.clone(v) if is_key(v) else v, tree)


def key_reuse(fn, *args):
    """Runs `fn(*args)` and raises if any key is consumed twice.

    Every typed key in `args` is exchanged for one of a generator that reports, while the program
    runs, each key that bits are drawn from or that is split. So it sees through `jit`, `scan`, `vmap`
    and `shard_map`, and compares values: equal keys in a batch, one `fold_in` done twice, and
    `split(key, n)[i]` beside `fold_in(key, i)` (the same key in threefry) count as reuse, of which
    `jax.debug_key_reuse`, which follows variables, knows nothing. Keys made inside `fn` from a seed,
    or closed over, are not followed.

    Returns:
      What `fn` returns; keys in it are of the reporting generator.

    Raises:
      jax.errors.KeyReuseError: with the number of keys used more than once, and how often.
      ValueError: where `args` hold no typed key to follow.
    """
    seen = collections.Counter()

    def record(data):
        for key in np.asarray(data).reshape(-1, data.shape[-1]):
            seen[tuple(key.tolist())] += 1

    generators = {}

    def follow(leaf):
        if not is_key(leaf):
            return leaf
        name = str(jax.random.key_impl(leaf))
        generators.setdefault(name, _recording(name, record))
        return jax.random.wrap_key_data(jax.random.key_data(leaf), impl=generators[name])

    args = jax.tree.map(follow, args)
    if not generators:
        raise ValueError("key_reuse: expected args to hold a key of jax.random.key, got none")
    result = jax.block_until_ready(fn(*args))
    jax.effects_barrier()
    reused = [count for count in seen.values() if count > 1]
    if reused:
        raise jax.errors.KeyReuseError(
            f"key_reuse: expected every key to be used once, got {len(reused)} of {len(seen)} keys "
            f"used up to {max(reused)} times; split them, or fold in a number of their own"
        )
    return result


def _recording(name, record):
    """The generator `name`, reporting the keys it consumes."""

    def wrap(data):
        return jax.random.wrap_key_data(data, impl=name)

    def random_bits(data, bit_width, shape):
        jax.debug.callback(record, data)
        return jax.random.bits(wrap(data), shape, jnp.dtype(f"uint{bit_width}"))

    def split(data, shape):
        jax.debug.callback(record, data)
        return jax.random.key_data(jax.random.split(wrap(data), shape))

    def fold_in(data, number):
        return jax.random.key_data(jax.random.fold_in(wrap(data), number))

    def seed(number):
        return jax.random.key_data(jax.random.key(number, impl=name))

    shape = jax.eval_shape(lambda: jax.random.key_data(jax.random.key(0, impl=name))).shape
    return define_prng_impl(
        key_shape=shape, seed=seed, split=split, random_bits=random_bits, fold_in=fold_in, tag="rec"
    )
