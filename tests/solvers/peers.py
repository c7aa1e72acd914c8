"""Runs independent implementations in float64 on a small exact problem, and writes `peers.json`.

    python tests/solvers/peers.py        # needs torch, diffusers and k-diffusion; five seconds

The problem: x0 from three Gaussians in the plane, four starts, seven steps. k-diffusion walks u = x / a over
sigma = c / a; diffusers' schedulers walk x of a variance preserving process, with their tables and sigmas
replaced by those of the grid, and float32 in their source read as float64. (diffusers 0.42.1, k-diffusion
0.1.1. Not among them: the last step of LMS to data, which k-diffusion extrapolates to sigma = 0.)
"""

import functools
import importlib
import inspect
import json
import pathlib
import sys
import types

import numpy as np
import torch

FILE = pathlib.Path(__file__).with_name("peers.json")
MEANS = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]], dtype=torch.float64)
VARIANCES = torch.tensor([0.05, 0.1, 0.08], dtype=torch.float64)
WEIGHTS = torch.tensor([0.3, 0.4, 0.3], dtype=torch.float64)
rng = np.random.default_rng(0)
START, NOISE = torch.tensor(rng.normal(size=(4, 2))), torch.tensor(rng.normal(size=(7, 4, 2)))
SIGMA = torch.tensor(np.geomspace(20.0, 0.05, 8) * np.array([1, 1.2, 0.9, 1.1, 1, 0.8, 1.1, 1]))
TO_DATA = torch.cat([SIGMA[:-1], torch.zeros(1, dtype=torch.float64)])


def estimate(u, sigma):
    """The mean of x0 given u = x0 + sigma noise."""
    v = VARIANCES + sigma**2
    gap = u[:, None] - MEANS
    p = torch.softmax(torch.log(WEIGHTS) - torch.log(v) - (gap**2).sum(-1) / (2 * v), -1)
    return (p[..., None] * (MEANS + (VARIANCES / v)[:, None] * gap)).sum(1)


def level(sigma):
    """`(a, c)` of a variance preserving process."""
    a = 1 / torch.sqrt(1 + sigma**2)
    return a, a * sigma


def of_k_diffusion():
    """Ends of k-diffusion's samplers, whose package imports much that they do not use."""
    folder = importlib.util.find_spec("k_diffusion").submodule_search_locations[0]
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__, package.utils = [folder], utils
    utils.append_dims = lambda v, n: v[(..., *[None] * (n - v.ndim))]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    kd = importlib.import_module("k_diffusion.sampling")

    def run(sampler, sigmas=SIGMA, **options):
        left = iter(NOISE)
        kd.torch = Doubled(randn_like=lambda x: next(left))
        if "eta" in options:
            options["noise_sampler"] = lambda s, t: next(left)
        return sampler(lambda x, s: estimate(x, s[0]), START * sigmas[0], sigmas, disable=True, **options)

    steps = kd.DPMSolver(lambda x, s: estimate(x, s[0]))
    third = START * SIGMA[0]
    for s, t in zip(-SIGMA[:-1].log(), -SIGMA[1:].log(), strict=True):
        third, _ = steps.dpm_solver_3_step(third, s, t)
    churn = dict(s_churn=2.0, s_tmin=0.1, s_tmax=19.0, s_noise=1.01)
    return {
        "euler": run(kd.sample_euler), "euler to data": run(kd.sample_euler, TO_DATA),
        "heun": run(kd.sample_heun), "heun to data": run(kd.sample_heun, TO_DATA),
        "churn heun to data": run(kd.sample_heun, TO_DATA, **churn),
        "churn euler": run(kd.sample_euler, **churn),
        "euler ancestral": run(kd.sample_euler_ancestral, eta=1.0),
        "dpm 2": run(kd.sample_dpm_2), "dpm 3": third, "lms": run(kd.sample_lms),
        "dpmpp 2s": run(kd.sample_dpmpp_2s_ancestral, eta=0.0),
        "dpmpp 2m": run(kd.sample_dpmpp_2m), "dpmpp 2m to data": run(kd.sample_dpmpp_2m, TO_DATA),
        "sde 2m midpoint": run(kd.sample_dpmpp_2m_sde, eta=1.0),
        "sde 2m heun": run(kd.sample_dpmpp_2m_sde, eta=1.0, solver_type="heun"),
        "sde 2m to data": run(kd.sample_dpmpp_2m_sde, TO_DATA, eta=1.0),
        "3m": run(kd.sample_dpmpp_3m_sde, eta=0.0),
    }  # fmt: skip


class Doubled:
    """torch in which float32 is float64, with other names replaced."""

    float32 = torch.float64

    def __init__(self, **names):
        self.__dict__.update(names)

    def __getattr__(self, name):
        return getattr(torch, name)


def of_diffusers():
    """Ends of diffusers' schedulers on a variance preserving process."""

    def module(name):
        found = importlib.import_module(f"diffusers.schedulers.scheduling_{name}")
        found.torch = Doubled()
        return found

    def walk(scheduler, sigmas, predict=None):
        u_to_x = level(sigmas[0])[0]
        x = START * sigmas[0] * u_to_x
        for i, t in enumerate(scheduler.timesteps):
            sigma = sigmas[i]
            a, c = level(sigma)
            clean = estimate(x / a, sigma)
            output = clean if predict is None else predict(x, clean, a, c)
            takes_noise = "variance_noise" in inspect.signature(scheduler.step).parameters
            noise = {"variance_noise": NOISE[i]} if takes_noise else {}
            x = scheduler.step(output, t, x, **noise).prev_sample
        return x

    def by_sigmas(name, kind, sigmas=SIGMA, **options):
        scheduler = getattr(module(name), kind)(**options)
        scheduler.set_timesteps(len(sigmas) - 1)
        scheduler.sigmas, scheduler.timesteps = sigmas, torch.arange(len(sigmas) - 1)
        scheduler.set_begin_index(0)
        return walk(scheduler, sigmas)

    def dpm(algorithm, order, rule="midpoint", sigmas=SIGMA):
        return by_sigmas(
            "dpmsolver_multistep", "DPMSolverMultistepScheduler", sigmas, algorithm_type=algorithm,
            solver_order=order, solver_type=rule, prediction_type="sample", lower_order_final=False,
            final_sigmas_type="zero" if sigmas[-1] == 0 else "sigma_min",
        )  # fmt: skip

    def unipc(order, variant, data=True):
        return by_sigmas(
            "unipc_multistep", "UniPCMultistepScheduler", solver_order=order, solver_type=variant,
            predict_x0=data, prediction_type="sample",
        )  # fmt: skip

    def deis(order):
        return by_sigmas(
            "deis_multistep", "DEISMultistepScheduler", solver_order=order, prediction_type="sample",
            lower_order_final=False,
        )  # fmt: skip

    def ddim(eta):
        scheduler = module("ddim").DDIMScheduler(7, prediction_type="sample", clip_sample=False)
        scheduler.set_timesteps(7)
        cumulative = level(SIGMA)[0] ** 2
        scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = cumulative[:-1].flip(0), cumulative[-1]
        scheduler.step = functools.partial(scheduler.step, eta=eta)
        return walk(scheduler, SIGMA)

    def ipndm():
        scheduler = module("ipndm").IPNDMScheduler()
        scheduler.set_timesteps(7)
        scheduler.alphas, scheduler.betas = level(SIGMA)
        scheduler.timesteps = torch.arange(7)
        return walk(scheduler, SIGMA, lambda x, clean, a, c: (a * (x - a * clean) - c**2 * clean) / c)

    def pndm():
        """With `PNDM_TIMES` of a linear schedule: entries of the table half a step apart."""
        scheduler = module("pndm").PNDMScheduler(14, skip_prk_steps=False)
        scheduler.set_timesteps(7)
        cumulative = PNDM_ALPHA**2
        scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = cumulative[2:], cumulative[0]
        x = START
        for t in scheduler.timesteps:
            a = PNDM_ALPHA[2 + t]
            c = torch.sqrt(1 - a**2)
            x = scheduler.step((x - a * estimate(x / a, c / a)) / c, t, x).prev_sample
        return x

    ends = {f"ddim {eta:g}": ddim(eta) for eta in (0.0, 0.5, 1.0)} | {"ipndm": ipndm(), "pndm": pndm()}
    ends |= {f"unipc {p} {b}": unipc(p, b) for p in (1, 2, 3) for b in ("bh1", "bh2")}
    ends |= {"unipc 3 noise": unipc(3, "bh2", False)} | {f"deis {q}": deis(q) for q in (1, 2, 3)}
    ends |= {f"dpmpp 2 {rule}": dpm("dpmsolver++", 2, rule) for rule in ("midpoint", "heun")}
    ends |= {f"dpm 2 {rule}": dpm("dpmsolver", 2, rule) for rule in ("midpoint", "heun")}
    ends |= {"dpmpp 3": dpm("dpmsolver++", 3), "dpm 3": dpm("dpmsolver", 3)}
    ends |= {"dpmpp 3 to data": dpm("dpmsolver++", 3, sigmas=TO_DATA)}
    ends |= {"sde++ 1": dpm("sde-dpmsolver++", 1), "sde 2": dpm("sde-dpmsolver", 2)}
    ends |= {f"sde++ 2 {rule}": dpm("sde-dpmsolver++", 2, rule) for rule in ("midpoint", "heun")}
    return ends


PNDM_TIMES = torch.linspace(0.05, 1.0, 16, dtype=torch.float64)[:-1]  # entries -2 to 12 of the table
PNDM_ALPHA = torch.exp(-0.5 * (0.1 * PNDM_TIMES + 0.5 * 19.9 * PNDM_TIMES**2))


def references():
    """`{library: {method: (4, 2) ends}}`, with the problem's numbers."""
    found = {"k-diffusion": of_k_diffusion(), "diffusers": of_diffusers()}
    ends = {name: {k: v.tolist() for k, v in sorted(each.items())} for name, each in found.items()}
    problem = {"start": START, "noise": NOISE, "sigma": SIGMA, "pndm_times": PNDM_TIMES[::2].flip(0),
               "means": MEANS, "variances": VARIANCES, "weights": WEIGHTS}  # fmt: skip
    return {name: value.tolist() for name, value in problem.items()} | {"ends": ends}


if __name__ == "__main__":
    FILE.write_text(json.dumps(references(), indent=1) + "\n")
