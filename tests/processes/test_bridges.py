"""Processes with a second endpoint, against their papers, their SDEs and exact samples."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

P, S = jd.processes, jd.solvers
PINNED = [
    P.StochasticInterpolant(), P.StochasticInterpolant("trigonometric", scale=1.4), P.BrownianBridge(0.7),
    P.DiffusionBridge(P.VP()), P.DiffusionBridge(P.EDM(t_max=2.0)), P.SchrodingerBridge(),
]  # fmt: skip
NOISY = [P.MeanReverting(0.3), P.MeanReverting(0.3, schedule="constant"), P.OrnsteinUhlenbeckVE(),
         P.Residual(0.8), P.ResShift()]  # fmt: skip
each = pytest.mark.parametrize("process", PINNED + NOISY, ids=lambda p: type(p).__name__)
TARGET = jd.testing.gaussian_mixture(
    np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]), np.array([0.05, 0.1, 0.08]), np.array([0.3, 0.4, 0.3])
)


def test_published_coefficients():
    t = np.linspace(0.05, 0.95, 7)
    a, b, c = P.MeanReverting(0.3, remains=0.01, schedule="constant").coefficients(t)
    np.testing.assert_allclose((a, b, c), (0.01**t, 1 - 0.01**t, 0.3 * np.sqrt(1 - 0.01 ** (2 * t))))
    theta = np.array([np.trapezoid(np.sin(np.pi * np.linspace(0, s, 9999) / 2) ** 2 * s) / 9998 for s in t])
    a = P.MeanReverting(0.3, remains=0.01).coefficients(t)[0]
    np.testing.assert_allclose(np.log(a), 2 * theta * np.log(0.01), rtol=1e-6)
    bridge = P.DiffusionBridge(P.VP())  # Zhou et al.: the base, conditioned on its end by Bayes' rule
    (a_t, _, c_t), (a_T, _, c_T) = P.VP().coefficients(t), P.VP().coefficients(1.0)
    r = a_T / a_t  # x_T = r x_t + noise of variance c_T^2 - r^2 c_t^2
    gain = r * c_t**2 / c_T**2
    a, b, c = bridge.coefficients(t)
    np.testing.assert_allclose(b, gain, rtol=1e-10)
    np.testing.assert_allclose(a, a_t - gain * a_T, rtol=1e-10)
    np.testing.assert_allclose(c**2, c_t**2 - gain * r * c_t**2, rtol=1e-10)
    ve = P.DiffusionBridge(P.EDM(t_max=2.0)).coefficients(1.0)
    np.testing.assert_allclose(ve, (0.75, 0.25, np.sqrt(0.75)))
    a, b, c = P.Residual(0.8, residual_power=2.0, noise_power=1.0).coefficients(t)
    np.testing.assert_allclose((a, b, c), ((1 - t) ** 2, 2 * t - t**2, 0.8 * t))
    a, b, c = P.ResShift(kappa=2.0, eta_min=0.04, eta_max=0.9, power=1.0).coefficients(0.5)
    np.testing.assert_allclose((a, b, c), (1 - np.sqrt(0.036), np.sqrt(0.036), 2 * 0.036**0.25))
    bridge = P.SchrodingerBridge(beta_min=0.2, beta_max=2.0)
    u = np.linspace(0, 1, 20001)
    beta = (np.sqrt(0.2) + (np.sqrt(2.0) - np.sqrt(0.2)) * (1 - abs(2 * u - 1))) ** 2
    passed = np.append(0, np.cumsum((beta[1:] + beta[:-1]) / 2)) / 20000
    s = np.interp(t, u, passed)
    total = passed[-1]
    expected = ((total - s) / total, s / total, np.sqrt(s * (total - s) / total))
    np.testing.assert_allclose(bridge.coefficients(t), expected, rtol=1e-6)
    noise = P.OrnsteinUhlenbeckVE(gamma=1.5, sigma_min=0.05, sigma_max=0.5)
    moments = _moments(lambda s: (-1.5 + 0 * s, 2 * np.log(10) * 0.05**2 * 100**s), 0.0, 0.7, 0.0)
    np.testing.assert_allclose(noise.coefficients(0.7)[2] ** 2, moments[1], rtol=1e-6)
    np.testing.assert_allclose(noise.coefficients(0.7)[0], moments[0], rtol=1e-6)


def _moments(sde, start, end, variance, steps=2000):
    """Gain and variance of `dx = f x dt + g dw` from `start` to `end`, by the midpoint rule."""
    dt = (end - start) / steps
    f, g2 = sde(start + dt * 0.5 * np.arange(2 * steps))
    gain = 1.0
    for k in range(0, 2 * steps, 2):
        middle = gain * (1 + f[k] * dt / 2), variance + dt / 2 * (2 * f[k] * variance + g2[k])
        gain, variance = (
            gain + dt * f[k + 1] * middle[0],
            variance + dt * (2 * f[k + 1] * middle[1] + g2[k + 1]),
        )
    return gain, variance


@each
def test_the_forward_sde_has_these_moments(process):
    t, s = 0.3, 0.6
    (a_t, _, c_t), (a_s, _, c_s) = process.coefficients(t), process.coefficients(s)
    gain, variance = _moments(process.sde, t, s, c_t**2, steps=200)
    np.testing.assert_allclose(gain, a_s / a_t, rtol=2e-4)
    np.testing.assert_allclose(variance, c_s**2, rtol=2e-4)


@each
def test_ends_and_inverse(process):
    assert [float(k) for k in process.coefficients(0.0)] == [1.0, 0.0, 0.0]
    assert process.log_snr(0.0) == np.inf and process.time_of_log_snr(np.inf) == 0.0
    t = np.linspace(process.t_min, 0.999 * process.t_max, 17)
    np.testing.assert_allclose(process.time_of_log_snr(process.log_snr(t)), t, rtol=1e-9)

    @jax.jit
    def single(t, level):
        back = process.time_of_log_snr(process.log_snr(t))
        return back, process.coefficients(t)[2], jax.grad(lambda v: process.time_of_log_snr(v))(level)

    back, c, slope = single(np.float32(t), np.float32(0.5))
    np.testing.assert_allclose(back, t, rtol=1e-3)
    np.testing.assert_allclose(c, process.coefficients(t)[2], rtol=1e-4)
    expected = (process.time_of_log_snr(0.501) - process.time_of_log_snr(0.499)) / 0.002
    np.testing.assert_allclose(slope, expected, rtol=1e-2)
    a, _, c = process.coefficients(process.t_max)
    if process in PINNED:
        assert a == 0 and c == 0 and process.log_snr(process.t_max) == -np.inf
        y = jnp.arange(3.0)
        np.testing.assert_array_equal(process.prior(jax.random.key(0), (3,), y), y)


def test_gradients_reach_the_parameters_of_a_numeric_inverse():
    def time(scale):
        return P.MeanReverting(scale).time_of_log_snr(jnp.float32(0.3))

    expected = (
        P.MeanReverting(0.303).time_of_log_snr(0.3) - P.MeanReverting(0.297).time_of_log_snr(0.3)
    ) / 6e-3
    np.testing.assert_allclose(jax.jit(jax.grad(time))(0.3), expected, rtol=1e-2)


@pytest.mark.parametrize(
    "process", [P.BrownianBridge(0.7), P.MeanReverting(0.3), P.ResShift(), P.Residual(0.8)], ids=str
)
def test_posterior_is_bayes_rule_on_a_grid(process):
    """q(x_s | x_t, x0, y) from the marginal at s and the transition from s to t."""
    s, t, x0, y, x_t = 0.4, 0.7, 0.8, -0.5, 0.3
    (a_s, b_s, c_s), (a_t, b_t, c_t) = process.coefficients(s), process.coefficients(t)
    if isinstance(process, P.ResShift | P.Residual):  # sums of shares of the residual and of noise
        gain, shift, variance = 1.0, (b_t - b_s) * (y - x0), c_t**2 - c_s**2
    else:  # of the SDE, in z = x - b y
        gain = a_t / a_s
        shift, variance = (b_t - gain * b_s) * y, c_t**2 - gain**2 * c_s**2
    x = np.linspace(-9, 9, 40001)
    log_q = -0.5 * ((x - a_s * x0 - b_s * y) / c_s) ** 2 - 0.5 * (x_t - gain * x - shift) ** 2 / variance
    q = np.exp(log_q - log_q.max())
    mean = (q * x).sum() / q.sum()
    std = np.sqrt((q * (x - mean) ** 2).sum() / q.sum())
    one = jnp.ones(1)
    got = process.posterior(x_t * one, x0 * one, t, s, y=y * one)
    np.testing.assert_allclose([got[0][0], got[1]], [mean, std], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "process", [P.BrownianBridge(0.7), P.DiffusionBridge(P.VP()), P.MeanReverting(0.3), P.Residual(0.8)],
    ids=lambda p: type(p).__name__,
)  # fmt: skip
def test_measured_order(process, x64):
    """Other methods and processes by their tables: test_every_process."""
    y, noise = np.random.default_rng(0).normal(size=(2, 64, 2))
    x = 0.3 * noise + 0.5 * y
    first, last = process.time_of_log_snr(-1.0), process.time_of_log_snr(3.0)
    exact = jd.testing.flow_map(TARGET, process, x, first, last, y)
    denoise = TARGET.denoiser(process, y)
    grids = [process.time_of_log_snr(np.linspace(-1.0, 3.0, steps + 1)) for steps in (192, 384)]
    run = jax.jit(lambda x: [
        jd.sample(None, denoise, process, S.dpmpp_multistep(2), grid, x=x, y=y) for grid in grids
    ])  # fmt: skip
    errors = [np.median(np.abs(np.asarray(out) - exact).max(axis=1)) for out in run(x)]
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.2, errors


@functools.cache
def data(seed, n):
    return np.float32(jax.jit(lambda key: TARGET.sample(key, n))(jax.random.key(seed)))


@pytest.mark.slow
@each
def test_samples_follow_the_data_for_every_second_endpoint(process):
    """Data independent of y: whatever y is, samples are the mixture, by ODE, SDE and ancestral steps.

    Solvers reach a process through its coefficients alone: all of them on a few, two of them on all.
    """
    y = np.tile(np.float32([[1.5, -2.0]]), (2000, 1))
    denoise = TARGET.denoiser(process, y)
    # what has left the data has to be drawn around y: where some remains, the prior is shifted to the mean
    mean, covariance = TARGET.weights @ TARGET.means, np.cov(data(1, 4000).T)
    first_order = S.dpmpp_multistep(1, tau=1.0), S.ancestral()
    every = S.dpmpp_multistep(2), S.dpmpp_multistep(2, tau=1.0), S.heun("sigma"), S.unipc(2), *first_order
    few = not isinstance(process, P.BrownianBridge | P.MeanReverting | P.ResShift)
    a, b, c = process.coefficients(process.t_max)
    noise = np.random.default_rng(0).normal(size=(2000, 2))
    start = {"x": np.float32(a * data(2, 2000) + b * y + c * noise)}
    if process in PINNED:
        start = {"shape": (2,)}

    @jax.jit
    def run(key, rows):
        return jd.sample(jax.random.split(key, 2000), denoise, process, rows, y=y, **start)

    for solver in (S.unipc(2), S.ancestral()) if few else every:
        rows = solver.plan(process, jd.grids.log_snr(process, 160 if solver in first_order else 40))
        x = np.asarray(run(jax.random.key(0), rows))
        np.testing.assert_allclose(x.mean(0), mean, atol=0.08, err_msg=solver.name)
        np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.1, err_msg=solver.name)


def test_ancestral_steps_follow_a_transition_of_its_own():
    process = P.ResShift()
    grid = jd.grids.uniform(process, 5)
    rows = S.ancestral().plan(process, grid)
    on_z, on_x0, std = process.reverse(grid[:-1], grid[1:])
    np.testing.assert_allclose(rows.next[:, 0], on_z, atol=1e-12)
    np.testing.assert_allclose(rows.next[:, 2], on_x0, atol=1e-12)
    np.testing.assert_allclose(rows.next[:, -1], std, atol=1e-12)


def test_residual_steps_are_the_published_ones():
    """Liu et al. (2024), eq. 13 and 14, in residual and noise; `scale = 0` walks from y to the data."""
    process, y, clean = P.Residual(0.8), np.float32([[0.5, -2.0]]), np.float32([[1.0, 0.3]])
    grid = np.array([1.0, 0.7, 0.4, 0.0])
    x, z = np.float32([[0.9, -1.0]]), np.random.default_rng(0).normal(size=(3, 1, 2)).astype(np.float32)

    @functools.partial(jax.jit, static_argnums=0)
    def walk(process, plan, x):
        return jd.sample(z, lambda x, t: 0 * x + clean, process, plan, x=x, y=y, save="all")

    for eta in (0.0, 0.6, 1.0):
        path = np.asarray(walk(process, S.ddim(eta).plan(process, grid), x))
        expected = x
        for i in range(3):
            (_, r_t, c_t), (_, r_s, c_s) = process.coefficients(grid[i]), process.coefficients(grid[i + 1])
            noise = (expected - clean - r_t * (y - clean)) / c_t
            sigma = eta * np.sqrt(c_s**2 * (c_t**2 - c_s**2)) / c_t
            expected = expected - (r_t - r_s) * (y - clean) - (c_t - np.sqrt(c_s**2 - sigma**2)) * noise
            expected = expected + sigma * z[i]
            np.testing.assert_allclose(path[i + 1], expected, rtol=1e-5, atol=1e-5)
    straight = P.Residual(1.0, residual_power=1.0)  # without a second endpoint: rectified flow, its DDIM
    denoise = TARGET.denoiser(P.RectifiedFlow())
    ours, theirs = jax.jit(lambda x: [
        jd.sample(z, denoise, process, S.ddim(), grid, x=x, y=end)
        for process, end in ((straight, 0 * y), (P.RectifiedFlow(), None))
    ])(x)  # fmt: skip
    np.testing.assert_allclose(ours, theirs, rtol=1e-6)
    still = P.Residual(0.0)
    expected = [y + (1 - still.coefficients(t)[1]) * (clean - y) for t in grid]
    for solver in (S.ddim(), S.euler(), S.dpmpp_multistep(1)):
        np.testing.assert_allclose(walk(still, solver.plan(still, grid), y), expected, rtol=1e-6)
    for solver in (S.heun(), S.dpmpp_multistep(3), S.dpm_multistep(2), S.unipc(3), S.deis(2), S.lms(3)):
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(solver.plan(still, grid))), solver


def test_two_heads_walk_by_residual_and_noise():
    process, y, x = P.Residual(0.8, residual_power=1.0), np.float32([[0.5, -2.0]]), np.float32([[0.9, -1.0]])
    lost, noise = np.float32([[0.2, 0.7]]), np.float32([[-0.4, 1.1]])  # not those of x: nothing cancels
    kinds = jd.parameterizations
    grid = np.array([0.9, 0.6])
    denoisers = {
        kind.name: jd.denoiser(
            kinds.two_heads(lambda x, t: (lost, noise), process, kind, y), process, kind, y
        )
        for kind in (kinds.velocity(), kinds.v(), kinds.residual())
    }
    flow, residual = denoisers["velocity"], denoisers["residual"]

    @jax.jit
    def found(x, y):
        true, end = (process.perturb(y - lost, noise, t, y) for t in (0.9, 1.0))
        step = jd.sample(None, flow, process, S.euler(), grid, x=x, y=y)
        clean = {name: denoise(true, 0.9) for name, denoise in denoisers.items()}
        return clean, flow(end, 1.0), step, residual(x, 0.9)

    clean, at_end, step, other = found(x, y)
    for name, estimate in clean.items():
        np.testing.assert_allclose(estimate, y - lost, rtol=1e-4, err_msg=name)
    # the schedules are straight: the flow's step is the paper's, to the end
    np.testing.assert_allclose(process.derivatives(1.0), (-1.0, 1.0, 0.8), rtol=1e-6)
    np.testing.assert_allclose(at_end, y - lost, rtol=1e-5)
    np.testing.assert_allclose(step, x - 0.3 * lost - 0.3 * 0.8 * noise, rtol=1e-5)
    np.testing.assert_allclose(other, y - lost, rtol=1e-6)
    with pytest.raises(ValueError, match="two_heads: expected velocity"):
        kinds.two_heads(lambda x, t: (x, x), process, kinds.edm(), y)


@pytest.mark.parametrize("given_y", [False, True])
def test_preconditioning_between_correlated_ends(given_y):
    """Input and target of unit variance; the target is uncorrelated with what the skip connection sees."""
    kind = jd.parameterizations.bridge(0.6, 0.9, 0.4, given_y)
    draws = np.random.default_rng(0).normal(size=(3, 200_000))
    x0, y, noise = np.linalg.cholesky([[0.36, 0.4, 0], [0.4, 0.81, 0], [0, 0, 1]]) @ draws
    for process in (P.BrownianBridge(0.7), P.DiffusionBridge(P.VP()), P.MeanReverting(0.3), P.Residual(0.8)):
        for t in (0.1, 0.5, 0.9):
            a, b, c = process.coefficients(t)
            k, (p, q) = kind.coefficients(process, t), kind.target_coefficients(process, t)
            r = kind.on_y(process, t, **kind.numbers)
            x, target = a * x0 + b * y + c * noise, p * x0 + q * noise + r * y
            got = np.var(k.c_in * x), np.var(target), np.mean(x * target)
            np.testing.assert_allclose(got, (1, 1, 0), atol=0.02, err_msg=f"{process} {t}")
            if given_y:
                assert abs(np.mean(y * target)) < 0.02
            back = k.c_skip * (x - b * y) + k.c_out * (target - r * y)
            np.testing.assert_allclose(back, x0, atol=1e-9)
    flow = P.RectifiedFlow()
    kind, edm = jd.parameterizations.bridge(0.6, 0.9, 0.0, given_y), jd.parameterizations.edm(0.6)
    ours, theirs = (k.coefficients(flow, 0.3) for k in (kind, edm))
    np.testing.assert_allclose(ours[:3], theirs[:3], rtol=1e-12)
    assert ours.c_noise == 0.3 and kind.coefficients(P.BrownianBridge(), 1.0).c_noise == 1.0
    bridge, x = P.BrownianBridge(0.7), np.float32([[0.3, -1.0]])
    denoise = jd.denoiser(lambda x, c: 0.1 * x, bridge, kind, 2 * x)
    at_data, at_end = jax.jit(lambda x: (denoise(x, 0.0), denoise(2 * x, 1.0)))(x)
    np.testing.assert_allclose(at_data, x, rtol=1e-6)
    assert np.isfinite(at_end).all()
    with pytest.raises(ValueError, match="covariance within 0.54"):
        jd.parameterizations.bridge(0.6, 0.9, -0.6)


def test_the_weight_of_consecutive_bridges():
    bridge = P.BrownianBridge(np.sqrt(2))
    weight, c_out = jax.jit(lambda t: (
        jd.weightings.inverse_deviation()(bridge, t),
        jd.parameterizations.difference().coefficients(bridge, t).c_out,
    ))(np.float32([0.5, 0.9, 0.001]))  # fmt: skip
    np.testing.assert_allclose(weight, [np.sqrt(2), 1 / np.sqrt(0.18), 5.0], rtol=1e-5)
    np.testing.assert_array_equal(c_out, -np.ones(3))  # so the weight is the output's as well


def test_a_bridge_takes_one_exact_draw_from_its_pinned_end():
    process, y = P.BrownianBridge(0.7), np.ones((3, 2), np.float32)
    grid = jd.grids.uniform(process, 4)
    noise = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)

    @jax.jit
    def walk(rows):
        return jd.sample(noise, lambda x, t: 0.0 * x + 3.0, process, rows, x=y, y=y, save="all")

    for solver in (S.ddim(), S.dpmpp_multistep(3), S.unipc(3), S.euler(), S.dpm_multistep(2), S.lms(3)):
        rows = solver.plan(process, grid)
        assert rows.nfe == 4 and rows.steps == 4 and rows.noisy, solver.name
        path = np.asarray(walk(rows))
        expected = 3 * 0.25 + 0.75 * y + 0.7 * np.sqrt(3 / 16) * noise[0]
        np.testing.assert_allclose(path[1], expected, rtol=1e-5, err_msg=solver.name)
        np.testing.assert_allclose(path[-1], 3.0, rtol=1e-5)
        np.testing.assert_array_equal(path[0], y)


@each
def test_the_denoiser_of_every_parameterization(process):
    """An ideal network of each kind gives the same clean estimate."""
    x0, y = jnp.array([[0.4, -1.0]]), jnp.array([[2.0, 0.3]])
    noise, t = jnp.array([[-0.7, 0.2]]), jnp.array([0.35])
    x = process.perturb(x0, noise, t, y)
    kinds = jd.parameterizations
    interior = (
        process.replace(t_max=0.99)
        if hasattr(process, "replace") and "base" not in vars(process)
        else process
    )
    for kind in (
        kinds.data(), kinds.v(), kinds.velocity(), kinds.noise(), kinds.residual(), kinds.edm(0.5),
        kinds.difference(), kinds.bridge(0.5, 0.7, 0.2), kinds.bridge(0.5, 0.7, 0.2, given_y=True),
    ):  # fmt: skip
        ideal = kind.target(process, x0, noise, t, y)
        if "base" not in vars(process):
            clean = jd.denoiser(lambda x, c, ideal=ideal: ideal, interior, kind, y)(x, t)
            np.testing.assert_allclose(clean, x0, rtol=2e-4, atol=2e-5, err_msg=kind.name)
        back = jd.convert(ideal, x, t, process, kind, kinds.data(), y=y)
        np.testing.assert_allclose(back, x0, rtol=2e-4, atol=2e-5, err_msg=kind.name)
    h = 1e-3
    ahead, behind = (process.perturb(x0, noise, t + s * h, y) for s in (1, -1))
    np.testing.assert_allclose(
        kinds.velocity().target(process, x0, noise, t, y), (ahead - behind) / (2 * h), rtol=5e-3, atol=5e-3
    )


def test_wrong_arguments():
    bridge, x = P.BrownianBridge(), jnp.zeros((2, 3))
    with pytest.raises(ValueError, match="pass it as y="):
        bridge.perturb(x, x, 0.5)
    with pytest.raises(ValueError, match="pass it as y="):
        jd.sample(None, lambda x, t: x, bridge, S.ddim(), jd.grids.uniform(bridge, 3), x=x)
    with pytest.raises(ValueError, match="no second endpoint"):
        jd.processes.VP().perturb(x, x, 0.5, y=x)
    with pytest.raises(ValueError, match="no clean estimate"):
        jd.denoiser(lambda x, c: x, bridge, jd.parameterizations.v(), y=x)
    with pytest.raises(ValueError, match="path"):
        P.StochasticInterpolant("cubic")
    with pytest.raises(ValueError, match="signal left"):
        P.DiffusionBridge(P.RectifiedFlow())
    with pytest.raises(ValueError, match="remains"):
        P.MeanReverting(remains=1.5)
    with pytest.raises(ValueError, match="scale"):
        P.Residual(scale=-1.0)


def test_a_second_endpoint_of_another_shape_is_refused():
    x = jnp.ones((4, 2))
    with pytest.raises(ValueError, match=r"expected y of x0's shape \(4, 2\), got \(4, 1\)"):
        P.BrownianBridge().perturb(x, x, 0.5, y=jnp.ones((4, 1)))


def test_slopes_in_the_middle_of_the_symmetric_bridge():
    process, h = P.SchrodingerBridge(), 1e-4
    a_low, a_high = (process.coefficients(0.5 + s)[0] for s in (-h, h))
    assert np.isclose(process.derivatives(0.5)[0], (a_high - a_low) / (2 * h), rtol=1e-3)
    near = [float(process.sde(0.5 + s)[1]) for s in (-h, 0.0, h)]
    np.testing.assert_allclose(near, near[1], rtol=1e-2)


def test_drift_of_a_process_around_its_second_endpoint():
    process = P.MeanReverting(schedule="constant")
    x, y = jnp.full((2, 3), 0.5), jnp.full((2, 3), 2.0)
    theta = -np.log(process.remains)  # dx = theta (y - x) dt + ...
    np.testing.assert_allclose(process.drift(x, 0.4, y), theta * (y - x), rtol=1e-5)
    with pytest.raises(ValueError, match="second endpoint"):
        process.drift(x, 0.4)


def test_conditioning_leaves_the_diffusion_unchanged():
    base = P.VP()
    for t in (0.0, 0.3, 0.9):
        np.testing.assert_allclose(P.DiffusionBridge(base).diffusion(t), base.diffusion(t), rtol=1e-5)


def test_times_and_shares_that_no_bridge_has():
    for make in (P.BrownianBridge, P.StochasticInterpolant, P.SchrodingerBridge):
        with pytest.raises(ValueError, match="t_max <= 1"):
            make(t_max=2.0)
    with pytest.raises(ValueError, match="remains"):
        P.MeanReverting(remains=1)
    with pytest.raises(ValueError, match="signal left"):
        P.DiffusionBridge(P.DiscreteVP(np.array([0.1, 0.5, 1.0])))
