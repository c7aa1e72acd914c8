"""SA-Solver against its algorithm with integrals by adaptive quadrature, and UniPC in the limit."""

import numpy as np
import pytest
from scipy.integrate import quad

import jaxdiff as jd

S = jd.solvers
RNG = np.random.default_rng(0)
PROCESSES = [jd.processes.VP(), jd.processes.EDM(), jd.processes.RectifiedFlow()]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def denoise(x, t):
    return np.tanh(x) + 0.3 * np.cos(x + 3 * t)


def uneven(process, steps=6):
    return process.time_of_log_snr(np.sort(np.random.default_rng(1).uniform(-3, 3, steps + 1)))


def integral(nodes, j, h, k, simple):
    """Weight of estimate j at `nodes` (relative to the step's start) in `int k exp(-k (h - u)) D(u) du`."""

    def polynomial(u):
        return np.prod([(u - n) / (nodes[j] - n) for m, n in enumerate(nodes) if m != j])

    if simple and len(nodes) == 2:  # the slope's integral is replaced by its leading order
        mass = -np.expm1(-k * h)
        corner = polynomial(0.0)
        return corner * mass + (polynomial(1.0) - corner) * k * h**2 / 2
    return quad(lambda u: k * np.exp(-k * (h - u)) * polynomial(u), 0, h, epsabs=1e-13)[0]


def algorithm_1(process, grid, x, noise, predictor, corrector, tau, lower, simple):
    a, _, c = process.coefficients(grid)
    log_snr, steps = process.log_snr(grid), len(grid) - 1
    estimates = [denoise(x, grid[0])]  # newest first
    for i in range(steps):
        h, k = log_snr[i + 1] - log_snr[i], 1 + tau[i] ** 2
        taken = c[i + 1] / c[i] * np.exp(-(tau[i] ** 2) * h) * x
        taken = taken + c[i + 1] * np.sqrt(-np.expm1(-2 * tau[i] ** 2 * h)) * noise[i]
        most = min(i + 1, steps - i) if lower else i + 1
        nodes = [log_snr[i - m] - log_snr[i] for m in range(min(predictor, most))]
        x = taken + a[i + 1] * sum(integral(nodes, j, h, k, simple) * estimates[j] for j in range(len(nodes)))
        if i + 1 == steps:
            return x
        estimates = [denoise(x, grid[i + 1]), *estimates]
        if corrector:
            nodes = [h, *[log_snr[i - m] - log_snr[i] for m in range(min(corrector - 1, most))]]
            x = taken + a[i + 1] * sum(
                integral(nodes, j, h, k, simple) * estimates[j] for j in range(len(nodes))
            )


@each
@pytest.mark.parametrize(
    "predictor, corrector, lower, published",
    [(1, 1, True, False), (2, 2, True, True), (2, 2, True, False), (3, 4, False, False), (4, 0, False, True),
     (2, 4, True, False), (4, 2, False, True)],
)  # fmt: skip
def test_it_is_algorithm_1(process, predictor, corrector, lower, published, walk):
    grid = uneven(process)
    tau = np.array([0.0, 1.0, 0.5, 1.5, 1.0, 0.3])
    solver = S.sa_solver(predictor, corrector, tau, lower_order_final=lower, published=published)
    x, noise = RNG.normal(size=3), RNG.normal(size=(6, 3))
    expected = algorithm_1(process, grid, x, noise, predictor, corrector, tau, lower, published)
    rows = solver.plan(process, grid)
    np.testing.assert_allclose(walk(rows, x, noise, denoise), expected, rtol=1e-8, atol=1e-8)
    assert rows.nfe == 6


@each
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_without_noise_it_is_unipc(process, order, walk):
    grid, x, none = uneven(process), RNG.normal(size=3), np.zeros((6, 3))
    for lower in (True, False):
        rows = S.unipc(order, lower_order_final=lower).plan(process, grid)
        expected = algorithm_1(process, grid, x, none, order, order + 1, none[:, 0], lower, False)
        np.testing.assert_allclose(walk(rows, x, none, denoise), expected, rtol=1e-8, atol=1e-8)
        ours = S.sa_solver(order, order + 1, 0.0, lower_order_final=lower).plan(process, grid)
        np.testing.assert_array_equal(ours.next, rows.next)
        assert not ours.noisy and not rows.noisy


@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_from_data_to_pure_noise_the_last_step_is_of_ddim(prediction):
    """There is no log-SNR to correct in: the row's estimate is of data in either prediction."""
    process = jd.processes.RectifiedFlow()
    grid = np.linspace(0.1, 1.0, 5)
    rows = S.unipc(2, prediction=prediction).plan(process, grid)
    expected = np.zeros(rows.next.shape[1])
    expected[[0, 2]] = S.ddim().plan(process, grid).next[-1, [0, 2]]
    np.testing.assert_allclose(rows.next[-1], expected, atol=1e-12)
    np.testing.assert_array_equal((0.0, 1.0) if rows.plain else rows.keep[-1], (0.0, 1.0))


@each
def test_without_corrector_it_is_the_multistep_sde(process):
    grid = uneven(process)
    for order in (1, 2, 3):
        ours = S.sa_solver(order, 0, 0.8, lower_order_final=False).plan(process, grid)
        other = S.dpmpp_multistep(order, tau=0.8, rule="lagrange").plan(process, grid)
        np.testing.assert_allclose(ours.next, other.next, rtol=1e-12)
        ours = S.sa_solver(order, 0, 0.8, "noise", lower_order_final=False).plan(process, grid)
        other = S.dpm_multistep(order, tau=0.8, rule="lagrange").plan(process, grid)
        np.testing.assert_allclose(ours.next, other.next, rtol=1e-12)


def test_the_noise_of_a_step_is_in_its_correction():
    """A draw of row i moves x and the base point alike, and the corrected point keeps it."""
    process = jd.processes.VP()
    rows = S.sa_solver(2, 2, 1.0).plan(process, uneven(process))
    np.testing.assert_array_equal(rows.base[:, -1], rows.next[:, -1])
    assert (rows.next[:, -1] > 0).all()
    np.testing.assert_array_equal(rows.next[1:, 0], 0)
    assert (rows.next[1:, 1] > 0).all()


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: S.sa_solver(0), "predictor 1, 2, 3 or 4, got 0"),
        (lambda: S.sa_solver(2, 6), "corrector 0, 1, 2, 3, 4 or 5, got 6"),
        (lambda: S.sa_solver(tau=-1.0), "tau of at least 0, got -1"),
        (lambda: S.sa_solver(prediction="v"), "unknown prediction 'v'"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
