"""Data of one's own in an npz file, and data sets out of arrays."""

import zipfile
import zlib

import numpy as np

from jaxdiff.data.arrays import Dataset, check_finite, image_scale


def npz(path, held_out=0.2, seed=0):
    """Examples out of an npz file: its entry `x`, or its only entry; labels in `label`.

    Arrays `(n, dimension)` are vectors, `(n, height, width)` grey images, `(n, height, width,
    channels)` images. Images of unsigned bytes have the range 0 to 255, of booleans two values; other
    images the range of their values. Pickled objects are never loaded.

    Args:
      path: of the file.
      held_out: share that is held out, drawn at random.
      seed: of that draw.

    Raises:
      ValueError: no npz file, no such entry, wrong shape, labels that do not fit, NaN, a share or a
        seed out of range.
    """
    arrays = _read_npz(path)
    where = f"npz:{path}"
    others = [name for name in arrays if name != "label"]
    name = "x" if "x" in arrays else others[0] if len(others) == 1 else None
    if name is None:
        raise ValueError(f"{where}: expected an entry x, got {sorted(arrays)}; save it as x=...")
    x = arrays[name]
    if x.ndim not in (2, 3, 4) or x.dtype.kind not in "fiub" or len(x) < 2 or not x.size:
        raise ValueError(
            f"{where}: expected numbers of shape (n, dimension), (n, height, width) or "
            f"(n, height, width, channels) with n >= 2, got {x.dtype} of shape {x.shape}"
        )
    label = arrays.get("label")
    check_share(where, held_out, seed)
    return from_arrays(where, x, label, held_out, seed)


def _read_npz(path):
    try:
        with open(path, "rb") as file:
            if not zipfile.is_zipfile(file):
                raise ValueError("no zip archive, or one that was cut off")
        with np.load(path, allow_pickle=False) as saved:
            arrays = {name: saved[name] for name in saved.files}
        for name, array in arrays.items():
            if not isinstance(array, np.ndarray):
                raise ValueError(f"{name} is no array")
        return arrays
    except FileNotFoundError:
        raise ValueError(f"npz:{path}: expected a file, found none; check the path") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"npz:{path}: expected an npz file without pickled objects, got something else "
            f"({error}); write it with np.savez(path, x=..., label=...)"
        ) from None


def check_share(where, held_out, seed):
    """Raises ValueError for a share or a seed out of range."""
    if not 0 < held_out < 1 or seed < 0:
        raise ValueError(
            f"{where}: expected held_out, a share, in (0, 1) and seed at least 0, got {held_out} and {seed}"
        )


def from_arrays(where, x, label, held_out, seed, *, num_classes=0, given=None, source=None):
    """The `Dataset` of arrays.

    Args:
      where: its name.
      x: `(n, dimension)`, `(n, height, width)` or `(n, height, width, channels)`.
      label: `(n,)` integers or None.
      held_out, seed: share that is held out, drawn at random by the seed.
      num_classes: of the labels; 0 for one more than the largest.
      given: arrays `x` and `label` that are held out in place of a share.
      source: of the set that these arrays are a sample of.
    """
    picture, levels = x.ndim > 2, {np.dtype(np.uint8): 256, np.dtype(bool): 2}.get(x.dtype)
    parts = [_part(where, x, label)]
    if given is None:
        order = np.random.default_rng(seed).permutation(len(x))
        cut = min(max(1, round(held_out * len(x))), len(x) - 1)
        parts = [_rows(parts[0], np.sort(index)) for index in (order[cut:], order[:cut])]
    else:
        parts.append(_part(where, given["x"], given.get("label")))
    labels = [part["label"] for part in parts if "label" in part]
    least = 1 + max((int(part.max()) for part in labels), default=-1)
    if num_classes and least > num_classes:
        raise ValueError(f"{where}: expected labels below num_classes={num_classes}, got {least - 1}")
    train = parts[0]["x"]
    low, high = min(float(p["x"].min()) for p in parts), max(float(p["x"].max()) for p in parts)
    shift, scale = image_scale(train) if picture else _vector_scale(train)
    return Dataset(
        name=where,
        train=parts[0],
        held_out=parts[1],
        num_classes=num_classes or least if labels else 0,
        value_range=((0.0, levels - 1.0) if levels else (low, high)) if picture else None,
        levels=levels if picture else None,
        shift=shift,
        scale=scale,
        source=source,
    )


def _part(where, x, label):
    x = check_finite(f"{where} x", x.astype(np.float32))
    part = {"x": x[..., None] if x.ndim == 3 else x}
    return part if label is None else part | {"label": _check_labels(where, np.asarray(label), len(x))}


def _rows(arrays, index):
    return {name: array[index] for name, array in arrays.items()}


def _vector_scale(x):
    """Mean 0 and standard deviation 1, over all axes together."""
    spread = float(np.std(x, dtype=np.float64))
    return float(np.mean(x, dtype=np.float64)), spread if spread > 0 else 1.0


def _check_labels(where, label, size):
    if label.shape == (size,) and label.dtype.kind in "iu" and label.max() >= 2**31:
        raise ValueError(
            f"{where}: expected label to be below 2^31, got {label.max()}; number the classes 0, 1, ..."
        )
    if label.shape != (size,) or label.dtype.kind not in "iu" or label.min() < 0:
        least = f", the least {label.min()}" if label.size and label.dtype.kind == "i" else ""
        raise ValueError(
            f"{where}: expected label to be {size} integers from 0 on, got {label.dtype} of shape "
            f"{label.shape}{least}; number the classes 0, 1, ..."
        )
    return label.astype(np.int32)
