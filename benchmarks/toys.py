"""Quality of the two-dimensional toys: `jaxdiff train --data NAME`, over seeds and draws.

    python benchmarks/toys.py [--seeds 0 1 2] [--save]

CPU-seconds of training (compilation included, on as many threads as the command takes), and the sliced
Wasserstein distance to the held-out split of 5,000 samples beside that of 5,000 training points, each
averaged over draws.
"""

import argparse
import pathlib
import time

import jax
import numpy as np

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import job as job_
from jaxdiff.cli.config import Train, resolve
from jaxdiff.cli.defaults import threads_for
from jaxdiff.cli.threads import at_most

RESULTS = pathlib.Path(__file__).parent / "results" / "toys.md"
TOYS = ("moons", "eight_gaussians", "checkerboard")
DRAWS, SIZE = 4, 5000


def run(name, seed):
    """CPU-seconds, and distances of samples and of training points."""
    data = jd.data.load(name)
    config = resolve(Train(data=name, seed=seed), data)
    job = job_.build_job(config)
    start = time.process_time()
    state = training.fit(
        training.init_params(job.model, jax.random.key(seed), job.shape), job_.objective(job, config),
        {"x": np.asarray(data.to_model(data.train["x"]), np.float32)},
        steps=config["steps"], batch_size=config["batch_size"], seed=seed,
        optimizer=job_.optimizer(config), ema=config["ema"], progress=False,
    )  # fmt: skip
    cpu = time.process_time() - start
    draw, rng = job_.make_sampler(job, config), np.random.default_rng(seed)
    real = data.held_out["x"]
    ours = [jd.metrics.sliced_wasserstein(draw(state.ema[0], SIZE, 10 + i), real) for i in range(DRAWS)]
    theirs = [
        jd.metrics.sliced_wasserstein(rng.permutation(data.train["x"])[:SIZE], real) for _ in range(DRAWS)
    ]
    return cpu, np.mean(ours), np.mean(theirs)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--save", action="store_true", help=f"write the table to {RESULTS.name}")
    arguments = parser.parse_args()
    lines = ["| toy | CPU-seconds | sliced Wasserstein | floor | ratio |", "|---|---|---|---|---|"]
    with at_most(threads_for(TOYS[0])):
        jax.devices()
    for name in TOYS:
        cpu, ours, floor = np.mean([run(name, seed) for seed in arguments.seeds], axis=0)
        lines.append(f"| {name} | {cpu:.1f} | {ours:.4f} | {floor:.4f} | {ours / floor:.2f} |")
        print(lines[-1], flush=True)
    if arguments.save:
        title = f"# Two-dimensional toys, mean of {len(arguments.seeds)} seeds, {DRAWS} draws each\n\n"
        RESULTS.write_text(title + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
