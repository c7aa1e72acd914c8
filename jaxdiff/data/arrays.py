"""The record that every data set arrives as, and the order in which its examples are seen."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Examples(NamedTuple):
    """What a run trains on: examples as they are stored, and how the network is to see them.

    Attributes:
      source: dict of `(size, ...)` arrays in memory, or a random-access source such as `sources.Guarded`:
        `len(source)`, and `source.__getitems__(indices)`, a list of dicts of arrays.
      prepare: `batch -> batch`, traced; unsigned bytes travel to the device and are scaled there.
    """

    source: object
    prepare: Callable


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set, with the scale on which models see it.

    Models work on `(x - shift) / scale`; everything else (metrics, pictures, files) on the data's
    own values.

    Attributes:
      name: what `load` was asked for.
      train: `{"x": (n, *shape) float32}` in data units, and `"label": (n,) int32` where there is; of a
        set that is streamed, a sample.
      held_out: arrays of the same names, never trained on; `()` long where there is no such split.
      num_classes: 0 where the data has no labels.
      value_range: (lowest, highest) value of an example, or None for unbounded vectors.
      levels: number of equally spaced values in the range (17 for digits), or None: continuous.
      shift, scale: of the model's scale.
      source: random access to every training example as it is stored, where the set is too large for
        the memory (`sources.Guarded`); else None.
    """

    name: str
    train: dict
    held_out: dict
    num_classes: int = 0
    value_range: tuple | None = None
    levels: int | None = None
    shift: float = 0.0
    scale: float = 1.0
    source: object = None

    @property
    def shape(self):
        """Shape of one example: (height, width, channels) of an image, (dimension,) of a vector."""
        return self.train["x"].shape[1:]

    @property
    def sigma_data(self):
        """Standard deviation of the training values on the model's scale."""
        return float(np.std(self.train["x"], dtype=np.float64) / self.scale)

    def examples(self, label=True):
        """`Examples` to train on, with labels where there are and `label`; images as unsigned bytes."""
        stored = dict(self.train)
        if self.value_range is not None and self.levels is not None and self.levels <= 256:
            if tuple(self.value_range) == (0, self.levels - 1):
                stored["x"] = stored["x"].astype(np.uint8)

        def prepare(batch):
            batch = batch | {"x": self.to_model(batch["x"].astype(np.float32))}
            return batch if label else {"x": batch["x"]}

        if not label:
            stored.pop("label", None)
        return Examples(stored if self.source is None else self.source, prepare)

    def to_model(self, x):
        """Data units to the model's scale; any array type, any shape."""
        return (x - self.shift) / self.scale

    def from_model(self, x):
        """The model's scale to data units: clipped to the range, rounded to the levels. Host array.

        Without the rounding any classifier tells samples from data by their last digits alone.
        """
        x = np.asarray(x, np.float32) * self.scale + self.shift
        if self.value_range is None:
            return x
        low, high = self.value_range
        x = np.clip(x, low, high)
        if self.levels is None:
            return x
        step = (high - low) / (self.levels - 1)
        return (low + step * np.round((x - low) / step)).astype(np.float32)


def check_finite(where, x):
    """`x` itself; ValueError with the index of the first NaN or infinity."""
    bad = ~np.isfinite(x)
    if bad.any():
        index = tuple(int(i) for i in np.argwhere(bad)[0])
        raise ValueError(
            f"{where}: expected finite values, got {x[index]} at index {index} "
            f"({int(bad.sum())} in all); clean or drop these examples"
        )
    return x


def image_scale(x):
    """(shift, scale) that give images mean 0 and standard deviation 1/2.

    One half is the sigma_data of Karras et al. (2022), arXiv:2206.00364, so that their noise
    levels mean the same on every set of images.
    """
    spread = float(np.std(x, dtype=np.float64))
    return float(np.mean(x, dtype=np.float64)), 2.0 * spread if spread > 0 else 1.0


def batch_indices(size, batch_size, seed, step):
    """Indices of the examples in training batch `step`: a pure function, so a resume is exact.

    Example number `step * batch_size + i` of the run is number `% size` of the permutation of
    epoch `// size`. Batches straddle epochs, and every epoch shows every example exactly once.

    Args:
      size: examples in the training split.
      batch_size: examples per step over all devices and hosts.
      seed: non-negative integer.
      step: from 0.

    Returns:
      `(batch_size,)` int64.
    """
    least_of = {"size": (size, 1), "batch_size": (batch_size, 1), "seed": (seed, 0), "step": (step, 0)}
    for name, (value, least) in least_of.items():
        if value < least:
            raise ValueError(f"batch_indices: expected {name} >= {least}, got {value}")
    first, end = step * batch_size, (step + 1) * batch_size
    parts = [
        _permutation(seed, epoch, size)[max(first - epoch * size, 0) : end - epoch * size]
        for epoch in range(first // size, (end - 1) // size + 1)
    ]
    return np.concatenate(parts)


@functools.lru_cache(maxsize=4)  # a batch would otherwise cost the permutation of its epoch
def _permutation(seed, epoch, size):
    order = np.random.default_rng([seed, epoch]).permutation(size)
    order.flags.writeable = False
    return order
