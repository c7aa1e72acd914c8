"""A solver whose numbers were found by search: a plan, with what it was found for, in a small file."""

import dataclasses
import json
import pathlib
import warnings

import jax
import numpy as np

from jaxdiff.core import concrete, dataclass, is_concrete, static_field
from jaxdiff.solvers.compensation import CompensatedTableau
from jaxdiff.solvers.reversible import ReversibleTableau
from jaxdiff.solvers.tableau import Tableau
from jaxdiff.solvers.unified import MixedTableau

FORMAT = 1
KINDS = {kind.__name__: kind for kind in (Tableau, MixedTableau, CompensatedTableau, ReversibleTableau)}


@dataclass
class Tuned:
    """A plan and what it was made for; `jd.solvers.tune` makes it, and `jd.sample` takes it as a solver.

    Attributes:
      rows: the `Tableau`.
      process: the process it was made for, as text.
      shape: of the examples it was made for, or None: any.
      about: further notes, as sorted `(name, text)` pairs: the error reached, and what `tune` was told, such
        as the guidance scale; a denoiser itself cannot be recognised.
    """

    rows: Tableau
    process: str = static_field()
    shape: tuple | None = static_field(default=None)
    about: tuple = static_field(default=())

    @property
    def name(self):
        """How it is called."""
        return f"tuned({self.rows.nfe})"

    def plan(self, process, grid=None):
        """The plan; its grid is part of it.

        Warns if the process is another one than it was made for.

        Raises:
          ValueError: if a grid is given.
        """
        if grid is not None:
            raise ValueError(f"{self.name}: expected no grid, a tuned solver has its own; leave it out")
        if is_concrete(process) and describe(process) != self.process:
            warnings.warn(
                f"{self.name} was tuned for {self.process} and is used with {describe(process)}; expect "
                "larger errors, or tune again",
                stacklevel=3,
            )
        return self.rows

    def init(self, x, rows):
        """The sampler's state at the start; warns if examples have another shape than it was made for."""
        found = jax.tree.map(lambda leaf: leaf.shape[1:], x)
        if self.shape not in (None, found):
            warnings.warn(
                f"{self.name} was tuned for examples of shape {self.shape} and is used on {found}; expect "
                "larger errors, or tune again",
                stacklevel=3,
            )
        return rows.init(x, rows)

    def step(self, denoise, state, row, draw):
        """One row of the plan."""
        return row.step(denoise, state, row, draw)

    def save(self, path):
        """Writes a JSON file that `load` reads back bit for bit.

        Raises:
          ValueError: for a plan whose step is of another kind than those of `KINDS`.
        """
        kind = type(self.rows).__name__
        if kind not in KINDS:
            raise ValueError(f"{self.name}: expected a plan of {', '.join(KINDS)} to save, got {kind}")
        fields = {f.name: getattr(self.rows, f.name) for f in dataclasses.fields(self.rows)}
        rows = {name: np.asarray(v).tolist() if np.ndim(v) else v for name, v in fields.items()}
        content = {"format": FORMAT, "process": self.process, "shape": self.shape, "about": dict(self.about)}
        pathlib.Path(path).write_text(json.dumps(content | {"kind": kind, "rows": rows}, indent=1))


def load(path):
    """A `Tuned` solver from the file that it was saved to.

    Raises:
      ValueError: for a file of another kind or version, or one whose numbers do not fit together.
    """
    try:
        content = json.loads(pathlib.Path(path).read_text())
        known, process, about = content["format"], content["process"], content["about"]
        arrays = {name: np.asarray(v) if isinstance(v, list) else v for name, v in content["rows"].items()}
        rows = KINDS[content.get("kind", "Tableau")](**arrays)
        shape, about = content.get("shape"), tuple(sorted(about.items()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"load: expected the JSON file of a tuned solver, got {path} ({error})") from None
    if known != FORMAT:
        raise ValueError(
            f"load: expected format {FORMAT} in {path}, got {known}; save it again with this version"
        )
    _check(path, rows)
    return Tuned(rows, process, None if shape is None else tuple(shape), about)


def _check(path, rows):
    """Refuses numbers that are not those of one table: changed by hand, or cut off."""
    n, width = np.size(rows.t), np.shape(rows.next)[-1] if np.ndim(rows.next) else 0
    wanted = {"t": (n,), "to": (n,), "arrives": (n,), "keep": (n, 2), "next": (n, width), "base": (n, width)}
    for name, shape in wanted.items():
        found = np.asarray(getattr(rows, name))
        if found.shape != shape or found.dtype.kind not in "if" or not np.isfinite(found).all():
            raise ValueError(
                f"load: expected finite numbers of shape {shape} as {name} in {path}, got shape "
                f"{found.shape}; tune again"
            )


def describe(process):
    """A process and its numbers as text."""
    if not dataclasses.is_dataclass(process):
        return type(process).__name__
    parts = []
    for field in dataclasses.fields(process):
        value = getattr(process, field.name)
        known = concrete(value) if not hasattr(value, "coefficients") else None
        if known is not None and known.size > 3:
            value = f"{known.size} numbers of mean {known.astype(float).mean():.6g}"
        elif known is not None and known.dtype.kind == "f":
            value = f"{float(known):.6g}" if known.ndim == 0 else [f"{v:.6g}" for v in known.tolist()]
        elif hasattr(value, "coefficients"):
            value = describe(value)
        parts.append(f"{field.name}={value}")
    return f"{type(process).__name__}({', '.join(parts)})"
