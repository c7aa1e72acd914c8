"""The numbers of `jd.solvers.default`: fitted to a family of targets, none of them the benchmark's.

    python benchmarks/default_fit.py 8 10 --write          # a minute each, after three for the goals
    python benchmarks/default_fit.py 5 --end 4.5 --sharp 10 --tilt 0.82 --write    # 15 and 20: --sharp 6
    python benchmarks/default_fit.py --check               # on members that were not fitted

A default of n evaluations is free in its n - 1 levels of log-SNR and in how its last four estimates make the
next (`jaxdiff.solvers.presets.from_levels`), and nothing else: both are the same for every process. They are
fitted by Levenberg-Marquardt, as `jd.solvers.tune` fits its own, to the soft maximum over the family and
VP, EDM and rectified flow of

    mean log(error) - log(goal)

where the goal is what stock solvers on stock grids reach on the same target (`to_beat`). The family: rings of
narrow modes, anisotropic mixtures and low-rank components of other seeds, sizes and spreads than those of
`jd.testing.standard_targets()`. Fits are kept in `--out`, and are starts for those of other lengths. Up to 8
evaluations end at 4.5, and the more of them the less they lack: at 5, `--tilt` asks for more on low-rank
targets, which fell short first where they were given 640 values.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import textwrap
import time

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")  # wrong sums in long scans

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff.solvers.presets import from_levels, slots
from jaxdiff.solvers.search import numeric, walk_to_end
from jaxdiff.solvers.tuning import FLOOR, Fit, fine_plan

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import work_precision as wp

PROCESSES = {"VP": jd.processes.VP(), "EDM": jd.processes.EDM(), "RF": jd.processes.RectifiedFlow()}
EVALUATIONS = (5, 8, 10, 15, 20)
RIDGE = 1e-4  # keeps what the family does not determine near the start


def ring(seed):
    rng = np.random.default_rng(seed)
    count = rng.integers(5, 13)
    angles = 2 * np.pi * (np.arange(count) + rng.uniform()) / count
    means = rng.uniform(0.8, 1.3) * np.stack([np.cos(angles), np.sin(angles)], 1)
    return jd.testing.gaussian_mixture(means, np.full(count, rng.uniform(0.035, 0.08) ** 2))


def mixture(seed):
    rng = np.random.default_rng(seed)
    count, size = rng.integers(7, 13), rng.choice([32, 48, 80])
    means = rng.normal(size=(count, size)) * rng.uniform(0.4, 0.7)
    return jd.testing.gaussian_mixture(means, 0.5 ** rng.uniform(0, rng.uniform(6, 9), size=(count, size)))


def flat(seed):
    rng = np.random.default_rng(seed)
    count, size, rank = rng.integers(3, 6), rng.choice([256, 384]), rng.integers(6, 11)
    bases = np.stack([np.linalg.qr(rng.normal(size=(size, rank)))[0] for _ in range(count)])
    factors = bases * rng.uniform(0.4, rng.uniform(2, 3.5), size=(count, 1, rank))
    means = rng.normal(size=(count, size)) * rng.uniform(0.2, 0.4)
    rest = np.exp(rng.uniform(np.log(0.007), np.log(0.014))) ** 2
    return jd.testing.gaussian_mixture(means, jd.testing.low_rank(factors, rest))


KINDS = {"ring": (ring, 64), "mixture": (mixture, 48), "flat": (flat, 24)}  # and paths for a goal


def members(seeds):
    """`{name: (target, process, paths)}`: every kind on every process, each time another target."""
    found = {}
    for k, (kind, (make, count)) in enumerate(KINDS.items()):
        for j, name in enumerate(PROCESSES):
            for seed in seeds:
                found[f"{kind}{seed}, {name}"] = (make(100 * seed + 10 * k + j), name, count)
    return found


class Member:
    """A target on a process: reference paths, the objective of `tune` on them, and what is to be beaten."""

    def __init__(self, target, kind, count, key):
        self.process = PROCESSES[kind]
        self.denoise = target.denoiser(self.process)
        keys = jax.random.split(key, count)
        x = jax.vmap(lambda k: self.process.prior(k, target.event))(keys)
        fine = numeric(fine_plan(self.process))
        ends = jax.jit(lambda x, rows: walk_to_end(self.denoise, rows, x))(x, fine)
        self.paths = x, ends[None]
        self.fit = Fit([self.denoise], float(FLOOR * jnp.sqrt(jnp.mean(ends**2))))

    def medians(self, plans):
        """Median errors of plans of any lengths, in one program."""
        rows, (x, ends) = numeric(jd.solvers.stack([padded(p, EVALUATIONS[-1]) for p in plans])), self.paths

        @jax.jit
        def run(rows):
            def median(row):
                return jnp.median(jnp.linalg.norm(walk_to_end(self.denoise, row, x) - ends[0], axis=1))

            return jax.lax.map(median, rows)

        return np.nan_to_num(np.asarray(run(rows)), nan=np.inf)

    def peers(self, kind, nfe):
        """Median errors of what is installed of diffusers and its like."""
        x, ends = self.paths
        found = wp.peers.ends(self.denoise, self.process, kind, x, nfe)
        return {name: float(np.median(np.linalg.norm(end - ends[0], axis=1))) for name, end in found.items()}


def padded(rows, nfe):
    """The plan with further evaluations that do nothing."""
    more = nfe - rows.nfe

    def filled(columns, j):
        still = np.zeros((more, columns.shape[1]))
        still[:, j] = 1.0
        return np.concatenate([columns, still])

    return rows.replace(
        t=np.append(rows.t, np.full(more, rows.t[-1])), to=np.append(rows.to, np.zeros(more)),
        keep=filled(rows.keep, 1), next=filled(rows.next, 0), base=filled(rows.base, 1),
        arrives=np.arange(1, nfe + 1), steps=nfe,
    )  # fmt: skip


def to_beat(target, count, key):
    """`{nfe: error}` to reach on every process: a best single stock configuration, or 1.3 times a best cell.

    A single configuration is taken over `EVALUATIONS`, as in `work_precision.ratios`; of the two numbers
    of a process the smaller counts, and of the processes the least.
    """
    goals = {n: [] for n in EVALUATIONS}
    for kind in PROCESSES:
        member = Member(target, kind, count, key)
        plans = {n: wp.stock(member.process, n) for n in EVALUATIONS}
        errors = iter(member.medians([p for some in plans.values() for p in some.values()]))
        found = {n: {name: float(next(errors)) for name in some} for n, some in plans.items()}
        if kind == "RF":  # whose peers have grids that are not among the stock ones
            for n, cell in found.items():
                cell |= member.peers(kind, n)
        everywhere = set.intersection(*(set(cell) for cell in found.values()))
        single = min(everywhere, key=lambda name: sum(np.log(cell[name]) for cell in found.values()))  # noqa: B023
        for n, cell in found.items():
            goals[n].append(min(cell[single], 1.3 * min(cell.values())))
    return {n: min(some) for n, some in goals.items()}


def numbers(free, nfe, end):
    """`(levels (nfe - 1,), slopes (nfe, 3))` of free numbers: levels increase and stay below `end`."""
    gaps = jnp.cumsum(jnp.exp(free[: nfe - 2]))
    low, high = free[nfe - 2], end - jnp.exp(free[nfe - 1])
    levels = low + (high - low) * jnp.concatenate([jnp.zeros(1), gaps / gaps[-1]])
    return levels, jnp.zeros((nfe, 3)).at[slots(nfe)].set(free[nfe:])


def freed(levels, slopes, end):
    """The free numbers of levels and slopes."""
    high = min(levels[-1], end - 0.02)
    gaps = np.log(np.maximum(np.diff(levels), 0.02))
    return np.concatenate([gaps, [levels[0], np.log(end - high)], slopes[slots(len(slopes))]])


class Descent:
    """The soft maximum of log ratios over members, and Levenberg-Marquardt on it."""

    def __init__(self, family, beat, nfe, end, sharp):
        self.family, self.nfe, self.end, self.sharp = family, nfe, end, sharp
        self.goal = np.array([np.log(beat[name]) for name in family])
        self.equations, self.values = [], []
        for member in family.values():
            self.add(member)

    def add(self, member):
        def table(free):
            return from_levels(member.process, *numbers(free, self.nfe, self.end))

        size = self.nfe + len(slots(self.nfe)[0])
        self.equations.append(member.fit.normal_equations(table, size, member.paths))
        self.values.append(jax.jit(lambda free: member.fit.objective(table(free), *member.paths)))

    def ratios(self, free):
        free = jnp.asarray(free, jnp.float32)
        return np.array([float(value(free)) for value in self.values]) - self.goal

    def value(self, free, start):
        ratios = self.ratios(free)
        most = ratios.max()
        soft = most + np.log(np.mean(np.exp(self.sharp * (ratios - most)))) / self.sharp
        return soft + 0.5 * RIDGE * np.sum((free - start) ** 2), ratios

    def normal(self, free, start, ratios):
        """Gradient and curvature: Gauss-Newton's of every member, and the soft maximum's own."""
        weights = np.exp(self.sharp * (ratios - ratios.max()))
        weights /= weights.sum()
        parts = [e(jnp.asarray(free, jnp.float32)) for e in self.equations]
        g = np.stack([np.asarray(p[0], np.float64) for p in parts])
        h = np.einsum("m,mij->ij", weights, np.stack([np.asarray(p[1], np.float64) for p in parts]))
        mean = weights @ g
        h += self.sharp * ((g * weights[:, None]).T @ g - np.outer(mean, mean))
        return mean + RIDGE * (free - start), h + RIDGE * np.eye(len(free))

    def run(self, start, updates):
        free, damping = start, 1e-2
        value, ratios = self.value(free, start)
        g, h = self.normal(free, start, ratios)
        for _ in range(updates):
            trial = free - np.linalg.solve(h + damping * np.diag(np.diag(h)), g)
            found, new = self.value(trial, start)
            if not found < value:  # NaN too
                damping *= 4
                if damping > 1e5:
                    break
                continue
            gain, free, value, ratios, damping = value - found, trial, found, new, max(damping / 3, 1e-6)
            if gain < 2e-3:
                break
            g, h = self.normal(free, start, ratios)
        return free, value, ratios


def starts(nfe, end, rng, count):
    """Levels that increase by a power, and slopes like those of Adams-Bashforth's methods."""
    slopes = np.zeros((nfe, 3))
    slopes[slots(nfe)] = np.array([0.7, -0.3, 0.1])[slots(nfe)[1]]
    for _ in range(count):
        first, last = rng.uniform(-2.0, -0.8), min(rng.uniform(2.0, 3.5 + 0.2 * nfe), end - 0.1)
        levels = first + (last - first) * np.linspace(0, 1, nfe - 1) ** rng.uniform(0.9, 1.6)
        yield freed(levels, slopes, end)


def stretched(levels, slopes, nfe, end):
    """A fit of another number of evaluations as a start: its rows and levels read off between."""
    old, new = np.linspace(0, 1, len(levels)), np.linspace(0, 1, nfe - 1)
    high = np.minimum(np.interp(new, old, levels), end - 0.1 + 0.05 * (new - 1) * nfe)
    rows = np.linspace(0, 1, nfe), np.linspace(0, 1, len(slopes))
    return freed(high, np.stack([np.interp(*rows, column) for column in np.transpose(slopes)], 1), end)


def fitted(family, beat, nfe, end, sharp, others, updates=30):
    """`(levels, slopes, ratios)`: the best of descents from fits of other lengths and from random starts."""
    descent, rng = Descent(family, beat, nfe, end, sharp), np.random.default_rng(nfe)
    first = [stretched(*fit, nfe, end) for fit in others]
    rest = sorted(starts(nfe, end, rng, 24), key=lambda free: descent.value(free, free)[0])
    few = 5 if nfe < 9 else 2 if nfe < 12 else 1  # the fewer evaluations, the more local minima
    runs = sorted((descent.run(free, 15) for free in [*first, *rest[:few]]), key=lambda run: run[1])
    free, _, ratios = descent.run(runs[0][0], updates)
    levels, slopes = numbers(jnp.asarray(free, jnp.float32), nfe, end)
    return np.asarray(levels, float), np.asarray(slopes, float), np.exp(ratios)


def goals(path, family):
    """What every member has to reach, kept in a file."""
    known = json.loads(path.read_text()) if path.exists() else {}
    for name, (target, _, count) in family.items():
        if name not in known:
            known[name] = list(to_beat(target, count, jax.random.key(5)).values())
            path.write_text(json.dumps(known))
    return known


def check(family, known):
    """Median errors of `jd.solvers.default` over the goals."""
    for name, (target, kind, count) in family.items():
        member = Member(target, kind, 4 * count, jax.random.key(8))
        errors = member.medians([jd.solvers.default(member.process, n) for n in EVALUATIONS])
        print(name, dict(zip(EVALUATIONS, (errors / np.array(known[name])).round(2).tolist(), strict=True)))


def write(fits):
    """The module that the library reads."""
    lines = [
        '"""Levels of log-SNR and slopes of `jd.solvers.default`; written by `benchmarks/default_fit.py`.',
        "",
        "By the end that levels stay below and the number of evaluations: `nfe - 1` levels, and row by row",
        "the slopes that have estimates before them, at most three a row.",
        '"""',
        "",
        "FITTED = {",
    ]
    for nfe, end in sorted((int(n), float(end)) for n, end in map(str.split, fits)):
        levels, slopes = fits[f"{nfe} {end}"]
        slopes = np.array(slopes)[slots(nfe)].tolist()
        levels, slopes = (", ".join(f"{v:.4f}" for v in numbers) for numbers in (levels, slopes))
        entry = f"({end}, {nfe}): (({levels}), ({slopes})),"
        lines += textwrap.wrap(entry, 108, initial_indent="    ", subsequent_indent="        ")
    module = pathlib.Path(jd.__file__).parent / "solvers" / "fitted.py"
    module.write_text("\n".join([*lines, "}  # fmt: skip"]) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("nfe", type=int, nargs="*", help="evaluations, at least 3")
    parser.add_argument("--end", type=float, nargs="+", default=[4.5, 6.2], help="largest log-SNR of a level")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("default_fit.json"))
    parser.add_argument("--sharp", type=float, default=4.0, help="of the soft maximum over the family")
    parser.add_argument("--tilt", type=float, default=1.0, help="factor of the goals of low-rank targets")
    parser.add_argument("--write", action="store_true", help="write jaxdiff/solvers/fitted.py")
    parser.add_argument("--check", action="store_true", help="ratios to the goals of targets not fitted")
    arguments = parser.parse_args()
    family = members([4] if arguments.check else [1, 2, 3])
    known = goals(arguments.out.with_suffix(".goals.json"), family)
    if arguments.check:
        return check(family, known)
    run = {name: Member(t, kind, n // 2, jax.random.key(7)) for name, (t, kind, n) in family.items()}
    fits = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    for nfe, end in itertools.product(arguments.nfe, arguments.end):
        begin = time.process_time()
        at = np.log(EVALUATIONS)
        beat = {name: np.exp(np.interp(np.log(nfe), at, np.log(goal))) for name, goal in known.items()}
        beat |= {name: arguments.tilt * goal for name, goal in beat.items() if name.startswith("flat")}
        near = sorted(fits, key=lambda k: abs(int(k.split()[0]) - nfe) + (k.split()[1] != str(end)))[:2]
        # few evaluations differ more between members; rings are cheap
        some = {name: run[name] for name in run if nfe < 9 or "1," in name or name.startswith("ring")}
        levels, slopes, ratios = fitted(some, beat, nfe, end, arguments.sharp, [fits[k] for k in near])
        fits[f"{nfe} {end}"] = levels.round(4).tolist(), slopes.round(4).tolist()
        arguments.out.write_text(json.dumps(fits))
        seconds = time.process_time() - begin
        print(f"{nfe} to {end}: {ratios.round(2).tolist()}, {seconds:.0f} CPU-seconds", flush=True)
    if arguments.write:
        write(fits)


if __name__ == "__main__":
    main()
