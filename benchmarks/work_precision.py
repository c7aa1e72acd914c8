"""Error against evaluations: every solver on its stock grids, peers, the default and tuned ones.

    python benchmarks/work_precision.py --save          # tables and plot in benchmarks/results; half an hour
    python benchmarks/work_precision.py --guided        # under classifier-free guidance of scale 4 and 7.5
    python benchmarks/work_precision.py --quick         # the 2-D target alone, fewer noises

For each of `jd.testing.standard_targets()` and VP, EDM and rectified flow: the median over noises of the
distance to the exact end of the probability flow (guided: to a fine path), its root mean square, and the
share of flips (more than half a data deviation away). "Stock" is every published solver of `SOLVERS` on every
published grid of `GRIDS`, by this library's formulas (they agree with the peers' to 1e-9:
`tests/solvers/test_peers.py`), all of equal evaluations in one compiled program under `vmap`; and diffusers,
k-diffusion and diffrax themselves with their own grids, where they are installed (`benchmarks/peers.py`),
from the same noise.
"""

import argparse
import itertools
import json
import os
import pathlib
import sys
import time
import warnings

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_experimental_ynn_fusion_type=")  # wrong sums in long scans

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff.solvers.tuning import fine_plan

sys.path.insert(0, str(pathlib.Path(__file__).parent))
import peers

S, G = jd.solvers, jd.grids
RESULTS = pathlib.Path(__file__).parent / "results"
EVALUATIONS = (5, 8, 10, 15, 20, 50)
SOLVERS = {
    "DDIM": S.ddim(), "Heun": S.heun("sigma"), "DPM-Solver-2": S.dpm_singlestep(2),
    "DPM-Solver++ 2S": S.dpmpp_singlestep(2),
    "DPM-Solver++ 2M": S.dpmpp_multistep(2),
    "DPM-Solver++ 3M (published)": S.dpmpp_multistep(3, published=True),
    "DPM-Solver++ 3M": S.dpmpp_multistep(3), "UniPC-2 (published)": S.unipc(2, published=True),
    "UniPC-2": S.unipc(2), "UniPC-3 (published)": S.unipc(3, published=True), "UniPC-3": S.unipc(3),
    "DEIS-3": S.deis(3), "LMS-4": S.lms(4),
    "PLMS": S.plms(), "ER-SDE-3 (ODE)": S.er_sde(3, 0.0), "Adams-Bashforth-2": S.adams_bashforth(2),
}  # fmt: skip
GRIDS = {
    "uniform": G.uniform, "quadratic": G.quadratic, "log-SNR": G.log_snr, "Karras": G.karras,
    "cosine": G.cosine, "shifted": G.shifted,
}  # fmt: skip
OURS = ("default", "tuned")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--guided", action="store_true", help="under classifier-free guidance")
    parser.add_argument(
        "--quick", action="store_true", help="the 2-D target, 200 noises, 5 and 10 evaluations"
    )
    parser.add_argument("--only", help="the targets or processes named here, such as 'mixture-64d VP'")
    parser.add_argument(
        "--save", action="store_true", help="write benchmarks/results/work_precision*.{md,png}"
    )
    parser.add_argument("--cells", help="a JSON file of what was measured: kept up to date, and not repeated")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the peers, about each other
    curves, seconds = known(arguments.cells)
    for target, process, scale, title in blocks(arguments):
        if title in curves:
            continue
        evaluations = (5, 10) if arguments.quick else EVALUATIONS[:-1] if arguments.guided else EVALUATIONS
        count = 200 if arguments.quick else 2000 if target.event[0] < 512 else 500
        x = starts(process, target, count)
        denoise, exact, spread = problem(target, process, x, scale)
        begin = time.process_time()
        kind = title.split(", ")[1]
        curves[title] = {n: cell(denoise, process, kind, x, exact, spread, n) for n in evaluations}
        seconds[title] = time.process_time() - begin
        print("\n".join(table(title, curves[title], seconds[title])), flush=True)
        if arguments.cells:
            pathlib.Path(arguments.cells).write_text(json.dumps([curves, seconds]))
    if arguments.save:
        save(curves, seconds, "_guided" if arguments.guided else "")
    print("\n".join(summary(curves)))


def known(path):
    """The cells and seconds of earlier runs, by block."""
    if path is None or not pathlib.Path(path).exists():
        return {}, {}
    curves, seconds = json.loads(pathlib.Path(path).read_text())
    return {title: {int(n): cell for n, cell in cells.items()} for title, cells in curves.items()}, seconds


def blocks(arguments):
    """`(target, process, guidance scale or None, title)`."""
    targets = jd.testing.standard_targets()
    targets = {"modes-2d": targets["modes-2d"]} if arguments.quick else targets
    processes = {"VP": jd.processes.VP(), "EDM": jd.processes.EDM(), "RF": jd.processes.RectifiedFlow()}
    scales = (4.0, 7.5) if arguments.guided else (None,)
    wanted = (arguments.only or "").split()
    for (name, target), (kind, process), scale in itertools.product(
        targets.items(), processes.items(), scales
    ):
        title = f"{name}, {kind}" + (f", scale {scale:g}" if scale else "")
        if all(word in title.replace(",", "").split() for word in wanted):
            yield target, process, scale, title


def save(curves, seconds, suffix):
    """The tables and the plot."""
    peers_run = ", ".join(name for name in peers.INSTALLED if name != "torch") or "none"
    end, what = "the exact end of the probability flow", ""
    if suffix:
        end, what = "the end of 1,000 steps of UniPC-3", " Half of the components against all of them."
    lines = [
        f"# Error against evaluations{' under classifier-free guidance' if suffix else ''}",
        "",
        f"Median distance to {end} (share of flips) over 2,000 noises, 500 in 512 dimensions.{what} Peers "
        f"run beside ours: {peers_run}.",
        "",
        *([] if suffix else [our_table(), ""]),
        *summary(curves),
    ]
    for title, cells in curves.items():
        lines += table(title, cells, seconds[title])
    (RESULTS / f"work_precision{suffix}.md").write_text("\n".join(lines).rstrip() + "\n")
    plot(curves, RESULTS / f"work_precision{suffix}.png")


def our_table():
    """What all our deterministic solvers take in compiled programs under `vmap`, as a sentence."""
    process, target = jd.processes.VP(), jd.testing.standard_targets()["mixture-64d"]
    x, denoise, plans = starts(process, target, 2000), target.denoiser(process), 0
    begin = time.process_time()
    for nfe in EVALUATIONS:
        plans += len(compare(denoise, process, stock(process, nfe), x))
    return (
        f"Our solvers' part of the table in 64 dimensions on VP, {plans} plans over 2,000 noises, one program"
        f" for each number of evaluations: {time.process_time() - begin:.0f} CPU-seconds with compilation."
    )


def starts(process, target, count):
    keys = jax.random.split(jax.random.key(0), count)
    return jax.vmap(lambda key: process.prior(key, target.event))(keys)


def problem(target, process, x, scale):
    """The denoiser, the exact ends, and the data's deviation over all values.

    Guided: from half of the components, against all of them.
    """
    spread = float(np.sqrt(np.sum(np.var(np.asarray(target.sample(jax.random.key(1), 2000)), axis=0))))
    if scale is None:
        exact = jd.testing.flow_map(target, process, np.asarray(x, np.float64), process.t_max, 0.0)
        return target.denoiser(process), exact, spread
    half = np.arange(len(target.weights)) < len(target.weights) // 2
    table = target.spectrum
    covariances = table.variances[half] if table.basis is None else type(table)(
        table.basis[half], table.variances[half], None if table.rest is None else table.rest[half]
    )  # fmt: skip
    part = jd.testing.gaussian_mixture(target.means[half], covariances, target.weights[half])
    denoise = jd.guidance.classifier_free(part.denoiser(process), target.denoiser(process), scale)
    fine = fine_plan(process, 1000)
    return denoise, np.asarray(jax.jit(lambda x: jd.sample(None, denoise, process, fine, x=x))(x)), spread


def cell(denoise, process, kind, x, exact, spread, nfe):
    """`{configuration: (median, root mean square, flips)}` of everything with `nfe` evaluations."""
    found = compare(denoise, process, stock(process, nfe) | {"default": S.default(process, nfe)}, x)
    if peers.INSTALLED:
        found |= peers.ends(denoise, process, kind, x, nfe)
    if nfe <= 10:
        begin = time.process_time()
        tuned = S.tune(jax.random.key(1), denoise, process, nfe, shape=x.shape[1:])
        print(f"  tuned for {nfe} evaluations in {time.process_time() - begin:.0f} CPU-seconds", flush=True)
        found |= compare(denoise, process, {"tuned": tuned.rows}, x)
    return {name: measure(end, exact, spread) for name, end in found.items()}


def stock(process, nfe):
    """Plans of every published solver on every published grid, with exactly `nfe` evaluations."""
    plans = {}
    for (solver_name, solver), (grid_name, grid) in itertools.product(SOLVERS.items(), GRIDS.items()):
        if grid_name == "shifted" and not isinstance(process, jd.processes.RectifiedFlow):
            continue
        for steps in (nfe, (nfe + 1) // 2, nfe // 2):
            plan = solver.plan(process, grid(process, steps)) if steps else None
            if plan is not None and plan.nfe == nfe:
                plans[f"{solver_name}, {grid_name}"] = plan
                break
    return plans


def compare(denoise, process, plans, x, at_once=4):
    """Ends of all plans, in one compiled program: evaluations count, which of them are steps does not."""
    rows = S.stack([p.replace(steps=p.nfe, arrives=np.arange(1, p.nfe + 1)) for p in plans.values()])
    rows = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.result_type(float)), rows)

    @jax.jit
    def run(rows, x):
        return jax.lax.map(
            lambda row: jd.sample(None, denoise, process, row, x=x), rows, batch_size=min(at_once, len(plans))
        )

    return dict(zip(plans, np.asarray(run(rows, x)), strict=True))


def measure(x, exact, spread):
    error = np.linalg.norm((x - exact).reshape(len(x), -1), axis=1)
    error = np.where(np.isfinite(error), error, np.inf)
    return [float(v) for v in (np.median(error), np.sqrt(np.mean(error**2)), np.mean(error > 0.5 * spread))]


def ratios(cells):
    """`{evaluations: {column: number}}`, and the best single stock configuration."""
    few = {n: cell for n, cell in cells.items() if n < 50}
    everywhere = [name for name in cells[min(cells)] if all(name in cell for cell in few.values())]
    everywhere = [name for name in everywhere if name not in OURS]
    single = min(everywhere, key=lambda name: np.mean([np.log(cell[name][0]) for cell in few.values()]))
    rows = {}
    for n, cell in cells.items():
        best = min((name for name in cell if name not in OURS), key=lambda name: cell[name][0])
        rows[n] = {"best": best, "to single": np.inf, "to best": cell["default"][0] / cell[best][0]}
        if single in cell:
            rows[n]["to single"] = cell["default"][0] / cell[single][0]
        if "tuned" in cell:
            rows[n]["tuned"] = cell["tuned"][0] / cell[best][0]
    return rows, single


def table(title, cells, seconds):
    """A table of the tuned, the default and the best stock configurations."""
    rows, single = ratios(cells)
    lines = [
        f"### {title} ({seconds:.0f} CPU-seconds)",
        "",
        f"Best single stock configuration below 50: {single}.",
        "",
        "| evaluations | tuned | default | best single | best of the cell | which | default / single | "
        "default / best | tuned / best |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for n, cell in cells.items():
        row = rows[n]
        shown = [show(cell.get(name)) for name in ("tuned", "default", single, row["best"])]
        tuned = f"{row['tuned']:.3f}" if "tuned" in row else ""
        lines.append(
            f"| {n} | {' | '.join(shown)} | {row['best']} | {row['to single']:.2f} | {row['to best']:.2f} | "
            f"{tuned} |"
        )
    return [*lines, ""]


def summary(curves):
    """Ratios to the best of all stock configurations and peers, cell by cell; who wins where."""
    counts = sorted({n for cells in curves.values() for n in cells})
    lines = [
        "Ratios of median errors: the default's to the best single stock configuration / to the best of the "
        "cell, and the tuned solver's to the best of the cell in brackets.",
        "",
        "| | " + " | ".join(map(str, counts)) + " |",
        "|---" * (len(counts) + 1) + "|",
    ]
    wins = {}
    for title, cells in curves.items():
        rows, _ = ratios(cells)
        shown = []
        for n in counts:
            row = rows.get(n)
            shown.append("" if row is None else f"{row['to single']:.2f} / {row['to best']:.2f}")
            if row is not None:
                wins.setdefault(row["best"], []).append(f"{title} at {n}")
                shown[-1] += f" ({row['tuned']:.3f})" if "tuned" in row else ""
        lines.append(f"| {title} | " + " | ".join(shown) + " |")
    lines += ["", "Best stock configuration of a cell, and where:", ""]
    for name, places in sorted(wins.items(), key=lambda item: -len(item[1])):
        lines.append(f"- {name}: {'; '.join(places)}")
    return [*lines, ""]


def show(cell):
    return "" if cell is None else f"{cell[0]:.2g} ({cell[2]:.3f})"


def plot(curves, path):
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    columns = min(3, len(curves))
    lines = -(-len(curves) // columns)
    figure, axes = plt.subplots(lines, columns, figsize=(4 * columns, 3.2 * lines), squeeze=False)
    for axis in axes.ravel()[len(curves) :]:
        axis.remove()
    for axis, (title, cells) in zip(axes.ravel(), curves.items(), strict=False):
        for name in sorted({name for cell in cells.values() for name in cell}):
            points = [(n, cell[name][0]) for n, cell in cells.items() if name in cell]
            library = name.split()[0] in ("diffusers", "k-diffusion", "diffrax")
            color = {"default": "C3", "tuned": "C0"}.get(name, "C1" if library else "0.8")
            axis.plot(*zip(*points, strict=True), color=color, alpha=0.5 if library else 1.0,
                      lw=2 if name in OURS else 0.8, zorder=2 + library + 2 * (name in OURS))  # fmt: skip
        best = [min(cell[name][0] for name in cell if name not in OURS) for cell in cells.values()]
        axis.plot(list(cells), best, "k--", lw=1, zorder=5)
        low = min(min(v[0] for v in cell.values()) for cell in cells.values())
        axis.set(xscale="log", yscale="log", title=title, xlabel="evaluations", ylabel="median error",
                 ylim=(0.7 * low, 3.0 * max(cell["default"][0] for cell in cells.values())))  # fmt: skip
        axis.set_xticks(list(cells), [str(n) for n in cells])
        axis.minorticks_off()
    entries = {"tuned": "C0", "default": "C3", "peers": "C1", "published solvers and grids": "0.8"}
    handles = [plt.Line2D([], [], color=color, label=name) for name, color in entries.items()]
    handles.append(plt.Line2D([], [], color="k", ls="--", label="best stock of each cell"))
    figure.tight_layout(rect=(0, 0.35 / figure.get_figheight(), 1, 1))
    figure.legend(handles=handles, fontsize=8, ncols=5, loc="lower center")
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
