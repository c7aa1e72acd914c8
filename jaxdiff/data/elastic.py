"""Elastic deformations of images whose grey levels count the ink of a finer bitmap."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_count, check_share, dataclass, einsum, matmul, static_field, typed
from jaxdiff.data.augment import keys_kernel

MODES = np.array([[0.0, 1.0, 0.7], [1.0, 0.7, 0.5], [0.7, 0.5, 0.3]])  # relative size of cosine modes
BENDS = [(i, j) for i in range(3) for j in range(3) if i + j > 0]


@dataclass
class Elastic:
    """Bends, turns and slants the bitmap that an image counts, and counts it again.

    The handwritten digits are such counts: 4 x 4 blocks of a 32 x 32 bitmap, 17 grey levels (Alpaydin
    and Kaynak (1998), UCI optical recognition of handwritten digits). Interpolated maps soften
    images of a few pixels, which any classifier notices; here each block's ink goes where a cubic
    up-sampling is brightest, the bitmap is deformed (in the manner of Simard et al. (2003), ICDAR) and
    its blocks are counted, so that grey levels keep their statistics and no deformation returns the
    image as it was. Turns and slants keep the ink's extent, to which such images were scaled.

    With `(x, vector) = elastic(keys, x)`, a network told `vector` and sampled with zeros shows none of
    it (Karras et al. (2022), arXiv:2206.00364, appendix F.2).

    Attributes:
      bend: standard deviation in pixels of the largest of eight smooth displacement modes an axis.
      rotate: of the angle, in radians.
      shear: pixels to the right per pixel down.
      probability: share of examples that are deformed, in [0, 1].
      block: side of the counted blocks; an image has `block^2 + 1` grey levels, others are rounded to them.
      limits: values of an empty and of a full block; (0, 1) if None.
    """

    bend: float = 0.15
    rotate: float = 0.05
    shear: float = 0.05
    probability: float = 1.0
    block: int = static_field(default=4)
    limits: tuple[float, float] | None = static_field(default=None)
    vector_size = 2 + 2 * len(BENDS)

    def __call__(self, keys, x):
        """Deforms each example by its own key.

        Args:
          keys: (batch,) keys.
          x: (batch, height, width, 1).

        Returns:
          (x, vector): images of the same shape and `(batch, 18)` draws in units of their standard
          deviations; 0 where an example is left as it is, but for the rounding to grey levels.

        Raises:
          ValueError: for other shapes, or numbers out of range.
        """
        check_share("Elastic", probability=self.probability)
        check_count("Elastic", block=self.block)
        if x.ndim != 4 or x.shape[-1] != 1 or keys.shape != x.shape[:1]:
            raise ValueError(
                f"Elastic: expected x of shape (batch, height, width, 1) and one key each, got {x.shape} "
                f"and {keys.shape}"
            )
        vector = jax.vmap(self._draw)(typed(keys, "Elastic"))
        low, high = self.limits or (0.0, 1.0)
        count = self.block**2
        levels = jnp.round((x[..., 0] - low) / (high - low) * count)
        counted = jax.vmap(self._apply)(levels, vector)
        return (low + (high - low) / count * counted)[..., None].astype(x.dtype), vector

    def _draw(self, key):
        key_value, key_apply = jax.random.split(key)
        draws = jax.random.normal(key_value, (self.vector_size,))
        return draws * jax.random.bernoulli(key_apply, 1.0 * self.probability)

    def _apply(self, levels, vector):
        ink = bitmap(levels, self.block)
        at = self._turned(ink, vector[0] * self.rotate, vector[1] * self.shear)
        at = at + self.bend * self.block * _displacement(vector[2:].reshape(2, -1), ink.shape)
        return _counts(_look_up(ink, at) > 0.5, self.block)

    def _turned(self, ink, angle, shear):
        """Where each pixel of the turned and slanted picture, scaled to its old extent, comes from."""
        grid = _grid(ink.shape)
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        one, zero = jnp.ones(()), jnp.zeros(())
        turn = matmul(jnp.array([[cos, -sin], [sin, cos]]), jnp.array([[one, zero], [shear, one]]))
        middle, size = _extent(ink, grid)
        new_middle, new_size = _extent(ink, matmul(grid, turn.T))
        shape = (1, 1, 2)
        back = (grid - middle.reshape(shape)) * (new_size / size).reshape(shape) + new_middle.reshape(shape)
        inverse = matmul(jnp.array([[one, zero], [-shear, one]]), jnp.array([[cos, sin], [-sin, cos]]))
        return matmul(back, inverse.T)


def bitmap(levels, block):
    """The bitmap whose blocks hold `levels` pixels of ink, `(height block, width block)` of 0 and 1."""
    height, width = levels.shape
    fine = matmul(matmul(_upsampling(height, block), levels), _upsampling(width, block).T)
    cells = _cells(fine, block) + 1e-4 * jnp.cos(1.7 * jnp.arange(block**2)).reshape(1, 1, -1)  # no ties
    brighter = jnp.sum(cells[..., None, :] > cells[..., :, None], axis=-1)
    ink = (brighter < levels[..., None]).astype(jnp.float32)
    return ink.reshape(height, width, block, block).transpose(0, 2, 1, 3).reshape(fine.shape)


def _cells(fine, block):
    height, width = fine.shape[0] // block, fine.shape[1] // block
    return fine.reshape(height, block, width, block).transpose(0, 2, 1, 3).reshape(height, width, block**2)


def _counts(ink, block):
    return jnp.sum(_cells(ink, block).astype(jnp.float32), axis=-1)


def _upsampling(size, block):
    """Cubic up-sampling of a row as a matrix, `(size block, size)`; nothing beyond the ends."""
    at = (np.arange(size * block) + 0.5) / block - 0.5
    return keys_kernel(jnp.asarray(at[:, None] - np.arange(size)[None], jnp.float32))


def _grid(shape):
    """Coordinates (down, right) of pixels from the centre."""
    axes = [jnp.arange(n) - (n - 1) / 2 for n in shape]
    return jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)


def _extent(ink, places):
    """Middle and size of the box around the ink at these places."""
    drawn = (ink > 0)[..., None]
    low = jnp.min(jnp.where(drawn, places, jnp.inf), axis=(0, 1))
    high = jnp.max(jnp.where(drawn, places, -jnp.inf), axis=(0, 1))
    empty = ~jnp.any(drawn)
    low, high = jnp.where(empty, 0.0, low), jnp.where(empty, 0.0, high)
    return 0.5 * (low + high), high - low + 1


def _displacement(draws, shape):
    """Sums of cosine modes, `(height, width, 2)`."""
    rows, columns = (np.cos(np.pi * np.arange(3)[:, None] * ((np.arange(n) + 0.5) / n)[None]) for n in shape)
    weight = np.array([MODES[mode] for mode in BENDS], np.float32)
    basis = np.stack([np.outer(rows[i], columns[j]) for i, j in BENDS]) * weight[:, None, None]
    return einsum("dm,myx->yxd", draws, jnp.asarray(basis, jnp.float32))


def _look_up(ink, at):
    """Bilinear value at places from the centre; the rows at the edge go on above and below."""
    height, width = ink.shape
    at = at + jnp.array([(height - 1) / 2, (width - 1) / 2]).reshape(1, 1, 2)
    low = jnp.floor(at)
    rest = at - low
    down, right = low[..., 0].astype(int), low[..., 1].astype(int)

    def tap(i, j):
        row, column = down + i, right + j
        inside = (column >= 0) & (column < width)
        return jnp.where(inside, ink[jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)], 0.0)

    upper = tap(0, 0) * (1 - rest[..., 1]) + tap(0, 1) * rest[..., 1]
    lower = tap(1, 0) * (1 - rest[..., 1]) + tap(1, 1) * rest[..., 1]
    return upper * (1 - rest[..., 0]) + lower * rest[..., 0]
