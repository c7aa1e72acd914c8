"""Measurement operators against their dense matrices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

inverse = jd.inverse
RNG = np.random.default_rng(0)
EVEN = (RNG.random((4, 4)) < 0.5).astype(float)
LINEAR = {
    "mask": (inverse.mask(EVEN), (4, 4, 2)),
    "mask of values": (inverse.mask([1, 0, 1]), (3,)),
    "mask of a table": (inverse.mask(EVEN), (4, 4)),
    "blur": (inverse.gaussian_blur(0.9, 3), (4, 4, 2)),
    "lopsided blur": (inverse.blur(RNG.random((2, 3))), (4, 5, 1)),
    "downsample": (inverse.downsample(2), (4, 6, 2)),
    "fourier": (inverse.fourier(EVEN), (4, 4, 1)),
    "colour": (inverse.colour(), (2, 2, 3)),
    "dense": (inverse.dense(RNG.normal(size=(3, 6)), (2, 3)), (2, 3)),
    "tall": (inverse.dense(RNG.normal(size=(6, 4))), (4,)),
    "radon": (inverse.radon(4, np.linspace(0, np.pi, 3, endpoint=False)), (4, 4, 1)),
    "no basis": (inverse.dense(RNG.normal(size=(3, 5)), decompose=False), (5,)),
    "composed": (inverse.compose(inverse.gaussian_blur(0.7, 3), inverse.mask(EVEN)), (4, 4, 1)),
}
each = pytest.mark.parametrize("operator, event", LINEAR.values(), ids=LINEAR)


def matrix(operator, event):
    """The operator's matrix, from what it makes of each unit vector."""
    size = int(np.prod(event))
    return np.asarray(operator.forward(jnp.eye(size).reshape(size, *event))).reshape(size, -1).T


@pytest.fixture(autouse=True)
def wide(x64):
    """All of it in float64."""


@each
def test_adjoint_and_regularised_inverse_are_those_of_the_matrix(operator, event):
    a = matrix(operator, event)
    shape = operator.forward(jnp.zeros((1, *event))).shape[1:]
    y = RNG.normal(size=(3, *shape))
    flat = y.reshape(3, -1)
    adjoint = np.asarray(operator.adjoint(jnp.asarray(y))).reshape(3, -1)
    np.testing.assert_allclose(adjoint, flat @ a, atol=1e-10)
    settings = [(np.array([0.5, 1.0, 2.0]), np.array([0.1, 0.2, 0.3]))]
    if event == (3,) or operator.singular(jnp.zeros((1, *event))) is None:  # by a basis, and without one
        settings.append((0.7, 0.3))
    for scale, shift in settings:
        found = operator.gain(jnp.asarray(y), scale, shift)
        for i in range(3):
            total = np.broadcast_to(scale, 3)[i] * a @ a.T + np.broadcast_to(shift, 3)[i] * np.eye(len(a))
            exact = a.T @ np.linalg.solve(total, flat[i])
            np.testing.assert_allclose(np.asarray(found[i]).ravel(), exact, atol=1e-7)


@each
def test_the_pseudo_inverse_is_the_matrix_one(operator, event):
    a = matrix(operator, event)
    y = RNG.normal(size=(2, *event)).reshape(2, -1) @ a.T  # in the range: what conjugate gradients can meet
    shape = operator.forward(jnp.zeros((1, *event))).shape[1:]
    found = operator.pinv(jnp.asarray(y.reshape(2, *shape)))
    np.testing.assert_allclose(np.asarray(found).reshape(2, -1), y @ np.linalg.pinv(a).T, atol=1e-6)


@each
def test_singular_values_and_basis(operator, event):
    x = jnp.asarray(RNG.normal(size=(2, *event)))
    values = operator.singular(x)
    if values is None:
        return
    coefficients = operator.to(x)
    np.testing.assert_allclose(operator.back(coefficients), x, atol=1e-10)
    np.testing.assert_allclose(np.sum(np.abs(coefficients) ** 2), np.sum(x**2), rtol=1e-10)  # orthonormal
    exact = np.linalg.svd(matrix(operator, event), compute_uv=False)
    found = np.sort(np.broadcast_to(values, coefficients.shape[1:]).ravel())[::-1]
    np.testing.assert_allclose(found[: len(exact)], exact, atol=1e-7)
    np.testing.assert_allclose(found[len(exact) :], 0, atol=1e-7)


def test_noise_of_its_own_for_every_value():
    """A shift of the measurement's shape takes the way of conjugate gradients."""
    operator, v = inverse.dense(RNG.normal(size=(3, 4))), RNG.random((1, 3)) + 0.1
    y = RNG.normal(size=(2, 3))
    a = np.asarray(operator.matrix)
    exact = np.linalg.solve(a @ a.T + np.diag(v[0]), y.T).T @ a
    np.testing.assert_allclose(operator.gain(jnp.asarray(y), 1.0, jnp.asarray(v)), exact, atol=1e-8)


def test_a_function_is_its_derivative_near_a_point():
    operator, x = inverse.nonlinear(lambda x: x[:, :2] ** 2 + x[:, 1:]), jnp.asarray(RNG.normal(size=(2, 3)))
    near, u = operator.at(x), jnp.asarray(RNG.normal(size=(2, 3)))
    np.testing.assert_allclose(near.forward(u), 2 * x[:, :2] * u[:, :2] + u[:, 1:], atol=1e-10)
    v = jnp.ones((2, 2))
    np.testing.assert_allclose(jnp.sum(near.forward(u) * v), jnp.sum(u * near.adjoint(v)), atol=1e-10)
    both = inverse.compose(inverse.mask([1, 0, 1]), operator)
    pushed = both.at(x).forward(u)
    np.testing.assert_allclose(pushed, jax.jvp(both.forward, (x,), (u,))[1], atol=1e-10)
    with pytest.raises(ValueError, match="no adjoint"):
        operator.pinv(v)


def test_projections_of_the_projector():
    """A projection at angle 0 is the column sums; none loses mass."""
    x = jnp.asarray(RNG.random((2, 6, 6, 1)) * (np.hypot(*(np.mgrid[:6, :6] - 2.5)) < 2.6)[..., None])
    y = inverse.radon(6, np.array([0.0, 0.4, 1.3])).forward(x).reshape(2, 3, 6)
    np.testing.assert_allclose(y[:, 0], x[..., 0].sum(1), atol=1e-10)
    np.testing.assert_allclose(y.sum(2), np.broadcast_to(x.sum((1, 2)), (2, 3)), atol=1e-10)


def test_noise_models():
    y, mean = jnp.array([[1.0, 2.0]]), jnp.array([[0.5, 1.5]])
    model = inverse.noise.gaussian(0.5)
    np.testing.assert_allclose(model.log_prob(y, mean), [-1.0])
    np.testing.assert_allclose(inverse.noise.gaussian(np.array([0.5, 1.0])).variance(y), [[0.25, 1.0]])
    counts = inverse.noise.poisson(10.0)
    np.testing.assert_allclose(counts.variance(y), y / 10)
    slope = jax.grad(lambda m: counts.log_prob(y, m)[0])(mean)
    np.testing.assert_allclose(slope, 10 * (y / mean - 1), rtol=1e-6)


def test_each_example_has_its_own_system():
    a = RNG.normal(size=(3, 3, 3))
    a = a @ a.swapaxes(1, 2) + np.eye(3)
    b = RNG.normal(size=(3, 3))
    apply = lambda v: jnp.einsum("bij,bj->bi", jnp.asarray(a), v)  # noqa: E731
    exact = np.linalg.solve(a, b[..., None])[..., 0]
    np.testing.assert_allclose(inverse.conjugate_gradient(apply, jnp.asarray(b), 3), exact, atol=1e-8)
    start = jnp.asarray(exact)
    np.testing.assert_allclose(inverse.conjugate_gradient(apply, jnp.asarray(b), 2, start), exact, atol=1e-8)


@pytest.mark.parametrize("make, message", [
    (lambda: inverse.mask([0.5, 1.0]), "0 and 1"),
    (lambda: inverse.blur(np.ones(3)), r"kernel \(height, width\)"),
    (lambda: inverse.gaussian_blur(1.0, 7).forward(jnp.zeros((1, 4, 4, 1))), r"images of at least \(7, 7\)"),
    (lambda: inverse.mask([1, 0, 1]).forward(jnp.zeros((2, 1))), r"fit a mask of shape \(3,\), got \(1,\)"),
    (lambda: inverse.mask(EVEN).adjoint(jnp.zeros((1, 5, 4, 1))), r"got \(5, 4, 1\)"),
    (lambda: inverse.gaussian_blur(1.0, 3).forward(jnp.zeros((1, 16))), r"blur: expected images"),
    (lambda: inverse.downsample(2).forward(jnp.zeros((1, 4, 4))), "downsample: expected images"),
    (lambda: inverse.fourier(EVEN).forward(jnp.zeros((1, 4, 5, 1))), r"\(4, 4\) pixels, got \(4, 5\)"),
    (lambda: inverse.radon(4, [0.0]).forward(jnp.zeros((1, 5, 5, 1))), r"end in \(4, 4, 1\)"),
    (lambda: inverse.downsample(0), "factor"),
    (lambda: inverse.downsample(3).forward(jnp.zeros((1, 4, 4, 1))), "that 3 divides"),
    (lambda: inverse.dense(np.ones((2, 3)), (2, 2)), r"matrix \(m, 4\)"),
    (lambda: inverse.dense(np.ones((2, 3))).forward(jnp.zeros((1, 4))), r"end in \(3,\)"),
    (lambda: inverse.dense(np.ones((2, 3))).adjoint(jnp.zeros((1, 3))), "measurements of 2 values"),
    (lambda: inverse.nonlinear(3), "a function"),
    (lambda: inverse.compose(), "at least one"),
    (lambda: inverse.noise.gaussian(-1.0), "noise_level of at least 0"),
    (lambda: inverse.noise.gaussian(np.array([0.1, np.nan])), "finite noise_level"),
    (lambda: inverse.noise.gaussian(np.ones(3)).variance(jnp.zeros((5, 2))), r"shape, \(2,\), got \(3,\)"),
])  # fmt: skip
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_conjugate_gradients_end_where_the_system_is_not_positive(x64):
    """A network's Jacobian may have a negative direction: one example ends there, the other goes on."""
    matrices = jnp.asarray([np.diag([1.0, 2.0, 4.0]), np.diag([1.0, -2.0, 4.0])])
    b = jnp.ones((2, 3))
    got = inverse.conjugate_gradient(lambda v: jnp.einsum("nij,nj->ni", matrices, v), b, 6)
    np.testing.assert_allclose(got[0], [1.0, 0.5, 0.25], atol=1e-9)
    assert bool(jnp.all(jnp.abs(got[1]) < 10)) and bool(jnp.any(got[1] != 0))
