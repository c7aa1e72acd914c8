import numpy as np
import pytest

from jaxdiff.data.arrays import Dataset, batch_indices, check_finite, image_scale


def _images(**fields):
    x = np.random.default_rng(0).uniform(0, 16, (50, 4, 4, 1)).astype(np.float32)
    shift, scale = image_scale(x)
    fields = {"value_range": (0.0, 16.0), "levels": 17, **fields}
    return Dataset("a", {"x": x}, {"x": x[:0]}, shift=shift, scale=scale, **fields)


def test_model_scale_is_centred_with_deviation_one_half():
    data = _images()
    x = data.to_model(data.train["x"])
    np.testing.assert_allclose([x.mean(), x.std()], [0.0, 0.5], atol=1e-6)
    np.testing.assert_allclose(data.sigma_data, 0.5, rtol=1e-6)
    assert data.shape == (4, 4, 1)


def test_from_model_inverts_rounds_and_clips():
    values = np.array([-3.0, 0.4, 0.6, 7.49, 15.6, 40.0], np.float32)
    data = _images()
    np.testing.assert_array_equal(data.from_model(data.to_model(values)), [0, 0, 1, 7, 16, 16])
    smooth = _images(levels=None)
    got = smooth.from_model(smooth.to_model(values))
    np.testing.assert_allclose(got, np.clip(values, 0, 16), atol=1e-5)
    free = _images(value_range=None, levels=None)
    np.testing.assert_allclose(free.from_model(free.to_model(values)), values, atol=1e-5)


def test_rounding_follows_a_range_that_does_not_start_at_zero():
    data = _images(value_range=(-1.0, 1.0), levels=5)
    got = data.from_model(data.to_model(np.array([-0.8, -0.7, 0.1, 0.3])))
    np.testing.assert_allclose(got, [-1.0, -0.5, 0.0, 0.5], atol=1e-6)


@pytest.mark.parametrize("size, batch", [(10, 3), (7, 7), (5, 12)])
def test_every_epoch_shows_every_example_once(size, batch):
    steps = 4 * size
    seen = np.concatenate([batch_indices(size, batch, 3, k) for k in range(steps)])
    epochs = seen[: len(seen) // size * size].reshape(-1, size)
    np.testing.assert_array_equal(np.sort(epochs), np.tile(np.arange(size), (len(epochs), 1)))
    assert size == 5 or not np.array_equal(epochs[0], epochs[1])


def test_batches_depend_on_seed_and_step_alone():
    first = batch_indices(1197, 64, 0, 40)
    batch_indices(1197, 64, 0, 39)
    np.testing.assert_array_equal(first, batch_indices(1197, 64, 0, 40))
    assert not np.array_equal(first, batch_indices(1197, 64, 1, 40))
    assert first.shape == (64,)


@pytest.mark.parametrize("arguments", [(0, 1, 0, 0), (5, 0, 0, 0), (5, 1, 0, -1)])
def test_batch_indices_refuses(arguments):
    with pytest.raises(ValueError, match="batch_indices: expected"):
        batch_indices(*arguments)


def test_check_finite_names_the_first_place():
    x = np.zeros((3, 2, 2))
    x[1, 0, 1], x[2, 0, 0] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"here: .*nan at index \(1, 0, 1\) \(2 in all\)"):
        check_finite("here", x)
    assert check_finite("here", x[:1]) is not None
