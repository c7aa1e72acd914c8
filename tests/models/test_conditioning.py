"""The embedding's features, and every complaint about inputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models import conditioning


def test_noise_features_are_the_stated_waves():
    c_noise = jnp.array([-1.5, 0.25])
    out = conditioning.noise_features(c_noise, 8)
    frequencies = 0.5 * 128.0 ** (np.arange(4) / 3)
    angles = np.asarray(c_noise)[:, None] * frequencies
    expected = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    np.testing.assert_allclose(out, expected, atol=1e-5)


def test_noise_features_are_wide_for_narrow_input():
    narrow = jax.ShapeDtypeStruct((2,), jnp.bfloat16)
    assert jax.eval_shape(lambda c: conditioning.noise_features(c, 4), narrow).dtype == jnp.float32


def split(condition, num_classes=3, vector_size=2):
    return conditioning.split_condition("net", condition, 2, num_classes, vector_size)


def test_no_condition_is_the_null_class():
    label, vector = split(None)
    np.testing.assert_array_equal(label, [3, 3])
    assert vector is None
    assert split(None, num_classes=None) == (None, None)


def test_dict_with_vector_alone_is_the_null_class():
    label, vector = split({"vector": jnp.ones((2, 2))})
    np.testing.assert_array_equal(label, [3, 3])
    assert vector.shape == (2, 2)


@pytest.mark.parametrize(
    "condition, fields, message",
    [
        (jnp.array([0, 4]), {}, r"labels in \[0, 3\].*got labels in \[0, 4\]"),
        (jnp.array([-1, 0]), {}, r"got labels in \[-1, 0\]"),
        (jnp.array([0.0, 1.0]), {}, "expected integer labels"),
        (jnp.array([0]), {}, r"shape \(2,\)"),
        (jnp.array([0, 1]), {"num_classes": None}, "num_classes is None"),
        ({"vector": jnp.ones((2, 2))}, {"vector_size": None}, "vector_size is None"),
        ({"vector": jnp.ones((2, 3))}, {}, r"got \(2, 3\)"),
        ({"labels": jnp.array([0, 1])}, {}, "unknown entries.*labels"),
    ],
)
def test_bad_conditions(condition, fields, message):
    with pytest.raises(ValueError, match=message):
        split(condition, **fields)


def test_a_vector_may_be_a_list():
    assert split({"vector": [[1.0] * 4, [2.0] * 4]}, vector_size=4)[1].shape == (2, 4)


def test_concrete_labels_are_checked_under_jit():
    labels = jnp.array([0, 4])
    with pytest.raises(ValueError, match="null class"):
        jax.jit(lambda: split(labels)[0])()
    assert jax.jit(lambda labels: split(labels)[0])(jnp.array([0, 3])).shape == (2,)


@pytest.mark.parametrize(
    "x, c_noise, keys, dropout, message",
    [
        (jnp.ones((2, 3), int), 0.0, None, 0.0, "floating"),
        (jnp.ones((2, 3)), jnp.ones(3), None, 0.0, r"got \(3,\)"),
        (jnp.ones((2, 3)), jnp.ones((2, 1)), None, 0.0, r"got \(2, 1\)"),
        (jnp.ones((2, 3)), 0.0, 3, 0.0, "expected 2 keys"),
        (jnp.ones((2, 3)), 0.0, (), 0.0, r"expected 2 keys, one per example, got shape \(\)"),
        (jnp.ones((2, 3)), 0.0, (2, 3), 0.0, r"expected 2 keys, one per example, got shape \(2, 3\)"),
        (jnp.ones((2, 3)), 0.0, None, 1.0, r"\[0, 1\)"),
        (jnp.ones((0, 3)), 0.0, None, 0.0, "a batch of at least one example, got none"),
    ],
)
def test_bad_inputs(x, c_noise, keys, dropout, message):
    keys = None if keys is None else jax.random.split(jax.random.key(0), keys)
    with pytest.raises(ValueError, match=message):
        conditioning.check_inputs("net", x, c_noise, keys, dropout)


def test_raw_keys_are_counted_by_rows_and_other_values_are_named():
    x = jnp.ones((2, 3))
    conditioning.check_inputs("net", x, 0.0, jnp.ones((2, 2), jnp.uint32), 0.5)
    with pytest.raises(ValueError, match=r"net: expected 2 keys.* got shape \(\)"):
        conditioning.check_inputs("net", x, 0.0, jax.random.PRNGKey(0), 0.5)
    with pytest.raises(ValueError, match="net: expected a key of jax.random.key.* got int"):
        conditioning.check_inputs("net", x, 0.0, 3, 0.5)
