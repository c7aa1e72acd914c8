"""Exact answers under Student-t noise, against quadrature and closed forms of other kinds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

import jaxdiff as jd

P, T = jd.processes, jd.testing
HEAVY = P.HeavyTailed(P.EDM(), 3.0)
POINTS = np.random.default_rng(0).normal(size=(5, 7))


def answers(target, process, x, t):
    made = target.denoiser(process), lambda x, t: target.log_prob(process, x, t), target.score(process)
    return jax.jit(lambda x: [answer(x, t) for answer in made])(x)


def test_one_value_against_quadrature(x64):
    x = np.array([[4.0], [0.1], [30.0]])
    clean, log_p, score = answers(T.gaussian(np.zeros(1), 1.0), HEAVY, x, 1.0)
    for i, at in enumerate(x[:, 0]):
        joint = lambda x0, k, at=at: x0**k * stats.norm.pdf(x0) * stats.t(3).pdf(at - x0)  # noqa: E731
        total, mean = (integrate.quad(joint, -12, 12, (k,), epsabs=1e-13)[0] for k in (0, 1))
        np.testing.assert_allclose([clean[i, 0], log_p[i]], [mean / total, np.log(total)], rtol=1e-9)
    slope = jax.grad(lambda x: jnp.sum(T.gaussian(np.zeros(1), 1.0).log_prob(HEAVY, x, 1.0)))(x)
    np.testing.assert_allclose(score, slope, rtol=1e-9)


@pytest.mark.parametrize("D", [1.0, pytest.param(128.0, marks=pytest.mark.slow)])
def test_points_have_the_kernel_of_a_poisson_flow(D, x64):
    """Far from the data, too, where its scale is far from that of most draws."""
    process, x = P.PoissonFlow(D), np.random.default_rng(1).normal(size=(6, 7))
    x[0] = POINTS[0]
    for t in (0.01, 5.0):
        clean, log_p, _ = answers(T.empirical(POINTS), process, x, t)
        squares = np.sum((x[:, None] - POINTS) ** 2, -1)
        logits = -0.5 * (7 + D) * np.log(squares + D * t**2)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        weights /= weights.sum(1, keepdims=True)
        np.testing.assert_allclose(clean, weights @ POINTS, rtol=1e-9, atol=1e-11)
        law = stats.multivariate_t(np.zeros(7), t**2 * np.eye(7), df=D)
        exact = np.logaddexp.reduce([law.logpdf(x - point) for point in POINTS]) - np.log(5)
        np.testing.assert_allclose(log_p, exact, rtol=1e-10)
    exact = T.empirical(POINTS).denoiser(process)
    np.testing.assert_allclose(exact(np.float32(x), 0.3), exact(x, 0.3), atol=1e-5)
    np.testing.assert_allclose(exact(POINTS, 0.0), POINTS, atol=1e-12)


def test_many_dimensions_and_the_limit_of_normal_noise(x64):
    points = np.random.default_rng(0).normal(size=(2, 1000))
    x = 0.4 * points[:1] + 0.6 * points[1:] + 0.1
    law = stats.multivariate_t(np.zeros(1000), 0.25 * np.eye(1000), df=4)
    log_p = T.empirical(points).log_prob(P.PoissonFlow(4.0), x, 0.5)
    exact = np.logaddexp(*(law.logpdf(x - point) for point in points)) - np.log(2)
    np.testing.assert_allclose(log_p, exact, rtol=1e-11)
    mixture, x = T.gaussian_mixture(POINTS, 0.3 * np.ones(5)), POINTS + 0.3
    heavy, normal = answers(mixture, P.HeavyTailed(P.VP(), 1e6), x, 0.4), answers(mixture, P.VP(), x, 0.4)
    for one, other in zip(heavy, normal, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_the_flow_is_the_one_that_samplers_follow(x64):
    target, x = T.gaussian(np.zeros(1), 1.0), np.array([[2.0], [5.0]])
    end = T.flow_map(target, HEAVY, x, 2.0, 0.05)

    @jax.jit
    def walks(x):
        grids = [np.geomspace(2.0, 0.05, steps + 1) for steps in (20, 40)]
        denoise, solver = target.denoiser(HEAVY), jd.solvers.heun()
        return [jd.sample(None, denoise, HEAVY, solver, grid, x=x) for grid in grids]

    gaps = [np.abs(x - end).max() for x in walks(x)]
    assert gaps[1] < 2e-3 and 3 < gaps[0] / gaps[1] < 5, gaps  # second order
    assert np.abs(T.flow_map(target, P.EDM(), x, 2.0, 0.05) - end).max() > 0.1


def test_gradients_are_finite_where_nothing_is_left():
    def end(scale):
        bridge = P.BrownianBridge(scale)
        x = jnp.zeros((2, 1))
        return jnp.sum(T.gaussian(np.ones(1), 0.5).denoiser(bridge, y=x)(x, 1.0))

    assert np.isfinite(jax.grad(end)(1.0))
