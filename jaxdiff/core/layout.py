"""Where activations lie while a program is traced over a mesh."""

import contextlib
import contextvars

import jax

_BATCH = contextvars.ContextVar("batch", default=None)


@contextlib.contextmanager
def batch_over(mesh, axes):
    """Inside, `constrain_batch` cuts leading axes over the axes `axes` of `mesh`."""
    token = _BATCH.set(jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(axes)))
    try:
        yield
    finally:
        _BATCH.reset(token)


def constrain_batch(x):
    """Keeps activations `(batch, ...)` cut over the batch alone, where a train step is traced over a mesh.

    Networks call it at the ends of their blocks: with parameters that are cut too, the compiler would else
    be free to cut features in place of examples and to send activations, which are larger than parameters.
    Convolutions and attention call it too: left to itself, XLA's partitioner gave their gradients wrong
    numbers on a mesh of three axes (jax 0.10.2 and 0.12).
    """
    sharding = _BATCH.get()
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)
