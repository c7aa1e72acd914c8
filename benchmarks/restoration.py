"""Mean-reverting restoration in few evaluations: multistep solvers against Euler's method, at equal error.

    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= python benchmarks/restoration.py [--save]

(The flag: on a CPU some reductions over thousands of rows are wrong without it.) The MR Sampler (Li et al.
(2025), arXiv:2502.07856) claims 10 to 20 times fewer evaluations than Euler's method. In jaxdiff it is
`dpm_multistep(2)` or `dpmpp_multistep(2)` on `MeanReverting`, with no code of its own. Data is a mixture, `y`
one draw of it with noise; what is sampled is the mixture's posterior given `y`, known exactly, and its
denoiser takes the network's place. Takes two minutes on two idle cores.

ODE: median distance to the exact end of the flow from the same 256 starts, in units of the posterior's
deviation. SDE: root mean square error of mean and deviation of each value over 10,000 samples, in the same
units, and not below that of exact samples (the floor). "At equal error" is the number of evaluations after
which Euler's error, interpolated, stays below: on the same uniform grid of times, and on Euler's best grid
against the best of ours.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd

S = jd.solvers
RESULTS = pathlib.Path(__file__).parent / "results" / "restoration.md"
OURS, EULERS = (5, 8, 10, 15, 20, 30, 50), (5, 10, 20, 50, 100, 200, 500, 1000)
PUBLISHED, EULER = "DPM-Solver++ 2M", "Euler"
ODE = {
    PUBLISHED: S.dpmpp_multistep(2), "DPM-Solver-2": S.dpm_multistep(2),
    "DPM-Solver++ 3M": S.dpmpp_multistep(3), "UniPC-3": S.unipc(3), "DEIS-3": S.deis(3),
}  # fmt: skip
SDE = {
    PUBLISHED: S.dpmpp_multistep(2, tau=1.0), "DPM-Solver-2": S.dpm_multistep(2, tau=1.0),
    "SA-Solver": S.sa_solver(), "ER-SDE-3": S.er_sde(3),
}  # fmt: skip
GRIDS = {
    "uniform": jd.grids.uniform, "log-SNR": jd.grids.log_snr, "cosine": jd.grids.cosine,
    "quadratic": jd.grids.quadratic,
}  # fmt: skip
PROCESSES = {
    "IR-SDE": jd.processes.MeanReverting(scale=0.2),
    "IR-SDE, constant theta": jd.processes.MeanReverting(scale=0.2, schedule="constant"),
    "speech (OUVE)": jd.processes.OrnsteinUhlenbeckVE(),
    "RDDM": jd.processes.Residual(scale=0.2),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help=f"write the tables to {RESULTS.name}")
    arguments = parser.parse_args()
    lines, shown = ["# Restoration: evaluations at equal error", ""], 0
    for title, (means, variances, level) in problems().items():
        y, target = posterior(means, variances, level)
        for name, process in PROCESSES.items():
            lines += table(f"{title}, {name}: ODE", *deterministic(target, process, y))
            if name.startswith("IR-SDE") and len(y) == 2:
                lines += table(f"{title}, {name}: SDE", *stochastic(target, process, y))
            print("\n".join(lines[shown:]), flush=True)
            shown = len(lines)
            if arguments.save:
                RESULTS.write_text("\n".join(lines) + "\n")


def problems():
    """`{name: (means, variances, noise of y)}`."""
    angles = np.arange(8) * np.pi / 4
    rng = np.random.default_rng(0)
    circle = np.stack([np.cos(angles), np.sin(angles)], 1), np.full((8, 2), 0.05**2), 0.5
    return {"2-D modes": circle, "64-D mixture": (
        rng.normal(size=(10, 64)) * 0.5, 0.5 ** rng.uniform(0, 8, size=(10, 64)), 0.5
    )}  # fmt: skip


def posterior(means, variances, level):
    """One `y`, and the mixture given `y = x0 + level noise`: two near modes in 2-D, one in 64."""
    rng = np.random.default_rng(1)
    total = variances + level**2
    y = means[0] + np.sqrt(total[0]) * rng.normal(size=means[0].shape)
    odds = -0.5 * np.sum((y - means) ** 2 / total + np.log(total), 1)
    given = (level**2 * means + variances * y) / total, variances * level**2 / total
    return y, jd.testing.gaussian_mixture(*given, np.exp(odds - odds.max()))


def deterministic(target, process, y, count=256):
    """Errors of the ODE as `best` gives them, and the floor."""
    x = y + process.coefficients(process.t_max)[2] * np.random.default_rng(2).normal(size=(count, len(y)))
    ends = np.broadcast_to(y, x.shape)
    exact = jd.testing.flow_map(target, process, x, process.t_max, 0.0, ends)
    unit = np.sqrt(np.mean(np.var(exact, 0)))
    start, ends, exact = (jnp.asarray(v, jnp.float32) for v in (x, ends, exact))
    denoise = target.denoiser(process, ends)

    def error(rows):
        end = jd.sample(None, denoise, process, rows, x=start, y=ends)
        return jnp.median(jnp.sqrt(jnp.mean((end - exact) ** 2, 1))) / unit

    return measured(process, {EULER: S.euler()}, EULERS, error) | measured(process, ODE, OURS, error), 0.0


def stochastic(target, process, y, count=10_000):
    """The same of the SDE."""
    shape = (count, len(y))
    exact = np.asarray(target.sample(jax.random.key(3), 400_000), np.float64)
    mean, deviation = exact.mean(0), exact.std(0)

    def moments(x):
        off = jnp.stack([x.mean(0) - mean, x.std(0) - deviation]) / deviation
        return jnp.sqrt(jnp.mean(off**2))

    ends = jnp.broadcast_to(jnp.asarray(y, jnp.float32), shape)
    denoise, keys = target.denoiser(process, ends), jax.random.split(jax.random.key(4), count)

    def error(rows):
        return moments(jd.sample(keys, denoise, process, rows, shape=shape[1:], y=ends))

    euler = measured(process, {EULER: S.euler_maruyama()}, EULERS, error)
    floor = float(moments(target.sample(jax.random.key(5), count)))
    return euler | measured(process, SDE, OURS, error), floor


def measured(process, solvers, evaluations, error):
    """`{solver: {grid: {evaluations: error}}}`."""
    found = {solver: {grid: {} for grid in GRIDS} for solver in solvers}
    for steps in evaluations:
        names = [(solver, grid) for solver in solvers for grid in GRIDS]
        plans = [solvers[solver].plan(process, GRIDS[grid](process, steps)) for solver, grid in names]
        errors = np.asarray(jax.jit(lambda rows: jax.lax.map(error, rows))(S.stack(plans)))
        for (solver, grid), value in zip(names, errors, strict=True):
            found[solver][grid][steps] = float(value)
    return found


def table(title, found, floor):
    """The published choice against Euler's method on the same grid, and the best of each."""
    lines = [f"## {title}", ""] + ([f"Floor: {floor:.2g}.", ""] if floor else [])
    names = ("evaluations", EULER, PUBLISHED, "Euler at equal error", "ratio")
    names += ("best of ours", "by", "Euler's best grid at equal error", "ratio")
    lines += ["".join(f"| {name} " for name in names) + "|", "|---" * len(names) + "|"]
    euler = found.pop(EULER)
    uniform = euler["uniform"]
    for n in OURS:
        value = max(found[PUBLISHED]["uniform"][n], floor)
        least, by = min((v[n], f"{solver}, {grid}") for solver in found for grid, v in found[solver].items())
        same = np.exp(np.interp(np.log(n), np.log(list(uniform)), np.log(list(uniform.values()))))
        many, least = needed(uniform, value), max(least, floor)
        own = min(needed(errors, least) for errors in euler.values())
        cells = (n, f"{same:.2g}", f"{value:.2g}", show(many), ratio(many, n))
        cells += (f"{least:.2g}", by, show(own), ratio(own, n))
        lines.append("".join(f"| {cell} " for cell in cells) + "|")
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


def show(number):
    return f"over {EULERS[-1]}" if np.isinf(number) else f"{number:.0f}"


def ratio(number, n):
    return f"over {EULERS[-1] / n:.0f}" if np.isinf(number) else f"{number / n:.1f}"


if __name__ == "__main__":
    main()
