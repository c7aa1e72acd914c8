"""The augmentation of EDM, with the condition that keeps it from leaking into samples."""

import jax
import jax.numpy as jnp

from jaxdiff.core import check_share, dataclass, matmul, static_field, typed
from jaxdiff.data.augment import warp


@dataclass
class EDMAugment:
    """Mirrors, scales, turns, stretches and shifts images, and says how.

    Karras et al. (2022), arXiv:2206.00364, appendix F.2. Of each image with `a0, a1` drawn from {0, 1},
    `a2, a5, a6, a7` from the standard normal distribution and `a3, a4` uniformly from [-pi, pi] (`a4` is 0
    for half of them, as in the authors' code), the mirroring `a0` always and each of the other five maps
    with `probability`, the pixel `p` (right, down; from the centre) moves to

        T A R S F p,   F = diag(1 - 2 a0, 1 - 2 a1),   S = 2^(scale a2),   R = rotation by -a3
        A = rotation(-a4) diag(2^(stretch a5), 2^(-stretch a5)) rotation(a4)
        T: a shift by shift (a6 width, a7 height)

    The vector is `(a0, a1, a2, cos a3 - 1, sin a3, a5 cos a4, a5 sin a4, a6, a7)`, all 0 for the image as it
    is: a network told the vector, and sampled with zeros, learns from the changed images and shows none of
    it. The paper's probability is .12 for CIFAR-10 and .15 for faces and animals. Between pixels the image
    is interpolated (`augment.warp`, in place of the paper's supersampled wavelets), beyond its border it is
    mirrored.

    Attributes:
      probability: of each map, in [0, 1].
      mirror: whether images are mirrored left and right, half of them.
      mirror_down: whether upside down is among the maps.
      scale: of the size, in octaves; 0 for none, as below.
      rotate: largest angle in radians.
      stretch: of the ratio of the sides, in half octaves.
      shift: in image sizes.
      limits: lowest and highest value of an image, to which interpolation is clipped, or None.
    """

    probability: float = 0.12
    mirror: bool = static_field(default=True)
    mirror_down: bool = static_field(default=True)
    scale: float = 0.2
    rotate: float = jnp.pi
    stretch: float = 0.2
    shift: float = 0.125
    limits: tuple[float, float] | None = static_field(default=None)
    vector_size = 9

    def __call__(self, keys, x):
        """Augments each example by its own key.

        Args:
          keys: (batch,) keys.
          x: (batch, height, width, channels).

        Returns:
          (x, vector): images of the same shape and the `(batch, 9)` vectors.
        """
        check_share("EDMAugment", probability=self.probability)
        if x.ndim != 4 or keys.shape != x.shape[:1]:
            raise ValueError(
                f"EDMAugment: expected x of shape (batch, height, width, channels) and one key each, got "
                f"{x.shape} and {keys.shape}; augmentation is for images"
            )
        draws = jax.vmap(self._draw)(typed(keys, "EDMAugment"))
        return jax.vmap(self._apply)(x, draws), jax.vmap(_vector)(draws)

    def _draw(self, key):
        """`a0` to `a7`, 0 where a map is left out."""
        key_on, key_mirror, key_normal, key_angle = jax.random.split(key, 4)
        on = jax.random.bernoulli(key_on, jnp.append(jnp.full(5, self.probability), 0.5))
        mirror = jax.random.bernoulli(key_mirror, 0.5, (2,)) * jnp.array([self.mirror, self.mirror_down])
        a2, a5, a6, a7 = jax.random.normal(key_normal, (4,))
        a3, a4 = jax.random.uniform(key_angle, (2,), minval=-1.0, maxval=1.0)
        has = [jnp.asarray(size) != 0 for size in (self.scale, self.rotate, self.stretch, self.shift)]
        scaled, turned, stretched, shifted = (flag & on[1 + i] for i, flag in enumerate(has))
        return jnp.stack([
            mirror[0], mirror[1] * on[0], a2 * scaled, a3 * self.rotate * turned,
            a4 * jnp.pi * (stretched & on[5]), a5 * stretched, a6 * shifted, a7 * shifted,
        ]).astype(jnp.float32)

    def _apply(self, image, a):
        height, width, _ = image.shape
        mirrored = jnp.diag(1 - 2 * a[:2])
        stretch = jnp.diag(jnp.exp2(self.stretch * a[5] * jnp.array([-1.0, 1.0])))
        # from where a pixel comes: the inverse of each map, in reverse order
        back = matmul(mirrored * jnp.exp2(-self.scale * a[2]), _rotation(a[3]))
        back = matmul(matmul(matmul(back, _rotation(-a[4])), stretch), _rotation(a[4]))
        shift = self.shift * a[:5:-1] * jnp.array([height, width])
        image = warp(image, back[::-1, ::-1], shift, "reflect")  # down, right
        return image if self.limits is None else jnp.clip(image, *self.limits)


def _rotation(angle):
    """Of (right, down)."""
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.array([[cos, -sin], [sin, cos]])


def _vector(a):
    turned = [jnp.cos(a[3]) - 1, jnp.sin(a[3])]
    return jnp.stack([*a[:3], *turned, a[5] * jnp.cos(a[4]), a[5] * jnp.sin(a[4]), *a[6:]])
