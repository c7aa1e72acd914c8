"""Examples per second of the input pipeline, beside what a U-Net trains on the same cores.

Real photographs cut into images, stored in every way that `--data` takes, are read, decoded, batched,
sent and scaled on the device; the U-Net's updates are measured in the same unit, CPU-seconds of all threads,
so that a busy machine moves both alike. About three minutes:

    python benchmarks/input_pipeline.py [--save]
"""

import argparse
import contextlib
import os
import pathlib
import statistics
import tempfile
import time

import numpy as np

RESULTS = pathlib.Path(__file__).parent / "results" / "input_pipeline.md"
SIZES = {32: (4096, 16), 64: (1024, 4)}  # side: images, batch of the U-Net
BATCH = 64  # of the pipeline's measurement
STEPS = 150


def photographs(side, count):
    """Squares cut out of the two photographs that scikit-learn brings."""
    from sklearn.datasets import load_sample_images

    pictures, rng = load_sample_images().images, np.random.default_rng(0)
    cuts = []
    for i in range(count):
        picture = pictures[i % 2]
        top, left = (rng.integers(0, length - side) for length in picture.shape[:2])
        cuts.append(picture[top : top + side, left : left + side])
    return np.stack(cuts)


def stored(x, root):
    """`(way, name for --data)` of every way to store the images."""
    from PIL import Image

    from jaxdiff.data import write_tfds

    label = np.arange(len(x)) % 10
    np.savez(root / "x.npz", x=x, label=label)
    yield "npz, on the device", f"npz:{root}/x.npz"
    yield "npz, rows from memory", f"npz:{root}/x.npz"
    arrays = write_tfds({"x": x, "label": label}, root, name="arrays")
    yield "array_record of arrays", f"array_record:{arrays}/*array_record*(stream=True)"
    yield "TFDS of arrays", f"tfds:{arrays}(stream=True)"
    for ending in ("png", "jpg"):
        folder = root / ending
        folder.mkdir()
        for i, image in enumerate(x):
            Image.fromarray(image).save(folder / f"{i:05}.{ending}")
        yield f"folder of {ending}", f"images:{folder}(stream=True)"
    yield "TFDS of png", f"tfds:{write_tfds(root / 'png', root, name='png')}(stream=True)"


@contextlib.contextmanager
def feed_of(way, name, batch):
    """The feed of `--data NAME`."""
    import jaxdiff as jd
    from jaxdiff.training import feed as feed_

    resident = feed_.RESIDENT_BYTES
    if "rows" in way:
        feed_.RESIDENT_BYTES = 0
    try:
        with contextlib.closing(feed_.make_feed(jd.data.load(name).examples(), batch, 0)) as feed:
            yield feed
    finally:
        feed_.RESIDENT_BYTES = resident


def milliseconds(step, steps, parts=5):
    """Median over parts of the CPU-milliseconds of a step; the first part warms up."""
    times, first = [], 0
    for _ in range(parts + 1):
        start = time.process_time()
        for i in range(first, first + steps // parts):
            step(i)
        first += steps // parts
        times.append(1e3 * (time.process_time() - start) / (steps // parts))
    return statistics.median(times[1:])


def pipeline(feed):
    """CPU-milliseconds of a batch, from the disk to the device."""
    import jax

    gather = jax.jit(feed.gather)
    resident = jax.device_put(feed.resident)

    def step(i):
        item = jax.tree.map(lambda a: a[0], feed.items(i, 1))
        jax.block_until_ready(gather(resident, item))

    return milliseconds(step, STEPS)


def make_update(side, feed):
    """A compiled update of UNet-XS and its first state."""
    import jax
    import optax

    import jaxdiff as jd

    model = jd.models.build("UNet-XS", sample_shape=(side, side, 3), num_classes=10)
    loss = jd.training.denoising_objective(
        model, jd.processes.EDM(), jd.parameterizations.edm(sigma_data=0.5)
    )
    optimizer = optax.adamw(1e-3)
    params = jd.training.init_params(model, jax.random.key(0), (side, side, 3))
    update = jd.training.make_update(loss, optimizer)
    key = jax.random.key(1)

    @jax.jit
    def run(state, resident, item):
        return update(state, feed.gather(resident, item), key)

    return run, jd.training.init_state(params, optimizer, ())


def training(run, state, feed):
    """`step(i)`, an update fed by `feed`, which is waited for."""
    import jax

    carry, resident = [state], jax.device_put(feed.resident)

    def step(i):
        item = jax.tree.map(lambda a: a[0], feed.items(i, 1))
        carry[0], metrics = run(carry[0], resident, item)
        metrics["loss"].block_until_ready()

    return step


def report():
    yield "Examples per CPU-second (all threads): of the input pipeline, from the disk to a batch scaled on"
    yield "the device, and of the updates of UNet-XS (EDM, AdamW, float32). The last column is the share of"
    yield "the cores' time that the input takes where both run."
    yield ""
    yield "| images | stored as | pipeline | UNet-XS | input's share |"
    yield "|---|---|---|---|---|"
    for side, (count, batch) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            trained = None
            for way, name in stored(photographs(side, count), pathlib.Path(folder)):
                if trained is None:
                    with feed_of(way, name, batch) as feed:
                        run, state = make_update(side, feed)
                        trained = 1e3 * batch / milliseconds(training(run, state, feed), 10)
                with feed_of(way, name, BATCH) as feed:
                    rate = 1e3 * BATCH / pipeline(feed)
                share = 1 / (1 + rate / trained)
                yield f"| {side} x {side} x 3 | {way} | {rate:,.0f} | {trained:.1f} | {100 * share:.2f} % |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    options = parser.parse_args()
    os.environ["JAX_PLATFORMS"] = "cpu"
    from jaxdiff.training import keep_freed_memory

    keep_freed_memory()  # as the command line does
    lines = []
    for line in report():
        print(line, flush=True)
        lines.append(line)
    if options.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
