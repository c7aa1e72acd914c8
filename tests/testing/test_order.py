"""The order estimator on sequences whose order is known."""

import numpy as np
import pytest

from jaxdiff import testing

STEPS = np.array([12, 24, 48, 96, 192, 384])


@pytest.mark.parametrize("order", [0, 1, 2, 3, 5])
def test_a_power_law_gives_its_order(order):
    errors = 3.0 * STEPS ** -float(order)
    assert abs(testing.convergence_order(errors, STEPS) - order) < 1e-9


def test_the_coarse_points_do_not_count():
    errors = 2.0 * STEPS**-2.0 + 500.0 * STEPS**-4.0
    assert abs(testing.convergence_order(errors, STEPS) - 2) < 0.05
    assert testing.convergence_order(errors, STEPS, points=6) > 2.2


def test_rounding_at_the_end_is_left_out():
    errors = STEPS**-3.0 + np.array([0, 0, 0, 0, 3e-7, 8e-7])
    slopes = np.diff(np.log(errors)) / np.diff(np.log(STEPS))
    assert slopes[-1] > 0
    assert abs(testing.convergence_order(errors, STEPS) + slopes[1:3].mean()) < 0.01
    assert abs(testing.convergence_order(np.maximum(errors, 1e-6), STEPS, floor=1e-6) - 3) < 1e-6


def test_a_wrong_order_is_seen_as_such():
    def run(steps):
        """Euler where Heun is claimed: y' = y on [0, 1]."""
        return np.full((4, 1), (1 + 1 / steps) ** steps)

    found = testing.measure_order(run, np.full((4, 1), np.e))
    assert abs(found.slope - 1) < 0.01 and found.errors.shape == found.steps.shape == (4,)


def test_the_error_is_a_median_over_examples():
    exact = np.zeros((5, 2))

    def run(steps):
        answer = np.full((5, 2), 1.0 / steps**2)
        answer[0] = 7.0  # one trajectory went to another mode
        return answer

    assert abs(testing.measure_order(run, exact).slope - 2) < 1e-6


@pytest.mark.parametrize(
    "errors, steps, message",
    [
        ([1.0, 0.5], [2, 4, 8], "increasing steps"),
        ([1.0, 0.5], [4, 2], "increasing steps"),
        ([1.0, np.nan], [2, 4], "finite errors"),
        ([1.0, 0.0], [2, 4], "two errors above the floor"),
    ],
)
def test_bad_input_is_refused(errors, steps, message):
    with pytest.raises(ValueError, match=message):
        testing.convergence_order(errors, steps)
    with pytest.raises(ValueError, match="shape"):
        testing.measure_order(lambda n: np.zeros((3, 1)), np.zeros((3, 2)))
