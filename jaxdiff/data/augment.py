"""Random affine maps of images on the device, with the condition that keeps them from leaking."""

import jax
import jax.numpy as jnp

from jaxdiff.core import check_share, dataclass, einsum, matmul, static_field, typed

VECTOR_SIZE = 6


@dataclass
class Affine:
    """Small random shifts, rotations, scalings and shears.

    With `(x, vector) = affine(keys, x)`, a network trained on `x` under the condition `vector`
    and sampled with the condition zero learns the augmented images without ever producing one
    that the data does not hold: Karras et al. (2022), arXiv:2206.00364, appendix F.2. Leave the
    vector out where every map gives an image as good as the data.

    Each of the five maps is drawn on its own: with `probability`, normal with the standard
    deviation given here, else none.

    Attributes:
      shift: pixels, down and right.
      rotate: radians.
      scale: of the logarithm of the size.
      stretch: of the logarithm of the ratio of height and width.
      shear: pixels to the right per pixel down.
      probability: of each map, in [0, 1].
      background: value that comes in over the border; None repeats the border's own pixels.
      limits: lowest and highest value of an image, to which interpolation is clipped, or None.
    """

    shift: float = 0.5
    rotate: float = 0.1
    scale: float = 0.08
    stretch: float = 0.08
    shear: float = 0.1
    probability: float = 1.0
    background: float | None = static_field(default=None)
    limits: tuple[float, float] | None = static_field(default=None)
    vector_size = VECTOR_SIZE

    def __call__(self, keys, x):
        """Augments each example by its own key.

        Args:
          keys: (batch,) keys.
          x: (batch, height, width, channels).

        Returns:
          (x, vector): images of the same shape and `(batch, 6)` draws in units of their standard
          deviations: shift down, shift right, rotation, scale, stretch, shear; 0 where none.
        """
        check_share("Affine", probability=self.probability)
        if x.ndim != 4 or keys.shape != x.shape[:1]:
            raise ValueError(
                f"Affine: expected x of shape (batch, height, width, channels) and one key each, "
                f"got {x.shape} and {keys.shape}; augmentation is for images"
            )
        vector = jax.vmap(self._draw)(typed(keys, "Affine"))
        return jax.vmap(self._apply)(x, vector), vector

    def _draw(self, key):
        key_value, key_apply = jax.random.split(key)
        on = jax.random.bernoulli(key_apply, 1.0 * self.probability, (VECTOR_SIZE - 1,))
        # one decision for the two shifts
        return jax.random.normal(key_value, (VECTOR_SIZE,)) * on[jnp.array([0, 0, 1, 2, 3, 4])]

    def _apply(self, image, vector):
        angle, size = self.rotate * vector[2], self.scale * vector[3]
        half = 0.5 * self.stretch * vector[4]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        turn = jnp.array([[cos, sin], [-sin, cos]])
        # output to input: the inverse of each map, in reverse order
        shear = jnp.array([[1.0, 0.0], [-self.shear * vector[5], 1.0]])
        stretch = jnp.diag(jnp.exp(-size + jnp.array([-half, half])))
        image = warp(image, matmul(matmul(shear, stretch), turn), self.shift * vector[:2], self.background)
        return image if self.limits is None else jnp.clip(image, *self.limits)


def warp(image, matrix, shift, background=None):
    """The image whose pixel at `p` is the input's at `centre + matrix (p - centre - shift)`.

    Between pixels the input is interpolated by the cubic convolution of Keys (1981), IEEE Trans.
    ASSP 29 (a = -1/2, exact for quadratics).

    Args:
      image: (height, width, channels).
      matrix: (2, 2), of (down, right) coordinates in pixels.
      shift: (2,) pixels; a positive one moves the picture down and right.
      background: value outside the input; None: the nearest border pixel; "reflect": mirrored at the border.
    """
    height, width, _ = image.shape
    centre = jnp.array([(height - 1) / 2, (width - 1) / 2])
    grid = jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)
    at = matmul(grid - (centre + shift).reshape(1, 1, 2), matrix.T) + centre.reshape(1, 1, 2)
    low = jnp.floor(at)
    taps = low[..., None].astype(int) + jnp.arange(-1, 3).reshape(1, 1, 1, 4)
    weights = keys_kernel(at[..., None] - taps)
    rows, columns = taps[:, :, 0, :, None], taps[:, :, 1, None, :]
    inner = _reflect if background == "reflect" else _clip
    values = image[inner(rows, height), inner(columns, width)]
    if background is not None and background != "reflect":
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        values = jnp.where(inside[..., None], values, background)
    return einsum("hwi,hwj,hwijc->hwc", weights[:, :, 0], weights[:, :, 1], values)


def _clip(index, size):
    return jnp.clip(index, 0, size - 1)


def _reflect(index, size):
    """Indices of a row that goes back and forth, without repeating its ends."""
    period = max(2 * (size - 1), 1)
    index = index % period
    return jnp.minimum(index, period - index)


def keys_kernel(distance):
    """The cubic convolution kernel of Keys (1981) with a = -1/2."""
    d = jnp.abs(distance)
    near = (1.5 * d - 2.5) * d * d + 1.0
    far = ((-0.5 * d + 2.5) * d - 4.0) * d + 2.0
    return jnp.where(d < 1, near, jnp.where(d < 2, far, 0.0))
