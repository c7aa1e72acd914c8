"""Records of bytes made into examples: images, numpy arrays, or tf.train.Example, without tensorflow."""

import io

import numpy as np

from jaxdiff.data.pictures import MAGIC, read_picture


def decode(record):
    """The arrays in a record, a dict.

    A record is an image file, an npy file (`x`), an npz file, or a serialized tf.train.Example whose bytes
    are one of these.

    Raises:
      ValueError: if it is none of them.
    """
    value = _decode_bytes(record)
    if value is not None:
        return value if isinstance(value, dict) else {"x": value}
    from tensorflow_datasets.proto import tf_example_pb2

    features = tf_example_pb2.Example.FromString(record).features.feature
    arrays = {name: array for name in features if (array := _feature(features[name])) is not None}
    if not arrays:
        raise ValueError(
            "expected an image, an npy or npz file, or a tf.train.Example that holds such, got "
            f"{record[:8]!r}...; pass decode="
        )
    return arrays


def fields(where, arrays):
    """`{"x": ..., "label": int}` out of the named arrays of one example: `x`, `image` or the only other one.

    Raises:
      ValueError: if there is no such array, or it is no vector and no image.
    """
    others = [name for name in arrays if name not in ("label", "id")]
    name = next((n for n in ("x", "image", *others[: len(others) == 1]) if n in arrays), None)
    x = None if name is None else np.asarray(arrays[name])
    if x is None or x.ndim not in (1, 2, 3) or x.dtype.kind not in "fiub" or not x.size:
        got = {n: f"{np.asarray(a).dtype} {np.shape(a)}" for n, a in arrays.items()}
        raise ValueError(
            f"{where}: expected an array x or image of shape (dimension,), (height, width) or (height, "
            f"width, channels), got {got}"
        )
    example = {"x": x[..., None] if x.ndim == 2 else x}
    label = np.asarray(arrays.get("label", 0.0))
    return example | {"label": int(label.item())} if label.size == 1 and label.dtype.kind in "iu" else example


def _decode_bytes(value):
    """An array, a dict of arrays, or None for bytes of another kind."""
    if value.startswith((b"\x93NUMPY", b"PK\x03\x04")):
        saved = np.load(io.BytesIO(value), allow_pickle=False)
        return saved if isinstance(saved, np.ndarray) else {name: saved[name] for name in saved.files}
    return np.asarray(read_picture(value)) if value.startswith(MAGIC) else None


def _feature(feature):
    kind = feature.WhichOneof("kind")
    values = () if kind is None else getattr(feature, kind).value
    if kind == "bytes_list":
        return _decode_bytes(values[0]) if len(values) == 1 else None
    return np.asarray(values) if len(values) else None
