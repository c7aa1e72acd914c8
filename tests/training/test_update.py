import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.core import fold_in
from jaxdiff.training import ema, init_state, make_update

BATCH = 8
PARAMS = {"w": np.float32([1.0, -2.0])}
X = np.arange(2 * BATCH, dtype=np.float32).reshape(BATCH, 2) / 10


def loss(params, batch, keys, strata, step):
    """`(w . x - noise)^2 + index w_0 + step w_1`: every input has its own part in the gradient."""
    noise = jax.vmap(jax.random.normal)(keys)
    index, total = strata
    return (batch["x"] @ params["w"] - noise) ** 2 + index / total * params["w"][0] + step * params["w"][1]


def at(row, column, value):
    """The data with another number at one place."""
    x = X.copy()
    x[row, column] = value
    return x


@jax.jit
@jax.value_and_grad
def mean_loss_and_gradient(params, key, step=0):
    keys = fold_in(jax.random.fold_in(key, step), jnp.arange(BATCH))
    return jnp.mean(loss(params, {"x": X}, keys, (jnp.arange(BATCH), BATCH), step))


@functools.cache
def compiled(accumulate, half_lives):
    return jax.jit(make_update(loss, optax.sgd(0.1), half_lives, accumulate))


def run(accumulate=1, steps=1, half_lives=(), x=X):
    state = init_state(PARAMS, optax.sgd(0.1), half_lives)
    for _ in range(steps):
        state, metrics = compiled(accumulate, half_lives)(state, {"x": x}, jax.random.key(3))
    return state, metrics


def test_one_step_is_the_gradient_of_the_mean_over_per_example_keys():
    state, metrics = run()
    value, gradient = jax.device_get(mean_loss_and_gradient(PARAMS, jax.random.key(3)))
    np.testing.assert_allclose(state.params["w"], PARAMS["w"] - 0.1 * gradient["w"], rtol=1e-6)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient["w"]), rtol=1e-6)
    assert metrics["finite"] and state.step == 1


def test_second_step_draws_other_numbers():
    state, _ = run(steps=2)
    first, _ = run()
    _, gradient = jax.device_get(mean_loss_and_gradient(first.params, jax.random.key(3), step=1))
    wanted = np.asarray(first.params["w"]) - 0.1 * gradient["w"]
    np.testing.assert_allclose(state.params["w"], wanted, rtol=1e-6)


@pytest.mark.keys_again
@pytest.mark.parametrize("parts", [2, 4])
def test_accumulation_changes_nothing_but_rounding(parts):
    whole, metrics = run()
    cut, cut_metrics = run(accumulate=parts)
    np.testing.assert_allclose(cut.params["w"], whole.params["w"], rtol=1e-6)
    np.testing.assert_allclose(cut_metrics["loss"], metrics["loss"], rtol=1e-6)


@pytest.mark.keys_again
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_parts_of_narrow_parameters_are_summed_in_float32(dtype):
    """One large gradient before seven that are a half of its last bit each."""
    large, optimizer = 1 / float(jnp.finfo(dtype).eps), optax.sgd(1.0)
    x = np.float32([2 * large] + 7 * [1.0])
    update = make_update(lambda p, b, k, s, t: b["x"] * p["w"], optimizer, accumulate=8)
    state = init_state({"w": jnp.zeros((), dtype)}, optimizer, ())
    state, _ = jax.jit(update)(state, {"x": x}, jax.random.key(0))
    assert state.params["w"].dtype == dtype
    np.testing.assert_array_equal(-state.params["w"], np.mean(x).astype(dtype))


@pytest.mark.parametrize("spec", ["25", 25, "power:0.1", ema.HalfLife(2.0), ema.power(0.1)])
def test_one_average_needs_no_brackets(spec):
    state = init_state(PARAMS, optax.sgd(0.1), spec)
    assert len(state.ema) == 1
    assert ema.profiles(spec) == ema.profiles([spec]) == (ema.profile(spec),)
    update = make_update(loss, optax.sgd(0.1), spec)
    assert len(jax.eval_shape(update, state, {"x": X}, jax.random.key(3))[0].ema) == 1
    with pytest.raises(ValueError, match="got None"):
        make_update(loss, optax.sgd(0.1), None)


def test_each_average_has_its_own_half_life():
    state, _ = run(steps=3, half_lives=(0.5, 1e6))
    points = [run(steps=k)[0].params["w"] for k in (1, 2, 3)]
    np.testing.assert_allclose(state.ema[1]["w"], np.mean(points, axis=0), rtol=1e-5)
    weights = np.array([1 / 16, 1 / 4, 1])
    np.testing.assert_allclose(
        state.ema[0]["w"], weights @ np.stack(points) / weights.sum(), rtol=1e-5
    )


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_number_that_is_not_finite_is_flagged(bad):
    _, metrics = run(x=at(3, 1, bad))
    assert not metrics["finite"]


def test_a_finite_loss_with_an_infinite_gradient_is_flagged():
    optimizer = optax.sgd(0.1)
    update = make_update(lambda p, b, k, s, t: jnp.sqrt(p["w"][:1] - 1.0) * jnp.ones(BATCH), optimizer)
    _, metrics = jax.jit(update)(init_state(PARAMS, optimizer, ()), {"x": X}, jax.random.key(0))
    assert np.isfinite(metrics["loss"]) and not metrics["finite"]


def test_a_loss_that_is_reduced_already_is_refused():
    optimizer = optax.sgd(0.1)
    update = make_update(lambda p, b, k, s, t: jnp.mean(p["w"]), optimizer)
    with pytest.raises(ValueError, match=r"one value per example, \(8,\), got shape \(\)"):
        jax.eval_shape(update, init_state(PARAMS, optimizer, ()), {"x": X}, jax.random.key(0))


def bits(tree):
    return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree)]


@pytest.mark.keys_again
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_skipped_step_changes_nothing_but_its_number(accumulate):
    optimizer = optax.adam(0.1)
    update = jax.jit(make_update(loss, optimizer, (2.0, "power:0.1"), accumulate, "skip"))
    plain = jax.jit(make_update(loss, optimizer, (2.0, "power:0.1"), accumulate))
    key, state = jax.random.key(3), init_state(PARAMS, optimizer, (2.0, "power:0.1"))
    good, _ = update(state, {"x": X}, key)
    assert bits(good) == bits(plain(state, {"x": X}, key)[0]), "a finite step is as without the choice"
    bad, metrics = update(good, {"x": at(3, 1, np.nan)}, key)
    assert not metrics["finite"] and bad.step == 2
    assert bits(bad.replace(step=good.step)) == bits(good)
    after, metrics = update(bad, {"x": X}, key)
    assert metrics["finite"] and after.step == 3 and bits(after.params) != bits(bad.params)
    with pytest.raises(ValueError, match="skip"):
        make_update(loss, optimizer, nonfinite="skp")


@pytest.mark.keys_again
def test_losses_are_summed_by_noise_level_whatever_the_parts():
    class Halves:
        """Examples of the first half of the global batch, and the others."""

        def sums(self, values, keys, strata):
            first = strata[0] < strata[1] // 2
            return jnp.stack([
                jnp.array([values @ first, values @ ~first]), jnp.array([first.sum(), (~first).sum()])
            ])

    def levelled(*args):
        return loss(*args)

    levelled.noise_levels, optimizer = Halves(), optax.sgd(0.1)

    @jax.jit
    def loss_values(params):
        keys = fold_in(jax.random.fold_in(jax.random.key(3), 0), np.arange(BATCH))
        return loss(params, {"x": X}, keys, (np.arange(BATCH), BATCH), 0)

    values = np.asarray(loss_values(PARAMS))
    for parts in (1, 2):
        update = jax.jit(make_update(levelled, optimizer, accumulate=parts))
        _, metrics = update(init_state(PARAMS, optimizer, ()), {"x": X}, jax.random.key(3))
        sums, counts = metrics["levels"]
        np.testing.assert_allclose(sums / counts, [values[:4].mean(), values[4:].mean()], rtol=1e-5)
