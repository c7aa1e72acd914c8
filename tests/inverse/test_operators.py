"""Measurement operators against their dense matrices."""

import functools

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
each = pytest.mark.parametrize("name", LINEAR)
NUMBERS = 0.7, 0.3
OF_EXAMPLES = np.array([0.5, 1.0, 2.0]), np.array([0.1, 0.2, 0.3])


@pytest.fixture(autouse=True)
def wide(x64):
    """All of it in float64."""


@functools.cache
def worked_out(name):
    """What the tests ask of an operator, of one program; the matrix is what it makes of unit vectors."""
    operator, event = LINEAR[name]
    size = int(np.prod(event))
    rng = np.random.default_rng(list(LINEAR).index(name))
    units, x = np.eye(size).reshape(size, *event), rng.normal(size=(2, *event))
    y = rng.normal(size=(3, *jax.eval_shape(operator.forward, x).shape[1:]))
    with_basis = jax.eval_shape(operator.singular, x) is not None
    # numbers for all examples: once by a basis, and without one
    settings = [OF_EXAMPLES, NUMBERS] if event == (3,) or not with_basis else [OF_EXAMPLES]

    @jax.jit
    def work(units, x, y):
        found = {
            "matrix": operator.forward(units).reshape(size, -1).T,
            "adjoint": operator.adjoint(y).reshape(3, -1),
            "gains": [operator.gain(y, *pair).reshape(3, -1) for pair in settings],
            "pinv": operator.pinv(operator.forward(x)).reshape(2, -1),
            "values": operator.singular(x),
        }
        if with_basis:
            found |= {"coefficients": operator.to(x), "back": operator.back(operator.to(x))}
        return found

    return x, y.reshape(3, -1), settings, jax.device_get(work(units, x, y))


@each
def test_adjoint_and_regularised_inverse_are_those_of_the_matrix(name):
    _, y, settings, found = worked_out(name)
    a = found["matrix"]
    np.testing.assert_allclose(found["adjoint"], y @ a, atol=1e-10)
    for (scale, shift), gain in zip(settings, found["gains"], strict=True):
        for i in range(3):
            total = np.broadcast_to(scale, 3)[i] * a @ a.T + np.broadcast_to(shift, 3)[i] * np.eye(len(a))
            np.testing.assert_allclose(gain[i], a.T @ np.linalg.solve(total, y[i]), atol=1e-7)


@each
def test_the_pseudo_inverse_is_the_matrix_one(name):
    """In the range: what conjugate gradients can meet."""
    x, _, _, found = worked_out(name)
    a = found["matrix"]
    np.testing.assert_allclose(found["pinv"], x.reshape(2, -1) @ a.T @ np.linalg.pinv(a).T, atol=1e-6)


@each
def test_singular_values_and_basis(name):
    x, _, _, found = worked_out(name)
    if found["values"] is None:
        return
    coefficients = found["coefficients"]
    np.testing.assert_allclose(found["back"], x, atol=1e-10)
    np.testing.assert_allclose(np.sum(np.abs(coefficients) ** 2), np.sum(x**2), rtol=1e-10)  # orthonormal
    exact = np.linalg.svd(found["matrix"], compute_uv=False)
    values = np.sort(np.broadcast_to(found["values"], coefficients.shape[1:]).ravel())[::-1]
    np.testing.assert_allclose(values[: len(exact)], exact, atol=1e-7)
    np.testing.assert_allclose(values[len(exact) :], 0, atol=1e-7)


def test_noise_of_its_own_for_every_value():
    """A shift of the measurement's shape takes the way of conjugate gradients."""
    operator, v = inverse.dense(RNG.normal(size=(3, 4))), RNG.random((1, 3)) + 0.1
    y = RNG.normal(size=(2, 3))
    a = np.asarray(operator.matrix)
    exact = np.linalg.solve(a @ a.T + np.diag(v[0]), y.T).T @ a
    np.testing.assert_allclose(operator.gain(jnp.asarray(y), 1.0, jnp.asarray(v)), exact, atol=1e-8)


def test_a_function_is_its_derivative_near_a_point():
    operator = inverse.nonlinear(lambda x: x[:, :2] ** 2 + x[:, 1:])
    both = inverse.compose(inverse.mask([1, 0, 1]), operator)
    (x, u), v = RNG.normal(size=(2, 2, 3)), np.ones((2, 2))

    @jax.jit
    def work(x, u, v):
        near = operator.at(x)
        pushed = both.at(x).forward(u), jax.jvp(both.forward, (x,), (u,))[1]
        return near.forward(u), near.adjoint(v), pushed

    forward, adjoint, pushed = jax.device_get(work(x, u, v))
    np.testing.assert_allclose(forward, 2 * x[:, :2] * u[:, :2] + u[:, 1:], atol=1e-10)
    np.testing.assert_allclose(np.sum(forward * v), np.sum(u * adjoint), atol=1e-10)
    np.testing.assert_allclose(*pushed, atol=1e-10)
    with pytest.raises(ValueError, match="no adjoint"):
        operator.pinv(v)


def test_projections_of_the_projector():
    """A projection at angle 0 is the column sums; none loses mass."""
    x = RNG.random((2, 6, 6, 1)) * (np.hypot(*(np.mgrid[:6, :6] - 2.5)) < 2.6)[..., None]
    y = np.asarray(jax.jit(inverse.radon(6, np.array([0.0, 0.4, 1.3])).forward)(x)).reshape(2, 3, 6)
    np.testing.assert_allclose(y[:, 0], x[..., 0].sum(1), atol=1e-10)
    np.testing.assert_allclose(y.sum(2), np.broadcast_to(x.sum((1, 2)), (2, 3)), atol=1e-10)


def test_noise_models():
    y, mean = np.array([[1.0, 2.0]]), np.array([[0.5, 1.5]])
    model, counts = inverse.noise.gaussian(0.5), inverse.noise.poisson(10.0)
    many = inverse.noise.gaussian(np.array([0.5, 1.0]))

    @jax.jit
    def work(y, mean):
        slope = jax.grad(lambda m: counts.log_prob(y, m)[0])(mean)
        return model.log_prob(y, mean), many.variance(y), counts.variance(y), slope

    log_prob, variance, of_counts, slope = work(y, mean)
    np.testing.assert_allclose(log_prob, [-1.0])
    np.testing.assert_allclose(variance, [[0.25, 1.0]])
    np.testing.assert_allclose(of_counts, y / 10)
    np.testing.assert_allclose(slope, 10 * (y / mean - 1), rtol=1e-6)


def test_each_example_has_its_own_system():
    a = RNG.normal(size=(3, 3, 3))
    a = a @ a.swapaxes(1, 2) + np.eye(3)
    b = RNG.normal(size=(3, 3))
    exact = np.linalg.solve(a, b[..., None])[..., 0]

    @jax.jit
    def work(a, b, start):
        apply = lambda v: jnp.einsum("bij,bj->bi", a, v)  # noqa: E731
        return inverse.conjugate_gradient(apply, b, 3), inverse.conjugate_gradient(apply, b, 2, start)

    for found in work(a, b, exact):
        np.testing.assert_allclose(found, exact, atol=1e-8)


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
    matrices = np.array([np.diag([1.0, 2.0, 4.0]), np.diag([1.0, -2.0, 4.0])])

    @jax.jit
    def solve(b):
        return inverse.conjugate_gradient(lambda v: jnp.einsum("nij,nj->ni", matrices, v), b, 6)

    got = np.asarray(solve(np.ones((2, 3))))
    np.testing.assert_allclose(got[0], [1.0, 0.5, 0.25], atol=1e-9)
    assert np.all(np.abs(got[1]) < 10) and np.any(got[1] != 0)
