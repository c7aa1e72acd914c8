"""What the loop around the update costs: feeding, log, checkpoints, against the bare compiled step.

`fit`, as `jaxdiff train` calls it, and the bare step (the same optimizer and averages, batches ready in
memory, nothing watched) take turns of some hundred steps in one process pinned to one core. A figure is
the median over turns of the ratio of neighbouring ones, in CPU-seconds, so that a busy machine moves both
alike; what checkpoints cost is the difference between turns with one and turns without. Two minutes on a
quiet core:

    python benchmarks/training_loop.py [--jobs moons digits] [--core 1] [--turns 12] [--save]
"""

import argparse
import os
import pathlib
import statistics
import tempfile
import time

RESULTS = pathlib.Path(__file__).parent / "results" / "training_loop.md"
TURN = {"moons": 400, "digits": 20}  # steps


def build(data):
    """`(config, params, loss, optimizer, arrays)` of the data set's default job."""
    import jax

    import jaxdiff as jd
    from jaxdiff.cli import job as job_
    from jaxdiff.cli.config import Train, resolve

    dataset = jd.data.load(data)
    config = resolve(Train(data=data, evaluate=False), dataset)
    job = job_.build_job(config)
    params = jd.training.init_params(job.model, jax.random.key(0), job.shape)
    return config, params, job_.objective(job, config), job_.optimizer(config), job_.arrays(job, dataset)


def bare(config, params, loss, optimizer, arrays):
    """`run(steps)` of the bare step, donated state, batches on the device."""
    import jax

    from jaxdiff.training import init_state, make_update
    from jaxdiff.training.feed import make_feed

    feed = make_feed(arrays, config["batch_size"], config["seed"])
    batches = [
        jax.device_put(feed.gather(feed.resident, feed.items(step, 1)[0])) for step in range(16)
    ]

    def plain(*args):  # without its noise levels
        return loss(*args)

    update = jax.jit(make_update(plain, optimizer, config["ema"]), donate_argnums=0)
    state, key = [init_state(params, optimizer, config["ema"])], jax.random.key(0)

    def run(steps):
        for step in range(steps):
            state[0], metrics = update(state[0], batches[step % 16], key)
        jax.block_until_ready(metrics)

    run(2)
    return run


def turns(data, count):
    """CPU-seconds a step, of turns of `fit` and of the bare step; every second one of `fit` saves."""
    import jaxdiff as jd

    config, params, loss, optimizer, arrays = build(data)
    run, size, found = bare(config, params, loss, optimizer, arrays), TURN[data], []
    mark = [None]

    def between(step, params):
        now = time.process_time()
        run(size)
        done = time.process_time()
        if mark[0] is not None:
            found.append(((now - mark[0]) / size, (done - now) / size))
        mark[0] = done

    with tempfile.TemporaryDirectory() as out:
        jd.training.fit(
            params, loss, arrays, steps=size * (count + 1) + 1, batch_size=config["batch_size"],
            optimizer=optimizer, ema=config["ema"], out=out, log_every=100, picture=between,
            picture_every=size, progress=False, checkpoint_every=2 * size,
        )
    return config["checkpoint_every"], found


def measure(data, count):
    """A row of the table."""
    interval, found = turns(data, count)
    step = statistics.median(plain for _, plain in found)
    quiet, saving = (statistics.median(ours / plain for ours, plain in found[i::2]) for i in (0, 1))
    one = (saving - quiet) * step * TURN[data]  # CPU-seconds of one checkpoint
    share = one / (one + interval * step * quiet)
    cells = (
        data, f"{1e3 * step:.2f}", f"{100 * (quiet - 1):+.1f} %", f"{1e3 * one:.0f}", f"{interval}",
        f"{100 * share:.1f} %",
    )
    return f"| {' | '.join(cells)} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jobs", nargs="+", choices=TURN, default=list(TURN))
    parser.add_argument("--core", type=int, default=1)
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--save", action="store_true")
    given = parser.parse_args()
    os.sched_setaffinity(0, {given.core})
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    from jaxdiff.cli import _enable_compilation_cache
    from jaxdiff.training import keep_freed_memory

    keep_freed_memory()
    _enable_compilation_cache()
    lines = [
        "| job | bare step, ms | loop beside it | one checkpoint, ms | default interval | its share |",
        "|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for data in given.jobs:
        lines.append(measure(data, given.turns))
        print(lines[-1], flush=True)
    if given.save:
        table = "\n".join(lines)
        RESULTS.write_text(f"What the loop costs (`python benchmarks/training_loop.py`)\n\n{table}\n")


if __name__ == "__main__":
    main()
