"""Signals learned from measurements alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

inverse = jd.inverse
VP = jd.processes.VP()
COVARIANCE = np.array([[1.0, 0.6, 0.3], [0.6, 1.0, 0.6], [0.3, 0.6, 1.0]])


@pytest.mark.slow
def test_linear_networks_learn_the_conditional_mean_of_what_was_never_seen_whole():
    """Each example shows two of three values: one given, the other asked for. The least squares of the loss
    over linear networks is the regression that the signal's covariance implies, though no signal is seen."""
    n, t = 40000, 0.4
    rng = np.random.default_rng(0)
    signal = rng.multivariate_normal(np.zeros(3), COVARIANCE, n).astype(np.float32)
    shown = inverse.mask([1, 0, 0])
    asked = [inverse.mask([0, 1, 0]), inverse.mask([0, 0, 1])]
    a, _, c = VP.coefficients(t)

    class At:
        def draw(self, keys, process, strata=None):
            return jnp.full(keys.shape, t)

    def total(weights, signal):
        net = lambda y_t, t: y_t[:, :1] * weights[None]  # noqa: E731
        losses = []
        for part, operator in zip((slice(0, n // 2), slice(n // 2, n)), asked, strict=True):
            x = signal[part]
            losses.append(inverse.forward_model(
                net, jax.random.key(1), shown.forward(x), process=VP, operator=shown,
                novel=(operator, operator.forward(x)), times=At(),
            ).mean())  # fmt: skip
        return sum(losses)

    @jax.jit
    def work(start, signal):
        rendered = inverse.render(lambda y_t, t: y_t * t[:, None], shown)(jnp.ones((2, 3)), 0.5)
        return jax.grad(total)(start, signal), jax.hessian(total)(start, signal), rendered

    gradient, curvature, rendered = jax.device_get(work(np.zeros(3, np.float32), signal))
    found = -np.linalg.solve(curvature, gradient)
    exact = COVARIANCE[0] * a / (a**2 + c**2)  # E[S | y_t], y_t = a S_0 + c noise
    np.testing.assert_allclose(found, exact, rtol=0.1)
    np.testing.assert_allclose(rendered, [[0.5, 0, 0]] * 2)


def test_one_value_per_example_and_wrong_shapes():
    y, net = np.ones((4, 2), np.float32), lambda y_t, t: jnp.zeros((4, 3))

    @jax.jit
    def loss(operator):
        return inverse.forward_model(net, jax.random.key(0), y, process=VP, operator=operator)

    np.testing.assert_allclose(loss(inverse.dense(np.eye(3)[:2])), np.ones(4))
    with pytest.raises(ValueError, match=r"forward_model: expected y of shape \(4, 3\)"):
        loss(inverse.mask([1, 1, 0]))
