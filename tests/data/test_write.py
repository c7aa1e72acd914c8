import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import jaxdiff as jd
from jaxdiff.data import write_tfds

DIGITS = jd.data.load("digits")
X, LABEL = DIGITS.train["x"].astype(np.uint8), DIGITS.train["label"]


def test_tfds_reads_the_digits_back_in_order(tmp_path):
    import tensorflow_datasets as tfds

    path = write_tfds({"x": X[:300], "label": LABEL[:300], "weight": np.linspace(0, 1, 300)}, tmp_path)
    assert path == str(tmp_path / "examples" / "1.0.0")
    builder = tfds.builder_from_directory(path)
    assert builder.info.splits["train"].num_examples == 300
    assert builder.info.features["label"].num_classes == 10
    read = builder.as_data_source("train[10:]").__getitems__(list(range(290)))
    np.testing.assert_array_equal(np.stack([example["x"] for example in read]), X[10:300])
    assert [example["label"] for example in read] == LABEL[10:300].tolist()
    np.testing.assert_allclose(read[0]["weight"], np.linspace(0, 1, 300)[10])
    info = json.loads((tmp_path / "examples/1.0.0/dataset_info.json").read_text())
    assert info["fileFormat"] == "array_record"


def test_images_keep_their_bytes(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (tmp_path / "in" / name).mkdir(parents=True)
    colours = [rng.integers(0, 256, (5, 6, 3), dtype=np.uint8) for _ in range(4)]
    for i, (name, ending) in enumerate([("cat", "png"), ("cat", "jpg"), ("dog", "bmp"), ("dog", "png")]):
        Image.fromarray(colours[i]).save(tmp_path / "in" / name / f"{i}.{ending}")
    Image.fromarray(colours[3][..., 0]).save(tmp_path / "in" / "dog" / "3.png")
    path = write_tfds(tmp_path / "in", tmp_path, name="pets")
    got = jd.data.load(f"tfds:{path}", stream=True, held_out=0.25)
    folder = jd.data.load(f"images:{tmp_path / 'in'}", stream=True, held_out=0.25)
    for one, other in zip(*(s.source.__getitems__([0, 1, 2]) for s in (got, folder)), strict=True):
        np.testing.assert_array_equal(one["x"], other["x"])  # the grey one in colour, too
        assert one["label"] == other["label"]
    assert got.num_classes == 2


def test_splits(tmp_path):
    splits = {"train": {"x": X[:50], "label": LABEL[:50]}, "test": {"x": X[50:70], "label": LABEL[50:70]}}
    got = jd.data.load("tfds:" + write_tfds(splits, tmp_path, name="two", num_classes=12))
    np.testing.assert_array_equal(got.train["x"], X[:50])
    np.testing.assert_array_equal(got.held_out["label"], LABEL[50:70])
    assert got.num_classes == 12 and got.value_range == (0.0, 255.0)


@pytest.mark.parametrize(
    "data, message",
    [
        ({"x": X[:3], "label": LABEL[:2]}, "one size above 0, got {'x': 3, 'label': 2}"),
        ({}, "one size above 0"),
        ({"x": X[:2], "label": np.array([0, -1])}, "integers from 0 on"),
        ({"train": {"x": X[:2]}, "test": {"x": X[:2, :4]}}, "the same arrays in every split"),
    ],
)
def test_what_cannot_be_written(data, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_tfds(data, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("broken", [0, 2])
def test_a_file_that_is_no_image(broken, tmp_path):
    (tmp_path / "in").mkdir()
    for i in range(3):
        Image.fromarray(X[i, ..., 0]).save(tmp_path / "in" / f"{i}.png")
    (tmp_path / "in" / f"{broken}.png").write_bytes(b"no image")
    with pytest.raises(ValueError, match=rf"write_tfds:pets: {broken}.png: expected an image of 8 or 16"):
        write_tfds(tmp_path / "in", tmp_path / "out", name="pets")
    assert not list(tmp_path.glob("out/pets/*"))


def test_a_set_is_not_overwritten(tmp_path):
    write_tfds({"x": X[:2]}, tmp_path)
    with pytest.raises(ValueError, match="expected no set in .*examples/1.0.0, found one"):
        write_tfds({"x": X[:2]}, tmp_path)


def test_the_folder_around_a_set_says_where_the_set_is(tmp_path):
    path = write_tfds({"x": X[:4]}, tmp_path)
    with pytest.raises(ValueError, match=f"got '{tmp_path}': its set is in {path}$"):
        jd.data.load(f"tfds:{tmp_path}")


@pytest.mark.slow
def test_tensorflow_is_never_imported(tmp_path):
    script = (
        "import sys, numpy as np, jaxdiff.data as data\n"
        f"path = data.write_tfds({{'x': np.zeros((20, 4, 4, 1), np.uint8)}}, {str(tmp_path)!r})\n"
        "data.load('tfds:' + path, stream=True).source[3]\n"
        "data.load('array_record:' + path + '/*record*')\n"
        "assert 'tensorflow_datasets' in sys.modules and 'tensorflow' not in sys.modules\n"
        "assert 'flax' not in sys.modules and 'grain' not in sys.modules\n"
    )
    root = pathlib.Path(jd.__file__).parent.parent
    subprocess.run([sys.executable, "-c", script], check=True, env=os.environ | {"PYTHONPATH": str(root)})
