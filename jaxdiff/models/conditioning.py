"""The embedding of noise level, class label and side information, and checks of the inputs."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import typed

from .layers import Dtype

LOWEST_FREQUENCY = 0.5
HIGHEST_FREQUENCY = 64.0


def noise_features(c_noise: jax.Array, features: int) -> jax.Array:
    """Cosines and sines of a scalar of order one.

    The angular frequencies are geometric from 1/2 to 64 radians per unit. The lowest turn by
    less than half a period over log(sigma) / 4 in [-1.6, 1.1] (EDM) as over time in [0, 1] (flow
    matching), and so order the noise levels; the highest tell times .01 apart from each other,
    which in log(sigma) / 4 is 4 % of sigma.

    Args:
        c_noise: `(batch,)`.
        features: even.

    Returns:
        `(batch, features)`, float32 at least.
    """
    frequencies = np.geomspace(LOWEST_FREQUENCY, HIGHEST_FREQUENCY, features // 2)
    wide = c_noise.astype(jnp.promote_types(c_noise.dtype, jnp.float32))
    angles = wide[:, None] * frequencies.astype(wide.dtype)[None]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def check_inputs(where: str, x, c_noise, keys, dropout: float) -> jax.Array:
    """Checks the shapes of a call and returns `c_noise` as `(batch,)`."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{where}: expected a floating x, got {x.dtype}; cast it first")
    return check_call(where, x.shape[0], c_noise, keys, dropout)


def check_call(where: str, batch: int, c_noise, keys, dropout: float) -> jax.Array:
    """Checks what goes with a batch of any kind and returns `c_noise` as `(batch,)`."""
    if not batch:
        raise ValueError(f"{where}: expected a batch of at least one example, got none")
    c_noise = jnp.asarray(c_noise)
    if c_noise.shape not in ((), (batch,)):
        raise ValueError(
            f"{where}: expected c_noise of shape () or ({batch},), got {c_noise.shape}; "
            "pass one value per example"
        )
    if keys is not None and (shape := typed(keys, where).shape) != (batch,):
        raise ValueError(
            f"{where}: expected {batch} keys, one per example, got shape {shape}; "
            "use jax.random.split(key, batch)"
        )
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"{where}: expected dropout in [0, 1), got {dropout}; pass a share")
    return jnp.broadcast_to(c_noise, (batch,))


def _check_labels(where: str, labels, batch: int, num_classes: int) -> jax.Array:
    labels = jnp.asarray(labels)
    if labels.shape != (batch,) or not jnp.issubdtype(labels.dtype, jnp.integer):
        raise ValueError(
            f"{where}: expected integer labels of shape ({batch},), got {labels.dtype} of shape "
            f"{labels.shape}; pass one label per example"
        )
    if not isinstance(labels, jax.core.Tracer) and batch:
        values = np.asarray(labels)  # jnp would trace a concrete array inside jit
        low, high = values.min(), values.max()
        if low < 0 or high > num_classes:
            raise ValueError(
                f"{where}: expected labels in [0, {num_classes}], where {num_classes} is the null "
                f"class, got labels in [{low}, {high}]; check num_classes"
            )
    return labels


def split_condition(where: str, condition: Any, batch: int, num_classes, vector_size):
    """Checks a condition and returns its `(label, vector)`.

    Args:
        where: the caller's name, for messages.
        condition: None, integer labels `(batch,)`, or a dict with the optional entries `label`
            `(batch,)` and `vector` `(batch, vector_size)`.
        batch: number of examples.
        num_classes: number of classes, or None for a network without labels.
        vector_size: length of the side information, or None for a network without it.

    Returns:
        Labels `(batch,)` (the null class `num_classes` where none are given; None for a network
        without labels) and the vector or None.
    """
    entries = condition if isinstance(condition, dict) else {"label": condition}
    unknown = sorted(set(entries) - {"label", "vector"})
    if unknown:
        raise ValueError(f"{where}: unknown entries {unknown} of condition; use label and vector")
    label, vector = entries.get("label"), entries.get("vector")
    if label is not None:
        if num_classes is None:
            raise ValueError(f"{where}: got labels, but num_classes is None; set num_classes")
        label = _check_labels(where, label, batch, num_classes)
    elif num_classes is not None:
        label = jnp.full((batch,), num_classes)
    if vector is not None:
        vector = jnp.asarray(vector)
        if vector_size is None:
            raise ValueError(f"{where}: got a vector, but vector_size is None; set vector_size")
        if vector.shape != (batch, vector_size):
            raise ValueError(
                f"{where}: expected a vector of shape {(batch, vector_size)}, got {vector.shape}; "
                "pass one row per example"
            )
    return label, vector


class Embedding(nn.Module):
    """One vector per example out of noise level, class label and side information.

    Attributes:
        width: size of the result.
        features: number of cosines and sines of `c_noise`.
        num_classes: number of classes; the table has one row more, the null class.
        vector_size: length of the side information; it enters without a bias, so zero is none.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
    """

    width: int
    features: int = 64
    num_classes: int | None = None
    vector_size: int | None = None
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, c_noise, label, vector):
        """`(batch,)`, labels and vector as from `split_condition`; returns `(batch, width)`."""
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        features = noise_features(c_noise, self.features).astype(self.dtype)
        hidden = nn.silu(nn.Dense(self.width, name="noise_in", **dtypes)(features))
        out = nn.Dense(self.width, name="noise_out", **dtypes)(hidden)
        if self.num_classes is not None:
            table = nn.Embed(self.num_classes + 1, self.width, name="label", **dtypes)
            out = out + table(label)
        if self.vector_size is not None:
            if vector is None:
                vector = jnp.zeros((c_noise.shape[0], self.vector_size))
            out = out + nn.Dense(self.width, use_bias=False, name="vector", **dtypes)(vector)
        return nn.silu(out)
