"""Starts other than noise at t_max, against exact answers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

PROCESSES = [processes.VP(), processes.SubVP(), processes.VE(), processes.RectifiedFlow(), processes.EDM()]
NAMES = [type(p).__name__ for p in PROCESSES]
RNG = np.random.default_rng(0)
BASIS = np.linalg.qr(RNG.normal(size=(6, 2)))[0]
MEAN = RNG.normal(size=(3, 2))
MOMENTS = solvers.Moments(MEAN, BASIS, np.array([4.0, 0.5]), 0.1)
COVARIANCE = BASIS @ np.diag([4.0, 0.5]) @ BASIS.T + 0.1 * (np.eye(6) - BASIS @ BASIS.T)


def test_moments_are_those_of_the_data():
    data = np.random.default_rng(1).normal(size=(50, 3, 2)) * np.array([2.0, 0.3]) + MEAN
    flat = data.reshape(50, 6)
    full = solvers.gaussian_moments(data)
    np.testing.assert_allclose(full.mean, data.mean(0))
    np.testing.assert_allclose(
        full.basis @ np.diag(full.variances) @ full.basis.T, np.cov(flat.T), atol=1e-12
    )
    few = solvers.gaussian_moments(data, rank=2)
    assert few.basis.shape == (6, 2) and few.variances.shape == (2,)
    total = few.variances.sum() + 4 * few.rest
    np.testing.assert_allclose(total, np.trace(np.cov(flat.T)))
    np.testing.assert_allclose(few.variances, np.linalg.eigvalsh(np.cov(flat.T))[::-1][:2])
    lean = solvers.gaussian_moments(data[:3])
    assert lean.basis.shape == (6, 2) and lean.rest < 1e-20


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_teleport_is_the_exact_flow_of_a_gaussian(process, x64):
    target = testing.gaussian(MEAN.ravel(), COVARIANCE)
    x = process.coefficients(process.t_max)[2] * np.random.default_rng(1).normal(size=(5, 3, 2))

    def jump(x, t, start=None):
        return solvers.teleport(x, process, MOMENTS, t, start)

    @jax.jit
    def run(x):
        times, flat = (0.5 * process.t_max, 0.1 * process.t_max, 0.0), x.reshape(5, 6)
        exact = [testing.flow_map(target, process, flat, process.t_max, t) for t in times]
        return exact, [jump(x, t).reshape(5, 6) for t in times], jump(jump(x, 0.3), process.t_max, 0.3)

    exact, found, back = run(x)
    np.testing.assert_allclose(found, exact, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(back, x, rtol=1e-9)


@pytest.mark.slow
def test_teleport_beats_the_plain_start_at_few_steps():
    """Ten modes in 64-D: the steps that only shrink noise are better spent where the modes appear."""
    rng = np.random.default_rng(1)
    means, variances = rng.normal(size=(10, 64)), rng.uniform(0.02, 0.3, size=(10, 64))
    target = testing.gaussian_mixture(means, variances)
    moments = solvers.gaussian_moments(np.asarray(target.sample(jax.random.key(0), 2000)))
    for process, grid, gain in [
        (processes.VP(), jd.grids.quadratic, 0.7),
        (processes.EDM(), jd.grids.log_snr, 0.7),
        (processes.RectifiedFlow(), jd.grids.quadratic, 0.6),
    ]:
        x = process.coefficients(process.t_max)[2] * jax.random.normal(jax.random.key(1), (24, 64))
        exact = testing.flow_map(target, process, x, process.t_max, 0.0)
        t = float(process.time_of_log_snr(-np.log(4.0)))

        def error(grid, x, process=process, exact=exact):
            found = jd.sample(None, target.denoiser(process), process, solvers.dpmpp_multistep(2), grid, x=x)
            return np.median(np.linalg.norm(found - exact, axis=1))

        plain = error(grid(process, 5), x)
        jumped = error(grid(process.replace(t_max=t), 5), solvers.teleport(x, process, moments, t))
        assert jumped < gain * plain, (type(process).__name__, jumped, plain)


@pytest.mark.slow
def test_gaussian_start_has_the_moments_of_noisy_data():
    """A schedule that ends too early leaves signal at t_max: the plain prior forgets it."""
    process, n = processes.VP(beta_max=5.0), 40_000
    a, _, c = process.coefficients(1.0)
    assert a > 0.25
    keys = jax.random.split(jax.random.key(0), n)
    found = np.asarray(solvers.gaussian_start(keys, process, MOMENTS)).reshape(n, 6)
    covariance = a**2 * COVARIANCE + c**2 * np.eye(6)
    bound = 4 * np.sqrt(2 / n) * covariance.max()
    np.testing.assert_allclose(found.mean(0), a * MEAN.ravel(), atol=bound)
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=bound)
    denoise = testing.gaussian(MEAN.ravel(), COVARIANCE).denoiser(process)
    grid, few = jd.grids.quadratic(process, 30), keys[:4000]

    def error(x):
        x = np.asarray(jd.sample(None, denoise, process, solvers.dpmpp_multistep(2), grid, x=x))
        return np.abs(np.cov(x.T) - COVARIANCE).max() + np.abs(x.mean(0) - MEAN.ravel()).max()

    mended = error(solvers.gaussian_start(few, process, MOMENTS).reshape(4000, 6))
    assert mended < 0.3 < 0.5 * error(jax.vmap(lambda key: process.prior(key, (6,)))(few))
    one = solvers.gaussian_start(keys[7:8], process, MOMENTS, 0.4)
    np.testing.assert_allclose(
        one, solvers.gaussian_start(keys[:9], process, MOMENTS, 0.4)[7:8], rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, np.arange(1.0, 17.0) / 136])
def test_transport_masses_match(weights):
    points = np.random.default_rng(2).normal(size=(16, 2, 1)) + 3.0
    transport = solvers.fit_transport(jax.random.key(0), points, weights, steps=1000)
    masses = np.asarray(transport.masses(jax.random.key(1), 200_000))
    expected = np.full(16, 1 / 16) if weights is None else weights
    np.testing.assert_allclose(masses, expected, rtol=0.05, atol=4 * np.sqrt(0.1 / 200_000))
    noise = jax.random.normal(jax.random.key(2), (9, 2, 1))
    np.testing.assert_array_equal(transport(noise), points[transport.index(noise)].astype(np.float32))


def test_transport_is_the_optimal_map():
    """On a line the optimal map is monotone: noise quantile k / n goes to the k-th point in order."""
    points = np.array([[3.0], [-1.0], [0.5], [9.0]])
    noise = np.float32([[-2.0], [-0.8], [-0.5], [-0.1], [0.1], [0.6], [0.8], [2.0]])
    learn = jax.jit(lambda key, noise: solvers.fit_transport(key, points, steps=1500)(noise)[:, 0])
    found = learn(jax.random.key(0), noise)
    np.testing.assert_array_equal(found, [-1.0, -1.0, 0.5, 0.5, 3.0, 3.0, 9.0, 9.0])


@pytest.mark.slow
def test_transport_start_leaves_fewer_samples_between_modes():
    """From perturbed data reached by transport, few steps leave less between narrow modes than from noise."""
    process, n, steps = processes.VP(), 2000, 4
    angles = 2 * np.pi * np.arange(8) / 8
    modes = 2 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    target = testing.gaussian_mixture(modes, 0.01)
    t = float(process.time_of_log_snr(-np.log(0.8)))
    clean = target.sample(jax.random.key(0), 128)
    points = process.perturb(clean, jax.random.normal(jax.random.key(1), clean.shape), t)
    transport = solvers.fit_transport(jax.random.key(2), points, steps=600)
    noise = jax.random.normal(jax.random.key(3), (n, 2))

    def between(grid, x):
        x = jd.sample(None, target.denoiser(process), process, solvers.ddim(), grid, x=x)
        distance = np.linalg.norm(np.asarray(x)[:, None] - modes[None], axis=-1).min(1)
        return np.mean(distance > 0.4)

    jumped = between(jd.grids.log_snr(process.replace(t_max=t), steps), transport(noise))
    plain = between(jd.grids.log_snr(process, steps), process.coefficients(1.0)[2] * noise)
    assert jumped < 0.5 * plain, (jumped, plain)


def test_optimal_boundary_serves_inputs_that_it_has_not_seen():
    """Restoration from a blurred first half: one start, shared, is better on average than random ones."""
    process, size, rng = processes.RectifiedFlow(), 8, np.random.default_rng(0)
    grid = jd.grids.log_snr(process, 10)
    clean = 0.3 * rng.normal(size=(48, size)).astype(np.float32)
    observed = clean + 0.2 * rng.normal(size=clean.shape).astype(np.float32)

    @jax.jit
    def restore(x, observed):
        # the posterior N(observed 9 / 13, (0.3 * 0.2)^2 / 0.13), exactly
        target = testing.gaussian(np.zeros(size), 0.09 * 0.04 / 0.13)
        mean = observed * 9 / 13
        exact = target.denoiser(process)
        denoise = lambda x, t: mean + exact(x - process.coefficients(t)[0] * mean, t)  # noqa: E731
        return jd.sample(None, denoise, process, solvers.ddim(), grid, x=x)

    seen, unseen = slice(0, 24), slice(24, 48)
    search = jax.jit(lambda key: solvers.optimal_boundary(
        key, lambda x: restore(x, observed[seen]), process, (size,), clean[seen], 64
    ))  # fmt: skip
    best, scores = (np.asarray(v) for v in search(jax.random.key(0)))
    assert best.shape == (size,) and scores.shape == (64,)
    everywhere = np.broadcast_to(best, (24, size))
    of_best = np.mean((np.asarray(restore(everywhere, observed[seen])) - clean[seen]) ** 2)
    np.testing.assert_allclose(of_best, scores.min(), rtol=1e-5)
    held_out = np.mean((np.asarray(restore(everywhere, observed[unseen])) - clean[unseen]) ** 2)
    random = rng.normal(size=(8, 24, size)).astype(np.float32)
    plain = np.mean([(np.asarray(restore(x, observed[unseen])) - clean[unseen]) ** 2 for x in random])
    assert held_out < 0.85 * plain


@pytest.mark.parametrize(
    "build",
    [
        lambda: solvers.gaussian_moments(np.zeros((1, 3))),
        lambda: solvers.gaussian_moments(np.zeros((5, 3)), rank=4),
        lambda: solvers.fit_transport(jax.random.key(0), np.zeros((4, 2)), np.ones(4)),
        lambda: solvers.fit_transport(jax.random.key(0), np.zeros((4, 2)), rate=0.0),
        lambda: solvers.optimal_boundary(
            jax.random.key(0), None, processes.VP(), (2,), jnp.zeros((3, 2)), candidates=0
        ),
        lambda: solvers.optimal_boundary(jax.random.key(0), None, processes.VP(), (3,), jnp.zeros((3, 2))),
    ],
)
def test_settings_out_of_range_are_refused(build):
    with pytest.raises(ValueError):
        build()
