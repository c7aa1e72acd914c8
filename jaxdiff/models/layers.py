"""Pieces that the networks share: norms, attention, dropout, rotary positions."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import constrain_batch, fold_in, matmul, random_bits

Dtype = Any
ZEROS = nn.initializers.zeros_init()


def statistics_dtype(dtype: Dtype) -> Dtype:
    """Sums over many values are kept in float32 at least, whatever the network computes in."""
    return jnp.promote_types(dtype, jnp.float32)


def with_fourier_features(x: jax.Array, frequencies: tuple[float, ...]) -> jax.Array:
    """`x` with the sines and cosines of its values as further channels.

    Kingma et al. (2021), arXiv:2107.00630, section 3.4. Noise levels far below the distance of the data's
    values (grey levels of images) need a network that tells fractions of that distance apart: with a period
    of one level the estimate of the clean value is linear in a sine.

    Args:
        x: `(..., channels)`.
        frequencies: in cycles per unit of `x`; none returns `x`.

    Returns:
        `(..., channels * (1 + 2 * len(frequencies)))`, of the dtype of `x`; angles are in float32 at least.
    """
    wide = x.astype(statistics_dtype(x.dtype))
    angles = [2 * np.pi * frequency * wide for frequency in frequencies]
    waves = [*map(jnp.sin, angles), *map(jnp.cos, angles)]
    return jnp.concatenate([x, *(wave.astype(x.dtype) for wave in waves)], axis=-1)


def default_groups(channels: int) -> int:
    """The largest divisor of `channels` that is at most 32 and leaves four channels a group."""
    most = max(1, min(32, channels // 4))
    return next(groups for groups in range(most, 0, -1) if channels % groups == 0)


def group_norm(x: jax.Array, scale: jax.Array, shift: jax.Array, groups: int, eps=1e-5):
    """Group normalisation followed by an affine map (Wu and He (2018), arXiv:1803.08494).

    Sums are taken per channel first and per group after, so that the one large reduction runs
    over contiguous channels, and normalisation and affine map are a single `x * a + b`.

    Args:
        x: `(batch, *spatial, channels)`.
        scale: `(channels,)` or `(batch, channels)`.
        shift: as `scale`.
        groups: a divisor of `channels`.
        eps: added to the variance.

    Returns:
        An array of the shape and dtype of `x`; statistics are in float32 at least.
    """
    channels, spatial = x.shape[-1], tuple(range(1, x.ndim - 1))
    wide = x.astype(statistics_dtype(x.dtype))
    member = np.arange(channels) // (channels // groups)
    share = (member[:, None] == member[None]) * (x.shape[0] * groups / x.size)

    def group_mean(value):  # a product, because XLA would fuse a reshape into the large loops
        return matmul(value.sum(spatial), share.astype(value.dtype))

    mean = group_mean(wide)
    variance = jnp.maximum(group_mean(wide * wide) - mean * mean, 0.0)
    a = scale.reshape(-1, channels) * jax.lax.rsqrt(variance + eps)
    b = shift.reshape(-1, channels) - mean * a
    a, b = (jnp.expand_dims(value, spatial) for value in (a, b))
    return (wide * a + b).astype(x.dtype)


class GroupNorm(nn.Module):
    """`group_norm` with learned scale and shift, and an optional modulation of each example.

    Attributes:
        groups: number of groups; None chooses `default_groups`.
        param_dtype: dtype of the parameters.
    """

    groups: int | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, modulation=None):
        """Normalises `x` `(batch, *spatial, channels)`.

        `modulation` is a pair `(scale, shift)` of arrays `(batch, channels)`: the result is
        `norm(x) * (1 + scale) + shift`.
        """
        channels = x.shape[-1]
        wide = statistics_dtype(x.dtype)
        gamma = self.param("scale", nn.initializers.ones_init(), (channels,), self.param_dtype)
        beta = self.param("bias", ZEROS, (channels,), self.param_dtype)
        gamma, beta = gamma.astype(wide)[None], beta.astype(wide)[None]
        if modulation is not None:
            scale, shift = (value.astype(wide) for value in modulation)
            gamma, beta = gamma * (1 + scale), beta * (1 + scale) + shift
        return group_norm(x, gamma, beta, self.groups or default_groups(channels))


def per_token(layer: nn.Module, x: jax.Array) -> jax.Array:
    """`layer` over the last axis of `x` as one matrix product.

    With more than one leading axis XLA transposes the operands of a weight's gradient.
    """
    return layer(x.reshape(-1, x.shape[-1])).reshape(*x.shape[:-1], -1)


POLICIES = {True: None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}


def rematerialise(block: type[nn.Module], remat: bool | str) -> type[nn.Module]:
    """`block` that recomputes its values in the backward pass: none of them, all (True), or by policy.

    Raises:
        ValueError: for a `remat` that is not False and not in `POLICIES`.
    """
    if not remat:
        return block
    if remat not in POLICIES:
        raise ValueError(f"remat: expected False, True or 'dots', got {remat!r}; choose one")
    return nn.remat(block, policy=POLICIES[remat])


def sites(keys: jax.Array | None, count: int, rate: float) -> list:
    """The keys `(batch,)` of each of `count` dropout sites out of those of the call, folded in one draw.

    Nones where `keys` is None or `rate` is zero, as nothing is dropped then.
    """
    if keys is None or rate == 0.0:
        return [None] * count
    return list(jax.vmap(lambda site: fold_in(keys, site))(jnp.arange(count)))


def dropout(x: jax.Array, rate: float, keys: jax.Array | None) -> jax.Array:
    """Zeroes entries with probability `rate`, each example `x[i]` by its own key alone.

    Nothing happens when `keys` is None or `rate` is zero. The probability is a multiple of
    2^-16 (sixteen random bits an entry), and the scale is exact for it.

    Args:
        x: `(batch, ...)`.
        rate: in [0, 1).
        keys: `(batch,)` keys, or None.
    """
    if keys is None or rate == 0.0:
        return x
    dropped = min(round(rate * 2**16), 2**16 - 1)
    scale = 2**16 / (2**16 - dropped)
    return jnp.where(random_bits(keys, x.shape[1:]) >= dropped, x * scale, jnp.zeros_like(x))


def rotary_angles(height: int, width: int, head_width: int, base: float = 100.0) -> np.ndarray:
    """Angles of the two-dimensional rotary embedding (Su et al. (2021), arXiv:2104.09864).

    Returns:
        `(height * width, head_width / 2)` float32 radians: the first half turns with the row,
        the second with the column, at geometric frequencies from 1 down to about 1 / `base`.
    """
    frequencies = base ** -(np.arange(head_width // 4) / (head_width // 4))
    rows, columns = np.divmod(np.arange(height * width), width)
    angles = [position[:, None] * frequencies for position in (rows, columns)]
    return np.concatenate(angles, axis=-1).astype(np.float32)


def rotate(x: jax.Array, angles: np.ndarray) -> jax.Array:
    """Turns the pairs `(x[..., i], x[..., i + half])` by `angles[:, i]`.

    Args:
        x: `(batch, tokens, heads, head_width)`.
        angles: `(tokens, head_width / 2)` radians.
    """
    cos, sin = (f(angles)[None, :, None].astype(x.dtype) for f in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, first * sin + second * cos], axis=-1)


class SelfAttention(nn.Module):
    """Multi-head self-attention over tokens (Vaswani et al. (2017), arXiv:1706.03762).

    Attributes:
        heads: number of heads, a divisor of the width.
        qk_norm: normalise queries and keys of each head by their root mean square, which bounds
            the logits (Dehghani et al. (2023), arXiv:2302.05442).
        out_init: initialiser of the output projection.
        causal: a token sees only itself and those before it.
        dtype: dtype of the computation; the softmax is in float32.
        param_dtype: dtype of the parameters.
    """

    heads: int
    qk_norm: bool = False
    out_init: Any = nn.initializers.lecun_normal()
    causal: bool = False
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x, angles=None, asking=None):
        """`(batch, tokens, width)` to the same; `angles` as from `rotary_angles`.

        With `asking` = n the first n tokens look at the others alone, and are returned alone.
        """
        batch, tokens, width = x.shape
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = constrain_batch(x)
        qkv = per_token(nn.Dense(3 * width, name="qkv", **dtypes), x)
        qkv = qkv.reshape(batch, tokens, 3, self.heads, width // self.heads)
        q, k, v = (qkv[:, :, index] for index in range(3))
        if self.qk_norm:
            q = nn.RMSNorm(name="query_norm", **dtypes)(q)
            k = nn.RMSNorm(name="key_norm", **dtypes)(k)
        if angles is not None:
            q, k = rotate(q, angles), rotate(k, angles)
        if asking is not None:
            q, k, v = q[:, :asking], k[:, asking:], v[:, asking:]
        out = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal).reshape(batch, -1, width)
        return per_token(nn.Dense(width, kernel_init=self.out_init, name="out", **dtypes), out)
