"""Random access to examples on disk, with those that cannot be read replaced, counted and reported."""

import bisect
import logging
import pathlib
import threading
from typing import Protocol

import numpy as np

from jaxdiff.core import check_count
from jaxdiff.data.pictures import ERRORS, IMAGE_ENDINGS, common_mode, read_picture, squared
from jaxdiff.data.records import decode, fields

_log = logging.getLogger("jaxdiff.data")


class Source(Protocol):
    """Examples by number, as grain and TFDS define it: a set larger than the memory is read as it is needed.

    An example is a dict: `x`, an array, and `label`, an integer, where there are labels.
    """

    def __len__(self): ...

    def __getitems__(self, indices):
        """The examples of these numbers, a list; `Broken` where one of them cannot be read."""


class Broken(Exception):
    """An example that cannot be read.

    Attributes:
      name: of the file or the record.
    """

    def __init__(self, name, reason):
        super().__init__(f"{name}: {reason}")
        self.name = name


class Guarded:
    """Some examples of a source, with the next whole one in the place of one that is broken.

    So shapes hold, and the examples of a batch are still a function of the step alone. Each broken one is
    logged once, by the logger `jaxdiff.data`.

    Attributes:
      skipped: number of each example found broken -> number of the one in its place.

    Args:
      where: name of the set, for messages.
      source: a `Source`.
      indices: of the examples of `source`, in the order in which they are numbered here; all by default.
      max_corrupt: largest share of broken ones, in [0, 1).
    """

    def __init__(self, where, source, indices=None, max_corrupt=0.01):
        if not 0 <= max_corrupt < 1:
            raise ValueError(f"{where}: expected max_corrupt, a share, in [0, 1), got {max_corrupt}")
        self._where, self._source, self._max_corrupt = where, source, max_corrupt
        self._indices = np.arange(len(source)) if indices is None else np.asarray(indices)
        self.skipped, self._lock, self._shape = {}, threading.Lock(), None

    def __len__(self):
        return len(self._indices)

    def __getitem__(self, index):
        return self.__getitems__([index])[0]

    def __getitems__(self, indices):
        """The examples, a list of dicts.

        Raises:
          ValueError: if more than the share of examples are broken, with the name of the last one.
        """
        indices = [self.skipped.get(i, i) for i in indices]
        try:
            return self._read(indices)
        except Broken:
            return [self._whole(i) for i in indices]

    def _read(self, indices):
        examples = self._source.__getitems__(self._indices[indices].tolist())
        self._shape = self._shape or examples[0]["x"].shape
        for i, example in zip(indices, examples, strict=True):
            if example["x"].shape != self._shape:
                raise ValueError(
                    f"{self._where}: expected examples of one shape, got {example['x'].shape} at {i} and "
                    f"{self._shape}; cut and scale images with (size=...)"
                )
        return examples

    def _whole(self, index):
        found, errors = index, {}
        while True:
            try:
                example = self._read([found])[0]
                break
            except Broken as error:
                errors[found] = error
                self._check(errors)
                found = (found + 1) % len(self)
        with self._lock:
            for i, error in errors.items():
                if i not in self.skipped:
                    self.skipped[i] = found
                    _log.warning(
                        "%s: skipped %s; example %d stands in for it (%d skipped of %d so far)",
                        self._where, error, found, len(self.skipped), len(self),
                    )
        return example

    def _check(self, errors):
        count, limit = len(self.skipped.keys() | errors.keys()), int(self._max_corrupt * len(self))
        if count > limit:
            last = list(errors.values())[-1]
            raise ValueError(
                f"{self._where}: expected at most {limit} of {len(self)} examples to be unreadable, got "
                f"{count}, the last of them {last}; repair or remove it, or raise max_corrupt "
                f"({self._max_corrupt})"
            )


class Folder:
    """The images of a folder in order of name; where it has none, those of its folders, which are classes.

    Values are unsigned bytes; of 16 bits the upper 8 are taken. Transparency is dropped. All are grey,
    `(height, width, 1)`, or all are colour.

    Args:
      folder: path.
      size: side of the squares that they are made into; by default they are taken as they are.
    """

    def __init__(self, folder, size=None):
        self._where, folder, self._size = f"images:{folder}", pathlib.Path(folder), size
        _check_size(self._where, size)
        if not folder.is_dir():
            raise ValueError(f"{self._where}: expected a folder, found none; check the path")
        self.paths, self.labels, self.classes = _pictures(folder), None, ()
        if not self.paths:
            below = {d.name: _pictures(d) for d in sorted(folder.iterdir()) if d.is_dir()}
            self.classes = tuple(name for name, paths in below.items() if paths)
            self.paths = [path for name in self.classes for path in below[name]]
            self.labels = [i for i, name in enumerate(self.classes) for _ in below[name]]
        if len(self.paths) < 2:
            raise ValueError(
                f"{self._where}: expected two images or more, got {len(self.paths)}; files should end in "
                f"{', '.join(IMAGE_ENDINGS)}"
            )
        self._mode = common_mode(self.paths)
        self._first = None

    def __len__(self):
        return len(self.paths)

    def __getitems__(self, indices):
        return [self._example(i) for i in indices]

    def _example(self, index):
        path = self.paths[index]
        try:
            picture = read_picture(path)
        except ERRORS as error:
            reason = " ".join(str(error).split())
            raise Broken(path.name, f"expected an image of 8 or 16 bits a value, got {reason}") from None
        if self._mode == "L" and picture.mode != "L":
            raise ValueError(f"{self._where}: expected grey images, got {path.name} in colour; convert it")
        x = np.asarray(picture.convert(self._mode))
        x = x[..., None] if x.ndim == 2 else x
        if self._size is not None:
            x = squared(x, self._size)
        self._first = self._first or (path.name, x.shape)
        name, (height, width, _) = self._first
        if x.shape[:2] != (height, width):
            raise ValueError(
                f"{self._where}: expected images of one size, got {name} of {height} x {width} and "
                f"{path.name} of {x.shape[0]} x {x.shape[1]}; cut and scale them with (size={height})"
            )
        example = {"x": x}
        return example if self.labels is None else example | {"label": self.labels[index]}


class Records:
    """The records of files, or of parts of them.

    Args:
      where: name of the set, for messages.
      raw: `len` and `__getitems__`, the records as `read_record` takes them.
      parts: `(file, first record, number of records)` of each part of the files, in order.
      read_record: a record -> dict of arrays.
      size: side of the squares that images are made into; by default they are taken as they are.
    """

    def __init__(self, where, raw, parts, read_record=decode, size=None):
        self._where, self._raw, self._parts, self._read_record = where, raw, parts, read_record
        self._size = size
        _check_size(where, size)
        self._ends = np.cumsum([count for _, _, count in parts]).tolist()

    def __len__(self):
        return self._ends[-1]

    def __getitems__(self, indices):
        try:
            records = self._raw.__getitems__(indices)
        except Exception as error:  # of the reader: RuntimeError, and whatever a decoder raises
            raise self._broken(indices, error) from None
        return [self._example(i, record) for i, record in zip(indices, records, strict=True)]

    def _example(self, index, record):
        try:
            arrays = self._read_record(record)
        except Exception as error:
            raise self._broken([index], error) from None
        example = fields(self._where, arrays)
        if self._size is not None and example["x"].ndim == 3:
            example["x"] = squared(example["x"], self._size)
        return example

    def _broken(self, indices, error):
        part = bisect.bisect_right(self._ends, indices[0])
        file, first, count = self._parts[part]
        number = first + indices[0] - (self._ends[part] - count)
        reason = " ".join(str(error).split())[:200]
        return Broken(f"record {number} of {file}", f"{type(error).__name__}: {reason}")


def _check_size(where, size):
    if size is not None:
        check_count(where, size=size)


def _pictures(folder):
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_ENDINGS)
