"""Every algorithm of the convolution against the literal one, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.models import convolution


def literal(x, kernel):
    return convolution.convolve(x, kernel, [(1, 1), (1, 1)])


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_same_map(first, second, x, kernel, tolerance):
    """Values, both gradients and a directional derivative agree."""

    def everything(convolve, x, kernel):
        out, pull = jax.vjp(convolve, x, kernel)
        weights = np.cos(np.arange(out.size)).astype(out.dtype).reshape(out.shape)
        return out, *pull(weights), jax.jvp(convolve, (x, kernel), (jnp.sin(x), kernel**2))[1]

    sides = jax.jit(lambda x, kernel: [everything(f, x, kernel) for f in (first, second)])(x, kernel)
    for got, expected in zip(*jax.device_get(sides), strict=True):
        np.testing.assert_allclose(got, expected, atol=tolerance * abs(expected).max())


def test_minimal_filter_correlates():
    taps, inputs, outputs = convolution.minimal_filter()
    g, d = np.array([0.3, -1.0, 2.0]), np.array([1.0, 4.0, -2.0, 0.5, 3.0, -1.5])
    np.testing.assert_allclose(outputs @ ((taps @ g) * (inputs @ d)), np.correlate(d, g), atol=1e-12)


@pytest.mark.parametrize("shape, features", [((3, 8, 4, 5), 7), ((2, 4, 12, 64), 64)])
def test_winograd_equals_literal_convolution(shape, features):
    x, kernel = normal(0, shape), normal(1, (3, 3, shape[-1], features))
    assert_same_map(convolution.winograd, literal, x, kernel, 3e-6)


def test_winograd_error_is_that_of_the_literal_convolution():
    x = np.random.default_rng(0).normal(size=(2, 16, 16, 64))
    kernel = np.random.default_rng(1).normal(size=(3, 3, 64, 64)) / 24
    padded = np.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)])
    exact = sum(
        padded[:, row : row + 16, column : column + 16] @ kernel[row, column]
        for row in range(3) for column in range(3)
    )
    both = jax.jit(lambda x, kernel: (convolution.winograd(x, kernel), literal(x, kernel)))
    found = jax.device_get(both(x.astype(np.float32), kernel.astype(np.float32)))
    errors = [np.abs(values - exact).max() for values in found]
    assert errors[0] < 4 * errors[1]


def test_winograd_over_a_mapped_axis():
    x, kernels = normal(0, (2, 1, 4, 4, 3)), normal(1, (2, 3, 3, 3, 2))
    mapped = jax.jit(jax.vmap(convolution.winograd))(x, kernels)
    one = jax.jit(literal)
    each = np.stack([one(*pair) for pair in zip(x, kernels, strict=True)])
    np.testing.assert_allclose(mapped, each, atol=2e-5)


@pytest.mark.parametrize(
    "shape, features, dtype, pays",
    [
        ((1, 8, 8, 64), 64, jnp.float32, True),
        ((1, 8, 6, 64), 64, jnp.float32, False),
        ((1, 8, 8, 32), 64, jnp.float32, False),
        ((1, 8, 8, 64), 3, jnp.float32, False),
        ((1, 8, 8, 64), 64, jnp.bfloat16, False),
    ],
)
def test_conv_chooses_by_shape_and_dtype(shape, features, dtype, pays):
    x = normal(0, shape).astype(dtype)
    layer = convolution.Conv(features, dtype=dtype)
    kernel, bias = normal(1, (3, 3, shape[-1], features)) / 24, np.zeros(features, np.float32)
    variables = {"params": {"kernel": kernel, "bias": bias}}
    products = jax.make_jaxpr(layer.apply)(variables, x).pretty_print().count("dot_general")
    assert products == (4 if pays and jax.default_backend() == "cpu" else 0)
    both = jax.jit(lambda v, x: (layer.apply(v, x), literal(x, kernel.astype(dtype))))
    found, expected = both(variables, x)
    np.testing.assert_allclose(np.float32(found), np.float32(expected), atol=2e-5)


@pytest.mark.slow
def test_double_and_convolve_equals_repeat_then_convolve():
    x, kernel = normal(0, (2, 3, 4, 5)), normal(1, (3, 3, 5, 6))

    def literal(x, kernel):
        large = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        return convolution.convolve(large, kernel, [(1, 1), (1, 1)])

    weights = np.cos(np.arange(2 * 6 * 8 * 6, dtype=np.float32)).reshape(2, 6, 8, 6)

    @jax.jit
    def run(x, kernel):
        pulled = [jax.vjp(f, x, kernel) for f in (convolution.double_and_convolve, literal)]
        return [out for out, _ in pulled], [pull(weights) for _, pull in pulled]

    outs, grads = run(x, kernel)
    np.testing.assert_allclose(*outs, atol=2e-5)
    for got, expected in zip(*grads, strict=True):
        np.testing.assert_allclose(got, expected, atol=5e-5)
