"""Bits of handwritten digits: Bernoulli diffusion and masked bits on the same network.

    python experiments/binary_digits.py         # about five minutes on two cores
    python experiments/binary_digits.py --smoke # a few steps, to see that it runs

Real 8 x 8 digits, a pixel set where its grey level is 8 of 16 or more. The Bernoulli process flips bits
towards coin tosses (Wang et al. (2023), arXiv:2304.04820); the absorbing one hides them. Prints bits per
dimension of held-out digits (both are bounds) beside pixels drawn each by its own frequency, and saves a
picture of data and samples. Seen: .378 for flipped and .374 for masked bits (.372 and .359 of the training
digits), .566 for single pixels.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd

SIDE, LENGTH = 8, 64


def train(model, params, process, x, steps):
    """`net(bits, c_noise) -> logits` after training on the bound; averaged parameters.

    A flipped bit still tells of the clean one: by Bayes' rule log q(x_t | x0) is added to what the network
    says, which without it would have to learn that near t = 0 hardly any bit is wrong. (A masked one tells
    nothing, and the losses leave alone the ones that are not.)
    """

    def network(params, keys=None):
        def net(x, t):
            image = jax.nn.one_hot(x, 2).reshape(-1, SIDE, SIDE, 2)  # a masked bit is neither 0 nor 1
            logits = model.apply({"params": params}, image, t, keys=keys).reshape(*x.shape, 2)
            return logits + jnp.log(process.likelihood(x, t)) if process.mask is None else logits

        return net

    def loss(params, batch, keys, strata, step):
        net, own = network(params, jd.core.fold_in(keys, 1)), jd.core.fold_in(keys, 0)
        return jd.losses.discrete.elbo(net, own, batch["x"], process=process, strata=strata) / LENGTH

    rates = jd.training.learning_rates(2e-3, steps, warmup=min(50, steps - 1))
    state = jd.training.fit(
        params, loss, {"x": x}, steps=steps, batch_size=32, ema=(100,),
        optimizer=jd.training.adamw(rates, beta2=0.99),
    )  # fmt: skip
    return network(state.ema[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=3000, help="of each of the two networks")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("runs/binary_digits"))
    parser.add_argument("--smoke", action="store_true", help="a few steps, to see that it runs")
    arguments = parser.parse_args()
    steps, times, count = (4, 2, 32) if arguments.smoke else (arguments.steps, 64, 600)
    size = {"channels": (8,)} if arguments.smoke else {}

    data = jd.data.load("digits")
    bits = {
        part: (images["x"].reshape(-1, LENGTH) >= 8).astype(np.int32)
        for part, images in (("train", data.train), ("held out", data.held_out))
    }
    frequency = (bits["train"].sum(0) + 0.5) / (len(bits["train"]) + 1)
    alone = np.where(bits["held out"], frequency, 1 - frequency)
    rows = {"each pixel alone": -np.log2(alone).mean(), "train, each alone": entropy(frequency)}

    processes = {"Bernoulli": jd.processes.bits(), "masked": jd.processes.absorbing(2)}
    pictures = [bits["held out"][:25]]
    model = jd.models.build(
        "UNet-XS", sample_shape=(SIDE, SIDE, 2), attention_resolutions=(), dropout=0.1, **size
    )
    params = jd.training.init_params(model, jax.random.key(0), (SIDE, SIDE, 2))
    for name, process in processes.items():
        net = train(model, params, process, bits["train"], steps)
        bound = jax.jit(
            lambda x, net=net, process=process: jd.likelihood.token_bound(
                jax.random.key(1), net, process, x, samples=times
            )
        )
        for part, x in bits.items():
            rows[f"{name}, {part}"] = float(jd.likelihood.bits_per_token(bound(x[:count]), LENGTH).mean())
        denoise = jd.solvers.discrete.denoiser(net, process)
        grid = jd.grids.cosine(process, 8 if arguments.smoke else 128)
        pictures.append(np.asarray(jax.jit(
            lambda keys, denoise=denoise, process=process, grid=grid: jd.sample(
                keys, denoise, process, jd.solvers.discrete.ancestral(), grid, shape=(LENGTH,)
            )
        )(jax.random.split(jax.random.key(2), 25))))  # fmt: skip

    for name, value in rows.items():
        print(f"{name:22s} {value:.4f} bits per dimension")
    print(f"picture in {picture(arguments.out, dict(zip(['data', *processes], pictures, strict=True)))}")


def entropy(p):
    """Mean entropy of independent bits."""
    return float(-(p * np.log2(p) + (1 - p) * np.log2(1 - p)).mean())


def picture(folder, panels):
    """Data and samples of each process side by side, 25 of each."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 4.3))
    for axis, (title, x) in zip(axes, panels.items(), strict=True):
        tiles = np.pad(x.reshape(5, 5, 8, 8), [(0, 0), (0, 0), (0, 1), (0, 1)])
        axis.imshow(tiles.swapaxes(1, 2).reshape(45, 45), cmap="gray")
        axis.set(title=title, xticks=[], yticks=[])
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "samples.png", dpi=100, bbox_inches="tight")
    return folder / "samples.png"


if __name__ == "__main__":
    main()
