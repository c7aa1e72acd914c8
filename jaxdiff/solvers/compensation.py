"""DC-Solver: UniPC whose last estimate is moved along its own past, by a ratio fitted for every step."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_choice, check_order, concrete, dataclass, matmul, namespace
from jaxdiff.solvers import tableau
from jaxdiff.solvers.exponential import Form
from jaxdiff.solvers.sa import adams
from jaxdiff.solvers.tableau import Tableau, linear

ORDERS = (1, 2, 3, 4)


@dataclass
class CompensatedTableau(Tableau):
    """A `Tableau` that remembers a combination of its estimates in the place of the last one.

    Attributes:
      push: `(nfe, H)`, its weights on `[e_k, remembered...]`.
    """

    push: jax.Array = None

    def step(self, denoise, state, row, draw):
        """One row; the last estimate is replaced once the row has used it."""
        after = tableau.step(denoise, state, row, draw)
        seen = (after.history[0], *state.history)
        mixed = jax.tree.map(lambda *e: sum(w * v for w, v in zip(row.push, e, strict=True)), *seen)
        return after._replace(history=(mixed, *after.history[1:]))


def dc_solver(ratios, order=3, depth=2, prediction="data", lower_order_final=True):
    """DC-Solver: `unipc` with dynamic compensation.

    Once step i - 1 is corrected, its estimate is replaced by the polynomial in time through the last
    `depth + 1` of them, read at another time,

        e_i <- sum_j l_j(rho_i t_i + (1 - rho_i) t_(i-1)) e_(i-j)

    before step i predicts from it (and is corrected with it). Zhao et al. (2024), arXiv:2409.03755, eq. 8 to
    10. Ratios of 1 change nothing. The first `depth` steps, and steps from a = 0 or to c = 0, are not
    compensated: their ratios count for nothing.

    Args:
      ratios: `(steps,)` of rho, fitted by `fit_compensation`, or predicted by `CompensationRegression`.
      order: of UniPC, 1 to 4, at least `depth`.
      depth: degree of the polynomial, at least 1.
      prediction: "data" or "noise".
      lower_order_final: as in `unipc`.
    """
    order, depth = (check_order("dc_solver", *v) for v in ((order, ORDERS), (depth, ORDERS, "depth")))
    if depth > order:
        raise ValueError(f"dc_solver: expected depth of at most the order, got depth {depth}, order {order}")
    check_choice("dc_solver", "prediction", prediction, ("data", "noise"))
    if np.ndim(ratios) != 1:
        raise ValueError(f"dc_solver: expected ratios of shape (steps,), got {np.shape(ratios)}")
    known = concrete(ratios)
    if known is not None and not np.isfinite(known).all():
        raise ValueError(f"dc_solver: expected finite ratios, got {known}")
    ratios = ratios if isinstance(ratios, jax.Array) else np.asarray(ratios, np.float64)
    return linear(
        f"dc_solver({order})", _dc, ratios=ratios, order=order, depth=depth, prediction=prediction,
        lower_order_final=lower_order_final,
    ).replace(after_draw=False)  # fmt: skip


def _dc(process, grid, ratios, order, depth, prediction, lower_order_final):
    steps = grid.shape[0] - 1
    if ratios.shape != (steps,):
        raise ValueError(f"dc_solver: expected a ratio for each of {steps} steps, got {ratios.shape[0]}")
    rows = adams(process, grid, order, order + 1, prediction, lower_order_final, None, 0)
    form, xp = Form.of(process, grid, prediction), namespace(grid, process, ratios)
    push = _push(xp, grid, ratios, form.finite, depth, rows.memory)
    ahead = rows.next[:, 2] - rows.base[:, 2]  # what the predictor has of the last estimate
    change = push - np.eye(rows.memory)[:1]
    change = xp.where(form.finite[:, None], ahead[:, None] * change, 0.0)
    blank = np.zeros((steps, 2))
    following = rows.next + xp.concatenate([blank, change, blank[:, :1]], axis=1)
    fields = {f.name: getattr(rows, f.name) for f in dataclasses.fields(rows)} | dict(next=following)
    return CompensatedTableau(**fields, push=push)


def _push(xp, grid, ratios, finite, depth, memory):
    """`(steps, memory)` weights of the compensated estimate on the last ones."""
    steps = grid.shape[0] - 1
    row, back = np.arange(steps), np.arange(depth + 1)
    then = np.maximum(row[:, None] - back[None], 0)
    places = grid[then]  # (steps, depth + 1)
    usable = (row >= depth) & finite & finite[then].all(-1)
    at = ratios * places[:, 0] + (1 - ratios) * places[:, 1]
    weights = []
    for j in range(depth + 1):
        value = xp.ones_like(at)
        for m in range(depth + 1):
            if m != j:
                gap = xp.where(usable, places[:, j] - places[:, m], 1.0)
                value = value * (at - places[:, m]) / gap
        weights.append(xp.where(usable, value, float(j == 0)))
    weights += [xp.zeros_like(at)] * (memory - depth - 1)
    return xp.stack(weights, axis=-1)


def fit_compensation(run, reference, steps, iterations=30):
    """Ratios that bring a sampler nearest to reference paths, by Levenberg-Marquardt on all of them at once.

        fine = jd.solvers.refined(grid, 40)
        exact = jd.sample(None, denoise, process, jd.solvers.dpmpp_multistep(3), fine, x=x, save=40)

        def run(ratios):
            solver = jd.solvers.dc_solver(ratios)
            return jd.sample(None, denoise, process, solver, grid, x=x, save="all")

        ratios = jd.solvers.fit_compensation(run, exact, steps=5)

    Zhao et al. (2024), arXiv:2409.03755, algorithm 1, find one ratio after another on ten paths; together
    each also answers for what follows.

    Args:
      run: `ratios (steps,) -> path (steps + 1, batch, ...)`.
      reference: the path to come near to, in the same shape.
      steps: number of ratios.
      iterations: of Levenberg-Marquardt; a rejected one is counted.

    Returns:
      `(steps,)` ratios, float64.
    """

    def residual(ratios):
        return (run(ratios) - reference).reshape(-1)

    @jax.jit
    def normal(ratios):
        value, slope = residual(ratios), jax.jacfwd(residual)(ratios)
        return jnp.mean(value**2), matmul(slope.T, value) / value.size, matmul(slope.T, slope) / value.size

    ratios, damping = np.ones(steps), 1e-2

    def at(ratios):
        return [np.asarray(v, np.float64) for v in normal(jnp.asarray(ratios, reference.dtype))]

    loss, gradient, curvature = at(ratios)
    for _ in range(iterations):
        scale = np.diag(curvature) + 1e-12 + 1e-6 * np.diag(curvature).max()
        trial = ratios - np.linalg.solve(curvature + damping * np.diag(scale), gradient)
        found = at(trial)
        if np.isfinite(found[0]) and found[0] < loss:
            ratios, damping = trial, damping / 3
            loss, gradient, curvature = found
        else:
            damping *= 4
    return ratios


def refined(grid, factor):
    """A grid with every step cut into `factor` equal ones in time, known before tracing."""
    known = concrete(grid)
    if known is None:
        raise ValueError("refined: expected a grid that is known, got a traced one")
    number = np.arange(factor * (len(known) - 1) + 1) / factor
    return np.interp(number, np.arange(len(known)), known)


@dataclass
class CompensationRegression:
    """Ratios for step counts and guidance scales that none were fitted for, by polynomial regression.

    `rho_i ~ sum c_pqr u^p v^q s^r` with `u = i / (steps - 1)`, `v = 1 / steps` and s the guidance scale, by
    least squares. On a complete set of settings this is the cascade of polynomials of Zhao et al. (2024),
    arXiv:2409.03755, section 3.3.

    Attributes:
      coefficients: `(degrees + 1)` in place, count and scale.
    """

    coefficients: np.ndarray

    @classmethod
    def fit(cls, fits, degrees=(3, 1, 1), skip=2):
        """From `(steps, scale, ratios)` triples.

        Args:
          fits: the triples; ratios as `fit_compensation` gives them.
          degrees: of the polynomial in place, count and scale.
          skip: how many first ratios count for nothing, and the last: `depth` of the solver.

        Raises:
          ValueError: if there are fewer ratios than coefficients.
        """
        features, values = [], []
        for steps, scale, ratios in fits:
            inside = np.arange(skip, steps - 1)
            features.append(cls._features(steps, scale, degrees)[inside])
            values.append(np.asarray(ratios, np.float64)[inside])
        features, values = np.concatenate(features), np.concatenate(values)
        if len(values) < features.shape[1]:
            raise ValueError(
                f"CompensationRegression: expected at least {features.shape[1]} ratios for degrees "
                f"{degrees}, got {len(values)}; fit more settings or lower the degrees"
            )
        solution = np.linalg.lstsq(features, values, rcond=None)[0]
        return cls(solution.reshape([d + 1 for d in degrees]))

    def ratios(self, steps, scale=1.0):
        """`(steps,)` ratios for a step count and a guidance scale."""
        degrees = [n - 1 for n in self.coefficients.shape]
        return self._features(steps, scale, degrees) @ self.coefficients.reshape(-1)

    @staticmethod
    def _features(steps, scale, degrees):
        place = np.arange(steps) / max(steps - 1, 1)
        powers = [np.vander(np.broadcast_to(v, (steps,)), d + 1, increasing=True)
                  for v, d in zip((place, 1 / steps, scale), degrees, strict=True)]  # fmt: skip
        return np.einsum("ip,iq,ir->ipqr", *powers).reshape(steps, -1)
