"""Quality by nearest neighbours: fidelity, diversity and memorisation."""

import numpy as np

from jaxdiff.core import check_count
from jaxdiff.metrics.distances import pair


def _nearest(points, queries):
    """(len(queries),) distances to the nearest of `points`."""
    from sklearn.neighbors import NearestNeighbors

    return NearestNeighbors(n_neighbors=1).fit(points).kneighbors(queries)[0][:, 0]


def _radii(points, k):
    """How far it is from each point to its k-th nearest other one, of which its ball is made."""
    from scipy.spatial.distance import pdist, squareform

    apart = squareform(pdist(points))
    apart.partition(k, axis=1)
    return apart[:, k].copy()  # not a view, which would keep the rest


def _sets(where, real, fake, k):
    """Both sets, and the (fake, real) distances between them: rounded as those that radii are of."""
    from scipy.spatial.distance import cdist

    check_count(where, k=k)
    real, fake = pair(where, real, fake, least=1)
    if min(len(real), len(fake)) <= k:
        raise ValueError(
            f"{where}: expected more than k = {k} vectors a side, got {len(real)} and {len(fake)}"
        )
    return real, fake, cdist(fake, real)


def precision_recall(real, fake, k=3):
    """Share of fakes in the balls of the real points, and of real points in those of the fakes.

    Kynkaanniemi et al. (2019), arXiv:1904.06991, eq. 1 and 2.

    Args:
      real, fake: (n, d) and (m, d) features.
      k: the neighbour that a ball reaches to.

    Returns:
      (precision, recall).
    """
    real, fake, apart = _sets("precision_recall", real, fake, k)
    precision = (apart <= _radii(real, k)).any(1).mean()
    recall = (apart.T <= _radii(fake, k)).any(1).mean()
    return float(precision), float(recall)


def density_coverage(real, fake, k=5):
    """Mean number of real balls around a fake, over k, and share of real balls holding a fake.

    Naeem et al. (2020), arXiv:2002.09797, eq. 5 and 6. For equal distributions density is 1 and
    coverage `1 - (n - 1) ... (n - k) / ((2n - 1) ... (2n - k))`, .97 at k = 5.

    Args:
      real, fake: (n, d) and (m, d) features.
      k: the neighbour that a ball reaches to.

    Returns:
      (density, coverage).
    """
    real, _, apart = _sets("density_coverage", real, fake, k)
    inside = apart <= _radii(real, k)
    return float(inside.sum(1).mean() / k), float(inside.any(0).mean())


def memorisation_share(train, held_out, fake, draws=8, seed=0):
    """Share of fakes nearer to a training example than to a held-out one: 1/2 means none.

    Training examples are drawn without replacement to the number of held-out ones (or the other
    way round), since of two sets of one distribution the larger one is nearer; the share is
    averaged over several draws. Ties count one half. After Meehan et al. (2020),
    arXiv:2004.05675.

    Args:
      train, held_out, fake: (n, d), (m, d), (k, d) vectors; pixels show copies best.
      draws: of the larger set.
      seed: of the draws.
    """
    check_count("memorisation_share", draws=draws)
    train, held_out = pair("memorisation_share", train, held_out, least=1)
    train, fake = pair("memorisation_share", train, fake, least=1)
    size = min(len(train), len(held_out))
    rng = np.random.default_rng(seed)

    def distance(points):
        return _nearest(points[rng.permutation(len(points))[:size]], fake)

    share = 0.0
    for _ in range(draws):
        to_train, to_held_out = distance(train), distance(held_out)
        share += np.mean(to_train < to_held_out) + 0.5 * np.mean(to_train == to_held_out)
    return float(share / draws)
