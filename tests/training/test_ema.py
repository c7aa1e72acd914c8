import jax
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


def track(path, profile):
    update = jax.jit(lambda average, value, step: ema.update(average, value, profile, step))
    average = ema.init(jnp.zeros(3))
    for step, value in enumerate(path, start=1):
        average = update(average, value, step)
        yield average


def test_a_power_profile_weighs_as_a_power_of_the_step():
    profile = ema.Power(3.0)
    k = np.arange(1, 401)
    weights = (k / 400) ** 4 - ((k - 1) / 400) ** 4  # j^gamma, summed over each update
    path = np.float32(np.random.default_rng(0).normal(size=(400, 3)))
    *_, average = track(path, profile)
    np.testing.assert_allclose(average, weights @ path, atol=1e-5)
    width = 0.1
    gamma = ema.power(width).gamma
    x = (np.arange(20000) + 0.5) / 20000
    p = x**gamma / np.sum(x**gamma)
    np.testing.assert_allclose(np.sqrt(p @ x**2 - (p @ x) ** 2), width, rtol=1e-3)
    with pytest.raises(ValueError, match="width"):
        ema.power(0.3)


@pytest.mark.slow
def test_any_profile_is_synthesised_from_snapshots():
    """Against the average tracked during the run, for widths and steps that were not saved."""
    rng = np.random.default_rng(0)
    path = np.float32(np.cumsum(rng.normal(size=(600, 3)), 0) * 0.05)
    saved = []
    for width in (0.05, 0.1):
        profile = ema.power(width)
        averages = track(path, profile)
        saved += [ema.Snapshot(e, k, profile.gamma) for k, e in enumerate(averages, 1) if k % 30 == 0]
    for width, step in ((0.07, 600), (0.15, 600), (0.1, 450), (0.08, 585)):
        wanted = ema.power(width)
        exact = list(track(path[:step], wanted))[-1]
        got = ema.synthesize(saved, step, wanted)
        spread = np.std(path)
        assert float(jnp.abs(got - exact).max()) < 0.02 * spread, (width, step)
    np.testing.assert_allclose(ema.synthesize(saved, 600, ema.power(0.05)), saved[19].params, atol=1e-3)
    with pytest.raises(ValueError, match="last snapshot"):
        ema.synthesize(saved, 700, ema.power(0.1))


def test_profiles_have_one_spelling():
    for spec, words in ((500, "500"), ("500.0", "500"), (2.5, "2.5"), ("power:0.050", "power:0.05"),
                        (ema.power(0.1), "power:0.1"), (ema.HalfLife(3.0), "3")):
        assert ema.name(spec) == words
        assert ema.name(ema.profile(words)) == words
    assert ema.profile("power:0.1") == ema.power(0.1) and ema.profile("12") == ema.HalfLife(12.0)


@pytest.mark.parametrize("spec", ["power", "power:", "powr:0.1", ":3", "a", "-1", "0", "nan", "power:0.3"])
def test_unknown_profiles_are_named(spec):
    with pytest.raises(ValueError, match="half-life in updates|half_life to be|width in"):
        ema.profile(spec)
