import logging

import numpy as np
import pytest
from PIL import Image

from jaxdiff.data.sources import Broken, Folder, Guarded


class Numbers:
    """Examples 0, 1, ..., some of which are broken."""

    def __init__(self, size, broken=()):
        self.size, self.broken, self.reads = size, set(broken), 0

    def __len__(self):
        return self.size

    def __getitems__(self, indices):
        self.reads += 1
        for i in indices:
            if i in self.broken:
                raise Broken(f"record {i}", "bad sum")
        return [{"x": np.array([i])} for i in indices]


def _numbers(source, indices):
    return [int(example["x"][0]) for example in source.__getitems__(indices)]


def test_the_next_whole_example_stands_in(caplog):
    source = Guarded("here", Numbers(100, [3, 4, 99]), max_corrupt=0.05)
    with caplog.at_level(logging.WARNING):
        assert _numbers(source, [1, 3, 99, 7]) == [1, 5, 0, 7]
    assert source.skipped == {3: 5, 4: 5, 99: 0}
    assert [record.getMessage() for record in caplog.records][0] == (
        "here: skipped record 3: bad sum; example 5 stands in for it (1 skipped of 100 so far)"
    )
    caplog.clear()
    reads = source._source.reads
    assert _numbers(source, [3, 4]) == [5, 5] and source._source.reads == reads + 1
    assert not caplog.records  # each is told once


def test_another_order_of_reading_finds_the_same_examples():
    broken = [0, 1, 5, 19]
    one, two = (Guarded("here", Numbers(20, broken), max_corrupt=0.5) for _ in range(2))
    everything = _numbers(one, list(range(20)))
    assert [_numbers(two, [i])[0] for i in reversed(range(20))] == everything[::-1]
    assert everything[:2] == [2, 2] and everything[19] == 2


def test_the_one_that_stands_in_is_of_the_same_part():
    source = Guarded("here", Numbers(10, [6]), indices=[8, 6, 2], max_corrupt=0.5)
    assert len(source) == 3 and _numbers(source, [0, 1, 2]) == [8, 2, 2]


def test_too_many_are_an_error_that_names_the_last():
    source = Guarded("here", Numbers(100, [3, 4, 50]), max_corrupt=0.02)
    _numbers(source, [3])
    with pytest.raises(ValueError, match="at most 2 of 100 .* got 3, .*record 50: bad sum;.*max_corrupt"):
        _numbers(source, [50])
    with pytest.raises(ValueError, match="at most 0 of 99"):
        _numbers(Guarded("here", Numbers(99, [3])), [3])
    with pytest.raises(ValueError, match=r"in \[0, 1\), got 1"):
        Guarded("here", Numbers(3), max_corrupt=1)


def test_examples_of_two_shapes():
    class Growing(Numbers):
        def __getitems__(self, indices):
            return [{"x": np.zeros(1 + i)} for i in indices]

    with pytest.raises(ValueError, match=r"one shape, got \(3,\) at 2 and \(1,\)"):
        Guarded("here", Growing(5)).__getitems__([0, 2])


def _picture(path, value, size=(6, 4), mode="L"):
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size, value).save(path)


def test_folders_in_a_folder_are_classes(tmp_path):
    for name, value in (("dog", 5), ("cat", 9)):
        for i in range(2):
            _picture(tmp_path / name / f"{i}.png", value + i)
    (tmp_path / "empty").mkdir()
    folder = Folder(tmp_path)
    assert folder.classes == ("cat", "dog") and len(folder) == 4
    got = folder.__getitems__([3, 0])
    assert [(e["x"][0, 0, 0], e["label"]) for e in got] == [(6, 1), (9, 0)]
    assert got[0]["x"].shape == (4, 6, 1) and got[0]["x"].dtype == np.uint8


def test_a_broken_picture_is_broken_and_an_odd_one_wrong(tmp_path):
    for i in range(3):
        _picture(tmp_path / f"{i}.png", i, (64, 64))
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    folder = Folder(tmp_path)
    with pytest.raises(Broken, match="1.png: expected an image of 8 or 16 bits"):
        folder.__getitems__([0, 1])
    _picture(tmp_path / "2.png", 1, (8, 8))
    with pytest.raises(ValueError, match="0.png of 64 x 64 and 2.png of 8 x 8"):
        folder.__getitems__([2])
    _picture(tmp_path / "2.png", (1, 2, 3), (64, 64), "RGB")
    with pytest.raises(ValueError, match="grey images, got 2.png in colour"):
        folder.__getitems__([2])
    assert Folder(tmp_path).__getitems__([0])[0]["x"].shape == (64, 64, 3)
