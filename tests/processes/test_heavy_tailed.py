"""Poisson flows and Student-t noise, against their radius law and their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxdiff as jd

P = jd.processes
KEYS = jax.random.split(jax.random.key(0), 20000)


@pytest.mark.parametrize("D", [1.0, 4.0, 128.0])
def test_the_radius_follows_the_beta_law(D):
    process = P.PoissonFlow(D)
    x = process.noise(KEYS, jnp.zeros((20000, 3, 2)))
    squares = np.sum(np.asarray(x, np.float64) ** 2, axis=(1, 2)) / D  # (R / r)^2 = B / (1 - B)
    law = stats.betaprime(3.0, 0.5 * D)
    assert stats.kstest(squares, law.cdf).pvalue > 1e-3
    wrong = stats.betaprime(3.0, 0.5 * D + 0.2)
    assert D > 100 or stats.kstest(squares, wrong.cdf).pvalue < 1e-3
    direction = np.asarray(x).reshape(20000, 6) / np.sqrt(squares * D)[:, None]
    np.testing.assert_allclose(direction.mean(0), 0, atol=0.02)
    assert process.radius(2.0) == 2.0 * D**0.5


def test_limits():
    noise = P.PoissonFlow(jnp.inf).noise(KEYS, jnp.zeros((20000, 4)))
    assert stats.kstest(np.sum(noise**2, 1), stats.chi2(4).cdf).pvalue > 1e-3
    many = P.PoissonFlow(2048.0).noise(KEYS, jnp.zeros((20000, 4)))
    assert stats.kstest(np.sum(many**2, 1), stats.chi2(4).cdf).pvalue > 1e-3
    one = P.HeavyTailed(P.RectifiedFlow(), 3.0).noise(KEYS, jnp.zeros((20000, 1)))
    assert stats.kstest(one[:, 0], stats.t(3).cdf).pvalue > 1e-3


def field(points, process):
    """The exact clean estimate for finitely many points under the kernel (|x - y|^2 + r^2)^(-(N + D) / 2)."""

    def denoise(x, t):
        r2 = process.D * jnp.square(t)
        squares = jnp.sum((x[:, None] - points[None]) ** 2, -1)
        logits = -0.5 * (points.shape[1] + process.D) * jnp.log(squares + r2)
        return jax.nn.softmax(logits, -1) @ points

    return denoise


@pytest.mark.slow
def test_field_lines_end_at_the_data_in_equal_shares():
    points = np.float32([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5], [0.2, 0.1]])

    @jax.jit
    def run(keys, D, rows):
        process = P.PoissonFlow(D, t_max=40.0)
        return jd.sample(keys[:4000], field(points, process), process, rows, shape=(2,))

    for D in (1.0, 16.0):
        process = P.PoissonFlow(D, t_max=40.0)
        x = np.asarray(run(KEYS, D, jd.solvers.heun().plan(process, jd.grids.karras(process, 40))))
        gaps = np.linalg.norm(x[:, None] - points[None], axis=-1)
        assert np.mean(gaps.min(1) < 0.05) > 0.98
        shares = np.bincount(gaps.argmin(1), minlength=4) / 4000
        np.testing.assert_allclose(shares, 0.25, atol=0.04)


@pytest.mark.slow
def test_the_density_of_a_poisson_flow_within_a_hundredth_of_a_nat(x64):
    """Points under the kernel are a mixture of Student-t laws; the prior is one as well."""
    process = P.PoissonFlow(4.0, t_min=0.3, t_max=300.0)
    points, normal = np.array([[0.5, 0.0], [-0.5, 0.3]]), P.EDM(t_min=0.3, t_max=300.0)

    @jax.jit
    def run(keys):
        x0 = points[np.arange(64) % 2] + 0.3 * process.noise(keys[:64], jnp.zeros((64, 2)))
        logp = jd.likelihood.log_prob(
            None, field(points, process), process, x0, solver=jd.solvers.unipc(2),
            grid=jd.grids.log_snr(process, 120, end=0.3),
        )  # fmt: skip
        return x0, logp, normal.log_noise(x0), process.log_noise(x0)

    x0, logp, of_normal, of_own = map(np.asarray, run(KEYS))
    law = stats.multivariate_t(np.zeros(2), 0.09 * np.eye(2), df=4)
    exact = np.log(np.mean([law.pdf(x0 - point) for point in points], axis=0))
    assert np.abs(logp - exact).max() < 0.01, np.abs(logp - exact).max()
    assert np.abs(np.mean(of_normal - of_own)) > 0.05


@pytest.mark.parametrize("process", [P.PoissonFlow(3.0), P.HeavyTailed(P.MeanReverting(0.5), 3.0)], ids=str)
def test_posterior_is_bayes_rule_on_a_grid(process, x64):
    """Over x_s and the scale kappa of the noise, in one dimension: given kappa all is Gaussian."""
    s, t, x0, y = 0.3 * process.t_max, 0.7 * process.t_max, 0.4, -0.5 if process.paired else 0.0
    (a_s, b_s, c_s), (a_t, b_t, c_t) = process.coefficients(s), process.coefficients(t)
    gain = a_t / a_s
    x_t = a_t * x0 + b_t * y + 1.7 * c_t
    precision = stats.gamma(1.5, scale=1 / 1.5).ppf((np.arange(1000) + 0.5) / 1000)[:, None]
    x = (a_s * x0 + b_s * y + c_s * np.linspace(-60, 60, 3001))[None]
    log_q = -0.5 * precision * ((x - a_s * x0 - b_s * y) / c_s) ** 2 + np.log(precision)
    log_q -= 0.5 * precision * (x_t - gain * x - (b_t - gain * b_s) * y) ** 2 / (c_t**2 - gain**2 * c_s**2)
    q = np.exp(log_q).sum(0)
    mean = (q * x[0]).sum() / q.sum()
    std = np.sqrt((q * (x[0] - mean) ** 2).sum() / q.sum())
    one = np.ones((1, 1))
    posterior = jax.jit(lambda x_t, x0, y: process.posterior(x_t, x0, t, s, y))
    got = posterior(x_t * one, x0 * one, y * one if process.paired else None)
    np.testing.assert_allclose(np.ravel(got), [mean, std], rtol=5e-3)
    assert not np.allclose(std, process.reverse(t, s)[2], rtol=0.1)


def law_of(noise, centres, x):
    """Kolmogorov's distances of x from `centres + noise`: of one value, the norm, the nearest centre."""
    exact = centres[np.arange(len(noise)) % len(centres)] + np.asarray(noise, np.float64)

    def distances(x):
        gaps = np.linalg.norm(np.asarray(x, np.float64)[:, None] - centres[None], axis=-1)
        return np.asarray(x)[:, 0], np.linalg.norm(x, axis=1), gaps.min(1)

    return [stats.ks_2samp(*pair).statistic for pair in zip(distances(x), distances(exact), strict=True)]


@pytest.mark.parametrize("process", [P.PoissonFlow(3.0), P.HeavyTailed(P.RectifiedFlow(), 3.0)], ids=str)
def test_ancestral_steps_on_one_point_are_exact_in_law(process):
    """The posterior given the clean data is Student-t, with `tail + n` degrees: three steps or a thousand."""
    point, end = np.array([0.5, -1.0]), 0.02 * process.t_max
    grid = np.array([1.0, 0.7, 0.2, 0.02]) * process.t_max
    a, _, c = process.coefficients(end)
    start = process.perturb(jnp.tile(point, (20000, 1)), process.noise(KEYS, jnp.zeros((20000, 2))), grid[0])
    clean = lambda x, t: jnp.broadcast_to(jnp.asarray(point, x.dtype), x.shape)  # noqa: E731
    x = jd.sample(jax.random.key(3), clean, process, jd.solvers.ancestral(), grid, x=start)
    squares = np.sum((np.asarray(x, np.float64) - a * point) ** 2, 1) / c**2
    assert stats.kstest(squares / 2, stats.f(2, 3).cdf).pvalue > 1e-3  # |t|^2 / n ~ F(n, tail)
    assert stats.kstest(squares / 2, stats.chi2(2, scale=0.5).cdf).statistic > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("n", [4, 24])
def test_the_law_of_many_stochastic_steps(n):
    """Points under the kernel are a mixture of Student-t laws, at every time."""
    count, end = 6000, 0.3
    centres, like = np.random.default_rng(0).normal(size=(8, n)), np.zeros((count, n), np.float32)
    process, grid = P.PoissonFlow(3.0, t_max=40.0), np.geomspace(40.0, end, 61)
    draws = jax.jit(lambda key: process.noise(jax.random.split(key, count), like))
    noise, far = (np.asarray(draws(jax.random.key(seed))) for seed in (7, 0))
    start = np.float32(centres[np.arange(count) * 3 % 8] + 40 * far)
    denoise = field(centres.astype(np.float32), process)

    def gap(process, solver):
        walk = lambda x: jd.sample(jax.random.key(1), denoise, process, solver, grid, x=x)  # noqa: E731
        run = jax.jit(walk, compiler_options={"xla_backend_optimization_level": 1})  # the loop is what costs
        return max(law_of(end * noise, centres, run(start)))

    for solver in (jd.solvers.ancestral(), jd.solvers.dpmpp_multistep(2, tau=1.0)):
        assert gap(process, solver) < 0.04, (solver, gap(process, solver))
    assert gap(P.EDM(t_max=40.0), jd.solvers.ancestral()) > 0.1  # with normal noise


@pytest.mark.slow
def test_training_uses_the_heavy_noise():
    """The clean estimate that minimises the loss is the field's, not the Gaussian one."""
    process, points = P.PoissonFlow(2.0), np.float32([[1.0], [-1.0]])
    x0 = points[np.arange(20000) % 2]
    at = jd.times.Times(lambda process, u: 0 * u + 0.7, {}, False)

    def loss(denoise):
        net = lambda x, c_noise: denoise(x, 0.7)  # noqa: E731
        kind = jd.parameterizations.data()
        return jd.losses.denoising(net, KEYS, x0, process=process, parameterization=kind, times=at).mean()

    gaussian = jd.testing.empirical(points).denoiser(P.EDM())
    heavy, normal = jax.jit(lambda: (loss(field(points, process)), loss(gaussian)))()
    assert float(heavy) < float(normal) - 0.01


def test_wrapped_processes_keep_the_transition_and_the_second_end_of_their_base():
    betas = np.linspace(0.01, 0.2, 8)
    for base in (P.Residual(0.8), P.ResShift(), P.Aggregating(betas, 0.05 * betas), P.BrownianBridge()):
        for process in (P.HeavyTailed(base, 5.0), P.Symmetric(base)):
            assert process.paired == base.paired and process.log_snr(1.0) == base.log_snr(1.0)
            np.testing.assert_array_equal(process.reverse(0.75, 0.5), base.reverse(0.75, 0.5))
    ordinary = jd.processes.LinearProcess.gain(P.Residual(0.8), 0.75, 0.5)
    assert P.HeavyTailed(P.Residual(0.8)).gain(0.75, 0.5) == 1 != ordinary


def test_wrong_arguments():
    with pytest.raises(ValueError, match="D"):
        P.PoissonFlow(-1.0)
    with pytest.raises(ValueError, match="degrees"):
        P.HeavyTailed(P.EDM(), 0.0)
    process, x, grid = P.PoissonFlow(4.0), jnp.zeros((2, 3)), np.array([80.0, 1.0, 0.0])
    still = lambda x, t: x  # noqa: E731
    with pytest.raises(ValueError, match="is rescaled at every evaluation"):
        jd.sample(KEYS[:2], still, process, jd.solvers.predictor_corrector(), grid, x=x)
    with pytest.raises(ValueError, match="2 degrees of freedom"):
        jd.sample(KEYS[:2], still, P.PoissonFlow(2.0), jd.solvers.ancestral(), grid, x=x)


def test_posterior_from_the_pinned_end_of_a_bridge():
    x0, y = jnp.array([[1.0, -1.0]]), jnp.array([[0.0, 2.0]])
    bridge = jd.processes.BrownianBridge()
    mean, std = jd.processes.HeavyTailed(bridge, 5.0).posterior(y, x0, 1.0, 0.5, y)
    normal = bridge.posterior(y, x0, 1.0, 0.5, y)
    np.testing.assert_allclose(mean, normal[0], rtol=1e-6)
    np.testing.assert_allclose(std, normal[1] * np.sqrt(5 / 3), rtol=1e-6)  # nothing tells kappa there


def test_solvers_that_look_ahead_are_refused_under_heavy_tails():
    process, keys = jd.processes.HeavyTailed(jd.processes.VP(), 5.0), jax.random.split(jax.random.key(0), 2)
    solver = jd.steering.rollover(jd.solvers.ancestral(), lambda x: x[:, 0], 2)
    with pytest.raises(ValueError, match="heavy tails"):
        jd.sample(keys, lambda x, t: 0 * x, process, solver, jd.grids.uniform(process, 3), shape=(2,))
