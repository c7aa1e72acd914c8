"""Jacobian diagnostics on fields and data whose geometry is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

D = jd.diagnostics
VP = jd.processes.VP()


def low_rank():
    rng = np.random.default_rng(0)
    bases = np.stack([np.linalg.qr(rng.normal(size=(12, 3)))[0] for _ in range(2)])
    covariances = np.einsum("kid,kjd->kij", bases, bases)
    return bases, jd.testing.gaussian_mixture(np.zeros((2, 12)), covariances, np.array([0.5, 0.5]))


@pytest.mark.slow
def test_asymmetry():
    x = jax.random.normal(jax.random.key(0), (5, 2))
    matrix = jnp.array([[1.0, 2.0], [0.0, 1.0]])
    np.testing.assert_allclose(D.jacobian(lambda x, t: x @ matrix.T, x, 0.5)[0], matrix, atol=1e-6)
    np.testing.assert_allclose(D.asymmetry(lambda x, t: x @ matrix.T, x, 0.5), np.sqrt(8 / 6), rtol=1e-5)
    target = jd.testing.gaussian_mixture(
        np.array([[1.0, 0], [-1, 0.3]]), np.array([0.1, 0.2]), np.array([0.5, 0.5])
    )
    np.testing.assert_allclose(D.asymmetry(target.denoiser(VP), x, 0.4), 0, atol=1e-4)


@pytest.mark.slow
def test_a_gauge_field_leaves_marginals_and_only_a_gauge_field():
    covariance = np.array([[0.5, 0.2], [0.2, 0.3]])
    target = jd.testing.gaussian(np.zeros(2), covariance)
    t, x = 0.4, jax.random.normal(jax.random.key(1), (64, 2))
    a, _, c = VP.coefficients(t)
    precision = jnp.asarray(np.linalg.inv(a**2 * covariance + c**2 * np.eye(2)), jnp.float32)
    skew = jnp.array([[0.0, 0.7], [-0.7, 0.0]])
    gauge = lambda x, t: x @ (skew @ precision).T  # noqa: E731
    score = target.score(VP)
    np.testing.assert_allclose(D.gauge_residual(gauge, score, x, t), 0, atol=1e-4)
    assert float(D.asymmetry(gauge, x, t).min()) > 0.5  # not conservative, and yet harmless
    assert float(jnp.abs(D.gauge_residual(lambda x, t: 0.1 * x, score, x, t)).mean()) > 0.05


@pytest.mark.slow
def test_intrinsic_dimension_and_subspaces():
    bases, target = low_rank()
    t = float(VP.time_of_log_snr(2.5))
    x0 = target.sample(jax.random.key(2), 40)
    x = VP.perturb(x0, jax.random.normal(jax.random.key(3), x0.shape), t)
    denoise = target.denoiser(VP)
    dimension = np.asarray(D.intrinsic_dimension(denoise, VP, x, t))
    assert np.mean(dimension == 3) > 0.9
    found = np.asarray(D.principal_subspace(denoise, x, t, 3))
    own = np.argmax(np.linalg.norm(np.einsum("kid,ni->nkd", bases, x0), axis=-1), axis=1)
    errors = D.subspace_error(jnp.asarray(found), jnp.asarray(bases[own], jnp.float32))
    assert float(jnp.median(errors)) < 0.05
    one, other = jnp.eye(4)[:, :2], jnp.eye(4)[:, 2:]
    np.testing.assert_allclose([D.subspace_error(one, one), D.subspace_error(one, other)], [0, 1])
    with pytest.raises(ValueError, match="threshold"):
        D.intrinsic_dimension(denoise, VP, x, t, 1.5)
    with pytest.raises(ValueError, match="equal"):
        D.subspace_error(one, jnp.eye(4)[:, :3])


@pytest.mark.slow
def test_the_denoiser_of_subspaces_is_the_exact_one():
    bases, target = low_rank()
    x, t = jax.random.normal(jax.random.key(0), (6, 12)), jnp.linspace(0.2, 0.9, 6)
    ours = D.subspace_denoiser(jnp.asarray(bases, jnp.float32), VP, jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(ours(x, t), target.denoiser(VP)(x, t), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours(x, 0.4), target.denoiser(VP)(x, 0.4), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_a_subspace_is_learned_from_as_many_examples_as_it_has_dimensions():
    """Fewer leave directions unseen, `sqrt(1 - seen / d)` of error; from d = 4 on the basis is the data's."""
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(24, 4)))[0]

    @jax.jit
    def learned(seen):
        data = 2 * jnp.asarray(basis.T, jnp.float32)
        x0 = data[jnp.arange(256) % seen]

        def loss(raw, key):
            net = D.subspace_denoiser(jnp.linalg.qr(raw)[0][None], VP)
            kind, late = jd.parameterizations.data(), jd.times.uniform(True)
            return jd.losses.denoising(net, key, x0, process=VP, parameterization=kind, times=late).mean()

        def step(raw, key):
            return raw - 3.0 * jax.grad(loss)(raw, key), None

        start = jax.random.normal(jax.random.key(7), (24, 4)) / 5
        raw, _ = jax.lax.scan(step, start, jax.random.split(jax.random.key(8), 400))
        return D.subspace_error(jnp.linalg.qr(raw)[0], jnp.asarray(basis, jnp.float32))

    errors = [float(learned(seen)) for seen in (2, 3, 4)]
    assert min(errors[:2]) > 0.4 and errors[2] < 0.1, errors


@pytest.mark.slow
def test_a_gauge_field_leaves_the_likelihood():
    """Of a model whose score differs from the exact one by it; any other field changes the likelihood."""
    covariance = np.array([[0.5, 0.2], [0.2, 0.3]])
    target = jd.testing.gaussian(np.zeros(2), covariance)
    skew, exact = jnp.array([[0.0, 0.7], [-0.7, 0.0]]), target.denoiser(VP)
    x0 = target.sample(jax.random.key(0), 64)

    def spoiled(turn):
        def denoise(x, t):  # D = (x + c^2 score) / a
            a, _, c = (jnp.asarray(k, x.dtype) for k in VP.coefficients(t))
            inverse = jnp.linalg.inv(a**2 * jnp.asarray(covariance, x.dtype) + c**2 * jnp.eye(2))
            return exact(x, t) + c**2 / a * x @ (turn @ inverse).T

        return denoise

    def log_prob(turn):
        return jd.likelihood.log_prob(
            None, spoiled(turn), VP, x0, solver=jd.solvers.unipc(2), grid=jd.grids.log_snr(VP, 150)
        )

    logp = jax.jit(jax.vmap(log_prob))(jnp.stack([0 * skew, 0.3 * skew, 0.1 * jnp.eye(2)]))
    np.testing.assert_allclose(logp[1].mean(), logp[0].mean(), atol=0.01)
    np.testing.assert_allclose(logp[0], target.log_prob(VP, x0, VP.t_min), atol=0.05)
    assert abs(float((logp[2] - logp[0]).mean())) > 0.1
