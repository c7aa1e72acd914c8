"""What several tests of solvers share."""

import jax
import numpy as np
import pytest


@pytest.fixture
def longer():
    """`(plan, nfe) -> plan`: with rows that stay where they are: plans of any length in one program.

    A saved path has `nfe + 1` points, zeros behind those of the plan.
    """

    def stay(plan, nfe):
        def zeros(leaf):
            return np.pad(leaf, [(0, nfe - plan.nfe)] + [(0, 0)] * (leaf.ndim - 1))

        t, to = (np.pad(times, (0, nfe - plan.nfe), mode="edge") for times in (plan.t, plan.to))
        rows = jax.tree.map(zeros, plan).replace(t=t, to=to, steps=nfe)
        rows.next[plan.nfe :, 0] = 1
        return rows

    return stay


@pytest.fixture
def mixed():
    """`(means, covariances, weights, n)`: `(n, d)` draws of a Gaussian mixture, by numpy."""

    def draw(means, covariances, weights, n):
        rng = np.random.default_rng(7)
        full = [np.diag(np.broadcast_to(c, len(m))) if np.ndim(c) < 2 else c
                for m, c in zip(means, covariances, strict=True)]  # fmt: skip
        each = np.stack([rng.multivariate_normal(m, c, n) for m, c in zip(means, full, strict=True)])
        return each[rng.choice(len(means), n, p=weights), np.arange(n)]

    return draw


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
