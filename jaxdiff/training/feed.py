"""Batches of a run as a function of the step, read ahead of it."""

import os
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.data.arrays import Examples, batch_indices

RESIDENT_BYTES = 2**30  # sets up to this size live on the device
READ_AHEAD = 8  # batches
THREADS = max(2, min(8, os.cpu_count() or 1))


class Feed(NamedTuple):
    """Where batches come from.

    Attributes:
      resident: arrays that live on the device.
      items: `(step, count) -> (count, rows, ...)` host arrays, for the updates from `step` on: this
        process's rows of each batch.
      gather: `(resident, item) -> batch`, traced.
      close: ends the threads that read ahead.
    """

    resident: object
    items: Callable
    gather: Callable
    close: Callable = lambda: None


def make_feed(data, batch_size, seed, num_classes=None, part=0, parts=1):
    """Batches of `data`; the global batch of a step depends on the data, the seed and the step alone.

    So a run resumes at the exact example, also on another number of devices or processes, and every
    epoch shows every example once. Small sets live on the device and a step sends the batch's indices; of
    larger ones it sends the rows, and of those beyond the memory threads read a few batches ahead. Dispatch
    is asynchronous: what is sent travels while the device works on the updates before.

    Args:
      data: dict of `(size, ...)` arrays, such as `x` and `label`, or `Examples` of `jaxdiff.data`.
      batch_size: examples of an update, over all processes.
      seed: of the order.
      num_classes: what labels have to stay below, if that is known.
      part, parts: this process supplies this one, or these, of `parts` equal, contiguous parts of every
        batch.

    Raises:
      ValueError: if the arrays disagree on the size, a value is not finite, a `label` is not one of the
        classes 0, 1, ..., one an example where their number is known, or the batch cannot be cut evenly.
    """
    if batch_size % parts:
        raise ValueError(
            f"fit: expected batch_size to be a multiple of the {parts} parts of the processes, got "
            f"{batch_size}; use {-(-batch_size // parts) * parts}"
        )
    source, prepare = data if isinstance(data, Examples) else Examples(data, lambda batch: batch)
    if not isinstance(source, Mapping) and not hasattr(source, "__getitems__"):
        raise ValueError(
            "fit: expected data to be a dict of arrays or Examples, such as dataset.examples(), got "
            f"{type(source).__name__}"
        )
    if not np.isin(part, np.arange(parts)).all():
        raise ValueError(f"fit: expected part to be in [0, {parts}), got {part}")
    own = np.arange(batch_size).reshape(parts, -1)[part].reshape(-1)
    if not isinstance(source, Mapping):
        def read(picked):
            batch = collate(source.__getitems__(picked.tolist()))
            _check_values(batch, picked)
            _check_labels(batch.get("label"), num_classes)
            return batch

        return _streamed(read, lambda step: batch_indices(len(source), batch_size, seed, step)[own], prepare)
    arrays = {name: np.asarray(array) for name, array in source.items()}
    size = _size(arrays)
    _check_values(arrays)
    _check_labels(arrays.get("label"), num_classes)

    def chosen(step):
        return batch_indices(size, batch_size, seed, step)[own].astype(np.int32)

    if sum(array.nbytes for array in arrays.values()) > RESIDENT_BYTES:
        return _streamed(lambda picked: {k: a[picked] for k, a in arrays.items()}, chosen, prepare)
    return Feed(
        arrays,
        lambda step, count: np.stack([chosen(step + i) for i in range(count)]),
        lambda resident, item: prepare(jax.tree.map(lambda a: a[item], resident)),
    )


def collate(examples):
    """A list of dicts of arrays as one dict of `(len, ...)` arrays; integers of one number as int32."""
    batch = {name: np.stack([example[name] for example in examples]) for name in examples[0]}
    return {name: a.astype(np.int32) if a.dtype == np.int64 else a for name, a in batch.items()}


class _Steps:
    """Random access by step to batches, or to the errors in their place: grain would edit their messages."""

    def __init__(self, read):
        self._read = read

    def __len__(self):
        return sys.maxsize

    def __getitem__(self, step):
        try:
            return self._read(step), None
        except BaseException as error:
            return None, error


def _streamed(read, chosen, prepare):
    """Grain's threads read ahead of the step that was asked for last; they end with `close`."""
    running = []  # the iterator and the step that it gives next, once there is one

    def begin(step):
        import grain

        close()
        steps = grain.MapDataset.source(_Steps(lambda step: read(chosen(step))))
        iterator = iter(steps.to_iter_dataset(grain.ReadOptions(THREADS, READ_AHEAD)))
        iterator.set_state({"next_index": step})
        running[:] = iterator, step

    def items(step, count):
        if not running or running[1] != step:
            begin(step)
        batches = []
        for _ in range(count):
            batch, error = next(running[0])
            if error is not None:
                close()
                raise error
            batches.append(batch)
        running[1] = step + count
        if count == 1:
            return {name: array[None] for name, array in batches[0].items()}
        return jax.tree.map(lambda *arrays: np.stack(arrays), *batches)

    def close():
        if running:
            running[0].close()
            running.clear()

    return Feed({}, items, lambda resident, item: prepare(item), close)


def _size(arrays):
    sizes = {name: len(array) for name, array in arrays.items()}
    if not sizes or len(set(sizes.values())) > 1 or not min(sizes.values()):
        raise ValueError(f"fit: expected data arrays of one size above 0, got {sizes}")
    return sizes.popitem()[1]


def _check_values(arrays, picked=None):
    """Raises ValueError at the first value that is not finite; `picked` are the examples' numbers."""
    for name, array in arrays.items():
        bad = np.argwhere(~np.isfinite(array)) if jnp.issubdtype(array.dtype, jnp.floating) else ()
        if len(bad):
            first = tuple(map(int, bad[0]))
            where = first if picked is None else (int(picked[first[0]]), *first[1:])
            raise ValueError(
                f"fit: expected finite data, got {array[first]} in {name} at index {where} "
                f"({len(bad)} such values); clean or drop these examples"
            )


def _check_labels(labels, num_classes):
    """An embedding would count negative ones from its end, and give NaN for those beyond it."""
    if labels is None:
        return
    if num_classes is not None and labels.ndim != 1:
        raise ValueError(
            f"fit: expected labels of shape ({len(labels)},), one an example, got shape {labels.shape}"
        )
    limit = "" if num_classes is None else f" and below the network's {num_classes} classes"
    wrong = labels.dtype.kind not in "iu" or labels.min() < 0
    if wrong or (num_classes is not None and labels.max() >= num_classes):
        raise ValueError(
            f"fit: expected labels to be integers from 0 on{limit}, got {labels.dtype} from {labels.min()} "
            f"to {labels.max()}; number the classes 0, 1, ..."
        )
