import numpy as np
import pytest

from jaxdiff.metrics import density_coverage, memorisation_share, precision_recall


def _line(*values):
    return np.array(values, float)[:, None]


def test_precision_and_recall_by_hand():
    real, fake = _line(0, 1, 2, 10), _line(0.5, 3.5, 4.5, 30)
    # k = 1: real radii 1, 1, 1, 8; fake radii 3, 1, 1, 25.5
    # fakes inside: .5 (of 0), 3.5 and 4.5 (of 10), not 30
    # reals inside: 0, 1, 2 (of .5), 10 (of 30)
    assert precision_recall(real, fake, k=1) == (0.75, 1.0)
    assert precision_recall(fake, real, k=1) == (1.0, 0.75)


def test_density_and_coverage_by_hand():
    real, fake = _line(0, 1, 2, 10), _line(0.5, 0.6, 40, 50)
    # balls of 1 around 0, 1, 2 and of 8 around 10: .5 is in two, .6 in two
    density, coverage = density_coverage(real, fake, k=1)
    assert (density, coverage) == (1.0, 0.5)


def test_density_and_coverage_of_one_distribution():
    rng = np.random.default_rng(0)
    pairs = [density_coverage(*rng.normal(size=(2, 200, 3))) for _ in range(30)]
    np.testing.assert_allclose(np.mean(pairs, 0), [1.0, 1 - 0.5**5], atol=0.01)


@pytest.mark.parametrize("dimension", [2, 15, 16, 64])
def test_the_neighbour_that_a_ball_reaches_to_is_in_it(dimension):
    """Of exact copies: each ball holds its centre and k others, in any dimension."""
    x = np.random.default_rng(0).normal(size=(203, dimension))
    assert density_coverage(x, x.copy(), k=5) == (6 / 5, 1.0)
    assert precision_recall(x, x[::-1] + 1e-9) == (1.0, 1.0)


def test_too_few_points():
    with pytest.raises(ValueError, match="more than k = 3"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))


def test_memorisation_of_copies_of_held_out_and_of_fresh_data():
    rng = np.random.default_rng(0)
    train, held_out, fresh = (rng.normal(size=(n, 8)) for n in (300, 200, 400))
    assert memorisation_share(train[:200], held_out, train[:200]) == 1.0
    assert memorisation_share(train, held_out, held_out) == 0.0
    # of 300 training examples 200 are drawn: a copy finds its source two times out of three
    share = memorisation_share(train, held_out, train, draws=50)
    np.testing.assert_allclose(share, 2 / 3 + 1 / 3 / 2, atol=0.05)
    shares = [memorisation_share(*rng.normal(size=(3, 200, 8))) for _ in range(10)]
    np.testing.assert_allclose(np.mean(shares), 0.5, atol=0.03)


def test_memorisation_counts_ties_one_half():
    points = np.arange(12.0).reshape(6, 2)
    assert memorisation_share(points, points, points + 0.1) == 0.5
