import numpy as np
import pytest
from PIL import Image

from jaxdiff.data import load

OPTIONS = {
    "npz:a.npz": {"held_out='a'": "held_out to be a number", "seed=1.5": "seed to be an integer"},
    "moons": {"train=2.5": "train to be an integer, got 2.5", "seed='a'": "seed to be an integer, got 'a'"},
    "images:.": {
        "size=-3": "size to be an integer of at least 1, got -3", "size=0": "at least 1, got 0",
        "size=8.5": "at least 1, got 8.5", "size='a'": "at least 1, got 'a'",
        "stream=5": "stream to be True, False or None, got 5", "max_corrupt='a'": "max_corrupt to be a num",
        "num_classes='a'": "num_classes to be an integer", "held_uot=1": "other options .*'held_uot'",
    },
}


@pytest.mark.parametrize("name, option", [(name, option) for name in OPTIONS for option in OPTIONS[name]])
def test_options_of_another_kind(name, option, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("a.npz", x=np.ones((4, 2)))
    for i in range(3):
        Image.new("L", (4, 4)).save(f"{i}.png")
    with pytest.raises(ValueError, match=OPTIONS[name][option]):
        load(f"{name}({option})")


def test_numbers_of_numpy_are_numbers():
    assert len(load("moons", train=np.int64(7), held_out=3, seed=np.uint8(1)).train["x"]) == 7
