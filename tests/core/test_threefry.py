"""Random bits: those of jax, drawn once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core import random_bits
from jaxdiff.core.threefry import threefry


@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 0)], ids=str)
@pytest.mark.parametrize("kind", ["threefry2x32", "rbg"])
def test_bits_are_those_of_jax(shape, kind):
    @jax.jit
    def both(seeds):
        keys = jax.vmap(lambda seed: jax.random.key(seed, impl=kind))(seeds)
        words = jax.random.key_data(jax.random.clone(keys))[:, :2]  # keys of "rbg" share bits under vmap
        again = jax.random.wrap_key_data(words, impl="threefry2x32")
        return random_bits(keys, shape), jax.vmap(lambda key: jax.random.bits(key, shape, jnp.uint16))(again)

    bits, expected = both(np.arange(3))
    assert bits.dtype == jnp.uint16
    np.testing.assert_array_equal(bits, expected)


def test_known_answer():
    # Random123, kat_vectors: threefry2x32 of 20 rounds
    ones, pi = np.uint32([0xFFFFFFFF] * 2), np.uint32([0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344])
    for key, counter, expected in (
        (ones * 0, ones * 0, (0x6B200159, 0x99BA4EFE)),
        (ones, ones, (0x1CB996FC, 0xBB002BE7)),
        (pi[2:], pi[:2], (0xC4923A9C, 0x483DF7A0)),
    ):
        with np.errstate(over="ignore"):
            assert tuple(threefry(tuple(key), *counter)) == expected


def test_bits_that_two_readers_share_are_drawn_once():
    def readers(keys, x):
        bits = random_bits(keys, (64,))
        return jnp.where(bits > 9, x, 0), jnp.where(bits > 9, 0, x + 1)

    compiled = jax.jit(readers).lower(jax.random.split(jax.random.key(0), 4), jnp.ones((4, 64))).compile()
    assert compiled.as_text().count(" shift-left(") == 20  # one a round


def test_keys_used_twice_are_found():
    with jax.debug_key_reuse(True):
        keys = jax.random.split(jax.random.key(0), 2)
        random_bits(keys, (3,))
        with pytest.raises(jax.errors.KeyReuseError):
            random_bits(keys, (3,))
