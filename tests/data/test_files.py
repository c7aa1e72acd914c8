import zipfile

import numpy as np
import pytest
from PIL import Image

import jaxdiff.data as data


def _npz(tmp_path, **arrays):
    np.savez(tmp_path / "a.npz", **arrays)
    return f"npz:{tmp_path / 'a.npz'}"


def test_npz_of_bytes_is_split_and_labelled(tmp_path):
    x = np.random.default_rng(0).integers(0, 256, (20, 4, 6), dtype=np.uint8)
    got = data.load(_npz(tmp_path, x=x, label=np.arange(20) % 3))
    assert got.train["x"].shape == (16, 4, 6, 1) and got.held_out["x"].shape == (4, 4, 6, 1)
    assert (got.num_classes, got.levels, got.value_range) == (3, 256, (0.0, 255.0))
    both = np.concatenate([got.train["x"], got.held_out["x"]])[..., 0]
    label = np.concatenate([got.train["label"], got.held_out["label"]])
    origin = [int(np.flatnonzero((x == e).all((1, 2)))[0]) for e in both]
    assert sorted(origin) == list(range(20))
    np.testing.assert_array_equal(label, np.array(origin) % 3)
    np.testing.assert_allclose(got.sigma_data, 0.5, rtol=1e-5)


def test_npz_takes_its_only_entry_as_vectors(tmp_path):
    got = data.load(_npz(tmp_path, points=3 + 2 * np.random.default_rng(0).normal(size=(500, 3))))
    assert got.shape == (3,) and got.value_range is None and got.num_classes == 0
    np.testing.assert_allclose([got.shift, got.scale], [3, 2], rtol=0.1)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"a": np.zeros((3, 2)), "b": np.zeros((3, 2))}, "expected an entry x"),
        ({"x": np.zeros(3)}, r"got float64 of shape \(3,\)"),
        ({"x": np.zeros((3, 2)), "label": np.zeros(2, int)}, "expected label to be 3 integers"),
        ({"x": np.zeros((3, 2)), "label": np.zeros(3)}, "expected label to be 3 integers"),
        ({"x": np.zeros((3, 2)), "label": np.arange(3) - 2}, "from 0 on, got .*, the least -2; number"),
        ({"x": np.zeros((3, 2)), "label": np.arange(3) + 2**31}, r"label to be below 2\^31, got 2147483650"),
        ({"x": np.array([[0.0, 1.0], [np.nan, 0.0]])}, r"nan at index \(1, 0\)"),
        ({"x": np.array([["a", "b"]] * 3)}, "expected numbers"),
        ({"x": np.array([[None, {}]])}, "without pickled objects"),
    ],
)
def test_npz_refuses(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        data.load(_npz(tmp_path, **arrays))


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04 cut short"])
def test_a_file_that_is_no_npz(tmp_path, content):
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected an npz file .*no zip archive, or one that was cut off"):
        data.load(f"npz:{path}")


def test_an_archive_of_other_files(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.txt", "text")
    with pytest.raises(ValueError, match="expected an npz file .*x.txt is no array"):
        data.load(f"npz:{tmp_path / 'a.npz'}")


def test_a_single_npy_array_and_a_missing_file(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match="expected an npz file"):
        data.load(f"npz:{tmp_path / 'a.npy'}")
    with pytest.raises(ValueError, match="found none"):
        data.load(f"npz:{tmp_path / 'b.npz'}")


def _picture(path, size, mode="L", value=7):
    Image.new(mode, size, value).save(path)


def test_images_of_a_folder(tmp_path):
    for i in range(5):
        _picture(tmp_path / f"{i}.png", (6, 4), value=i)
    (tmp_path / "notes.txt").write_text("no image")
    got = data.load(f"images:{tmp_path}")
    assert got.shape == (4, 6, 1) and got.levels == 256
    values = np.concatenate([got.train["x"], got.held_out["x"]])[:, 0, 0, 0]
    assert sorted(values) == [0, 1, 2, 3, 4]


def test_one_colour_image_makes_all_of_them_colour(tmp_path):
    _picture(tmp_path / "a.png", (4, 4))
    _picture(tmp_path / "b.png", (4, 4), "RGB", (1, 2, 3))
    got = data.load(f"images:{tmp_path}")
    rows = {tuple(int(c) for c in e[0, 0]) for e in (*got.train["x"], *got.held_out["x"])}
    assert rows == {(7, 7, 7), (1, 2, 3)}


def test_unequal_images_are_named(tmp_path):
    _picture(tmp_path / "a.png", (4, 4))
    _picture(tmp_path / "b.png", (6, 4))
    with pytest.raises(ValueError, match="a.png of 4 x 4 and b.png of 4 x 6"):
        data.load(f"images:{tmp_path}")


def test_sixteen_bits_keep_their_upper_eight(tmp_path):
    for i in range(3):
        pixels = np.array([[0, 255, 256], [40_000, 65_535, 512]], np.uint16)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    got = data.load(f"images:{tmp_path}").train["x"][0, ..., 0]
    np.testing.assert_array_equal(got, [[0, 0, 1], [156, 255, 2]])


def test_a_file_that_is_no_image_is_named(tmp_path):
    for name in "ab":
        _picture(tmp_path / f"{name}.png", (64, 64), value=3)
    for make in (
        lambda path: path.write_text("no image"),
        lambda path: path.write_bytes((tmp_path / "a.png").read_bytes()[:60]),
        lambda path: path.mkdir(),
        lambda path: _picture(path, (64, 64), "F"),
    ):
        broken = tmp_path / "c.tif"
        make(broken)
        with pytest.raises(ValueError, match="c.tif: expected an image of 8 or 16 bits"):
            data.load(f"images:{tmp_path}")
        broken.rmdir() if broken.is_dir() else broken.unlink()


@pytest.mark.parametrize("options", [{"held_out": 1.0}, {"held_out": 0}, {"held_out": -0.1}, {"seed": -1}])
def test_a_share_or_seed_out_of_range(options, tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((4, 2)))
    with pytest.raises(ValueError, match="a share, in"):
        data.load(f"npz:{tmp_path / 'a.npz'}", **options)
    assert len(data.load(f"npz:{tmp_path / 'a.npz'}", held_out=0.99).train["x"]) == 1


def test_images_of_two_values_stay_such(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(40).reshape(10, 2, 2) % 3 == 0)
    got = data.load(f"npz:{tmp_path / 'a.npz'}")
    assert got.levels == 2 and got.value_range == (0.0, 1.0)
    np.testing.assert_array_equal(got.from_model(got.to_model(np.array([-1.0, 0.4, 0.6, 3.0]))), [0, 0, 1, 1])


def test_examples_without_values(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.ones((4, 0)))
    with pytest.raises(ValueError, match="expected numbers of shape"):
        data.load(f"npz:{tmp_path / 'a.npz'}")


def test_folders_without_images(tmp_path):
    with pytest.raises(ValueError, match="two images or more, got 0"):
        data.load(f"images:{tmp_path}")
    with pytest.raises(ValueError, match="expected a folder"):
        data.load(f"images:{tmp_path / 'b'}")


def test_unknown_names_list_the_near_ones():
    with pytest.raises(ValueError, match="unknown data set 'moons:3'"):
        data.load("moons:3")
    with pytest.raises(ValueError, match="did you mean moons"):
        data.load("moon")
    with pytest.raises(ValueError, match="npz:PATH"):
        data.load("npz")
    with pytest.raises(ValueError, match="unknown data set 'image'; did you mean images:FOLDER"):
        data.load("image:photos/of/last/summer")
