"""Solvers: how to walk down a time grid. Their numbers are worked out before the loop."""

from jaxdiff.solvers.exponential import ancestral, ddim, dpmpp_multistep
from jaxdiff.solvers.runge_kutta import euler, heun
from jaxdiff.solvers.stochastic import euler_maruyama
from jaxdiff.solvers.tableau import LinearSolver, Tableau, linear, stack, table

__all__ = [
    "LinearSolver",
    "Tableau",
    "ancestral",
    "ddim",
    "dpmpp_multistep",
    "euler",
    "euler_maruyama",
    "heun",
    "linear",
    "stack",
    "table",
]
