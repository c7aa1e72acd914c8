"""Stock configurations of diffusers, k-diffusion and diffrax, on our denoisers: for `work_precision.py`.

Each library lays its own grid by its own options and walks it by its own code; only the noise, the denoiser
and the process's table are given. What is not installed is left out.
"""

import functools
import importlib
import importlib.util
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np

LIBRARIES = {"torch": "torch", "diffusers": "diffusers", "k_diffusion": "k-diffusion", "diffrax": "diffrax"}
INSTALLED = [label for name, label in LIBRARIES.items() if importlib.util.find_spec(name)]


def ends(denoise, process, kind, x, nfe):
    """`{configuration: ends}` of the installed peers with exactly `nfe` evaluations.

    Args:
      denoise: `(x, t) -> clean estimate`.
      process: `VP()`, `EDM()` or `RectifiedFlow()`.
      kind: "VP", "EDM" or "RF".
      x: `(batch, values)` starts at `t_max`.
      nfe: evaluations.
    """
    clean, found = jax.jit(denoise), {}
    if "torch" in INSTALLED:
        import torch

        torch.set_num_threads(1)  # its threads spin where cores are shared
    for name, run in configurations(process, kind, nfe):
        counter = Counter(clean, process)
        end = run(counter, np.array(x, np.float32))
        if counter.calls == nfe:
            found[name] = np.asarray(end)
    if "diffrax" in INSTALLED:
        found |= with_diffrax(denoise, process, x, nfe)
    return found


class Counter:
    """The denoiser for torch tensors at noise level `sigma = c / a`, counting its calls."""

    def __init__(self, clean, process):
        self.clean, self.process, self.calls = clean, process, 0

    def __call__(self, x, sigma):
        import torch

        self.calls += 1
        sigma = float(sigma)
        # a flow's first level may be infinite
        t = self.process.time_of_log_snr(-np.log(sigma)) if np.isfinite(sigma) else self.process.t_max
        return torch.from_numpy(np.array(self.clean(jnp.asarray(x.numpy()), np.float32(t))))


def configurations(process, kind, nfe):
    """Pairs of a name and `run(model, x) -> ends`."""
    found = []
    if {"torch", "diffusers"} <= set(INSTALLED):
        found += {"VP": vp_schedulers, "EDM": edm_schedulers, "RF": flow_schedulers}[kind](process, nfe)
    if {"torch", "k-diffusion"} <= set(INSTALLED) and kind != "RF":
        found += k_diffusion(process, kind, nfe)
    return found


def walk(scheduler, steps, x, output, sigma_of):
    """A scheduler's own loop; `output(x, sigma)` is what its model would give."""
    import torch

    scheduler.set_timesteps(steps)
    x = torch.from_numpy(x)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(output(x, sigma_of(scheduler, i, t)), t, x).prev_sample
    return x


def vp_schedulers(process, nfe):
    import diffusers

    t = np.arange(1, 1001) / 1000
    cumulative = process.coefficients(t)[0] ** 2
    betas = 1 - cumulative / np.append(1.0, cumulative[:-1])
    common = {"trained_betas": betas, "prediction_type": "sample"}

    def by_sigma(scheduler, i, t):
        return scheduler.sigmas[i]

    def by_table(scheduler, i, t):
        a2 = scheduler.alphas_cumprod[t]
        return torch_sqrt((1 - a2) / a2)

    def noise_of(model):
        def output(x, sigma):
            a = 1 / np.sqrt(1 + float(sigma) ** 2)
            return (x - a * model(x, sigma)) / (a * float(sigma))

        return output

    spacings = {name: {"timestep_spacing": name} for name in ("linspace", "trailing", "leading")}
    levels = {"Karras": "karras_sigmas", "exponential": "exponential_sigmas", "beta": "beta_sigmas"}
    levels = spacings | {name: {f"use_{option}": True} for name, option in levels.items()}
    found = []

    def add(name, make, steps=nfe, sigma_of=by_sigma, predict=lambda model: model):
        def run(model, x):
            return walk(make(), steps, x, predict(model), sigma_of)

        found.append((f"diffusers {name}", run))

    for level, options in levels.items():
        for order in (2, 3):
            options = dict(options, solver_order=order, **common)
            add(f"DPM++ {order}M, {level}", lambda o=options: diffusers.DPMSolverMultistepScheduler(**o))
            add(f"UniPC-{order}, {level}", lambda o=options: diffusers.UniPCMultistepScheduler(**o))
            if level in ("linspace", "trailing"):
                add(f"DEIS-{order}, {level}", lambda o=options: diffusers.DEISMultistepScheduler(**o))
    for level, options in spacings.items():
        make = lambda o=options: diffusers.DDIMScheduler(**common, **o, clip_sample=False)  # noqa: E731
        add(f"DDIM, {level}", make, sigma_of=by_table)
    add("DPM++ 2M, log-SNR", lambda: diffusers.DPMSolverMultistepScheduler(**common, use_lu_lambdas=True))
    if nfe > 5:
        pndm = {"trained_betas": betas, "skip_prk_steps": True}
        add("PLMS", lambda: diffusers.PNDMScheduler(**pndm), nfe - 1, by_table, noise_of)
    return found


def torch_sqrt(value):
    return float(value) ** 0.5


def edm_schedulers(process, nfe):
    import diffusers

    del process

    def preconditioned(scheduler):
        def predict(model):
            def output(x, sigma):
                s, d = float(sigma), scheduler.config.sigma_data
                skip, out = d**2 / (s**2 + d**2), s * d / np.sqrt(s**2 + d**2)
                return (model(x, sigma) - skip * x) / out

            return output

        return predict

    found = []
    for level in ("karras", "exponential"):
        for name, kind, options in (
            ("DPM++ 2M", diffusers.EDMDPMSolverMultistepScheduler, {"solver_order": 2}),
            ("DPM++ 3M", diffusers.EDMDPMSolverMultistepScheduler, {"solver_order": 3}),
            ("Euler", diffusers.EDMEulerScheduler, {}),
        ):

            def run(model, x, kind=kind, options=options, level=level):
                scheduler = kind(sigma_schedule=level, **options)
                scheduler.is_scale_input_called = True
                output = preconditioned(scheduler)(model)
                return walk(scheduler, nfe, x, output, lambda scheduler, i, t: scheduler.sigmas[i])

            found.append((f"diffusers EDM {name}, {level}", run))
    return found


def flow_schedulers(process, nfe):
    import diffusers

    del process

    def velocity(model):
        def output(x, sigma):
            s = float(sigma)
            return (x - model(x, s / (1 - s) if s < 1 else np.inf)) / s

        return output

    found = []

    def add(name, make, steps=nfe):
        def run(model, x):
            return walk(make(), steps, x, velocity(model), lambda scheduler, i, t: scheduler.sigmas[i])

        found.append((f"diffusers {name}", run))

    for shift in (1.0, 3.0):
        flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": shift}
        for order in (2, 3):
            o = dict(flow, solver_order=order)
            add(f"UniPC-{order}, shift {shift:g}", lambda o=o: diffusers.UniPCMultistepScheduler(**o))
            add(f"DPM++ {order}M, shift {shift:g}", lambda o=o: diffusers.DPMSolverMultistepScheduler(**o))
        add(
            f"flow Euler, shift {shift:g}", lambda s=shift: diffusers.FlowMatchEulerDiscreteScheduler(shift=s)
        )
        if nfe % 2:
            heun = lambda s=shift: diffusers.FlowMatchHeunDiscreteScheduler(shift=s)  # noqa: E731
            add(f"flow Heun, shift {shift:g}", heun, (nfe + 1) // 2)
    for level in ("karras", "exponential", "beta"):
        o = {f"use_{level}_sigmas": True}
        add(f"flow Euler, {level}", lambda o=o: diffusers.FlowMatchEulerDiscreteScheduler(**o))
    return found


def k_diffusion(process, kind, nfe):
    """Its samplers walk u = x / a."""
    import torch

    kd = k_diffusion_sampling()
    last, first = (float(np.exp(-process.log_snr(t))) for t in (process.t_min, process.t_max))
    levels = {
        "Karras": lambda n: kd.get_sigmas_karras(n, last, first),
        "exponential": lambda n: kd.get_sigmas_exponential(n, last, first),
        "polyexponential 1.5": lambda n: kd.get_sigmas_polyexponential(n, last, first, 1.5),
    }
    if kind == "VP":
        levels["VP"] = lambda n: kd.get_sigmas_vp(n)
    samplers = {
        "Euler": (kd.sample_euler, nfe, {}), "Heun": (kd.sample_heun, (nfe + 1) // 2, {}),
        "DPM-2": (kd.sample_dpm_2, (nfe + 1) // 2, {}), "LMS": (kd.sample_lms, nfe, {}),
        "DPM++ 2S": (kd.sample_dpmpp_2s_ancestral, (nfe + 1) // 2, {"eta": 0.0}),
        "DPM++ 2M": (kd.sample_dpmpp_2m, nfe, {}),
        "DPM++ 3M": (kd.sample_dpmpp_3m_sde, nfe, {"eta": 0.0, "noise_sampler": lambda s, t: 0.0}),
    }  # fmt: skip
    scale = process.coefficients(process.t_max)[0]
    found = []
    for level, sigmas in levels.items():
        for name, (sampler, steps, options) in samplers.items():

            def run(model, x, sampler=sampler, steps=steps, options=options, sigmas=sigmas):
                def estimate(u, sigma):
                    a = process.coefficients(process.time_of_log_snr(-np.log(float(sigma[0]))))[0]
                    return model(float(a) * u, sigma[0])

                start = torch.from_numpy(x) / float(scale)
                return sampler(estimate, start, sigmas(steps), disable=True, **options)

            found.append((f"k-diffusion {name}, {level}", run))
    return found


@functools.cache
def k_diffusion_sampling():
    """The module of its samplers alone: the package imports much that they do not use."""
    folder = importlib.util.find_spec("k_diffusion").submodule_search_locations[0]
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__, package.utils = [folder], utils
    utils.append_dims = lambda v, n: v[(..., *[None] * (n - v.ndim))]
    sys.modules |= {"k_diffusion": package, "k_diffusion.utils": utils}
    return importlib.import_module("k_diffusion.sampling")


def with_diffrax(denoise, process, x, nfe):
    """Equal steps in time to `t_min`, and the estimate there as the end."""
    import diffrax

    def slope(t, x, args):
        (a, _, c), (da, _, dc) = process.coefficients(t), process.derivatives(t)
        return dc / c * x + (da - a * dc / c) * denoise(x, t)

    first = process.t_max if process.coefficients(process.t_max)[0] > 0 else process.t_max - process.t_min
    span, found = (first, process.t_min), {}
    for name, solver, stages in (
        ("Euler", diffrax.Euler(), 1), ("Heun", diffrax.Heun(), 2), ("Bosh3", diffrax.Bosh3(), 3),
    ):  # fmt: skip
        if (nfe - 1) % stages:
            continue
        dt = (span[1] - span[0]) * stages / (nfe - 1)

        @jax.jit
        def run(x, solver=solver, dt=dt):
            term = diffrax.ODETerm(slope)
            x = diffrax.diffeqsolve(term, solver, *span, dt, x, max_steps=nfe).ys[0]
            return denoise(x, jnp.float32(span[1]))

        found[f"diffrax {name}"] = run(jnp.asarray(x, jnp.float32))
    return found
