"""Diagnostics from theory: what a trained denoiser gets wrong, and what it knows about its data."""

from jaxdiff.diagnostics.geometry import (
    asymmetry,
    gauge_residual,
    intrinsic_dimension,
    jacobian,
    principal_subspace,
    subspace_denoiser,
    subspace_error,
)
from jaxdiff.diagnostics.information import information_parts, mutual_information
from jaxdiff.diagnostics.paths import fokker_planck_profile, hallucination, ode_sde_gap

__all__ = [
    "asymmetry",
    "fokker_planck_profile",
    "gauge_residual",
    "hallucination",
    "information_parts",
    "intrinsic_dimension",
    "jacobian",
    "mutual_information",
    "ode_sde_gap",
    "principal_subspace",
    "subspace_denoiser",
    "subspace_error",
]
