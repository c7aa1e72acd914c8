"""Random bits on a CPU, the same as jax draws, at a quarter of the time."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core.keys import typed

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)


def threefry(key, first, second):
    """The block cipher Threefry-2x32 with twenty rounds (Salmon et al. (2011), SC '11, section 3.3).

    Args:
      key: pair of uint32 arrays.
      first, second: uint32 arrays, the counter.

    Returns:
      A pair of uint32 arrays, all broadcast together.
    """
    key = (*key, key[0] ^ key[1] ^ PARITY)
    first, second = first + key[0], second + key[1]
    for index in range(5):
        for bits in ROTATIONS[index % 2]:
            first = first + second
            second = first ^ (second << np.uint32(bits) | second >> np.uint32(32 - bits))
        first = first + key[(index + 1) % 3]
        second = second + key[(index + 2) % 3] + np.uint32(index + 1)
    return first, second


def random_bits(keys, shape):
    """Sixteen random bits an entry, each example by its own key: `jax.random.bits(key, shape, "uint16")`.

    On the CPU jax runs the cipher's rounds as a loop over whole arrays. Here all of them are one pass,
    over halves in a loop: without it XLA would draw the bits again in everything that reads them. The
    bits are the same, unless `jax_threefry_partitionable` is switched off.

    Args:
      keys: `(batch,)` keys.
      shape: of one example.

    Returns:
      `(batch, *shape)` uint16.
    """
    keys = typed(keys, "random_bits")

    def by_jax(shape):
        return jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint16))(keys)

    if jax.default_backend() != "cpu" or str(jax.random.key_impl(keys)) != "threefry2x32":
        return by_jax(shape)
    by_jax((0,))  # the keys are used, for jax's search for keys used twice
    size = math.prod(shape)
    half = -(-size // 2)
    data = jax.random.key_data(keys)

    def draw(index, bits):
        count = index * np.uint32(half) + jnp.arange(half, dtype=jnp.uint32)
        first, second = threefry((data[:, :1], data[:, 1:]), jnp.zeros_like(count)[None], count[None])
        return jax.lax.dynamic_update_slice_in_dim(
            bits, (first ^ second).astype(jnp.uint16), index * half, axis=1
        )

    blank = jnp.broadcast_to(data[:, :1].astype(jnp.uint16), (len(keys), 2 * half))  # over the keys' devices
    return jax.lax.fori_loop(np.uint32(0), np.uint32(2), draw, blank)[:, :size].reshape(len(keys), *shape)
