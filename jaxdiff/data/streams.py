"""Data sets out of sources: loaded where they fit into memory, streamed where they do not."""

import glob
import os
import pathlib
import re

import numpy as np

from jaxdiff.data.files import check_share, from_arrays
from jaxdiff.data.records import decode as decode_record
from jaxdiff.data.sources import Folder, Guarded, Records

MEMORY_BYTES = 2**28  # sets up to this size, as they are stored, are loaded
SAMPLE = 10_000  # examples of a streamed set that are loaded, to measure it and compare samples with,
SAMPLE_BYTES = 2**31  # which take so much memory at most, in float32


def images(folder, *, num_classes=0, size=None, **options):
    """Every image in a folder, grey or colour as the files are, in order of name.

    Where the folder holds no image, its folders are the classes, in order of name. Values are 0 to 255; of
    16 bits the upper 8 are taken. Transparency is dropped.

    Args:
      folder: path.
      num_classes: of the labels; by default the number of folders.
      size: side of the squares that images are cut to, scaled; by default they are taken as they are.
      **options: of `dataset`.

    Raises:
      ValueError: no such folder, fewer than two images, images of unequal size, more unreadable files than
        `max_corrupt`, and as of `dataset`.
    """
    source = Folder(folder, size)
    return dataset(f"images:{folder}", source, num_classes=num_classes or len(source.classes), **options)


def array_record(pattern, *, decode=None, num_classes=0, size=None, **options):
    """The records of array_record files whose names match, in order of name.

    A record is what `records.decode` reads: an image file, an npy or npz file, or a tf.train.Example of such.
    Beside a TFDS `features.json` records are read by it.

    Args:
      pattern: of files, such as `data/train-*.array_record`.
      decode: a record's bytes -> dict of arrays.
      num_classes: where records have a `label`; by default one more than the largest of a sample.
      size: as of `images`.
      **options: of `dataset`.

    Raises:
      ValueError: no such file, one that is no array_record file, and as of `dataset`.
    """
    from array_record.python.array_record_data_source import ArrayRecordDataSource
    from array_record.python.array_record_module import ArrayRecordReader

    where, paths = f"array_record:{pattern}", sorted(glob.glob(str(pattern)))
    if not paths:
        raise ValueError(f"{where}: expected files, found none; check the pattern")
    parts = []
    for path in paths:
        try:
            reader = ArrayRecordReader(path)
            parts.append((path, 0, reader.num_records()))
            reader.close()
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(f"{where}: expected array_record files, got {path}: {error}") from None
    if sum(count for _, _, count in parts) < 2:
        raise ValueError(f"{where}: expected two records or more, got {sum(c for _, _, c in parts)}")
    raw = ArrayRecordDataSource([f"{path}[0:{count}]" for path, _, count in parts])
    read = decode or _features_beside(paths[0]) or decode_record
    return dataset(where, Records(where, raw, parts, read, size), num_classes=num_classes, **options)


def tfds(name, *, data_dir=None, size=None, **options):
    """A set of tensorflow-datasets in array_record format, through `tfds.data_source`; no tensorflow is used.

    Args:
      name: `NAME` or `NAME:SPLIT`, such as `mnist` or `cifar10:train[:90%]`; NAME may be a directory that
        holds a `dataset_info.json`. SPLIT is `train` by default; beside it the split `test`, or
        `validation`, is held out, where there is one; otherwise a share is.
      data_dir: where TFDS keeps its sets.
      size: as of `images`.
      **options: of `dataset`.

    Raises:
      ValueError: for a set that is not prepared, a split that it does not have, and as of `dataset`.
    """
    where = f"tfds:{name}"
    builder, split = _builder(where, name, data_dir)
    label = dict(builder.info.features.items()).get("label")
    held_out = [s for s in ("test", "validation") if s in builder.info.splits and split == "train"]
    return dataset(
        where, _split(where, builder, split, size),
        num_classes=options.pop("num_classes", 0) or getattr(label, "num_classes", None) or 0,
        held_out_source=_split(where, builder, held_out[0], size) if held_out else None, **options,
    )


def dataset(where, source, *, held_out=0.2, seed=0, num_classes=0, held_out_source=None, stream=None,
            max_corrupt=0.01):
    """The `Dataset` of a source.

    Args:
      where: its name.
      source: a `sources.Source`.
      held_out: share that is held out, drawn at random; of a streamed set 10,000 examples or 2 GiB at most.
      seed: of that draw.
      num_classes: where examples have a `label`; 0 for one more than the largest that is seen.
      held_out_source: what is held out in place of a share.
      stream: whether examples are read when they are needed; by default where they take more than 256 MiB.
      max_corrupt: share of examples that may be unreadable, in [0, 1): they are logged and left out, or,
        in a stream, replaced by the next one.

    Raises:
      ValueError: more unreadable examples than that, examples of unequal shapes, labels that do not fit,
        NaN, an option out of range.
    """
    check_share(where, held_out, seed)
    if stream is not None and not isinstance(stream, bool):
        raise ValueError(f"{where}: expected stream to be True, False or None, got {stream!r}")
    if len(source) < 2:
        raise ValueError(f"{where}: expected two examples or more, got {len(source)}")
    whole = Guarded(where, source, max_corrupt=max_corrupt)
    if stream is None:
        stream = whole[0]["x"].nbytes * len(source) > MEMORY_BYTES
    most = max(1, min(SAMPLE, SAMPLE_BYTES // (4 * whole[0]["x"].size)))
    given, rng = None, np.random.default_rng([seed, 1])
    if held_out_source is not None:
        test = Guarded(where, held_out_source, max_corrupt=max_corrupt)
        drawn = rng.permutation(len(test))[: most if stream else None]
        given = _read(test, np.sort(drawn))
    if not stream:
        arrays = _read(whole, np.arange(len(whole)))
        x, label = arrays["x"], arrays.get("label")
        return from_arrays(where, x, label, held_out, seed, num_classes=num_classes, given=given)
    order = np.random.default_rng(seed).permutation(len(source))
    cut = 0 if given else max(1, min(round(held_out * len(source)), most, len(source) - 1))
    train = Guarded(where, source, np.sort(order[cut:]), max_corrupt)
    if given is None:
        given = _read(Guarded(where, source, np.sort(order[:cut]), max_corrupt), np.arange(cut))
    sample = _read(train, np.sort(rng.choice(len(train), min(len(train), most), replace=False)))
    return from_arrays(
        where, sample["x"], sample.get("label"), held_out, seed, num_classes=num_classes, given=given,
        source=train,
    )


def _read(source, indices, chunk=1000):
    """Those of the examples that can be read, as a dict of arrays."""
    examples = []
    for first in range(0, len(indices), chunk):
        examples += source.__getitems__(indices[first : first + chunk].tolist())
    kept = [e for i, e in zip(indices.tolist(), examples, strict=True) if i not in source.skipped]
    return {name: np.stack([example[name] for example in kept]) for name in kept[0]}


def place(name):
    """`(NAME, SPLIT or None, whether NAME is the directory of a prepared set)` of a `NAME[:SPLIT]`."""
    rest, split = re.fullmatch(r"(.+?)(?::([a-zA-Z_].*))?", str(name)).groups()  # mnist:3.0.1 is a version
    return rest, split, os.path.isfile(os.path.join(rest, "dataset_info.json"))


def _builder(where, name, data_dir):
    """The prepared builder that `NAME[:SPLIT]` means, and the split."""
    import tensorflow_datasets as tfds

    rest, split, here = place(name)
    split = split or "train"
    try:
        if here:
            return tfds.builder_from_directory(rest), split
        builder = tfds.builder(rest, data_dir=data_dir, file_format="array_record")
    except Exception as error:
        inside = glob.glob(os.path.join(glob.escape(rest), "*", "*", "dataset_info.json"))  # NAME/VERSION
        reason = f"its set is in {os.path.dirname(min(inside))}" if inside else str(error).splitlines()[0]
        raise ValueError(
            f"{where}: expected a set of tensorflow-datasets, or a directory of one, got {rest!r}: {reason}"
        ) from None
    if not builder.is_prepared():
        raise ValueError(
            f"{where}: expected a prepared set in {builder.data_dir}, found none; prepare it once where "
            f"tensorflow is installed, by `tfds build {rest} --file_format=array_record`, or write your own "
            "by jaxdiff.data.write_tfds"
        )
    return builder, split


def _split(where, builder, split, size):
    try:
        view = builder.as_data_source(split)
        parts = [(i.filename, i.skip, i.take) for i in builder.info.splits[split].file_instructions]
    except Exception as error:
        known = ", ".join(builder.info.splits) or "none"
        raise ValueError(
            f"{where}: expected a split in array_record format (splits: {known}), got {split!r}: "
            f"{str(error).splitlines()[0]}"
        ) from None
    return Records(where, view.data_source, parts, builder.info.features.deserialize_example_np, size)


def _features_beside(path):
    """How the records of a TFDS directory are read; None elsewhere."""
    folder = pathlib.Path(path).parent
    if not (folder / "features.json").is_file():
        return None
    from tensorflow_datasets import features

    return features.FeaturesDict.from_config(os.fspath(folder)).deserialize_example_np
