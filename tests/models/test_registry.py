"""Networks by name."""

import pytest

from jaxdiff import models


def test_names_are_built():
    for name in models.names():
        shape = (16,) if name.startswith("TokenTransformer") else (16, 16, 4)
        model = models.build(name, sample_shape=shape)
        assert type(model).__name__ == name.split("-")[0]


def test_sizes_and_overrides():
    model = models.build(
        "DiT-B/4", sample_shape=(32, 32, 4), num_classes=10, depth=2, positions="rotary"
    )
    assert (model.width, model.patch, model.depth) == (768, 4, 2)
    assert (model.num_classes, model.positions) == (10, "rotary")


@pytest.mark.parametrize(
    "name, shape, fields, message",
    [
        ("DiT-S2", (8, 8, 1), {}, "unknown model 'DiT-S2'; near ones are DiT-S/2"),
        ("resnet", (8, 8, 1), {}, "unknown model 'resnet'"),
        ("UNet-XS", (8, 8, 1), {"channel": (8,)}, "unknown field of UNet 'channel'.*channels"),
        ("UNet-XS", (9, 9, 1), {}, "got 9 x 9"),
        ("UNet-XS", (8, 8, 1), {"channels": 8}, "channels to be a tuple of integers, got 8"),
        ("UNet-XS", (8, 8, 1), {"channels": (8, 0)}, "channels to be an integer of at least 1, got 0"),
        ("UNet-XS", (8, 8, 1), {"fourier_features": 2.0}, "fourier_features to be a tuple of numbers"),
        ("UNet-XS", (8, 8, 1), {"dropout": "a"}, "dropout to be a number, got 'a'"),
        ("UNet-XS", (8, 8, 1), {"dtype": "bfloat"}, "dtype such as 'bfloat16', got 'bfloat'"),
        ("MLP-S", (2,), {"dtype": "int32"}, "dtype such as 'bfloat16', got 'int32'"),
        ("MLP-S", (2,), {"width": 7.5}, "width to be an integer of at least 1, got 7.5"),
        ("MLP-S", (2,), {"embed_width": "a"}, "embed_width to be an integer"),
        ("DiT-S/4", (8, 6, 1), {}, "got 8 x 6"),
        *(("MLP-S", (2,), {"num_classes": bad}, f"num_classes to be an integer of at least 0, got {bad!r}")
          for bad in (-3, 2.5, "10", True)),
        ("DiT-S/4", (8, 8, 1), {"mlp_ratio": -1}, "mlp_ratio to be a finite number above 0, got -1"),
        ("TokenTransformer-S", (8,), {"mlp_ratio": 0.0}, "mlp_ratio to be a finite number above 0"),
        ("MLP-S", 2, {}, "sample_shape to be a tuple of integers, got 2"),
        ("UNet-XS", (0, 0, 3), {}, "sample_shape to be an integer of at least 1, got 0"),
        ("UNet-XS", (8.0, 8.0, 3), {}, "sample_shape to be an integer of at least 1, got 8.0"),
        ("TokenTransformer-S", (0,), {}, "sample_shape to be an integer of at least 1, got 0"),
    ],
)
def test_bad_names(name, shape, fields, message):
    with pytest.raises(ValueError, match=message):
        models.build(name, sample_shape=shape, **fields)
