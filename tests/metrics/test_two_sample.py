import numpy as np
import pytest

from jaxdiff.metrics import classifier_two_sample


def test_chance_for_one_distribution_and_certainty_for_two():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 200, 2, 2))
    np.testing.assert_allclose(classifier_two_sample(x, y, trees=20), 0.5, atol=0.1)
    assert classifier_two_sample(x, y + 8, trees=20) == 1.0


def test_refuses_sets_of_different_examples():
    with pytest.raises(ValueError, match="classifier_two_sample"):
        classifier_two_sample(np.zeros((9, 2)), np.zeros((9, 3)))
