"""Two-dimensional toys: curves and clusters whose samples can be looked at."""

import numpy as np

from jaxdiff.data.arrays import Dataset

TRAIN, HELD_OUT = 20_000, 5_000


def moons(rng, n):
    """Two interleaved half circles with a thickness of 0.08 radii; labels are the moons."""
    label = rng.integers(0, 2, n)
    angle = rng.uniform(0.0, np.pi, n)
    x = np.stack([np.cos(angle), np.sin(angle)], -1)
    x = np.where(label[:, None] == 0, x, [1.0, 0.5] - x)
    return (x - [0.5, 0.25]) + 0.08 * rng.standard_normal((n, 2)), label


def checkerboard(rng, n):
    """Uniform on the eight black squares of a 4 x 4 board of side 4; no labels."""
    square = rng.integers(0, 8, n)
    row, column = square // 2, 2 * (square % 2) + (square // 2) % 2
    return np.stack([column, row], -1) - 2.0 + rng.uniform(0.0, 1.0, (n, 2)), None


def eight_gaussians(rng, n):
    """Eight Gaussians of deviation 0.1 on the unit circle; labels are the Gaussians."""
    label = rng.integers(0, 8, n)
    angle = label * (np.pi / 4)
    centre = np.stack([np.cos(angle), np.sin(angle)], -1)
    return centre + 0.1 * rng.standard_normal((n, 2)), label


def spirals(rng, n):
    """Two arms of one and a half turns, radius growing from 0 to 1; labels are the arms."""
    label = rng.integers(0, 2, n)
    radius = np.sqrt(rng.uniform(0.0, 1.0, n))
    angle = 3.0 * np.pi * radius + np.pi * label
    x = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    return x + 0.02 * rng.standard_normal((n, 2)), label


def swiss_roll(rng, n):
    """One spiral of one and a half turns, radius growing from 1/3 to 1; no labels."""
    turn = 1.5 * np.pi * (1.0 + 2.0 * rng.uniform(0.0, 1.0, n))
    x = turn[:, None] * np.stack([np.cos(turn), np.sin(turn)], -1) / (4.5 * np.pi)
    return x + 0.02 * rng.standard_normal((n, 2)), None


TOYS = {f.__name__: f for f in (moons, checkerboard, eight_gaussians, spirals, swiss_roll)}


def toy(name, train=TRAIN, held_out=HELD_OUT, seed=0):
    """A toy of `TOYS`, shape (2,), centred and scaled to a standard deviation of 1 over both axes.

    The constants come from one large fixed draw, so they do not depend on the sizes or the seed.
    Models see the points as they are.

    Args:
      name: one of `TOYS`.
      train, held_out: points of each split.
      seed: of the points; the two splits are independent draws.

    Raises:
      ValueError: for a size or a seed out of range.
    """
    for what, value, least in (("train", train, 1), ("held_out", held_out, 1), ("seed", seed, 0)):
        if value < least:
            raise ValueError(f"toy: expected {what} of at least {least}, got {value}")
    draw = TOYS[name]
    reference, classes = draw(np.random.default_rng(0), 100_000)
    centre, spread = reference.mean(0), (reference - reference.mean(0)).std()
    num_classes = 0 if classes is None else int(classes.max()) + 1
    splits = []
    for part, size in enumerate((train, held_out)):
        x, label = draw(np.random.default_rng([seed, part]), size)
        arrays = {"x": ((x - centre) / spread).astype(np.float32)}
        if label is not None:
            arrays["label"] = label.astype(np.int32)
        splits.append(arrays)
    return Dataset(name=name, train=splits[0], held_out=splits[1], num_classes=num_classes)
