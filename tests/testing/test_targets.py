"""Targets against numerical integration, automatic differentiation and each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import processes, testing

PROCESSES = [processes.VP(), processes.EDM(), processes.RectifiedFlow()]
WEIGHTS = np.array([0.2, 0.5, 0.3])


def random_mixture(kind, d=3, seed=0):
    """Three components and the full covariances that they have."""
    rng = np.random.default_rng(seed)
    means = 1.5 * rng.normal(size=(3, d))
    factor = rng.normal(size=(3, d, 2))
    diagonal = np.array([0.1, 0.2, 0.4])
    full = {
        "isotropic": diagonal[:, None, None] * np.eye(d),
        "diagonal": np.exp(rng.normal(size=(3, d)))[..., None] * np.eye(d),
        "full": factor @ factor.swapaxes(1, 2) + diagonal[:, None, None] * np.eye(d),
    }
    full["low rank"] = full["full"]
    given = {
        "isotropic": diagonal,
        "diagonal": np.einsum("kii->ki", full["diagonal"]),
        "full": full["full"],
        "low rank": testing.low_rank(factor, diagonal),
    }
    return testing.gaussian_mixture(means, given[kind], WEIGHTS), means, full[kind]


def log_normal(x, mean, covariance):
    r = x - mean
    quadratic = np.einsum("...i,ij,...j->...", r, np.linalg.inv(covariance), r)
    return -0.5 * (quadratic + np.linalg.slogdet(2 * np.pi * covariance)[1])


def dense_answers(means, covariances, x, a, c):
    """Density, denoiser by plain linear algebra with d x d matrices."""
    eye = np.eye(means.shape[1])
    total = [a**2 * s + c**2 * eye for s in covariances]
    joint = np.stack([log_normal(x, a * m, v) for m, v in zip(means, total, strict=True)], -1)
    joint = joint + np.log(WEIGHTS)
    log_prob = np.logaddexp.reduce(joint, axis=-1)
    p = np.exp(joint - log_prob[:, None])
    gains = [a * s @ np.linalg.inv(v) for s, v in zip(covariances, total, strict=True)]
    each = [m + (x - a * m) @ g.T for m, g in zip(means, gains, strict=True)]
    return log_prob, np.einsum("nk,knd->nd", p, np.stack(each))


KINDS = ["isotropic", "diagonal", "full", "low rank"]


def answers(target, process):
    """Everything a target knows of `(x, t)`, compiled once."""
    return jax.jit(
        lambda x, t: (
            target.log_prob(process, x, t),
            target.denoiser(process)(x, t),
            target.score(process)(x, t),
            jax.grad(lambda x: target.log_prob(process, x, t).sum())(x),
        )
    )


@pytest.mark.parametrize(
    "kind, process",
    [*((kind, processes.VP()) for kind in KINDS), *(("full", process) for process in PROCESSES[1:])],
    ids=str,
)
def test_every_form_of_covariance_agrees_with_dense_algebra(kind, process, x64):
    target, means, covariances = random_mixture(kind)
    x = np.random.default_rng(1).normal(size=(6, 3)) * 2
    times = np.array([0.0, 0.01, 0.4, 1.0]) * process.t_max
    everything = answers(target, process)(np.tile(x, (4, 1)), np.repeat(times, 6))
    log_probs, cleans, scores, gradients = (np.reshape(v, (4, 6, -1)) for v in everything)
    assert cleans.dtype == np.float64
    np.testing.assert_allclose(scores, gradients, rtol=1e-9, atol=1e-11)
    for i, t in enumerate(times):
        a, _, c = process.coefficients(t)
        log_prob, clean = dense_answers(means, covariances, x, a, c)
        np.testing.assert_allclose(log_probs[i, :, 0], log_prob, rtol=1e-11)
        np.testing.assert_allclose(cleans[i], clean, rtol=1e-10, atol=1e-11)
        # Tweedie: a D = x + c^2 score
        np.testing.assert_allclose(a * cleans[i], x + c**2 * scores[i], rtol=1e-10, atol=1e-10)


def quadrature(target, process, x, t, data_log_prob, grid, cell):
    """`p(x_t)` and `E[x0 | x_t]` by summing over a grid of clean data."""
    a, _, c = process.coefficients(t)
    log_kernel = -0.5 * np.sum((x[:, None] - a * grid[None]) ** 2, -1) / c**2
    log_kernel -= 0.5 * x.shape[1] * np.log(2 * np.pi * c**2)
    mass = np.exp(log_kernel + data_log_prob[None]) * cell
    density = mass.sum(1)
    return density, mass @ grid / density[:, None]


@pytest.mark.parametrize("d", [1, 2])
def test_denoiser_and_density_by_brute_force_integration(d, x64):
    means = np.array([[-1.0, 0.5], [1.0, -0.4], [0.3, 1.2]])[:, :d]
    covariances = np.array([[[0.2, 0.1], [0.1, 0.3]], [[0.1, 0.0], [0.0, 0.4]], np.eye(2) * 0.2])
    target = testing.gaussian_mixture(means, covariances[:, :d, :d], WEIGHTS)
    axis = np.linspace(-5, 5, 4001 if d == 1 else 301)
    grid = np.stack(np.meshgrid(*[axis] * d, indexing="ij"), -1).reshape(-1, d)
    cell = (axis[1] - axis[0]) ** d
    joint = [log_normal(grid, m, s[:d, :d]) for m, s in zip(means, covariances, strict=True)]
    data = np.logaddexp.reduce(np.stack(joint, -1) + np.log(WEIGHTS), axis=-1)
    assert np.isclose(np.exp(data).sum() * cell, 1)
    x = np.array([[-0.7, 0.2], [0.1, 0.4], [1.4, -1.0]])[:, :d]
    for process, t in [(processes.VP(), 0.3), (processes.EDM(), 0.5), (processes.RectifiedFlow(), 0.7)]:
        density, clean = quadrature(target, process, x, t, data, grid, cell)
        np.testing.assert_allclose(target.denoiser(process)(x, t), clean, rtol=1e-8)
        np.testing.assert_allclose(target.log_prob(process, x, t), np.log(density), atol=1e-8)


def test_density_at_a_time_integrates_to_one(x64):
    target, _, _ = random_mixture("full", d=2)
    axis = np.linspace(-12, 12, 400)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1)
    cases = [(processes.VP(), 0.0), (processes.VP(), 0.2), (processes.EDM(), 0.8)]
    for log_prob in jax.jit(lambda x: [target.log_prob(process, x, t) for process, t in cases])(grid):
        total = np.exp(log_prob).sum() * (axis[1] - axis[0]) ** 2
        assert abs(total - 1) < 1e-6


def test_no_time_gives_nan_and_gradients_are_finite_at_both_ends():
    target, _, _ = random_mixture("full")
    x = np.ones((4, 3), np.float32)
    for process in [processes.CosineVP(), processes.EDM(), processes.RectifiedFlow()]:
        denoise = target.denoiser(process)

        def norm(x, t, denoise=denoise):
            clean = denoise(x, t)
            return (clean**2).sum(), clean

        value = jax.value_and_grad(norm, (0, 1), has_aux=True)
        at_times = jax.jit(jax.vmap(value, in_axes=(None, 0)))(x, np.float32([0.0, 0.5, process.t_max]))
        (values, clean), (gradients, slopes) = jax.device_get(at_times)
        assert np.isfinite(values).all() and np.isfinite(gradients).all()
        assert np.isfinite(slopes[1]) and slopes[1] != 0
        np.testing.assert_allclose(clean[0], x, rtol=1e-5)
        if process.coefficients(process.t_max)[0] == 0:  # nothing is known but the mean of the data
            np.testing.assert_allclose(clean[2], np.tile(WEIGHTS @ target.means, (4, 1)), atol=1e-6)


def test_denoiser_in_float32_is_close_to_float64_where_noise_is_small():
    target, means, _ = random_mixture("full")
    x = np.asarray(means + 0.05, np.float32)
    process = processes.EDM()
    with jax.enable_x64(True):
        exact = np.asarray(jax.jit(target.denoiser(process))(x.astype(np.float64), 0.002))
    np.testing.assert_allclose(jax.jit(target.denoiser(process))(x, 0.002), exact, rtol=2e-6, atol=2e-6)
    narrow = jax.eval_shape(lambda x: target.denoiser(process)(x, 0.5), x.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16


def test_images_are_flattened_inside_and_times_match_from_the_left():
    rng = np.random.default_rng(3)
    means, variances = rng.normal(size=(2, 4, 3, 2)), np.exp(rng.normal(size=(2, 4, 3, 2)))
    image = testing.gaussian_mixture(means, variances)
    flat = testing.gaussian_mixture(means.reshape(2, 24), variances.reshape(2, 24))
    x = rng.normal(size=(5, 7, 4, 3, 2)).astype(np.float32)
    t = np.linspace(0.1, 0.9, 5)
    process = processes.VP()
    log_prob, clean, score, _ = jax.device_get(answers(image, process)(x, t))
    assert log_prob.shape == (5, 7) and clean.shape == score.shape == x.shape
    rows = answers(flat, process)(x.reshape(35, 24), np.repeat(t, 7))
    for found, row in zip((log_prob, clean, score), rows, strict=False):
        np.testing.assert_allclose(found.reshape(row.shape), row, rtol=1e-5, atol=1e-5)
    common = jax.jit(lambda x: image.denoiser(process)(x, 0.1))(x[0, 0])
    np.testing.assert_allclose(common, clean[0, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_samples_have_the_law_of_the_mixture(kind):
    target, means, covariances = random_mixture(kind)
    n = 40_000
    x = np.asarray(jax.jit(target.sample, static_argnums=1)(jax.random.key(0), n), np.float64)
    mean = WEIGHTS @ means
    centred = means - mean
    covariance = np.einsum("k,kij->ij", WEIGHTS, covariances + centred[:, :, None] * centred[:, None])
    deviation = np.sqrt(np.diag(covariance))
    assert np.abs((x.mean(0) - mean) / deviation).max() < 5 / np.sqrt(n)
    scaled = (np.cov(x.T) - covariance) / np.outer(deviation, deviation)
    assert np.abs(scaled).max() < 10 / np.sqrt(n)
    # Stein's identity, E[x score^T] = -I, ties the samples to the density itself
    score = jax.jit(target.score(processes.EDM()))(x.astype(np.float32), 0.0)
    stein = np.einsum("ni,nj->nij", x - mean, np.asarray(score, np.float64))
    assert np.max(np.abs(stein.mean(0) + np.eye(3)) / stein.std(0)) < 5 / np.sqrt(n)


@pytest.mark.slow
def test_a_sample_depends_on_its_own_key_alone():
    target, _, _ = random_mixture("low rank")
    keys = jax.random.split(jax.random.key(5), 16)
    found = testing.invariance(jax.jit(lambda k: target.sample(k, k.shape[0])), keys)
    assert set(found) >= {"jit", "vmap", "one row", "sharded jit"}
    testing.key_reuse(lambda k: target.sample(k, 16), keys)


def test_low_rank_never_forms_a_square_matrix():
    d = 20_000
    factor = np.random.default_rng(6).normal(size=(d, 2))
    target = testing.gaussian(np.zeros(d), testing.low_rank(factor, 0.5))

    def both(key):
        x = target.sample(key, 3)
        return target.denoiser(processes.VP())(x, 0.5)

    compiled = jax.jit(both).lower(jax.random.key(0)).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 100 * d
    assert compiled(jax.random.key(0)).shape == (3, d)


def test_gaussian_is_a_mixture_of_one(x64):
    rng = np.random.default_rng(7)
    mean, factor = rng.normal(size=4), rng.normal(size=(4, 4))
    covariance = factor @ factor.T
    one = testing.gaussian(mean, covariance)
    two = testing.gaussian_mixture([mean, mean], [covariance, covariance], [0.3, 5.0])
    x = rng.normal(size=(6, 4))
    for found, expected in zip(*(answers(each, processes.VP())(x, 0.5) for each in (one, two)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.slow
def test_second_endpoint_shifts_the_marginal(x64):
    class Bridge(processes.RectifiedFlow):
        def coefficients(self, t):
            return 1.0 - t, 0.0 + t, 0.5 * t

        def endpoint(self, y):
            return y

    target, _, _ = random_mixture("full")
    rng = np.random.default_rng(8)
    x, y = rng.normal(size=(2, 5, 3))
    t = np.full(5, 0.3)

    class Plain(processes.RectifiedFlow):
        def coefficients(self, t):
            return 1.0 - t, 0.0 * t, 0.5 * t

    @jax.jit
    def run(x, t, y):
        z = x - 0.3 * y
        clean = target.denoiser(Bridge(), y)(x, t), target.denoiser(Plain())(z, t)
        return clean, (target.log_prob(Bridge(), x, t, y), target.log_prob(Plain(), z, t))

    for moved, expected in run(x, t, y):
        np.testing.assert_allclose(moved, expected, rtol=1e-12)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: testing.gaussian_mixture(np.zeros((2, 3)), np.ones((3, 3))), "expected covariances"),
        (lambda: testing.gaussian_mixture(np.zeros((2, 3)), -np.ones(2)), "variances >= 0"),
        (lambda: testing.gaussian(np.zeros(2), [[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (lambda: testing.gaussian(np.zeros(2), [[1.0, 2.0], [2.0, 1.0]]), "positive semi-definite"),
        (lambda: testing.gaussian_mixture(np.zeros((2, 3)), 1.0, [1.0]), "weights of shape"),
        (lambda: testing.gaussian_mixture(np.zeros((2, 3)), 1.0, [1.0, -1.0]), "at least 0"),
        (lambda: testing.low_rank(np.zeros((2, 3, 1)), np.ones(3)), "low_rank: expected factor"),
        (lambda: testing.gaussian([np.nan], 1.0), "finite means"),
    ],
)
def test_bad_targets_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_answers_at_integers_are_no_integers():
    target, process, x = testing.gaussian(np.zeros(2), 1.0), processes.VP(), np.int32([[0, 1], [2, 3]])

    @jax.jit
    def all_of(*points):
        functions = target.denoiser(process), target.score(process)
        return [[target.log_prob(process, x, 0.5), *(f(x, 0.5) for f in functions)] for x in points]

    integers, floats = all_of(x, x.astype(np.float32))
    jax.tree.map(np.testing.assert_array_equal, integers, floats)
    narrow = jax.eval_shape(lambda x: target.denoiser(process)(x, 0.5), x.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16


def test_bad_points_and_times_are_refused():
    target = testing.gaussian(np.zeros(3), 0.0)
    with pytest.raises(ValueError, match=r"expected x of shape \(..., \*\(3,\)\)"):
        target.denoiser(processes.VP())(jnp.zeros((4, 2)), 0.5)
    with pytest.raises(ValueError, match="one time per example"):
        target.denoiser(processes.VP())(jnp.zeros((4, 3)), np.ones(3, np.float32))
    with pytest.raises(ValueError, match="no density"):
        target.log_prob(processes.VP(), jnp.zeros((4, 3)), 0.0)
    with pytest.raises(ValueError, match="no density"):
        jax.jit(lambda x: target.score(processes.VP())(x, 0.0))(jnp.zeros((4, 3)))
    with pytest.raises(ValueError, match="no second endpoint"):
        target.denoiser(processes.VP(), jnp.zeros((4, 3)))(jnp.zeros((4, 3)), 0.5)
