"""The probability-flow map: closed form against integration, and both against what defines them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import processes, testing

PROCESSES = [processes.VP(), processes.EDM(), processes.RectifiedFlow(), processes.SubVP()]
MEANS = np.array([[1.0, -0.5, 0.3], [-1.2, 0.4, 0.0]])
FACTOR = np.random.default_rng(0).normal(size=(3, 3)) * 0.6
COVARIANCE = FACTOR @ FACTOR.T + 0.01 * np.eye(3)


def start(process, t, n=6):
    a, _, c = process.coefficients(t)
    return np.hypot(a, c) * np.random.default_rng(1).normal(size=(n, 3))


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.4, 0.9), (0.8, 0.1)])
def test_integration_agrees_with_the_closed_form_of_a_gaussian(process, ends, x64):
    t, s = (end * process.t_max for end in ends)
    x = start(process, t)
    closed = testing.flow_map(testing.gaussian(MEANS[0], COVARIANCE), process, x, t, s)
    twice = testing.gaussian_mixture([MEANS[0]] * 2, [COVARIANCE] * 2)
    integrated = testing.flow_map(twice, process, x, t, s)
    assert np.abs(integrated - closed).max() < 1e-10 * np.abs(x).max()


@pytest.mark.parametrize("kind", ["full", "diagonal", "low rank"])
def test_closed_form_satisfies_the_ode(kind, x64):
    covariance = {
        "full": COVARIANCE,
        "diagonal": np.diag(COVARIANCE),
        "low rank": testing.low_rank(FACTOR[:, :1], 0.3),
    }[kind]
    target = testing.gaussian(MEANS[0], covariance)
    process, t, s = processes.VP(), 0.8, 0.35

    @jax.jit
    def all_of(x, s):
        x_s, velocity = jax.jvp(lambda s: testing.flow_map(target, process, x, t, s), (s,), (1.0,))
        return x_s, velocity, target.score(process)(x_s, s), testing.flow_map(target, process, x_s, s, t)

    x = start(process, t)
    x_s, velocity, score, back = jax.device_get(all_of(x, s))
    f, g2 = process.sde(s)
    np.testing.assert_allclose(velocity, f * x_s - 0.5 * g2 * score, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(back, x, rtol=1e-9)


def test_map_of_a_mixture_satisfies_the_ode_and_is_the_same_for_every_process(x64):
    target = testing.gaussian_mixture(MEANS, [COVARIANCE, 0.5 * COVARIANCE], [0.3, 0.7])
    process, t, s, h = processes.VP(), 0.7, 0.3, 1e-4
    x = start(process, t)
    after, before = (testing.flow_map(target, process, x, t, s + d) for d in (h, -h))
    x_s = testing.flow_map(target, process, x, t, s)
    f, g2 = process.sde(s)
    expected = f * x_s - 0.5 * g2 * jax.jit(target.score(process))(x_s, s)
    np.testing.assert_allclose((after - before) / (2 * h), expected, rtol=1e-5, atol=1e-5)
    other = processes.RectifiedFlow()
    scale_t, scale_s = (np.hypot(*np.take(process.coefficients(r), [0, 2])) for r in (t, s))
    u, v = (other.time_of_log_snr(process.log_snr(r)) for r in (t, s))
    moved = testing.flow_map(target, other, x / scale_t * np.hypot(u, 1 - u), u, v)
    np.testing.assert_allclose(moved / np.hypot(v, 1 - v), x_s / scale_s, atol=1e-10)


def test_empirical_target_is_carried_to_its_points(x64):
    points = np.random.default_rng(2).normal(size=(20, 3))
    target = testing.empirical(points)
    process = processes.EDM()
    end = testing.flow_map(target, process, start(process, 80.0), 80.0, 0.0)
    assert np.abs(end[:, None] - points[None]).max(-1).min(-1).max() < 1e-9
    with pytest.raises(ValueError, match="start with noise"):
        testing.flow_map(target, process, points, 0.0, 1.0)


def test_a_time_per_example_in_the_dtype_of_x():
    target = testing.gaussian(MEANS[0], COVARIANCE)
    process = processes.RectifiedFlow()
    x, t = np.float32(start(process, 0.5)), np.linspace(0.3, 1.0, 6, dtype=np.float32)
    move = jax.jit(lambda x, t: testing.flow_map(target, process, x, t, 0.0))
    together = move(x, t)
    each = [move(x[i : i + 1], t[i]) for i in range(6)]
    assert together.dtype == jnp.float32
    np.testing.assert_allclose(together, np.concatenate(each), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_integrated_is_refused():
    target = testing.gaussian_mixture(MEANS, 0.1)
    x = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="closed form"):
        jax.jit(lambda x: testing.flow_map(target, processes.VP(), x, 1.0, 0.5))(x)
    with pytest.raises(ValueError, match="scalar t and s"):
        testing.flow_map(target, processes.VP(), x, np.ones(2), 0.5)
