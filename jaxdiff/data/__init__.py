"""Data sets and the order in which their examples are seen."""

from jaxdiff.core import unknown_name
from jaxdiff.data.arrays import Dataset, batch_indices
from jaxdiff.data.augment import Affine
from jaxdiff.data.digits import digits
from jaxdiff.data.elastic import Elastic
from jaxdiff.data.files import images, npz
from jaxdiff.data.toys import TOYS, toy

__all__ = ["Affine", "Dataset", "Elastic", "batch_indices", "load", "names"]


def names():
    """The data sets that `load` knows."""
    return ("digits", *TOYS, "npz:PATH", "images:FOLDER")


def load(name, **options):
    """A data set by name.

    Args:
      name: `digits`, a toy (`moons`, `checkerboard`, `eight_gaussians`, `spirals`,
        `swiss_roll`), `npz:PATH` or `images:FOLDER`.
      **options: of toys `train`, `held_out` (sizes) and `seed`; of files `held_out` (share) and
        `seed`.

    Raises:
      ValueError: for an unknown name, with the near ones, and for data that cannot be used.
    """
    kind, _, path = str(name).partition(":")
    if kind in ("npz", "images") and path:
        return {"npz": npz, "images": images}[kind](path, **options)
    if name == "digits":
        return digits(**options)
    if name in TOYS:
        return toy(name, **options)
    raise ValueError(f"load: {unknown_name('data set', name, names())}")
