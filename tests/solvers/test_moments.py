"""The law of a stochastic solver's samples on Gaussian data, exactly and by drawing."""

import jax
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

PROCESSES = [processes.VP(), processes.EDM(), processes.RectifiedFlow(), processes.SubVP()]
MEAN, VARIANCE = 0.8, 0.25


def final_moments(plan, process, x_mean, x_variance):
    """Mean and variance of the sampler's last point for 1-D data N(MEAN, VARIANCE).

    The exact denoiser is affine, so the point, the base point and what is remembered stay jointly
    Gaussian: their mean and covariance are carried in float64, without a single draw.
    """
    size = 2 + plan.memory - 1
    state_mean, covariance = np.zeros(size), np.zeros((size, size))
    state_mean[:2], covariance[:2, :2] = x_mean, x_variance
    for t, (p, q), next_x, base in zip(plan.t, plan.keep, plan.next, plan.base, strict=True):
        a, _, c = process.coefficients(t)
        gain = a * VARIANCE / (a**2 * VARIANCE + c**2)
        e = np.zeros(size)
        e[0] = p + q * gain
        offset = q * (MEAN - gain * a * MEAN)
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
}


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_law_of_the_samples_converges_at_its_weak_order(process, name):
    solver, order = STOCHASTIC[name]
    steps = (96, 192, 384, 768)
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
    x = np.asarray(jd.sample(keys, target.denoiser(process), process, plan, shape=(1,)))
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / n)
    assert abs(x.var() / variance - 1) < 4 * np.sqrt(2 / n)
