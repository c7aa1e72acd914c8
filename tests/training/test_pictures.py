import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jaxdiff.training import save_picture


@pytest.mark.parametrize(
    "samples", [np.random.default_rng(0).uniform(size=(7, 4, 5, c)) for c in (1, 3)] + [np.ones((50, 2))]
)
def test_pictures_of_images_and_of_vectors(tmp_path, samples):
    path = tmp_path / "picture.png"
    save_picture(path, samples, np.arange(len(samples)) % 3, "a title")
    assert Image.open(path).size[0] > 500


def test_a_picture_shows_each_image_in_its_place(tmp_path):
    samples = np.zeros((4, 2, 2, 1))
    samples[1] = 1.0  # top right
    save_picture(tmp_path / "p.png", samples, value_range=(0.0, 1.0))
    pixels = np.asarray(Image.open(tmp_path / "p.png").convert("L"), float)
    height, width = pixels.shape
    quarters = {(i, j): pixels[int((0.3 + 0.4 * i) * height), int((0.3 + 0.4 * j) * width)]
                for i in (0, 1) for j in (0, 1)}
    assert quarters[0, 1] > 200 and max(v for k, v in quarters.items() if k != (0, 1)) < 50


def test_matplotlib_comes_with_the_first_picture_only():
    code = "import sys, jaxdiff.training; sys.exit('matplotlib' in sys.modules)"
    environment = {"PYTHONPATH": ":".join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
