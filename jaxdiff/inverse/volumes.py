"""Volumes: slices denoised by a two-dimensional network, held together by total variation across them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.core import check_count, check_positive, dataclass, static_field
from jaxdiff.inverse.krylov import conjugate_gradient
from jaxdiff.inverse.operators import Operator, check_measurement


class State(NamedTuple):
    """The linear solver's state, and what ADMM goes on with: the split differences and their dual."""

    inner: object
    split: jax.Array
    dual: jax.Array

    @property
    def x(self):
        return self.inner.x


@dataclass
class Volumes:
    """See `volume`."""

    solver: object
    operator: Operator
    y: jax.Array
    weight: float
    rho: float
    iterations: int = static_field()
    sweeps: int = static_field()

    def plan(self, process, grid=None):
        """The solver's own plan."""
        rows = self.solver.plan(process, grid)
        if getattr(rows, "based", False):
            raise ValueError("volume: expected a solver of one evaluation a step, such as ddim()")
        return rows

    def init(self, x, rows):
        """The solver's state; nothing split yet."""
        check_measurement(self.operator, x, self.y, "volume")
        if len(x) < 2:
            raise ValueError(f"volume: expected the slices of a volume as batch, at least 2, got {len(x)}")
        zero = jnp.zeros_like(x[1:])
        return State(self.solver.init(x, rows), zero, zero)

    def step(self, denoise, state, row, draw):
        """One evaluation, some rounds of ADMM from the last one's variables, one step."""
        x = state.inner.x
        clean, split, dual = self._admm(denoise(x, row.t).astype(x.dtype), state.split, state.dual)
        return State(self.solver.step(lambda x, t: clean, state.inner, row, draw), split, dual)

    def _admm(self, x, split, dual):
        """Rounds on `|A x - y|^2 / 2 + weight |difference(x)|_1`, started at the clean estimate."""
        right = self.operator.adjoint(self.y)

        def apply(v):
            v = v[0]
            normal = self.operator.adjoint(self.operator.forward(v))
            return (normal + self.rho * _back(_difference(v)))[None]

        for _ in range(self.sweeps):
            aim = right + self.rho * _back(split - dual)
            x = conjugate_gradient(apply, aim[None], self.iterations, start=x[None])[0]
            moved = _difference(x) + dual
            split = jnp.sign(moved) * jnp.maximum(jnp.abs(moved) - self.weight / self.rho, 0.0)
            dual = moved - split
        return x, split, dual


def volume(solver, operator, y, weight=0.04, rho=10.0, iterations=1, sweeps=1):
    """A volume from measurements of its slices: solver -> solver.

    The batch of `sample` is the stack of slices `(depth, height, width, channels)` of one volume. In every
    row, after the network has seen each slice alone, ADMM with a few steps of conjugate gradients brings in
    the measurement and the total variation across the slices, going on from the variables of the row before.

        argmin_x |A x - y|^2 / 2 + weight |x[1:] - x[:-1]|_1

    Chung et al. (2023), arXiv:2211.10655, algorithm 1 (`rho`, `weight`, one sweep and one step by default).
    Slices of one volume depend on each other; volumes on nothing else. Biased: every estimate is made to
    fit, so samples are too alike.

    Args:
      solver: a linear solver of one evaluation a step.
      operator: linear, acts on every slice.
      y: `(depth, ...)`.
      weight, rho: of the total variation and of the splitting, above 0.
      iterations: of conjugate gradients in a sweep.
      sweeps: rounds of ADMM in a row.
    """
    check_positive("volume", weight=weight, rho=rho)
    check_count("volume", iterations=iterations, sweeps=sweeps)
    return Volumes(solver, operator, y, weight, rho, iterations, sweeps)


def _difference(x):
    return x[1:] - x[:-1]


def _back(d):
    """The adjoint of `_difference`."""
    nothing = jnp.zeros_like(d[:1])
    return jnp.concatenate([nothing, d]) - jnp.concatenate([d, nothing])
