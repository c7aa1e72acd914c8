"""Mean-reverting restoration in few evaluations, against Euler's method at equal error.

    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= python benchmarks/restoration.py [--save]

(The flag: on a CPU some reductions over thousands of rows are wrong without it.) The MR Sampler (Li et al.
(2025), arXiv:2502.07856) claims that 5 to 10 evaluations are as good as 100 of IR-SDE's own: 10 to 20
times fewer. In jaxdiff it is `dpm_multistep(2)` or `dpmpp_multistep(2)` on `MeanReverting`, with no code of
its own; `jd.solvers.default` is what to take without a choice, and `jd.solvers.tune` fits a table to the
denoiser, here to those of four other `y`. Data is a mixture, `y` one draw of it with noise; what is sampled
is the mixture's posterior given `y`, known exactly, and its denoiser takes the network's place. Takes three
minutes of one core.

End points: median distance to the exact end of the flow from the same 256 starts, in units of the posterior's
deviation. Law: mean Wasserstein distance of single values from the exact posterior's, in units of their
deviations. "At equal error" is the number of evaluations after which the other's error, interpolated, stays
below: of Euler's method on the uniform grid of times, as in IR-SDE's code, and on the best of four grids.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff.core import dataclass

S = jd.solvers
RESULTS = pathlib.Path(__file__).parent / "results" / "restoration.md"
OURS, EULERS, LAW = (5, 8, 10, 15, 20), (5, 10, 20, 50, 100, 200, 500), (5, 10, 20, 50, 100, 200)
MR, DEFAULT, TUNED, BEST = "MR Sampler, uniform", "`default`", "`tune`", "best published"
SOLVERS = {
    "DPM-Solver++ 2M": S.dpmpp_multistep(2), "DPM-Solver-2": S.dpm_multistep(2),
    "DPM-Solver++ 3M": S.dpmpp_multistep(3), "UniPC-3": S.unipc(3), "DEIS-3": S.deis(3),
}  # fmt: skip
GRIDS = {
    "uniform": jd.grids.uniform, "log-SNR": jd.grids.log_snr, "cosine": jd.grids.cosine,
    "quadratic": jd.grids.quadratic,
}  # fmt: skip
IRSDE = "IR-SDE"
PROCESSES = {
    IRSDE: jd.processes.MeanReverting(scale=0.2),
    "IR-SDE, constant theta": jd.processes.MeanReverting(scale=0.2, schedule="constant"),
    "speech (OUVE)": jd.processes.OrnsteinUhlenbeckVE(),
    "RDDM": jd.processes.Residual(scale=0.2),
}
THEIRS = {
    "Euler-Maruyama": S.euler_maruyama(), "posterior sampling": S.ancestral(), "Euler, ODE": S.euler()
}  # fmt: skip


@dataclass
class Centred(jd.processes.LinearProcess):
    """`z = x - b y` of a process: what solvers walk when `y` is known."""

    base: object
    t_min = property(lambda self: self.base.t_min)
    t_max = property(lambda self: self.base.t_max)

    def coefficients(self, t):
        a, b, c = self.base.coefficients(t)
        return a, 0 * b, c


@dataclass
class Numbered(jd.processes.LinearProcess):
    """A process by its coefficients at the rows of a plan, numbered: one program for all of them."""

    a: object
    c: object
    t_min = 0.0
    t_max = 1e9

    def coefficients(self, t):
        at = jnp.asarray(t).astype(int)
        return jnp.asarray(self.a)[at], jnp.zeros_like(at, float), jnp.asarray(self.c)[at]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help=f"write the tables to {RESULTS.name}")
    arguments = parser.parse_args()
    lines = ["# Restoration: evaluations at equal error", ""]
    lines += [
        "Behind an error: how many times as many evaluations Euler's method takes for it, on the uniform"
    ]
    lines += ["grid of times, and on the best of four grids.", ""]
    for title, mixture in problems().items():
        y, target = posterior(1, *mixture)
        tuned = {n: fitted(mixture, n) for n in (5, 10)}
        parts = end_points(title, target, y, tuned) + law(title, target, y, tuned)
        print("\n".join(parts), flush=True)
        lines += parts
        if arguments.save:
            RESULTS.write_text("\n".join(lines))


def problems():
    """`{name: (means, variances, noise of y)}`."""
    angles = np.arange(8) * np.pi / 4
    rng = np.random.default_rng(0)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1), np.full((8, 2), 0.05**2), 0.5
    return {"2-D modes": circle, "64-D mixture": (
        rng.normal(size=(10, 64)) * 0.5, 0.5 ** rng.uniform(0, 8, size=(10, 64)), 0.5
    )}  # fmt: skip


def posterior(seed, means, variances, level):
    """One `y`, and the mixture given `y = x0 + level noise`: two near modes in 2-D, one in 64."""
    rng = np.random.default_rng(seed)
    total, which = variances + level**2, (seed - 1) % len(means)
    y = means[which] + np.sqrt(total[which]) * rng.normal(size=means[0].shape)
    odds = -0.5 * np.sum((y - means) ** 2 / total + np.log(total), 1)
    given = (level**2 * means + variances * y) / total, variances * level**2 / total
    return y, jd.testing.gaussian_mixture(*given, np.exp(odds - odds.max()))


def fitted(mixture, n):
    """A tuned plan of IR-SDE for four other `y`."""
    process = Centred(PROCESSES[IRSDE])
    family = [posterior(seed, *mixture)[1].denoiser(process) for seed in (2, 3, 4, 5)]
    shape = mixture[0].shape[1:]
    return S.tune(jax.random.key(n), family, process, n, shape=shape, samples=64, updates=40).rows


def plans_of(process, n, tuned):
    """`{name: plan}` of what is ours, for `y` known."""
    found = {
        f"{name}, {at}": s.plan(process, GRIDS[at](process, n)) for name, s in SOLVERS.items() for at in GRIDS
    }
    found |= {MR: found["DPM-Solver++ 2M, uniform"], DEFAULT: S.default(process, n)}
    return found | ({TUNED: tuned[n]} if n in tuned else {})


def numbered(process, rows):
    a, _, c = process.coefficients(rows.t)
    number = np.arange(rows.nfe, dtype=float)
    return Numbered(a, c), rows.replace(t=number, to=number)


def measured(plans, error):
    """`{key: error}` of `{key: (process, rows, more)}` with rows of equal length, by one program."""
    pairs = [(*numbered(process, rows), more) for process, rows, more in plans.values()]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *[(pair[0], pair[2]) for pair in pairs])
    rows = S.stack([pair[1] for pair in pairs])
    errors = jax.jit(lambda every: jax.lax.map(lambda one: error(*one), every))((*stacked, rows))
    return dict(zip(plans, map(float, errors), strict=True))


def end_points(title, target, y, tuned, count=256):
    """The tables of all processes."""
    starts, units = {}, {}
    for name, base in PROCESSES.items():
        process = Centred(base)
        a, _, c = process.coefficients(process.t_max)
        z = a * y + c * np.random.default_rng(2).normal(size=(count, len(y)))
        end = jd.testing.flow_map(target, process, z, process.t_max, 0.0)
        units[name] = np.sqrt(np.mean(np.var(end, 0)))
        starts[name] = (np.float32(z), np.float32(end))

    def error(process, ends, rows):
        found = jd.sample(None, target.denoiser(process), process, rows, x=ends[0])
        return jnp.median(jnp.sqrt(jnp.mean((found - ends[1]) ** 2, 1)))

    def every(n, plans):
        tasks = {}
        for name, base in PROCESSES.items():
            for label, rows in plans(name, Centred(base), n).items():
                tasks[name, label] = (Centred(base), rows, starts[name])
        return {(*key, n): value / units[key[0]] for key, value in measured(tasks, error).items()}

    found = {}
    for n in EULERS:
        found |= every(n, lambda _, p, n: {at: S.euler().plan(p, grid(p, n)) for at, grid in GRIDS.items()})
    euler = dict(found)
    for n in OURS:
        found |= every(n, lambda name, p, n: plans_of(p, n, tuned if name == IRSDE else {}))
    lines = []
    for name in PROCESSES:
        own = {at: {n: euler[name, at, n] for n in EULERS} for at in GRIDS}
        lines += [f"## {title}, {name}: end points of the ODE", "", *table(name, own, found)]
    return lines


def table(name, euler, found):
    """One row per number of evaluations."""
    names = ("evaluations", "Euler", MR, DEFAULT, TUNED, BEST, "by")
    lines = [row(names), "|---" * len(names) + "|"]
    uniform = euler["uniform"]
    for n in OURS:
        same = np.exp(np.interp(np.log(n), np.log(list(uniform)), np.log(list(uniform.values()))))
        least, by = min((found[name, f"{s}, {at}", n], f"{s}, {at}") for s in SOLVERS for at in GRIDS)
        cells = [found.get((name, label, n)) for label in (MR, DEFAULT, TUNED)] + [least]
        lines.append(row([n, f"{same:.2g}", *(against(value, n, euler) for value in cells), by]))
    return [*lines, ""]


def against(value, n, euler):
    """An error, and how many times as many evaluations Euler's method takes for it."""
    if value is None:
        return "-"
    times = needed(euler["uniform"], value), min(needed(errors, value) for errors in euler.values())
    return f"{value:.2g} ({', '.join(ratio(m, n, max(EULERS)) for m in times)})"


def law(title, target, y, tuned):
    """IR-SDE in law: its own samplers on the uniform grid of times, and what takes 5 and 10 evaluations."""
    process, count = Centred(PROCESSES[IRSDE]), 40_000 if len(y) == 2 else 8_000
    exact = np.asarray(target.sample(jax.random.key(3), 200_000), np.float64)
    unit = jnp.asarray(exact.std(0))
    levels = jnp.asarray(np.quantile(exact, (np.arange(count) + 0.5) / count, axis=0), jnp.float32)
    a, _, c = process.coefficients(process.t_max)
    start = jnp.asarray(a * y + c * jax.random.normal(jax.random.key(4), (count, len(y))), jnp.float32)

    def distance(x):
        return jnp.mean(jnp.mean(jnp.abs(jnp.sort(x, 0) - levels), 0) / unit)

    def error(process, _, rows):
        return distance(jd.sample(jax.random.key(6), target.denoiser(process), process, rows, x=start))

    theirs, ours = {name: {} for name in THEIRS}, []
    for n in LAW:
        plans = {
            name: (process, s.plan(process, jd.grids.uniform(process, n)), ()) for name, s in THEIRS.items()
        }
        for name, value in measured(plans, error).items():
            theirs[name][n] = value
    for n in tuned:
        plans = {
            MR: S.dpmpp_multistep(2).plan(process, jd.grids.uniform(process, n)),
            MR + ", SDE": S.dpmpp_multistep(2, tau=1.0).plan(process, jd.grids.uniform(process, n)),
            DEFAULT: S.default(process, n), TUNED: tuned[n],
        }  # fmt: skip
        found = measured({name: (process, rows, ()) for name, rows in plans.items()}, error)
        ours += [(name, n, value) for name, value in found.items()]
    floor = float(distance(target.sample(jax.random.key(5), count)))
    lines = [f"## {title}, {IRSDE}: law of the samples", "", f"Floor: {floor:.2g}.", ""]
    lines += [row(["evaluations", *LAW]), "|---" * (len(LAW) + 1) + "|"]
    lines += [row([name, *(f"{value:.2g}" for value in errors.values())]) for name, errors in theirs.items()]
    lines += ["", row(["at equal error", "evaluations", "error", *theirs]), "|---" * (len(theirs) + 3) + "|"]
    for name, n, value in ours:
        many = [needed(errors, max(value, floor)) for errors in theirs.values()]
        cells = (f"{show(m, max(LAW))} ({ratio(m, n, max(LAW))})" for m in many)
        lines.append(row([name, n, f"{value:.2g}", *cells]))
    return [*lines, ""]


def needed(errors, value):
    """Evaluations after which the error, interpolated, stays below `value`; infinite if it never does."""
    steps, errors = list(errors), list(errors.values())
    above = np.flatnonzero(np.asarray(errors) > value)
    if not len(above):
        return float(steps[0])
    last = above[-1]
    if last + 1 == len(steps):
        return np.inf
    low, high = np.log(errors[last]), np.log(errors[last + 1])
    share = (low - np.log(value)) / (low - high)
    return float(np.exp(np.log(steps[last]) + share * np.log(steps[last + 1] / steps[last])))


def show(number, most):
    return f"over {most}" if np.isinf(number) else f"{number:.0f}"


def ratio(number, n, most):
    return f"over {most / n:.0f}x" if np.isinf(number) else f"{number / n:.1f}x"


def row(cells):
    return "".join(f"| {cell} " for cell in cells) + "|"


if __name__ == "__main__":
    main()
