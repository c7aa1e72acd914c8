"""Directions found where they are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

E = jd.editing
VP = jd.processes.VP()


@pytest.mark.slow
def test_principal_and_singular_directions():
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    features = rng.normal(size=(500, 6)) * np.array([3, 2, 0.1, 0.1, 0.1, 0.1]) @ basis.T
    matrix = rng.normal(size=(8, 6)).astype(np.float32)

    @jax.jit
    def work(features):
        fn = lambda h: jnp.tanh(0.1 * matrix @ h.reshape(-1)).reshape(2, 4)  # noqa: E731
        singular = E.jacobian_directions(fn, jnp.zeros((2, 3)), 3, jax.random.key(0), 60)
        return E.principal_directions(features, 2), singular

    principal, singular = jax.device_get(work(np.float32(features).reshape(500, 2, 3)))
    found, variances = principal
    np.testing.assert_allclose(np.abs(found.reshape(2, 6) @ basis[:, :2]), np.eye(2), atol=0.1)
    np.testing.assert_allclose(variances, [9, 4], rtol=0.2)
    directions, values = singular
    _, exact, rows = np.linalg.svd(0.1 * matrix)
    np.testing.assert_allclose(values, exact[:3], rtol=1e-3)
    np.testing.assert_allclose(np.abs(directions.reshape(3, 6) @ rows[:3].T), np.eye(3), atol=2e-2)


def test_projecting_out():
    project_out, rng = jax.jit(E.project_out), np.random.default_rng(0)
    direction, others = (rng.normal(size=shape).astype(np.float32) for shape in ((4,), (3, 4)))
    rest = project_out(direction, others)
    np.testing.assert_allclose(others @ np.asarray(rest), 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(rest), 1, rtol=1e-5)
    direction, one = np.float32([1, 2, 3, 4]), np.float32([0, 2, 0, 0])
    for others in ([one, 0.5 * one, 0 * one], [0 * one, one, 0 * one]):  # what depends spans no more
        rest = project_out(direction, np.stack(others))
        np.testing.assert_allclose(rest, np.array([1, 0, 3, 4]) / np.sqrt(26), atol=1e-6)


@pytest.mark.slow
def test_a_shift_at_the_mixing_step_flips_the_attribute():
    """Two modes along x, two along y: one shift flips x and leaves y, at the step where x is decided."""
    means = np.array([[i, j] for i in (-1.0, 1.0) for j in (-1.0, 1.0)])
    denoise = jd.testing.gaussian_mixture(means, np.full(4, 0.02), np.full(4, 0.25)).denoiser(VP)
    grid = jd.grids.log_snr(VP, 40)

    @jax.jit
    def work():
        keys = jax.random.split(jax.random.key(0), 800)
        path = jd.sample(keys, denoise, VP, jd.solvers.ancestral(), grid, shape=(2,), save="all")
        positive = path[-1][:, 0] > 0
        late = E.shift(path[-3], E.boundary(path[-3], positive), -0.3)
        late = jd.sample(None, denoise, VP, jd.solvers.ddim(), grid[-3:], x=late)
        return path, positive, E.mixing_step(path, positive, 0.9), late

    path, positive, (index, found, accuracy), late = jax.device_get(work())
    assert 0 < index < 38 and accuracy[0] < accuracy[index] and accuracy[index] >= 0.9
    np.testing.assert_allclose(np.abs(found.normal), [1, 0], atol=0.15)

    @jax.jit
    def turned(x):
        moved = E.shift(x, found, -jnp.abs(found.side(x)))
        return jd.sample(None, denoise, VP, jd.solvers.ddim(), grid[index:], x=moved)

    end = np.asarray(turned(path[index]))
    assert np.mean(end[positive, 0] < 0) > 0.9
    assert np.mean((end[positive, 1] > 0) == (path[-1][positive, 1] > 0)) > 0.9
    assert np.mean(np.abs(late[positive, 0])) < 1.0  # too late: off the modes


@pytest.mark.slow
def test_contrastive_directions():
    rng = np.random.default_rng(0)
    common, jitter = rng.normal(size=(3, 1, 20)), 0.1 * rng.normal(size=(3, 6, 20))
    loss = jax.jit(E.contrastive_loss)
    apart, alike = (np.asarray(loss(np.float32(way + jitter))) for way in (common, common[:1]))
    assert apart.shape == (3,) and apart.max() < alike.min() - 0.5
    with pytest.raises(ValueError, match="two directions"):
        E.contrastive_loss(common[:1] + jitter[:1])


def test_layers_are_read_and_moved():
    model = jd.models.MLP(width=8, depth=1)
    x, c_noise, zero = np.ones((2, 3), np.float32), np.zeros(2, np.float32), np.zeros((2, 8), np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), x, c_noise)
    names = jd.models.layer_shapes(model, variables, x, c_noise)
    layer = next(name for name, shape in names.items() if shape == (2, 8))
    apply = jd.models.tapped(model, layer)  # op by op, so that equal means equal
    output, h = apply(variables, x, c_noise)
    np.testing.assert_array_equal(output, model.apply(variables, x, c_noise))
    assert h.shape == (2, 8)
    np.testing.assert_array_equal(apply(variables, x, c_noise, change=zero)[0], output)
    with pytest.raises(ValueError, match="expected a layer"):
        jd.models.tapped(model, "nowhere")(variables, x, c_noise)


def test_layers_of_a_network_that_is_recomputed_are_read_alike():
    rng = np.random.default_rng(0)
    x, other = rng.normal(size=(2, 2, 4, 4, 1)).astype(np.float32)
    settings = {"patch": 2, "width": 8, "depth": 1, "heads": 2, "positions": "rotary"}
    nets = [jd.models.DiT(**settings, remat=remat) for remat in (False, True)]
    shapes = jax.eval_shape(nets[0].init, jax.random.key(0), x, np.zeros(2, np.float32))
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)

    @jax.jit
    def both(variables):
        change = 0.5
        return [
            (jd.models.tapped(net, "block_0/attention")(variables, x, 0.3, change=change),
             jd.models.attending(net)(variables, x, other, 0.3))
            for net in nets
        ]  # fmt: skip

    plain, recomputed = both(variables)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(recomputed), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_changes_of_nothing_have_finite_gradients():
    changes = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32)
    changes[1, 2] = 0.0
    pull = np.asarray(jax.jit(jax.grad(lambda x: E.contrastive_loss(x).sum()))(changes))
    assert np.isfinite(pull).all() and np.abs(pull[0]).max() > 0
