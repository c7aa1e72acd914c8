"""The diffusion transformer."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import constrain_batch

from .conditioning import Embedding, check_inputs, split_condition
from .layers import (
    ZEROS,
    Dtype,
    SelfAttention,
    dropout,
    per_token,
    rematerialise,
    rotary_angles,
    sites,
    with_fourier_features,
)

POSITIONS = ("sincos", "rotary")


def sincos_positions(height: int, width: int, features: int) -> np.ndarray:
    """Fixed two-dimensional positions, `(height * width, features)` float32.

    Cosines and sines of row and column at frequencies from 1 down to about 1e-4 (Vaswani et al.
    (2017), arXiv:1706.03762, section 3.5, for each axis); `features` is divisible by four.
    """
    frequencies = 10000.0 ** -(np.arange(features // 4) / (features // 4))
    axes = np.divmod(np.arange(height * width), width)
    waves = [f(axis[:, None] * frequencies) for axis in axes for f in (np.sin, np.cos)]
    return np.concatenate(waves, axis=-1).astype(np.float32)


def patchify(x: jax.Array, patch: int) -> jax.Array:
    """`(batch, height, width, channels)` to `(batch, tokens, patch * patch * channels)`."""
    batch, height, width, channels = x.shape
    rows, columns = height // patch, width // patch
    x = x.reshape(batch, rows, patch, columns, patch, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, rows * columns, patch * patch * channels)


def unpatchify(tokens: jax.Array, shape: tuple[int, ...], patch: int) -> jax.Array:
    """The inverse of `patchify`; `shape` is that of the images."""
    batch, height, width, channels = shape
    rows, columns = height // patch, width // patch
    x = tokens.reshape(batch, rows, columns, patch, patch, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def modulate(x: jax.Array, scale: jax.Array, shift: jax.Array) -> jax.Array:
    """`x * (1 + scale) + shift` for tokens `(batch, tokens, width)` and `(batch, width)`."""
    return x * (1 + scale[:, None]) + shift[:, None]


class DiTBlock(nn.Module):
    """Attention and MLP, scaled, shifted and gated by the embedding (adaLN-zero).

    Without an embedding, a pre-norm block whose norms have a learned scale.
    """

    heads: int
    mlp_ratio: float
    qk_norm: bool
    dropout: float
    dtype: Dtype
    param_dtype: Dtype
    causal: bool = False

    @nn.compact
    def __call__(self, h, embedding, angles, keys):
        """`h` and the result are `(batch, tokens, width)`; `embedding` is `(batch, width)` or None."""
        width = h.shape[-1]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        norm = {"use_scale": embedding is None, "use_bias": False, "epsilon": 1e-6, **dtypes}
        if embedding is None:
            zero, one = jnp.zeros((1, 1), h.dtype), jnp.ones((1, 1), h.dtype)
            modulation = (zero, zero, one) * 2
        else:
            dense = nn.Dense(6 * width, kernel_init=ZEROS, name="modulation", **dtypes)
            modulation = jnp.split(dense(embedding), 6, -1)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = modulation
        attention = SelfAttention(
            self.heads, self.qk_norm, causal=self.causal, name="attention", **dtypes
        )
        out = attention(modulate(nn.LayerNorm(**norm)(h), scale_a, shift_a), angles)
        h = h + gate_a[:, None] * out
        out = modulate(nn.LayerNorm(**norm)(h), scale_m, shift_m)
        out = per_token(nn.Dense(round(self.mlp_ratio * width), name="mlp_in", **dtypes), out)
        out = dropout(nn.gelu(out), self.dropout, keys)
        out = per_token(nn.Dense(width, name="mlp_out", **dtypes), out)
        return constrain_batch(h + gate_m[:, None] * out)


class DiT(nn.Module):
    """The diffusion transformer (Peebles and Xie (2022), arXiv:2212.09748), adaLN-zero.

    The output is zero at initialisation.

    Attributes:
        patch: side of the square patches that become tokens.
        width: size of a token; divisible by `heads`, and by four.
        depth: number of blocks.
        heads: number of attention heads.
        mlp_ratio: hidden size of the MLPs over `width`.
        positions: `"sincos"` adds fixed positions to the tokens, `"rotary"` turns queries and
            keys (the head width must be divisible by four).
        qk_norm: normalise queries and keys.
        fourier_features: frequencies, in cycles per unit of the input, whose sines and cosines the network
            sees beside it (`layers.with_fourier_features`): for data of discrete values under little noise.
        num_classes: number of classes (label `num_classes` is the null class), or None.
        vector_size: length of the continuous side information, or None.
        dropout: share of the MLPs' hidden values dropped when keys are given, in [0, 1).
        remat: what the backward pass recomputes of the blocks instead of storing it: False or True, or
            "dots", everything but the results of matrix products (`layers.POLICIES`).
        dtype: dtype of the computation; None takes the wider of `x` and the parameters.
        param_dtype: dtype of the parameters.
    """

    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    mlp_ratio: float = 4.0
    positions: str = "sincos"
    qk_norm: bool = False
    fourier_features: tuple[float, ...] = ()
    num_classes: int | None = None
    vector_size: int | None = None
    dropout: float = 0.0
    remat: bool | str = False
    dtype: Dtype = None
    param_dtype: Any = jnp.float32

    def check_shape(self, shape: tuple[int, ...]) -> None:
        """Raises ValueError if one example cannot have this shape."""
        if len(shape) != 3:
            raise ValueError(
                f"DiT: expected examples of shape (height, width, channels), got {shape}; "
                "add the missing axes"
            )
        if shape[0] % self.patch or shape[1] % self.patch:
            raise ValueError(
                f"DiT: expected height and width divisible by the patch {self.patch}, got "
                f"{shape[0]} x {shape[1]}; pad the images or use a smaller patch"
            )
        if self.positions not in POSITIONS:
            raise ValueError(
                f"DiT: expected positions in {POSITIONS}, got {self.positions!r}; choose one"
            )
        head_width, rest = divmod(self.width, self.heads)
        if rest or self.width % 4 or (self.positions == "rotary" and head_width % 4):
            raise ValueError(
                f"DiT: expected a width divisible by heads and by 4 (each head too, for rotary "
                f"positions), got width {self.width} and {self.heads} heads; change either"
            )

    @nn.compact
    def __call__(self, x, c_noise, condition=None, *, keys=None):
        """Returns an array of the shape and dtype of `x`.

        Args:
            x: `(batch, height, width, channels)`; height and width divisible by `patch`.
            c_noise: `(batch,)` or a scalar, of order one.
            condition: None, labels `(batch,)`, or a dict of `label` and `vector`.
            keys: `(batch,)` keys for dropout, or None for none.

        Raises:
            ValueError: for shapes or labels that do not fit.
        """
        self.check_shape(x.shape[1:])
        c_noise = check_inputs("DiT", x, c_noise, keys, self.dropout)
        label, vector = split_condition(
            "DiT", condition, x.shape[0], self.num_classes, self.vector_size
        )
        dtype = self.dtype or jnp.promote_types(x.dtype, self.param_dtype)
        dtypes = {"dtype": dtype, "param_dtype": self.param_dtype}
        embedding = Embedding(
            self.width, features=256, num_classes=self.num_classes,
            vector_size=self.vector_size, name="embedding", **dtypes,
        )(c_noise, label, vector)
        rows, columns = x.shape[1] // self.patch, x.shape[2] // self.patch
        inputs = with_fourier_features(x, self.fourier_features).astype(dtype)
        tokens = patchify(inputs, self.patch)
        h = per_token(nn.Dense(self.width, name="in", **dtypes), tokens)
        angles = None
        if self.positions == "rotary":
            angles = rotary_angles(rows, columns, self.width // self.heads)
        else:
            h = h + sincos_positions(rows, columns, self.width)[None].astype(dtype)
        block = rematerialise(DiTBlock, self.remat)
        for index, own_keys in enumerate(sites(keys, self.depth, self.dropout)):
            layer = block(
                self.heads, self.mlp_ratio, self.qk_norm, self.dropout, **dtypes,
                name=f"block_{index}",
            )
            h = layer(h, embedding, angles, own_keys)
        final = nn.Dense(2 * self.width, kernel_init=ZEROS, name="modulation", **dtypes)
        shift, scale = jnp.split(final(embedding), 2, axis=-1)
        norm = nn.LayerNorm(use_scale=False, use_bias=False, epsilon=1e-6, **dtypes)
        values = self.patch * self.patch * x.shape[-1]
        out = nn.Dense(values, kernel_init=ZEROS, name="out", **dtypes)
        h = per_token(out, modulate(norm(h), scale, shift))
        return unpatchify(h, x.shape, self.patch).astype(x.dtype)
