"""Array helpers: which numbers are known before tracing, and shapes that match from the left.

Formulas of time are written once, against `xp = namespace(t, ...)`: numpy in float64 when every
number is known (so a solver's table is exact whatever jax's precision, also inside `jit`), and
`jax.numpy` when one of them is traced (so schedules and grids can be learned by gradient).
"""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np


def quick():
    """Options of `jax.jit` for what runs once: little optimisation, where the compiler is the CPU's.

    That of GPUs takes level 2 at least. (At level 0 jax 0.10 makes wrong code.)
    """
    on_cpu = jax.default_backend() == "cpu"
    return {"compiler_options": {"xla_backend_optimization_level": 1}} if on_cpu else {}


def on_host():
    """A context in which jax computes on the CPU, also beside an accelerator, unless it may not use it."""
    if jax.default_backend() == "cpu":
        return contextlib.nullcontext()
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return contextlib.nullcontext()


def is_concrete(*trees):
    """Whether no leaf of `trees` is a tracer, so that values may be looked at before compilation."""
    return not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(trees))


def namespace(*trees):
    """`numpy` if every leaf is a known host number, else `jax.numpy`.

    Parameters of processes and solvers count as host numbers unless traced; the first argument,
    by convention the time, also decides by being a jax array.
    """
    traced = not is_concrete(*trees)
    return jnp if traced or isinstance(trees[0], jax.Array) else np


def host(tree):
    """Known jax arrays as numpy arrays (floats in float64), every other leaf as it is.

    Within `jit` the arithmetic of a known jax array is traced, that of a numpy array is not.
    """

    def leaf(value):
        if isinstance(value, jax.core.Tracer) or not isinstance(value, jax.Array):
            return value
        value = np.asarray(value)
        floating = jnp.issubdtype(value.dtype, jnp.floating)
        return value.astype(np.float64) if floating else value

    return jax.tree.map(leaf, tree)


def concrete(value):
    """`value` as a numpy array, or None where it is traced and cannot be looked at."""
    return np.asarray(value) if is_concrete(value) else None


def as_number(value):
    """`value` as a float, or as it is where it is traced: a setting that `vmap` and `grad` reach."""
    return float(value) if is_concrete(value) else value


def match_dims(t, x, where="match_dims", name="t"):
    """Gives `t` trailing unit axes so that it broadcasts against `x` from the left.

    Args:
      t: scalar, `(batch,)`, or any shape that equals the leading axes of `x` (a time per token).
      x: array, `(batch, ...)`.
      where, name: the caller and what it calls `t`, for the message.

    Returns:
      `t` with `x.ndim` axes (a scalar stays a scalar).

    Raises:
      ValueError: if the shape of `t` is not a leading part of `x.shape`.
    """
    shape, target = np.shape(t), np.shape(x)
    if shape == ():
        return t
    if len(shape) > len(target) or shape != target[: len(shape)]:
        one = "time" if name == "t" else name
        raise ValueError(
            f"{where}: expected {name} of shape () or {target[:1]}, got {shape}; pass one {one} per "
            f"example, or a shape that x's {target} starts with"
        )
    return t.reshape(shape + (1,) * (len(target) - len(shape)))


def matmul(one, other):
    """`one @ other` with every bit of its dtype.

    Accelerators by default multiply float32 in eight (TPU) or eleven bits (NVIDIA): enough for a network's
    layers, which keep that default, and for nothing else.
    """
    return jnp.matmul(one, other, precision="highest")


def einsum(formula, *arrays):
    """`jnp.einsum` with every bit of its dtype, as `matmul`."""
    return jnp.einsum(formula, *arrays, precision="highest")


def safe_sqrt(value):
    """Square root with value and gradient 0 where `value <= 0` (the plain gradient there is NaN)."""
    xp = namespace(value)
    positive = value > 0
    return xp.where(positive, xp.sqrt(xp.where(positive, value, 1.0)), 0.0)


def safe_divide(numerator, denominator, otherwise=0.0):
    """`numerator / denominator`, and `otherwise` where the denominator is 0, gradients included."""
    xp = namespace(numerator, denominator)
    xp = jnp if isinstance(denominator, jax.Array) else xp
    zero = denominator == 0
    return xp.where(zero, otherwise, numerator / xp.where(zero, 1.0, denominator))
