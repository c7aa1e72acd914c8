import hashlib

import numpy as np

import jaxdiff.data as data


def test_the_split_is_fixed_stratified_and_disjoint():
    digits = data.load("digits")
    assert digits.train["x"].shape == (1197, 8, 8, 1)
    assert digits.held_out["x"].shape == (600, 8, 8, 1)
    counts = [np.bincount(part["label"], minlength=10) for part in (digits.train, digits.held_out)]
    np.testing.assert_allclose(counts[0] / 1197, counts[1] / 600, atol=2e-3)
    rows = [{x.tobytes() for x in part["x"]} for part in (digits.train, digits.held_out)]
    assert not rows[0] & rows[1]
    held_out = digits.held_out["label"].astype(np.uint8).tobytes()
    assert hashlib.sha256(held_out).hexdigest()[:16] == "8ffc052d6c42abef"


def test_values_are_the_seventeen_levels():
    digits = data.load("digits")
    np.testing.assert_array_equal(np.unique(digits.train["x"]), np.arange(17))
    np.testing.assert_allclose(digits.sigma_data, 0.5, rtol=1e-5)
    x = digits.to_model(digits.train["x"])
    np.testing.assert_array_equal(digits.from_model(x), digits.train["x"])
    assert digits.num_classes == 10
