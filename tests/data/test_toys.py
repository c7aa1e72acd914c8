import numpy as np
import pytest

import jaxdiff.data as data
from jaxdiff.data.toys import TOYS


@pytest.mark.parametrize("name", TOYS)
def test_toys_are_standardised_and_independent(name):
    toy = data.load(name)
    for part in (toy.train, toy.held_out):
        np.testing.assert_allclose(part["x"].mean(0), 0.0, atol=0.04)
        np.testing.assert_allclose(part["x"].std(), 1.0, rtol=0.02)
        assert part["x"].dtype == np.float32
    assert toy.train["x"].shape == (20_000, 2)
    assert not np.array_equal(toy.train["x"][:10], toy.held_out["x"][:10])
    np.testing.assert_array_equal(toy.train["x"], data.load(name).train["x"])


def test_sizes_and_seed_do_not_move_the_scale():
    small, large = data.load("moons", train=10, seed=3), data.load("moons", train=30, seed=4)
    assert len(small.train["x"]) == 10
    # three lobes of thickness .08 radii: the range of the points is that of the large set's
    assert np.abs(large.train["x"]).max() < 2.5


def test_checkerboard_fills_alternate_squares():
    x = data.load("checkerboard").train["x"]
    square = np.floor(x * (4 / np.sqrt(12)) * 1.0).astype(int)
    inside = np.abs(x).max(1) < 1.7
    assert np.mean((square.sum(1) % 2 == 0)[inside]) > 0.97


def test_eight_gaussians_are_at_their_labels_angle():
    toy = data.load("eight_gaussians")
    assert toy.num_classes == data.load("eight_gaussians", train=3, held_out=2, seed=1).num_classes == 8
    angle = np.arctan2(toy.train["x"][:, 1], toy.train["x"][:, 0]) / (np.pi / 4)
    off = (angle - toy.train["label"] + 4) % 8 - 4
    assert np.mean(np.abs(off) < 0.5) > 0.99


def test_spiral_arms_are_opposite():
    toy = data.load("spirals")
    x, label = toy.train["x"], toy.train["label"]
    centres = np.stack([x[label == k].mean(0) for k in (0, 1)])
    np.testing.assert_allclose(centres[0], -centres[1], atol=0.05)
    assert np.abs(centres[0]).max() > 0.1


@pytest.mark.parametrize("options", [{"train": 0}, {"held_out": 0}, {"seed": -1}])
def test_sizes_and_seeds_out_of_range(options):
    with pytest.raises(ValueError, match=f"expected {next(iter(options))} of at least"):
        data.load("moons", **options)
