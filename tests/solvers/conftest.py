"""What several tests of solvers share."""

import numpy as np
import pytest


@pytest.fixture
def walk():
    """`(plan, x, noise, denoise) -> x`: the executor's definition in numpy, one row at a time."""

    def combined(weights, columns):
        return sum(w * c for w, c in zip(weights, columns, strict=True))

    def run(rows, x, noise, denoise):
        base, history = x, [np.zeros_like(x)] * (rows.memory - 1)
        for k in range(rows.nfe):
            clean = denoise(x, rows.t[k])
            e = clean if rows.plain else rows.keep[k, 0] * x + rows.keep[k, 1] * clean
            columns = [x, base, e, *history, noise[k]]
            x = combined(rows.next[k], columns)
            base = combined(rows.base[k], columns) if rows.based else base
            history = [e, *history][: len(history)]
        return x

    return run
