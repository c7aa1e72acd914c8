import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.training import ema


def serve(values, half_life):
    average = ema.init(jnp.zeros(()))
    for step, value in enumerate(values, start=1):
        average = ema.update(average, jnp.float32(value), half_life, step)
    return float(average)


def test_value_is_the_closed_form_of_the_bias_corrected_average():
    values, half_life = np.array([2.0, -1.0, 4.0, 0.5, 3.0]), 3.0
    decay = 2 ** (-1 / half_life)
    weights = decay ** np.arange(len(values))[::-1]
    np.testing.assert_allclose(serve(values, half_life), weights @ values / weights.sum(), rtol=1e-6)


def test_half_life_counts_updates():
    """With many updates, the newest `half_life` of them carry half of the weight."""
    values = np.concatenate([np.zeros(200), np.ones(10)])
    np.testing.assert_allclose(serve(values, 10.0), 0.5, rtol=1e-5)


def test_first_served_average_equals_the_parameters_bit_for_bit():
    assert serve([0.1], 1000.0) == np.float32(0.1)


def test_a_constant_is_served_as_itself_long_before_the_half_life():
    np.testing.assert_allclose(serve([2.0] * 5, 1e5), 2.0, rtol=1e-6)


def test_narrow_parameters_are_averaged_in_float32():
    average = ema.init(jnp.ones(3, jnp.bfloat16))
    assert average.dtype == jnp.float32
    average = ema.update(average, jnp.ones(3, jnp.bfloat16), 1e6, 100_000)
    average = ema.update(average, jnp.full(3, 2, jnp.bfloat16), 1e6, 100_001)
    assert float(average[0]) > 1.0


def test_half_life_must_be_positive():
    with pytest.raises(ValueError, match="half_life"):
        ema.update(jnp.ones(()), jnp.ones(()), 0.0, 1)
