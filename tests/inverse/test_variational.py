"""Optimised start noise, and what RED-Diff converges to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

inverse = jd.inverse
VP = jd.processes.VP()
PAIR = jd.testing.gaussian(np.zeros(2), [[1.0, 0.8], [0.8, 1.0]])


@pytest.mark.slow
def test_a_start_is_found_whose_sample_agrees():
    """The map of a Gaussian is linear, so the best start without a prior gives the measurement exactly."""
    y = np.float32([[1.2, 0.0], [-0.4, 0.0]])
    x = np.random.default_rng(0).normal(size=(2, 2)).astype(np.float32)
    grid, solver = jd.grids.log_snr(VP, 8), jd.solvers.dpmpp_multistep(2)

    @jax.jit
    def found(y, x):
        start, sample, losses = inverse.latent(
            PAIR.denoiser(VP), VP, solver, grid, inverse.mask([1, 0]), y, x, updates=150, weight=0.0
        )
        return sample, losses, jd.sample(None, PAIR.denoiser(VP), VP, solver, grid, x=start)

    sample, losses, again = jax.device_get(found(y, x))
    np.testing.assert_allclose(sample[:, 0], y[:, 0], atol=0.02)
    assert losses.shape == (150, 2) and (losses[-1] < 1e-2 * losses[0]).all()
    np.testing.assert_allclose(again, sample, atol=1e-5)
    with pytest.raises(ValueError, match="deterministic solver"):
        inverse.latent(
            PAIR.denoiser(VP), VP, jd.solvers.ancestral(), grid, inverse.mask([1, 0]), y, x, updates=1
        )


def test_a_further_loss_decides_what_the_measurement_leaves_open():
    y, x = jnp.array([[1.2, 0.0]]), jnp.zeros((1, 2))
    _, sample, _ = inverse.latent(
        PAIR.denoiser(VP), VP, jd.solvers.ddim(), jd.grids.log_snr(VP, 6), inverse.mask([1, 0]), y, x,
        updates=200, weight=0.0, loss=lambda x0: (x0[:, 1] + 0.5) ** 2,
    )  # fmt: skip
    np.testing.assert_allclose(sample, [[1.2, -0.5]], atol=0.03)


@pytest.mark.slow
def test_the_regulariser_of_red_diff_has_the_gradient_of_a_gaussian_prior():
    """With prior N(0, v) the mean gradient is `weight c^2 mu / (a^2 v + c^2)`, and one update descends it."""
    v, mean, weight = 0.5, 0.7, 0.3
    denoise = jd.testing.gaussian(np.zeros(1), [v]).denoiser(VP)
    n = 20000
    solver = inverse.red_diff(inverse.dense(np.zeros((1, 1))), np.zeros((n, 1), np.float32), 1.0, weight)
    rows = solver.plan(VP, np.array([0.5, 0.2]))
    row = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), rows)

    class Probe:
        def update(self, gradient, moments):
            return -gradient, gradient

    object.__setattr__(solver, "_adam", lambda: Probe())

    @jax.jit
    def step():
        start = type("S", (), {"x": jnp.full((n, 1), mean), "moments": None})
        draw = lambda: jax.random.normal(jax.random.key(0), (n, 1))  # noqa: E731
        return solver.step.__func__(solver, denoise, start, row, draw)

    state = jax.device_get(step())
    gradient = state.moments
    a, _, c = VP.coefficients(0.5)
    np.testing.assert_allclose(gradient.mean(), weight * c**2 * mean / (a**2 * v + c**2), rtol=0.03)
    np.testing.assert_allclose(state.x, mean - gradient, rtol=1e-6)


@pytest.mark.slow
def test_red_diff_comes_to_rest_where_data_and_prior_balance():
    """At one noise level the mean rests where `(mu - y) / s^2 + weight c^2 mu / (a^2 v + c^2) = 0`."""
    v, s, weight, n = 0.5, 0.8, 0.9, 2000
    y = np.ones((n, 1), np.float32)
    solver = inverse.red_diff(inverse.dense(np.eye(1)), y, s, weight, learning_rate=0.02)
    denoise = jd.testing.gaussian(np.zeros(1), [v]).denoiser(VP)
    grid = np.linspace(0.5, 0.499, 401)

    @jax.jit
    def walk():
        keys = jax.random.split(jax.random.key(0), n)
        return jd.sample(keys, denoise, VP, solver, grid, x=jnp.zeros((n, 1)))

    a, _, c = VP.coefficients(0.5)
    pull = weight * c**2 / (a**2 * v + c**2)
    np.testing.assert_allclose(np.mean(walk()), (1 / s**2) / (1 / s**2 + pull), rtol=0.02)


def test_a_solver_walks_by_its_own_step():
    """One jump of a flow map with u = x / 2 halves the start."""
    flow, y = jd.processes.RectifiedFlow(), jnp.array([[0.6, 0.0]])
    solver = jd.solvers.flow_map(lambda x, t, r: 0.5 * x)
    start, sample, _ = inverse.latent(
        None, flow, solver, jd.grids.uniform(flow, 1), inverse.mask([1, 0]), y, jnp.ones((1, 2)), weight=0.0
    )
    np.testing.assert_allclose(sample, 0.5 * start, rtol=1e-6)
    np.testing.assert_allclose(sample[0], [0.6, 0.5], atol=0.05)
