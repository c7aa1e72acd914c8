"""A mesh of devices, and where each array of a train state lies on it."""

import math
import re

import jax
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxdiff.training.state import leaves_by_path

AXES = ("data", "fsdp", "tensor")
BATCH = ("data", "fsdp")  # the axes that examples are cut over

# Megatron's pairs: columns of the first product, rows of the second, so that a block sends its result once.
# Modulations by rows, for what they multiply is whole (and with their columns cut, XLA's partitioner gave
# a block wrong numbers on a mesh of three axes: jax 0.10.2, both partitioners).
RULES = (
    (r"(^|/)tokens/embedding$", 0),
    (r"(^|/)(qkv|\w*_in|logits)/(kernel|bias)$", -1),
    (r"(^|/)(out|\w*_out|modulation)/kernel$", -2),
)
LEAST = 2**12  # scalars of an array below which cutting it over fsdp costs more than it saves


def mesh_sizes(mesh, devices):
    """The size of every axis of a mesh.

    Args:
      mesh: dict or words such as "data=2,fsdp=4"; an axis left out has size 1, and -1 takes what is left.
      devices: number of devices, the product of the sizes. "" is data parallel over all of them.

    Raises:
      ValueError: for an unknown axis, a size that is no integer, or another number of devices.
    """
    given = mesh if isinstance(mesh, dict) else _parse(mesh)
    if odd := sorted(set(given) - set(AXES)):
        raise ValueError(f"mesh: expected axes among {', '.join(AXES)}, got {odd[0]!r}")
    sizes = dict.fromkeys(AXES, 1) | (given or {"data": -1})
    if any(not isinstance(size, int) or (size < 1 and size != -1) for size in sizes.values()):
        raise ValueError(f"mesh: expected sizes of at least 1, or -1 for what is left, got {given}")
    free = [name for name, size in sizes.items() if size == -1]
    known = math.prod(size for size in sizes.values() if size != -1)
    if len(free) > 1 or (devices % known if free else known != devices):
        raise ValueError(
            f"mesh: expected sizes whose product is the number of devices, {devices}, with at most one of "
            f"-1, got {given}; write for instance data=-1"
        )
    return sizes | {name: devices // known for name in free}


def _parse(words):
    try:
        pairs = (word.split("=") for word in words.replace(" ", "").split(",") if word)
        return {name: int(size) for name, size in pairs}
    except ValueError:
        raise ValueError(f'mesh: expected words such as "data=2,fsdp=4", got {words!r}') from None


def make_mesh(sizes, devices):
    """A mesh with Auto axes, neighbours in it being neighbours in the machine."""
    shape = tuple(sizes[name] for name in AXES)
    placed = create_device_mesh(shape, devices, allow_split_physical_axes=True)  # as they are on v5e
    return Mesh(placed, AXES, axis_types=(AxisType.Auto,) * len(AXES))


def specs(state, sizes):
    """The `PartitionSpec` of each array of a state, by its name and its size.

    `tensor` cuts the two products of a block by `RULES`; `fsdp` cuts the longest axis that is left and that
    it divides, of arrays of at least `LEAST` scalars (Rajbhandari et al. (2020), arXiv:1910.02054, stage 3;
    Shoeybi et al. (2019), arXiv:1909.08053). Averages and moments lie where their parameters do.

    Args:
      state: pytree of arrays or shapes.
      sizes: of `mesh_sizes`.
    """
    placed = [_spec(path, leaf.shape, sizes) for path, leaf in leaves_by_path(state).items()]
    return jax.tree.unflatten(jax.tree.structure(state), placed)


def _spec(path, shape, sizes):
    axes = [None] * len(shape)
    for pattern, axis in RULES if sizes["tensor"] > 1 else ():
        if re.search(pattern, path) and -len(shape) <= axis < len(shape):
            if shape[axis] % sizes["tensor"] == 0:
                axes[axis] = "tensor"
            break
    if sizes["fsdp"] > 1 and math.prod(shape) >= LEAST:
        fits = [i for i, side in enumerate(shape) if axes[i] is None and side % sizes["fsdp"] == 0]
        if fits:
            axes[max(fits, key=lambda i: (shape[i], i))] = "fsdp"
    return PartitionSpec(*axes)


def shardings(state, mesh):
    """`specs` on a mesh of `make_mesh`."""
    return jax.tree.map(
        lambda spec: NamedSharding(mesh, spec), specs(state, dict(mesh.shape)),
        is_leaf=lambda leaf: isinstance(leaf, PartitionSpec),
    )
