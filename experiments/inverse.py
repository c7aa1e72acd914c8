"""Restore real digits from partial, blurred or small measurements, with a model that never saw any.

    python experiments/inverse.py --out runs/inverse      # about three minutes on two cores
    python experiments/inverse.py --smoke                 # a few steps, to see that it runs

Trains an unconditional model of the digits, measures held-out images (a hole, a blur, a quarter of the
pixels; all with noise) and draws posterior samples by several methods. Prints the peak signal-to-noise ratio
of the samples and of their mean, and how well a sample explains its measurement (1: as well as the truth
does); saves a picture with the truth, the measurement and three samples of each. Expected: the mean of the
samples is nearer to the truth than a sample is, and than the pseudo-inverse. (On a CPU the
methods that differentiate the network take most of the time: convolutions go backwards slowly in a loop.)
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd

SIGMA, DRAWS = 0.1, 4
METHODS = {
    "mmps": {"iterations": 3}, "pigdm": {"sigma_data": 0.5}, "jacobian_free": {"sigma_data": 0.5}, "ddrm": {},
}  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--out", type=pathlib.Path, default=None, help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="a few steps")
    arguments = parser.parse_args()
    steps, count, size = (4, 4, {"channels": (8,)}) if arguments.smoke else (arguments.steps, 12, {})

    data = jd.data.load("digits")
    process = jd.processes.EDM(t_min=0.02, t_max=30.0)
    denoise = trained(data, process, steps, size)
    truth = jnp.asarray(data.to_model(data.held_out["x"][:count]))
    grid = jd.grids.karras(process, 4 if arguments.smoke else 25)

    print(f"{'':26}{'sample':>9}{'mean':>9}{'fit':>9}   (PSNR in dB; pseudo-inverse beside the problem)")
    pictures = {}
    for problem, operator in list(problems().items())[: 1 if arguments.smoke else None]:
        noise = SIGMA * jax.random.normal(jax.random.key(1), operator.forward(truth).shape)
        y = operator.forward(truth) + noise * (operator.forward(jnp.ones_like(truth)) != 0)
        print(f"{problem:26}{psnr(operator.pinv(y), truth):9.1f}")
        for name, options in list(METHODS.items())[:: 3 if arguments.smoke else 1]:
            x = restore(name, options, denoise, process, grid, operator, y, truth.shape[1:])
            fit = jnp.std(jax.vmap(operator.forward)(x) - y[None]) / jnp.std(operator.forward(truth) - y)
            print(f"  {name:24}{psnr(x, truth[None]):9.1f}{psnr(x.mean(0), truth):9.1f}{fit:9.2f}")
            if name == "mmps":
                pictures[problem] = [truth, seen(operator, y), *x[:3]]
    if arguments.out is not None:
        save(arguments.out, data, pictures)


def problems():
    hole = np.ones((8, 8))
    hole[2:6, 2:6] = 0
    return {
        "a hole of 4 x 4": jd.inverse.mask(hole),
        "blur of 1.2 pixels": jd.inverse.gaussian_blur(1.2, 5),
        "half the size": jd.inverse.downsample(2),
    }


def restore(name, options, denoise, process, grid, operator, y, shape):
    """`(draws, batch, ...)` posterior samples."""
    y = jnp.tile(y, (DRAWS, *[1] * (y.ndim - 1)))
    made = jd.inverse.posterior(denoise, process, operator, y, name, SIGMA, **options)
    solver = jd.solvers.dpmpp_multistep(2, tau=1.0)
    net, solver = (made, solver) if name in jd.inverse.TRANSFORMS else (denoise, made)
    keys = jax.random.split(jax.random.key(2), len(y))
    x = jax.jit(lambda keys: jd.sample(keys, net, process, solver, grid, shape=shape))(keys)
    return x.reshape(DRAWS, -1, *shape)


def seen(operator, y):
    """A measurement as an image: blurred as it is, a small one by its pseudo-inverse."""
    return y if y.shape[1:] == (8, 8, 1) else operator.pinv(y)


def psnr(x, truth):
    """In dB; the digits' range is 2 on the model's scale of standard deviation 1/2, about."""
    peak = float(truth.max() - truth.min())
    return float(-10 * jnp.log10(jnp.mean((x - truth) ** 2) / peak**2))


def trained(data, process, steps, size):
    """The denoiser of a small U-Net, trained as in experiments/digits.py without labels."""
    fields = {"dropout": 0.1, "attention_resolutions": (), **size}
    model = jd.models.build("UNet-XS", sample_shape=data.shape, **fields)
    parameterization = jd.parameterizations.edm(sigma_data=data.sigma_data)
    params = jd.training.init_params(model, jax.random.key(0), data.shape)
    loss = jd.training.denoising_objective(
        model, process, parameterization, times=jd.times.log_normal(mean=-1.2, std=1.2)
    )
    x = np.asarray(data.to_model(data.train["x"]), np.float32)
    state = jd.training.fit(params, loss, {"x": x}, steps=steps, batch_size=32, ema=(200,))
    params = state.ema[0]
    return jd.denoiser(lambda x, c: model.apply({"params": params}, x, c), process, parameterization)


def save(out, data, pictures):
    """One row of digits for the truth, the measurement and three samples of each problem."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    rows = [(f"{name}: {what}", x) for name, images in pictures.items() for what, x in zip(
        ("truth", "measured", "sample", "sample", "sample"), images, strict=True)]  # fmt: skip
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 0.75 * len(rows)))
    for axis, (title, x) in zip(axes, rows, strict=True):
        images = data.from_model(np.asarray(x[:20]))[..., 0]
        axis.imshow(np.concatenate(list(images), axis=1), cmap="gray_r")
        axis.set_ylabel(title, rotation=0, ha="right", va="center", fontsize=8)
        axis.set_xticks([]), axis.set_yticks([])
    figure.tight_layout(pad=0.3)
    figure.savefig(out / "inverse.png", dpi=110, bbox_inches="tight")
    print(f"picture in {out / 'inverse.png'}")


if __name__ == "__main__":
    main()
