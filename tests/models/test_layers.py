"""The shared pieces against plain references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax

from jaxdiff import models
from jaxdiff.models import layers

group_norm = jax.jit(layers.group_norm, static_argnums=3)
dropout = jax.jit(layers.dropout, static_argnums=1)


def normal(seed, shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def reference_group_norm(x, scale, shift, groups, eps=1e-5):
    batch, *spatial, channels = x.shape
    grouped = np.asarray(x, np.float64).reshape(batch, -1, groups, channels // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = grouped.var((1, 3), keepdims=True)
    normed = ((grouped - mean) / np.sqrt(variance + eps)).reshape(x.shape)
    widen = (slice(None),) + (None,) * len(spatial)
    return normed * np.atleast_2d(scale)[widen] + np.atleast_2d(shift)[widen]


@pytest.mark.parametrize("shape, groups", [((3, 4, 5, 12), 3), ((2, 7, 8), 8), ((2, 3, 3, 6), 1)])
@pytest.mark.parametrize("per_example", [False, True])
def test_group_norm_equals_reference(shape, groups, per_example):
    x = 1.5 + 2.0 * normal(0, shape)
    affine = (shape[0], shape[-1]) if per_example else (shape[-1],)
    scale, shift = normal(1, (2, *affine))
    expected = reference_group_norm(x, scale, shift, groups)
    np.testing.assert_allclose(group_norm(x, scale, shift, groups), expected, atol=1e-5)


@pytest.mark.slow
def test_group_norm_gradient_equals_plain():
    x = normal(0, (2, 3, 3, 8))
    scale, shift = (np.linspace(*ends, 8, dtype=np.float32) for ends in ((0.5, 2.0), (-1.0, 1.0)))

    def plain(x, scale, shift):
        grouped = x.reshape(2, 9, 4, 2)
        centred = grouped - grouped.mean((1, 3), keepdims=True)
        variance = (centred**2).mean((1, 3), keepdims=True)
        normed = (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)
        return normed * scale.reshape(1, 1, 1, -1) + shift.reshape(1, 1, 1, -1)

    weights = np.cos(np.arange(x.size, dtype=np.float32)).reshape(x.shape)
    ours = jax.grad(lambda *a: (layers.group_norm(*a, 4) * weights).sum(), (0, 1, 2))
    theirs = jax.grad(lambda *a: (plain(*a) * weights).sum(), (0, 1, 2))
    both = jax.jit(lambda *a: (ours(*a), theirs(*a)))
    for got, expected in zip(*both(x, scale, shift), strict=True):
        np.testing.assert_allclose(got, expected, atol=2e-5)


def test_group_norm_statistics_are_wide():
    x = normal(0, (1, 64, 64, 4)).astype(jnp.bfloat16)
    out = group_norm(x, np.ones(4, np.float32), np.zeros(4, np.float32), 1)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(out, np.float32).std(), 1.0, atol=2e-3)


@pytest.mark.parametrize(
    "channels, groups", [(1, 1), (6, 1), (32, 8), (48, 12), (52, 13), (512, 32)]
)
def test_default_groups(channels, groups):
    assert layers.default_groups(channels) == groups


def test_dropout_mean_share_and_keys():
    x = np.ones((4, 64, 64), np.float32)
    keys = jax.random.split(jax.random.key(0), 4)
    out = np.asarray(dropout(x, 0.25, keys))
    np.testing.assert_allclose(np.unique(out), [0.0, 4 / 3], rtol=1e-6)
    assert abs((out == 0).mean() - 0.25) < 0.01
    np.testing.assert_array_equal(dropout(x, 0.25, keys[::-1]), out[::-1])
    assert layers.dropout(x, 0.25, None) is x and layers.dropout(x, 0.0, keys) is x


@pytest.mark.parametrize("rate", [1 - 2**-16, 0.999999])
def test_dropout_of_almost_everything_keeps_one_value_of_the_sixteen_bits(rate):
    drop = jax.jit(lambda key: layers.dropout(jnp.ones((1, 2**20)), rate, jax.random.split(key, 1)))
    out = np.asarray(drop(jax.random.key(0)))
    assert 4 <= (out > 0).sum() <= 40 and set(np.unique(out)) == {0, 2**16}


def test_dropout_sites_differ():
    keys = jax.random.split(jax.random.key(0), 1)

    @jax.jit
    def work(keys):
        own_keys = layers.sites(keys, 2, 0.5)
        expected = [jax.random.fold_in(keys[0], site) for site in range(2)]
        data = [jax.random.key_data(own)[0] for own in own_keys], [*map(jax.random.key_data, expected)]
        return data, [layers.dropout(jnp.ones((1, 256)), 0.5, own) for own in own_keys]

    (own, expected), masks = jax.device_get(work(keys))
    np.testing.assert_array_equal(own, expected)
    assert 64 < (masks[0] != masks[1]).sum() < 192
    assert layers.sites(None, 2, 0.5) == layers.sites(keys, 2, 0.0) == [None, None]


def test_rotary_products_depend_on_the_shift_alone():
    height, width, size = 5, 6, 8
    angles = layers.rotary_angles(height, width, size)
    q, k = vectors = normal(1, (2, size))
    tokens = np.tile(vectors[:, None, None], (1, height * width, 1, 1))
    turned = jax.jit(lambda tokens: layers.rotate(tokens, angles))(tokens)
    product = np.einsum("abi,cdi->abcd", *np.asarray(turned).reshape(2, height, width, size))
    np.testing.assert_allclose(product[0, 1, 2, 4], product[2, 2, 4, 5], atol=1e-5)
    np.testing.assert_allclose(product[3, 3, 1, 0], product[2, 5, 0, 2], atol=1e-5)
    np.testing.assert_allclose(product[4, 2, 4, 2], q @ k, atol=1e-5)
    assert abs(product[0, 0, 0, 1] - product[0, 0, 1, 0]) > 1e-2
    assert abs(product[0, 0, 0, 1] - product[0, 1, 0, 0]) > 1e-2


@pytest.mark.slow
def test_attention_equals_plain_softmax():
    model = layers.SelfAttention(heads=2)
    x = normal(0, (2, 5, 8))
    params = jax.device_get(jax.jit(model.init)(jax.random.key(1), x)["params"])
    heads = [value.reshape(2, 5, 2, 4) for value in np.split(x @ params["qkv"]["kernel"], 3, axis=-1)]
    logits = np.einsum("bqhd,bkhd->bhqk", heads[0], heads[1]) / 2.0
    mixed = np.einsum("bhqk,bkhd->bqhd", softmax(logits, -1), heads[2]).reshape(2, 5, 8)
    expected = mixed @ params["out"]["kernel"]
    np.testing.assert_allclose(jax.jit(model.apply)({"params": params}, x), expected, atol=1e-5)


def test_qk_norm_ignores_the_scale_of_queries_and_keys():
    model = layers.SelfAttention(heads=2, qk_norm=True)
    x = normal(0, (1, 5, 8))
    params = jax.device_get(jax.jit(model.init)(jax.random.key(1), x)["params"])
    kernel = params["qkv"]["kernel"] * np.repeat(np.float32([100, 1]), (16, 8))
    scaled = params | {"qkv": params["qkv"] | {"kernel": kernel}}
    apply = jax.jit(model.apply)
    outs = [apply({"params": p}, x) for p in (params, scaled)]
    np.testing.assert_allclose(*outs, atol=1e-4)


@pytest.mark.parametrize("network", [
    models.UNet(channels=(4,), attention_resolutions=(), skip_inputs=False, fourier_features=(2.0, 0.5)),
    models.DiT(patch=1, width=8, depth=0, heads=2, fourier_features=(2.0, 0.5)),
])
def test_fourier_features_tell_where_in_its_period_a_value_lies(network):
    x = normal(0, (1, 2, 2, 1))
    values = layers.with_fourier_features(x, (2.0, 0.5))
    waves = [np.sin(4 * np.pi * x), np.sin(np.pi * x), np.cos(4 * np.pi * x), np.cos(np.pi * x)]
    np.testing.assert_allclose(values, np.concatenate([x, *waves], -1), atol=1e-5)
    rng, shapes = np.random.default_rng(0), jax.eval_shape(network.init, jax.random.key(1), x, 0.0)["params"]
    params = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)
    kernel = params["in"]["kernel"]  # what multiplies the values themselves is struck out
    params["in"]["kernel"] = kernel * np.array([0.0, 1.0, 1.0, 1.0, 1.0])[:, None]
    out = jax.jit(lambda x: network.apply({"params": params}, x, 0.0))
    here, shifted, period = (np.asarray(out(x + np.float32(step))) for step in (0.0, 0.5, 2.0))
    np.testing.assert_allclose(period, here, atol=1e-4)
    assert np.abs(shifted - here).max() > 1e-3


def test_fourier_features_of_narrow_values_keep_their_phase():
    x = normal(0, (64, 1)).astype(jnp.bfloat16)
    values = np.asarray(jax.jit(lambda x: layers.with_fourier_features(x, (6.0,)))(x))
    assert values.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        values[:, 1:2].astype(np.float32), np.sin(12 * np.pi * x.astype(np.float32)), atol=0.01
    )
