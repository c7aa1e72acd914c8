import glob
import logging
import pathlib

import numpy as np
import pytest
from PIL import Image

import jaxdiff as jd
from jaxdiff.data import load, streams, write_tfds

DIGITS = load("digits")
X, LABEL = DIGITS.train["x"].astype(np.uint8), DIGITS.train["label"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return write_tfds({"x": X, "label": LABEL}, tmp_path_factory.mktemp("tfds"), name="digits")


def _numbers(x):
    """The examples' numbers in `X`."""
    rows = {row.tobytes(): i for i, row in enumerate(X)}
    return [rows[np.asarray(row, np.uint8).tobytes()] for row in x]


def test_streamed_and_loaded_examples_are_the_same(directory, monkeypatch):
    loaded = load(f"tfds:{directory}")
    assert loaded.source is None and loaded.train["x"].shape == (958, 8, 8, 1)
    monkeypatch.setattr(streams, "MEMORY_BYTES", 1000)
    streamed = load(f"tfds:{directory}")
    assert len(streamed.source) == 958 and streamed.num_classes == loaded.num_classes == 10
    got = streamed.source.__getitems__(list(range(958)))
    np.testing.assert_array_equal(np.stack([e["x"] for e in got]), loaded.train["x"])
    np.testing.assert_array_equal([e["label"] for e in got], loaded.train["label"])
    assert got[0]["x"].dtype == np.uint8
    np.testing.assert_array_equal(streamed.held_out["x"], loaded.held_out["x"])
    np.testing.assert_allclose([streamed.shift, streamed.scale], [loaded.shift, loaded.scale], rtol=1e-6)
    assert sorted(_numbers(np.concatenate([loaded.train["x"], loaded.held_out["x"]]))) == list(range(1197))


def test_a_sample_measures_a_stream(directory, monkeypatch):
    monkeypatch.setattr(streams, "SAMPLE", 100)
    data = load(f"tfds:{directory}", stream=True)
    assert len(data.source) == 1097 and len(data.train["x"]) == len(data.held_out["x"]) == 100
    assert not set(_numbers(data.held_out["x"])) & set(_numbers(data.train["x"]))
    assert data.levels == 256 and abs(data.sigma_data - 0.5) < 1e-6
    other = load(f"tfds:{directory}", stream=True, seed=1)
    assert _numbers(other.held_out["x"]) != _numbers(data.held_out["x"])
    monkeypatch.setattr(streams, "SAMPLE_BYTES", 50 * 4 * data.train["x"][0].size)
    few = load(f"tfds:{directory}", stream=True)
    assert len(few.source) == 1147 and len(few.train["x"]) == len(few.held_out["x"]) == 50


def test_slices_of_a_split(directory):
    data = load(f"tfds:{directory}:train[:100]", stream=True, held_out=0.1)
    assert sorted(_numbers(np.concatenate([data.train["x"], data.held_out["x"]]))) == list(range(100))


def test_array_record_files_without_metadata(tmp_path):
    from array_record.python.array_record_module import ArrayRecordWriter

    for part in range(2):
        writer = ArrayRecordWriter(str(tmp_path / f"part-{part}.array_record"), "group_size:1")
        for x in X[30 * part : 30 * part + 30]:
            stored = tmp_path / "x.png"
            Image.fromarray(x[..., 0]).save(stored)
            writer.write(stored.read_bytes())
        writer.close()
    pattern = f"array_record:{tmp_path}/part-*"
    data = load(pattern)
    assert sorted(_numbers(np.concatenate([data.train["x"], data.held_out["x"]]))) == list(range(60))
    assert data.num_classes == 0 and data.name == pattern
    first = load(pattern, stream=True, decode=lambda record: {"x": np.full(2, len(record)), "label": 4})
    assert first.num_classes == 5 and first.source[0]["x"].shape == (2,)


def _flip(path, position):
    stored = bytearray(path.read_bytes())
    stored[position] ^= 16
    path.write_bytes(stored)


def test_a_flipped_byte_costs_one_record_which_is_told(tmp_path, caplog):
    path = write_tfds({"x": X[:300], "label": LABEL[:300]}, tmp_path)
    file = pathlib.Path(glob.glob(f"{path}/*array_record*")[0])
    _flip(file, 9000)
    options = {"stream": True, "held_out": 0.01, "max_corrupt": 0.01}
    with caplog.at_level(logging.WARNING):
        data = load(f"tfds:{path}", **options)
        got = data.source.__getitems__(list(range(297)))
    (number, instead), = data.source.skipped.items()
    assert instead == number + 1 and _numbers([got[number]["x"]]) == _numbers([got[instead]["x"]])
    assert len(set(_numbers([e["x"] for e in got]))) == 296
    (message,) = {record.getMessage() for record in caplog.records if "skipped" in record.getMessage()}
    assert "skipped record" in message and str(file) in message and "hash mismatch" in message
    lost = int(message.split("skipped record ")[1].split()[0])
    assert lost not in _numbers(e["x"] for e in got) and 0 < lost < 300
    loaded = load(f"tfds:{path}", max_corrupt=0.01)  # in memory it is left out
    assert len(loaded.train["x"]) + len(loaded.held_out["x"]) == 299
    with pytest.raises(ValueError, match=f"at most 0 of 300 .*record {lost} of {file}: RuntimeError"):
        load(f"tfds:{path}", max_corrupt=0)


def test_a_truncated_file_is_named(tmp_path):
    path = pathlib.Path(write_tfds({"x": X[:1000], "label": LABEL[:1000]}, tmp_path))
    (file,) = path.glob("*array_record*")
    file.write_bytes(file.read_bytes()[:50_000])
    with pytest.raises(ValueError, match=f"expected array_record files, got {file}: .*(Riegeli|64KB)"):
        load(f"array_record:{path}/*array_record*")
    with pytest.raises(ValueError, match=f"record .{{1,2}} of {file}: RuntimeError.*(Riegeli|64KB)"):
        load(f"tfds:{path}")


def test_a_broken_picture_in_a_stream(tmp_path):
    for i in range(20):
        Image.fromarray(X[i, ..., 0]).save(tmp_path / f"{i:02}.png")
    (tmp_path / "07.png").write_bytes(b"no image")
    data = load(f"images:{tmp_path}", stream=True, held_out=0.05, max_corrupt=0.1)
    train = _numbers(e["x"] for e in data.source.__getitems__(list(range(19))))
    assert 7 not in train and train.count(8) == 2
    with pytest.raises(ValueError, match="07.png: expected an image"):
        load(f"images:{tmp_path}", stream=True, held_out=0.05)


def test_an_epoch_of_a_stream_over_processes(directory):
    from jaxdiff.training.feed import make_feed

    data = load(f"tfds:{directory}", stream=True, held_out=0.1)
    size, steps = len(data.source), -(-len(data.source) // 48)
    feeds = [make_feed(data.examples(), 48, 0, 10, i, 3) for i in range(3)]
    parts = [feed.items(0, steps) for feed in feeds]
    for feed in feeds:
        feed.close()
    assert parts[0]["x"].dtype == np.uint8 and parts[0]["label"].dtype == np.int32
    x = np.concatenate([part["x"] for part in parts], axis=1).reshape(-1, 8, 8, 1)[:size]
    label = np.concatenate([part["label"] for part in parts], axis=1).reshape(-1)[:size]
    seen = _numbers(x)
    assert sorted(seen) == sorted(set(range(1197)) - set(_numbers(data.held_out["x"])))
    np.testing.assert_array_equal(label, LABEL[seen])
    batch = feeds[0].gather({}, {name: array[0] for name, array in parts[0].items()})
    np.testing.assert_allclose(batch["x"], data.to_model(parts[0]["x"][0].astype(np.float32)), rtol=1e-5)


@pytest.mark.parametrize(
    "name, message",
    [
        ("tfds:nosuchset", "a set of tensorflow-datasets, or a directory of one, got 'nosuchset'"),
        ("tfds:mnist", "expected a prepared set in .*tfds build mnist --file_format=array_record"),
        ("tfds:{}:holdout", r"splits: train\), got 'holdout'"),
        ("array_record:{}/nothing*", "expected files, found none"),
        ("array_record:{}/*.json", "expected array_record files, got .*json"),
    ],
)
def test_names_that_mean_nothing(name, message, directory, tmp_path, monkeypatch):
    options = {"data_dir": tmp_path} if name.startswith("tfds") else {}
    with pytest.raises(ValueError, match=message):
        load(name.format(directory), **options)


def test_options_out_of_range(directory):
    with pytest.raises(ValueError, match="a share, in"):
        load(f"tfds:{directory}", held_out=1)
    with pytest.raises(ValueError, match=r"max_corrupt, a share, in \[0, 1\)"):
        load(f"tfds:{directory}", max_corrupt=-0.1)
    with pytest.raises(ValueError, match="labels below num_classes=3, got 9"):
        load(f"array_record:{directory}/*array_record*", num_classes=3)


def test_names_hold_in_another_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("here", "mnist"):
        (tmp_path / folder).mkdir()
    (tmp_path / "here" / "dataset_info.json").touch()  # what makes a folder a set
    assert jd.data.canonical("npz:a.npz") == f"npz:{tmp_path}/a.npz"
    assert jd.data.canonical("tfds:here:train") == f"tfds:{tmp_path}/here:train"
    assert jd.data.canonical("tfds:here(seed = 1)") == f"tfds:{tmp_path}/here(seed = 1)"
    moved = f"tfds:mnist:test(seed=1, data_dir='{tmp_path}/here')"
    assert jd.data.canonical("tfds:mnist:test(seed=1, data_dir='here')") == moved
    away = "tfds:mnist(data_dir='~')", "tfds:mnist(data_dir='gs://a/b')"
    for name in ("tfds:mnist:train", "tfds:mnist:3.0.1", "tfds:", "digits", "npz:", moved, *away):
        assert jd.data.canonical(name) == name


def test_images_of_unequal_size_are_cut_and_scaled(tmp_path):
    ramp = np.broadcast_to(np.arange(60, dtype=np.uint8)[None], (20, 60))  # 20 high: the middle is 20 to 39
    folder = tmp_path / "in"
    folder.mkdir()
    Image.fromarray(ramp).save(folder / "a.png")
    Image.fromarray(np.full((30, 10), 7, np.uint8)).save(folder / "b.png")
    data = load(f"images:{folder}(size=10)", held_out=0.5, stream=True)
    one, two = sorted([data.source[0]["x"], data.held_out["x"][0]], key=np.std)
    assert one.shape == two.shape == (10, 10, 1) and np.all(one == 7)
    np.testing.assert_allclose(two[5, 1:-1, 0], 20.5 + 2 * np.arange(1, 9), atol=1)
    path = write_tfds({"x": np.stack([ramp, ramp])[..., None]}, tmp_path)
    np.testing.assert_array_equal(load(f"tfds:{path}(size=10)").train["x"][0], two)
    with pytest.raises(ValueError, match=r"a.png of 20 x 60 and b.png of 30 x 10; cut and scale .*size=20"):
        load(f"images:{folder}")


def test_options_may_stand_behind_the_name(directory, tmp_path):
    data = load(f"tfds:{directory}:train[:80](stream=True, held_out=0.25)", seed=3)
    assert len(data.source) == 60 and len(data.held_out["x"]) == 20
    assert load("moons(train=30)").train["x"].shape == (30, 2)
    name = f"images:{tmp_path}/photos (2020)"
    with pytest.raises(ValueError, match="expected a folder, found none"):
        load(name)
    with pytest.raises(ValueError, match="other options for moons: .*'size'"):
        load("moons(size=3)")
    with pytest.raises(ValueError, match="quote it in the shell"):
        load("moons(train=many)")
    assert jd.data.canonical(f"tfds:{directory}(seed=1)") == f"tfds:{directory}(seed=1)"
