"""Covariances as their spectra, worked out once on the host in float64."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Spectrum:
    """The covariances of K components, `S_k = U_k diag(variances_k) U_k^T + rest_k (I - U_k U_k^T)`.

    Then `a^2 S_k + c^2 I` is diagonal in the same basis for every `a` and `c`, so nothing has to be
    factorised again at any time of any process.

    Attributes:
      basis: `(K, d, r)` orthonormal columns, or None for the coordinate axes (`r = d`).
      variances: `(K, r)`, at least 0.
      rest: `(K,)` variance outside the basis; None where the basis is complete.
    """

    basis: np.ndarray | None
    variances: np.ndarray
    rest: np.ndarray | None = None

    @property
    def singular(self):
        """Whether some component has no variance in some direction."""
        smallest = self.variances.min(initial=np.inf)
        return smallest == 0 or (self.rest is not None and self.rest.min() == 0)


def low_rank(factor, diagonal):
    """The covariances `factor_k factor_k^T + diagonal_k I`, of which no d x d matrix is formed.

    Args:
      factor: `(K, d, r)`, or `(d, r)` for one component; `d` counts the values of one example.
      diagonal: `(K,)` or scalar, at least 0: the variance added in every direction.

    Returns:
      What `gaussian_mixture` and `gaussian` take as covariances.

    Raises:
      ValueError: for other shapes, or a negative diagonal.
    """
    factor = np.asarray(factor, np.float64)
    factor = factor[None] if factor.ndim == 2 else factor
    diagonal = np.asarray(diagonal, np.float64)
    if factor.ndim != 3 or diagonal.shape not in ((), factor.shape[:1]):
        raise ValueError(
            "low_rank: expected factor (K, d, r) and diagonal (K,) or scalar, got "
            f"{factor.shape} and {diagonal.shape}; for a diagonal per value give the full covariance"
        )
    if not (np.isfinite(factor).all() and (diagonal >= 0).all()):
        raise ValueError("low_rank: expected a finite factor and a diagonal of at least 0")
    basis, scales, _ = np.linalg.svd(factor, full_matrices=False)
    rest = np.broadcast_to(diagonal, factor.shape[:1])
    complete = basis.shape[-1] == basis.shape[-2]
    return Spectrum(basis, scales**2 + rest[:, None], None if complete else rest)


def spectrum(covariances, count, event):
    """Reads covariances by their shape; see `gaussian_mixture`."""
    size = int(np.prod(event))
    if isinstance(covariances, Spectrum):
        found = (len(covariances.variances), covariances.basis.shape[1])
        if found != (count, size):
            raise ValueError(
                f"gaussian_mixture: expected low_rank covariances of {count} components and {size} "
                f"values, got {found[0]} and {found[1]}"
            )
        return covariances
    covariances = np.asarray(covariances, np.float64)
    if not np.isfinite(covariances).all():
        raise ValueError("gaussian_mixture: expected finite covariances, got NaN or infinity")
    if covariances.shape == (count, size, size) and size > 1:
        return _full(covariances)
    if covariances.shape in ((), (count,)):
        variances = np.broadcast_to(covariances.reshape(-1, 1), (count, size))
    elif covariances.size == count * size and covariances.shape[0] == count:
        variances = covariances.reshape(count, size)
    else:
        raise ValueError(
            f"gaussian_mixture: expected covariances of shape ({count},), ({count}, {size}) or "
            f"({count}, {size}, {size}), or low_rank(factor, diagonal), got {covariances.shape}"
        )
    if variances.min() < 0:
        raise ValueError(f"gaussian_mixture: expected variances >= 0, got {variances.min()}")
    return Spectrum(None, np.array(variances))


def _full(covariances):
    scale = np.abs(covariances).max(axis=(1, 2))
    skew = np.abs(covariances - covariances.swapaxes(1, 2)).max(axis=(1, 2))
    variances, basis = np.linalg.eigh(covariances)
    if (skew > 1e-6 * scale).any() or (variances[:, 0] < -1e-6 * scale).any():
        raise ValueError(
            "gaussian_mixture: expected symmetric positive semi-definite covariances, got asymmetry "
            f"{skew.max():.3g} and least eigenvalue {variances.min():.3g}"
        )
    # What rounding leaves of a zero eigenvalue is a zero, or the density would be made of noise.
    floor = 8 * np.finfo(np.float64).eps * covariances.shape[1] * variances[:, -1:]
    return Spectrum(basis, np.where(variances > floor, variances, 0.0))
