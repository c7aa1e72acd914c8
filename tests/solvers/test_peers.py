"""Agreement with independent implementations, in float64 on the same grid and the same noise.

`peers.json` holds what k-diffusion 0.1.1 and diffusers 0.42.1 (torch 2.13, float64) give for a mixture of
three Gaussians in the plane; `peers.py` beside it makes the file, and is run again where they are installed.
"""

import importlib.util
import json
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

FOLDER = pathlib.Path(__file__).parent
KEPT = json.loads((FOLDER / "peers.json").read_text())
START, NOISE, SIGMA = (np.array(KEPT[name]) for name in ("start", "noise", "sigma"))
S, VP, EDM = jd.solvers, jd.processes.VP(), jd.processes.EDM()
TARGET = jd.testing.gaussian_mixture(KEPT["means"], np.array(KEPT["variances"]), np.array(KEPT["weights"]))
CHURN = {"s_churn": 2.0, "s_min": 0.1, "s_max": 19.0, "s_noise": 1.01}
K_DIFFUSION = {
    "euler": S.euler("sigma"), "heun": S.heun("sigma"), "lms": S.lms(4),
    "churn heun": S.churn(**CHURN), "churn euler": S.churn(**CHURN, method="euler"),
    "euler ancestral": S.ancestral(), "dpm 2": S.dpm_singlestep(2), "dpm 3": S.dpm_singlestep(3),
    "dpmpp 2s": S.dpmpp_singlestep(2), "dpmpp 2m": S.dpmpp_multistep(2),
    "sde 2m": S.dpmpp_multistep(2, tau=1.0), "sde 2m midpoint": S.dpmpp_multistep(2, tau=1.0),
    "sde 2m heun": S.dpmpp_multistep(2, tau=1.0, rule="lagrange"),
    "3m": S.dpmpp_multistep(3, published=True),
}  # fmt: skip
DIFFUSERS = {
    **{f"ddim {eta:g}": S.ddim(eta) for eta in (0.0, 0.5, 1.0)}, "ipndm": S.ipndm(), "pndm": S.pndm(),
    **{f"unipc {p} {b}": S.unipc(p, b, published=True) for p in (1, 2, 3) for b in ("bh1", "bh2")},
    "unipc 3 noise": S.unipc(3, prediction="noise", published=True),
    **{f"deis {q}": S.deis(q, "log_snr") for q in (1, 2, 3)},
    "dpmpp 2 midpoint": S.dpmpp_multistep(2), "dpmpp 2 heun": S.dpmpp_multistep(2, rule="lagrange"),
    "dpm 2 midpoint": S.dpm_multistep(2), "dpm 2 heun": S.dpm_multistep(2, rule="lagrange"),
    "dpmpp 3": S.dpmpp_multistep(3, rule="midpoint", published=True),
    "dpm 3": S.dpm_multistep(3, rule="midpoint", published=True),
    "sde++ 1": S.dpmpp_multistep(1, tau=1.0), "sde 2": S.dpm_multistep(2, tau=1.0),
    "sde++ 2 midpoint": S.dpmpp_multistep(2, tau=1.0),
    "sde++ 2 heun": S.dpmpp_multistep(2, tau=1.0, rule="lagrange"),
}  # fmt: skip


def plan(library, method):
    """The plan that has to agree, and its start."""
    to_data = method.endswith(" to data")
    solver = (K_DIFFUSION if library == "k-diffusion" else DIFFUSERS)[method.removesuffix(" to data")]
    if method == "pndm":
        return VP, solver.plan(VP, np.array(KEPT["pndm_times"])), START
    process = EDM if library == "k-diffusion" else VP
    grid = process.time_of_log_snr(-np.log(SIGMA))
    grid = np.append(grid[:-1], 0.0) if to_data else grid
    return process, solver.plan(process, grid), START * process.coefficients(grid[0])[2]


def noise_of_rows(rows, method):
    """The peer's noise of step i at the row where ours adds it: churn's is added by the row before."""
    step = np.cumsum(rows.arrives > 0) - (rows.arrives > 0) + method.startswith("churn")
    return np.where((rows.arrives > 0)[:, None, None], NOISE[np.minimum(step, 6)], 0.0)


@pytest.mark.slow
def test_ends_agree_with_peers(x64):
    denoisers = {p: TARGET.denoiser(p) for p in (VP, EDM)}
    run = jax.jit(
        lambda rows, x, noise, process: jd.sample(noise, denoisers[process], process, rows, x=x),
        static_argnames="process",
    )
    checked = 0
    for library, ends in KEPT["ends"].items():
        for method, expected in ends.items():
            process, rows, x = plan(library, method)
            noise = jnp.asarray(noise_of_rows(rows, method)) if rows.noisy else None
            found = run(jax.tree.map(jnp.asarray, rows), jnp.asarray(x), noise, process)
            a = 1.0 if library == "k-diffusion" else process.coefficients(rows.to[-1])[0]
            np.testing.assert_allclose(found, expected, atol=1e-9 * a, err_msg=f"{library}, {method}")
            checked += 1
    assert checked == sum(map(len, KEPT["ends"].values())) >= 40


@pytest.mark.slow
def test_the_file_is_what_the_peers_give():
    for name in ("torch", "diffusers", "k_diffusion"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    again = runpy.run_path(str(FOLDER / "peers.py"))["references"]()
    for library, ends in again["ends"].items():
        for method, found in ends.items():
            np.testing.assert_allclose(found, KEPT["ends"][library][method], atol=1e-12, err_msg=method)
