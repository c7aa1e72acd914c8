import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.data.augment import Affine, warp

_jitted_warp = jax.jit(warp, static_argnames="background")
_jitted_apply = jax.jit(Affine._apply)


def _ramp(height=8, width=6):
    """Image whose value at (row, column) is 10 row + column."""
    row, column = np.mgrid[:height, :width]
    return (10.0 * row + column).astype(np.float32)[..., None]


def _noise(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _moved(image, *shift, **options):
    return np.asarray(_jitted_warp(image, np.eye(2, dtype=np.float32), np.float32(shift), **options))


def _applied(affine, image, index):
    """What the one map, drawn as one standard deviation, makes of an image."""
    return np.asarray(_jitted_apply(affine, image, np.eye(6, dtype=np.float32)[index]))


def test_no_map_is_the_identity():
    x = _noise(0, (7, 5, 3))
    np.testing.assert_allclose(_moved(x, 0, 0), x, atol=1e-6)


@pytest.mark.slow
def test_whole_pixel_shift_moves_down_and_right_over_the_background():
    got = _moved(_ramp(), 2, 1, background=-1.0)[..., 0]
    np.testing.assert_allclose(got[2:, 1:], _ramp()[:-2, :-1, 0], atol=1e-5)
    np.testing.assert_allclose(got[:2], -1.0)
    np.testing.assert_allclose(got[:, :1], -1.0)
    edge = _moved(_ramp(), 0, 1)[..., 0]
    np.testing.assert_allclose(edge[:, 0], _ramp()[:, 0, 0], atol=1e-5)


def test_half_pixels_are_exact_on_quadratics():
    x = np.tile((np.arange(12, dtype=np.float32) ** 2).reshape(12, 1, 1), (1, 12, 1))
    got = _moved(x, 0.5, 0)[3:-3, 3:-3, 0]
    expected = (np.arange(12.0) - 0.5)[3:-3, None] ** 2 + np.zeros((1, 6))
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def test_a_quarter_turn_is_rot90():
    x = _noise(1, (6, 6, 2))
    np.testing.assert_allclose(_applied(Affine(rotate=np.pi / 2), x, 2), np.rot90(x), atol=1e-5)


@pytest.mark.parametrize("index, field", [(3, "scale"), (4, "stretch")])
def test_scale_enlarges_and_stretch_makes_taller(index, field):
    affine = Affine(**{field: (2 if field == "stretch" else 1) * math.log(1.5)})
    got = _applied(affine, _ramp(9, 9), index)[..., 0]
    rows, columns = got[5, 4] - got[4, 4], got[4, 5] - got[4, 4]
    np.testing.assert_allclose(rows, 10 / 1.5, rtol=1e-4)
    np.testing.assert_allclose(columns, 1 / 1.5 if field == "scale" else 1.5, rtol=1e-4)


def test_shear_moves_lower_rows_right():
    got = _applied(Affine(shear=1.0), _ramp(9, 9), 5)[..., 0]
    np.testing.assert_allclose(got[5, 4], 50.0 + 3.0, atol=1e-4)
    np.testing.assert_allclose(got[4, 4], 40.0 + 4.0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.keys_again
def test_the_vector_says_what_was_done_by_each_examples_own_key():
    x = _noise(2, (4, 8, 8, 1))
    keys = jax.random.split(jax.random.key(3), 4)
    affine = Affine(probability=0.5, background=0.0)
    run = jax.jit(lambda affine, keys, x: affine(keys, x))
    got, vector = jax.device_get(run(affine, keys, x))
    assert vector.shape == (4, 6)
    np.testing.assert_allclose(got[2], _jitted_apply(affine, x[2], vector[2]), atol=1e-5)
    flipped, _ = jax.device_get(run(affine, keys[::-1], x[::-1]))
    np.testing.assert_allclose(flipped[::-1], got, atol=1e-6)
    same, none = Affine(probability=0.0)(keys, x)
    np.testing.assert_allclose(same, x, atol=1e-6)
    np.testing.assert_array_equal(none, 0.0)


def test_draws_are_standard_normal_with_the_given_probability():
    draw = jax.vmap(Affine(probability=0.3)._draw)
    vector = np.asarray(jax.jit(lambda key: draw(jax.random.split(key, 4000)))(jax.random.key(4)))
    on = vector != 0
    np.testing.assert_allclose(on.mean(0), 0.3, atol=0.03)
    np.testing.assert_array_equal(on[:, 0], on[:, 1])
    np.testing.assert_allclose(vector[on].std(), 1.0, atol=0.05)


def test_refuses_what_is_no_image():
    with pytest.raises(ValueError, match="Affine: expected x of shape"):
        Affine()(jax.random.split(jax.random.key(0), 3), jnp.zeros((3, 2)))


def test_limits_clip_the_overshoot_of_interpolation():
    x = np.repeat(np.float32([0, 1]), 4)[:, None, None] * np.ones((1, 8, 1), np.float32)
    loose, tight = (_applied(Affine(limits=limits), x, 0) for limits in (None, (0.0, 1.0)))
    assert loose.max() > 1.02 and loose.min() < -0.02
    np.testing.assert_allclose(tight, np.clip(loose, 0, 1))
