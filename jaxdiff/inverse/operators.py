"""Measurement operators: `y = A x`, with everything that the methods ask of `A` in one place.

A linear operator knows `forward`, `adjoint` and, where there is a closed form, the basis V and the
singular values s of `A = U S V^T`. Nothing else is needed, because

    A^T (scale A A^T + shift)^-1 e = V (scale s^2 + shift)^-1 V^T A^T e

holds every regularised inverse, the pseudo-inverse (scale = 1, shift = 0) among them, and U is never met.
Without a closed form the same number comes from conjugate gradients.

All of them take batches, `(batch, ...)`; images are `(batch, height, width, channels)`.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import (
    check_count,
    check_positive,
    concrete,
    dataclass,
    match_dims,
    matmul,
    safe_divide,
    static_field,
)
from jaxdiff.inverse.krylov import conjugate_gradient

CUT = 1e-6  # squared singular values below this share of the largest count as 0


@dataclass
class Operator:
    """A linear map of examples. Subclasses have `forward` and `adjoint`, and a basis if they know one."""

    def forward(self, x):
        """`A x`."""
        raise NotImplementedError

    def adjoint(self, y):
        """`A^T y`."""
        raise NotImplementedError

    def singular(self, x):
        """The singular values, in the shape of one example of `to(x)` or broadcast to it; None if unknown."""
        del x

    def to(self, x):
        """`V^T x`, coefficients in the basis of the singular vectors (complex where the basis is)."""
        return x

    def back(self, coefficients):
        """`V coefficients`."""
        return coefficients

    def at(self, x):
        """The linear operator near `x`: itself."""
        del x
        return self

    def gain(self, e, scale, shift, iterations=50):
        """`A^T (scale A A^T + shift)^-1 e`, an image.

        Args:
          e: `(batch, ...)` in the space of measurements.
          scale: at least 0, a number or `(batch,)`.
          shift: at least 0, a number, `(batch,)`, or a value for every entry of `e`.
          iterations: of conjugate gradients, where there is no basis.
        """
        e = jnp.asarray(e, _dtype(e))
        raw = self.adjoint(e)
        s = self.singular(raw)
        if s is None or jnp.ndim(shift) > 1:
            apply = lambda v: _on(scale, v) * self.forward(self.adjoint(v)) + _on(shift, v) * v  # noqa: E731
            return self.adjoint(conjugate_gradient(apply, e, iterations))
        coefficients = self.to(raw)
        s2 = jnp.broadcast_to(jnp.square(s), coefficients.shape[1:])[None]
        weight = _on(scale, coefficients) * s2 + _on(shift, coefficients)
        seen = s2 > CUT * jnp.max(s2)
        return self.back(jnp.where(seen, safe_divide(1.0, weight), 0.0) * coefficients)

    def pinv(self, y):
        """The pseudo-inverse `A^+ y`."""
        return self.gain(y, 1.0, 0.0)


def _dtype(x):
    """In which an operator works on `x`: integers or half precision would not hold the operator's numbers."""
    return jnp.result_type(x, jnp.float32)


def _on(value, like):
    """A number, or one per example, or one per entry, for arithmetic with `like`."""
    value = jnp.asarray(value)
    return value if value.ndim in (0, like.ndim) else match_dims(value, like)


@dataclass
class Mask(Operator):
    """See `mask`."""

    kept: jax.Array

    def forward(self, x):
        return self._shown(x) * x

    def adjoint(self, y):
        return self._shown(y) * y

    def _shown(self, x):
        """The mask with a batch axis, refused where it would broadcast to another shape."""
        event, shown = np.shape(x)[1:], self._of(x)
        kept = shown.shape
        if len(event) != len(kept) or any(k not in (1, n) for k, n in zip(kept, event, strict=True)):
            raise ValueError(f"mask: expected examples that fit a mask of shape {kept}, got {event}")
        return shown[None]

    def _of(self, x):
        """The mask of the examples `x`, with a channel axis where they are images and it has none."""
        return self.kept[..., None] if self.kept.ndim == 2 and np.ndim(x) == 4 else self.kept

    def singular(self, x):
        return jnp.broadcast_to(self._of(x), x.shape[1:]).astype(_dtype(x))


def mask(kept):
    """Keeps values where `kept` is 1 and sets the others to 0; a measurement has the shape of the image.

    Args:
      kept: 0 and 1, of the shape of an example, or of an image without its channel axis.
    """
    known = np.asarray(kept, np.float32)
    if not np.isin(known, (0, 1)).all() or known.ndim < 1:
        raise ValueError(f"mask: expected an array of 0 and 1, got shape {known.shape} from {known.min()}")
    return Mask(known)


@dataclass
class Blur(Operator):
    """See `blur`."""

    kernel: jax.Array

    def forward(self, x):
        return self._multiply(x, self._transfer(x))

    def adjoint(self, y):
        return self._multiply(y, jnp.conj(self._transfer(y)))

    def singular(self, x):
        return jnp.abs(self._transfer(x))[..., None]

    def to(self, x):
        return jnp.fft.fft2(x, axes=(1, 2), norm="ortho")

    def back(self, coefficients):
        return jnp.fft.ifft2(coefficients, axes=(1, 2), norm="ortho").real

    def _multiply(self, x, transfer):
        return self.back(transfer[None, ..., None] * self.to(x))

    def _transfer(self, x):
        height, width = self.kernel.shape
        _check_images("blur", x)
        if height > x.shape[1] or width > x.shape[2]:
            raise ValueError(f"blur: expected images of at least {self.kernel.shape}, got {x.shape[1:]}")
        padded = jnp.zeros(x.shape[1:3], _dtype(x)).at[:height, :width].set(self.kernel)
        return jnp.fft.fft2(jnp.roll(padded, (-(height // 2), -(width // 2)), (0, 1)))


def blur(kernel):
    """Circular convolution of every channel with a kernel `(height, width)` around its centre."""
    kernel = np.asarray(kernel, np.float32)
    if kernel.ndim != 2:
        raise ValueError(f"blur: expected a kernel (height, width), got shape {kernel.shape}")
    return Blur(kernel)


def gaussian_blur(width, size=5):
    """`blur` with a Gaussian kernel of standard deviation `width` pixels on `size` by `size` pixels."""
    check_count("gaussian_blur", size=size)
    check_positive("gaussian_blur", width=width)
    line = np.exp(-0.5 * ((np.arange(size) - size // 2) / width) ** 2)
    return blur(np.outer(line, line) / line.sum() ** 2)


@dataclass
class Downsample(Operator):
    """See `downsample`."""

    factor: int = static_field()

    def forward(self, x):
        return self._blocks(x).mean(-1, dtype=_dtype(x))

    def adjoint(self, y):
        size = self.factor**2
        return self._images(jnp.broadcast_to(y.astype(_dtype(y))[..., None] / size, (*y.shape, size)))

    def singular(self, x):
        first = np.zeros(self.factor**2)
        first[0] = 1 / self.factor
        return jnp.asarray(first, _dtype(x))

    def to(self, x):
        return matmul(self._blocks(x), self._basis(x))

    def back(self, coefficients):
        return self._images(matmul(coefficients, self._basis(coefficients).T))

    def _basis(self, like):
        """Orthonormal values of a block: its mean first."""
        size = self.factor**2
        columns = np.concatenate([np.ones((size, 1)), np.eye(size)[:, 1:]], axis=1)
        q = np.linalg.qr(columns)[0]
        return jnp.asarray(q * np.sign(q[0, 0]), _dtype(like))

    def _blocks(self, x):
        _check_images("downsample", x)
        batch, height, width, channels = x.shape
        f = self.factor
        if height % f or width % f:
            raise ValueError(f"downsample: expected sides that {f} divides, got {(height, width)}")
        x = x.reshape(batch, height // f, f, width // f, f, channels)
        return jnp.moveaxis(x, (2, 4), (4, 5)).reshape(batch, height // f, width // f, channels, f * f)

    def _images(self, blocks):
        batch, rows, columns, channels, _ = blocks.shape
        f = self.factor
        x = jnp.moveaxis(blocks.reshape(batch, rows, columns, channels, f, f), (4, 5), (2, 4))
        return x.reshape(batch, rows * f, columns * f, channels)


def downsample(factor):
    """The mean over blocks of `factor` by `factor` pixels."""
    check_count("downsample", factor=factor)
    return Downsample(factor)


@dataclass
class Fourier(Operator):
    """See `fourier`."""

    kept: jax.Array

    def forward(self, x):
        self._check(x)
        seen = self.kept[None, ..., None] * self.to(x)
        return jnp.concatenate([seen.real, seen.imag], axis=-1)

    def adjoint(self, y):
        self._check(y)
        real, imaginary = jnp.split(y, 2, axis=-1)
        return self.back(self.kept[None, ..., None] * (real + 1j * imaginary))

    def singular(self, x):
        # of a real image the coefficients at k and -k are one number, measured once, twice or never
        mirrored = jnp.roll(jnp.flip(self.kept, (0, 1)), (1, 1), (0, 1))
        return jnp.sqrt((self.kept + mirrored) / 2)[..., None].astype(_dtype(x))

    def to(self, x):
        return jnp.fft.fft2(x, axes=(1, 2), norm="ortho")

    def back(self, coefficients):
        return jnp.fft.ifft2(coefficients, axes=(1, 2), norm="ortho").real

    def _check(self, x):
        _check_images("fourier", x)
        if x.shape[1:3] != self.kept.shape:
            raise ValueError(f"fourier: expected images of {self.kept.shape} pixels, got {x.shape[1:3]}")


def fourier(kept):
    """Chosen coefficients of the unitary Fourier transform, as of magnetic resonance.

    Args:
      kept: `(height, width)` of 0 and 1, frequencies in the order of `jnp.fft`.

    A measurement is `(batch, height, width, 2 channels)`: real parts, then imaginary ones.
    """
    kept = np.asarray(kept, np.float32)
    if kept.ndim != 2 or not np.isin(kept, (0, 1)).all():
        raise ValueError(f"fourier: expected (height, width) of 0 and 1, got shape {kept.shape}")
    return Fourier(kept)


@dataclass
class Matrix(Operator):
    """See `dense` and `colour`."""

    matrix: jax.Array
    basis: jax.Array | None
    values: jax.Array | None
    event: tuple = static_field()

    def forward(self, x):
        if x.shape[1:][-len(self.event) :] != self.event:
            raise ValueError(f"dense: expected examples that end in {self.event}, got {x.shape[1:]}")
        return matmul(self._flat(x), self.matrix.T.astype(_dtype(x)))

    def adjoint(self, y):
        if y.shape[-1] != self.matrix.shape[0]:
            raise ValueError(
                f"dense: expected measurements of {self.matrix.shape[0]} values, got {y.shape[1:]}"
            )
        return self._whole(matmul(y, self.matrix.astype(_dtype(y))))

    def singular(self, x):
        return None if self.values is None else self.values.astype(_dtype(x))

    def to(self, x):
        return matmul(self._flat(x), self.basis.astype(_dtype(x)))

    def back(self, coefficients):
        return self._whole(matmul(coefficients, self.basis.T.astype(_dtype(coefficients))))

    def _flat(self, x):
        return x.reshape(*x.shape[: x.ndim - len(self.event)], -1)

    def _whole(self, x):
        return x.reshape(*x.shape[:-1], *self.event)


def dense(matrix, event=None, decompose=None):
    """A matrix on flattened examples.

    Args:
      matrix: `(m, n)`.
      event: shape of an example, of n values; `(n,)` by default. Further leading axes are kept.
      decompose: whether to work out the singular vectors now; if n is at most 1,024 by default.

    Raises:
      ValueError: for shapes that do not fit.
    """
    matrix = np.asarray(matrix, np.float64)
    event = matrix.shape[1:] if event is None else tuple(event)
    if matrix.ndim != 2 or int(np.prod(event)) != matrix.shape[1]:
        raise ValueError(f"dense: expected a matrix (m, {int(np.prod(event))}), got shape {matrix.shape}")
    if decompose is None:
        decompose = matrix.shape[1] <= 1024
    if not decompose:
        return Matrix(matrix, None, None, event)
    _, s, vt = np.linalg.svd(matrix, full_matrices=True)
    return Matrix(matrix, vt.T, np.append(s, np.zeros(len(vt) - len(s))), event)


def colour(matrix=(0.299, 0.587, 0.114)):
    """A matrix on the channels of every pixel, `(out, channels)`; the grey value of RGB by default."""
    matrix = np.atleast_2d(np.asarray(matrix, np.float64))
    return dense(matrix, matrix.shape[1:])


def radon(size, angles):
    """Parallel-beam projections of `(size, size, 1)` images, as of computed tomography.

    A pixel's value is shared between the two nearest of `size` detectors.

    Args:
      size: of the images, in pixels.
      angles: `(count,)` in radians; a measurement is `(batch, count size)`.
    """
    check_count("radon", size=size)
    middle = (size - 1) / 2
    row, column = np.mgrid[:size, :size] - middle
    matrix = np.zeros((len(angles), size + 1, size * size))
    for i, angle in enumerate(angles):
        place = np.clip((column * np.cos(angle) + row * np.sin(angle)).ravel() + middle, 0, size - 1)
        low = np.floor(place).astype(int)
        pixel = np.arange(size * size)
        matrix[i, low, pixel] += 1 - (place - low)
        matrix[i, low + 1, pixel] += place - low
    return dense(matrix[:, :size].reshape(-1, size * size), (size, size, 1))


@dataclass
class Composed(Operator):
    """See `compose`."""

    parts: tuple

    def forward(self, x):
        for part in self.parts:
            x = part.forward(x)
        return x

    def adjoint(self, y):
        for part in reversed(self.parts):
            y = part.adjoint(y)
        return y

    def at(self, x):
        local = []
        for part in self.parts:
            local.append(part.at(x))
            x = part.forward(x)
        return Composed(tuple(local))


def compose(*operators):
    """One operator after another, the first one first; inverted by conjugate gradients."""
    if not operators:
        raise ValueError("compose: expected at least one operator, got none")
    return Composed(tuple(operators))


@dataclass
class Linearised(Operator):
    """The derivative of a function at a point."""

    push: Callable = static_field()
    pull: Callable = static_field()

    def forward(self, x):
        return self.push(x)

    def adjoint(self, y):
        return self.pull(y)[0]


@dataclass
class Nonlinear(Operator):
    """See `nonlinear`."""

    function: Callable = static_field()

    def forward(self, x):
        return self.function(x)

    def adjoint(self, y):
        raise ValueError(
            "nonlinear: this operator has no adjoint or pseudo-inverse of its own, only near a point; use "
            'operator.at(x), or a method that needs none, such as "dps"'
        )

    def at(self, x):
        return Linearised(lambda u: jax.jvp(self.function, (x,), (u,))[1], jax.vjp(self.function, x)[1])


def nonlinear(function):
    """Any differentiable function of a batch, example by example; methods use its derivative at a point."""
    if not callable(function):
        raise ValueError(f"nonlinear: expected a function x -> y, got {function!r}")
    return Nonlinear(function)


def _check_images(where, x):
    if jnp.ndim(x) != 4:
        raise ValueError(f"{where}: expected images (batch, height, width, channels), got {jnp.shape(x)}")


def check_measurement(operator, x, y, where):
    """Raises ValueError where `y` is not what the operator makes of `x`; shapes alone are looked at."""
    made = jax.eval_shape(operator.forward, jax.ShapeDtypeStruct(x.shape, jnp.result_type(x, jnp.float32)))
    if made.shape != jnp.shape(y):
        raise ValueError(
            f"{where}: expected y of shape {made.shape}, what the operator makes of samples {x.shape}, got "
            f"{jnp.shape(y)}"
        )
    known = concrete(y)
    if known is not None and not np.isfinite(known).all():
        raise ValueError(f"{where}: expected a finite measurement, got NaN or infinity in y")
