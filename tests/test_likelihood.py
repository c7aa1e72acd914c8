import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

MIXTURE = jd.testing.gaussian_mixture(
    np.array([[1.0, 0.0], [-1.0, 0.5]]), np.array([[0.1, 0.2], [0.15, 0.1]]), np.array([0.4, 0.6])
)


@pytest.mark.slow
def test_the_density_of_a_mixture_within_a_hundredth_of_a_nat():
    """Every other process and estimator: processes/test_every_process.py."""
    process = jd.processes.VP()

    @jax.jit
    def gap(key, probes):
        x0 = MIXTURE.sample(key, 64)
        logp = jd.likelihood.log_prob(
            probes, MIXTURE.denoiser(process), process, x0,
            solver=jd.solvers.unipc(2), grid=jd.grids.log_snr(process, 120),
        )  # fmt: skip
        return logp - MIXTURE.log_prob(process, x0, 0.0)

    found = np.asarray(gap(jax.random.key(0), jax.random.key(1)))
    assert abs(np.mean(found)) < 0.01
    assert np.median(np.abs(found)) < 0.01


def test_few_steps_uniform_in_time_are_enough():
    """What the trace and the noise's scale share near the data is not left to the steps."""
    process = jd.processes.RectifiedFlow()
    x0 = np.float32([[0.2, -0.3], [1.1, 0.1], [-1.0, 0.6]])
    found = jax.jit(
        lambda x0: jd.likelihood.log_prob(
            None, MIXTURE.denoiser(process), process, x0,
            solver=jd.solvers.heun(), grid=jd.grids.uniform(process, 50, end=process.t_min),
        )
    )(x0)  # fmt: skip
    np.testing.assert_allclose(found, MIXTURE.log_prob(process, x0, process.t_min), atol=0.05)


@pytest.mark.parametrize("process, steps", [
    (jd.processes.RectifiedFlow(), 40),
    pytest.param(jd.processes.EDM(t_max=200.0), 40, marks=pytest.mark.slow),
])  # fmt: skip
def test_data_that_fill_few_of_their_dimensions(process, steps):
    """Where they have no width the trace is 0 and the noise's scale changes the volume alone."""
    target = jd.testing.gaussian(np.zeros(32), np.array([1.0, 0.5, *[1e-8] * 30]))
    clean = target.sample(jax.random.key(0), 8)
    x0 = process.perturb(clean, process.noise(jax.random.key(1), clean), process.t_min)
    grid = jd.grids.log_snr(process, steps, end=process.t_min)
    found = jax.jit(
        lambda x0: jd.likelihood.log_prob(
            None, target.denoiser(process), process, x0, solver=jd.solvers.unipc(2), grid=grid
        )
    )(x0)
    np.testing.assert_allclose(found, target.log_prob(process, x0, process.t_min), atol=0.05)


@pytest.mark.slow
def test_the_estimated_trace_is_unbiased():
    """Exact for one Gaussian up to the probes: their mean over keys is the exact answer."""
    process = jd.processes.VP()
    covariance = np.array([[0.3, 0.1], [0.1, 0.2]])
    target = jd.testing.gaussian(np.zeros(2), covariance[None][0])
    x0 = np.tile(np.float32([[0.2, -0.3]]), (400, 1))

    @jax.jit
    def run(first, second):
        log_prob = functools.partial(
            jd.likelihood.log_prob, denoise=target.denoiser(process), process=process,
            solver=jd.solvers.dpmpp_multistep(2), grid=jd.grids.log_snr(process, 60),
        )  # fmt: skip
        one = log_prob(first, x0=x0, trace="hutchinson")
        return one, log_prob(None, x0=x0[:1]), log_prob(second, x0=x0, trace="hutchinson", probes=8)

    one, exact, many = map(np.asarray, run(jax.random.key(0), jax.random.key(0)))
    assert one.std() > 0.05  # the off-diagonal of the Jacobian is seen
    assert abs(one.mean() - exact[0]) < 4 * one.std() / 20
    assert many.std() < 0.6 * one.std()


@pytest.mark.slow
def test_hutch_plus_plus_is_closer_for_the_same_derivatives():
    """Jacobians of few large directions: two thirds of the derivatives go where the trace is."""
    process = jd.processes.VP()
    variances = np.array([4.0, 2.0, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01])
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(8, 8)))[0]
    target = jd.testing.gaussian(np.zeros(8), basis @ np.diag(variances) @ basis.T)
    settings = dict(solver=jd.solvers.dpmpp_multistep(2), grid=jd.grids.log_snr(process, 40))

    def run(key, trace, probes, n=200):
        x0 = np.full((n, 8), 0.3, np.float32)
        return jd.likelihood.log_prob(
            key, target.denoiser(process), process, x0, trace=trace, probes=probes, **settings
        )

    @jax.jit
    def runs(first, second):
        return run(None, "exact", 1, 1)[0], run(first, "hutchinson", 6), run(second, "hutch++", 2)

    exact, plain, better = map(np.asarray, runs(jax.random.key(3), jax.random.key(3)))
    assert abs(better.mean() - exact) < 4 * better.std() / np.sqrt(200) + 0.02
    assert better.std() < 0.7 * plain.std()


@pytest.mark.slow
def test_the_density_given_a_second_endpoint():
    process = jd.processes.BrownianBridge(0.7, t_min=1e-4)
    y = np.full((32, 2), 0.1, np.float32)  # a prior is drawn around y, so it is near the data here

    @jax.jit
    def gap(key):
        x0 = MIXTURE.sample(key, 32)
        logp = jd.likelihood.log_prob(
            None, MIXTURE.denoiser(process, y), process, x0, y=y, solver=jd.solvers.unipc(2),
            grid=jd.grids.log_snr(process, 150),
        )  # fmt: skip
        return logp - MIXTURE.log_prob(process, x0, process.t_min, y)

    found = np.asarray(gap(jax.random.key(0)))
    assert abs(np.mean(found)) < 0.01
    assert np.median(np.abs(found)) < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    "process",
    [
        jd.processes.VP(), jd.processes.EDM(), jd.processes.RectifiedFlow(t_min=3e-3),
        jd.processes.BrownianBridge(0.7, t_min=1e-4), jd.processes.MeanReverting(0.3, t_min=1e-2),
    ],
)  # fmt: skip
def test_the_variational_bound_is_tight_for_the_exact_denoiser(process):
    y = np.full((1600, 2), 0.1, np.float32) if process.paired else None

    @jax.jit
    def bound(scale):
        x0 = jnp.repeat(MIXTURE.sample(jax.random.key(0), 8), 200, axis=0)
        exact, denoise = MIXTURE.log_prob(jd.processes.VP(), x0, 0.0), MIXTURE.denoiser(process, y)
        net = lambda x, t: denoise(x, t) * scale  # noqa: E731
        values = jd.likelihood.variational_bound(jax.random.key(1), net, process, x0, samples=64, y=y)
        return jnp.mean(values - exact)

    tight, loose = float(bound(1.0)), float(bound(0.97))
    assert abs(tight) < 0.12, tight
    assert loose < tight - 0.1


def test_bits_per_dimension_of_uniform_levels():
    """A uniform density over the range costs log2(count) bits, exactly."""
    levels = np.random.default_rng(0).integers(0, 16, (64, 5))
    x = jax.jit(lambda key: jd.likelihood.dequantize(key, levels, 16))(jax.random.key(1))
    np.testing.assert_array_equal(np.floor((np.asarray(x, np.float64) + 1) * 8), levels)
    density = -5 * np.log(2.0) * np.ones(64)  # of a uniform on [-1, 1]^5
    np.testing.assert_allclose(jd.likelihood.bits_per_dimension(density, 5, 16), 4.0)
    with pytest.raises(ValueError, match="integer levels"):
        jd.likelihood.dequantize(jax.random.key(0), x)
    with pytest.raises(ValueError, match="levels in"):
        jd.likelihood.dequantize(jax.random.key(0), levels, 8)


def test_inversion_and_sampling_are_inverse(x64):
    process = jd.processes.VP()
    denoise = MIXTURE.denoiser(process)
    grid = jd.grids.log_snr(process, 200, end=1e-3)
    x0 = jax.jit(lambda key: MIXTURE.sample(key, 8).astype(jnp.float64))(jax.random.key(0))
    for solver in (jd.solvers.dpmpp_multistep(3), jd.solvers.unipc(3), jd.solvers.heun("sigma")):

        @jax.jit
        def there_and_back(x, solver=solver):
            x = jd.sample(None, denoise, process, solver, grid[::-1], x=x)
            return jd.sample(None, denoise, process, solver, grid, x=x)

        np.testing.assert_allclose(there_and_back(x0), x0, atol=2e-3, err_msg=solver.name)


def test_inversion_to_a_prior_without_signal(x64):
    """The step to alpha = 0 is its limit, c_T E, for exponential methods too."""
    process = jd.processes.RectifiedFlow()
    target = jd.testing.gaussian(np.full(2, 0.3), np.full(2, 0.25))
    x0 = jnp.array([[0.5, -0.1]])
    grid = jd.grids.log_snr(process, 400, end=1e-3)[::-1]
    exact = jd.testing.flow_map(target, process, x0, 1e-3, 1.0)
    S, denoise = jd.solvers, target.denoiser(process)
    for solver in (S.ddim(), S.dpmpp_multistep(2), S.dpm_multistep(2), S.heun()):
        out = jax.jit(lambda x, solver=solver: jd.sample(None, denoise, process, solver, grid, x=x))(x0)
        np.testing.assert_allclose(out, exact, atol=2e-2, err_msg=solver.name)


def test_wrong_arguments():
    process = jd.processes.VP()
    denoise = MIXTURE.denoiser(process)
    x0, grid = jnp.ones((2, 2)), jd.grids.uniform(process, 5)
    with pytest.raises(ValueError, match="unknown trace 'exakt'; did you mean exact"):
        jd.likelihood.log_prob(None, denoise, process, x0, solver=jd.solvers.ddim(), grid=grid, trace="exakt")
    with pytest.raises(ValueError, match="decreasing grid"):
        jd.likelihood.log_prob(None, denoise, process, x0, solver=jd.solvers.ddim(), grid=grid[::-1])
    with pytest.raises(ValueError, match="deterministic"):
        jd.likelihood.log_prob(None, denoise, process, x0, solver=jd.solvers.ancestral(), grid=grid)
    heavy = jd.processes.HeavyTailed(process)
    with pytest.raises(ValueError, match="normal noise"):
        jd.likelihood.variational_bound(jax.random.key(0), denoise, heavy, x0)
    with pytest.raises(ValueError, match="half of them repeat"):
        matrices = jd.processes.Symmetric(process)
        jd.likelihood.log_prob(
            None, lambda x, t: x, matrices, jnp.zeros((1, 2, 2)), solver=jd.solvers.ddim(), grid=grid
        )
    with pytest.raises(ValueError, match="probes"):
        jd.likelihood.log_prob(None, denoise, process, x0, solver=jd.solvers.ddim(), grid=grid, probes=0)
    with pytest.raises(ValueError, match="samples"):
        jd.likelihood.variational_bound(jax.random.key(0), denoise, process, x0, samples=0)


def test_a_plan_from_noise_to_data_is_refused():
    process = jd.processes.VP()
    grid = jd.grids.uniform(process, 4)
    plan = jd.solvers.ddim().plan(process, grid)
    key, x = jax.random.key(0), jnp.ones((2, 3))
    with pytest.raises(ValueError, match="a plan from data to noise, got a plan from 1 to 0"):
        jd.likelihood.log_prob(key, lambda x, t: x, process, x, solver=plan, grid=grid)


def test_hutch_plus_plus_with_as_many_probes_as_dimensions_is_exact():
    process, x = jd.processes.VP(), np.ones((2, 1), np.float32)
    settings = {"solver": jd.solvers.ddim(), "grid": jd.grids.uniform(process, 4)}

    @functools.partial(jax.jit, static_argnums=1)
    def density(key, trace):
        return jd.likelihood.log_prob(key, lambda x, t: jnp.tanh(x), process, x, trace=trace, **settings)

    key = jax.random.key(0)
    np.testing.assert_array_equal(density(key, "hutch++"), density(key, "exact"))
