"""A trained restoration network in few evaluations: PSNR of Euler's method and of `jd.solvers.default`.

    python benchmarks/restoration_network.py [--save] [--steps 500]

Trains the IR-SDE network of `experiments/restoration.py` for a while on noisy and blurred photographs, and
restores held-out ones along the flow from the same starts. PSNR favours blurred answers: it is highest after
one evaluation, the mean of all that is possible, and falls to that of one sample. So the last columns have
the PSNR from where the flow ends, by 100 evaluations of the default: how far the walk itself has come. Takes
five minutes of one core.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "experiments"))
import restoration as experiment  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "restoration_network.md"
EVALUATIONS, REFERENCE = (1, 2, 5, 10, 20, 100), 100


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help=f"write the table to {RESULTS.name}")
    parser.add_argument("--steps", type=int, default=500, help="of training")
    arguments = parser.parse_args()
    train, held_out = experiment.photos(32)
    y, truth = experiment.both(jax.random.key(1), held_out), jnp.concatenate([held_out["x"]] * 2)
    some = train["x"][:1000]
    known = experiment.both(jax.random.key(2), {name: value[:1000] for name, value in train.items()})
    (data, covariance), (_, end) = np.cov(np.tile(some.ravel(), 2), known.ravel()).tolist()
    kind = jd.parameterizations.bridge(data**0.5, end**0.5, covariance, given_y=True)
    process = experiment.PROCESSES["mean reverting"]
    net = experiment.trained(train, process, kind, arguments.steps)
    found = walks(jd.denoiser(net(y), process, kind, y), process, y)
    lines = ["# A trained restoration network: PSNR in dB by evaluations", ""]
    lines += [
        f"IR-SDE, {arguments.steps} steps of training. Noisy and blurred images: PSNR of the degraded image"
    ]
    lines += [f"{show(psnr(y, truth))}; from the truth, and from the end of the flow.", ""]
    names = ["evaluations", "Euler", "`default`", "Euler, from the end", "`default`, from the end"]
    lines += [row(names), "|---" * len(names) + "|"]
    end = found[REFERENCE][1]
    for n, pair in found.items():
        cells = [show(psnr(x, truth)) for x in pair] + [show(psnr(x, end)) for x in pair]
        lines.append(row([n, *cells]))
    text = "\n".join([*lines, ""])
    print(text)
    if arguments.save:
        RESULTS.write_text(text)


def walks(denoise, process, y):
    """`{evaluations: (images by Euler's method, by the default)}`, all from the same starts."""
    x = y + process.coefficients(process.t_max)[2] * jax.random.normal(jax.random.key(4), y.shape)
    run = jax.jit(
        lambda plans: jax.lax.map(lambda rows: jd.sample(None, denoise, process, rows, x=x, y=y), plans)
    )

    def both(n):
        euler = jd.solvers.euler().plan(process, jd.grids.uniform(process, n))
        return run(jd.solvers.stack([euler, jd.solvers.default(process, n)]))

    return {n: both(n) for n in EVALUATIONS}


def psnr(images, other):
    """Of the noisy half and of the blurred half."""
    return [float(-10 * jnp.log10(jnp.mean(x**2) / 4)) for x in jnp.split(images - other, 2)]


def show(pair):
    return " / ".join("-" if np.isinf(value) else f"{value:.1f}" for value in pair)


def row(cells):
    return "".join(f"| {cell} " for cell in cells) + "|"


if __name__ == "__main__":
    main()
