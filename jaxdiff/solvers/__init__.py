"""Solvers: how to walk down a time grid. Their numbers are worked out before the loop."""

from jaxdiff.solvers import discrete
from jaxdiff.solvers.adaptive import adaptive, dpm_adaptive
from jaxdiff.solvers.brownian import Brownian, brownian
from jaxdiff.solvers.churn import churn
from jaxdiff.solvers.compensation import CompensationRegression, dc_solver, fit_compensation, refined
from jaxdiff.solvers.coupled import bdia, edict
from jaxdiff.solvers.er_sde import er_sde
from jaxdiff.solvers.exponential import ancestral, ddim, dpm_multistep, dpmpp_multistep
from jaxdiff.solvers.flow import field, flow_map, interpolant_sde
from jaxdiff.solvers.joint import joint, splitting
from jaxdiff.solvers.langevin import LevenbergMarquardt, predictor_corrector
from jaxdiff.solvers.mcmc import from_level, langevin_gibbs, level_conditional, level_loss, levels
from jaxdiff.solvers.multistep import adams_bashforth, deis, ipndm, lms, plms, unipc
from jaxdiff.solvers.pndm import pndm
from jaxdiff.solvers.presets import default, on_levels
from jaxdiff.solvers.reversible import reversible_heun, rewind
from jaxdiff.solvers.runge_kutta import euler, heun, midpoint, ralston, rk4
from jaxdiff.solvers.sa import sa_solver
from jaxdiff.solvers.search import distribution_fitness, evolve, predicted_search
from jaxdiff.solvers.singlestep import dpm_singlestep, dpmpp_singlestep
from jaxdiff.solvers.starts import (
    Moments,
    Transport,
    fit_transport,
    gaussian_moments,
    gaussian_start,
    optimal_boundary,
    teleport,
)
from jaxdiff.solvers.statistics import ModelStatistics, fit_model_statistics
from jaxdiff.solvers.stochastic import euler_maruyama, reverse_diffusion, seeds
from jaxdiff.solvers.tableau import LinearSolver, Tableau, linear, stack, table
from jaxdiff.solvers.time_shift import time_shift
from jaxdiff.solvers.tuned import Tuned, load
from jaxdiff.solvers.tuning import tune
from jaxdiff.solvers.unified import unified
from jaxdiff.solvers.v3 import dpm_solver_v3
from jaxdiff.solvers.variance import EstimateError, fit_estimate_error

__all__ = [
    "Brownian",
    "CompensationRegression",
    "EstimateError",
    "LevenbergMarquardt",
    "LinearSolver",
    "ModelStatistics",
    "Moments",
    "Tableau",
    "Transport",
    "Tuned",
    "adams_bashforth",
    "adaptive",
    "ancestral",
    "bdia",
    "brownian",
    "churn",
    "dc_solver",
    "ddim",
    "default",
    "deis",
    "discrete",
    "distribution_fitness",
    "dpm_adaptive",
    "dpm_multistep",
    "dpm_singlestep",
    "dpm_solver_v3",
    "dpmpp_multistep",
    "dpmpp_singlestep",
    "edict",
    "er_sde",
    "euler",
    "euler_maruyama",
    "evolve",
    "field",
    "fit_compensation",
    "fit_estimate_error",
    "fit_model_statistics",
    "fit_transport",
    "flow_map",
    "from_level",
    "gaussian_moments",
    "gaussian_start",
    "heun",
    "interpolant_sde",
    "ipndm",
    "joint",
    "langevin_gibbs",
    "level_conditional",
    "level_loss",
    "levels",
    "linear",
    "lms",
    "load",
    "midpoint",
    "on_levels",
    "optimal_boundary",
    "plms",
    "pndm",
    "predicted_search",
    "predictor_corrector",
    "ralston",
    "refined",
    "reverse_diffusion",
    "reversible_heun",
    "rewind",
    "rk4",
    "sa_solver",
    "seeds",
    "splitting",
    "stack",
    "table",
    "teleport",
    "time_shift",
    "tune",
    "unified",
    "unipc",
]
