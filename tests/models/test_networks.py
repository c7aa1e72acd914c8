"""What every network promises, on the smallest of each."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models

SMALL = {
    "MLP": (models.MLP, {"width": 16, "depth": 2}, (3,)),
    "UNet": (
        models.UNet,
        {"channels": (4, 8), "attention_resolutions": (2,), "skip_inputs": False},
        (4, 4, 2),
    ),
    "DiT": (models.DiT, {"patch": 2, "width": 16, "depth": 2, "heads": 2}, (4, 4, 2)),
}
BATCH = 3


@functools.cache
def network(name, **fields):
    """The module, first parameters (of the network without options), others away from zeros, and inputs."""
    build, small, shape = SMALL[name]
    model = build(**small, num_classes=4, vector_size=2, **fields)
    rng = np.random.default_rng(0)
    x = rng.normal(size=(BATCH, *shape)).astype(np.float32)
    c_noise, key = np.float32([-1.0, 0.2, 0.9]), jax.random.key(0)
    shapes = jax.eval_shape(model.init, key, x, c_noise)["params"]
    params = network(name)[1] if fields else jax.device_get(jax.jit(model.init)(key, x, c_noise)["params"])
    moved = jax.tree.map(
        lambda leaf, first: (first + 0.2 * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes, params
    )
    return model, params, moved, x, c_noise


@functools.cache
def applied(name, **fields):
    model = network(name, **fields)[0]
    apply = jax.jit(lambda params, *args, **keys: model.apply({"params": params}, *args, **keys))
    return lambda *args, **keys: np.asarray(apply(*args, **keys))


every = pytest.mark.parametrize("name", list(SMALL))
slow_but_mlp = pytest.mark.parametrize("name", [
    name if name == "MLP" else pytest.param(name, marks=pytest.mark.slow) for name in SMALL
])


@every
def test_zero_output_at_init_and_shape(name):
    _, params, moved, x, c_noise = network(name)
    np.testing.assert_array_equal(applied(name)(params, x, c_noise), np.zeros_like(x))
    out = applied(name)(moved, x, c_noise)
    assert out.shape == x.shape and out.dtype == x.dtype
    assert np.abs(out).max() > 1e-2


@pytest.mark.slow
@every
def test_every_input_matters(name):
    _, _, params, x, c_noise = network(name)
    labels, vector = np.arange(3), np.ones((BATCH, 2), np.float32)
    outs = [
        applied(name)(params, x, c_noise),
        applied(name)(params, x, c_noise + 0.05),
        applied(name)(params, x, c_noise, labels),
        applied(name)(params, x, c_noise, np.array([1, 1, 2])),
        applied(name)(params, x, c_noise, {"vector": vector}),
        applied(name)(params, x, c_noise, {"label": labels, "vector": vector}),
    ]
    for index, first in enumerate(outs):
        for second in outs[index + 1:]:
            assert np.abs(first - second)[0].max() > 1e-4


@every
def test_none_is_the_null_class_and_the_zero_vector(name):
    _, _, params, x, c_noise = network(name)
    condition = {"label": np.full(BATCH, 4), "vector": np.zeros((BATCH, 2), np.float32)}
    np.testing.assert_array_equal(
        applied(name)(params, x, c_noise), applied(name)(params, x, c_noise, condition)
    )


@slow_but_mlp
def test_scalar_c_noise_is_broadcast(name):
    _, _, params, x, _ = network(name)
    np.testing.assert_array_equal(
        applied(name)(params, x, 0.3), applied(name)(params, x, np.full(BATCH, 0.3, np.float32))
    )


@pytest.mark.slow
@every
def test_examples_do_not_see_each_other_nor_their_order(name):
    _, _, params, x, c_noise = network(name, dropout=0.5)
    keys, labels = jax.random.split(jax.random.key(7), BATCH), np.arange(3)
    apply, order = applied(name, dropout=0.5), np.array([2, 0, 1])
    out = apply(params, x, c_noise, labels, keys=keys)
    permuted = apply(params, x[order], c_noise[order], labels[order], keys=keys[order])
    np.testing.assert_allclose(permuted, out[order], atol=1e-5)


@slow_but_mlp
def test_dropout_is_active_exactly_with_keys(name):
    _, _, params, x, c_noise = network(name, dropout=0.5)
    apply = applied(name, dropout=0.5)
    keys = jax.random.split(jax.random.key(7), BATCH)
    np.testing.assert_array_equal(apply(params, x, c_noise), applied(name)(params, x, c_noise))
    dropped = apply(params, x, c_noise, keys=keys)
    assert np.abs(dropped - apply(params, x, c_noise)).max() > 1e-3
    np.testing.assert_array_equal(dropped, apply(params, x, c_noise, keys=keys))
    one_other = keys.at[0].set(jax.random.key(8))
    changed = np.abs(apply(params, x, c_noise, keys=one_other) - dropped).max(tuple(range(1, x.ndim)))
    assert changed[0] > 1e-3 and changed[1:].max() < 1e-5


@pytest.mark.slow
@every
def test_remat_gives_the_same_gradients(name):
    _, _, params, x, c_noise = network(name, dropout=0.5)
    keys = jax.random.split(jax.random.key(7), BATCH)

    def gradient(remat):
        model = network(name, dropout=0.5, remat=remat)[0]
        return jax.jit(jax.grad(
            lambda p: (model.apply({"params": p}, x, c_noise, keys=keys) ** 2).sum()
        ))(params)

    plain, again = jax.device_get((gradient(False), gradient(True)))
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    assert jax.tree.structure(plain) == jax.tree.structure(again)
    for first, second in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(first, second, atol=1e-5 * scale)


@pytest.mark.slow
@every
def test_narrow_computation_with_wide_parameters(name):
    model, _, params, x, c_noise = network(name, dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
    wide = applied(name)(params, x, c_noise)
    out = applied(name, dtype=jnp.bfloat16)(params, x, c_noise)
    assert out.dtype == jnp.float32
    relative = np.abs(out - wide).max() / np.abs(wide).max()
    assert 1e-4 < relative < 0.1
    narrow = applied(name, dtype=jnp.bfloat16)(params, x.astype(jnp.bfloat16), c_noise)
    assert narrow.dtype == jnp.bfloat16


@every
def test_param_dtype(name):
    build, small, shape = SMALL[name]
    model = build(**small, param_dtype=jnp.bfloat16)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)), 0.0)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}
