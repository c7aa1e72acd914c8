"""Score matching without a denoiser, on a density whose score is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

SM = jd.losses.score_matching
PRECISION = np.float32([[2.0, 0.5], [0.5, 1.0]])
X = np.random.default_rng(0).multivariate_normal([0, 0], np.linalg.inv(PRECISION), 50000).astype(np.float32)


def energy(x, scale=1.0):
    return 0.5 * scale * jnp.einsum("ni,ij,nj->n", x, PRECISION, x)


def test_scores_of_energies():
    np.testing.assert_allclose(jax.jit(SM.score_of(energy))(X[:5]), -X[:5] @ PRECISION, rtol=1e-4, atol=1e-5)


def test_implicit_equals_explicit_up_to_a_constant():
    exact = -X @ PRECISION
    constant = 0.5 * np.trace(PRECISION)  # E |score|^2 / 2

    @jax.jit
    def means(scale):
        score = SM.score_of(lambda x: energy(x, scale))
        return SM.explicit(score, X, exact).mean(), SM.implicit(score, X).mean()

    for scale in (0.7, 1.0, 1.3):
        explicit, implicit = (float(mean) for mean in means(scale))
        np.testing.assert_allclose(explicit - implicit, constant, rtol=0.03)
        np.testing.assert_allclose(explicit, (1 - scale) ** 2 * constant, rtol=0.03, atol=1e-6)


def test_sliced_is_unbiased():
    score = lambda x: jnp.tanh(x) @ PRECISION  # noqa: E731
    few = X[:64]

    @jax.jit
    def both(key):
        estimates = jax.vmap(lambda k: SM.sliced(score, k, few, 4))(jax.random.split(key, 800))
        return jnp.mean(estimates, 0), SM.implicit(score, few)

    np.testing.assert_allclose(*both(jax.random.key(1)), atol=0.2)
    with pytest.raises(ValueError, match="probes"):
        SM.sliced(score, jax.random.key(0), few, 0)
