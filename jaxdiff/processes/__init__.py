"""Forward processes: how data becomes noise, `x_t = a(t) x0 + b(t) y + c(t) noise`."""

from jaxdiff.processes.gaussian import (
    EDM,
    VE,
    VP,
    CosineVP,
    RectifiedFlow,
    SubVP,
    Trigonometric,
)
from jaxdiff.processes.linear import LinearProcess
from jaxdiff.processes.table import DiscreteVP

__all__ = [
    "CosineVP",
    "DiscreteVP",
    "EDM",
    "LinearProcess",
    "RectifiedFlow",
    "SubVP",
    "Trigonometric",
    "VE",
    "VP",
]
