"""Convolutions of 3 x 3, by whichever algorithm is the fastest on the device."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import constrain_batch

from .layers import ZEROS, Dtype

TILE = 4
WINDOW = TILE + 2
POINTS = np.sqrt([0.0, 0.5, 0.5, 2.0, 2.0]) * [1, 1, -1, 1, -1]


def minimal_filter() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices of the minimal filtering algorithm F(4, 3) of Winograd.

    Correlation with three taps is a product of polynomials, transposed: six products of values at
    six points give four outputs, where the literal sum takes twelve. The points are those of
    `POINTS` and infinity; these (instead of the customary 0, 1, -1, 2, -2) leave the rounding
    error in float32 where the literal convolution has it.

    Returns:
        `(taps, inputs, outputs)` of shapes `(6, 3)`, `(6, 6)`, `(4, 6)`, float64, such that
        `outputs @ ((taps @ g) * (inputs @ d))` is the correlation of `d` `(6,)` with `g` `(3,)`.
    """

    def values(size):
        return np.vstack([np.vander(POINTS, size, increasing=True), np.eye(size)[-1]])

    others = POINTS[:, None] - POINTS + np.eye(len(POINTS))
    weights = np.append(np.prod(others, axis=1), 1.0)[:, None]
    return values(3) / weights, weights * np.linalg.inv(values(WINDOW)).T, values(TILE).T


def winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The zero-padded 3 x 3 convolution by a quarter of the multiplications.

    Winograd's filtering over tiles of 4 x 4 outputs (Lavin and Gray (2015), arXiv:1509.09308,
    F(4 x 4, 3 x 3)). The transforms are matrix products over the 36 pixels of a tile's window,
    and between them stand 36 products of (tiles, in) with (in, out) matrices; so do the
    derivatives, which automatic differentiation finds.

    Args:
        x: `(batch, height, width, in)`, height and width divisible by four.
        kernel: `(3, 3, in, out)`.

    Returns:
        `(batch, height, width, out)`.
    """
    batch, height, width, features = x.shape
    taps, inputs, outputs = minimal_filter()

    def transform(matrix, value):  # along both axes of the tile at once
        both = jnp.asarray(np.kron(matrix, matrix), x.dtype)
        return both @ value.reshape(both.shape[1], -1)

    def windows(value, axis):  # pixel by pixel, each over all tiles
        last = value.shape[axis] - WINDOW + 1
        pixels = [
            jax.lax.slice_in_dim(value, place, place + last, TILE, axis) for place in range(WINDOW)
        ]
        return jnp.stack(pixels)

    seen = windows(windows(jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), 2), 2)
    seen = transform(inputs, seen).reshape(WINDOW**2, -1, features)
    filters = transform(taps, kernel).reshape(WINDOW**2, features, -1)
    out = transform(outputs, seen @ filters)
    out = out.reshape(TILE, TILE, batch, height // TILE, width // TILE, -1)
    return out.transpose(2, 3, 0, 4, 1, 5).reshape(batch, height, width, -1)


def winograd_pays(x: jax.Array, kernel: jax.Array) -> bool:
    """Whether `winograd` is the faster way, by shapes and dtype alone.

    On a CPU its savings are worth its passes over memory from 64 channels on; an accelerator's
    library chooses for itself; with fewer bits than float32 its rounding would show.
    """
    fits = all(side % TILE == 0 for side in x.shape[1:3])
    wide = min(kernel.shape[2:]) >= 64
    return fits and wide and x.dtype == jnp.float32 and jax.default_backend() == "cpu"


def convolve(x: jax.Array, kernel: jax.Array, pads, stride: int = 1) -> jax.Array:
    """`(batch, height, width, in)` with a kernel `(rows, columns, in, out)`."""
    layout = ("NHWC", "HWIO", "NHWC")
    strides = (stride, stride)
    return jax.lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=layout)


def double_and_convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Doubles an image by repeating pixels and convolves it with a 3 x 3 kernel.

    Of the nine pixels under the kernel only four differ, so the four positions inside a repeated
    pixel are 2 x 2 convolutions of the small image, with sums of the kernel's rows and columns:
    4/9 of the work of the literal way, and no large image to copy in the backward pass.

    Args:
        x: `(batch, height, width, in)`.
        kernel: `(3, 3, in, out)`.

    Returns:
        `(batch, 2 * height, 2 * width, out)`, the zero-padded convolution.
    """
    batch, height, width, _ = x.shape

    def halves(value, axis):  # what an even and an odd position see of the three taps
        first, middle, last = jnp.split(value, 3, axis)
        return [
            jnp.concatenate([first, middle + last], axis),
            jnp.concatenate([first + middle, last], axis),
        ]

    pads = [(1, 0), (0, 1)]
    rows = [
        jnp.stack(
            [
                convolve(x, part, [pads[row], pads[column]])
                for column, part in enumerate(halves(taps, 1))
            ],
            axis=3,
        )
        for row, taps in enumerate(halves(kernel, 0))
    ]
    return jnp.stack(rows, axis=2).reshape(batch, 2 * height, 2 * width, kernel.shape[-1])


class Conv(nn.Module):
    """A 3 x 3 convolution with zero padding that keeps, halves or doubles the size.

    Attributes:
        features: channels of the result.
        resize: `"none"`, `"halve"` (stride 2) or `"double"` (pixels are repeated first).
        kernel_init: initialiser of the kernel `(3, 3, in, features)`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
    """

    features: int
    resize: str = "none"
    kernel_init: Any = nn.initializers.lecun_normal()
    dtype: Dtype = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x):
        """`(batch, height, width, in)` to `(batch, new height, new width, features)`."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", self.kernel_init, shape, self.param_dtype)
        bias = self.param("bias", ZEROS, (self.features,), self.param_dtype)
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        if self.resize == "double":
            out = double_and_convolve(x, kernel)
        elif self.resize == "none" and winograd_pays(x, kernel):
            out = winograd(x, kernel)
        else:
            out = convolve(x, kernel, [(1, 1), (1, 1)], 2 if self.resize == "halve" else 1)
        return constrain_batch(out + bias.reshape(1, 1, 1, -1))
