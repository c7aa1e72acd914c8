"""DPM-Solver-v3: exponential multistep with coefficients fitted to the model, one for each value."""

import dataclasses

import jax
import numpy as np

from jaxdiff.core import check_choice, check_order, concrete, dataclass, is_concrete
from jaxdiff.solvers import tableau
from jaxdiff.solvers.exponential import MASSES, POINTS, Form
from jaxdiff.solvers.statistics import ModelStatistics
from jaxdiff.solvers.tableau import Tableau, linear


@dataclass
class CalibratedTableau(Tableau):
    """A `Tableau` whose weights have the shape of one example, and which adds constants.

    Attributes:
      offset: `(nfe, *event)`, added to the next point.
      base_offset: the same for the next base point.
    """

    offset: jax.Array = None
    base_offset: jax.Array = None

    def init(self, x, rows):
        """The state at `x`, whose examples have to have the shape of the statistics."""
        if x.shape[1:] != rows.offset.shape[1:]:
            raise ValueError(
                f"dpm_solver_v3: expected examples of the statistics' shape {rows.offset.shape[1:]}, got "
                f"{x.shape[1:]}"
            )
        return tableau.init(x, rows)

    def step(self, denoise, state, row, draw):
        """One row: that of the tableau, and the constants."""
        state = tableau.step(denoise, state, row, draw)
        return state._replace(x=state.x + row.offset[None], base=state.base + row.base_offset[None])


def dpm_solver_v3(statistics, order=3, corrector="pseudo", pseudo=False, lower_order_final=True):
    """DPM-Solver-v3, a multistep predictor and corrector of one evaluation a step.

    With `L, S` the integrals of `l, s` from log-SNR s on, `B = integral e^-S b`, `f = (1 - l) x / a - D` and
    `g = e^-S f - B`, which hardly changes, the step from s to t is

        x_t / a_t = e^-L(t) x_s / a_s - integral_s^t e^(L + S - L(t)) (g + B) dlog_snr

    where `g` is replaced by the polynomial through its last values. Zheng et al. (2023), arXiv:2310.13268,
    eq. 9, 15 and 16. Statistics (l, s, b) = (1, 0, 0) give `dpmpp_multistep`, (0, -1, 0) `dpm_multistep`.

    The first steps have order 1, 2, ...; a step to c = 0 returns the clean estimate, one from a = 0 is of
    DDIM. Process and grid have to be known, and the finite log-SNR of the grid within the statistics'.

    Args:
      statistics: `ModelStatistics` of this model and process, of `fit_model_statistics`.
      order: 1, 2 or 3.
      corrector: "pseudo" (order + 1 values, derivatives by divided differences; the paper's choice for
        up to ten steps, of order 2 in the limit), "full" (as many values as the predictor, the polynomial
        itself) or None.
      pseudo: whether the predictor takes its derivatives by divided differences as well.
      lower_order_final: whether the order falls to 1 in the last steps.

    Raises:
      ValueError: for settings out of range, and, when it is planned, for another process or grid.
    """
    order = check_order("dpm_solver_v3", order, (1, 2, 3))
    check_choice("dpm_solver_v3", "corrector", corrector, ("pseudo", "full", None))
    if not isinstance(statistics, ModelStatistics):
        raise ValueError("dpm_solver_v3: expected statistics of fit_model_statistics or ModelStatistics.load")
    return linear(
        f"dpm_solver_v3({order})", _v3, statistics=statistics, order=order, corrector=corrector,
        pseudo=bool(pseudo), lower_order_final=bool(lower_order_final),
    ).replace(after_draw=False)  # fmt: skip


def _v3(process, grid, statistics, order, corrector, pseudo, lower_order_final):
    if not is_concrete(process, grid, statistics):
        raise ValueError(
            "dpm_solver_v3: expected a process, grid and statistics that are known, got traced ones"
        )
    log_snr, (a, _, _) = concrete(process.log_snr(grid)), process.coefficients(grid)
    statistics.check(process, log_snr)
    form, curves, steps = Form.of(process, grid), Curves(statistics), len(grid) - 1
    width, event = order + 4, statistics.l.shape[1:]
    rows = {name: np.zeros((steps, width, *event)) for name in ("next", "base")}
    offset, base_offset = np.zeros((2, steps, *event))
    keep = np.zeros((steps, 2, *event))
    keep[:, 1] = 1.0
    stay = np.zeros((width, *event))
    stay[0] = 1.0
    last, known = None, []  # the last step, to be corrected; the rows whose f is remembered
    for i in range(steps):
        if not form.finite[i]:
            rows["next"][i, 0], rows["next"][i, 2] = form.x_s[i], form.scale[i]
            rows["base"][i], last, known = stay, None, []
            continue
        known = [i, *known]
        keep[i] = (1 - curves.l(log_snr[i])) / a[i], -np.ones(event)
        base, shift = stay, 0.0
        if last is not None and corrector:
            used = known[: last + (corrector == "pseudo")]
            if len(used) > 1:
                nodes = [used[1], used[0], *used[2:]]
                base, shift = _step(curves, log_snr, a, i - 1, i, nodes, corrector == "pseudo", i, width)
                base[1] = 1.0  # the base point has been taken along
        size = min(order, len(known), steps - i if lower_order_final else order)
        move, constant = _step(curves, log_snr, a, i, i + 1, known[:size], pseudo, i, width)
        on = move[1].copy()
        move[1] = 0.0
        rows["base"][i], base_offset[i] = on[None] * base, on * shift
        rows["next"][i], offset[i] = rows["base"][i] + move, base_offset[i] + constant
        last = size
    plain = tableau.table(grid[:-1], [form.x_s, 0.0, form.scale, 0.0], next_base=[0.0] * 4, noisy=False)
    fields = {f.name: getattr(plain, f.name) for f in dataclasses.fields(plain)}
    fields |= dict(rows, keep=keep, plain=False, offset=offset, base_offset=base_offset)
    return CalibratedTableau(**fields)


def _step(curves, log_snr, a, s, t, nodes, pseudo, row, width):
    """Weights, `(width, *event)`, and constant of the step from grid point s to t, seen from `row`.

    The base column holds the weight of the point at s; `nodes` are the rows whose `f` take part, s first.
    """
    start, h = log_snr[s], log_snr[t] - log_snr[s]
    u, mass = h * POINTS[0], h * MASSES[0]
    l_s, l_t = curves.L(start), curves.L(log_snr[t])
    s_s, b_s = curves.S(start), curves.B(start)
    at = start + u
    kernel = np.exp(curves.L(at) - l_t + curves.S(at) - s_s)
    kernel *= mass.reshape(-1, *[1] * l_s.ndim)
    drift = np.exp(s_s) * (curves.B(at) - b_s)
    weights = np.zeros((width, *l_s.shape))
    weights[1] = a[t] / a[s] * np.exp(l_s - l_t)
    constant = -a[t] * np.sum(kernel * drift, 0)
    places = np.array([log_snr[j] - start for j in nodes])
    for k, j in enumerate(nodes):
        share = np.tensordot(_polynomial(u, places, k, pseudo), kernel, 1)
        weights[2 + row - j] -= a[t] * share * np.exp(s_s - curves.S(log_snr[j]))
        constant += a[t] * share * np.exp(s_s) * (curves.B(log_snr[j]) - b_s)
    return weights, constant


def _polynomial(u, places, k, pseudo):
    """What value k contributes at `u`: Lagrange's polynomial, or powers of u times divided differences."""
    others = np.delete(places, k)
    if not pseudo:
        return np.prod((u[:, None] - others[None]) / (places[k] - others)[None], axis=1)
    total = np.zeros_like(u)
    for order in range(k, len(places)):
        total += u**order / np.prod(places[k] - np.delete(places[: order + 1], k))
    return total


class Curves:
    """The statistics between their grid points: l and s linear, L and S their integrals, B a cubic spline."""

    def __init__(self, statistics):
        self.x, self.width = statistics.log_snr, np.diff(statistics.log_snr)
        self._l, self._s = np.asarray(statistics.l), np.asarray(statistics.s)
        self._L, self._S = self._sums(self._l), self._sums(self._s)
        self._slope = np.exp(-self._S) * statistics.b
        self._B = self._sums(self._slope)

    def _sums(self, values):
        wide = self.width.reshape(-1, *[1] * (values.ndim - 1))
        parts = np.cumsum(0.5 * wide * (values[1:] + values[:-1]), axis=0)
        return np.concatenate([np.zeros_like(values[:1]), parts])

    def _place(self, at):
        j = np.clip(np.searchsorted(self.x, at, side="right") - 1, 0, len(self.x) - 2)
        shape = np.shape(at) + (1,) * (self._l.ndim - 1)
        return j, np.reshape((at - self.x[j]), shape), np.reshape(self.width[j], shape)

    def l(self, at):  # noqa: E743  the paper's letter
        j, d, width = self._place(at)
        return self._l[j] + d / width * (self._l[j + 1] - self._l[j])

    def _integral(self, values, sums, at):
        j, d, width = self._place(at)
        return sums[j] + d * (values[j] + 0.5 * d / width * (values[j + 1] - values[j]))

    def L(self, at):
        return self._integral(self._l, self._L, at)

    def S(self, at):
        return self._integral(self._s, self._S, at)

    def B(self, at):
        j, d, width = self._place(at)
        r = d / width
        ends = (1 + 2 * r) * (1 - r) ** 2 * self._B[j] + r**2 * (3 - 2 * r) * self._B[j + 1]
        return ends + width * r * (1 - r) * ((1 - r) * self._slope[j] - r * self._slope[j + 1])
