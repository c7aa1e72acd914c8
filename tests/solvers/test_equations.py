"""Every displayed update rule, written out, against the table's numbers."""

import numpy as np
import pytest
from scipy import integrate

import jaxdiff as jd

PROCESSES = [jd.processes.VP(), jd.processes.EDM(t_max=20.0), jd.processes.RectifiedFlow(t_max=0.98)]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def quantities(process, steps=5):
    grid = jd.grids.karras(process, steps, end=process.t_min)
    a, _, c = process.coefficients(grid)
    return grid, a, c, np.diff(process.log_snr(grid))


@each
def test_ddim_and_ancestral(process):
    grid, a, c, h = quantities(process)
    for eta in (0.0, 0.3, 1.0):
        rows = jd.solvers.ddim(eta).plan(process, grid)
        kappa = 1 - np.exp(-2 * h)
        root = c[1:] * np.sqrt(1 - eta**2 * kappa)
        np.testing.assert_allclose(rows.next[:, 0], root / c[:-1], rtol=1e-9)
        np.testing.assert_allclose(rows.next[:, 2], a[1:] - root * a[:-1] / c[:-1], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(rows.next[:, 3], eta * c[1:] * np.sqrt(kappa), rtol=1e-9)
        assert rows.noisy == (eta > 0) and rows.plain and not rows.based
    ancestral = jd.solvers.ancestral().plan(process, grid)
    for i in range(5):
        for x, x0 in [(1.0, 0.0), (0.0, 1.0)]:
            mean, std = process.posterior(np.array([x]), np.array([x0]), grid[i], grid[i + 1])
            np.testing.assert_allclose(
                ancestral.next[i, 0] * x + ancestral.next[i, 2] * x0, mean[0], rtol=1e-5
            )
            np.testing.assert_allclose(ancestral.next[i, 3], std, rtol=1e-5)


@each
@pytest.mark.parametrize("tau", [0.0, 0.6, 1.0, 1.5])
def test_dpmpp_multistep(process, tau):
    grid, a, c, h = quantities(process)
    k = 1 + tau**2
    m = 1 - np.exp(-k * h)
    second = jd.solvers.dpmpp_multistep(2, tau=tau).plan(process, grid).next
    third = jd.solvers.dpmpp_multistep(3, tau=tau).plan(process, grid).next
    for rows in (second, third):
        np.testing.assert_allclose(rows[:, 0], c[1:] / c[:-1] * np.exp(-(tau**2) * h), rtol=1e-9)
        noise = c[1:] * np.sqrt(1 - np.exp(-2 * tau**2 * h))
        np.testing.assert_allclose(rows[:, -1], noise, rtol=1e-9)
        np.testing.assert_allclose(rows[:, 2:-1].sum(1), a[1:] * m, rtol=1e-9)
        np.testing.assert_allclose(rows[0, 3:-1], 0)
    r = h[:-1] / h[1:]
    np.testing.assert_allclose(second[1:, 2], (a[1:] * m)[1:] * (1 + 1 / (2 * r)), rtol=1e-9)
    np.testing.assert_allclose(second[1:, 3], -(a[1:] * m)[1:] / (2 * r), rtol=1e-9)
    i = 3
    nodes = [0.0, -h[i - 1], -h[i - 1] - h[i - 2]]
    for j in range(3):

        def integrand(u, j=j):
            polynomial = np.prod([(u - nodes[n]) / (nodes[j] - nodes[n]) for n in range(3) if n != j])
            return k * np.exp(-k * (h[i] - u)) * polynomial

        weight = a[i + 1] * integrate.quad(integrand, 0, h[i], epsabs=1e-13, epsrel=1e-12)[0]
        np.testing.assert_allclose(third[i, 2 + j], weight, rtol=1e-9)


def test_third_order_has_the_factor_two_that_the_published_one_lacks():
    """VP, uniform log-SNR: the second difference enters as phi_3 D'' with D'' = 2 (..) / (r0 + r1)."""
    process = jd.processes.VP()
    grid = jd.grids.log_snr(process, 8, end=1e-3)
    h = np.diff(process.log_snr(grid))[4]
    a = process.coefficients(grid)[0][5]
    e = np.expm1(-h)
    phi2, phi3 = e / h + 1, (e / h + 1) / h - 0.5
    # r0 = r1 = 1: D1 = (3 D_0 - 4 D_-1 + D_-2) / 2, D2 = D_0 - 2 D_-1 + D_-2
    expected = a * np.array([-e + 1.5 * phi2 - phi3, -2 * phi2 + 2 * phi3, 0.5 * phi2 - phi3])
    rows = jd.solvers.dpmpp_multistep(3).plan(process, grid).next
    np.testing.assert_allclose(rows[4, 2:5], expected, rtol=1e-8)


@each
def test_euler_heun_and_euler_maruyama(process):
    grid, a, c, _ = quantities(process)
    da, _, dc = process.derivatives(grid)
    p, q, dt = dc / c, da - a * dc / c, np.diff(grid)
    euler = jd.solvers.euler().plan(process, grid).next
    np.testing.assert_allclose(euler[:, 0], 1 + dt * p[:-1], rtol=1e-9)
    np.testing.assert_allclose(euler[:, 2], dt * q[:-1], rtol=1e-9)
    heun = jd.solvers.heun().plan(process, grid)
    np.testing.assert_allclose(heun.keep[0::2], np.stack([p[:-1], q[:-1]], -1), rtol=1e-9)
    np.testing.assert_allclose(heun.keep[1::2], np.stack([p[1:], q[1:]], -1), rtol=1e-9)
    for i in range(5):  # columns: x, base, d, d_previous, noise
        np.testing.assert_allclose(heun.next[2 * i], [1, 0, dt[i], 0, 0], rtol=1e-9)
        np.testing.assert_allclose(heun.base[2 * i], [1, 0, 0, 0, 0])
        np.testing.assert_allclose(heun.next[2 * i + 1], [0, 1, dt[i] / 2, dt[i] / 2, 0], rtol=1e-9)
    for tau in (0.0, 0.5, 1.0):
        f, g2 = process.sde(grid[:-1])
        rows = jd.solvers.euler_maruyama(tau).plan(process, grid).next
        k = (1 + tau**2) / 2
        np.testing.assert_allclose(rows[:, 0], 1 + dt * (f + k * g2 / c[:-1] ** 2), rtol=1e-9)
        np.testing.assert_allclose(rows[:, 2], -dt * k * g2 * a[:-1] / c[:-1] ** 2, rtol=1e-9)
        np.testing.assert_allclose(rows[:, 3], tau * np.sqrt(g2 * -dt), rtol=1e-9)


def test_heun_on_edm_is_algorithm_1():
    process = jd.processes.EDM()
    grid = jd.grids.karras(process, 6)
    x = np.array([[3.0, -40.0]])

    def denoise(x, t):
        return x / (1 + t**2) + 0.1

    expected = x
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        d = (expected - denoise(expected, t)) / t
        moved = expected + (s - t) * d
        if s > 0:
            moved = expected + (s - t) * 0.5 * (d + (moved - denoise(moved, s)) / s)
        expected = moved
    import jax

    with jax.enable_x64(True):
        out = jd.sample(None, denoise, process, jd.solvers.heun(), grid, x=x)
    np.testing.assert_allclose(out, expected, rtol=1e-10)


def test_weights_in_float32_agree_with_float64_at_a_thousand_steps():
    """Published closed forms lose everything to cancellation here."""
    process = jd.processes.VP()
    for order in (1, 2, 3):
        rows = jd.solvers.dpmpp_multistep(order).plan(process, jd.grids.log_snr(process, 1000))
        rounded = rows.next.astype(np.float32)
        np.testing.assert_allclose(rounded, rows.next, rtol=1e-6)
        h = np.diff(process.log_snr(jd.grids.log_snr(process, 1000)))[500]
        if order == 3:  # as h -> 0: Adams-Bashforth weights 23/12, -16/12, 5/12
            a = process.coefficients(jd.grids.log_snr(process, 1000))[0][501]
            np.testing.assert_allclose(rows.next[500, 2:5] / (a * h), np.array([23, -16, 5]) / 12, rtol=2 * h)


@pytest.mark.parametrize("second", ["lagrange", "midpoint"])
@pytest.mark.parametrize("tau", [0.0, 1.0])
def test_published_third_order_is_that_of_k_diffusion_and_diffusers(second, tau):
    """`D2` without its factor 2; they differ in the weights of the second-order steps."""
    process = jd.processes.VP()
    grid = process.time_of_log_snr(np.array([-3.0, -2.2, -1.9, -0.5, 0.1, 1.0, 2.6]))
    a, _, c = process.coefficients(grid)
    h = np.diff(process.log_snr(grid))
    solver = jd.solvers.dpmpp_multistep(3, tau, second, lower_order_final=True, published=True)
    rows = solver.plan(process, grid).next
    d = np.random.default_rng(0).normal(size=6)
    for i in range(6):
        z = (1 + tau**2) * h[i]
        m = -np.expm1(-z)
        phi_2 = 1 - m / z
        phi_3 = phi_2 / z - 0.5
        order = min(i + 1, 3, 6 - i)
        expected = m * d[i]
        if order >= 2:
            r = h[i - 1] / h[i]
            slope = (d[i] - d[i - 1]) / r
            expected += (0.5 * m if second == "midpoint" and order == 2 else phi_2) * slope
        if order == 3:
            r_1 = h[i - 2] / h[i]
            before = (d[i - 1] - d[i - 2]) / r_1
            d_1 = slope + r / (r + r_1) * (slope - before)
            expected += phi_2 * (d_1 - slope) - phi_3 * (slope - before) / (r + r_1)
        used = [d[i - j] if i >= j else 0.0 for j in range(3)]
        np.testing.assert_allclose(rows[i, 2:-1] @ used, a[i + 1] * expected, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(rows[i, 0], c[i + 1] / c[i] * np.exp(-(tau**2) * h[i]), rtol=1e-12)


@each
@pytest.mark.parametrize("coordinate", ["time", "sigma"])
def test_deis_integrates_polynomials_in_its_coordinate(process, coordinate):
    grid, a, c, _ = quantities(process)
    log_snr = process.log_snr(grid)
    of = {"time": process.time_of_log_snr, "sigma": lambda v: np.exp(-v)}[coordinate]
    place = of(log_snr)
    for order in (1, 2, 3, 4):
        rows = jd.solvers.deis(order, coordinate).plan(process, grid)
        np.testing.assert_allclose(rows.keep, np.stack([1 / c, -a / c], -1)[:-1], rtol=1e-9)
        np.testing.assert_allclose(rows.next[:, 0], a[1:] / a[:-1], rtol=1e-9)
        for i in range(5):
            past = place[np.maximum(i - np.arange(order), 0)]
            for power in range(min(order, i + 1)):

                def integrand(v, power=power):  # of E = coordinate^power over d(c / a) = -exp(-log_snr)
                    return -np.exp(-v) * of(np.array([v]))[0] ** power

                whole = integrate.quad(integrand, log_snr[i], log_snr[i + 1], epsabs=1e-12)[0]
                found = rows.next[i, 2:-1] @ past**power
                np.testing.assert_allclose(found, a[i + 1] * whole, rtol=1e-6, atol=1e-9)


@each
@pytest.mark.parametrize("coordinate", ["time", "sigma", "log_snr"])
def test_adams_bashforth_integrates_polynomials_in_its_coordinate(process, coordinate):
    grid, a, c, _ = quantities(process)
    log_snr = process.log_snr(grid)
    theta, scale = {"time": (grid, 1 + 0 * a), "sigma": (c / a, a), "log_snr": (log_snr, c)}[coordinate]
    da, _, dc = process.derivatives(grid)
    slopes = {"time": (dc / c, da - a * dc / c), "sigma": (1 / c, -a / c), "log_snr": (0 * a, a / c)}
    for order in (1, 2, 3, 4):
        rows = jd.solvers.adams_bashforth(order, coordinate).plan(process, grid)
        np.testing.assert_allclose(rows.keep, np.stack(slopes[coordinate], -1)[:-1], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(rows.next[:, 0], scale[1:] / scale[:-1], rtol=1e-9)
        for i in range(5):
            past = (theta[np.maximum(i - np.arange(order), 0)] - theta[i]) / (theta[i + 1] - theta[i])
            for power in range(min(order, i + 1)):
                expected = scale[i + 1] * (theta[i + 1] - theta[i]) / (power + 1)
                np.testing.assert_allclose(rows.next[i, 2:-1] @ past**power, expected, rtol=1e-9)


def bend(x, t):
    """A denoiser that is neither linear nor constant in time."""
    return np.tanh(x) + 0.3 * np.cos(x + t)


@each
@pytest.mark.parametrize("prediction", ["data", "noise"])
def test_singlestep_methods(process, prediction, walk):
    """2S and 3S as displayed, one step; in noise prediction a and c, and h and -h, are exchanged."""
    log_snr, h = -1.0, 1.7
    place = process.time_of_log_snr(log_snr + h * np.array([0, 1 / 3, 1 / 2, 2 / 3, 1]))
    at = dict(zip((0, 1 / 3, 1 / 2, 2 / 3, 1), place, strict=True))
    x = np.random.default_rng(0).normal(size=4)
    sign = -1 if prediction == "data" else 1
    make = jd.solvers.dpmpp_singlestep if prediction == "data" else jd.solvers.dpm_singlestep

    def levels(r):
        a, _, c = process.coefficients(at[r])
        return (a, c) if prediction == "data" else (c, a)  # of the estimate, and of the point

    def estimate(u, r):
        a, _, c = process.coefficients(at[r])
        return bend(u, at[r]) if prediction == "data" else (u - a * bend(u, at[r])) / c

    def move(r, slope):
        """To node r with the derivatives of the estimate in r."""
        own, other = levels(r)
        z = sign * r * h
        phi = [np.expm1(z), np.expm1(z) / z - 1, ((np.expm1(z) / z - 1) / z) - 0.5]
        return other / levels(0)[1] * x - own * sum(phi[j] * r**j * d for j, d in enumerate(slope))

    first = estimate(x, 0)
    half = estimate(move(1 / 2, [first]), 1 / 2)
    third = estimate(move(1 / 3, [first]), 1 / 3)
    two = estimate(move(2 / 3, [first, 3 * (third - first)]), 2 / 3)
    whole = np.expm1(sign * h)
    own, other = levels(1)
    curve = np.linalg.solve([[1 / 3, 1 / 18], [2 / 3, 2 / 9]], [third - first, two - first])
    expected = {
        (2, "midpoint"): other / levels(0)[1] * x - own * whole * half,
        (2, "lagrange"): move(1, [first, 2 * (half - first)]),
        (3, "midpoint"): move(1, [first, 1.5 * (two - first)]),
        (3, "lagrange"): move(1, [first, *curve]),
    }
    for (order, rule), end in expected.items():
        rows = make(order, rule).plan(process, place[[0, -1]])
        np.testing.assert_allclose(walk(rows, x, np.zeros((3, 4)), bend), end, rtol=1e-9, err_msg=rule)
