import jax
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.data.elastic import bitmap

IMAGES = np.float32(jd.data.load("digits").train["x"][:40] / 16.0)


def fresh_keys():
    return jax.random.split(jax.random.key(0), 40)


@jax.jit
def deform(elastic, images):
    return elastic(fresh_keys(), images)


@pytest.mark.slow
def test_a_bitmap_counts_what_the_image_says_and_joins_strokes():
    levels = np.round(IMAGES[0, ..., 0] * 16)
    edge = np.float32([[16.0, 8.0, 0.0]] * 3)  # a straight edge: the half block is filled towards the ink
    ink, of_edge = jax.device_get(jax.jit(lambda *all: [bitmap(v, 4) for v in all])(levels, edge))
    assert ink.shape == (32, 32) and set(np.unique(ink)) == {0.0, 1.0}
    np.testing.assert_array_equal(ink.reshape(8, 4, 8, 4).sum((1, 3)), levels)
    np.testing.assert_array_equal(of_edge[5], [1] * 4 + [1, 1, 0, 0] + [0] * 4)


def test_no_deformation_returns_the_image_and_says_so():
    for elastic in (jd.data.Elastic(probability=0.0), jd.data.Elastic(bend=0.0, rotate=0.0, shear=0.0)):
        x, vector = deform(elastic, IMAGES)
        np.testing.assert_allclose(x, IMAGES, atol=1e-6)
        assert vector.shape == (40, elastic.vector_size)
        assert np.all(vector == 0) == (elastic.probability == 0)


@pytest.mark.slow
def test_grey_levels_stay_whole_and_the_scale_does_not_matter():
    elastic = jd.data.Elastic(bend=0.2)
    x, vector = jax.device_get(deform(elastic, IMAGES))
    np.testing.assert_allclose(16 * x, np.round(16 * x), atol=1e-5)
    assert 0.02 < np.mean(np.abs(x - IMAGES)) < 0.2
    assert abs(x.mean() - IMAGES.mean()) < 0.02
    moved, same = deform(jd.data.Elastic(bend=0.2, limits=(-1.0, 3.0)), 4 * IMAGES - 1)
    np.testing.assert_allclose(moved, 4 * x - 1, atol=1e-5)
    np.testing.assert_array_equal(same, vector)


@pytest.mark.slow
def test_turns_and_slants_keep_the_extent_of_the_ink():
    blank = np.zeros((40, 8, 8, 1), np.float32)
    bar = blank.copy()
    bar[:, 1:7, 3:5] = 1.0
    x = np.asarray(deform(jd.data.Elastic(bend=0.0, rotate=0.3, shear=0.3), bar)[0])
    for image in x:
        rows = np.flatnonzero(image.sum((1, 2)))
        assert (rows[0], rows[-1]) == (1, 6)
    assert np.median(np.abs(x - bar).max((1, 2, 3))) > 0.2
    assert np.all(np.asarray(deform(jd.data.Elastic(), blank)[0]) == 0)


@pytest.mark.slow
def test_an_example_is_its_own_keys_alone():
    elastic = jd.data.Elastic()
    whole = np.asarray(deform(elastic, IMAGES)[0])
    few, _ = jax.jit(lambda elastic, images: elastic(fresh_keys()[5:9], images))(elastic, IMAGES[5:9])
    np.testing.assert_array_equal(whole[5:9], few)


def test_shares_and_sides_out_of_range():
    for wrong, message in (({"probability": 12}, "probability, a share, in"), ({"block": 0}, "block to be")):
        with pytest.raises(ValueError, match=message):
            jd.data.Elastic(**wrong)(fresh_keys(), IMAGES)


def test_wrong_shapes():
    with pytest.raises(ValueError, match=r"\(batch, height, width, 1\) and one key each, got \(40, 8, 8\)"):
        jd.data.Elastic()(fresh_keys(), IMAGES[..., 0])
