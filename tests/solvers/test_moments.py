"""The law of a stochastic solver's samples on Gaussian data, exactly and by drawing."""

import jax
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

PROCESSES = [
    processes.VP(),
    processes.EDM(),
    processes.RectifiedFlow(),
    processes.SubVP(),
    processes.VE(sigma_max=100.0),
]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
MEAN, VARIANCE = 0.8, 0.25


def final_moments(plan, process, x_mean, x_variance, mean=MEAN, variance=VARIANCE):
    """Mean and variance of the sampler's last point for 1-D data N(mean, variance).

    The exact denoiser is affine, so the point, the base point and what is remembered stay jointly
    Gaussian: their mean and covariance are carried in float64, without a single draw.
    """
    size = 2 + plan.memory - 1
    state_mean, covariance = np.zeros(size), np.zeros((size, size))
    state_mean[:2], covariance[:2, :2] = x_mean, x_variance
    a, _, c = process.coefficients(plan.t)
    gains = a * variance / (a**2 * variance + c**2)
    for scale, gain, (p, q), next_x, base in zip(a, gains, plan.keep, plan.next, plan.base, strict=True):
        e = np.zeros(size)
        e[0] = p + q * gain
        offset = q * (mean - gain * scale * mean)
        # columns [x, base, e, remembered...] as linear functions of the state
        columns = np.vstack([np.eye(size)[:2], e, np.eye(size)[2:]])
        offsets = np.zeros(size + 1)
        offsets[2] = offset
        rows = np.vstack([next_x[:-1], base[:-1], np.eye(size + 1)[2:size]])
        step = rows @ columns
        noise = np.concatenate([[next_x[-1], base[-1]], np.zeros(size - 2)])
        state_mean = step @ state_mean + rows @ offsets
        covariance = step @ covariance @ step.T + np.outer(noise, noise)
    return state_mean[0], covariance[0, 0]


STOCHASTIC = {
    "ddim(0.5)": (solvers.ddim(0.5), 1),
    "ancestral": (solvers.ancestral(), 1),
    "dpmpp 1 sde": (solvers.dpmpp_multistep(order=1, tau=1.0), 1),
    "dpmpp 2 sde": (solvers.dpmpp_multistep(order=2, tau=1.0), 2),
    "dpmpp 2 sde lagrange": (solvers.dpmpp_multistep(order=2, tau=0.7, rule="lagrange"), 2),
    # the noise within a step, which no polynomial through past estimates knows, keeps it at two
    "dpmpp 3 sde": (solvers.dpmpp_multistep(order=3, tau=1.0), 2),
    "euler_maruyama": (solvers.euler_maruyama(), 1),
    "euler_maruyama(0.5)": (solvers.euler_maruyama(tau=0.5), 1),
    "reverse_diffusion": (solvers.reverse_diffusion(), 1),
    "reverse_diffusion(1.5)": (solvers.reverse_diffusion(1.5), 1),
    "reverse_diffusion(0)": (solvers.reverse_diffusion(0.0), 1),
    "ancestral large": (solvers.ancestral("large"), 1),
    "dpmpp 3 published": (solvers.dpmpp_multistep(3, published=True), 2),
    "seeds 2 data": (solvers.seeds(2, prediction="data"), 2),
    "seeds 3": (solvers.seeds(3), 2),
    "seeds 3 (0)": (solvers.seeds(3, tau=0.0), 3),
    "sa 1 1": (solvers.sa_solver(1, 1, lower_order_final=False), 1),
    "sa 2 0": (solvers.sa_solver(2, 0, lower_order_final=False), 2),
    "sa 2 3 noise": (solvers.sa_solver(2, 3, 1.0, "noise", lower_order_final=False), 2),
    "sa 3 4 (1.5)": (solvers.sa_solver(3, 4, tau=1.5, lower_order_final=False), 2),
    "er_sde 1": (solvers.er_sde(1), 1),
    "er_sde 2": (solvers.er_sde(2), 2),
    "er_sde 3 (1)": (solvers.er_sde(3, 1.0), 2),
    "er_sde 3 (0)": (solvers.er_sde(3, 0.0), 3),
    "er_sde 3 (0) published": (solvers.er_sde(3, 0.0, published=True), 2),
    "churn heun": (solvers.churn(10.0, 0.0, np.inf, 1.0), 2),
    "churn euler": (solvers.churn(10.0, 0.0, np.inf, 1.0, method="euler"), 1),
}


@pytest.mark.parametrize("process", PROCESSES[:4], ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_law_of_the_samples_converges_at_its_weak_order(process, name):
    solver, order = STOCHASTIC[name]
    steps = (96, 192, 384)
    errors = []
    for n in steps:
        grid = np.minimum(process.time_of_log_snr(np.linspace(-4.382, 3.0, n + 1)), process.t_max)
        (a_t, a_s), _, (c_t, c_s) = process.coefficients(grid[[0, -1]])
        plan = solver.plan(process, grid)
        start = a_t * MEAN, a_t**2 * VARIANCE + c_t**2
        found = final_moments(plan, process, *start)
        exact = a_s * MEAN, a_s**2 * VARIANCE + c_s**2
        errors.append(np.abs(np.subtract(found, exact)))
    errors = np.array(errors)
    assert errors[-1].max() < (0.05 if order == 1 else 1e-3)
    assert abs(testing.convergence_order(errors[:, 1], steps) - order) < 0.2, errors


def test_drawn_samples_have_the_law_of_the_table():
    """The executor draws standard, independent noise in every row."""
    process, n = processes.VP(), 40_000
    target = testing.gaussian([MEAN], [VARIANCE])
    grid = jd.grids.log_snr(process, 6)
    plan = solvers.dpmpp_multistep(order=2, tau=1.0).plan(process, grid)
    mean, variance = final_moments(plan, process, 0.0, process.coefficients(1.0)[2] ** 2)
    keys = jax.random.split(jax.random.key(0), n)
    run = jax.jit(lambda keys: jd.sample(keys, target.denoiser(process), process, plan, shape=(1,)))
    x = np.asarray(run(keys))
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / n)
    assert abs(x.var() / variance - 1) < 4 * np.sqrt(2 / n)


EXACT_ON_A_POINT = {
    "seeds 3": solvers.seeds(3, prediction="data"),
    "sa": solvers.sa_solver(2, 3, tau=1.4, lower_order_final=False),
    "sa levels": solvers.sa_solver(3, 3, tau=lambda t: np.where(t > 0.2, 1.0, 0.0)),
    "er_sde": solvers.er_sde(),
    "churn": solvers.churn(30.0, 0.0, np.inf, 1.0),
    "dpmpp 3 levels": solvers.dpmpp_multistep(3, tau=np.array([0.0, 2.0, 1.0, 0.3, 1.0])),
}


@each
@pytest.mark.parametrize("name", EXACT_ON_A_POINT)
def test_a_single_point_is_sampled_exactly_at_any_noise_level(process, name):
    """If all data is one point m, every x_t is N(a m, c^2): what is drawn replaces what is taken away."""
    log_snr = np.array([-3.0, -2.2, -0.4, 0.1, 1.9, 3.0])
    grid = process.time_of_log_snr(log_snr)
    plan = EXACT_ON_A_POINT[name].plan(process, grid)
    (a_t, a_s), _, (c_t, c_s) = process.coefficients(grid[[0, -1]])
    found = final_moments(plan, process, a_t * MEAN, c_t**2, variance=0.0)
    np.testing.assert_allclose(found, (a_s * MEAN, c_s**2), rtol=1e-9)


@pytest.mark.parametrize("name", [*EXACT_ON_A_POINT, "seeds 2"])
def test_processes_differ_by_time_and_scale_only(name):
    """On the same log-SNR the law of `x / sqrt(a^2 + c^2)` is the same under every process."""
    solver = EXACT_ON_A_POINT.get(name, solvers.seeds(2))
    if name == "sa levels":
        solver = solvers.sa_solver(3, 3, tau=np.array([0.0, 2.0, 1.0, 0.3, 1.0]))
    laws = []
    for process in PROCESSES:
        grid = process.time_of_log_snr(np.array([-3.0, -2.2, -0.4, 0.1, 1.9, 3.0]))
        (a_t, a_s), _, (c_t, c_s) = process.coefficients(grid[[0, -1]])
        start = a_t * MEAN, a_t**2 * VARIANCE + c_t**2
        mean, variance = final_moments(solver.plan(process, grid), process, *start)
        laws.append((mean / np.hypot(a_s, c_s), variance / (a_s**2 + c_s**2)))
    np.testing.assert_allclose(laws[1:], [laws[0]] * (len(laws) - 1), rtol=1e-8)


def test_churn_has_the_spread_of_published_runs():
    """N(0, 1/4), s_churn 10, 18, 50 and 200 Euler steps: what k-diffusion was measured to give."""
    process = processes.EDM()
    for steps, std in ((18, 0.388), (50, 0.451), (200, 0.487)):
        plan = solvers.churn(10.0, 0.0, np.inf, 1.0, "euler").plan(process, jd.grids.karras(process, steps))
        _, variance = final_moments(plan, process, 0.0, 80.0**2, mean=0.0)
        assert abs(np.sqrt(variance) - std) < 1e-3


TARGET = testing.gaussian_mixture(
    [[1.5, 0.0], [-0.8, 1.2], [-0.6, -1.3]],
    [[[0.20, 0.05], [0.05, 0.15]], [[0.15, 0.0], [0.0, 0.30]], [[0.25, -0.1], [-0.1, 0.20]]],
    [0.5, 0.3, 0.2],
)
ONE_EVALUATION = [
    solvers.ddim(0.5),
    solvers.ancestral(),
    solvers.dpmpp_multistep(2, tau=1.5),
    solvers.dpmpp_multistep(3, tau=lambda t: np.where(t > 0.3, 1.0, 0.0)),
    solvers.sa_solver(2, 2, tau=0.5),
    solvers.sa_solver(3, 3, tau=1.5),
    solvers.er_sde(3),
    solvers.er_sde(3, 1.0),
]
SEVERAL = [solvers.churn(20.0, 0.0, np.inf, 1.0), solvers.seeds(2, tau=0.6), solvers.seeds(2, tau=1.5)]


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES[1:3], ids=lambda p: type(p).__name__)
def test_mixtures_keep_their_mean_covariance_and_weights(process):
    """At many steps, for noise levels from 0.5 to 1.5; 5,000 draws, four standard errors."""
    n = 5_000
    keys = jax.random.split(jax.random.key(0), n)
    walk = jax.vmap(lambda rows: jd.sample(keys, TARGET.denoiser(process), process, rows, shape=(2,)))
    run = jax.jit(walk, compiler_options={"xla_backend_optimization_level": 1})  # the loop is what costs
    clean = np.asarray(TARGET.sample(jax.random.key(1), 100_000))
    centres = np.array([[1.5, 0.0], [-0.8, 1.2], [-0.6, -1.3]])

    def summary(x):
        nearest = np.argmin(((x[:, None] - centres) ** 2).sum(-1), axis=1)
        return np.concatenate([np.eye(3)[nearest], x, x**2, x[:, :1] * x[:, 1:]], axis=1)

    truth, spread = summary(clean).mean(0), summary(clean).std(0)
    for family, steps in ((ONE_EVALUATION, 200), (SEVERAL, 100)):
        grid = jd.grids.log_snr(process, steps)
        for x in np.asarray(run(solvers.stack([solver.plan(process, grid) for solver in family]))):
            miss = (summary(x).mean(0) - truth) / spread * np.sqrt(n / 1.1)
            assert np.abs(miss).max() < 4, miss
