"""The checkers catch what they are for, and pass what is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import testing

KEYS = jax.random.split(jax.random.key(0), 16)
ROWS = np.random.default_rng(0).standard_normal((16, 3), np.float32)


def random_rows(keys):
    return jax.vmap(lambda k: jax.random.uniform(k, (3,)))(keys)


def test_invariance_passes_what_depends_on_its_own_row():
    ones = np.ones((16, 1), np.float32)
    found = testing.invariance(lambda k, x: {"a": random_rows(k) * x}, KEYS, ones)
    names = {"reversed", "one row", "half", "jit", "vmap", "sharded jit", "shard_map"}
    assert set(found) == names and max(found.values()) < 1e-6


@pytest.mark.parametrize(
    "fn, caught",
    [
        (lambda x: x - x.mean(0, keepdims=True), "reversed|one row"),
        (lambda x: x + np.arange(x.shape[0], dtype=x.dtype)[:, None], "reversed"),
        (lambda x: x * x.shape[0], "half"),
        (lambda x: x + isinstance(x, jax.core.Tracer), "jit"),
        (lambda x: x.at[0].add(1e-3), "reversed"),
        (lambda x: (x * jnp.nan, x), "jit: nan"),
    ],
)
def test_invariance_catches_what_depends_on_the_batch(fn, caught):
    with pytest.raises(AssertionError, match=caught):
        testing.invariance(fn, ROWS)


def test_invariance_needs_a_batch():
    with pytest.raises(ValueError, match="at least 2"):
        testing.invariance(lambda x: x, np.ones((1, 3)))


def scan_with(number):
    def draw(key):
        body = lambda key, i: (key, jax.random.normal(jax.random.fold_in(key, number(i))))  # noqa: E731
        return jax.lax.scan(body, key, jnp.arange(4))[1]

    return draw


REUSING = {
    "twice": lambda k: jax.random.normal(k) + jax.random.uniform(k),
    "bits after split": lambda k: jax.random.normal(jax.random.split(k)[0]) + jax.random.normal(k),
    "under jit": jax.jit(lambda k: jax.random.normal(k) + jax.random.normal(k, (2,))),
    "one number in a scan": scan_with(lambda i: i // 2),
    "split beside fold_in": lambda k: random_rows(
        jnp.stack([jax.random.split(k, 2)[1], jax.random.fold_in(k, 1)])
    ),
    "equal keys of a batch": lambda k: random_rows(jnp.stack([k, k])),
}


@pytest.mark.parametrize("name", REUSING)
def test_key_reuse_catches(name):
    with pytest.raises(jax.errors.KeyReuseError, match="keys used up to 2 times"):
        testing.key_reuse(REUSING[name], jax.random.key(3))


def test_key_reuse_passes_what_is_right_and_changes_no_number():
    result = testing.key_reuse(scan_with(lambda i: i), jax.random.key(3))
    np.testing.assert_array_equal(result, scan_with(lambda i: i)(jax.random.key(3)))
    testing.key_reuse(jax.jit(lambda k, n: random_rows(k) * n), KEYS, 2.0)
    both = testing.key_reuse(lambda k: random_rows(jax.random.split(k, 4)), jax.random.key(1))
    assert both.shape == (4, 3)


def test_key_reuse_says_that_it_has_no_key_to_follow():
    with pytest.raises(ValueError, match="expected args to hold a key of jax.random.key, got none"):
        testing.key_reuse(REUSING["twice"], jax.random.PRNGKey(3))


def test_jax_own_checker_is_at_hand():
    with jax.debug_key_reuse(True):
        key = jax.random.key(0)
        jax.random.normal(key)
        with pytest.raises(jax.errors.KeyReuseError):
            jax.random.normal(key)
