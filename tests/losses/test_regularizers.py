"""Regularisers: 0 where what they ask for holds, and the size that theory gives where it does not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

R = jd.losses.regularizers


def normal(*shape):
    return np.random.default_rng(1).standard_normal(shape, np.float32)


def test_step_wise_variation_measures_the_jacobian():
    """By the noise: c times that by the noisy sample, and once more c."""
    x, process = normal(4000, 3), jd.processes.RectifiedFlow()  # c = t
    matrix = np.diag(np.float32([2.0, 1.0, 0.5]))

    @jax.jit
    def variation(key, k, t, level):
        return R.step_wise_variation(lambda x, t: k * x @ matrix, process, key, x, t, level)

    losses, n = (np.asarray(v) for v in variation(jax.random.key(10), 1.0, 0.5, 0.3))
    np.testing.assert_allclose(np.mean(n**2), 0.5**4 * (4 + 1 + 0.25) / 3, rtol=0.05)
    np.testing.assert_allclose(losses, (n - 0.3) ** 2, rtol=1e-5, atol=1e-6)
    late = np.arange(4000) >= 2000
    _, own = variation(jax.random.key(10), 1.0, np.where(late, np.float32(1.0), np.float32(0.5)), 0.3)
    np.testing.assert_allclose(own, np.where(late, 4 * n, n), rtol=1e-5)
    slope = jax.jit(jax.grad(lambda k, v: variation(jax.random.key(12), k, 1.0, v)[0].mean(), (0, 1)))
    pulled, moved = slope(1.5, 0.5)
    assert pulled > 0.5 and moved == 0  # towards the level, which stays


@pytest.mark.parametrize(
    "process", [jd.processes.VP(), jd.processes.EDM(), jd.processes.RectifiedFlow(), jd.processes.SubVP()]
)
def test_exact_densities_obey_the_fokker_planck_equation(process):
    target = jd.testing.gaussian_mixture(
        np.array([[1.0, 0], [-1.0, 0.5]]), np.array([0.1, 0.3]), np.array([0.4, 0.6])
    )
    x, t = normal(16, 2), np.full(16, 0.4, np.float32)

    @jax.jit
    def residual(scale, key):
        def log_prob(x, t):
            return scale * target.log_prob(process, x, t)

        exact = R.fokker_planck_residual(log_prob, process, key, x, t, exact=True)
        estimate = R.fokker_planck_residual(log_prob, process, key, x, t, 200)
        return exact, estimate, R.fokker_planck(log_prob, process, key, x, t, exact=True)

    np.testing.assert_allclose(residual(1.0, jax.random.key(2))[0], 0, atol=2e-3)
    exact, estimate, squares = (np.asarray(v) for v in residual(1.1, jax.random.key(3)))
    assert np.abs(exact).mean() > 0.02
    np.testing.assert_allclose(estimate, exact, atol=0.05 * np.abs(exact).max() + 0.3)
    np.testing.assert_allclose(squares, exact**2 / 2, rtol=1e-4)


@pytest.mark.slow
def test_context_is_a_set():
    x = normal(2, 5, 4, 3)
    pad = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    offsets = [o for o in itertools.product(range(3), range(3)) if o != (1, 1)]
    true = np.stack([pad[:, i : i + 5, j : j + 4] for i, j in offsets], 3)
    predict = jax.jit(R.context_prediction)
    np.testing.assert_allclose(predict(true[:, :, :, ::-1], x), 0, atol=1e-6)
    np.testing.assert_allclose(predict(true + np.float32(0.1), x), 0.03, rtol=0.2)
    inner = true[:, 1:-1, 1:-1]
    exact = np.mean(np.sum(inner**2, -1), (1, 2, 3))
    np.testing.assert_allclose(predict(np.zeros_like(true), x), exact, rtol=1e-5)
    guess, line = np.random.default_rng(19).standard_normal((2, 5, 4, 8, 1), np.float32), x[..., :1]
    plane = (np.concatenate([part, np.zeros_like(part)], -1) for part in (guess, line))
    np.testing.assert_allclose(predict(guess, line), predict(*plane), rtol=1e-5)  # sorted, and assigned
    with pytest.raises(ValueError, match="expected predicted of shape"):
        R.context_prediction(true[:, :, :, :4], x)


@pytest.mark.slow
def test_corruption_of_conditions():
    embedding = np.zeros((4000, 16), np.float32)
    label = np.tile(np.arange(5), 4000)

    @jax.jit
    def work(embedding, label):
        laws = [R.perturb_condition(jax.random.key(3), embedding, 0.5, law) for law in ("normal", "uniform")]
        same = R.perturb_condition(jax.random.key(3), embedding + 1, 0.0)
        return laws, same, R.corrupt_labels(jax.random.key(4), label, 0.3, 5)

    laws, same, changed = jax.device_get(work(embedding, label))
    for out, spread in zip(laws, (1.0, 1 / np.sqrt(3)), strict=True):
        np.testing.assert_allclose(out.std(), 0.5 * spread / 4, rtol=0.02)
    np.testing.assert_array_equal(same, 1)
    np.testing.assert_allclose(np.mean(changed != label), 0.3 * 0.8, atol=0.01)
    np.testing.assert_allclose(np.bincount(changed, minlength=5) / 20000, 0.2, atol=0.01)
    with pytest.raises(ValueError, match="rate"):
        R.corrupt_labels(jax.random.key(19), label, 1.5, 5)


@pytest.mark.slow
def test_pairwise_similarity_and_details():
    source = normal(6, 4, 4, 2)
    same, back = np.repeat(source[:1], 6, 0), source[::-1]
    block = np.float32([[1.0, 2.0], [5.0, 11.0]])
    checks = np.float32([[1.0, -1], [-1, 1]])[None, :, :, None]

    @jax.jit
    def work(source, same, back):
        details = R.pairwise_similarity(R.haar_details(back), R.haar_details(source))
        similarities = [R.pairwise_similarity(x, source) for x in (source * 2.0, same)]
        return similarities, details, R.pairwise_similarity(back, source, True)

    @jax.jit
    def rest(source, back):
        pull = jax.grad(lambda one, other: R.pairwise_similarity(one, other).sum(), (0, 1))(back, source)
        bands = R.haar_details(jnp.ones((2, 4, 4, 1))), R.haar_details(block[None, :, :, None])
        return pull, bands, R.high_frequency(source + 3.0, source), R.high_frequency(checks, 0 * checks)

    (alike, collapsed), details, of_details = jax.device_get(work(source, same, back))
    np.testing.assert_allclose(alike, 0, atol=1e-5)  # angles alone count
    assert collapsed.min() > 1e-3  # collapse is punished
    flat = source.reshape(6, -1)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    p = np.exp(unit[0] @ unit[1:].T)
    p = p / p.sum()
    np.testing.assert_allclose(collapsed[0], np.sum(p * np.log(5 * p)), rtol=1e-3)
    np.testing.assert_allclose(of_details, details, rtol=1e-4)
    pull, (flat, of_block), smooth, rough = jax.device_get(rest(source, back))
    assert np.abs(pull[0]).max() > 1e-4 and np.abs(pull[1]).max() == 0  # the source stays
    np.testing.assert_allclose(flat, 0)
    low, high = np.array([1.0, 1.0]) / np.sqrt(2), np.array([-1.0, 1.0]) / np.sqrt(2)
    bands = sum(one @ block @ two for one, two in ((low, high), (high, low), (high, high)))
    np.testing.assert_allclose(of_block, bands, rtol=1e-5)
    np.testing.assert_allclose(smooth, 0, atol=1e-10)
    np.testing.assert_allclose(rough, 4.0)
    with pytest.raises(ValueError, match="even"):
        R.haar_details(np.zeros((1, 3, 4, 1)))


def test_similarities_to_nothing_have_finite_gradients():
    source = normal(4, 3)
    x = np.where(np.arange(4)[:, None] == 1, np.float32(0.0), source)
    pull = np.asarray(jax.jit(jax.grad(lambda x: R.pairwise_similarity(x, source).sum()))(x))
    assert np.isfinite(pull).all() and np.abs(pull[0]).max() > 0
