"""A small classifier of the data's own classes: it judges labels, its features judge samples."""

import dataclasses
import hashlib
import os
import pathlib
import warnings
import zipfile

import numpy as np

HIDDEN = (256, 64)
COPIES, MOST_BYTES = 16, 2**32
EPOCHS = 20
VERSION = 2


@dataclasses.dataclass(frozen=True)
class Classifier:
    """A trained multilayer perceptron with rectified hidden layers.

    Attributes:
      weights, biases: per layer, (inputs, outputs) and (outputs,).
      shift, scale: inputs are (x - shift) / scale.
      classes: (outputs,) the label of each; 0, 1, ... if None.
    """

    weights: tuple
    biases: tuple
    shift: float
    scale: float
    classes: np.ndarray | None = None

    def features(self, x):
        """(n, 64) activations of the last hidden layer for examples (n, ...) in data units."""
        h = (np.asarray(x, np.float32).reshape(len(x), -1) - self.shift) / self.scale
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            h = np.maximum(h @ weight + bias, 0.0)
        return h

    def predict(self, x):
        """(n,) most probable labels for examples (n, ...) in data units."""
        best = np.argmax(self.features(x) @ self.weights[-1] + self.biases[-1], axis=-1)
        return best if self.classes is None else self.classes[best]


def train_classifier(x, label, seed=0):
    """Trains a classifier on examples and their labels, with slightly deformed copies of images.

    There are fewer copies of a large set, `MOST_BYTES` with itself at most. Ten digits of 8 x 8 pixels take 3
    CPU-seconds and reach .99 on held-out images.

    Args:
      x: (n, ...) examples in data units; the training split, never the held-out one.
      label: (n,) integers.
      seed: of the initial weights, the order and the deformations.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    x, label = np.asarray(x, np.float32), np.asarray(label)
    shift, scale = float(x.mean()), float(x.std()) or 1.0
    rng = np.random.default_rng(seed)
    count = _copies(x)
    copies = [x] + [np.stack([_deform(e, rng) for e in x]) for _ in range(count - 1)]
    inputs = (np.concatenate(copies).reshape(count * len(x), -1) - shift) / scale
    network = MLPClassifier(
        HIDDEN, batch_size=min(128, len(inputs)), alpha=1e-3, max_iter=EPOCHS, random_state=seed
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a fixed number of epochs is meant
        network.fit(inputs, np.tile(label, count))
    weights = tuple(w.astype(np.float32) for w in network.coefs_)
    biases = tuple(b.astype(np.float32) for b in network.intercepts_)
    if len(biases[-1]) == 1:  # scikit-learn keeps one logit for two classes
        weights = (*weights[:-1], np.concatenate([0 * weights[-1], weights[-1]], 1))
        biases = (*biases[:-1], np.concatenate([0 * biases[-1], biases[-1]]))
    return Classifier(weights, biases, shift, scale, network.classes_)


def _copies(x):
    return max(1, min(COPIES, MOST_BYTES // x.nbytes))


def _deform(image, rng):
    """A small rotation, scaling and shift of (height, width, ...); other shapes as they are."""
    from scipy.ndimage import affine_transform

    if image.ndim < 2:
        return image
    angle, size = rng.uniform(-0.2, 0.2), np.exp(rng.normal(0.0, 0.08))
    shift = rng.normal(0.0, 0.04, 2) * image.shape[:2]
    cos, sin = np.cos(angle) / size, np.sin(angle) / size
    matrix, offset = np.eye(image.ndim), np.zeros(image.ndim)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    centre = (np.array(image.shape[:2]) - 1) / 2
    offset[:2] = centre - matrix[:2, :2] @ (centre + shift)
    return affine_transform(image, matrix, offset, order=1)


def cache_folder():
    """Where trained classifiers are kept: `$XDG_CACHE_HOME/jaxdiff`, by default in ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(root) / "jaxdiff"


def feature_classifier(x, label, seed=0, folder=None):
    """`train_classifier(x, label, seed)`, from the cache if it was trained before.

    Args:
      x, label, seed: as there.
      folder: of the cache; None is `cache_folder()`.
    """
    x, label = np.ascontiguousarray(x, np.float32), np.ascontiguousarray(label, np.int64)
    settings = (VERSION, HIDDEN, _copies(x), EPOCHS, seed, x.shape)
    digest = hashlib.sha256(repr(settings).encode() + x.tobytes() + label.tobytes()).hexdigest()
    path = pathlib.Path(folder or cache_folder()) / f"classifier-{digest[:24]}.npz"
    try:
        with np.load(path, allow_pickle=False) as saved:
            arrays = [saved[f"arr_{i}"] for i in range(len(saved.files))]
        return _unpack(arrays)
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile):
        classifier = train_classifier(x, label, seed)
    arrays = (*classifier.weights, *classifier.biases, classifier.shift, classifier.scale, classifier.classes)
    _save(path, arrays)
    return classifier


def _unpack(arrays):
    *layers, shift, scale, classes = arrays
    half = len(layers) // 2
    return Classifier(tuple(layers[:half]), tuple(layers[half:]), float(shift), float(scale), classes)


def _save(path, arrays):
    """Writes beside and renames, so that a reader never sees half a file; a cache may fail."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.stem}.{os.getpid()}.npz")
        np.savez(beside, *arrays)
        os.replace(beside, path)
    except OSError:
        pass
