"""Flow matching on a two-dimensional toy, with a picture of the paths from noise to data.

    python experiments/toy2d.py --data checkerboard        # half a minute on two cores

Straight lines `x_t = (1 - t) x0 + t noise`, a network that predicts the velocity `noise - x0`, and Heun's
method back from noise. Prints the sliced Wasserstein distance beside that of real data.
"""

import argparse
import pathlib
import re

import jax
import numpy as np

import jaxdiff as jd
from jaxdiff.cli.defaults import VECTORS


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="checkerboard", help="moons, eight_gaussians, checkerboard, ...")
    parser.add_argument("--steps", type=int, default=VECTORS["steps"])
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/toy2d"))
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    steps, samples, draws = (20, 200, 1) if arguments.smoke else (arguments.steps, 5000, 5)

    data = jd.data.load(arguments.data)
    model = jd.models.build("MLP-S", sample_shape=data.shape, width=64)
    process, parameterization = jd.processes.RectifiedFlow(), jd.parameterizations.velocity()

    params = jd.training.init_params(model, jax.random.key(0), data.shape)
    loss = jd.training.denoising_objective(model, process, parameterization)
    rates = jd.training.learning_rates(VECTORS["learning_rate"], steps, warmup=min(50, steps - 1))
    state = jd.training.fit(
        params,
        loss,
        {"x": data.to_model(data.train["x"])},
        steps=steps,
        batch_size=VECTORS["batch_size"],
        optimizer=jd.training.adamw(rates),
        ema=VECTORS["ema"],
    )

    @jax.jit
    def paths(keys):
        denoise = jd.denoiser(
            lambda x, t: model.apply({"params": state.ema[0]}, x, t), process, parameterization
        )
        grid = jd.grids.uniform(process, steps=VECTORS["sample_steps"])
        return jd.sample(keys, denoise, process, jd.solvers.heun(), grid, shape=data.shape, save="all")

    path = data.from_model(np.asarray(paths(jax.random.split(jax.random.key(1), samples))))
    print(jd.metrics.table(jd.metrics.evaluate(data, path[-1], draws=draws)))
    print(f"picture in {picture(arguments.out, arguments.data, path, data)}")


def picture(folder, name, path, data):
    """Noise, half way, samples and data side by side."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    panels = {"noise": path[0], "half way": path[len(path) // 2], "samples": path[-1]}
    panels["data"] = data.held_out["x"]
    figure, axes = plt.subplots(1, 4, figsize=(14, 3.6), sharex=True, sharey=True)
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        axis.scatter(points[:, 0], points[:, 1], s=1, color="#1f4e79", alpha=0.5)
        axis.set(title=title, aspect="equal", xticks=[], yticks=[])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / (re.sub(r"[^\w.%-]", "-", name) + ".png")  # a name is npz:/PATH too
    figure.savefig(file, dpi=100, bbox_inches="tight")
    return file


if __name__ == "__main__":
    main()
