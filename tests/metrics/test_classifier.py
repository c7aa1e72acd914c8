import os

import numpy as np
import pytest

import jaxdiff.data as data
from jaxdiff.metrics import Classifier, feature_classifier, train_classifier
from jaxdiff.metrics import classifier as module


def _clusters(n=40, classes=3):
    rng = np.random.default_rng(0)
    label = np.arange(n) % classes
    return (4.0 * label[:, None] + rng.normal(size=(n, 2))).astype(np.float32), label


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(module, "COPIES", 2)


def test_features_and_labels_by_hand():
    weights = (np.array([[1.0, -1.0]]), np.array([[1.0, 0.0], [0.0, 2.0]]))
    judge = Classifier(weights, (np.array([0.0, 0.5]), np.zeros(2)), shift=1.0, scale=2.0)
    features = judge.features(np.array([[3.0], [-3.0]]))
    np.testing.assert_allclose(features, [[1.0, 0.0], [0.0, 2.5]])
    np.testing.assert_array_equal(judge.predict(np.array([[3.0], [-3.0]])), [0, 1])


@pytest.mark.parametrize("classes", [2, 3])
def test_training_is_repeatable_and_learns(classes):
    x, label = _clusters(90, classes)
    one, two = train_classifier(x, label), train_classifier(x, label)
    np.testing.assert_array_equal(one.weights[0], two.weights[0])
    assert np.mean(one.predict(x) == label) > 0.9
    assert one.features(x).shape == (90, 64)


def test_labels_need_not_be_the_first_numbers(tmp_path):
    x, label = _clusters(90)
    label = np.array([1, 2, 5])[label]
    for _ in range(2):  # trained, and then out of the cache
        judge = feature_classifier(x, label, folder=tmp_path)
        assert np.mean(judge.predict(x) == label) > 0.9


def test_cache_is_used_keyed_by_the_data_and_survives_damage(tmp_path, monkeypatch):
    x, label = _clusters()
    first = feature_classifier(x, label, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(module, "train_classifier", None)
        again = feature_classifier(x, label, folder=tmp_path)
        with pytest.raises(TypeError):
            feature_classifier(x + 1, label, folder=tmp_path)
    np.testing.assert_array_equal(again.features(x), first.features(x))
    path.write_bytes(path.read_bytes()[:100])
    repaired = feature_classifier(x, label, folder=tmp_path)
    np.testing.assert_array_equal(repaired.features(x), first.features(x))
    assert os.listdir(tmp_path) == [path.name]


def test_large_sets_have_fewer_copies_of_another_name(tmp_path, monkeypatch):
    x, label = _clusters()
    feature_classifier(x, label, folder=tmp_path)
    monkeypatch.setattr(module, "MOST_BYTES", x.nbytes)
    monkeypatch.setattr(module, "_deform", None)
    judge = feature_classifier(x, label, folder=tmp_path)
    assert len(os.listdir(tmp_path)) == 2 and judge.features(x).shape == (40, 64)


@pytest.mark.slow
def test_digits_are_told_apart_on_held_out_images(monkeypatch):
    monkeypatch.undo()
    digits = data.load("digits")
    judge = train_classifier(digits.train["x"], digits.train["label"])
    assert np.mean(judge.predict(digits.held_out["x"]) == digits.held_out["label"]) >= 0.985
