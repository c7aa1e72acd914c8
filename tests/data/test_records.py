import io

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.records import decode, fields

X = np.random.default_rng(0).integers(0, 256, (5, 4, 3), dtype=np.uint8)


def _saved(save):
    stored = io.BytesIO()
    save(stored)
    return stored.getvalue()


def _example(**features):
    from tensorflow_datasets.proto import tf_example_pb2

    example = tf_example_pb2.Example()
    for name, value in features.items():
        kind = "bytes_list" if isinstance(value, bytes) else "int64_list"
        getattr(example.features.feature[name], kind).value.extend(
            [value] if isinstance(value, bytes) else np.ravel(value).tolist()
        )
    return example.SerializeToString()


PNG = _saved(lambda file: Image.fromarray(X).save(file, "PNG"))


@pytest.mark.parametrize(
    "record, label",
    [
        (PNG, None),
        (_saved(lambda file: np.save(file, X)), None),
        (_saved(lambda file: np.savez(file, x=X, label=3)), 3),
        (_example(image=PNG, label=7), 7),
        (_example(image=_saved(lambda file: np.save(file, X)), label=[1, 2]), None),
        (_example(image=PNG, name=b"a.png", label=0), 0),
    ],
)
def test_every_kind_of_record(record, label):
    got = fields("here", decode(record))
    np.testing.assert_array_equal(got["x"], X)
    assert got["x"].dtype == np.uint8 and got.get("label") == label


def test_a_jpeg_is_read_to_its_loss():
    smooth = np.broadcast_to(np.arange(64, dtype=np.uint8)[:, None] * 3, (64, 64))
    record = _saved(lambda file: Image.fromarray(smooth).save(file, "JPEG", quality=95))
    assert np.abs(decode(record)["x"].astype(int) - smooth).max() < 6


def test_vectors_and_grey_images():
    record = _saved(lambda file: np.save(file, np.arange(3.0)))
    np.testing.assert_array_equal(fields("here", decode(record))["x"], [0, 1, 2])
    assert fields("here", {"picture": X[..., 0], "label": 1})["x"].shape == (5, 4, 1)


def test_what_is_no_example():
    with pytest.raises(ValueError, match="pass decode="):
        decode(_example(name=b"text"))
    with pytest.raises(ValueError, match=r"here: expected an array x .* got {'a': 'uint8 \(5, 4\)', 'b'"):
        fields("here", {"a": X[..., 0], "b": X[..., 0]})
    with pytest.raises(ValueError, match="object"):
        fields("here", {"x": [object()]})
    with pytest.raises(ValueError, match="pickle"):
        decode(_saved(lambda file: np.save(file, np.array([{}]), allow_pickle=True)))
