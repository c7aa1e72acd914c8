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
    data = jax.jit(lambda key: target.sample(key, 2000))(jax.random.key(0))
    moments, noise = solvers.gaussian_moments(np.asarray(data)), rng.normal(size=(24, 64)).astype(np.float32)
    for process, grid, gain in [
        (processes.VP(), jd.grids.quadratic, 0.7),
        (processes.EDM(), jd.grids.log_snr, 0.7),
        (processes.RectifiedFlow(), jd.grids.quadratic, 0.6),
    ]:
        x = np.float32(process.coefficients(process.t_max)[2]) * noise
        exact = testing.flow_map(target, process, x, process.t_max, 0.0)
        t = float(process.time_of_log_snr(-np.log(4.0)))
        plans = [solvers.dpmpp_multistep(2).plan(process, grid(process.replace(t_max=s), 5))
                 for s in (process.t_max, t)]  # fmt: skip

        @jax.jit
        def run(x, process=process, plans=plans, t=t):
            starts = x, solvers.teleport(x, process, moments, t)
            return [jd.sample(None, target.denoiser(process), process, rows, x=start)
                    for rows, start in zip(plans, starts, strict=True)]  # fmt: skip

        plain, jumped = (np.median(np.linalg.norm(end - exact, axis=1)) for end in map(np.asarray, run(x)))
        assert jumped < gain * plain, (type(process).__name__, jumped, plain)


@pytest.mark.slow
def test_gaussian_start_has_the_moments_of_noisy_data():
    """A schedule that ends too early leaves signal at t_max: the plain prior forgets it."""
    process, n = processes.VP(beta_max=5.0), 40_000
    a, _, c = process.coefficients(1.0)
    assert a > 0.25
    denoise = testing.gaussian(MEAN.ravel(), COVARIANCE).denoiser(process)
    grid = jd.grids.quadratic(process, 30)

    @jax.jit
    def run(key):
        keys, sampler = jax.random.split(key, n), solvers.dpmpp_multistep(2)
        found = solvers.gaussian_start(keys, process, MOMENTS).reshape(n, 6)
        starts = found[:4000], jax.vmap(lambda key: process.prior(key, (6,)))(keys[:4000])
        parts = [solvers.gaussian_start(some, process, MOMENTS, 0.4) for some in (keys[7:8], keys[:9])]
        return found, [jd.sample(None, denoise, process, sampler, grid, x=x) for x in starts], parts

    found, ends, (one, some) = jax.tree.map(np.asarray, run(jax.random.key(0)))
    covariance = a**2 * COVARIANCE + c**2 * np.eye(6)
    bound = 4 * np.sqrt(2 / n) * covariance.max()
    np.testing.assert_allclose(found.mean(0), a * MEAN.ravel(), atol=bound)
    np.testing.assert_allclose(np.cov(found.T), covariance, atol=bound)

    def error(x):
        return np.abs(np.cov(x.T) - COVARIANCE).max() + np.abs(x.mean(0) - MEAN.ravel()).max()

    mended, plain = map(error, ends)
    assert mended < 0.3 < 0.5 * plain
    np.testing.assert_allclose(one, some[7:8], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, np.arange(1.0, 17.0) / 136])
def test_transport_masses_match(weights):
    points = np.random.default_rng(2).normal(size=(16, 2, 1)) + 3.0
    noise = np.random.default_rng(3).normal(size=(9, 2, 1)).astype(np.float32)

    @jax.jit
    def run(fit, draw):
        transport = solvers.fit_transport(fit, points, weights, steps=1000)
        return transport.masses(draw, 200_000), transport(noise), transport.index(noise)

    masses, moved, index = map(np.asarray, run(*jax.random.split(jax.random.key(0))))
    expected = np.full(16, 1 / 16) if weights is None else weights
    np.testing.assert_allclose(masses, expected, rtol=0.05, atol=4 * np.sqrt(0.1 / 200_000))
    np.testing.assert_array_equal(moved, points[index].astype(np.float32))


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
    plans = [solvers.ddim().plan(process, jd.grids.log_snr(p, steps))
             for p in (process.replace(t_max=t), process)]  # fmt: skip

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 4)
        clean = target.sample(keys[0], 128)
        points = process.perturb(clean, jax.random.normal(keys[1], clean.shape), t)
        noise = jax.random.normal(keys[3], (n, 2))
        jumped = solvers.fit_transport(keys[2], points, steps=600)(noise)
        starts = jumped, process.coefficients(1.0)[2] * noise
        return [jd.sample(None, target.denoiser(process), process, rows, x=x)
                for rows, x in zip(plans, starts, strict=True)]  # fmt: skip

    def between(x):
        distance = np.linalg.norm(np.asarray(x)[:, None] - modes[None], axis=-1).min(1)
        return np.mean(distance > 0.4)

    jumped, plain = map(between, run(jax.random.key(0)))
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
