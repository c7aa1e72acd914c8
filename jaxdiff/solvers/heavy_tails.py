"""Steps of linear solvers under Student-t noise: what they draw is normal, times a scale per example."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import (
    concrete,
    match_dims,
    normal_like,
    quadratic_forms,
    random_tangents,
    unit_tangents,
)
from jaxdiff.solvers.tableau import LinearSolver, Tableau

EXACT = 16  # up to so many values the trace is exact: its error by one probe matters in few dimensions


def stepper(solver, process, rows, keys):
    """`(denoise, state, row, draw) -> state`: the solver's own step, with rescaled noise under heavy tails.

    An evaluation then takes a forward derivative of the clean estimate as well, along one Hutchinson probe,
    for the trace of its Jacobian; see `scale_given` of the process. Noise that is replayed stays as it is.

    Raises:
      ValueError: for solvers whose noise has no meaning under heavy tails.
    """
    if not rows.noisy or getattr(process, "normal", True):
        return solver.step
    tail = concrete(getattr(process, "tail", np.inf))
    plain = isinstance(solver, (LinearSolver, Tableau)) and isinstance(rows, Tableau)
    if not (hasattr(process, "scale_given") and plain) or hasattr(keys, "noise"):
        raise ValueError(
            "sample: expected a deterministic solver, or one that is a table, with keys: the noise of "
            f"{type(process).__name__} has heavy tails and is rescaled at every evaluation"
        )
    if tail is not None and tail <= 2:
        raise ValueError(
            f"sample: expected a deterministic solver: noise of {tail:g} degrees of freedom has heavy tails "
            "without a variance, and no SDE leads back; take such a solver, or more degrees of freedom"
        )

    def step(denoise, state, row, draw):
        if draw.keys is None:
            return solver.step(denoise, state, row, draw)
        if not hasattr(state.x, "shape"):
            raise ValueError(
                f"sample: expected one array as x, or a deterministic solver, for {type(process).__name__}; "
                f"got {jax.tree.structure(state.x)}"
            )
        clean, derivative = jax.linearize(lambda z: denoise(z, row.t), state.x)
        few = state.x[0].size <= EXACT
        tangents = unit_tangents(state.x) if few else random_tangents(draw.own(2), state.x, 1)
        trace = jnp.sum(quadratic_forms(derivative, tangents), axis=0)
        scale = process.scale_given(draw.own(1), state.x, clean, trace, row.t)

        def noise():
            return match_dims(scale, state.x) * normal_like(draw.own(0), state.x)

        return solver.step(lambda z, t: clean, state, row, draw._replace(make=noise))

    return step
