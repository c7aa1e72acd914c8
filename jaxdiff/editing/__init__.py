"""Editing: inversion, replayed noise, latent directions."""

from jaxdiff.editing.directions import (
    boundary,
    contrastive_loss,
    jacobian_directions,
    mixing_step,
    principal_directions,
    project_out,
    shift,
)
from jaxdiff.editing.inversion import fixed_point, invert, resume
from jaxdiff.editing.noise_maps import aligned, chain_at, encode, sdedit, shuffled, slerp, smoothness

__all__ = [
    "aligned",
    "chain_at",
    "boundary",
    "contrastive_loss",
    "encode",
    "fixed_point",
    "invert",
    "jacobian_directions",
    "mixing_step",
    "principal_directions",
    "project_out",
    "resume",
    "sdedit",
    "shift",
    "shuffled",
    "slerp",
    "smoothness",
]
