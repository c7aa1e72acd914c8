import numpy as np
import pytest
from scipy.linalg import sqrtm

from jaxdiff.metrics import frechet_distance, kernel_distance, mmd, sliced_wasserstein


def _exact(mean, covariance, n=40):
    """Points whose sample mean and covariance are exactly these."""
    d = len(mean)
    x = np.random.default_rng(0).normal(size=(n, d))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False)).T)
    return x @ np.linalg.cholesky(covariance).T + mean


def test_frechet_distance_of_known_gaussians():
    rng = np.random.default_rng(1)
    a, b = (m @ m.T + 0.1 * np.eye(4) for m in rng.normal(size=(2, 4, 4)))
    means = rng.normal(size=(2, 4))
    expected = np.sum((means[0] - means[1]) ** 2) + np.trace(a + b - 2 * sqrtm(a @ b).real)
    got = frechet_distance(_exact(means[0], a), _exact(means[1], b))
    np.testing.assert_allclose(got, expected, rtol=1e-9)


def test_frechet_distance_of_singular_and_one_dimensional_sets():
    x = np.random.default_rng(0).normal(size=(5, 12))
    np.testing.assert_allclose(frechet_distance(x, x + 2.0), 12 * 4.0, rtol=1e-6)
    line = np.linspace(-1, 1, 11)[:, None]
    expected = (3 * line.std(ddof=1) - line.std(ddof=1)) ** 2 + 0.25
    np.testing.assert_allclose(frechet_distance(line, 3 * line + 0.5), expected, rtol=1e-9)


def test_frechet_distance_does_not_lose_digits_to_singular_covariances():
    rng = np.random.default_rng(3)
    plane = rng.normal(size=(5, 64))  # features that repeat each other, as those of a network may
    x, y = (rng.normal(size=(n, 5)) for n in (90, 80))
    turn = np.linalg.qr(plane.T)[0].T
    np.testing.assert_allclose(frechet_distance(x @ turn, y @ turn), frechet_distance(x, y), rtol=1e-12)
    x = 1e3 * x @ plane
    assert abs(frechet_distance(x, x)) < 1e-12 * np.sum(x.var(0))


def test_frechet_distance_of_long_vectors_needs_no_matrix_of_their_length():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=(8, 4)), 1 + rng.normal(size=(9, 4))
    turn = np.linalg.qr(rng.normal(size=(10_000, 4)))[0].T  # into a plane of a larger space
    np.testing.assert_allclose(frechet_distance(x @ turn, y @ turn), frechet_distance(x, y), rtol=1e-9)


@pytest.mark.parametrize("distance", [kernel_distance, mmd])
def test_unbiased_distances_are_zero_on_average_for_equal_distributions(distance):
    rng = np.random.default_rng(0)
    null = [distance(rng.normal(size=(30, 3)), rng.normal(size=(20, 3))) for _ in range(300)]
    assert abs(np.mean(null)) < 3 * np.std(null) / np.sqrt(300)
    assert min(null) < 0
    shifted = distance(rng.normal(size=(300, 3)), 1 + rng.normal(size=(300, 3)))
    assert shifted > 5 * np.std(null)


def test_kernel_distance_by_hand():
    x, y = np.array([[1.0], [2.0]]), np.array([[0.0], [3.0]])
    k = lambda a, b: (a * b + 1.0) ** 3  # noqa: E731
    expected = k(1, 2) + k(0, 3) - (k(1, 0) + k(1, 3) + k(2, 0) + k(2, 3)) / 2
    np.testing.assert_allclose(kernel_distance(x, y), expected)


def test_mmd_of_gaussians_in_closed_form():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2000, 1)), 1.5 + rng.normal(size=(2000, 1))
    # E k(x, y) = (1 + 2 / w^2)^(-1/2) exp(-m^2 / (2 (w^2 + 2))) with w = 1
    expected = 2 * 3**-0.5 * (1 - np.exp(-(1.5**2) / 6))
    np.testing.assert_allclose(mmd(x, y, bandwidth=1.0), expected, rtol=0.1)


def test_mmd_where_most_pairs_coincide():
    y = np.repeat([0.0, 2.0], [18, 2])[:, None]
    assert mmd(y[::-1], y) == mmd(y, y, bandwidth=2.0)
    with pytest.raises(ValueError, match="expected bandwidth > 0, got 0.0; are the points all equal"):
        mmd(y, y[:9])


def test_sliced_wasserstein_of_a_shift():
    x = np.random.default_rng(0).normal(size=(50, 2))
    # the mean of |cos| over directions, and of cos^2
    np.testing.assert_allclose(sliced_wasserstein(x, x + [3, 0], 20_000), 3 * 2 / np.pi, rtol=0.02)
    got = sliced_wasserstein(x, x + [3, 0], 20_000, order=2)
    np.testing.assert_allclose(got, 3 / np.sqrt(2), rtol=0.02)


def test_sliced_wasserstein_of_sets_of_two_sizes():
    x, y = np.array([[0.0], [1.0]]), np.array([[0.0], [0.0], [3.0]])
    # quantile functions: 0 to 1/2 then 1, and 0 to 2/3 then 3
    np.testing.assert_allclose(sliced_wasserstein(x, y), 1 / 6 + 2 / 3)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(7, 3))
    np.testing.assert_allclose(sliced_wasserstein(x, np.tile(x, (3, 1))), 0.0, atol=1e-12)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance, mmd, sliced_wasserstein])
def test_shapes_that_do_not_fit(distance):
    with pytest.raises(ValueError, match="one dimension"):
        distance(np.zeros((4, 3)), np.zeros((4, 2)))
    with pytest.raises(ValueError, match="2 or more"):
        distance(np.zeros((1, 3)), np.zeros((4, 3)))
