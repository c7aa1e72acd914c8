"""Spectra stand for the covariances that they were made from."""

import numpy as np
import pytest

from jaxdiff.testing import low_rank
from jaxdiff.testing.spectral import spectrum


def dense(table, d):
    basis = np.tile(np.eye(d), (len(table.variances), 1, 1)) if table.basis is None else table.basis
    matrix = np.einsum("kir,kr,kjr->kij", basis, table.variances, basis)
    if table.rest is not None:
        outside = np.eye(d) - np.einsum("kir,kjr->kij", basis, basis)
        matrix = matrix + table.rest[:, None, None] * outside
    return matrix


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_every_form_is_the_matrix_it_was_given_as(rank):
    rng = np.random.default_rng(rank)
    factor, diagonal = rng.normal(size=(2, 3, rank)), np.array([0.1, 0.7])
    square = factor @ factor.swapaxes(1, 2) + diagonal[:, None, None] * np.eye(3)
    np.testing.assert_allclose(dense(low_rank(factor, diagonal), 3), square, atol=1e-12)
    np.testing.assert_allclose(dense(spectrum(square, 2, (3,)), 3), square, atol=1e-12)
    isotropic = dense(spectrum(diagonal, 2, (3,)), 3)
    np.testing.assert_allclose(isotropic, diagonal[:, None, None] * np.eye(3))
    assert dense(spectrum(np.ones((2, 3, 1)), 2, (3, 1)), 3).shape == (2, 3, 3)


def test_a_direction_without_variance_is_known():
    direction = np.array([[[0.6], [0.8]]])
    assert low_rank(direction, 0.0).singular
    assert not low_rank(direction, 1e-9).singular
    assert spectrum(direction @ direction.swapaxes(1, 2), 1, (2,)).singular
    assert spectrum(np.array([[1.0, 0.0]]), 1, (2,)).singular
