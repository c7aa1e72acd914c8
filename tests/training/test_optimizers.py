import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.training import adamw, learning_rates


def test_warm_up_and_cosine_decay_to_zero():
    rates = learning_rates(2.0, steps=110, warmup=10)
    got = jax.jit(jax.vmap(rates))(np.array([0, 4, 9, 10, 35, 60, 110]))
    cosine = 1 + np.cos(np.pi * 0.25)
    np.testing.assert_allclose(got, [0.2, 1.0, 2.0, 2.0, cosine, 1.0, 0.0], atol=1e-6)


def test_no_warm_up_starts_at_the_peak():
    for decay, half in (("cosine", 1.0), ("linear", 1.0), ("constant", 2.0)):
        rates = learning_rates(2.0, steps=10, decay=decay)
        np.testing.assert_allclose([rates(0), rates(5)], [2.0, half], rtol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [({"warmup": 10}, "warmup in"), ({"decay": "cosin"}, "cosine"), ({"peak": -1.0}, "learning_rate"),
     ({"warmup": -1}, "warmup in")],
)
def test_bad_schedules(options, message):
    with pytest.raises(ValueError, match=message):
        learning_rates(**{"peak": 1.0, "steps": 10} | options)


def test_first_step_of_adamw_is_the_sign_plus_decay():
    optimizer = adamw(0.1, weight_decay=0.5, clip=1.0)
    params, gradient = {"w": np.float32([2.0, -4.0])}, {"w": np.float32([30.0, -40.0])}
    updates, _ = jax.jit(lambda g, p: optimizer.update(g, optimizer.init(p), p))(gradient, params)
    np.testing.assert_allclose(updates["w"], [-0.1 * (1 + 1.0), -0.1 * (-1 - 2.0)], rtol=1e-5)


def test_nesterov_steps_by_the_first_moment_of_one_more_such_gradient():
    b1, b2, gradients = 0.9, 0.5, ([2.0, -3.0], [-4.0, -1.0])
    optimizer = adamw(0.1, beta1=b1, beta2=b2, nesterov=True, clip=0)
    params = {"w": jnp.zeros(2)}
    state, m, v = optimizer.init(params), 0, 0
    for k, gradient in enumerate(np.array(gradients), 1):
        updates, state = optimizer.update({"w": jnp.asarray(gradient, jnp.float32)}, state, params)
        m, v = b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        ahead = b1 * m / (1 - b1 ** (k + 1)) + (1 - b1) * gradient / (1 - b1**k)
        np.testing.assert_allclose(updates["w"], -0.1 * ahead / np.sqrt(v / (1 - b2**k)), rtol=1e-5)


def test_clipping_bounds_the_norm_that_the_moments_see():
    params = {"w": jnp.zeros(2)}
    for clip, norm in ((1.0, 1.0), (0.0, 50.0)):
        optimizer = adamw(0.1, clip=clip)
        gradient = {"w": jnp.array([30.0, -40.0])}
        state = optimizer.update(gradient, optimizer.init(params), params)[1]
        mu = optax.tree.get(state, "mu")["w"]
        np.testing.assert_allclose(jnp.linalg.norm(mu), 0.1 * norm, rtol=1e-5)


@pytest.mark.parametrize(
    "options, message",
    [({"beta2": 1.0}, "beta2 in"), ({"beta1": -0.1}, "beta1 in"), ({"clip": -1.0}, "clip to be finite"),
     ({"weight_decay": float("nan")}, "weight_decay to be finite"),
     ({"weight_decay": "a"}, "weight_decay to be finite"),
     *(({"learning_rate": rate}, "learning_rate to be finite and at least 0, got")
       for rate in (-1.0, float("nan"), np.inf, "1e-3", np.float32(-1.0), jnp.float32(jnp.nan)))],
)  # fmt: skip
def test_bad_optimizers(options, message):
    with pytest.raises(ValueError, match=message):
        adamw(**{"learning_rate": 1e-3} | options)


def test_a_learning_rate_may_be_zero_or_traced():
    params = {"w": jnp.ones(2)}

    def updates(rate):
        optimizer = adamw(rate)
        return optimizer.update(params, optimizer.init(params), params)[0]["w"]

    np.testing.assert_array_equal(updates(0), [0.0, 0.0])
    assert jax.eval_shape(updates, jnp.float32(0.1)).shape == (2,)
