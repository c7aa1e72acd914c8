"""Measured orders of convergence on an exact mixture: a wrong order is a wrong formula."""

import jax
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

STEPS = (48, 96, 192, 384)
PROCESSES = [processes.VP(), processes.EDM(), processes.RectifiedFlow()]
LAW = (
    [[1.5, 0.0], [-0.8, 1.2], [-0.6, -1.3]],
    [[[0.20, 0.05], [0.05, 0.15]], [[0.15, 0.0], [0.0, 0.30]], [[0.25, -0.1], [-0.1, 0.20]]],
    [0.4, 0.35, 0.25],
)
TARGET = testing.gaussian_mixture(*LAW)
ONE_EVALUATION = {
    "euler": (solvers.euler(), 1),
    "ddim": (solvers.ddim(), 1),
    "euler_maruyama(0)": (solvers.euler_maruyama(tau=0.0), 1),
    "dpmpp 1": (solvers.dpmpp_multistep(order=1), 1),
    "dpmpp 2": (solvers.dpmpp_multistep(order=2), 2),
    "dpmpp 2 lagrange": (solvers.dpmpp_multistep(order=2, rule="lagrange"), 2),
    "dpmpp 3": (solvers.dpmpp_multistep(order=3), 3),
    "dpm 3": (solvers.dpm_multistep(order=3), 3),
    "unipc 2": (solvers.unipc(2, lower_order_final=False), 3),
    "deis 2": (solvers.deis(2), 2),
    "deis 3": (solvers.deis(3), 3),
    "lms 3": (solvers.lms(3), 3),
    "adams_bashforth 2": (solvers.adams_bashforth(2), 2),
    "adams_bashforth 3": (solvers.adams_bashforth(3), 3),
    "er_sde 3": (solvers.er_sde(3, 0.0), 3),
}
TWO_EVALUATIONS = [solvers.heun(), solvers.midpoint(), solvers.ralston()]


def log_snr_grid(process, steps):
    """Equal steps in log-SNR away from both exact ends.

    The first step of a multistep method has order one; it starts where the data is still hidden by
    noise (log-SNR -4.38, sigma 80), for the estimate to be as good as constant there.
    """
    grid = process.time_of_log_snr(np.linspace(-4.382, 4.0, steps + 1))
    return np.minimum(grid, process.t_max)


@pytest.fixture(params=PROCESSES, ids=lambda p: type(p).__name__)
def problem(request, mixed):
    """A process, starts on its marginal, and where the exact flow takes them."""
    process = request.param
    start, end = log_snr_grid(process, 1)
    with jax.enable_x64(True):
        a, _, c = process.coefficients(start)
        x = a * mixed(*LAW, 32) + c * np.random.default_rng(1).normal(size=(32, 2))
        yield process, x, testing.flow_map(TARGET, process, x, start, end)


def test_methods_of_one_evaluation_a_step_reach_their_order(problem, longer):
    process, x, exact = problem
    denoise = TARGET.denoiser(process)
    run = jax.jit(jax.vmap(lambda plan: jd.sample(None, denoise, process, plan, x=x)))

    def plans(n):
        grid = log_snr_grid(process, n)
        found = [each.plan(process, grid) for each, _ in ONE_EVALUATION.values()]
        return solvers.stack([longer(plan, STEPS[-1]) for plan in found])

    answers = {n: np.asarray(run(plans(n))) for n in STEPS}
    for i, (name, (_, order)) in enumerate(ONE_EVALUATION.items()):
        found = testing.measure_order(lambda n, i=i: answers[n][i], exact, STEPS)
        assert abs(found.slope - order) < 0.15, (name, found)


@pytest.mark.slow
def test_methods_of_two_evaluations_reach_second_order(problem, longer):
    process, x, exact = problem
    denoise = TARGET.denoiser(process)
    run = jax.jit(jax.vmap(lambda plan: jd.sample(None, denoise, process, plan, x=x)))

    def plans(n):
        found = [each.plan(process, log_snr_grid(process, n)) for each in TWO_EVALUATIONS]
        return solvers.stack([longer(plan, 2 * STEPS[-1]) for plan in found])

    answers = {n: np.asarray(run(plans(n))) for n in STEPS}
    for i, each in enumerate(TWO_EVALUATIONS):
        found = testing.measure_order(lambda n, i=i: answers[n][i], exact, STEPS)
        assert abs(found.slope - 2) < 0.15, (each.name, found)
