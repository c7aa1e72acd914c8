"""All metrics of one set of samples, each beside its real-against-real floor."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxdiff.metrics.classifier import feature_classifier
from jaxdiff.metrics.distances import frechet_distance, kernel_distance, mmd, sliced_wasserstein
from jaxdiff.metrics.neighbours import density_coverage, memorisation_share, precision_recall
from jaxdiff.metrics.two_sample import classifier_two_sample

LEAST, MOST = 6, 2_000  # coverage counts five neighbours


@dataclasses.dataclass(frozen=True)
class Score:
    """One metric: of the samples, and of real data in their place (`floor`)."""

    value: float
    floor: float


class Floors(NamedTuple):
    """What real data score in the samples' place, and all that the samples are measured with.

    Attributes:
      values: dict from metric to floor.
      real: the held-out examples that samples are compared with.
      number: of the samples.
      chosen: which of them are compared, a multiple of the number of `real`.
      labels: (number,) the samples' classes, or None.
      measure: `(fake, real) -> ` dict from metric to value.
    """

    values: dict
    real: dict
    number: int
    chosen: np.ndarray
    labels: np.ndarray | None
    measure: Callable


def floors_for(dataset, number, labels=None, *, draws=5, seed=0, folder=None):
    """The floors of `evaluate`, which need no samples: they can be made while a network trains.

    The floor of a metric is its value with training examples in the samples' place, averaged over
    `draws` subsets (the floor of label accuracy is that of the held-out images, as the classifier
    knows the training labels by heart).

    Args:
      dataset: a `jaxdiff.data.Dataset`, or any record with `train`, `held_out`, `num_classes`.
      number: of the samples to come.
      labels: (number,) the classes that they will be asked for, or None.
      draws: subsets of the training split.
      seed: of all draws.
      folder: of the classifier's cache; None is the user's.

    Raises:
      ValueError: for labels of another number, or fewer than six samples, held-out or training examples.
    """
    labels = _check_numbers(dataset, number, labels)
    rng = np.random.default_rng(seed)
    size = min(number, len(dataset.held_out["x"]), len(dataset.train["x"]))
    real = _draw(rng, dataset.held_out, size)
    like = None if labels is None else real  # a floor is drawn as the samples are
    index = {"x": np.arange(number)}
    index = index if labels is None else index | {"label": labels}
    sets = _sets(index, size, like)
    chosen = _draw(rng, index, sets * size, like)["x"]
    sets = min(sets, _sets(dataset.train, size, like))
    trains = [_draw(rng, dataset.train, sets * size, like) for _ in range(draws)]
    judge, measure = None, _vector_metrics
    if dataset.num_classes and real["x"].ndim > 2:
        judge = feature_classifier(dataset.train["x"], dataset.train["label"], folder=folder)
        measure = functools.partial(_image_metrics, judge=judge)
    found = [measure(train, real) for train in trains]
    values = {name: float(np.mean([scores[name] for scores in found])) for name in found[0]}
    if "label_accuracy" in values:
        values["label_accuracy"] = float(np.mean(judge.predict(real["x"]) == real["label"]))
    return Floors(values, real, number, chosen, labels, measure)


def evaluate(dataset, samples, labels=None, *, draws=5, seed=0, folder=None, floors=None):
    """Every metric that fits the data, with its floor.

    Samples are compared with the held-out split, at equal numbers. Only the sliced Wasserstein distance takes
    more than 2,000, and of several times as many samples it is the mean over so many sets: for one it varies
    by a quarter. Each metric has its floor (`floors_for`) beside it: a number without that means nothing.
    Where samples have labels, both are taken in the held-out split's class proportions. Memorisation is
    measured in pixels; its floor is 1/2 by definition.

    Args:
      dataset, labels, draws, seed, folder: as of `floors_for`.
      samples: (n, *shape) in data units, rounded as the data (`dataset.from_model`).
      floors: `Floors` for as many samples with these labels, if they are made already; draws, seed and
        folder are theirs then.

    Returns:
      dict from name to `Score`, in the order of `table`.

    Raises:
      ValueError: samples of another shape or not finite, floors of others, or fewer than six samples,
        held-out or training examples.
    """
    samples = _check_samples(dataset, samples)
    labels = _check_numbers(dataset, len(samples), labels)
    if floors is None:
        floors = floors_for(dataset, len(samples), labels, draws=draws, seed=seed, folder=folder)
    if floors.number != len(samples) or not np.array_equal(floors.labels, labels):
        raise ValueError(
            f"evaluate: expected floors for these {len(samples)} samples and their labels, got some for "
            f"{floors.number} or with other labels; make them with floors_for"
        )
    fake = {"x": samples} if labels is None else {"x": samples, "label": labels}
    fake, real = {name: value[floors.chosen] for name, value in fake.items()}, floors.real
    values = floors.measure(fake, real)
    scores = {name: Score(value, floors.values[name]) for name, value in values.items()}
    share = memorisation_share(_flat(dataset.train["x"]), _flat(real["x"]), _flat(fake["x"]))
    return {**scores, "memorisation_share": Score(share, 0.5)}


def table(scores):
    """The scores as text: name, value, floor and their ratio."""
    lines = [f"{'metric':<24}{'samples':>10}{'floor':>10}{'ratio':>8}"]
    for name, score in scores.items():
        ratio = f"{score.value / score.floor:8.2f}" if score.floor > 0 else f"{'-':>8}"
        lines.append(f"{name:<24}{score.value:>10.4f}{score.floor:>10.4f}{ratio}")
    return "\n".join(lines)


def _image_metrics(fake, real, *, judge):
    """Metrics in the features of a classifier, plus the forest on pixels."""
    most = min(MOST, len(real["x"]))
    fake, real = ({k: v[:most] for k, v in arrays.items()} for arrays in (fake, real))
    x, y = judge.features(fake["x"]), judge.features(real["x"])
    precision, recall = precision_recall(y, x)
    density, coverage = density_coverage(y, x)
    values = {
        "frechet_distance": frechet_distance(x, y),
        "kernel_distance": kernel_distance(x, y),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
    }
    if "label" in fake:
        values["label_accuracy"] = float(np.mean(judge.predict(fake["x"]) == fake["label"]))
    return {**values, "two_sample_accuracy": classifier_two_sample(fake["x"], real["x"])}


def _vector_metrics(fake, real):
    """Metrics on the values themselves: for vectors, and for images without labels."""
    x, y = _flat(fake["x"]), _flat(real["x"])
    wasserstein = float(np.mean([sliced_wasserstein(part, y) for part in x.reshape(-1, *y.shape)]))
    most = min(MOST, len(y))
    x, y = x[:most], y[:most]
    precision, recall = precision_recall(y, x)
    density, coverage = density_coverage(y, x)
    return {
        "sliced_wasserstein": wasserstein,
        **({"mmd": mmd(x, y)} if np.ptp(y, axis=0).any() else {}),  # equal points have no scale
        "frechet_distance": frechet_distance(x, y),
        "precision": precision,
        "recall": recall,
        "density": density,
        "coverage": coverage,
        "two_sample_accuracy": classifier_two_sample(x, y),
    }


def _check_samples(dataset, samples):
    samples = np.asarray(samples, np.float32)
    shape = dataset.train["x"].shape[1:]
    if samples.shape[1:] != shape:
        raise ValueError(f"evaluate: expected samples of shape (n, *{shape}), got {samples.shape}")
    if not np.isfinite(samples).all():
        index = tuple(int(i) for i in np.argwhere(~np.isfinite(samples))[0])
        raise ValueError(f"evaluate: expected finite samples, got {samples[index]} at {index}")
    return samples


def check_enough(where, dataset, number, use="", remedy="take more"):
    """Raises ValueError where samples, held-out or training examples are too few to be compared."""
    counts = {
        "samples": number, "held-out examples": len(dataset.held_out["x"]),
        "training examples": len(dataset.train["x"]),
    }
    for what, count in counts.items():
        if count < LEAST:
            raise ValueError(f"{where}: expected at least {LEAST} {what}{use}, got {count}; {remedy}")


def _check_numbers(dataset, number, labels):
    if labels is not None and np.shape(labels) != (number,):
        raise ValueError(f"evaluate: expected labels of shape ({number},), got {np.shape(labels)}")
    check_enough("evaluate", dataset, number)
    return None if labels is None else np.asarray(labels)


def _flat(x):
    return x.reshape(len(x), -1)


def _sets(arrays, size, like=None):
    """How many sets of `size` rows there are, in the class proportions of `like` where both have labels."""
    if like is None or "label" not in like or "label" not in arrays:
        return len(arrays["x"]) // size
    counts = zip(*np.unique(like["label"], return_counts=True), strict=True)
    return max(min(np.sum(arrays["label"] == c) // wanted for c, wanted in counts), 1)


def _draw(rng, arrays, size, like=None):
    """`size` rows without replacement, in the class proportions of `like` where both have labels.

    So has every stretch as long as `like`, while they last. Proportions that differ by chance would add to
    every distance.
    """
    order = rng.permutation(len(arrays["x"]))
    if like is not None and "label" in like and "label" in arrays:
        label = arrays["label"][order]
        rank = np.empty(len(order))  # place of a row in its class, over the places that are wanted
        for c in np.unique(label):
            mine = label == c
            wanted = np.sum(like["label"] == c)
            rank[mine] = (np.arange(mine.sum()) + 0.5) / wanted if wanted else np.inf
        order = order[np.argsort(rank, kind="stable")]
    return {name: value[order[:size]] for name, value in arrays.items()}
