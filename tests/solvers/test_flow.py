"""Flows and SDEs between the two ends of an interpolant, both directions, any noise level."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

S, FLOW = jd.solvers, jd.processes.RectifiedFlow()
INTERPOLANT = jd.processes.StochasticInterpolant(scale=1.0)
MEANS, STDS, WEIGHTS = jnp.array([[-1.5, 1.0]]), jnp.array([[0.3, 0.5]]), jnp.array([[0.4, 0.6]])


def fields():
    """Velocity and score of the linear interpolant from a mixture (t = 0) to an independent N(0, 1)."""

    def parts(x, t):
        a, b, c = INTERPOLANT.coefficients(t)
        da, db, dc = INTERPOLANT.derivatives(t)
        variance = a**2 * STDS**2 + b**2 + c**2
        log_p = jnp.log(WEIGHTS) - 0.5 * (x - a * MEANS) ** 2 / variance - 0.5 * jnp.log(variance)
        p = jax.nn.softmax(log_p, -1)
        residual = (x - a * MEANS) / variance
        clean = MEANS + a * STDS**2 * residual
        velocity = da * clean + (db * b + dc * c) * residual
        return jnp.sum(p * velocity, -1, keepdims=True), -jnp.sum(p * residual, -1, keepdims=True)

    return (lambda x, t: parts(x, t)[0]), (lambda x, t: parts(x, t)[1])


def data(key, n):
    which, noise = jax.random.split(key)
    k = jax.random.categorical(which, jnp.log(WEIGHTS[0]), shape=(n,))
    return (MEANS[0, k] + STDS[0, k] * jax.random.normal(noise, (n,)))[:, None]


def test_a_field_takes_a_time_of_each_example():
    velocity, score = (lambda x, t: (1 + t[:, None]) * x), (lambda x, t: -x)
    denoise = S.field(velocity, score, lambda t: t * (1 - t))
    x, t = np.float32([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]), np.float32([0.9, 0.5, 0.1])
    own = 1 - t * (1 + t + t * (1 - t))
    np.testing.assert_allclose(denoise(x, t), own[:, None] * x, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("epsilon", [0.0, 1.0, 5.0])
def test_both_marginals_are_reached_at_every_noise_level(epsilon):
    velocity, score = fields()
    level = lambda t: epsilon * t * (1 - t)  # noqa: E731
    times, keys = np.linspace(1 - 1e-3, 1e-3, 301), jax.random.split(jax.random.key(0), 5000)
    x0 = np.asarray(jax.jit(data, static_argnums=1)(jax.random.key(1), 5000))
    y = np.random.default_rng(2).normal(size=(5000, 1)).astype(np.float32)
    for forward, start, end in ((False, y, x0), (True, x0, y)):
        denoise = S.field(velocity, score, level, forward)
        grid = times[::-1] if forward else times
        solver = S.interpolant_sde(level)
        run = jax.jit(lambda x, d=denoise, s=solver, g=grid: jd.sample(keys, d, FLOW, s, g, x=x))
        x = np.asarray(run(start))
        q = np.linspace(0.02, 0.98, 25)
        np.testing.assert_allclose(np.quantile(x, q), np.quantile(end, q), atol=0.15)
        np.testing.assert_allclose(x.std(), end.std(), rtol=0.06)


def test_a_flow_runs_on_any_deterministic_solver_and_back():
    velocity, _ = fields()
    y = np.random.default_rng(2).normal(size=(500, 1)).astype(np.float32)
    times = np.linspace(1 - 1e-3, 1e-3, 101)

    @jax.jit
    def run(y):
        def flow(solver, times, x):
            return jd.sample(None, S.field(velocity), FLOW, solver, times, x=x)

        one, other = (flow(solver, times, y) for solver in (S.heun(), S.dpmpp_multistep(2)))
        return one, other, flow(S.heun(), times[::-1], one)

    one, other, back = run(y)
    np.testing.assert_allclose(one, other, atol=0.03)
    np.testing.assert_allclose(back, y, atol=0.03)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="score"):
        S.field(lambda x, t: x, epsilon=1.0)
    with pytest.raises(ValueError, match="epsilon"):
        S.interpolant_sde(-1.0)
    with pytest.raises(ValueError, match="corrector"):
        S.splitting(-0.1)
