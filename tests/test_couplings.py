"""Couplings: they keep the marginals and lower the cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment
from scipy.stats import norm

import jaxdiff as jd

KEY = jax.random.key(0)
X0, X1 = np.random.default_rng(0).normal(size=(2, 64, 3)).astype(np.float32)
X0 += np.float32([[2.0, 0, 0]])


def cost(a, b):
    return float(np.sum((np.asarray(a) - np.asarray(b)) ** 2))


def test_exact_assignment_is_the_best_permutation():
    out = jax.jit(jd.couplings.optimal_transport("exact"))(KEY, X0, X1)
    np.testing.assert_array_equal(np.sort(out, axis=0), np.sort(X1, axis=0))
    table = np.asarray(jd.couplings.costs(X0, X1), np.float64)
    rows, columns = linear_sum_assignment(table)
    np.testing.assert_allclose(cost(X0, out), table[rows, columns].sum(), rtol=1e-4)
    assert cost(X0, out) < 0.9 * cost(X0, X1)
    np.testing.assert_array_equal(jd.couplings.independent(KEY, X0, X1), X1)


@pytest.mark.slow
def test_the_sinkhorn_plan_has_uniform_marginals_and_tends_to_the_assignment():

    @jax.jit
    def run(key, x0, x1):
        table = jd.couplings.costs(x0, x1)
        plan = lambda share, steps: jd.couplings.sinkhorn(table, share * table.mean(), steps)  # noqa: E731
        soft = [jax.nn.softmax(plan(share, 2000), axis=1).sum(0) for share in (1.0, 0.1)]
        pairs = plan(1e-3, 5000).argmax(1), jd.couplings.assignment(table)
        ways = jd.couplings.optimal_transport("entropic", 0.05), jd.couplings.optimal_transport("exact")
        return soft, pairs, [way(key, x0, x1) for way in ways]

    soft, (sharp, best), (loose, exact) = jax.tree.map(np.asarray, run(KEY, X0, X1))
    np.testing.assert_allclose(soft, np.ones((2, 64)), rtol=2e-2)
    assert np.mean(sharp == best) > 0.9
    assert cost(X0, exact) <= cost(X0, loose) < 0.95 * cost(X0, X1)


@pytest.mark.slow
def test_the_entropic_plan_of_gaussians_is_the_schroedinger_bridge():
    """N(0, 1) to N(0, 1) with cost |x - y|^2 and regularisation e: correlation sqrt(1 + e^2 / 16) - e / 4."""
    x = norm.ppf(np.linspace(0, 1, 401)[1:-1, None]).astype(np.float32)
    e = 2.0  # 2 scale^2 for a Brownian bridge of scale 1
    run = jax.jit(lambda x: jax.nn.softmax(jd.couplings.sinkhorn(jd.couplings.costs(x, x), e, 500), axis=1))
    correlation = np.mean(x * (np.asarray(run(x)) @ x)) / np.mean(x**2)
    np.testing.assert_allclose(correlation, np.sqrt(1 + e**2 / 16) - e / 4, atol=0.02)


@pytest.mark.parametrize("method", ["exact", "entropic"])
def test_classes_exchange_only_within_themselves(method):
    label = np.arange(64) % 4
    out = np.asarray(jax.jit(jd.couplings.optimal_transport(method))(KEY, X0, X1, label))
    for k in range(4):
        own = {tuple(row) for row in X1[label == k].tolist()}
        assert {tuple(row) for row in out[label == k].tolist()} <= own
    assert cost(X0, out) < cost(X0, X1)


@pytest.mark.slow
def test_transport_straightens_the_flow():
    """The field that matches coupled pairs bends less: fewer Euler steps do."""
    x0 = np.float32([[2.0, 0.0], [-2.0, 0.0]])[np.arange(256) % 2]
    noise = np.random.default_rng(0).normal(size=(256, 2)).astype(np.float32)
    coupled = np.asarray(jax.jit(jd.couplings.optimal_transport())(KEY, x0, noise))
    assert cost(x0, coupled) < 0.8 * cost(x0, noise)
    sides = lambda z: np.mean(np.sign(z[:, 0]) == np.sign(x0[:, 0]))  # noqa: E731
    assert sides(coupled) > 0.9 > 0.7 > sides(noise)  # pairs do not cross: straight lines are the flow


def test_wrong_arguments():
    with pytest.raises(ValueError, match="method"):
        jd.couplings.optimal_transport("hungry")
    with pytest.raises(ValueError, match="regularization"):
        jd.couplings.optimal_transport(regularization=0.0)
    with pytest.raises(ValueError, match="equal batches"):
        jd.couplings.optimal_transport()(KEY, X0, X1[:3])


def curvature(x0, noise, steps=24, width=0.15):
    """Mean squared distance of a flow's velocity from its chord, per dimension, of the field of the pairs.

    The field is the regression of `noise - x0` on `x_t` over the pairs, by a kernel.
    """

    def field(x, t):
        x_t = (1 - t) * x0 + t * noise
        squares = jnp.sum(jnp.square(x[:, None] - x_t[None]), -1)
        return jax.nn.softmax(-0.5 * squares / width**2, -1) @ (noise - x0)

    def move(x, t):
        u = field(x, t)
        return x - u / steps, u

    start = noise[:128]
    times = 1 - jnp.arange(steps) / steps
    end, velocities = jax.lax.scan(move, start, times)
    return jnp.mean(jnp.square(velocities - (start - end)[None])), end


@pytest.mark.slow
def test_transport_and_reflow_lower_the_curvature():
    """Of independent pairs, of the best assignment, and of the end points of the exact flow."""
    means = np.array([[1.5, 0.0], [-1.0, 1.2], [-1.0, -1.2]])
    target = jd.testing.gaussian_mixture(means, np.full(3, 0.05), np.ones(3) / 3)
    process = jd.processes.RectifiedFlow()
    denoise, grid = target.denoiser(process), jd.grids.uniform(process, 24)

    @jax.jit
    def pairs(key, draw, match, apart):
        def walk(x):
            return jd.sample(None, denoise, process, jd.solvers.heun(), grid, x=x)

        keys, data = jax.random.split(key, 512), target.sample(draw, 512)
        x0, noise = jd.couplings.reflow(keys, walk, process, (2,))
        near = jd.couplings.optimal_transport("exact")(match, data, apart)
        starts, ends = jnp.stack([data, data, x0]), jnp.stack([apart, near, noise])
        return starts, ends, process.noise(keys, x0), jax.vmap(curvature)(starts, ends)

    apart = np.random.default_rng(3).normal(size=(512, 2)).astype(np.float32)
    starts, ends, noise, (bent, flown) = jax.tree.map(np.asarray, pairs(KEY, jax.random.key(2), KEY, apart))
    np.testing.assert_array_equal(ends[2], noise)
    assert max(cost(starts[1], ends[1]), cost(starts[2], ends[2])) < 0.3 * cost(starts[0], ends[0])
    assert bent[1] < 0.05 * bent[0] and bent[2] < 0.05 * bent[0], bent
    for end in flown:  # all three flows reach the data
        assert np.mean(np.linalg.norm(end[:, None] - means[None], axis=-1).min(1) < 0.7) > 0.9
