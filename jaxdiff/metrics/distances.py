"""Distances between two sets of vectors."""

import numpy as np

from jaxdiff.core import check_count, check_positive


def pair(where, x, y, least=2):
    """Two finite sets of vectors in float64; ValueError for anything else."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1]:
        raise ValueError(
            f"{where}: expected two arrays (n, dimension) of one dimension, "
            f"got {x.shape} and {y.shape}; flatten each example"
        )
    if min(len(x), len(y)) < least:
        raise ValueError(f"{where}: expected {least} or more vectors a side, got {len(x)} and {len(y)}")
    for side, points in (("first", x), ("second", y)):
        bad = np.flatnonzero(~np.isfinite(points).all(1))
        if bad.size:
            raise ValueError(f"{where}: expected finite vectors, got another in row {bad[0]} of the {side}")
    return x, y


def frechet_distance(x, y):
    """Squared Wasserstein-2 distance between the Gaussians fitted to two sets of features.

        |m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2))

    Heusel et al. (2017), arXiv:1706.08500, eq. 6. It is biased upwards by the sets' finite size:
    compare it with its floor, the distance between two real sets of that size.

    Args:
      x, y: (n, d) and (m, d) features.
    """
    x, y = pair("frechet_distance", x, y)
    gap = x.mean(0) - y.mean(0)
    # C_x = A^T A: the root's trace is the sum of the singular values of A B^T, without the square root of an
    # eigenvalue that is 0 but for rounding.
    a, b = (np.linalg.qr((z - z.mean(0)) / np.sqrt(len(z) - 1), mode="r") for z in (x, y))
    return float(gap @ gap + np.sum(a**2) + np.sum(b**2) - 2.0 * np.linalg.norm(a @ b.T, "nuc"))


def _unbiased_mmd2(k_xx, k_yy, k_xy):
    """Squared MMD by the U-statistic of Gretton et al. (2012), eq. 3: no diagonal terms."""
    n, m = k_xy.shape
    within_x = (k_xx.sum() - np.trace(k_xx)) / (n * (n - 1))
    within_y = (k_yy.sum() - np.trace(k_yy)) / (m * (m - 1))
    return float(within_x + within_y - 2.0 * k_xy.mean())


def kernel_distance(x, y):
    """Unbiased squared MMD with the cubic kernel `(x . y / d + 1)^3` on features.

    Binkowski et al. (2018), arXiv:1801.01401, sec. 4 (KID). Zero on average for equal
    distributions, so it may be negative; stratified labels push it below zero.

    Args:
      x, y: (n, d) and (m, d) features.
    """
    x, y = pair("kernel_distance", x, y)

    def kernel(a, b):
        return (a @ b.T / x.shape[1] + 1.0) ** 3

    return _unbiased_mmd2(kernel(x, x), kernel(y, y), kernel(x, y))


def mmd(x, y, bandwidth=None):
    """Unbiased squared MMD with the Gaussian kernel `exp(-|x - y|^2 / (2 bandwidth^2))`.

    Gretton et al. (2012), JMLR 13. Zero on average for equal distributions.

    Args:
      x, y: (n, d) and (m, d).
      bandwidth: of the kernel; by default the median distance within `y` (the reference set); where half
        of its pairs or more coincide, the mean distance of the others.
    """
    from scipy.spatial.distance import cdist, pdist

    x, y = pair("mmd", x, y)
    if bandwidth is None:
        apart = pdist(y)
        bandwidth = float(np.median(apart) or apart.sum() / max(np.count_nonzero(apart), 1))
    if not bandwidth > 0:
        raise ValueError(f"mmd: expected bandwidth > 0, got {bandwidth}; are the points all equal?")

    def kernel(a, b):
        return np.exp(-0.5 * cdist(a, b, "sqeuclidean") / bandwidth**2)

    return _unbiased_mmd2(kernel(x, x), kernel(y, y), kernel(x, y))


def sliced_wasserstein(x, y, projections=256, order=1, seed=0):
    """Mean over random directions of the one-dimensional Wasserstein distances, to the power 1/p.

        (mean_u integral_0^1 |F_x,u^-1(q) - F_y,u^-1(q)|^p dq)^(1/p)

    Bonneel et al. (2015), J. Math. Imaging Vis. 51. Exact for sets of any two sizes.

    Args:
      x, y: (n, d) and (m, d).
      projections: number of directions.
      order: p.
      seed: of the directions.
    """
    x, y = pair("sliced_wasserstein", x, y)
    check_count("sliced_wasserstein", projections=projections)
    check_positive("sliced_wasserstein", order=order)
    directions = np.random.default_rng(seed).standard_normal((x.shape[1], projections))
    directions /= np.linalg.norm(directions, axis=0)
    # Both quantile functions are constant between the union of their jumps.
    jumps = np.union1d(np.arange(1, len(x) + 1) / len(x), np.arange(1, len(y) + 1) / len(y))
    widths = np.diff(jumps, prepend=0.0)
    middles = jumps - 0.5 * widths
    at_x = np.sort(x @ directions, 0)[np.minimum((middles * len(x)).astype(int), len(x) - 1)]
    at_y = np.sort(y @ directions, 0)[np.minimum((middles * len(y)).astype(int), len(y) - 1)]
    return float((widths @ np.abs(at_x - at_y) ** order).mean() ** (1.0 / order))
