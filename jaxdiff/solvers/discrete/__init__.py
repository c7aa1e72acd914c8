"""Samplers over tokens, for `jd.sample`; their denoisers return logits, `(batch, length, size)`.

    keys = jax.random.split(key, batch)
    denoise = jd.solvers.discrete.denoiser(net, process)
    solver = jd.solvers.discrete.ancestral()
    x = jd.sample(keys, denoise, process, solver, jd.grids.uniform(process, 128), shape=(length,))

A finite process is sampled at some of its steps (strided, Gu et al. (2022), arXiv:2111.14822)
by a grid of fewer steps. Infilling starts from tokens that are partly masked: `x=prompt(...)`. With
`save="state"` the state tells the true number of network calls, `evaluations`.
"""

from jaxdiff.solvers.discrete.energy import importance
from jaxdiff.solvers.discrete.masked import confidence, first_hitting
from jaxdiff.solvers.discrete.prompts import Scaffold, clamped, prompt, scaffold
from jaxdiff.solvers.discrete.remasking import remasking
from jaxdiff.solvers.discrete.steps import ancestral, tau_leaping
from jaxdiff.solvers.discrete.transforms import denoiser, restrict, temperature, top_p

__all__ = [
    "Scaffold",
    "ancestral",
    "clamped",
    "confidence",
    "denoiser",
    "first_hitting",
    "importance",
    "prompt",
    "remasking",
    "restrict",
    "scaffold",
    "tau_leaping",
    "temperature",
    "top_p",
]
