"""Shapes that a U-Net can take, and its structure."""

import jax
import jax.numpy as jnp
import pytest

from jaxdiff import models
from jaxdiff.models import unet


def count(model, shape):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)), 0.0)
    return sum(leaf.size for leaf in jax.tree.leaves(shapes))


def test_odd_sizes_where_nothing_is_halved():
    model = models.UNet(channels=(4,), attention_resolutions=())
    shapes = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, 5, 7, 3)), 0.0)
    )
    assert shapes[0].shape == (2, 5, 7, 3)


def test_sides_need_not_be_equal():
    model = models.UNet(channels=(4, 4, 4), attention_resolutions=(1,))
    shapes = jax.eval_shape(
        lambda: model.init_with_output(jax.random.key(0), jnp.zeros((2, 4, 12, 1)), 0.0)
    )
    assert shapes[0].shape == (2, 4, 12, 1)


@pytest.mark.parametrize(
    "fields, shape, message",
    [
        ({"channels": (4, 4, 4)}, (9, 9, 1), "divisible by 4 for 3 levels, got 9 x 9"),
        ({}, (8, 8), r"\(height, width, channels\), got \(8, 8\)"),
        ({"channels": (32, 48)}, (8, 8, 1), "divisible by head_width 32, got 48"),
    ],
)
def test_bad_shapes(fields, shape, message):
    model = models.UNet(**fields)
    with pytest.raises(ValueError, match=message):
        model.init(jax.random.key(0), jnp.zeros((1, *shape)), 0.0)


@pytest.mark.parametrize("network", [models.UNet, models.DiT])
def test_an_image_without_a_batch_is_refused_for_its_shape(network):
    with pytest.raises(ValueError, match=r"\(height, width, channels\), got \(8, 1\); add the missing axes"):
        network().init(jax.random.key(0), jnp.zeros((8, 8, 1)), jnp.zeros(2))


def test_attention_sits_where_asked():
    model = models.UNet(channels=(32, 32, 32), attention_resolutions=(8,))
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 16, 1)), 0.0)
    attention = {name for name in shapes["params"] if "attention" in name}
    assert attention == {
        "encoder_attention_1_0", "decoder_attention_1_0", "decoder_attention_1_1"
    }


def test_parameter_counts():
    digits = models.build("UNet-XS", sample_shape=(8, 8, 1), num_classes=10)
    assert count(digits, (8, 8, 1)) == 590_177
    assert count(digits.clone(skip_inputs=True), (8, 8, 1)) == 760_513


def test_width_needs_no_heads_without_attention():
    model = models.UNet(channels=(40, 64), attention_resolutions=(4,))
    assert count(model, (8, 8, 1)) > 0
    with pytest.raises(ValueError, match="divisible by head_width 32, got 40"):
        count(model, (4, 4, 1))


@pytest.mark.parametrize(
    "channels, blocks, skip_inputs", [((4,), 1, False), ((4, 8, 8), 2, True), ((4, 8), 3, False)]
)
def test_every_block_has_dropout_keys_of_its_own(channels, blocks, skip_inputs, monkeypatch):
    counts = []
    monkeypatch.setattr(unet, "sites", lambda keys, count, rate: counts.append(count) or [None] * count)
    model = models.UNet(channels, blocks, (), skip_inputs=skip_inputs)
    layers = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 4, 1)), 0.0)["params"].values()
    assert counts == [sum("conv_in" in layer for layer in layers)]
