"""The empirical distribution against the mixture it is the limit of, and its own limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import processes, testing

POINTS = np.random.default_rng(0).normal(size=(37, 4))
WEIGHTS = np.random.default_rng(1).uniform(0.1, 1.0, size=37)


@pytest.mark.parametrize("working_set", [2**22, 100])
def test_equals_a_mixture_without_variance_whatever_the_chunks(working_set, x64):
    target = testing.empirical(POINTS, WEIGHTS)
    target.working_set = working_set
    mixture = testing.gaussian_mixture(POINTS, 0.0, WEIGHTS)
    x = np.random.default_rng(2).normal(size=(6, 4))
    process = processes.VP()
    times = np.linspace(0.05, 1.0, 6)

    def everything(each):
        names = ["denoiser", "score"]
        parts = [getattr(each, name)(process)(x, times) for name in names]
        return *parts, each.denoiser(process)(x, 0.3), each.log_prob(process, x, times)

    found, expected = (jax.jit(lambda t=t: everything(t))() for t in (target, mixture))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-9)
    chunks = target._chunks(jnp.asarray(x))[0].shape[0]
    assert chunks == (1 if working_set > 1000 else 10)


def test_score_is_the_gradient_of_log_prob(x64):
    target = testing.empirical(POINTS, WEIGHTS)
    x = jnp.asarray(np.random.default_rng(3).normal(size=(5, 4)))
    gradient = jax.grad(lambda x: target.log_prob(processes.EDM(), x, 0.4).sum())
    score = target.score(processes.EDM())
    np.testing.assert_allclose(*jax.jit(lambda x: (score(x, 0.4), gradient(x)))(x), rtol=1e-8)


def test_without_noise_the_answer_is_the_nearest_point_and_gradients_are_finite():
    target = testing.empirical(POINTS)
    x = np.float32(POINTS[:8] + 0.01)
    denoise = jax.jit(target.denoiser(processes.RectifiedFlow()))
    np.testing.assert_allclose(denoise(x, 0.0), POINTS[:8], rtol=1e-6)
    assert np.isfinite(jax.jit(jax.grad(lambda x: denoise(x, 0.0).sum()))(x)).all()
    mean = np.tile(POINTS.mean(0), (8, 1))
    np.testing.assert_allclose(denoise(x, 1.0), mean, rtol=1e-4, atol=1e-6)


def test_samples_are_points_in_the_proportion_of_their_weights():
    weights = np.array([0.0, 1.0, 3.0])
    target = testing.empirical(POINTS[:3].reshape(3, 2, 2), weights)
    x = np.asarray(jax.jit(lambda: target.sample(jax.random.key(0), 4000))()).reshape(-1, 1, 4)
    which = np.abs(x - POINTS[None, :3]).max(-1).argmin(-1)
    counts = np.bincount(which, minlength=3)
    assert counts[0] == 0 and abs(counts[2] / 4000 - 0.75) < 0.03


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="finite points"):
        testing.empirical([[np.inf]])
    with pytest.raises(ValueError, match="expected weights of shape"):
        testing.empirical(POINTS, np.ones(3))
    with pytest.raises(ValueError, match="no density"):
        testing.empirical(POINTS).log_prob(processes.VP(), POINTS, 0.0)
