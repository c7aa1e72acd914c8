"""One solver for every part of a product process, with one network call a step."""

from typing import NamedTuple

from jaxdiff.core import as_number, dataclass, namespace, safe_sqrt
from jaxdiff.solvers.tableau import linear, table


class JointState(NamedTuple):
    """The states of the parts."""

    parts: dict

    @property
    def x(self):
        """The points of the parts."""
        return {name: state.x for name, state in self.parts.items()}


@dataclass
class JointRows:
    """The plans of the parts, row by row together."""

    parts: dict

    def _first(self):
        return next(iter(self.parts.values()))

    t = property(lambda self: self._first().t)
    to = property(lambda self: self._first().to)
    arrives = property(lambda self: self._first().arrives)
    nfe = property(lambda self: self._first().nfe)
    steps = property(lambda self: self._first().steps)
    noisy = property(lambda self: any(part.noisy for part in self.parts.values()))

    def plan(self, process, grid=None):
        """The rows themselves."""
        del process, grid
        return self

    def init(self, x, rows):
        """The state at the start."""
        return JointState({name: part.init(x[name], rows.parts[name]) for name, part in self.parts.items()})

    def step(self, denoise, state, row, draw):
        """One row of every part, with one call of the network."""
        t = {name: part.t for name, part in row.parts.items()}
        clean, noise = denoise(state.x, t), draw() if self.noisy else None
        parts = {}
        for name, part in row.parts.items():
            own = None if noise is None else noise[name]
            parts[name] = part.step(
                lambda x, t, name=name: clean[name], state.parts[name], part, lambda own=own: own
            )
        return JointState(parts)


@dataclass
class Joint:
    """A linear solver for a product process; made by `joint`."""

    solvers: object

    def plan(self, process, grid):
        """Rows of all parts.

        Args:
          process: `jd.processes.Product`.
          grid: a dict of `(steps + 1,)` grids of equal length, one per part.

        Raises:
          ValueError: for grids of different lengths, or solvers whose rows do not go together.
        """
        solvers = (
            self.solvers if isinstance(self.solvers, dict) else dict.fromkeys(process.parts, self.solvers)
        )
        for what, given in (("a grid", process.named("joint", grid)), ("a solver", solvers)):
            if set(given) != set(process.parts):
                raise ValueError(
                    f"joint: expected {what} for each of {sorted(process.parts)}, got {sorted(given)}"
                )
        rows = {name: solvers[name].plan(part, grid[name]) for name, part in process.parts.items()}
        shapes = {name: (part.nfe, part.steps) for name, part in rows.items()}
        if len(set(shapes.values())) != 1:
            raise ValueError(f"joint: expected grids and solvers of equal (nfe, steps), got {shapes}")
        return JointRows(rows)

    def init(self, x, rows):
        """The state at the start."""
        return rows.init(x, rows)

    def step(self, denoise, state, row, draw):
        """One row of every part, with one call of the network."""
        return row.step(denoise, state, row, draw)


def joint(solver):
    """A solver for `Product`: the linear solver given, or a dict of them, on every part at once.

    Takes a dict of grids; starts, shapes and samples are dicts. The denoiser is called with dicts of points
    and of times.
    """
    return Joint(solver)


def splitting(corrector=0.0):
    """Symmetric splitting for systems of SDEs: exact half steps of drift and noise around one score step.

        x' = x + r c^2 score + sqrt(2 r) c noise        (a Langevin step, r = corrector)
        x_t = F(g^2 (s - t) score + F(x')),   F the exact transition of the linear forward drift, backwards

    with one score for both, so half the evaluations of predictor-corrector at equal steps. Jo et al.
    (2022), arXiv:2202.02514, algorithm 2 (S4). Steps to c = 0 return the clean estimate.

    Args:
      corrector: r, at least 0 (`2 snr^2` at the norms of normal noise).
    """
    if isinstance(corrector, (int, float)) and corrector < 0:
        raise ValueError(f"splitting: expected corrector of at least 0, got {corrector}")
    return linear("splitting", _splitting, corrector=as_number(corrector))


def _splitting(process, grid, corrector):
    xp = namespace(grid, process, corrector)
    s, t = grid[:-1], grid[1:]
    middle = 0.5 * (s + t)
    (a_s, _, c_s), (a_m, _, c_m), (a_t, _, c_t) = (process.coefficients(u) for u in (s, middle, t))
    safe_a, safe_c = xp.where(a_s == 0, 1.0, a_s), xp.where(c_s == 0, 1.0, c_s)
    gain_1, gain_2 = a_m / safe_a, a_t / a_m
    noise_1 = xp.maximum((gain_1 * c_s) ** 2 - c_m**2, 0.0)  # integrals of g^2 over the halves, at their ends
    noise_2 = xp.maximum((gain_2 * c_m) ** 2 - c_t**2, 0.0)
    score = gain_2 * (noise_1 + noise_2 / gain_2**2 + gain_1 * corrector * c_s**2)
    noise = safe_sqrt((gain_1 * gain_2 * c_s) ** 2 * 2 * corrector + gain_2**2 * noise_1 + noise_2)
    regular = gain_1 * gain_2 - score / safe_c**2, score * a_s / safe_c**2, noise
    exact = process.reverse(s, t)  # to data, and from where no linear drift leads back: a = 0
    single = (c_t == 0) | (a_s == 0)
    x_s, estimate, noise = (xp.where(single, e, r) for e, r in zip(exact, regular, strict=True))
    return table(s, [x_s, 0.0, estimate, noise], noisy=True)
