"""Randomness belongs to the sample: one key per example, so results do not depend on the batch."""

import jax
import jax.numpy as jnp


def is_key(value):
    """Whether `value` is an array of typed PRNG keys (`jax.random.key`)."""
    return isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


def batch_keys(key, batch, where="batch_keys"):
    """One key per example.

    Args:
      key: one key, of which example `i` gets `fold_in(key, i)`, or `(batch,)` keys, returned as
        they are. Raw `uint32` keys of `jax.random.PRNGKey` are accepted; see `typed` for "rbg".
      batch: number of examples; None for as many as there are keys.
      where: the caller's name, for the message.

    Returns:
      `(batch,)` typed keys.

    Raises:
      ValueError: if `key` holds neither one key nor `batch` keys.
    """
    key = typed(key, where)
    if batch is None and key.ndim != 1:
        raise ValueError(
            f"{where}: expected (batch,) keys, one per sample, as of jax.random.split(key, n); got shape "
            f"{key.shape}"
        )
    if key.shape == ():
        return fold_in(key, jnp.arange(batch))
    if batch is not None and key.shape != (batch,):
        raise ValueError(f"{where}: expected one key or ({batch},) keys, got shape {key.shape}")
    return key


def typed(key, where):
    """Typed keys out of typed or raw ones; ValueError for anything else.

    Keys of "rbg" become those of Threefry by their first two words: under `vmap`, theirs draw from the first
    key of a batch for all of it.
    """
    if is_key(key):
        if "rbg" not in str(jax.random.key_impl(key)):
            return key
        key = jax.random.key_data(key)
    if not (isinstance(key, jax.Array) and key.dtype == jnp.uint32 and key.shape[-1:] in ((2,), (4,))):
        got = getattr(key, "dtype", type(key).__name__)
        raise ValueError(f"{where}: expected a key of jax.random.key(seed), got {got}")
    return jax.random.wrap_key_data(key[..., :2], impl="threefry2x32")


def fold_in(keys, data):
    """`jax.random.fold_in` over an array of keys, an array of numbers, or both together; `typed` keys."""
    keys = typed(keys, "fold_in")
    if keys.ndim == 0 and jnp.ndim(data) == 0:
        return jax.random.fold_in(keys, data)
    axes = (0 if keys.ndim else None, 0 if jnp.ndim(data) else None)
    return jax.vmap(jax.random.fold_in, in_axes=axes)(keys, data)


def normal_like(keys, x):
    """Standard normal noise in the structure of `x`; leaf arrays are `(batch, ...)`; see `batch_keys`."""
    leaves, structure = jax.tree.flatten(x)
    if leaves:
        keys = batch_keys(keys, leaves[0].shape[0], "noise")
    own = [keys] if len(leaves) == 1 else [fold_in(keys, i) for i in range(len(leaves))]
    return jax.tree.unflatten(structure, [_normal(k, leaf) for k, leaf in zip(own, leaves, strict=True)])


def _normal(keys, leaf):
    dtype = jnp.promote_types(leaf.dtype, jnp.float32)
    return jax.vmap(lambda key: jax.random.normal(key, leaf.shape[1:], dtype))(keys)
