"""Brownian paths: their law, and strong convergence along one path."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

PROCESSES = [processes.VP(), processes.EDM(), processes.RectifiedFlow()]
NAMES = [type(p).__name__ for p in PROCESSES]
TARGET = testing.gaussian_mixture([[1.5, 0.0], [-0.8, 1.2]], [0.2, 0.3], [0.6, 0.4])


def log_snr_grid(process, steps, low=-4.0, high=3.0):
    return np.minimum(process.time_of_log_snr(np.linspace(low, high, steps + 1)), process.t_max)


def paths(process, n=8, seed=0, **settings):
    return solvers.brownian(jax.random.split(jax.random.key(seed), n), process, **settings)


@jax.jit
def noise_of(path, s, t, x):
    return path.noise(s, t, x)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.6, 1.7])
def test_law_of_the_noise(tau):
    """Steps without overlap have independent standard noise; overlapping ones correlate as B does."""
    process, n = processes.VP(), 20_000
    path, x = paths(process, n, tau=tau), jnp.zeros((n, 1))
    lam = np.array([-np.inf, -2.0, -1.5, 0.3, 4.0])
    t = np.append(process.t_max, process.time_of_log_snr(lam[1:])).astype(np.float32)
    steps = [(0, 1), (1, 2), (2, 3), (3, 4), (1, 3), (0, 3)]
    lam[0] = process.log_snr(process.t_max)
    noise = np.stack([np.asarray(noise_of(path, t[i], t[j], x))[:, 0] for i, j in steps])
    u = np.exp(2 * tau**2 * lam)

    def overlap(p, q):
        common = max(0.0, min(u[p[1]], u[q[1]]) - max(u[p[0]], u[q[0]]))
        return common / np.sqrt((u[p[1]] - u[p[0]]) * (u[q[1]] - u[q[0]]))

    expected = [[overlap(p, q) for q in steps] for p in steps]
    np.testing.assert_allclose(np.cov(noise), expected, atol=5 / np.sqrt(n))
    np.testing.assert_allclose(noise.mean(1), 0, atol=4 / np.sqrt(n))
    assert abs(np.mean(noise**4) / 3 - 1) < 0.05


@pytest.mark.parametrize("process, tau", [
    (PROCESSES[0], 0.6),
    *(pytest.param(process, 1.0, marks=pytest.mark.slow) for process in PROCESSES[1:]),
    pytest.param(processes.CosineVP(), 0.6, marks=pytest.mark.slow),
], ids=[*NAMES, "CosineVP"])  # fmt: skip
def test_where_the_estimate_is_constant_any_number_of_steps_is_one_step(process, tau):
    """The equation is then linear and the solver exact, so only the noise could differ."""
    path = paths(process, 6, tau=tau)
    x = np.random.default_rng(1).normal(size=(6, 3)) * process.coefficients(process.t_max)[2]
    x = x.astype(np.float32)
    denoise = lambda x, t: jnp.full_like(x, 0.4)  # noqa: E731
    fine = np.append(process.t_max, log_snr_grid(process, 24, -3.5, 2.5))

    run = jax.jit(lambda path, rows: jd.sample(path, denoise, process, rows, x=x))
    uneven = np.concatenate([fine[:1], 0.2 * fine[1:-1] + 0.8 * fine[2:], fine[-1:]])
    one, many, others = (
        solvers.dpmpp_multistep(1, tau).plan(process, grid) for grid in (fine[[0, -1]], fine, uneven)
    )
    one = np.asarray(run(path, one))
    np.testing.assert_allclose(run(path, many), one, atol=2e-5 * np.abs(one).max())
    np.testing.assert_allclose(run(path, others), one, atol=2e-5 * np.abs(one).max())
    other = run(paths(process, 6, seed=9, tau=tau), many)
    assert np.abs(other - one).max() > 0.01


@pytest.mark.slow
def test_strong_convergence_along_one_path(x64):
    """What a path is under other processes is held, exactly, where the estimate is constant."""
    process = processes.VP()
    clean = TARGET.sample(jax.random.key(0), 32)
    x = process.perturb(clean, jax.random.normal(jax.random.key(1), clean.shape), log_snr_grid(process, 1)[0])
    denoise, methods = TARGET.denoiser(process), (solvers.ancestral(), solvers.euler_maruyama())

    @jax.jit
    def run(plans, path):
        return jax.vmap(lambda plan: jd.sample(path, denoise, process, plan, x=x))(plans)

    def plans(n):
        return solvers.stack([solver.plan(process, log_snr_grid(process, n)) for solver in methods])

    path, steps = paths(process, 32, depth=12), (32, 64, 128)
    answers = {n: run(plans(n), path) for n in (*steps, 512)}
    other = run(plans(64), paths(process, 32, seed=5, depth=12))
    for i in range(2):
        found = testing.measure_order(lambda n, i=i: answers[n][i], answers[512][0], steps, points=3)
        assert 0.75 < found.slope < 1.35, found
        assert found.errors[-1] < 0.05
        assert np.median(np.abs(other[i] - answers[512][0])) > 5 * found.errors[1]


@pytest.mark.slow
def test_replay_batch_size_and_ends():
    process = processes.CosineVP()
    keys = jax.random.split(jax.random.key(3), 6)
    grid = jd.grids.log_snr(process, 8)

    def run(keys):
        path = solvers.brownian(keys, process)
        return jd.sample(path, TARGET.denoiser(process), process, solvers.ancestral(), grid, shape=(2,))

    run = jax.jit(run)
    assert np.isfinite(run(keys)).all()
    np.testing.assert_array_equal(run(keys), run(keys))
    testing.invariance(run, keys, rtol=1e-4)


@pytest.mark.slow
def test_leaves_of_a_pytree_have_paths_of_their_own():
    x = {"image": jnp.zeros((3, 2)), "label": jnp.zeros((3, 2))}
    noise = paths(processes.VP(), 3).noise(jnp.float32(0.9), jnp.float32(0.2), x)
    assert np.abs(noise["image"] - noise["label"]).min() > 0


@pytest.mark.parametrize("settings", [{"tau": 0.0}, {"depth": 0}, {"depth": 40}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError):
        paths(processes.VP(), **settings)
    with pytest.raises(ValueError, match="one per sample"):
        solvers.brownian(jax.random.key(0), processes.VP())


def test_a_process_that_repeats_entries_refuses_a_path():
    process = processes.Symmetric(processes.VP())
    grid = jd.grids.uniform(process, 3)
    with pytest.raises(ValueError, match="keys for Symmetric, got a Brownian path"):
        jd.sample(paths(process), lambda x, t: x, process, solvers.ancestral(), grid, shape=(2, 2))


def test_langevin_correctors_refuse_a_path():
    process = processes.VP()
    solver, grid = solvers.predictor_corrector(), jd.grids.uniform(process, 3)
    with pytest.raises(ValueError, match="keys"):
        jd.sample(paths(process), TARGET.denoiser(process), process, solver, grid, shape=(2,))
