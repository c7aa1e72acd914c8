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
    samples, labels = samples[:MOST], None if labels is None else labels[:MOST]
    low, high = value_range or (samples.min(), samples.max())
    shown = np.clip((samples - low) / max(high - low, 1e-12), 0, 1)
    columns = math.ceil(math.sqrt(len(samples)))
    axes = figure.subplots(-(-len(samples) // columns), columns, squeeze=False).flat
    for axis in axes:
        axis.axis("off")
    for i, (axis, image) in enumerate(zip(axes, shown, strict=False)):
        channels = image.shape[-1]
        axis.imshow(image if channels == 3 else image[..., 0], cmap="gray", vmin=0, vmax=1)
        if labels is not None:
            axis.set_title(str(int(labels[i])), fontsize=7, pad=1)


def _points(figure, samples, labels, _):
    axis = figure.subplots()
    second = samples[:, 1] if samples.shape[1] > 1 else np.zeros(len(samples))
    axis.scatter(samples[:, 0], second, s=2, c=labels, cmap="tab10")
    axis.set_aspect("equal")
