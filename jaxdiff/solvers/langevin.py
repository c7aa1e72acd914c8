"""Langevin correctors between the steps of a linear solver, for every process.

With the score `g = (a D - x) / c^2` at a grid point, one corrector step is

    x = x + size g + sqrt(2 size) noise

and needs nothing of a process but its `a` and `c`.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import (
    check_choice,
    check_count,
    check_output,
    check_positive,
    concrete,
    dataclass,
    match_dims,
    namespace,
    safe_divide,
    safe_sqrt,
    static_field,
)
from jaxdiff.solvers import tableau
from jaxdiff.solvers.exponential import ancestral
from jaxdiff.solvers.tableau import linear_plan


@dataclass
class LevenbergMarquardt:
    """The direction `(damping + m m^T)^-1 e` for a noise estimate `e`, at the length of `e`.

        direction ~ e - m <m, e> / (damping + |m|^2),    m = kappa e_previous + (1 - kappa) e

    `damping + m m^T` is the Levenberg-Marquardt approximation of the Hessian, inverted by
    Sherman-Morrison. With kappa = 0, or as the damping grows, it is `e` itself.

    Wang et al. (2025), arXiv:2505.24222. It was published for the error of trained networks; with an
    exact denoiser it takes samples away from their law.

    Attributes:
      damping: above 0, in units of a squared noise estimate, which is about the number of values.
      kappa: share of the previous evaluation in `m`, in [0, 1].
      freeze: leading share of the time range in which the plain direction is kept, in [0, 1].
    """

    damping: float = 1.0
    kappa: float = 0.2
    freeze: float = 0.0

    def __post_init__(self):
        check_positive("LevenbergMarquardt", damping=self.damping)
        for name in ("kappa", "freeze"):
            value = getattr(self, name)
            if isinstance(value, (int, float)) and not 0 <= value <= 1:
                raise ValueError(f"LevenbergMarquardt: expected {name} in [0, 1], got {value}")


@dataclass
class PredictorCorrector:
    """See `predictor_corrector`."""

    predictor: tableau.LinearSolver
    snr: float
    curvature: LevenbergMarquardt | None
    correctors: int = static_field()
    sizes: str = static_field()

    def plan(self, process, grid):
        """The `CorrectedPlan` for a process and `(steps + 1,)` decreasing times."""
        rows = linear_plan("predictor_corrector", self.predictor, process, grid)
        if concrete(rows.to) is not None and rows.t[0] < rows.to[-1]:
            raise ValueError(
                "predictor_corrector: expected a decreasing grid, got an increasing one; use the predictor "
                "alone from data to noise"
            )
        which, correct, arrives = _interleave(process, rows, self.correctors)
        alpha, begins = _alpha(process, rows)[which], np.append(True, rows.arrives[:-1] > 0)[which]
        rows = jax.tree.map(lambda leaf: leaf[which], rows)
        xp = namespace(rows.t, rows, process, self.snr)
        t = xp.where(correct, rows.to, rows.t)
        a, _, c = process.coefficients(t)
        damping, kappa = self._curvature(process, t, xp)
        return CorrectedPlan(
            rows=rows.replace(t=t, arrives=arrives),
            begins=begins,
            correct=correct,
            size=xp.where(correct, 2 * alpha * (self.snr * c) ** 2, 0.0),
            a=a,
            c=xp.where(c > 0, c, 1.0),  # a bridge has none at its far end, where nothing is corrected
            damping=damping,
            kappa=kappa,
            sizes=self.sizes,
            curved=self.curvature is not None,
            steps=int(arrives.max()),
            noisy=bool(correct.any()) or rows.noisy,
            still=bool(correct.any()),
        )

    def _curvature(self, process, t, xp):
        """Damping and kappa of every row; kappa is 0 where there is no previous estimate or it is frozen."""
        blank = xp.zeros_like(t)
        if self.curvature is None:
            return blank, blank
        active = (np.arange(t.shape[0]) > 0) & (t <= (1 - self.curvature.freeze) * process.t_max)
        return blank + self.curvature.damping, xp.where(active, self.curvature.kappa, 0.0)

    def init(self, x, rows):
        """The sampler's state at the start."""
        return init(x, rows)

    def step(self, denoise, state, row, draw):
        """One row of the plan; see `step` of this module."""
        return step(denoise, state, row, draw)


@dataclass
class CorrectedPlan:
    """A predictor's tableau with corrector rows in between, one row per network evaluation.

    Attributes:
      rows: `Tableau`; what it says in a corrector row is only where and when.
      begins: `(nfe,)`, which rows of the predictor start a step.
      correct: `(nfe,)`, which rows are correctors.
      size: `(nfe,)`, the size of a Langevin step, up to the ratio of the norms with "norms".
      a: `(nfe,)` coefficient of the clean data at the row's time.
      c: the same of the noise.
      damping: `(nfe,)`, of `LevenbergMarquardt`.
      kappa: `(nfe,)`, the same.
      still: whether there are rows that stay at their time, so that no Brownian path drives them.
    """

    rows: tableau.Tableau
    begins: jax.Array
    correct: jax.Array
    size: jax.Array
    a: jax.Array
    c: jax.Array
    damping: jax.Array
    kappa: jax.Array
    sizes: str = static_field()
    curved: bool = static_field()
    steps: int = static_field()
    noisy: bool = static_field()
    still: bool = static_field()

    t = property(lambda self: self.rows.t)
    to = property(lambda self: self.rows.to)
    arrives = property(lambda self: self.rows.arrives)
    nfe = property(lambda self: self.rows.nfe)

    def plan(self, process, grid=None):
        """The plan itself."""
        del process, grid
        return self

    def init(self, x, rows):
        """The sampler's state at the start."""
        return init(x, rows)

    def step(self, denoise, state, row, draw):
        """One row; see `step` of this module."""
        return step(denoise, state, row, draw)


def predictor_corrector(predictor=None, correctors=1, snr=0.16, sizes="norms", curvature=None):
    """Predictor-corrector sampling: Langevin steps at every grid point that a linear solver arrives at.

        x = x + size g + sqrt(2 size) noise,    g = (a D - x) / c^2
        sizes = "norms"    size = 2 alpha (snr |noise| / |g|)^2
        sizes = "level"    size = 2 alpha (snr c)^2

    Song et al. (2021), arXiv:2011.13456, algorithms 2 to 5, with the norms of each example where they
    average over the batch. Their `alpha = 1 - beta_i` of a table of VP is `(a_t / a_next)^2` on a grid
    of any process, 1 for VE and EDM. "level" is the annealed Langevin dynamics of Song and Ermon (2019),
    arXiv:1907.05600: its size does not depend on the example, so small steps keep any law, while
    the norms of few values (a 2-D toy) distort it. No corrector runs at c = 0. With ten modes in 64-D and
    an exact denoiser, one corrector a step was worth its evaluations from 40 on, not at 20.

    Args:
      predictor: a linear solver; ancestral sampling by default.
      correctors: Langevin steps at each grid point, one network evaluation each; at least 0.
      snr: signal-to-noise ratio r of a Langevin step.
      sizes: "norms" or "level".
      curvature: `LevenbergMarquardt(...)`, to turn the noise estimate of predictor and corrector; with
        `ddim(eta)` and no corrector that is the published DDIM-LML. The predictor steps from the point
        `a D + c direction`.

    Raises:
      ValueError: for settings out of range.
    """
    check_positive("predictor_corrector", snr=snr)
    check_choice("predictor_corrector", "sizes", sizes, ("norms", "level"))
    check_count("predictor_corrector", 0, correctors=correctors)
    return PredictorCorrector(
        ancestral() if predictor is None else predictor, snr, curvature, int(correctors), sizes
    )


def _interleave(process, rows, correctors):
    """For every row: the predictor's row it belongs to, whether it corrects, where it arrives."""
    arrives = np.asarray(rows.arrives)
    c = concrete(process.coefficients(rows.to)[2])
    noise_left = arrives < rows.steps if c is None else c > 0  # a traced grid is taken to end at data
    rest = 1 + np.where((arrives > 0) & noise_left, correctors, 0)
    which = np.repeat(np.arange(rows.nfe), rest)
    place = np.arange(which.size)
    correct = ~np.isin(place, np.cumsum(rest) - rest)
    return which, correct, np.where(np.isin(place, np.cumsum(rest) - 1), arrives[which], 0)


def _alpha(process, rows):
    """`(a_t / a_next)^2` at the points that the rows lead to, with the grid point that follows each."""
    points = np.flatnonzero(np.asarray(rows.arrives) > 0)
    following = np.searchsorted(points, np.arange(rows.nfe), side="right")
    a = process.coefficients(rows.to)[0]
    return (a / a[points[np.minimum(following, points.size - 1)]]) ** 2


class State(NamedTuple):
    """The linear solver's state, and the noise estimate of the previous row where it is used."""

    inner: tableau.State
    previous: object

    @property
    def x(self):
        return self.inner.x


def init(x, rows):
    """The state at `x`."""
    return State(rows.rows.init(x, rows.rows), jax.tree.map(jnp.zeros_like, x) if rows.curved else None)


def step(denoise, state, row, draw):
    """One row: one network call, a linear step or a Langevin step."""
    inner = state.inner
    clean = denoise(inner.x, row.t)
    clean = jax.tree.map(lambda d, x: check_output("sample", d, x).astype(x.dtype), clean, inner.x)
    e = jax.tree.map(lambda x, d: (x - row.a * d) / row.c, inner.x, clean)
    turned, start = e, inner
    if row.curved:
        turned = _turned(e, state.previous, row)
        x = jax.tree.map(lambda x, e, turned: x + row.c * (turned - e), inner.x, e, turned)
        start = _chosen(row.begins, tableau.moved(inner, x), inner._replace(x=x))
    noise = draw() if row.noisy else None
    predicted = row.rows.step(lambda x, t: clean, start, row.rows, lambda: noise)
    corrected = inner if noise is None else tableau.moved(inner, _langevin(inner.x, turned, noise, row))
    return State(_chosen(row.correct, corrected, predicted), e if row.curved else None)


def _chosen(first, one, other):
    return jax.tree.map(lambda one, other: jnp.where(first, one, other), one, other)


def _langevin(x, e, noise, row):
    """`x + size g + sqrt(2 size) noise` with `g = -e / c`."""
    size = row.size * jnp.ones(jax.tree.leaves(x)[0].shape[0], jax.tree.leaves(x)[0].dtype)
    if row.sizes == "norms":
        size = size * safe_divide(_inner(noise, noise), _inner(e, e))  # |g| = |e| / c

    def leaf(x, e, noise):
        h = match_dims(size, x)
        return x - h * e / row.c + safe_sqrt(2 * h) * noise

    return jax.tree.map(leaf, x, e, noise)


def _turned(e, previous, row):
    """The direction of `LevenbergMarquardt`, at the length of `e`."""
    m = jax.tree.map(lambda p, e: row.kappa * p + (1 - row.kappa) * e, previous, e)
    share = _inner(m, e) / (row.damping + _inner(m, m))
    turned = jax.tree.map(lambda e, m: e - match_dims(share, m) * m, e, m)
    scale = safe_sqrt(safe_divide(_inner(e, e), _inner(turned, turned), 1.0))
    return jax.tree.map(lambda v: match_dims(scale, v) * v, turned)


def _inner(u, v):
    """`(batch,)` inner products over all leaves."""
    products = jax.tree.map(lambda u, v: jnp.sum((u * v).reshape(u.shape[0], -1), axis=1), u, v)
    return sum(jax.tree.leaves(products))
