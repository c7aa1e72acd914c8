"""Pictures of samples. Matplotlib is imported on first use and draws without a screen."""

import math

import numpy as np

MOST = 100


def save_picture(path, samples, labels=None, title=None, value_range=None):
    """Draws samples into a file: a grid of images, or a scatter of vectors.

    Args:
      path: of the picture; its ending names the format.
      samples: `(n, height, width, channels)`, of which 100 are shown, or `(n, dimension)`, whose
        first two coordinates are shown.
      labels: `(n,)` integers, written over the images or shown as colours, or None.
      title: a line over the picture.
      value_range: `(black, white)` of images; the samples' own by default.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    samples = np.asarray(samples, np.float32)
    figure = Figure(figsize=(7, 7.4), layout="constrained")
    FigureCanvasAgg(figure)
    draw = _images if samples.ndim == 4 else _points
    draw(figure, samples, labels, value_range)
    if title:
        figure.suptitle(title)
    figure.savefig(path, dpi=110)


def _images(figure, samples, labels, value_range):
    """One mosaic, a border of one pixel around each image: a hundred axes take seconds."""
    samples = samples[:MOST]
    low, high = value_range or (samples.min(), samples.max())
    shown = np.clip((samples - low) / max(high - low, 1e-12), 0, 1)
    columns = math.ceil(math.sqrt(len(shown)))
    rows = -(-len(shown) // columns)
    height, width, channels = (side + 1 if axis < 2 else side for axis, side in enumerate(shown.shape[1:]))
    tiles = np.full((rows * columns, height, width, channels), 0.5, np.float32)
    tiles[: len(shown), :-1, :-1] = shown
    mosaic = tiles.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    mosaic = mosaic.reshape(rows * height, columns * width, channels)
    axis = figure.subplots()
    axis.imshow(mosaic if channels == 3 else mosaic[..., 0], cmap="gray", vmin=0, vmax=1)
    axis.axis("off")
    for i, label in enumerate([] if labels is None else labels[:MOST]):
        row, column = divmod(i, columns)
        axis.text(column * width - 0.4, row * height - 0.4, str(int(label)), color="tab:orange",
                  fontsize=7, va="top")


def _points(figure, samples, labels, _):
    axis = figure.subplots()
    second = samples[:, 1] if samples.shape[1] > 1 else np.zeros(len(samples))
    colours = {} if labels is None else {"c": labels, "cmap": "tab10"}
    axis.scatter(samples[:, 0], second, s=2, **colours)
    axis.set_aspect("equal")
