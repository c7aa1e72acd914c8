"""A U-Net for images."""

import flax.linen as nn
import jax.numpy as jnp

from jaxdiff.core import constrain_batch

from .conditioning import Embedding, check_inputs, split_condition
from .convolution import Conv
from .layers import (
    ZEROS,
    Dtype,
    GroupNorm,
    SelfAttention,
    dropout,
    per_token,
    rematerialise,
    sites,
    with_fourier_features,
)


class ResidualBlock(nn.Module):
    """Two 3 x 3 convolutions around a norm that the embedding scales and shifts.

    Dhariwal and Nichol (2021), arXiv:2105.05233, section 3.1. The second convolution starts at
    zero, so a new block is the identity (or its 1 x 1 projection where the channels change).
    """

    channels: int
    dropout: float
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x, embedding, keys):
        """`(batch, height, width, in)` to `(batch, height, width, channels)`."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = {"param_dtype": self.param_dtype}
        modulation = nn.Dense(2 * self.channels, name="modulation", **dtypes)(embedding)
        h = nn.silu(GroupNorm(name="norm_in", **norm)(x))
        h = Conv(self.channels, name="conv_in", **dtypes)(h)
        h = nn.silu(GroupNorm(name="norm_out", **norm)(h, jnp.split(modulation, 2, axis=-1)))
        h = dropout(h, self.dropout, keys)
        h = Conv(self.channels, kernel_init=ZEROS, name="conv_out", **dtypes)(h)
        if x.shape[-1] != self.channels:
            x = per_token(nn.Dense(self.channels, name="skip", **dtypes), x)
        return constrain_batch(x + h)


class AttentionBlock(nn.Module):
    """Group norm and self-attention over the pixels; the identity at initialisation."""

    head_width: int
    dtype: Dtype
    param_dtype: Dtype

    @nn.compact
    def __call__(self, x):
        """`(batch, height, width, channels)` to the same."""
        batch, height, width, channels = x.shape
        h = GroupNorm(param_dtype=self.param_dtype, name="norm")(x)
        h = SelfAttention(
            max(1, channels // self.head_width), out_init=ZEROS, dtype=self.dtype,
            param_dtype=self.param_dtype, name="attention",
        )(h.reshape(batch, height * width, channels))
        return constrain_batch(x + h.reshape(x.shape))


class UNet(nn.Module):
    """A convolutional encoder and decoder with skip connections (Ho et al. (2020),
    arXiv:2006.11239; adaptive norms after Dhariwal and Nichol (2021), arXiv:2105.05233).

    Each level has `blocks` residual blocks on the way down and as many on the way up, each with
    the skip connection of its partner; the middle has two. Between levels a strided convolution
    halves the image and repeated pixels with a convolution double it. The output is zero at
    initialisation.

    Attributes:
        channels: width of each level, the finest first.
        blocks: residual blocks of each level on the way down.
        attention_resolutions: levels whose smaller side is among these have attention after each
            block; so does the middle.
        head_width: channels of one attention head.
        skip_inputs: the input of each level has a skip connection too, with one more block on the
            way up to take it (as in the papers; costs a third more for one block a level).
        embed_width: size of the embedding; None means four times `channels[0]`.
        fourier_features: frequencies, in cycles per unit of the input, whose sines and cosines the network
            sees beside it (`layers.with_fourier_features`): for data of discrete values under little noise.
        num_classes: number of classes (label `num_classes` is the null class), or None.
        vector_size: length of the continuous side information, or None.
        dropout: share of hidden values dropped when keys are given, in [0, 1).
        remat: what the backward pass recomputes of the blocks instead of storing it: False or True, or
            "dots", everything but the results of matrix products (`layers.POLICIES`).
        dtype: dtype of the computation; None takes the wider of `x` and the parameters.
        param_dtype: dtype of the parameters.
    """

    channels: tuple[int, ...] = (32, 64)
    blocks: int = 1
    attention_resolutions: tuple[int, ...] = (4,)
    head_width: int = 32
    skip_inputs: bool = True
    embed_width: int | None = None
    fourier_features: tuple[float, ...] = ()
    num_classes: int | None = None
    vector_size: int | None = None
    dropout: float = 0.0
    remat: bool | str = False
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if one example cannot have this shape."""
        if len(shape) != 3:
            raise ValueError(
                f"UNet: expected examples of shape (height, width, channels), got {shape}; "
                "add the missing axes"
            )
        if not self.channels:
            raise ValueError("UNet: expected channels of at least one level, got none")
        factor = 2 ** (len(self.channels) - 1)
        if shape[0] % factor or shape[1] % factor:
            raise ValueError(
                f"UNet: expected height and width divisible by {factor} for {len(self.channels)} "
                f"levels, got {shape[0]} x {shape[1]}; pad the images or use fewer levels"
            )
        for level, width in enumerate(self.channels):
            attends = min(shape[:2]) >> level in self.attention_resolutions
            if attends and width > self.head_width and width % self.head_width:
                raise ValueError(
                    f"UNet: expected channels divisible by head_width {self.head_width}, "
                    f"got {width}; change either"
                )

    @nn.compact
    def __call__(self, x, c_noise, condition=None, *, keys=None):
        """Returns an array of the shape and dtype of `x`.

        Args:
            x: `(batch, height, width, channels)`; height and width divisible by
                `2 ** (len(channels) - 1)`.
            c_noise: `(batch,)` or a scalar, of order one.
            condition: None, labels `(batch,)`, or a dict of `label` and `vector`.
            keys: `(batch,)` keys for dropout, or None for none.

        Raises:
            ValueError: for shapes or labels that do not fit.
        """
        self.check_shape(x.shape[1:])
        c_noise = check_inputs("UNet", x, c_noise, keys, self.dropout)
        label, vector = split_condition(
            "UNet", condition, x.shape[0], self.num_classes, self.vector_size
        )
        dtype = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
        dtypes = {"dtype": dtype, "param_dtype": self.param_dtype}
        embedding = Embedding(
            self.embed_width or 4 * self.channels[0], num_classes=self.num_classes,
            vector_size=self.vector_size, name="embedding", **dtypes,
        )(c_noise, label, vector)
        residuals = 2 + len(self.channels) * (2 * self.blocks + self.skip_inputs)
        own_keys = iter(sites(keys, residuals, self.dropout))

        def residual(h, channels, name):
            block = rematerialise(ResidualBlock, self.remat)
            layer = block(channels, self.dropout, **dtypes, name=name)
            return layer(h, embedding, next(own_keys))

        def attention(h, name):
            if min(h.shape[1:3]) not in self.attention_resolutions:
                return h
            block = rematerialise(AttentionBlock, self.remat)
            return block(self.head_width, **dtypes, name=name)(h)

        inputs = with_fourier_features(x, self.fourier_features).astype(dtype)
        h = Conv(self.channels[0], name="in", **dtypes)(inputs)
        skips = [h] if self.skip_inputs else []
        for level, channels in enumerate(self.channels):
            if level:
                h = Conv(h.shape[-1], resize="halve", name=f"down_{level}", **dtypes)(h)
                skips += [h] if self.skip_inputs else []
            for index in range(self.blocks):
                h = residual(h, channels, f"encoder_{level}_{index}")
                h = attention(h, f"encoder_attention_{level}_{index}")
                skips.append(h)
        h = residual(h, channels, "middle_0")
        h = attention(h, "middle_attention")
        h = residual(h, channels, "middle_1")
        for level, channels in reversed(list(enumerate(self.channels))):
            for index in range(self.blocks + self.skip_inputs):
                h = jnp.concatenate([h, skips.pop()], axis=-1)
                h = residual(h, channels, f"decoder_{level}_{index}")
                h = attention(h, f"decoder_attention_{level}_{index}")
            if level:
                h = Conv(channels, resize="double", name=f"up_{level}", **dtypes)(h)
        h = nn.silu(GroupNorm(param_dtype=self.param_dtype, name="norm")(h))
        out = Conv(x.shape[-1], kernel_init=ZEROS, name="out", **dtypes)(h)
        return out.astype(x.dtype)
