"""What holds for every continuous process: its moments, transition, samples, likelihood and training times.

Processes differ in `(a, b, c)` and in a solver's table alone, so one compiled program takes all of them:
`Numbered` holds the coefficients at the points of a grid, with the points' numbers as its times.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.core import dataclass
from jaxdiff.processes.linear import LinearProcess

P, S = jd.processes, jd.solvers
BETAS = np.linspace(1e-4, 0.02, 1000)
DATA = np.random.default_rng(0).normal(size=(40, 8))
PLAIN = {
    "VP": P.VP(), "SubVP": P.SubVP(), "CosineVP": P.CosineVP(), "VE": P.VE(), "EDM": P.EDM(),
    "RectifiedFlow": P.RectifiedFlow(), "Trigonometric": P.Trigonometric(), "DiscreteVP": P.DiscreteVP(BETAS),
    "Aggregating": P.Aggregating(BETAS, np.linspace(1e-3, 0, 1000)),
    "LearnedVP": P.LearnedVP(np.linspace(1, -1, 9)), "KineticOptimal": P.kinetic_optimal(DATA),
    "PoissonFlow": P.PoissonFlow(np.inf), "HeavyTailed": P.HeavyTailed(P.RectifiedFlow(), np.inf),
}  # fmt: skip
PAIRED = {
    "interpolant": P.StochasticInterpolant(t_min=1e-4),
    "trigonometric": P.StochasticInterpolant("trigonometric", 1.4, t_min=1e-4),
    "gamma": P.StochasticInterpolant(gamma=lambda t: 0.8 * (1 + t) * (t * (1 - t)) ** 0.5, t_min=1e-4),
    "BrownianBridge": P.BrownianBridge(0.7, t_min=1e-4), "VP bridge": P.DiffusionBridge(P.VP()),
    "VE bridge": P.DiffusionBridge(P.EDM(t_max=2.0)), "SchrodingerBridge": P.SchrodingerBridge(),
    "MeanReverting": P.MeanReverting(0.3), "constant": P.MeanReverting(0.3, schedule="constant"),
    "speech": P.OrnsteinUhlenbeckVE(gamma=6.0, t_min=3e-3),
    "Residual": P.Residual(0.8), "ResShift": P.ResShift(),
}  # fmt: skip
EVERY = PLAIN | PAIRED
COUNT, CLEAN, OTHER = 8000, 0.8, -0.5  # paths, x0 and y of the simulations


def walked(rng, drift, g, end, start=0.0, x=CLEAN, steps=300):
    """Euler-Maruyama on a forward SDE, `COUNT` paths."""
    x, dt = np.full(COUNT, x) if np.ndim(x) == 0 else x, (end - start) / steps
    for t in start + dt * (np.arange(steps) + 0.5):
        x = x + dt * drift(x, t) + g(t) * np.sqrt(dt) * rng.normal(size=COUNT)
    return x


def chained(rng, step, count):
    """A Markov chain of `count` published steps `x, n, noise -> x`."""
    x = np.full(COUNT, CLEAN)
    for n in range(count):
        x = step(x, n, rng.normal(size=COUNT))
    return x


def added(process, rng, t, steps=50):
    """Shares of the residual and of noise, added up (RDDM, ResShift)."""
    at = np.linspace(0, t, steps + 1)
    _, shares, levels = process.coefficients(at)
    grown = np.sqrt(np.diff(levels**2))
    return chained(rng, lambda x, n, z: x + np.diff(shares)[n] * (OTHER - CLEAN) + grown[n] * z, steps)


def pulled(base_drift, g, h):
    """A diffusion conditioned on its end: `h(x, t)` is the gradient of the log-density of that end."""
    return lambda x, t: base_drift(x, t) + g(t) ** 2 * h(x, t)


def published():
    """`name: (t, simulate(rng) -> x_t)`: every process by the definition in its paper."""
    beta = lambda t: 0.1 + 19.9 * t  # noqa: E731
    whole = lambda t: 0.1 * t + 9.95 * t**2  # noqa: E731
    angle = np.pi / 2 / 1.008
    turn = lambda t: 2 * angle * np.tan(angle * (t + 0.008))  # noqa: E731
    symmetric = lambda t: (np.sqrt(0.1) + (1 - np.sqrt(0.1)) * (1 - abs(2 * t - 1))) ** 2  # noqa: E731
    left = lambda t: np.mean(symmetric(np.linspace(t, 1, 999))) * (1 - t)  # noqa: E731
    theta = lambda t: -np.log(0.005) * (1 - np.cos(np.pi * t))  # noqa: E731
    ve, octaves = np.log(50 / 0.01), np.log(10)
    weights, kept = np.linspace(1e-3, 0, 1000), np.sqrt(1 - BETAS)

    def vp_end(x, t):  # the gradient of log N(y; r x, 1 - e^(whole(t) - whole(1)))
        r2 = np.exp(whole(t) - whole(1))
        return np.sqrt(r2) * (OTHER - np.sqrt(r2) * x) / (1 - r2)

    def mixed(a, b, c):
        return lambda rng: a * CLEAN + b * OTHER + c * rng.normal(size=COUNT)

    sde = lambda drift, g, t, **more: lambda rng: walked(rng, drift, g, t, **more)  # noqa: E731
    still = lambda x, t: 0.0 * x  # noqa: E731
    shrink = lambda x, t: -0.5 * beta(t) * x  # noqa: E731
    noise = lambda t: np.sqrt(beta(t))  # noqa: E731
    ve_start = lambda rng: CLEAN + 0.01 * rng.normal(size=COUNT)  # noqa: E731
    return {
        "VP": (0.4, sde(shrink, noise, 0.4)),
        "SubVP": (0.4, sde(shrink, lambda t: np.sqrt(beta(t) * (1 - np.exp(-2 * whole(t)))), 0.4)),
        "CosineVP": (0.6, sde(lambda x, t: -0.5 * turn(t) * x, lambda t: np.sqrt(turn(t)), 0.6)),
        "VE": (0.7, lambda rng: walked(
            rng, still, lambda t: 0.01 * np.exp(ve * t) * np.sqrt(2 * ve), 0.7, x=ve_start(rng))),
        "EDM": (3.0, sde(still, lambda t: np.sqrt(2 * t), 3.0)),
        "RectifiedFlow": (0.3, mixed(0.7, 0, 0.3)),
        "Trigonometric": (0.3, mixed(np.cos(0.15 * np.pi), 0, np.sin(0.15 * np.pi))),
        "DiscreteVP": (0.4, lambda rng: chained(
            rng, lambda x, n, z: kept[n] * x + np.sqrt(BETAS[n]) * z, 400)),
        "Aggregating": (0.4, lambda rng: chained(
            rng, lambda x, n, z: kept[n] * (x + weights[n] * CLEAN) + np.sqrt(BETAS[n]) * z, 400)),
        "interpolant": (0.3, mixed(0.7, 0.3, np.sqrt(0.21))),
        "trigonometric": (0.3, mixed(np.cos(0.15 * np.pi), np.sin(0.15 * np.pi), 1.4 * np.sqrt(0.21))),
        "gamma": (0.3, mixed(0.7, 0.3, 0.8 * 1.3 * np.sqrt(0.21))),
        "BrownianBridge": (0.6, sde(lambda x, t: (OTHER - x) / (1 - t), lambda t: 0.7, 0.6)),
        "VP bridge": (0.5, sde(pulled(shrink, noise, vp_end), noise, 0.5)),
        "VE bridge": (1.2, sde(pulled(still, lambda t: np.sqrt(2 * t),
                                      lambda x, t: (OTHER - x) / (4 - t**2)), lambda t: np.sqrt(2 * t), 1.2)),
        "SchrodingerBridge": (0.6, sde(lambda x, t: symmetric(t) * (OTHER - x) / left(t),
                                       lambda t: np.sqrt(symmetric(t)), 0.6)),
        "MeanReverting": (0.5, sde(lambda x, t: theta(t) * (OTHER - x),
                                   lambda t: 0.3 * np.sqrt(2 * theta(t)), 0.5)),
        "constant": (0.2, sde(lambda x, t: -np.log(0.005) * (OTHER - x),
                              lambda t: 0.3 * np.sqrt(-2 * np.log(0.005)), 0.2)),
        "speech": (0.3, sde(lambda x, t: 6 * (OTHER - x),
                            lambda t: 0.05 * np.exp(octaves * t) * np.sqrt(2 * octaves), 0.3)),
        "Residual": (0.5, lambda rng: added(EVERY["Residual"], rng, 0.5)),
        "ResShift": (0.5, lambda rng: added(EVERY["ResShift"], rng, 0.5)),
    }  # fmt: skip


def test_moments_by_simulation_of_the_published_definition():
    rng, definitions = np.random.default_rng(0), published()
    assert set(EVERY) - set(definitions) == {"LearnedVP", "KineticOptimal", "PoissonFlow", "HeavyTailed"}
    for name, (t, simulate) in definitions.items():
        a, b, c = EVERY[name].coefficients(t)
        x = simulate(rng)
        mean = a * CLEAN + b * OTHER
        np.testing.assert_allclose(x.mean(), mean, atol=4 * c / np.sqrt(COUNT) + 5e-3, err_msg=name)
        np.testing.assert_allclose(x.std(), c, rtol=0.035, err_msg=name)


def test_moments_of_perturb(x64):
    keys = jax.random.split(jax.random.key(0), COUNT)
    x0, y = jnp.full((COUNT, 1), CLEAN), jnp.full((COUNT, 1), OTHER)
    heavy = {"D = 9": P.PoissonFlow(9.0), "9 degrees": P.HeavyTailed(P.MeanReverting(0.3), 9.0)}
    for name, process in (EVERY | heavy).items():
        t = 0.4 * process.t_max
        a, b, c = process.coefficients(t)
        x = process.perturb(x0, process.noise(keys, x0), t, y if process.paired else None)
        spread = c * np.sqrt(9 / 7) if name in heavy else c
        assert x.dtype == jnp.float64
        mean = a * CLEAN + b * OTHER
        np.testing.assert_allclose(x.mean(), mean, atol=4 * spread / np.sqrt(COUNT), err_msg=name)
        np.testing.assert_allclose(x.std(), spread, rtol=0.04, err_msg=name)


def transition(process, t, s, x0, y):
    """Gain, shift and variance of `q(x_t | x_s, x0, y)`, s < t."""
    (a_s, b_s, c_s), (a_t, b_t, c_t) = process.coefficients(s), process.coefficients(t)
    if isinstance(process, P.ResShift | P.Residual):  # sums of shares of the residual and of noise
        return 1.0, (b_t - b_s) * (y - x0), c_t**2 - c_s**2
    if isinstance(process, P.Aggregating):  # c^2 = 1 - (the noise's gain)^2, and x0 comes in on the way
        gain = np.sqrt((1 - c_t**2) / (1 - c_s**2))
        return gain, (a_t - gain * a_s) * x0, c_t**2 - gain**2 * c_s**2
    gain = a_t / a_s  # of the SDE, in z = x - b y
    return gain, (b_t - gain * b_s) * y, c_t**2 - gain**2 * c_s**2


def test_posterior_is_bayes_rule_on_a_grid(x64):
    """q(x_s | x_t, x0, y) from the marginal at s and the transition from s to t; and the marginal at t."""
    one = jnp.ones((1, 1))
    for name, process in EVERY.items():
        s, t = 0.4 * process.t_max, 0.7 * process.t_max
        (a_s, b_s, c_s), (a_t, b_t, c_t) = process.coefficients(s), process.coefficients(t)
        gain, shift, variance = transition(process, t, s, CLEAN, OTHER)
        middle = a_s * CLEAN + b_s * OTHER
        x = middle + c_s * np.linspace(-9, 9, 20001)
        x_t = a_t * CLEAN + b_t * OTHER + 0.6 * c_t
        prior = np.exp(-0.5 * ((x - middle) / c_s) ** 2)
        q = prior * np.exp(-0.5 * (x_t - gain * x - shift) ** 2 / variance)
        mean = (q * x).sum() / q.sum()
        std = np.sqrt((q * (x - mean) ** 2).sum() / q.sum())
        y = OTHER * one if process.paired else None
        got = process.posterior(x_t * one, CLEAN * one, t, s, y=y)
        np.testing.assert_allclose(got[0][0, 0], mean, rtol=1e-6, atol=1e-6 * c_s, err_msg=name)
        np.testing.assert_allclose(np.squeeze(got[1]), std, rtol=1e-6, err_msg=name)
        moved = gain * (prior * x).sum() / prior.sum() + shift
        np.testing.assert_allclose(moved, a_t * CLEAN + b_t * OTHER, atol=1e-9 * c_t, err_msg=name)


@dataclass
class Numbered(LinearProcess):
    """A process by its coefficients at the points of a grid, `(n,)` each, whose times are the numbers."""

    a: object
    b: object
    c: object
    t_max: float = 1e9

    paired = True
    t_min = 0.0

    def coefficients(self, t):
        at = jnp.asarray(t).astype(int)
        return tuple(jnp.asarray(k)[at] for k in (self.a, self.b, self.c))


def numbered(process, solver, times):
    """The process and the solver's rows on `times`, with numbers for times."""
    rows = solver.plan(process, times)
    number = {float(t): float(i) for i, t in enumerate(times)}
    at = [np.array([number[float(t)] for t in some]) for some in (rows.t, rows.to)]
    return Numbered(*process.coefficients(times)), rows.replace(t=at[0], to=at[1])


PLANE = jd.testing.gaussian_mixture(
    np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]), np.array([0.05, 0.1, 0.08]), np.array([0.3, 0.4, 0.3])
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver, order", [(S.ddim(), 1), (S.dpmpp_multistep(2), 2), (S.euler_maruyama(0.0), 1)]
)
def test_measured_order_of_every_process(solver, order, x64):
    """From log-SNR -1 to 2.5 all flows are one map in x / sqrt(a^2 + c^2), which is integrated once."""
    rng, flow, ends = np.random.default_rng(0), P.RectifiedFlow(), (-1.0, 2.5)
    u, y = 0.5 * rng.normal(size=(64, 2)), rng.normal(size=(64, 2))
    first, last = (float(flow.time_of_log_snr(level)) for level in ends)
    scales = [np.hypot(*flow.coefficients(t)[::2]) for t in (first, last)]
    exact = jd.testing.flow_map(PLANE, flow, u * scales[0], first, last) / scales[1]

    @jax.jit
    def walk(process, rows, x):
        return jd.sample(None, PLANE.denoiser(process, y), process, rows, x=x, y=y)

    for name, process in EVERY.items():
        errors = []
        for steps in (192, 384):
            times = process.time_of_log_snr(np.linspace(*ends, steps + 1))
            (a, *_), (b, *_), (c, *_) = process.coefficients(times)
            out = walk(*numbered(process, solver, times), u * np.hypot(a, c) + b * y)
            a, b, c = (k[-1] for k in process.coefficients(times))
            errors.append(np.median(np.abs((out - b * y) / np.hypot(a, c) - exact).max(axis=1)))
        slope = np.log2(errors[0] / errors[1])
        kinked = name in ("DiscreteVP", "Aggregating", "LearnedVP", "KineticOptimal")
        assert abs(slope - order) < (0.35 if kinked else 0.2), (name, slope, errors)


@pytest.mark.slow
def test_euler_maruyama_has_first_order_moments():
    """On one Gaussian every step is linear, so mean and variance after it are known without a draw."""
    m, v = 0.7, 0.3
    for name, process in EVERY.items():
        errors = []
        for steps in (200, 400):
            times = process.time_of_log_snr(np.linspace(-1.0, 2.0, steps + 1))
            a, _, c = process.coefficients(times)
            rows = S.euler_maruyama().plan(process, times)
            mean, variance = a[0] * m, a[0] ** 2 * v + c[0] ** 2
            for k in range(steps):
                pull = a[k] * v / (a[k] ** 2 * v + c[k] ** 2)  # D = m + pull (z - a m)
                on_z, _, on_clean, noise = rows.next[k]
                mean = on_z * mean + on_clean * (m + pull * (mean - a[k] * m))
                variance = (on_z + on_clean * pull) ** 2 * variance + noise**2
            exact = a[-1] * m, a[-1] ** 2 * v + c[-1] ** 2
            errors.append(np.hypot(mean / exact[0] - 1, variance / exact[1] - 1))
        assert errors[0] < 0.1, (name, errors)
        assert abs(np.log2(errors[0] / errors[1]) - 1) < 0.3, (name, errors)


def rotated(variances):
    basis = np.linalg.qr(np.random.default_rng(1).normal(size=2 * (len(variances),)))[0]
    return basis @ np.diag(variances) @ basis.T


WIDTHS = rotated([0.5, 0.3, 0.2, 0.1])
SPACE = jd.testing.gaussian_mixture(
    np.array([[1.0, 0, 0, 0.5], [-1.0, 0.5, 0, 0]]),
    np.stack([WIDTHS, WIDTHS[::-1, ::-1]]),
    np.array([0.4, 0.6]),
)
ONE = jd.testing.gaussian(np.array([0.3, 0, -0.2, 0.1]), WIDTHS)


def log_likelihoods(target, trace, probes=1, steps=100, count=64, names=EVERY):
    """`name: (estimates, exact)` for every process; y is near the data, for priors are drawn around it."""
    x0 = np.asarray(jax.jit(lambda key: target.sample(key, count))(jax.random.key(0)))
    y, numbers = np.full_like(x0, 0.1), np.arange(steps + 1.0, 0.0, -1.0)

    options = None if trace == "exact" else {"xla_backend_optimization_level": 1}  # the loop is what costs

    @functools.partial(jax.jit, compiler_options=options)
    def run(process, rows):
        logp = jd.likelihood.log_prob(
            jax.random.key(1), target.denoiser(process, y), process, x0, solver=rows, grid=numbers,
            trace=trace, probes=probes, y=y,
        )  # fmt: skip
        return logp, target.log_prob(process, x0, jnp.ones(()), y)

    found = {}
    for name in names:
        process = EVERY[name]
        times = process.time_of_log_snr(np.linspace(*jd.times.log_snr_range(process), steps + 1))
        table, rows = numbered(process, S.unipc(2), times)
        later = Numbered(*(np.append(k[:1], k) for k in (table.a, table.b, table.c)))
        found[name] = run(later, rows.replace(t=rows.t + 1, to=rows.to + 1))
    return found


@pytest.mark.parametrize("target", [SPACE, pytest.param(ONE, marks=pytest.mark.slow)], ids=["mixture", "one"])
def test_log_likelihood_under_every_process(target, x64):
    for name, (logp, exact) in log_likelihoods(target, "exact").items():
        assert abs(np.mean(logp - exact)) < 0.01, (name, np.mean(logp - exact))
        assert np.median(np.abs(logp - exact)) < 0.01, name


@pytest.mark.slow
@pytest.mark.parametrize("trace, probes, count", [("hutchinson", 50, 300), ("hutch++", 1, 6000)])
def test_estimated_log_likelihood_under_every_process(trace, probes, count, x64):
    for name, (logp, exact) in log_likelihoods(ONE, trace, probes, count=count).items():
        gap = np.asarray(logp - exact)
        assert abs(gap.mean()) < 0.01, (name, gap.mean(), gap.std())


@pytest.mark.slow
@pytest.mark.parametrize("trace, probes, count", [("hutchinson", 50, 2000), ("hutch++", 1, 30000)])
def test_estimated_log_likelihood_of_a_mixture(trace, probes, count, x64):
    names = ("VP", "VE", "BrownianBridge")
    for name, (logp, exact) in log_likelihoods(SPACE, trace, probes, count=count, names=names).items():
        gap = np.asarray(logp - exact)
        assert abs(gap.mean()) < 0.01, (name, gap.mean(), gap.std())


@pytest.mark.slow
def test_times_of_importance_sampling():
    """On a Gaussian, v per dimension, |D - x0|^2 averages e = v / (1 + v SNR) and its square 3 e^2.

    The mean is the exact `log(1 + v SNR) / 2` between the ends for both laws of time; the variance falls.
    """
    v, u = 0.5, (np.arange(20000) + 0.5) / 20000
    laws = jd.times.uniform(), jd.times.log_snr()
    for name, process in EVERY.items():
        high, low = jd.times.log_snr_range(process)
        exact = 0.5 * np.log((1 + v * np.exp(2 * high)) / (1 + v * np.exp(2 * low)))
        spreads = []
        for law in laws:
            t = np.asarray(law.quantile(process, u))
            loss = np.asarray(jd.weightings.likelihood(law)(process, jnp.asarray(t)), float)
            error = v / (1 + v * np.exp(2 * process.log_snr(t)))
            spreads.append(np.mean(3 * (loss * error) ** 2) - np.mean(loss * error) ** 2)
            rtol = 0.1 if law is laws[0] else 2e-3  # the sum's own error: the integrand has a peak at t_min
            np.testing.assert_allclose(np.mean(loss * error), exact, rtol=rtol, err_msg=name)
        assert spreads[1] < spreads[0] * (1.001 if name == "VE" else 0.9), (name, spreads)
