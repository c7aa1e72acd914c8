import functools
import types

import numpy as np
import pytest

import jaxdiff.data as data
from jaxdiff.metrics import classifier, evaluate, floors_for, report, sliced_wasserstein, table
from jaxdiff.metrics import classifier_two_sample as forest


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(classifier, "COPIES", 2)
    monkeypatch.setattr(report, "classifier_two_sample", functools.partial(forest, trees=20))


def _subset(dataset, train=300, held_out=150):
    return types.SimpleNamespace(
        train={k: v[:train] for k, v in dataset.train.items()},
        held_out={k: v[:held_out] for k, v in dataset.held_out.items()},
        num_classes=dataset.num_classes,
    )


@pytest.mark.slow
def test_digits_against_copies_and_fresh_images(tmp_path):
    digits = data.load("digits")
    small = _subset(digits)
    fresh = evaluate(small, digits.train["x"][300:600], digits.train["label"][300:600],
                     draws=2, folder=tmp_path)  # fmt: skip
    before = floors_for(small, 300, digits.train["label"][300:600], draws=2, folder=tmp_path)
    assert before.values == {k: s.floor for k, s in fresh.items() if k != "memorisation_share"}
    copies = evaluate(small, small.train["x"][:150], None, draws=2, folder=tmp_path)
    assert copies["memorisation_share"].value > 0.7 > 0.6 > fresh["memorisation_share"].value
    assert 0.6 < fresh["frechet_distance"].value / fresh["frechet_distance"].floor < 1.5
    assert fresh["label_accuracy"].value > 0.85 and "label_accuracy" not in copies
    assert abs(fresh["two_sample_accuracy"].value - 0.5) < 0.12
    text = table(fresh)
    assert len(text.splitlines()) == len(fresh) + 1
    score = fresh["frechet_distance"]
    assert f"{score.value:.4f}" in text and f"{score.value / score.floor:.2f}" in text


@pytest.mark.slow
def test_vectors_against_a_shifted_copy():
    moons = data.load("moons", train=800, held_out=200)
    good = evaluate(moons, data.load("moons", train=200, seed=9).train["x"], draws=2)
    bad = evaluate(moons, moons.train["x"] + 1.0, draws=2)
    assert good["sliced_wasserstein"].value < 3 * good["sliced_wasserstein"].floor
    assert bad["sliced_wasserstein"].value > 0.5 and bad["two_sample_accuracy"].value > 0.8


def test_equal_examples_leave_out_the_metric_that_has_no_scale(monkeypatch):
    monkeypatch.setattr(report, "classifier_two_sample", lambda x, y: 0.5)
    rng = np.random.default_rng(0)
    flags = (rng.random((60, 1)) < 0.9).astype(np.float32)
    samples = rng.normal(size=(20, 1)).astype(np.float32)
    for x, found in ((flags, True), (np.ones_like(flags), False)):
        scores = evaluate(data.Dataset("rare", {"x": x}, {"x": x[:30]}), samples)
        assert ("mmd" in scores) == found and "frechet_distance" in scores and table(scores)


def test_floors_made_before_the_samples_change_nothing():
    moons = data.load("moons", train=60, held_out=30)
    samples = data.load("moons", train=40, seed=9).train["x"]
    before = floors_for(moons, 40, draws=2, seed=3)
    scores = evaluate(moons, samples, draws=2, seed=3)
    assert evaluate(moons, samples, floors=before) == scores
    assert evaluate(moons, samples, draws=2, seed=4) != scores


def test_floors_are_of_sets_of_one_size_though_the_training_split_is_the_smaller(monkeypatch):
    sizes = []
    measure = lambda fake, real: sizes.append((len(fake["x"]), len(real["x"]))) or {}  # noqa: E731
    monkeypatch.setattr(report, "_vector_metrics", measure)
    moons = data.load("moons", train=20, held_out=30)
    floors = floors_for(moons, 40, draws=2)
    assert sizes == [(20, 20)] * 2 and len(floors.chosen) == 40 and len(floors.real["x"]) == 20
    with pytest.raises(ValueError, match="at least 6 training examples, got 5"):
        floors_for(data.load("moons", train=5, held_out=30), 40)


def test_the_sliced_wasserstein_distance_of_more_samples_is_the_mean_over_sets(monkeypatch):
    numbers, measured = [], report._vector_metrics
    monkeypatch.setattr(report, "classifier_two_sample", lambda x, y: numbers.append((len(x), len(y))) or 0.5)
    monkeypatch.setattr(report, "_vector_metrics", lambda *sets: drawn.append(sets) or measured(*sets))
    drawn, moons = [], data.load("moons", train=60, held_out=30)
    samples = data.load("moons", train=100, seed=9).train["x"]
    floors = floors_for(moons, 100, draws=1)
    assert len(np.unique(floors.chosen)) == 90
    score = evaluate(moons, samples, floors=floors)["sliced_wasserstein"]
    assert [len(fake["x"]) for fake, _ in drawn] == [60, 90] and set(numbers) == {(30, 30)}
    for (fake, real), value in zip(drawn, (score.floor, score.value), strict=True):
        sets = [sliced_wasserstein(part, real["x"]) for part in fake["x"].reshape(-1, 30, 2)]
        np.testing.assert_allclose(value, np.mean(sets))


def test_sets_of_samples_have_the_class_proportions_of_what_is_held_out(monkeypatch):
    monkeypatch.setattr(report, "_vector_metrics", lambda fake, real: {})
    x, label = np.zeros((40, 2), np.float32), np.repeat([0, 1], [30, 10])
    part = {"x": x, "label": label}
    for counts, sets in (([70, 90], 2), ([90, 30], 3), ([200, 19], 1), ([50, 0], 1)):
        asked = np.repeat([0, 1], counts)
        chosen = floors_for(data.Dataset("rare", part, part, 2), len(asked), asked, draws=1).chosen
        assert len(chosen) == 40 * sets
        if sets > 1:
            np.testing.assert_array_equal(np.sum(asked[chosen].reshape(sets, 40) == 1, 1), 10)


@pytest.mark.parametrize("number, labels", [(39, None), (40, np.zeros(40))])
def test_floors_of_other_samples_are_refused(number, labels):
    moons = data.load("moons", train=60, held_out=30)
    before = floors_for(moons, number, labels, draws=1)
    with pytest.raises(ValueError, match=rf"floors for these 40 samples .*, got some for {number}"):
        evaluate(moons, moons.train["x"][:40], floors=before)


def test_draws_follow_the_class_proportions():
    arrays = {"x": np.arange(100), "label": np.repeat([0, 1], 50)}
    like = {"label": np.repeat([0, 1], [30, 10])}
    got = report._draw(np.random.default_rng(0), arrays, 40, like)
    np.testing.assert_array_equal(np.bincount(got["label"]), [30, 10])
    assert len(set(got["x"])) == 40


@pytest.mark.parametrize(
    "samples, labels, message",
    [
        (np.zeros((9, 3)), None, r"samples of shape \(n, \*\(2,\)\)"),
        (np.array([[0, 0], [0, np.nan]]), None, r"nan at \(1, 1\)"),
        (np.zeros((9, 2)), np.zeros(3), r"labels of shape \(9,\)"),
        (np.zeros((5, 2)), None, "at least 6 samples, got 5"),
    ],
)
def test_refuses(samples, labels, message):
    with pytest.raises(ValueError, match=message):
        evaluate(data.load("moons", train=9, held_out=9), samples, labels)
