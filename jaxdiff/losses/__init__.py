"""Losses: `(net, key, batch) -> (batch,)`, never reduced."""

from jaxdiff.losses.denoising import denoising

__all__ = ["denoising"]
