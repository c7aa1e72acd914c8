"""Forward processes: how data becomes noise.

Continuous ones are `x_t = a(t) x0 + b(t) y + c(t) noise`; those of tokens `Cat(alpha x0 + (1 - alpha) pi)`.
"""

from jaxdiff.processes import schedules
from jaxdiff.processes.bridges import (
    BrownianBridge,
    DiffusionBridge,
    MeanReverting,
    OrnsteinUhlenbeckVE,
    Residual,
    ResShift,
    SchrodingerBridge,
    StochasticInterpolant,
)
from jaxdiff.processes.categorical import Categorical, absorbing, bits, marginal, mask_and_replace, uniform
from jaxdiff.processes.fitted import (
    KineticOptimal,
    LearnedVP,
    data_separation,
    kinetic_energy,
    kinetic_optimal,
)
from jaxdiff.processes.gaussian import (
    EDM,
    VE,
    VP,
    CosineVP,
    RectifiedFlow,
    SubVP,
    Trigonometric,
)
from jaxdiff.processes.heavy_tailed import HeavyTailed, PoissonFlow
from jaxdiff.processes.linear import LinearProcess
from jaxdiff.processes.ordinal import DiscretisedGaussian, discretised_gaussian
from jaxdiff.processes.product import Product, Symmetric, given
from jaxdiff.processes.table import Aggregating, DiscreteVP

__all__ = [
    "Aggregating",
    "BrownianBridge",
    "Categorical",
    "CosineVP",
    "DiffusionBridge",
    "DiscreteVP",
    "DiscretisedGaussian",
    "EDM",
    "HeavyTailed",
    "KineticOptimal",
    "LearnedVP",
    "LinearProcess",
    "MeanReverting",
    "OrnsteinUhlenbeckVE",
    "PoissonFlow",
    "Product",
    "RectifiedFlow",
    "ResShift",
    "Residual",
    "SchrodingerBridge",
    "StochasticInterpolant",
    "SubVP",
    "Symmetric",
    "Trigonometric",
    "VE",
    "VP",
    "absorbing",
    "bits",
    "data_separation",
    "discretised_gaussian",
    "given",
    "kinetic_energy",
    "kinetic_optimal",
    "marginal",
    "mask_and_replace",
    "schedules",
    "uniform",
]
