"""The order of convergence, measured."""

from typing import NamedTuple

import numpy as np


class Order(NamedTuple):
    """What `measure_order` found: the slope, and the errors it was fitted to."""

    slope: float
    errors: np.ndarray
    steps: np.ndarray


def convergence_order(errors, steps, points=3, floor=0.0):
    """The order p of `error ~ steps^-p`: least squares of log(error) on the finest points.

    Where an error stops falling, rounding or the accuracy of the reference is what is left of it:
    the sequence is cut before the slope first falls below half of the steepest one so far, and at
    errors of at most `floor`. A method that never converges keeps its slope of 0.

    Args:
      errors: `(n,)`, above 0.
      steps: `(n,)` numbers of steps, increasing.
      points: how many of the finest points above the floor are used.
      floor: errors at or below it are not used.

    Raises:
      ValueError: for shapes that do not match, errors that are not finite, or fewer than two points
        above the floor.
    """
    errors, steps = np.asarray(errors, np.float64), np.asarray(steps, np.float64)
    if errors.ndim != 1 or errors.shape != steps.shape or (np.diff(steps) <= 0).any():
        raise ValueError(
            "convergence_order: expected errors (n,) and increasing steps (n,), got shapes "
            f"{errors.shape} and {steps.shape}"
        )
    if not np.isfinite(errors).all() or (errors < 0).any():
        raise ValueError(f"convergence_order: expected finite errors of at least 0, got {errors}")
    usable = _above_floor(errors, steps, floor)
    if usable < 2:
        raise ValueError(
            f"convergence_order: expected two errors above the floor {floor}, got {errors}; use fewer "
            "steps, or a more precise reference"
        )
    used = slice(max(0, usable - points), usable)
    return float(-np.polyfit(np.log(steps[used]), np.log(errors[used]), 1)[0])


def _above_floor(errors, steps, floor):
    """How many of the first errors belong to the method and not to rounding."""
    low = np.flatnonzero(errors <= floor)
    usable = low[0] if low.size else errors.size
    steepest = 0.0
    for i in range(1, usable):
        slope = np.log(errors[i - 1] / errors[i]) / np.log(steps[i] / steps[i - 1])
        if i > 1 and slope < 0.5 * steepest:
            return i
        steepest = max(steepest, slope)
    return usable


def measure_order(run, exact, steps=(48, 96, 192, 384), points=3, floor=0.0):
    """Runs a method at several numbers of steps against the exact answer.

    The error is the median over examples of the Euclidean distance: next to a border between modes
    the smallest error sends a trajectory to the other mode, and such flips rule any mean.

    Args:
      run: `run(n)` gives the answer `(batch, ...)` of `n` steps.
      exact: `(batch, ...)`, in float64 for slopes above one.
      steps: increasing numbers of steps.
      points: see `convergence_order`, as `floor`.

    Returns:
      `Order(slope, errors, steps)`.
    """
    exact = np.asarray(exact)
    errors = []
    for n in steps:
        answer = np.asarray(run(n))
        if answer.shape != exact.shape:
            raise ValueError(f"measure_order: expected run({n}) of shape {exact.shape}, got {answer.shape}")
        distance = np.linalg.norm((answer - exact).reshape(len(exact), -1), axis=1)
        errors.append(np.median(distance))
    slope = convergence_order(errors, steps, points, floor)
    return Order(slope, np.array(errors), np.array(steps))
