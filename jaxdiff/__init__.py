"""jaxdiff: a functional diffusion toolkit for JAX.

Everything is one dot from here, or two for a family: `jaxdiff.processes.VP()`, `jaxdiff.sample(...)`.
"""

import importlib

from jaxdiff.cli import interrupts as _interrupts  # isort: skip

if _interrupts.of_program():  # before jax, whose import takes a second and an exception badly
    _interrupts.end_at_once()

from jaxdiff import (  # noqa: E402
    couplings,
    diagnostics,
    editing,
    grids,
    guidance,
    inverse,
    likelihood,
    losses,
    parameterizations,
    processes,
    solvers,
    steering,
    times,
    weightings,
)
from jaxdiff.parameterizations import convert, denoiser  # noqa: E402
from jaxdiff.sampling import sample  # noqa: E402

__version__ = "0.1.0"

_LAZY = ("cli", "data", "interop", "metrics", "models", "testing", "training")  # heavier, loaded on first use

__all__ = [
    "convert",
    "couplings",
    "data",
    "denoiser",
    "diagnostics",
    "editing",
    "grids",
    "guidance",
    "interop",
    "inverse",
    "likelihood",
    "losses",
    "metrics",
    "models",
    "parameterizations",
    "processes",
    "sample",
    "solvers",
    "steering",
    "testing",
    "times",
    "training",
    "weightings",
]


def __getattr__(name):
    if name in _LAZY:
        return importlib.import_module(f"jaxdiff.{name}")
    raise AttributeError(f"module 'jaxdiff' has no attribute {name!r}")


def __dir__():
    return sorted({*globals(), *_LAZY})
