"""A residual network for vectors."""

import math

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.core import constrain_batch

from .conditioning import Embedding, check_inputs, split_condition
from .layers import ZEROS, Dtype, dropout, rematerialise, sites


class MLPBlock(nn.Module):
    """`h + silu(Dense(h) * (1 + scale) + shift)`, scale and shift from the embedding."""

    width: int
    dropout: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, h, embedding, keys):
        """`h` and the result are `(batch, width)`."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        modulation = nn.Dense(2 * self.width, name="modulation", **dtypes)(embedding)
        scale, shift = jnp.split(modulation, 2, axis=-1)
        out = nn.Dense(self.width, name="dense", **dtypes)(h)
        return constrain_batch(h + dropout(nn.silu(out * (1 + scale) + shift), self.dropout, keys))


class MLP(nn.Module):
    """A residual multilayer perceptron, its layers modulated by noise level and condition.

    Examples of more than one axis are flattened. The output is zero at initialisation.

    Attributes:
        width: size of the hidden layers.
        depth: number of residual blocks.
        embed_width: size of the embedding; None means `width`.
        num_classes: number of classes (label `num_classes` is the null class), or None.
        vector_size: length of the continuous side information, or None.
        dropout: share of hidden values dropped when keys are given, in [0, 1).
        remat: what the backward pass recomputes of the blocks instead of storing it: False or True, or
            "dots", everything but the results of matrix products (`layers.POLICIES`).
        dtype: dtype of the computation; None takes the wider of `x` and the parameters.
        param_dtype: dtype of the parameters.
    """

    width: int = 128
    depth: int = 3
    embed_width: int | None = None
    num_classes: int | None = None
    vector_size: int | None = None
    dropout: float = 0.0
    remat: bool | str = False
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if one example cannot have this shape."""
        if math.prod(shape) < 1:
            raise ValueError(f"MLP: expected examples with values, got shape {shape}; check x")

    @nn.compact
    def __call__(self, x, c_noise, condition=None, *, keys=None):
        """Returns an array of the shape and dtype of `x`.

        Args:
            x: `(batch, ...)`.
            c_noise: `(batch,)` or a scalar, of order one.
            condition: None, labels `(batch,)`, or a dict of `label` and `vector`.
            keys: `(batch,)` keys for dropout, or None for none.

        Raises:
            ValueError: for shapes or labels that do not fit.
        """
        c_noise = check_inputs("MLP", x, c_noise, keys, self.dropout)
        self.check_shape(x.shape[1:])
        label, vector = split_condition(
            "MLP", condition, x.shape[0], self.num_classes, self.vector_size
        )
        dtype = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
        dtypes = {"dtype": dtype, "param_dtype": self.param_dtype}
        embedding = Embedding(
            self.embed_width or self.width, num_classes=self.num_classes,
            vector_size=self.vector_size, name="embedding", **dtypes,
        )(c_noise, label, vector)
        block = rematerialise(MLPBlock, self.remat)
        flat = x.reshape(x.shape[0], -1)
        h = nn.Dense(self.width, name="in", **dtypes)(flat)
        for index, own_keys in enumerate(sites(keys, self.depth, self.dropout)):
            layer = block(self.width, self.dropout, **dtypes, name=f"block_{index}")
            h = layer(h, embedding, own_keys)
        out = nn.Dense(flat.shape[1], kernel_init=ZEROS, name="out", **dtypes)(nn.silu(h))
        return out.reshape(x.shape).astype(x.dtype)
