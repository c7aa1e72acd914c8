"""A tuned solver of 5 evaluations on trained digits, beside the stock ones and 50 evaluations.

    python benchmarks/tuned_digits.py RUN [RUN ...] [--nfe 5] [--draws 4] [--save]

Each RUN is a directory of `jaxdiff train`. A solver is tuned on it from 128 reference paths over the labels,
kept as RUN/tuned-5.json (four CPU-minutes, most of them the network's derivatives), and then drawn from as
anyone would:

    jaxdiff sample RUN --solver RUN/tuned-5.json

The Frechet distance is to the held-out 600, of 600 samples with their labels, rounded to grey levels; it
varies by some per cent from draw to draw, so all solvers start from the same noises and ratios are of means.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import job as job_

RESULTS = pathlib.Path(__file__).parent / "results" / "tuned_digits.md"


def conditional(job, params):
    """`denoise(x, t, label)` of a run."""

    def denoise(x, t, label):
        condition = {"label": label}
        if job.vector_size is not None:
            condition["vector"] = jnp.zeros((len(x), job.vector_size))

        def net(x, c_noise):
            return job.model.apply({"params": params}, x, c_noise, condition)

        return jd.denoiser(net, job.process, job.parameterization)(x, t)

    return denoise


def tuned(run, job, params, given):
    """The path of the solver tuned on a run, made where it is not there; and the CPU-seconds it took."""
    path, begin = pathlib.Path(run) / f"tuned-{given.nfe}.json", time.process_time()
    if not path.exists():
        found = jd.solvers.tune(
            given.key, conditional(job, params), job.process, given.nfe, shape=job.shape,
            samples=given.paths, proposals=given.proposals, updates=given.updates,
            condition=np.arange(job.num_classes), about={"run": pathlib.Path(run).name},
        )  # fmt: skip
        found.save(path)
    return path, time.process_time() - begin


def measure(run, given):
    """`({solver: (draws,) distances}, CPU-seconds of tuning)`."""
    config = training.read_config(run)
    params = training.restore(training.checkpoint_directory(run))[1]["ema"][0]
    job, dataset = job_.build_job(config), jd.data.load(config["data"])
    path, seconds = tuned(run, job, params, given)
    settings = {
        f"tuned, {given.nfe}": {"solver": str(path)},
        f"its own, {given.nfe}": {"sample_steps": given.nfe},
        f"UniPC-2 in log-SNR, {given.nfe}": {
            "solver": "unipc(2)", "grid": "log_snr", "sample_steps": given.nfe,
        },
        "its own, 10": {"sample_steps": 10},
        "its own, 50": {"sample_steps": 50},
    }  # fmt: skip
    real, label = dataset.held_out["x"], dataset.held_out["label"]
    judge = jd.metrics.feature_classifier(dataset.train["x"], dataset.train["label"])
    features, distances = judge.features(real), {}
    for name, setting in settings.items():
        draw = job_.make_sampler(job, config | setting)
        samples = [draw(params, len(real), given.seed + i, label) for i in range(given.draws)]
        distances[name] = [jd.metrics.frechet_distance(judge.features(x), features) for x in samples]
    return distances, seconds


def table(records):
    """Means over draws, and their ratio to 50 evaluations; of several runs also over all of them."""
    names = list(next(iter(records.values()))[0])
    lines = [f"| run | {' | '.join(names)} | tuned / 50 | CPU-seconds of tuning |"]
    lines.append("|---" * (len(names) + 3) + "|")
    means = {run: {name: np.mean(values) for name, values in found.items()}
             for run, (found, _) in records.items()}  # fmt: skip
    seconds = {run: seconds for run, (_, seconds) in records.items()}
    if len(means) > 1:
        means["all"] = {name: np.mean([mean[name] for mean in means.values()]) for name in names}
    for run, mean in means.items():
        cells = " | ".join(f"{mean[name]:.3f}" for name in names)
        spent = f"{seconds[run]:.0f}" if run in seconds else ""
        lines.append(f"| {run} | {cells} | {mean[names[0]] / mean[names[-1]]:.3f} | {spent} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", help="directories of `jaxdiff train`")
    parser.add_argument("--nfe", type=int, default=5, help="evaluations")
    parser.add_argument("--draws", type=int, default=4, help="of 600 samples each")
    parser.add_argument("--seed", type=int, default=100, help="of the draws")
    parser.add_argument("--paths", type=int, default=128, help="reference paths")
    parser.add_argument("--proposals", type=int, default=64, help="starts tried")
    parser.add_argument("--updates", type=int, default=25, help="of Levenberg-Marquardt")
    parser.add_argument("--save", action="store_true", help=f"write the table to {RESULTS.name}")
    given = parser.parse_args()
    given.key = jax.random.key(1)
    records = {pathlib.Path(run).name: measure(run, given) for run in given.runs}
    text = "\n\n".join([
        "# A tuned solver on trained digits",
        f"Frechet distance to the held-out 600, mean of {given.draws} draws of 600 samples from the same "
        f"noises; tuned from {given.paths} reference paths over the labels.",
        table(records),
    ])  # fmt: skip
    print(text)
    if given.save:
        RESULTS.write_text(text + "\n")


if __name__ == "__main__":
    main()
