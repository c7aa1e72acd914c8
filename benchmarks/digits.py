"""Quality of the main job, `jaxdiff train` without further arguments, over seeds and training budgets.

Each run is trained by the command in a process of its own, whose CPU-seconds (imports, compilation
and checkpoints included) are counted, and evaluated at the run's own number of steps and at 50. The
scores of 600 samples vary with the noise that they start from, so further draws of each run follow:

    python benchmarks/digits.py [--seeds 0 1 2 3 4] [--budgets 1000 2000 4000] [--draws 6] [--out DIR]

With --save the tables are written too. Runs that DIR already holds are not trained again, so two processes
can share the seeds between two cores, and a third makes the table.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results" / "digits.md"
FRESH = 1000  # first seed of the further draws
TARGETS = {
    "frechet_distance": "at most 1.25 floors",
    "label_accuracy": "at least .98",
    "two_sample_accuracy": "at most .55",
    "coverage": "at least .93",
    "memorisation_share": "at most .58",
}


def command(*arguments):
    """CPU-seconds of `jaxdiff ARGUMENTS` in a process of its own."""
    words = [sys.executable, "-m", "jaxdiff", *map(str, arguments)]
    child = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    if status:
        raise RuntimeError(f"failed: {' '.join(words)}")
    return usage.ru_utime + usage.ru_stime


def job(out, seed, steps=None):
    """Trains and evaluates one run, or reads what an earlier call left in `out`."""
    result = out / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    budget = () if steps is None else ("--steps", steps)
    cpu = command("train", "--seed", seed, "--out", out, "--no-evaluate", *budget)
    scores = {}
    for name, grid in (("own", ()), ("50", ("--steps", 50))):
        command("evaluate", out, *grid)
        scores[name] = json.loads((out / "metrics.json").read_text())
    record = {"cpu": cpu, "seed": seed, "scores": scores, "sample": sample_seconds(out)}
    result.write_text(json.dumps(record))
    return record


def sampler(run):
    """`draw(seed, labels)` of the run's averaged network."""
    from jaxdiff import training
    from jaxdiff.cli import job as job_

    config = training.read_config(run)
    _, fields = training.restore(training.checkpoint_directory(run))
    draw = job_.make_sampler(job_.build_job(config), config)
    return lambda seed, labels: draw(fields["ema"][0], len(labels), seed, labels)


def sample_seconds(run):
    """CPU-seconds of 600 samples, the sampler being compiled."""
    draw, labels = sampler(run), np.resize(np.arange(10), 600).astype(np.int32)
    draw(0, labels)
    start = time.process_time()
    draw(1, labels)
    return time.process_time() - start


def further_draws(out, number):
    """Scores of `number` draws from noise that no seed of the table starts from: one dict each."""
    import jaxdiff as jd

    result = out / "draws.json"
    found = json.loads(result.read_text()) if result.exists() else []
    if len(found) < number:
        data, draw = jd.data.load("digits"), sampler(out)
        labels = data.held_out["label"]
        for seed in range(FRESH + len(found), FRESH + number):
            scores = jd.metrics.evaluate(data, draw(seed, labels), labels, draws=1)
            found.append({name: float(score.value) for name, score in scores.items()})
        result.write_text(json.dumps(found))
    return found[:number]


def distance(record, grid="own"):
    score = record["scores"][grid]["frechet_distance"]
    return score["value"] / score["floor"]


def seed_table(records):
    """One line a metric: floor, every seed, mean, target."""
    seeds = [str(r["seed"]) for r in records]
    lines = [f"| metric | floor | {' | '.join(f'seed {s}' for s in seeds)} | mean | target |"]
    lines.append("|---" * (len(seeds) + 4) + "|")
    for name, score in records[0]["scores"]["own"].items():
        values = [r["scores"]["own"][name]["value"] for r in records]
        cells = [score["floor"], *values, np.mean(values)]
        lines.append(f"| {name} | {' | '.join(f'{c:.3f}' for c in cells)} | {TARGETS.get(name, '')} |")
    rows = {
        "distance in floors": [distance(r) for r in records],
        "the same at 50 evaluations": [distance(r, "50") for r in records],
        "CPU-seconds of training": [r["cpu"] for r in records],
        "CPU-seconds of 600 samples": [r["sample"] for r in records],
    }
    for name, values in rows.items():
        cells = " | ".join(f"{v:.2f}" for v in [*values, np.mean(values)])
        lines.append(f"| {name} | | {cells} | |")
    return "\n".join(lines)


def draws_table(records, draws):
    """Means over further draws of every run, and how much one draw varies about its run's mean."""
    number = len(draws[0])
    head = " | ".join(f"seed {r['seed']}" for r in records)
    lines = [f"| mean of {number} further draws | {head} | mean | deviation of one draw |"]
    lines.append("|---" * (len(records) + 3) + "|")
    for name in TARGETS:
        values = np.array([[scores[name] for scores in run] for run in draws])
        if name == "frechet_distance":
            values = values / records[0]["scores"]["own"][name]["floor"]
        means, spread = values.mean(1), values.std(1, ddof=1).mean()
        title = "distance in floors" if name == "frechet_distance" else name
        cells = " | ".join(f"{v:.3f}" for v in [*means, means.mean(), spread])
        lines.append(f"| {title} | {cells} |")
    return "\n".join(lines)


def curve_table(records):
    """Quality against CPU-seconds: each line is a whole run of its own length."""
    names = ("memorisation_share", "two_sample_accuracy", "label_accuracy", "coverage")
    lines = [f"| updates | CPU-seconds | distance in floors | {' | '.join(names)} |", "|---" * 7 + "|"]
    for steps, record in records:
        own = " | ".join(f"{record['scores']['own'][n]['value']:.3f}" for n in names)
        lines.append(f"| {steps} | {record['cpu']:.0f} | {distance(record):.2f} | {own} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--budgets", type=int, nargs="*", default=[1000, 2000, 4000])
    parser.add_argument("--draws", type=int, default=6, help="further draws of each run, at least 2, or 0")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/benchmark-digits"))
    parser.add_argument("--save", action="store_true", help=f"write the tables to {RESULTS.name}")
    given = parser.parse_args()
    given.out = given.out.resolve()
    records = [job(given.out / f"seed-{seed}", seed) for seed in given.seeds]
    curve = [(steps, job(given.out / f"steps-{steps}", 0, steps)) for steps in given.budgets]
    if not records:
        return
    draws = [further_draws(given.out / f"seed-{seed}", given.draws) for seed in given.seeds]
    full = json.loads((given.out / f"seed-{given.seeds[0]}" / "config.json").read_text())["steps"]
    text = "\n\n".join([
        "# Digits: `jaxdiff train` with its defaults, on the held-out 600",
        seed_table(records),
        *([draws_table(records, draws)] if given.draws else []),
        "Quality against CPU-seconds; each line is a run of that many updates, with its own decay.",
        curve_table([*curve, (full, records[0])]),
    ])  # fmt: skip
    print(text)
    if given.save:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
