"""Total variation across slices: the operator, the objective's minimum, and a phantom seen from few sides."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.inverse import volumes

inverse = jd.inverse


def test_differences_and_their_adjoint():
    rng = np.random.default_rng(0)
    x, d = (rng.normal(size=shape).astype(np.float32) for shape in ((5, 3), (4, 3)))
    forward, back = jax.jit(lambda x, d: (volumes._difference(x), volumes._back(d)))(x, d)
    np.testing.assert_allclose(np.sum(forward * d), np.sum(x * back), rtol=1e-5)


@pytest.mark.slow
def test_many_sweeps_minimise_the_objective():
    """Two slices of one value: the difference shrinks by twice the weight, the mean stays."""
    y = np.float32([[2.0], [1.0]])

    @jax.jit
    def found(weight):
        solver = inverse.volume(
            jd.solvers.ddim(), inverse.mask([1]), y, weight=weight, rho=1.0, iterations=4, sweeps=60
        )
        return solver._admm(jnp.zeros((2, 1)), jnp.zeros((1, 1)), jnp.zeros((1, 1)))[0]

    for weight, exact in ((0.2, [[1.8], [1.2]]), (0.8, [[1.5], [1.5]])):
        np.testing.assert_allclose(found(weight), exact, atol=1e-3)


@pytest.mark.slow
def test_a_phantom_from_few_sides_is_nearer_than_slice_by_slice():
    """16 slices of 8 by 8, a ball; the prior knows each pixel's mean and spread alone."""
    size, depth = 8, 16
    z, row, column = np.mgrid[:depth, :size, :size]
    middle = (size - 1) / 2
    square = ((z - 7.5) / 2) ** 2 + (row - middle) ** 2 + (column - middle) ** 2
    ball = (square < 9).astype(np.float32)[..., None]
    operator = inverse.radon(size, np.array([0.0, 0.9]))
    y = operator.forward(jnp.asarray(ball))
    process = jd.processes.VP()
    prior = jd.testing.gaussian(np.full((size, size, 1), 0.2), np.full((size, size, 1), 0.15))
    denoise, keys = prior.denoiser(process), jax.random.split(jax.random.key(0), depth)
    grid = jd.grids.log_snr(process, 40)

    def psnr(solver, denoise):
        x = jax.jit(lambda k: jd.sample(k, denoise, process, solver, grid, shape=(size, size, 1)))(keys)
        return -10 * np.log10(np.mean((np.asarray(x) - ball) ** 2))

    alone = psnr(jd.solvers.ddim(), inverse.posterior(denoise, process, operator, y, "jacobian_free"))
    whole = psnr(inverse.volume(jd.solvers.ddim(), operator, y, weight=0.05, rho=0.5, iterations=5), denoise)
    assert whole > alone + 2, (whole, alone)


@pytest.mark.parametrize("build, message", [
    (lambda: inverse.volume(jd.solvers.ddim(), inverse.mask([1]), None, weight=0.0), "weight"),
    (lambda: inverse.volume(jd.solvers.ddim(), inverse.mask([1]), None, sweeps=0), "sweeps"),
    (lambda: inverse.volume(jd.solvers.unipc(2), inverse.mask([1]), None).plan(
        jd.processes.VP(), [1.0, 0.5, 0.0]), "one evaluation a step"),
    (lambda: inverse.volume(jd.solvers.ddim(), inverse.mask([1]), jnp.zeros((1, 1))).init(
        jnp.zeros((1, 1)), jd.solvers.ddim().plan(jd.processes.VP(), [1.0, 0.0])), "at least 2"),
])  # fmt: skip
def test_wrong_settings(build, message):
    with pytest.raises(ValueError, match=message):
        build()
