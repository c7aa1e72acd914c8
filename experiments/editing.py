"""Edit real digits with a class-conditional model: reconstruct them, and turn each into the next digit.

    python experiments/editing.py --out runs/editing      # about two minutes on two cores
    python experiments/editing.py --smoke                 # a few steps, to see that it runs

Held-out images are brought to noise under their own label and made again under it (reconstruction) and
under the label after it (edit). Prints, for every method, the error of the reconstruction, the share of edits
that a classifier takes for the wanted digit, and the distance of the edit from the original; saves a picture
with a column of images per method. Expected: exact methods (EDICT, BDIA, noise maps) reconstruct to rounding,
DDIM does not quite; edits reach the wanted label, nearer to the original than fresh samples are.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd

METHODS = ("ddim", "fixed point", "edict", "bdia", "noise maps", "chain", "sdedit", "fresh samples")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2500, help="of training")
    parser.add_argument("--out", type=pathlib.Path, default=None, help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="a few steps")
    arguments = parser.parse_args()
    steps, count, size = (4, 16, {"channels": (8,)}) if arguments.smoke else (arguments.steps, 200, {})

    data = jd.data.load("digits")
    process = jd.processes.EDM(t_min=0.05, t_max=30.0)
    parameterization = jd.parameterizations.edm(sigma_data=data.sigma_data)
    params, denoise = trained(data, process, parameterization, steps, size)
    x0 = jnp.asarray(data.to_model(data.held_out["x"][:count]))
    label = jnp.asarray(data.held_out["label"][:count])

    @functools.partial(jax.jit, static_argnums=0)
    def edit(method, params, wanted):
        return run(method, functools.partial(denoise, params), process, x0, label, wanted)

    judge = jd.metrics.feature_classifier(data.train["x"], data.train["label"])

    print(f"{'':16}{'reconstruction':>16}{'wanted digit':>16}{'distance':>12}")
    pictures = {}
    for method in METHODS[:: 3 if arguments.smoke else 1]:
        same, changed = edit(method, params, label), edit(method, params, (label + 1) % 10)
        judged = judge.predict(data.from_model(np.asarray(changed)))
        error, distance = jnp.abs(same - x0).mean(), jnp.sqrt(jnp.mean((changed - x0) ** 2))
        share = np.mean(judged == (np.asarray(label) + 1) % 10)
        print(f"{method:16}{float(error):16.1e}{share:16.2f}{float(distance):12.3f}")
        pictures[method] = changed
    if arguments.out is not None:
        picture(arguments.out, data, x0, pictures)


def trained(data, process, parameterization, steps, size):
    """Parameters and `denoise(params, x, t, label)` of a U-Net trained on the training split."""
    fields = {"num_classes": 10, "attention_resolutions": (), **size}
    model = jd.models.build("UNet-XS", sample_shape=data.shape, **fields)
    blank = {"label": jnp.zeros(1, int)}
    params = jd.training.init_params(model, jax.random.key(0), data.shape, blank)
    times = jd.times.log_normal(mean=-1.2, std=1.2)
    state = jd.training.fit(
        params,
        jd.training.denoising_objective(model, process, parameterization, times=times),
        {"x": data.to_model(data.train["x"]), "label": data.train["label"]},
        steps=steps,
        batch_size=32,
        optimizer=jd.training.adamw(
            jd.training.learning_rates(2e-3, steps, warmup=min(50, steps - 1)), beta2=0.99
        ),
        ema=(100,),
    )

    def denoise(params, x, t, label):
        def net(x, c_noise):
            return model.apply({"params": params}, x, c_noise, {"label": label})

        return jd.denoiser(net, process, parameterization)(x, t)

    return state.ema[0], denoise


def run(method, denoise, process, x0, label, wanted):
    """`x0` brought to noise under its label, and made again under the wanted one."""
    editing, solvers = jd.editing, jd.solvers
    source, goal = (lambda x, t, c=c: denoise(x, t, c) for c in (label, wanted))
    keys = jax.random.split(jax.random.key(1), len(x0))
    grid = jd.grids.karras(process, 30, end=process.t_min)
    half = grid[grid <= 3.0]  # noise that hides strokes but not where they are
    if method == "ddim":
        x = jd.sample(None, source, process, solvers.ddim(), grid[::-1], x=x0)
        return jd.sample(None, goal, process, solvers.ddim(), grid, x=x)
    if method == "fixed point":
        x = editing.fixed_point(source, process, grid, x0, iterations=6)
        return jd.sample(None, goal, process, solvers.ddim(), grid, x=x)
    if method in ("edict", "bdia"):
        solver = solvers.edict(0.98) if method == "edict" else solvers.bdia()
        latents = editing.invert(source, process, solver, grid, x0)
        return jd.sample(None, goal, process, editing.resume(latents), x=latents.x)
    if method in ("noise maps", "chain"):
        path = "independent" if method == "noise maps" else "chain"
        maps = editing.encode(keys, source, process, solvers.ancestral(), half, x0, path)
        return jd.sample(maps.noise, goal, process, solvers.ancestral(), half, x=maps.start)
    if method == "sdedit":
        return editing.sdedit(keys, goal, process, solvers.dpmpp_multistep(2), half, x0)
    return jd.sample(
        keys, goal, process, solvers.dpmpp_multistep(2), jd.grids.karras(process, 10), shape=x0.shape[1:]
    )


def picture(out, data, x0, pictures):
    """The first images and their edits, a column per method."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    columns = {"original": x0, **pictures}
    figure, axes = plt.subplots(8, len(columns), figsize=(1.1 * len(columns), 8))
    for column, (name, images) in enumerate(columns.items()):
        for row in range(8):
            axes[row, column].imshow(
                data.from_model(np.asarray(images[row]))[..., 0], cmap="gray_r", vmin=0, vmax=16
            )
            axes[row, column].set_axis_off()
        axes[0, column].set_title(name, fontsize=8)
    figure.savefig(out / "editing.png", dpi=110, bbox_inches="tight")
    print(f"saved {out / 'editing.png'}")


if __name__ == "__main__":
    main()
