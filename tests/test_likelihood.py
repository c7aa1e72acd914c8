import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

MIXTURE = jd.testing.gaussian_mixture(
    np.array([[1.0, 0.0], [-1.0, 0.5]]), np.array([[0.1, 0.2], [0.15, 0.1]]), np.array([0.4, 0.6])
)
PROCESSES = [jd.processes.VP(), jd.processes.EDM(), jd.processes.RectifiedFlow(), jd.processes.SubVP()]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_the_density_of_a_mixture_within_a_hundredth_of_a_nat(process):
    x0 = MIXTURE.sample(jax.random.key(0), 64)
    solver = jd.solvers.heun() if isinstance(process, jd.processes.RectifiedFlow) else jd.solvers.unipc(2)
    steps = 300 if solver.name == "heun" else 120
    logp = jd.likelihood.log_prob(
        jax.random.key(1), MIXTURE.denoiser(process), process, x0,
        solver=solver, grid=jd.grids.log_snr(process, steps),
    )  # fmt: skip
    exact = MIXTURE.log_prob(process, x0, 0.0)
    assert abs(float(jnp.mean(logp - exact))) < 0.01
    assert float(jnp.median(jnp.abs(logp - exact))) < 0.01


def test_the_estimated_trace_is_unbiased():
    """Exact for one Gaussian up to the probes: their mean over keys is the exact answer."""
    process = jd.processes.VP()
    covariance = np.array([[0.3, 0.1], [0.1, 0.2]])
    target = jd.testing.gaussian(np.zeros(2), covariance[None][0])
    x0 = jnp.tile(jnp.array([[0.2, -0.3]]), (400, 1))
    settings = dict(solver=jd.solvers.dpmpp_multistep(2), grid=jd.grids.log_snr(process, 60))
    one = jd.likelihood.log_prob(
        jax.random.key(0), target.denoiser(process), process, x0, trace="hutchinson", **settings
    )
    exact = jd.likelihood.log_prob(None, target.denoiser(process), process, x0[:1], **settings)
    assert float(one.std()) > 0.05  # the off-diagonal of the Jacobian is seen
    assert abs(float(one.mean()) - float(exact[0])) < 4 * float(one.std()) / 20
    many = jd.likelihood.log_prob(
        jax.random.key(0), target.denoiser(process), process, x0, trace="hutchinson", probes=8, **settings
    )
    assert float(many.std()) < 0.6 * float(one.std())


def test_inversion_and_sampling_are_inverse(x64):
    process = jd.processes.VP()
    denoise = MIXTURE.denoiser(process)
    grid = jd.grids.log_snr(process, 200, end=1e-3)
    x0 = MIXTURE.sample(jax.random.key(0), 8).astype(jnp.float64)
    for solver in (jd.solvers.dpmpp_multistep(3), jd.solvers.unipc(3), jd.solvers.heun("sigma")):
        x_T = jd.sample(None, denoise, process, solver, grid[::-1], x=x0)
        np.testing.assert_allclose(
            jd.sample(None, denoise, process, solver, grid, x=x_T), x0, atol=2e-3, err_msg=solver.name
        )


def test_inversion_to_a_prior_without_signal(x64):
    """The step to alpha = 0 is its limit, c_T E, for exponential methods too."""
    process = jd.processes.RectifiedFlow()
    target = jd.testing.gaussian(np.full(2, 0.3), np.full(2, 0.25))
    x0 = jnp.array([[0.5, -0.1]])
    grid = jd.grids.log_snr(process, 400, end=1e-3)[::-1]
    exact = jd.testing.flow_map(target, process, x0, 1e-3, 1.0)
    for solver in (
        jd.solvers.ddim(),
        jd.solvers.dpmpp_multistep(2),
        jd.solvers.dpm_multistep(2),
        jd.solvers.heun(),
    ):
        out = jd.sample(None, target.denoiser(process), process, solver, grid, x=x0)
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
    with pytest.raises(ValueError, match="probes"):
        jd.likelihood.log_prob(None, denoise, process, x0, solver=jd.solvers.ddim(), grid=grid, probes=0)
