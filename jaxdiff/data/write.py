"""Arrays or folders of images written as a data set of tensorflow-datasets, without tensorflow."""

import contextlib
import io
import os
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxdiff.data.sources import Broken, Folder

VERSION = "1.0.0"


def write_tfds(data, directory, *, name="examples", num_classes=None):
    """Writes a data set in TFDS's array_record format, with its metadata.

    `tfds.builder_from_directory` and `jaxdiff.data.load("tfds:DIRECTORY")` read the directory that is
    returned, and `tfds.data_source` the name. The order of the examples is kept.

    Args:
      data: dict of `(size, ...)` arrays, such as `x` and `label`; or a folder of images (of `x`, and `label`
        where its images are in folders of classes), which are kept as they are encoded; or a dict of such,
        by split: `{"train": ..., "test": ...}`.
      directory: where; the set is `directory/name/1.0.0`.
      name: of the set, lower case.
      num_classes: of the labels; by default one more than the largest.

    Returns:
      The set's own directory, a string.

    Raises:
      ValueError: if there is such a set, the arrays disagree on their size or between splits, or a file is no
        image.
    """
    where = f"write_tfds:{name}"
    root = pathlib.Path(directory) / name / VERSION
    if root.exists():
        raise ValueError(f"{where}: expected no set in {root}, found one; remove it or choose another name")
    splits = data if isinstance(data, Mapping) and _by_split(data) else {"train": data}
    parts = {
        split: (_Images if _is_path(part) else _Arrays)(where, part) for split, part in splits.items()
    }
    kinds = {split: part.features for split, part in parts.items()}
    first = next(iter(kinds.values()))
    if any(kind != first for kind in kinds.values()):
        raise ValueError(f"{where}: expected the same arrays in every split, got {kinds}")
    classes = num_classes or max(part.num_classes for part in parts.values())
    _build(name, os.fspath(directory), first, classes, parts)
    return os.fspath(root)


def _is_path(part):
    return isinstance(part, (str, os.PathLike))


def _by_split(data):
    return bool(data) and all(_is_path(part) or isinstance(part, Mapping) for part in data.values())


class _Arrays:
    def __init__(self, where, arrays):
        self._arrays = {key: np.asarray(array) for key, array in arrays.items()}
        sizes = {key: len(array) for key, array in self._arrays.items()}
        if not sizes or len(set(sizes.values())) > 1 or not min(sizes.values()):
            raise ValueError(f"{where}: expected arrays of one size above 0, got {sizes}")
        self.features = {key: (str(a.dtype), a.shape[1:]) for key, a in self._arrays.items()}
        label = self._arrays.get("label")
        self.num_classes = 0
        if label is not None:
            if label.dtype.kind not in "iu" or label.ndim != 1 or label.min() < 0:
                raise ValueError(f"{where}: expected labels to be integers from 0 on, got {label.dtype}")
            self.features["label"], self.num_classes = "label", int(label.max()) + 1

    def __iter__(self):
        for i in range(len(next(iter(self._arrays.values())))):
            yield i, {key: int(a[i]) if key == "label" else a[i] for key, a in self._arrays.items()}


class _Images:
    def __init__(self, where, folder):
        self._where, self._folder = where, Folder(folder)
        height, width, channels = self._read(0)["x"].shape
        self.features = {"x": ("image", (height, width, channels))}
        self.num_classes = len(self._folder.classes)
        if self.num_classes:
            self.features["label"] = "label"

    def __iter__(self):
        for i, path in enumerate(self._folder.paths):
            example = self._read(i)
            yield i, example | {"x": _encoded(path, example["x"])}

    def _read(self, index):
        try:
            return self._folder.__getitems__([index])[0]
        except Broken as error:
            raise ValueError(f"{self._where}: {error}; repair or remove it") from None


def _encoded(path, pixels):
    """The file's own bytes where TFDS decodes them to these pixels, else a PNG of them."""
    from PIL import Image

    with Image.open(path) as picture:
        mode = "L" if pixels.shape[-1] == 1 else "RGB"
        if picture.format in ("PNG", "JPEG") and picture.mode == mode:
            return path.read_bytes()
    stored = io.BytesIO()
    Image.fromarray(pixels[..., 0] if mode == "L" else pixels).save(stored, "PNG")
    return stored.getvalue()


def _build(name, directory, kinds, num_classes, parts):
    import tensorflow_datasets as tfds

    def feature(kind):
        if kind == "label":
            return tfds.features.ClassLabel(num_classes=num_classes)
        dtype, shape = kind
        if dtype == "image":
            return tfds.features.Image(shape=shape)
        encoding = tfds.features.Encoding.BYTES if shape else tfds.features.Encoding.NONE
        return tfds.features.Tensor(shape=shape, dtype=np.dtype(dtype), encoding=encoding)

    features = {key: feature(kind) for key, kind in kinds.items()}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(VERSION)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features), disable_shuffling=True,
            )

        def _split_generators(self, manager):
            return {split: iter(part) for split, part in parts.items()}

        def _generate_examples(self):
            raise NotImplementedError  # splits bring their own

    Builder.name = name
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):
        Builder(data_dir=directory, file_format="array_record").download_and_prepare()
