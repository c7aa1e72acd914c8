"""The unified framework: order, prediction, rule for derivatives and corrector free at every step."""

import dataclasses

import numpy as np

from jaxdiff.core import check_choice, dataclass
from jaxdiff.solvers import tableau
from jaxdiff.solvers.exponential import Form, _midpoint_weights, history_nodes
from jaxdiff.solvers.tableau import Tableau, linear, table

PREDICTIONS, RULES, ORDERS = ("data", "noise"), ("lagrange", "differences", "midpoint"), (1, 2, 3)
DEPTH = 4  # evaluations that a corrector of order 3 looks at


@dataclass
class MixedTableau(Tableau):
    """A `Tableau` that remembers past points beside past estimates, so that both predictions have a past.

    Columns: `[x, base, D_k, D_k-1, x_k-1, D_k-2, x_k-2, ..., noise]`.
    """

    def step(self, denoise, state, row, draw):
        """One row; the point that was evaluated is remembered with its estimate."""
        after = tableau.step(denoise, state, row, draw)
        return after._replace(history=(after.history[0], state.x, *state.history)[: len(state.history)])


def unified(orders=3, predictions="data", rules="lagrange", correctors=True):
    """Any mixture of multistep solvers, chosen step by step, as one table of one evaluation a step.

    Every argument is one setting, or a tuple of one for each step of the grid. With `e` the estimate that
    a step predicts with (D, or `E = (x - a D) / c` of the same evaluations), step i is

        x_(i+1) = x_s x~_i + scale_i sum_j w_j e_(i-j),    x~_i = x_i + scale_(i-1) sum_j (v_j - w_j) e_(i-j)

    with the weights `w` of its predictor, and `v` of the corrector of the step before, which has one more
    value, that of its end. Liu et al. (2024), arXiv:2312.07243, section 3 (multistep). A constant
    mixture is `unipc`, `dpmpp_multistep` or `dpm_multistep`.

    Orders are 1, 2, ... in the first steps, as far as there is a past; give falling orders at the end where
    they are wanted. A step to c = 0, or from a = 0, is the limit of first order. All mixtures over as many
    steps have the same shape: `vmap` over stacked plans compares them in one program.

    Args:
      orders: 1, 2 or 3: values that the predictor takes.
      predictions: "data" or "noise".
      rules: "lagrange" (the polynomial through the values), "differences" (each derivative by a divided
        difference of as few values as it needs) or, at order 2, "midpoint" (that of `dpmpp_multistep`).
      correctors: whether the step is corrected when its end is evaluated; never the last one.

    Raises:
      ValueError: for settings that are none; when planned, for tuples of another length than the steps.
    """
    settings = dict(orders=orders, predictions=predictions, rules=rules, correctors=correctors)
    known = dict(orders=ORDERS, predictions=PREDICTIONS, rules=RULES, correctors=(True, False))
    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    for name, value in settings.items():
        for each in value if isinstance(value, tuple) else (value,):
            check_choice("unified", name, each, known[name])
    return linear("unified", _unified, **settings).replace(by_step=True)


def _unified(process, grid, orders, predictions, rules, correctors):
    steps = grid.shape[0] - 1
    orders, predictions, rules, correctors = (
        _each(name, value, steps)
        for name, value in dict(
            orders=orders, predictions=predictions, rules=rules, correctors=correctors
        ).items()
    )
    if np.any((rules == "midpoint") & (orders != 2)):
        raise ValueError("unified: expected rule 'midpoint' at order 2 alone")
    forms = {name: Form.of(process, grid, name) for name in PREDICTIONS}
    form, noise = forms["data"], predictions == "noise"
    xp, rest = form.xp, np.arange(steps)
    nodes, valid = history_nodes(form, DEPTH - 1)
    valid = valid & (np.arange(DEPTH - 1)[None] < orders[:, None])
    pick = lambda data, other: xp.where(_like(noise, data), other, data)  # noqa: E731
    ahead = [_predictor(f, nodes, valid, rules) * f.scale[:, None] for f in forms.values()]
    ends = xp.concatenate([xp.where(form.finite, form.h, 1.0)[:, None], nodes], axis=-1)
    taken = xp.concatenate([np.ones((steps, 1), bool), valid], axis=-1)
    both = [f.weights(ends, taken) * f.scale[:, None] for f in forms.values()]
    on, ahead, both = pick(*(f.x_s for f in forms.values())), pick(*ahead), pick(*both)
    blank = np.zeros((steps, 1))
    correction = both - xp.concatenate([blank, ahead], axis=-1)  # on e of the end, the start, ...
    before = np.maximum(rest - 1, 0)
    happens = form.finite[before] & correctors[before] & (rest > 0)
    correction = xp.where(happens[:, None], on[:, None] * correction[before], 0.0)
    ahead = xp.concatenate([ahead, blank], axis=-1)
    a, _, c = process.coefficients(grid[:-1])
    columns = _columns(xp, a, c, (ahead, noise), (correction, noise[before]))
    columns[0] = columns[0] + on
    direct = [form.x_s, 0.0, form.scale, *[0.0] * (2 * DEPTH - 1)]
    move = [xp.where(form.finite, m, d) for m, d in zip(columns, direct, strict=True)]
    rows = table(grid[:-1], move, noisy=False)
    return MixedTableau(**{f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)})


def _each(name, value, steps):
    values = np.array(value if isinstance(value, tuple) else [value] * steps)
    if len(values) != steps:
        raise ValueError(f"unified: expected one setting or {steps} of {name}, one a step, got {len(values)}")
    return values


def _like(flags, values):
    return flags.reshape(-1, *[1] * (values.ndim - 1))


def _columns(xp, a, c, *parts):
    """Weights on `[x, base, D_k, D_k-1, x_k-1, ..., noise]` from those on estimates of either kind."""
    steps = len(a)
    columns = [xp.zeros_like(a) for _ in range(2 * DEPTH + 2)]
    for age in range(DEPTH):
        then = np.maximum(np.arange(steps) - age, 0)
        level = xp.where(c[then] == 0, 1.0, c[then])
        of_x, of_clean = (0, 2) if age == 0 else (2 + 2 * age, 1 + 2 * age)
        for weights, noise in parts:
            w = weights[:, age]
            columns[of_x] = columns[of_x] + xp.where(noise, w / level, 0.0)
            columns[of_clean] = columns[of_clean] + xp.where(noise, -w * a[then] / level, w)
    return columns


def _predictor(form, nodes, valid, rules):
    xp = form.xp
    weights = form.weights(nodes, valid)
    differences = _difference_weights(form, nodes, valid)
    half = _midpoint_weights(form, nodes[:, :2], valid[:, :2])
    half = xp.concatenate([half, np.zeros((len(rules), nodes.shape[1] - 2))], axis=-1)
    weights = xp.where((rules == "differences")[:, None], differences, weights)
    return xp.where((rules == "midpoint")[:, None], half, weights)


def _difference_weights(form, nodes, valid):
    """Integrals of `sum_m u^m e[0..m]`: divided differences in the place of Taylor's derivatives."""
    xp = form.xp
    weights = [form.mass, *[0.0 * form.mass] * (nodes.shape[1] - 1)]
    for m in range(1, nodes.shape[1]):
        moment = form.moment(m)
        for j in range(m + 1):
            gaps = 1.0
            for q in range(m + 1):
                if q != j:
                    gaps = gaps * xp.where(valid[:, m], nodes[:, j] - nodes[:, q], 1.0)
            weights[j] = weights[j] + xp.where(valid[:, m], moment / gaps, 0.0)
    return xp.stack(weights, axis=-1)
