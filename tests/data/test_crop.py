import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data.crop import Crop, flip

X = np.arange(6 * 5 * 7 * 2, dtype=np.float32).reshape(6, 5, 7, 2) + 1


def cropped(crop, seed):
    work = jax.jit(lambda key, x: crop(jax.random.split(key, 6), x))
    return jax.device_get(work(jax.random.key(seed), X))


@pytest.mark.parametrize("background", [0.0, None])
def test_the_vector_says_how_to_crop_with_numpy(background):
    crop = Crop(pad=2, background=background)
    got, vector = cropped(crop, 3)
    assert got.shape == X.shape and vector.shape == (6, 3)
    assert len({tuple(row) for row in vector}) > 3 and set(vector[:, 0].tolist()) == {0.0, 1.0}
    for image, whole, (mirrored, down, right) in zip(got, X, vector.tolist(), strict=True):
        whole = whole[:, ::-1] if mirrored else whole
        mode = {"mode": "edge"} if background is None else {"constant_values": background}
        padded = np.pad(whole, [(2, 2), (2, 2), (0, 0)], **mode)
        top, left = 2 - round(2 * down), 2 - round(2 * right)
        np.testing.assert_array_equal(image, padded[top : top + 5, left : left + 7])


def test_draws_are_uniform_and_mirror_the_share():
    draw = jax.jit(lambda key: jax.vmap(Crop(pad=1, flip=0.25)._draw)(jax.random.split(key, 4000)))
    mirrored, shift = jax.device_get(draw(jax.random.key(1)))
    np.testing.assert_allclose(mirrored.mean(), 0.25, atol=0.03)
    counts = np.bincount(3 * shift[:, 0] + shift[:, 1] + 4, minlength=9)
    np.testing.assert_allclose(counts / 4000, 1 / 9, atol=0.02)


def test_a_flip_is_a_crop_without_padding():
    got, vector = cropped(flip(1.0), 0)
    np.testing.assert_array_equal(got, X[:, :, ::-1])
    np.testing.assert_array_equal(vector, [[1, 0, 0]] * 6)
    with pytest.raises(ValueError, match="Crop: expected x of shape"):
        flip()(jax.random.split(jax.random.key(0), 3), jnp.zeros((3, 2)))
