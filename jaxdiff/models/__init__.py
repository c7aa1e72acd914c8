"""Flax Linen networks `(x, c_noise, condition) -> F`; they know nothing of diffusion.

`model.apply({"params": params}, x, c_noise, condition=None, *, keys=None)` takes `x`
`(batch, ..., channels)`, `c_noise` `(batch,)` or a scalar of order one, a condition (None, labels
`(batch,)` with the null class `num_classes`, or a dict of `label` and `vector`) and returns an
array of the shape and dtype of `x`. `keys` `(batch,)` switch dropout on, each example by its own.
`TokenTransformer` takes integer tokens `(batch, length)` and returns logits `(batch, length, vocabulary)`.
"""

from .dit import DiT
from .mlp import MLP
from .registry import build, names
from .taps import attending, layer_shapes, tapped
from .token_transformer import TokenTransformer, vocabulary_shardings
from .unet import UNet

__all__ = [
    "MLP",
    "DiT",
    "TokenTransformer",
    "UNet",
    "attending",
    "build",
    "layer_shapes",
    "names",
    "tapped",
    "vocabulary_shardings",
]
