"""Data sets and the order in which their examples are seen."""

import ast
import inspect
import os
import re

from jaxdiff.core import unknown_name
from jaxdiff.data.arrays import Dataset, Examples, batch_indices
from jaxdiff.data.augment import Affine
from jaxdiff.data.crop import Crop, flip
from jaxdiff.data.digits import digits
from jaxdiff.data.edm import EDMAugment
from jaxdiff.data.elastic import Elastic
from jaxdiff.data.files import npz
from jaxdiff.data.options import check_options
from jaxdiff.data.streams import array_record, dataset, images, place, tfds
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
        `swiss_roll`), `npz:PATH`, `images:FOLDER`, `array_record:PATTERN` or `tfds:NAME[:SPLIT]`; options
        may stand in brackets behind it: `images:FOLDER(stream=True, max_corrupt=0.05)`.
      **options: of toys `train`, `held_out` (sizes) and `seed`; of files `held_out` (share) and
        `seed`; of the last three also `stream`, `max_corrupt`, `num_classes` and `size`, as of `streams`.

    Raises:
      ValueError: for an unknown name, with the near ones, options that it does not take, and for data that
        cannot be used.
    """
    plain, written = _parse(name)
    kind, _, path = plain.partition(":")
    if kind in _KINDS and path:
        make, first = _KINDS[kind], (path,)
    elif plain == "digits" or plain in TOYS:
        make, first = (digits, ()) if plain == "digits" else (toy, (plain,))
    else:
        own = kind == "digits" or kind in TOYS  # right by itself, and takes no path
        raise ValueError(f"load: {unknown_name('data set', plain if own else kind, names())}")
    try:
        bound = inspect.signature(make).bind(*first, **written, **options).arguments
        further = bound.pop("options", {})  # of streams, which hand them on
        inspect.signature(dataset).bind(plain, None, **further)
    except TypeError as error:
        raise ValueError(f"load: expected other options for {plain}: {error}") from None
    check_options(plain, make, bound)
    check_options(plain, dataset, further)
    return make(*first, **written, **options)


def canonical(name):
    """The name with its path, or its `data_dir`, made absolute: it means the same in another directory."""
    kind, _, path = str(name).partition(":")
    if kind not in _KINDS or not path:
        return str(name)
    plain, written = _parse(path)
    if kind != "tfds" or place(plain)[2]:
        return f"{kind}:{os.path.abspath(path)}"
    data_dir = str(written.get("data_dir", ""))
    if os.path.isabs(data_dir) or not os.path.isdir(data_dir):  # of TFDS's places, ~ and gs:// among them
        return str(name)
    written["data_dir"] = os.path.abspath(data_dir)
    return f"tfds:{plain}({', '.join(f'{option}={value!r}' for option, value in written.items())})"


def _parse(name):
    """`name(option=value, ...)` as the name and a dict."""
    found = re.fullmatch(r"(.*)\((\w+ *=.*)\)", str(name))
    if not found:
        return str(name), {}
    try:
        call = ast.parse(f"f({found[2]})", mode="eval").body
        return found[1], {node.arg: ast.literal_eval(node.value) for node in call.keywords}
    except (SyntaxError, ValueError, AttributeError):
        raise ValueError(
            f"load: expected NAME(option=value, ...), got {name!r}; quote it in the shell"
        ) from None
