"""Networks by name."""

import dataclasses
import difflib

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.core import check_count, check_positive

from .dit import DiT
from .mlp import MLP
from .token_transformer import TokenTransformer
from .unet import UNet

_DIT_SIZES = {  # Peebles and Xie (2022), table 1; XS is for images of a few pixels
    "XS": {"width": 128, "depth": 4, "heads": 4},
    "S": {"width": 384, "depth": 12, "heads": 6},
    "B": {"width": 768, "depth": 12, "heads": 12},
    "L": {"width": 1024, "depth": 24, "heads": 16},
    "XL": {"width": 1152, "depth": 28, "heads": 16},
}

_MODELS = {
    "MLP-S": (MLP, {"width": 128, "depth": 3}),
    "MLP-B": (MLP, {"width": 256, "depth": 4}),
    "MLP-L": (MLP, {"width": 512, "depth": 6}),
    "UNet-XS": (UNet, {"channels": (32, 64), "blocks": 1, "skip_inputs": False}),
    "UNet-S": (UNet, {"channels": (64, 128), "blocks": 2, "attention_resolutions": (8, 4)}),
    "UNet-B": (
        UNet, {"channels": (128, 256, 256), "blocks": 2, "attention_resolutions": (16, 8, 4)}
    ),
    "UNet-L": (
        UNet, {"channels": (192, 384, 576, 768), "blocks": 3, "attention_resolutions": (16, 8)}
    ),
} | {
    f"DiT-{size}/{patch}": (DiT, {**fields, "patch": patch})
    for size, fields in _DIT_SIZES.items()
    for patch in (1, 2, 4, 8)
} | {
    f"TokenTransformer-{size}": (TokenTransformer, fields) for size, fields in _DIT_SIZES.items()
}


def names() -> tuple[str, ...]:
    """The names that `build` knows."""
    return tuple(_MODELS)


def _check_known(what: str, name: str, known) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or list(known)
        raise ValueError(f"build: unknown {what} {name!r}; near ones are {', '.join(near)}")


def _check_value(field: str, kind, value) -> None:
    """Numbers, tuples of them, and dtypes; what else a field takes, its network looks at."""
    if kind is int or (kind == int | None and value is not None):
        check_count("build", least=0 if field in ("depth", "num_classes") else 1, **{field: value})
    elif kind == tuple[int, ...]:
        if not isinstance(value, (tuple, list)):
            raise ValueError(f"build: expected {field} to be a tuple of integers, got {value!r}")
        for item in value:
            check_count("build", **{field: item})
    elif kind == tuple[float, ...]:
        if not isinstance(value, (tuple, list)) or not all(isinstance(v, (int, float)) for v in value):
            raise ValueError(f"build: expected {field} to be a tuple of numbers, got {value!r}")
    elif kind is float and not isinstance(value, (int, float)):
        raise ValueError(f"build: expected {field} to be a number, got {value!r}")
    elif field == "mlp_ratio":
        check_positive("build", mlp_ratio=value)
    elif field.endswith("dtype") and value is not None:
        try:
            floating = jnp.issubdtype(jnp.dtype(value), jnp.floating)
        except TypeError:
            floating = False
        if not floating:
            raise ValueError(f"build: expected {field} such as 'bfloat16', got {value!r}")


def build(
    name: str, *, sample_shape: tuple[int, ...], num_classes: int | None = None, **overrides
) -> nn.Module:
    """A network by name, for examples of `sample_shape`.

    Args:
        name: one of `names()`.
        sample_shape: shape of one example, `(height, width, channels)` for UNet and DiT, `(length,)` for
            TokenTransformer.
        num_classes: number of classes, or None for a network without labels.
        **overrides: any field of the network, in place of the named size's.

    Returns:
        A Flax module; `module.init(key, x, c_noise)["params"]` are its parameters and
        `module.apply({"params": params}, x, c_noise, condition, keys=keys)` its output.

    Raises:
        ValueError: for an unknown name or field, a value that it cannot have, or a shape that the network
            cannot take.
    """
    _check_known("model", name, _MODELS)
    network, fields = _MODELS[name]
    kinds = {f.name: f.type for f in dataclasses.fields(network) if f.name not in ("parent", "name")}
    overrides["num_classes"] = num_classes
    for field, value in overrides.items():
        _check_known(f"field of {network.__name__}", field, kinds)
        _check_value(field, kinds[field], value)
    _check_value("sample_shape", tuple[int, ...], sample_shape)
    module = network(**{**fields, **overrides})
    module.check_shape(tuple(sample_shape))
    return module
