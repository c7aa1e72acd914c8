"""Parallelism: one update compiled for one device, for `pmap`, or for `jit` over a mesh."""

import os
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from jaxdiff.core import batch_over, check_choice, quick
from jaxdiff.training.mesh import BATCH, make_mesh, mesh_sizes, shardings
from jaxdiff.training.packed import form_of, pack, unpack
from jaxdiff.training.update import scan_updates

MODES = ("auto", "pmap", "jit")
AXIS = "data"


class Parallel(NamedTuple):
    """How arrays lie on the devices, those of other processes included, and a dispatch is compiled.

    Attributes:
      mode: `pmap` or `jit`.
      devices: number of devices.
      batch_devices: number of parts that a batch is cut into.
      whole: whether every device has the whole state.
      part: `(numbers, count)`: this process supplies the rows of these, or of this one, of `count` equal
        parts of a batch.
      place: train state on the host -> on the devices, owned by no one else (it may be donated).
      replicate: host tree -> a copy on every device.
      shard: `(updates, rows, ...)` host arrays, this process's rows -> the dispatch's third argument.
      compile: `dispatch(state, resident, items, key, axis_name)`, a state or its shapes -> the compiled
        dispatch; `state` is donated.
      fetch: device tree -> whole numpy arrays; every process has to call it.
    """

    mode: str
    devices: int
    batch_devices: int
    whole: bool
    part: tuple
    place: Callable
    replicate: Callable
    shard: Callable
    compile: Callable
    fetch: Callable


def parallel(mode="auto", devices=None, mesh=""):
    """Parallelism over `devices`, all of every process by default.

    Args:
      mode: `auto` is `pmap` for plain data parallelism over several devices and `jit` otherwise.
      devices: list of devices.
      mesh: sizes of the axes `data`, `fsdp` and `tensor`, such as "data=2,fsdp=4" (`mesh.mesh_sizes`).
        Examples are cut over `data` and `fsdp`, the state over `fsdp` and `tensor`.

    Raises:
      ValueError: for an unknown mode, a mesh of another number of devices, or one that `pmap` cannot have.
    """
    check_choice("parallel", "mode", mode, MODES)
    devices = list(devices or jax.devices())
    sizes = mesh_sizes(mesh, len(devices))
    plain = sizes["data"] == len(devices)
    if mode == "auto":
        mode = "pmap" if plain and len(devices) > 1 else "jit"
    if mode == "pmap" and not plain:
        raise ValueError(f"parallel: expected a mesh of the data axis alone for pmap, got {mesh!r}; use jit")
    return _pmap(devices) if mode == "pmap" else _jit(devices, sizes)


def packed(layout, params):
    """`layout` with the parameters, averages and moments of a state packed on the devices, where that pays.

    They are not where the network is large or its state is cut over the devices.
    """
    form = form_of(params) if layout.whole else None
    if form is None:
        return layout
    return layout._replace(
        place=lambda state: layout.place(pack(jax.tree.map(np.asarray, state), form)),
        fetch=lambda tree: unpack(layout.fetch(tree)),
    )


def over_devices(function):
    """`function(shared, *examples)` compiled, with its examples cut over the devices of all processes.

    Every process passes the whole host arrays, and gets the whole result, gathered once, as numpy arrays.

    Returns:
      `place(shared)`, which sends what is shared to the devices and returns the function of `*examples`, of a
      size that the number of devices divides.
    """
    devices = jax.devices()
    if len(devices) == 1:
        alone = jax.jit(function, **_options())

        def place_alone(shared):
            shared = jax.device_put(shared)
            return lambda *examples: jax.tree.map(np.asarray, alone(shared, *examples))

        return place_alone
    mesh = Mesh(np.array(devices), (AXIS,))
    everywhere, split = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (AXIS,)))
    compiled = jax.jit(
        lambda shared, examples: function(shared, *examples), in_shardings=(everywhere, split),
        out_shardings=everywhere, **_options(),
    )

    def put(tree, sharding):
        return jax.tree.map(lambda a: _put(np.asarray(a), sharding), tree)

    def place(shared):
        shared = put(shared, everywhere)

        def call(*examples):
            out = compiled(shared, put(examples, split))
            return jax.tree.map(lambda a: np.asarray(a.addressable_shards[0].data), out)

        return call

    return place


def check_batch_size(batch_size, devices, accumulate=1):
    """Raises ValueError if the batch cannot be cut evenly over devices and accumulation steps."""
    if not isinstance(batch_size, (int, np.integer)):
        raise ValueError(f"fit: expected batch_size to be an integer, got {batch_size!r}")
    unit = devices * accumulate
    if batch_size < 1 or batch_size % unit:
        below, above = batch_size // unit * unit, -(-batch_size // unit) * unit
        near = sorted({max(unit, below), max(unit, above)})
        what = f"the {devices} devices" + (f" times accumulate={accumulate}" if accumulate > 1 else "")
        raise ValueError(
            f"fit: expected batch_size to be a positive multiple of {what} ({unit}), got "
            f"{batch_size}; use {' or '.join(map(str, near))}"
        )


def make_dispatch(update, gather):
    """`dispatch(state, resident, items, key, axis_name)`: one update per leading item, in one call.

    The key travels as `jax.random.key_data`, an ordinary array, which every layout can place.

    Args:
      update: of `make_update`.
      gather: `(resident, item) -> batch`, traced: a batch out of the data that live on the device.
    """

    def dispatch(state, resident, items, key, axis_name=None):
        run_key = jax.random.wrap_key_data(key)

        def body(state, item):
            return update(state, gather(resident, item), run_key, axis_name)

        return scan_updates(body, state, items)

    return dispatch


def _jit(devices, sizes):
    # Auto axes: Explicit ones, the default, compute a numpy batch whole everywhere
    mesh = make_mesh(sizes, devices)
    alone = len(devices) == 1  # a mesh of one costs some percent of a small step
    everywhere = SingleDeviceSharding(devices[0]) if alone else NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec(None, BATCH))
    plain = sizes["data"] == len(devices)  # every array of the state is everywhere

    def layout(state):
        return jax.tree.map(lambda _: everywhere, state) if plain else shardings(state, mesh)

    def compile(dispatch, state):
        def run(*args):
            if plain:
                return dispatch(*args, None)
            with batch_over(mesh, BATCH):
                return dispatch(*args, None)

        state = everywhere if plain else layout(state)
        placed = {} if alone else {
            "in_shardings": (state, everywhere, split, everywhere), "out_shardings": (state, everywhere)
        }
        return jax.jit(run, donate_argnums=0, **placed, **_options())

    def place(tree, where):
        return jax.tree.map(lambda a, s: _put(np.array(a), s), tree, where)

    def shard(items):
        if jax.process_count() == 1:
            return items
        return jax.tree.map(lambda a: jax.make_array_from_process_local_data(split, a), items)

    return Parallel(
        mode="jit", devices=len(devices), batch_devices=sizes["data"] * sizes["fsdp"], whole=plain,
        part=held_parts(mesh.devices, jax.process_index()),
        place=lambda state: place(state, layout(state)),
        replicate=lambda tree: place(tree, jax.tree.map(lambda _: everywhere, tree)),
        shard=shard, compile=compile, fetch=_fetch_whole,
    )


def _options():
    """On the CPU, LLVM's later passes take a third of the compilation and make no step faster."""
    return {} if "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "") else quick()


def _put(array, sharding):
    """The whole host array on the devices of this process, cut by `sharding`.

    `jax.device_put` would compare the arrays of all processes, a collective for each.
    """
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def held_parts(devices, process):
    """`(numbers, count)` of the parts of a batch that a process's devices hold.

    They need not be neighbours: on a TPU slice a mesh follows the chips' wires, not their hosts.

    Args:
      devices: of a mesh, `(data, fsdp, tensor)`.
      process: its number.
    """
    rows = [{device.process_index for device in row} for row in devices.reshape(-1, devices.shape[-1])]
    held = {p: tuple(i for i, row in enumerate(rows) if p in row) for p in set().union(*rows)}
    groups = set(held.values())
    if process not in held:
        raise ValueError(f"parallel: expected devices of every process, got none of process {process}")
    if sum(map(len, groups)) != len(rows) or len(set(map(len, groups))) > 1:
        raise ValueError(
            "mesh: expected the parts of a batch that two processes hold to be the same or none in common, "
            f"got {sorted(groups)} of {len(rows)}; make the axis tensor divide the devices of a process, or "
            "they it"
        )
    return list(held[process]), len(rows)


def _fetch_whole(tree):
    from jax.experimental import multihost_utils

    def leaf(a):
        if a.is_fully_addressable:
            return np.asarray(a)
        if a.is_fully_replicated:
            return np.asarray(a.addressable_shards[0].data)
        return multihost_utils.process_allgather(a, tiled=True)

    if jax.process_count() == 1:
        return jax.tree.map(np.asarray, jax.device_get(tree))
    return jax.tree.map(leaf, tree)


def _pmap(devices):
    # leading axis: the device; the state stays stacked, which multi-process donation needs
    local = [device for device in devices if device.process_index == jax.process_index()]
    stacked = NamedSharding(Mesh(np.array(local), (AXIS,)), PartitionSpec(AXIS))

    def replicate(tree):
        def leaf(a):
            a = np.array(a)[None]
            copies = [jax.device_put(a, device) for device in local]
            shape = (len(local), *a.shape[1:])
            return jax.make_array_from_single_device_arrays(shape, stacked, copies)

        return jax.tree.map(leaf, tree)

    def shard(items):
        def leaf(a):
            return a.reshape(len(a), len(local), -1, *a.shape[2:]).swapaxes(0, 1)

        return jax.tree.map(leaf, items)

    def compile(dispatch, state):
        given = {"devices": devices} if jax.process_count() == 1 else {}
        return jax.pmap(lambda *args: dispatch(*args, AXIS), axis_name=AXIS, donate_argnums=0, **given)

    def fetch(tree):
        # one shard's copy: indexing the stacked array would gather over all devices
        return jax.tree.map(lambda a: np.asarray(a.addressable_shards[0].data)[0], tree)

    return Parallel(
        mode="pmap", devices=len(devices), batch_devices=len(devices), whole=True,
        part=(jax.process_index(), jax.process_count()), place=replicate, replicate=replicate,
        shard=shard, compile=compile, fetch=fetch,
    )
