import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data.edm import EDMAugment, _vector

ROW, COLUMN = np.mgrid[:9, :9] - 4.0
EDM = EDMAugment(scale=1.0, stretch=1.0, shift=1 / 9)
apply = jax.jit(jax.vmap(EDM._apply, (None, 0)))


def _at(image, row, column):
    return image[4 + row, 4 + column]


def test_each_map_moves_the_picture_as_displayed():
    draws = np.zeros((8, 8), np.float32)
    for i, (number, value) in enumerate(
        [(0, 1), (1, 1), (2, 1), (3, np.pi / 2), (5, 1), (6, 2), (7, 1), (4, 1.3)]
    ):
        draws[i, number] = value
    picture = np.random.default_rng(0).normal(size=(9, 9, 1)).astype(np.float32)
    got = np.asarray(apply(picture, draws))[..., 0]
    left, down, scaled, turned, stretched, right, lower, nothing = got
    picture = picture[..., 0]
    np.testing.assert_allclose(nothing, picture, atol=1e-5)
    np.testing.assert_allclose(left, picture[:, ::-1], atol=1e-5)
    np.testing.assert_allclose(down, picture[::-1], atol=1e-5)
    np.testing.assert_allclose(turned, np.rot90(picture), atol=1e-5)  # by -pi / 2 towards down: up
    np.testing.assert_allclose(right[:, 2:], picture[:, :-2], atol=1e-5)
    np.testing.assert_allclose(right[:, 0], picture[:, 2], atol=1e-5)  # mirrored at the border
    np.testing.assert_allclose(lower[1:], picture[:-1], atol=1e-5)
    np.testing.assert_allclose(_at(scaled, 4, -2), _at(picture, 2, -1), atol=1e-5)  # twice as large
    np.testing.assert_allclose(_at(stretched, 1, 4), _at(picture, 2, 2), atol=1e-5)  # wide and low


def test_maps_follow_one_another_as_displayed():
    draws = np.array([[1, 0, 0.3, 0.4, 0.7, -0.5, 0.6, -1.1]], np.float32)
    got = np.asarray(apply(np.stack([ROW, COLUMN], -1).astype(np.float32), draws))[0]

    def rotation(angle):
        return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])

    a0, a1, a2, a3, a4, a5, a6, a7 = draws[0].astype(float)
    stretch = rotation(-a4) @ np.diag([2**a5, 2**-a5]) @ rotation(a4)
    forward = stretch @ rotation(-a3) * 2**a2 @ np.diag([1 - 2 * a0, 1 - 2 * a1])
    for place in ([0, 0], [1, 1], [-1, 0]):  # right, down
        right, down = np.linalg.solve(forward, np.array(place) - [a6, a7])
        np.testing.assert_allclose(_at(got, place[1], place[0]), [down, right], atol=1e-4)


def test_the_vector_tells_the_draws_and_zero_tells_none():
    a = np.array([1, 0, 0.3, 0.4, 0.7, -0.5, 0.6, -1.1])
    expected = [1, 0, 0.3, np.cos(0.4) - 1, np.sin(0.4), -0.5 * np.cos(0.7), -0.5 * np.sin(0.7), 0.6, -1.1]
    told, none = jax.jit(jax.vmap(_vector))(np.stack([a, np.zeros(8)]).astype(np.float32))
    np.testing.assert_allclose(told, expected, atol=1e-6)
    np.testing.assert_array_equal(none, np.zeros(9))


def test_draws_have_the_probabilities_and_the_distributions():
    draw = jax.vmap(EDMAugment(probability=0.2, shift=0.0)._draw)
    draws = np.asarray(jax.jit(lambda key: draw(jax.random.split(key, 8000)))(jax.random.key(0)))
    on = draws != 0
    np.testing.assert_allclose(on.mean(0), [0.5, 0.1, 0.2, 0.2, 0.1, 0.2, 0, 0], atol=0.02)
    assert not np.any(on[:, 4] & ~on[:, 5])
    np.testing.assert_allclose(draws[on[:, 2], 2].std(), 1.0, atol=0.06)
    for angle in (3, 4):
        np.testing.assert_allclose(np.quantile(draws[on[:, angle], angle], [0, 0.25, 1]),
                                   [-np.pi, -np.pi / 2, np.pi], atol=0.2)
    np.testing.assert_allclose(np.corrcoef(on[:, [0, 1, 2, 3, 5]].T), np.eye(5), atol=0.05)


@pytest.mark.keys_again
def test_each_example_has_its_own_key_and_limits_hold():
    x = np.random.default_rng(2).normal(size=(4, 9, 9, 1)).clip(-1, 1).astype(np.float32)
    keys = jax.random.split(jax.random.key(3), 4)
    augment = EDM.replace(probability=0.9, mirror=False, limits=(-1.0, 1.0))
    run = jax.jit(lambda augment, keys, x: augment(keys, x))
    got, vector = jax.device_get(run(augment, keys, x))
    again, _ = jax.device_get(run(augment, keys[::-1], x[::-1]))
    np.testing.assert_allclose(again[::-1], got, atol=1e-6)
    assert vector.shape == (4, 9) and np.abs(got).max() == 1.0 and np.abs(got - x).max() > 0.5
    same, none = run(augment.replace(probability=0.0), keys, x)
    np.testing.assert_allclose(same, x, atol=1e-5)
    np.testing.assert_array_equal(none, 0)
    with pytest.raises(ValueError, match="EDMAugment: expected x of shape"):
        augment(keys, x[..., 0])


@pytest.mark.slow
@pytest.mark.keys_again
def test_a_network_that_is_told_samples_no_mirrored_image():
    import jaxdiff as jd
    from jaxdiff import training

    rng = np.random.default_rng(0)
    x = np.zeros((256, 4, 4, 1), np.float32) + 0.1 * rng.normal(size=(256, 4, 4, 1)).astype(np.float32)
    x[:, :, :2] += 0.5
    x[:, :, 2:] -= 0.5  # bright on the left
    mlp = jd.models.build("MLP-S", sample_shape=(16,), width=64, vector_size=9)
    process, parameterization = jd.processes.EDM(), jd.parameterizations.edm(sigma_data=0.5)

    class Net:
        def apply(self, params, x, c_noise, condition=None, keys=None):
            return mlp.apply(params, x.reshape(-1, 16), c_noise, condition, keys=keys).reshape(x.shape)

    def bright_left(told):
        augment = EDMAugment(probability=0.1)
        change = augment if told else lambda keys, x: (augment(keys, x)[0], jnp.zeros((len(x), 9)))
        loss = training.denoising_objective(Net(), process, parameterization, augment=change)
        params = training.init_params(mlp, jax.random.key(0), (16,))
        state = training.fit(
            params, loss, {"x": x}, steps=200, batch_size=64, optimizer=training.adamw(3e-3),
            progress=False, parallel="jit",
        )

        def net(x, c_noise):
            return Net().apply({"params": state.params}, x, c_noise, {"vector": jnp.zeros((len(x), 9))})

        got = jd.sample(
            jax.random.split(jax.random.key(1), 500), jd.denoiser(net, process, parameterization), process,
            jd.solvers.dpmpp_multistep(2), jd.grids.karras(process, steps=12), shape=(4, 4, 1),
        )
        return float(np.mean(got[:, :, :2].mean((1, 2, 3)) > got[:, :, 2:].mean((1, 2, 3))))

    assert bright_left(told=True) > 0.98
    assert 0.2 < bright_left(told=False) < 0.8
