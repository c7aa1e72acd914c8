"""Random crops of padded images and mirrored copies, on the device."""

import jax
import jax.numpy as jnp

from jaxdiff.core import check_count, check_share, dataclass, static_field, typed


@dataclass
class Crop:
    """Crops an image that is padded on all sides, and mirrors some: whole pixels, nothing is interpolated.

    As Krizhevsky et al. (2012), NeurIPS. With `(x, vector) = crop(keys, x)`, a network told `vector` and
    sampled with zeros shows none of it; leave the vector out where moved and mirrored images are as good as
    the data.

    Attributes:
      pad: pixels on each side.
      flip: share of images that are mirrored, left and right.
      background: value of the padding; None repeats the border's own pixels.
    """

    pad: int = static_field(default=4)
    flip: float = 0.5
    background: float | None = static_field(default=None)
    vector_size = 3

    def __call__(self, keys, x):
        """Crops each example by its own key.

        Args:
          keys: (batch,) keys.
          x: (batch, height, width, channels).

        Returns:
          (x, vector): images of the same shape and `(batch, 3)`: 1 where mirrored, then shift down and shift
          right in units of `pad`; 0 where none.
        """
        check_count("Crop", least=0, pad=self.pad)
        check_share("Crop", flip=self.flip)
        if x.ndim != 4 or keys.shape != x.shape[:1]:
            raise ValueError(
                f"Crop: expected x of shape (batch, height, width, channels) and one key each, got {x.shape} "
                f"and {keys.shape}; augmentation is for images"
            )
        mirrored, shift = jax.vmap(self._draw)(typed(keys, "Crop"))
        vector = jnp.concatenate([mirrored[:, None], shift / max(self.pad, 1)], -1).astype(jnp.float32)
        return jax.vmap(self._apply)(x, mirrored, shift), vector

    def _draw(self, key):
        key_flip, key_shift = jax.random.split(key)
        shift = jax.random.randint(key_shift, (2,), -self.pad, self.pad + 1)
        return jax.random.bernoulli(key_flip, 1.0 * self.flip), shift

    def _apply(self, image, mirrored, shift):
        height, width, _ = image.shape
        rows = (jnp.arange(height) - shift[0])[:, None]
        columns = (jnp.arange(width) - shift[1])[None]
        inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
        columns = jnp.where(mirrored, width - 1 - columns, columns)
        moved = image[jnp.clip(rows, 0, height - 1), jnp.clip(columns, 0, width - 1)]
        return moved if self.background is None else jnp.where(inside[..., None], moved, self.background)


def flip(probability=0.5):
    """Mirrored copies, left and right, of this share of the images: a `Crop` without padding."""
    return Crop(pad=0, flip=probability)
