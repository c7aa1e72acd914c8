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
    x = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    matrix = np.float32([[1.0, 2.0], [0.0, 1.0]])
    target = jd.testing.gaussian_mixture(
        np.array([[1.0, 0], [-1, 0.3]]), np.array([0.1, 0.2]), np.array([0.5, 0.5])
    )

    @jax.jit
    def found(x):
        linear = lambda x, t: x @ matrix.T  # noqa: E731
        of_score = D.asymmetry(target.denoiser(VP), x, 0.4)
        return D.jacobian(linear, x, 0.5)[0], D.asymmetry(linear, x, 0.5), of_score

    jacobian, of_matrix, of_score = found(x)
    np.testing.assert_allclose(jacobian, matrix, atol=1e-6)
    np.testing.assert_allclose(of_matrix, np.sqrt(8 / 6), rtol=1e-5)
    np.testing.assert_allclose(of_score, 0, atol=1e-4)


@pytest.mark.slow
def test_a_gauge_field_leaves_marginals_and_only_a_gauge_field():
    covariance = np.array([[0.5, 0.2], [0.2, 0.3]])
    target, t = jd.testing.gaussian(np.zeros(2), covariance), 0.4
    a, _, c = VP.coefficients(t)
    precision = np.linalg.inv(a**2 * covariance + c**2 * np.eye(2))
    turn = np.float32(np.array([[0.0, 0.7], [-0.7, 0.0]]) @ precision)

    @jax.jit
    def found(x):
        gauge, score = lambda x, t: x @ turn.T, target.score(VP)
        residuals = (D.gauge_residual(field, score, x, t) for field in (gauge, lambda x, t: 0.1 * x))
        return *residuals, D.asymmetry(gauge, x, t)

    residual, other, asymmetry = found(np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32))
    np.testing.assert_allclose(residual, 0, atol=1e-4)
    assert np.min(asymmetry) > 0.5  # not conservative, and yet harmless
    assert np.abs(other).mean() > 0.05


@pytest.mark.slow
def test_intrinsic_dimension_and_subspaces():
    bases, target = low_rank()
    t = float(VP.time_of_log_snr(2.5))
    denoise = target.denoiser(VP)

    @jax.jit
    def found():
        x0 = target.sample(jax.random.key(2), 40)
        x = VP.perturb(x0, jax.random.normal(jax.random.key(3), x0.shape), t)
        subspace = D.principal_subspace(denoise, x, t, 3)
        return x0, x, D.intrinsic_dimension(denoise, VP, x, t), subspace

    x0, x, dimension, subspace = jax.device_get(found())
    assert np.mean(dimension == 3) > 0.9
    own = np.argmax(np.linalg.norm(np.einsum("kid,ni->nkd", bases, x0), axis=-1), axis=1)
    unit = np.eye(4, dtype=np.float32)
    one, other = unit[:, :2], unit[:, 2:]
    error = jax.jit(lambda *pairs: [D.subspace_error(*pair) for pair in pairs])
    errors, *known = error((subspace, np.float32(bases[own])), (one, one), (one, other))
    assert np.median(errors) < 0.05
    np.testing.assert_allclose(known, [0, 1])
    with pytest.raises(ValueError, match="threshold"):
        D.intrinsic_dimension(denoise, VP, x, t, 1.5)
    with pytest.raises(ValueError, match="equal"):
        D.subspace_error(one, unit[:, :3])


@pytest.mark.slow
def test_the_denoiser_of_subspaces_is_the_exact_one():
    bases, target = low_rank()
    x, t = np.random.default_rng(0).normal(size=(6, 12)), np.linspace(0.2, 0.9, 6)
    ours = D.subspace_denoiser(np.float32(bases), VP, np.ones(2, np.float32))

    @jax.jit
    def found(x, t):
        return [(denoise(x, t), denoise(x, 0.4)) for denoise in (ours, target.denoiser(VP))]

    np.testing.assert_allclose(*found(np.float32(x), np.float32(t)), rtol=1e-4, atol=1e-5)


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
    skew, exact = np.float32([[0.0, 0.7], [-0.7, 0.0]]), target.denoiser(VP)

    def spoiled(turn):
        def denoise(x, t):  # D = (x + c^2 score) / a
            a, _, c = (jnp.asarray(k, x.dtype) for k in VP.coefficients(t))
            inverse = jnp.linalg.inv(a**2 * jnp.asarray(covariance, x.dtype) + c**2 * jnp.eye(2))
            return exact(x, t) + c**2 / a * x @ (turn @ inverse).T

        return denoise

    @jax.jit
    def found(turns):
        x0 = target.sample(jax.random.key(0), 64)
        log_prob = lambda turn: jd.likelihood.log_prob(  # noqa: E731
            None, spoiled(turn), VP, x0, solver=jd.solvers.unipc(2), grid=jd.grids.log_snr(VP, 150)
        )
        return jax.vmap(log_prob)(turns), target.log_prob(VP, x0, VP.t_min)

    turns = np.stack([0 * skew, 0.3 * skew, 0.1 * np.eye(2)]).astype(np.float32)
    logp, expected = jax.device_get(found(turns))
    np.testing.assert_allclose(logp[1].mean(), logp[0].mean(), atol=0.01)
    np.testing.assert_allclose(logp[0], expected, atol=0.05)
    assert abs((logp[2] - logp[0]).mean()) > 0.1
