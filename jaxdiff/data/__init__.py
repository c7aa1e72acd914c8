"""Data sets and the order in which their examples are seen."""

import os

from jaxdiff.core import unknown_name
from jaxdiff.data.arrays import Dataset, Examples, batch_indices
from jaxdiff.data.augment import Affine
from jaxdiff.data.crop import Crop, flip
from jaxdiff.data.digits import digits
from jaxdiff.data.edm import EDMAugment
from jaxdiff.data.elastic import Elastic
from jaxdiff.data.files import npz
from jaxdiff.data.streams import array_record, images, tfds
from jaxdiff.data.toys import TOYS, toy
from jaxdiff.data.write import write_tfds

__all__ = [
    "Affine", "Crop", "Dataset", "EDMAugment", "Elastic", "Examples", "batch_indices", "canonical", "flip",
    "load", "names", "write_tfds",
]

_KINDS = {"npz": npz, "images": images, "array_record": array_record, "tfds": tfds}


def names():
    """The data sets that `load` knows."""
    return ("digits", *TOYS, "npz:PATH", "images:FOLDER", "array_record:PATTERN", "tfds:NAME[:SPLIT]")


def load(name, **options):
    """A data set by name.

    Args:
      name: `digits`, a toy (`moons`, `checkerboard`, `eight_gaussians`, `spirals`,
        `swiss_roll`), `npz:PATH`, `images:FOLDER`, `array_record:PATTERN` or `tfds:NAME[:SPLIT]`.
      **options: of toys `train`, `held_out` (sizes) and `seed`; of files `held_out` (share) and
        `seed`, and those of `streams.dataset`.

    Raises:
      ValueError: for an unknown name, with the near ones, and for data that cannot be used.
    """
    kind, _, path = str(name).partition(":")
    if kind in _KINDS and path:
        return _KINDS[kind](path, **options)
    if name == "digits":
        return digits(**options)
    if name in TOYS:
        return toy(name, **options)
    raise ValueError(f"load: {unknown_name('data set', name, names())}")


def canonical(name):
    """The name with its path made absolute, so that it means the same in another working directory."""
    kind, _, path = str(name).partition(":")
    if kind in _KINDS and path and (kind != "tfds" or os.path.exists(path.split(":")[0])):
        return f"{kind}:{os.path.abspath(path)}"
    return str(name)
