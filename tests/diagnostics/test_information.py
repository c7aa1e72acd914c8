"""Information from denoising errors, against closed forms."""

import jax
import numpy as np
import pytest

import jaxdiff as jd

VP = jd.processes.VP()


def gaussian(mean, variance):
    """E[x0 | x_t] for x0 ~ N(mean, variance) per example."""

    def denoise(x, t):
        a, _, c = (k[:, None] for k in VP.coefficients(t))
        return mean + a * variance / (a**2 * variance + c**2) * (x - a * mean)

    return denoise


def test_the_information_of_a_gaussian_pair():
    rho = 0.8
    y, noise = np.random.default_rng(0).standard_normal((2, 4000, 1), np.float32)
    x0 = np.float32(rho * y + np.sqrt(1 - rho**2) * noise)
    conditional = gaussian(rho * y, 1 - rho**2)

    def told(key):
        return jd.diagnostics.mutual_information(key, conditional, gaussian(0.0, 1.0), VP, x0, 32)

    i = np.asarray(jax.jit(told)(jax.random.key(1)))
    np.testing.assert_allclose(i.mean(), -0.5 * np.log(1 - rho**2), rtol=0.05)
    exact = -0.5 * np.log(1 - rho**2) - 0.5 * (x0 - rho * y) ** 2 / (1 - rho**2) + 0.5 * x0**2
    assert np.corrcoef(i, exact[:, 0])[0, 1] > 0.8  # also example by example


@pytest.mark.slow
def test_an_exclusive_or_is_all_synergy():
    """x0 is the parity of two fair bits: each alone tells nothing, both tell one bit."""
    bits = np.random.default_rng(0).integers(0, 2, (2000, 2))
    x0 = np.prod(2 * bits - 1, axis=1, keepdims=True).astype(np.float32)
    target = jd.testing.gaussian_mixture(
        np.array([[1.0], [-1.0]]), np.array([1e-4, 1e-4]), np.array([0.5, 0.5])
    )
    free, told = target.denoiser(VP), gaussian(x0, 1e-4)

    @jax.jit
    def parts(x0):
        one, both = (
            jd.diagnostics.mutual_information(jax.random.key(seed), denoise, free, VP, x0, 24)
            for seed, denoise in ((1, free), (2, told))
        )
        return [jd.diagnostics.information_parts(*three) for three in ((one, one, both), (both, both, both))]

    exclusive, copied = parts(x0)
    np.testing.assert_allclose(exclusive.synergy, np.log(2), rtol=0.06)
    alone = [exclusive.redundancy, exclusive.unique_first, exclusive.unique_second]
    np.testing.assert_allclose(alone, 0, atol=1e-6)
    np.testing.assert_allclose(copied.redundancy, np.log(2), rtol=0.06)
    np.testing.assert_allclose(copied.synergy, 0, atol=1e-6)


def test_pointwise_parts_add_up_to_the_information():
    """Of every example: an exclusive or, a copied bit, and two bits of which each is one's own."""
    bit = np.log(2)
    first, second, both = (np.array(part) * bit for part in ([0.0, 1, 1], [0.0, 1, 0], [1.0, 1, 1]))
    h1, h2 = np.array([1.0, 1, 1]) * bit, np.array([1.0, 1, 0]) * bit
    parts = jd.diagnostics.information_parts(first, second, both, (h1, h2))
    expected = [[0.0, 1, 0], [0.0, 0, 1], [0.0, 0, 0], [1.0, 0, 0]]
    np.testing.assert_allclose(np.stack(parts), np.array(expected) * bit, atol=1e-6)
    misled = jd.diagnostics.information_parts(-bit, bit, 0.0, (bit, 3 * bit))
    np.testing.assert_allclose(misled, np.array([-1.0, 0.0, 2.0, -1.0]) * bit, atol=1e-6)
