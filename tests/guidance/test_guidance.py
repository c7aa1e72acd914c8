import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 5)), jnp.float32)


def cond(x, t):
    return 0.8 * x + 0.1


def uncond(x, t):
    return 0.5 * x - 0.2


def test_classifier_free_extrapolates_between_clean_estimates():
    x = np.asarray(X)
    out = jd.guidance.classifier_free(cond, uncond, scale=3.0)(X, 0.5)
    np.testing.assert_allclose(out, uncond(x, 0) + 3 * (cond(x, 0) - uncond(x, 0)), rtol=1e-6)
    scales = jnp.array([0.0, 1.0, 2.0, 3.0])
    out = np.asarray(jd.guidance.classifier_free(cond, uncond, scales)(X, 0.5))
    np.testing.assert_allclose(out[0], uncond(x[0], 0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(out[1], cond(x[1], 0), rtol=1e-5, atol=1e-6)
    assert jd.guidance.classifier_free(cond, uncond, 1.0) is cond
    assert jd.guidance.classifier_free(cond, uncond, 0) is uncond


def test_guidance_is_the_tilted_score_of_a_gaussian():
    """For N(m, 1) against N(0, 1) the guided estimate is that of N(scale m, 1)."""
    process, t, m, scale = jd.processes.VP(), 0.4, 0.7, 2.5
    positive, negative, tilted = (
        jd.testing.gaussian(np.full(2, mean), np.ones(2)).denoiser(process) for mean in (m, 0, scale * m)
    )
    x = np.random.default_rng(1).normal(size=(6, 2)).astype(np.float32)
    guided = jd.guidance.classifier_free(positive, negative, scale)
    found, expected = jax.jit(lambda x: (guided(x, t), tilted(x, t)))(x)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_logits_of_tokens_are_guided_to_the_tilted_law():
    """p_u^(1 - s) p_c^s, also where both hold a token for impossible; scales are not rounded to integers."""
    x = jnp.zeros((3, 2), jnp.int32)
    cond, uncond = (
        lambda x, t, p=p: jnp.broadcast_to(jnp.log(jnp.array(p)), (*x.shape, 4))
        for p in ([0.2, 0.5, 0.3, 0.0], [0.4, 0.4, 0.2, 0.0])
    )
    scales = np.array([0.5, 1.0, 2.5])
    u, c = np.array([0.4, 0.4, 0.2]), np.array([0.2, 0.5, 0.3])
    exact = np.pad(u ** (1 - scales[:, None]) * c ** scales[:, None], ((0, 0), (0, 1)))
    exact = np.broadcast_to((exact / exact.sum(1, keepdims=True))[:, None], (3, 2, 4))
    every = (
        jd.guidance.classifier_free(cond, uncond, jnp.asarray(scales)),
        jd.guidance.composed(uncond, [cond], [jnp.asarray(scales)]),
        jd.guidance.chained([uncond, cond], [jnp.asarray(scales)]),
    )
    for found in jax.jit(lambda x: [jax.nn.softmax(guided(x, 0.5)) for guided in every])(x):
        np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)


def test_logits_at_both_ends_are_those_of_one_side():
    """Scales 0 and 1, of tokens that one side alone holds for impossible: neither 0 inf nor inf - inf."""
    x, ends = jnp.zeros((2, 1), jnp.int32), jnp.array([0.0, 1.0])
    logits = np.float32([[-np.inf, *np.log([0.4, 0.6])], [*np.log([0.2, 0.8]), -np.inf]])

    def guided(logits, make):
        sides = (lambda x, t, one=one: jnp.broadcast_to(one, (*x.shape, 3)) for one in logits)
        return make(*sides)(x, 0.5)

    every = (
        lambda u, c: jd.guidance.classifier_free(c, u, ends),
        lambda u, c: jd.guidance.classifier_free(c, u, lambda t: ends),
        lambda u, c: jd.guidance.composed(u, [c, c], [ends, 0 * ends]),
        lambda u, c: jd.guidance.chained([u, c, c], [ends, ends]),
    )

    def score(logits, make):
        out = guided(logits, make)
        return jnp.sum(jax.nn.softmax(out)[..., 1] ** 2), out

    both = jax.jit(lambda v: [jax.grad(score, has_aux=True)(v, make) for make in every])
    for pull, out in both(logits):
        np.testing.assert_allclose(np.asarray(out)[:, 0], logits, rtol=1e-6)
        assert np.isfinite(pull).all() and np.abs(pull).max() > 0


def test_interval_guides_inside_only():
    guided = jd.guidance.classifier_free(cond, uncond, 3.0, interval=(0.2, 0.6))
    full = jd.guidance.classifier_free(cond, uncond, 3.0)
    inside = np.asarray(full(X, 0.3))
    for t, expected in [(0.1, cond(X, 0)), (0.2, inside), (0.6, inside), (0.7, cond(X, 0))]:
        np.testing.assert_allclose(guided(X, t), expected, rtol=1e-5, atol=1e-6)
    mixed = np.asarray(guided(X, jnp.array([0.1, 0.3, 0.5, 0.9])))
    np.testing.assert_allclose(mixed[3], cond(X, 0)[3], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(mixed[1], inside[1], rtol=1e-5, atol=1e-6)


def test_outside_the_interval_logits_are_the_conditional_ones():
    """Of a token that is impossible without the condition, which no line through the two reaches."""

    def without(x, t):
        return jnp.where(x > 0, x, -jnp.inf)

    guided = jd.guidance.classifier_free(lambda x, t: x, without, 3.0, interval=(0.2, 0.6))
    np.testing.assert_array_equal(guided(X, 0.1), X)


def test_an_interval_with_a_time_per_token_and_a_scale_per_example():
    scales, t = jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.asarray(np.tile(np.float32([0.1, 0.3, 0.9]), (4, 1)))
    guided = jd.guidance.classifier_free(cond, uncond, scales, interval=(0.2, 0.6))
    out = np.asarray(jax.jit(guided)(X, t))
    np.testing.assert_allclose(out[:, ::2], np.asarray(cond(X, t))[:, ::2], rtol=1e-5, atol=1e-6)
    full = np.asarray(jd.guidance.classifier_free(cond, uncond, scales)(X, 0.3))
    np.testing.assert_allclose(out[:, 1], full[:, 1], rtol=1e-5, atol=1e-6)


def test_rescale_of_estimates_without_contrast_is_finite():
    """A network that starts at zero predicts zeros: 0 / 0."""
    nothing = jd.guidance.classifier_free(lambda x, t: 0 * x, lambda x, t: 0 * x, 3.0, rescale=0.7)
    np.testing.assert_array_equal(jax.jit(nothing)(X, 0.5), np.zeros(X.shape))


def test_rescale_restores_the_standard_deviation():
    full = jd.guidance.classifier_free(cond, uncond, 4.0)(X, 0.5)
    whole = jd.guidance.classifier_free(cond, uncond, 4.0, rescale=1.0)(X, 0.5)
    np.testing.assert_allclose(whole.std((1, 2)), cond(X, 0).std((1, 2)), rtol=1e-5)
    half = jd.guidance.classifier_free(cond, uncond, 4.0, rescale=0.5)(X, 0.5)
    np.testing.assert_allclose(half, 0.5 * (full + whole), rtol=1e-5, atol=1e-6)


def test_threshold():
    clipped = jd.guidance.threshold(cond, limit=0.5)(X, 0.1)
    np.testing.assert_allclose(clipped, np.clip(np.asarray(cond(X, 0)), -0.5, 0.5))
    dynamic = jax.jit(jd.guidance.threshold(cond, limit=0.5, quantile=0.9))(X, 0.1)
    clean = np.asarray(cond(X, 0))
    size = np.maximum(np.quantile(np.abs(clean), 0.9, axis=(1, 2)), 0.5)[:, None, None]
    np.testing.assert_allclose(dynamic, np.clip(clean, -size, size) * 0.5 / size, rtol=1e-5)
    inside = jd.guidance.threshold(cond, limit=50.0, quantile=0.9)(X, 0.1)
    np.testing.assert_allclose(inside, clean)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="low < high, got"):
        jd.guidance.classifier_free(cond, uncond, 2.0, interval=(0.6, 0.2))
    with pytest.raises(ValueError, match="rescale in"):
        jd.guidance.classifier_free(cond, uncond, 2.0, rescale=1.5)
    with pytest.raises(ValueError, match="quantile"):
        jd.guidance.threshold(cond, quantile=1.5)
    with pytest.raises(ValueError, match=r"expected scale of shape .* got \(3,\); pass one scale per"):
        jd.guidance.classifier_free(cond, uncond, jnp.ones(3))(X, 0.5)
