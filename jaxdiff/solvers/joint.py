"""One solver for every part of a product process, with one network call a step."""

from typing import NamedTuple

from jaxdiff.core import as_number, dataclass, namespace, safe_sqrt
from jaxdiff.solvers.tableau import Tableau, linear, table

OWN = 2**20  # keys of the parts of tokens begin here, behind those of the parts' noise


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
        """The rows themselves, which know their steps where all parts are linear."""
        del process, grid
        if tokens := [name for name, part in self.parts.items() if not isinstance(part, Tableau)]:
            raise ValueError(f"joint: expected the solver and not its plan, for {tokens} are tokens")
        return self

    def init(self, x, rows):
        """The state at the start."""
        return Joint(self.parts).init(x, rows)

    def step(self, denoise, state, row, draw):
        """One row of every part, with one call of the network."""
        return Joint(self.parts).step(denoise, state, row, draw)


@dataclass
class Joint:
    """A solver for a product process; made by `joint`."""

    solvers: object

    def _of(self, parts):
        return self.solvers if isinstance(self.solvers, dict) else dict.fromkeys(parts, self.solvers)

    def plan(self, process, grid):
        """Rows of all parts.

        Args:
          process: `jd.processes.Product`.
          grid: a dict of `(steps + 1,)` grids of equal length, one per part.

        Raises:
          ValueError: for grids of different lengths, or solvers whose rows do not go together.
        """
        solvers = self._of(process.parts)
        for what, given in (("a grid", process.named("joint", grid)), ("a solver", solvers)):
            if set(given) != set(process.parts):
                raise ValueError(
                    f"joint: expected {what} for each of {sorted(process.parts)}, got {sorted(given)}"
                )
        rows = {name: solvers[name].plan(part, grid[name]) for name, part in process.parts.items()}
        for name, part in rows.items():
            alone = getattr(solvers[name], "alone", None)
            if alone or not (isinstance(part, Tableau) or name in process.discrete):
                got = f"{type(solvers[name]).__name__}" + (f", which {alone}" if alone else "")
                raise ValueError(
                    "joint: expected a linear solver, or for tokens one that draws from the logits at the "
                    f"time of each row, got {got} for {name!r}"
                )
        shapes = {name: (part.nfe, part.steps) for name, part in rows.items()}
        if len(set(shapes.values())) != 1:
            raise ValueError(f"joint: expected grids and solvers of equal (nfe, steps), got {shapes}")
        return JointRows(rows)

    def init(self, x, rows):
        """The state at the start."""
        return JointState({
            name: solver.init(x[name], rows.parts[name]) for name, solver in self._of(rows.parts).items()
        })  # fmt: skip

    def step(self, denoise, state, row, draw):
        """One row of every part, with one call of the network."""
        clean = denoise(state.x, {name: part.t for name, part in row.parts.items()})
        noisy = any(part.noisy for part in row.parts.values() if isinstance(part, Tableau))
        noise = draw() if noisy else None

        def move(number, name, solver):
            part = row.parts[name]
            if isinstance(part, Tableau):
                own = lambda: noise[name]  # noqa: E731
            else:
                own = draw._replace(keys=draw.own(OWN + number))
            return solver.step(lambda x, t: clean[name], state.parts[name], part, own)

        solvers = sorted(self._of(row.parts).items())
        return JointState({name: move(i, name, solver) for i, (name, solver) in enumerate(solvers)})


def joint(solver):
    """A solver for `Product`: the one given, or a dict of them by part, on every part at once.

    Linear ones for numbers and those of `jd.solvers.discrete` for tokens, each with as many steps and
    evaluations. Takes a dict of grids; starts, shapes and samples are dicts. The denoiser is called with
    dicts of points and of times; it returns clean estimates, and logits for tokens.
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
