"""Train, sample and evaluate a diffusion model of handwritten digits: the library, top to bottom.

    python experiments/digits.py                # the job of `jaxdiff train`, as plain calls
    python experiments/digits.py --smoke        # a few steps, to see that it runs

Prints the table of metrics, each beside its floor: the same metric of real images in the samples' place.
"""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--out", default="runs/digits-experiment", help="log, checkpoints; continues a run")
    parser.add_argument("--smoke", action="store_true", help="a few steps into no directory")
    arguments = parser.parse_args()
    steps, count, draws = (4, 60, 1) if arguments.smoke else (arguments.steps, None, 5)
    size = {"channels": (8,)} if arguments.smoke else {}

    # 1. Data: 8 x 8 images, on a scale with mean 0 and standard deviation 1/2.
    data = jd.data.load("digits")
    images, labels = data.to_model(data.train["x"]), data.train["label"]

    # 2. The mathematics: noise levels are times, the network is preconditioned. The pen's strokes are bent a
    #    little, told to the network so that samples do not show it, until the last tenth of the run; not
    #    where there is so little noise that the network learns exact grey levels.
    process = jd.processes.EDM(t_min=0.02, t_max=30.0)
    parameterization = jd.parameterizations.edm(sigma_data=data.sigma_data)
    low, high = (data.to_model(value) for value in data.value_range)
    augment = jd.data.Elastic(bend=0.3, rotate=0.08, shear=0.1, probability=0.7, limits=(low, high))

    # 3. A network F(x, c_noise, condition), and its loss for one batch, one value per example. It sees sines
    #    of four, two and one grey levels' period too: under little noise its input is x / sigma_data.
    level = (high - low) / (data.levels - 1) / data.sigma_data
    model = jd.models.build(
        "UNet-XS", sample_shape=data.shape, num_classes=data.num_classes, vector_size=augment.vector_size,
        attention_resolutions=(),
        dropout=0.15,
        fourier_features=(0.25 / level, 0.5 / level, 1 / level),
        **size,
    )
    blank = {"label": jnp.zeros(1, int), "vector": jnp.zeros((1, augment.vector_size))}
    init = jax.jit(lambda key: model.init(key, jnp.zeros((1, *data.shape)), jnp.zeros(1), blank))
    loss = jd.training.denoising_objective(
        model,
        process,
        parameterization,
        times=jd.times.log_normal(mean=-1.2, std=1.2),
        augment=augment,
        augment_until=steps * 9 // 10,
        augment_above=0.1,
    )

    # 4. Training: AdamW with Nesterov's momentum, a rate that falls to zero, an average of the parameters.
    rates = jd.training.learning_rates(4e-3, steps, warmup=min(50, steps - 1), decay="linear")
    state = jd.training.fit(
        init(jax.random.key(0))["params"],
        loss,
        {"x": images, "label": labels},
        steps=steps,
        batch_size=32,
        optimizer=jd.training.adamw(rates, beta1=0.95, beta2=0.99, nesterov=True),
        ema=(200,),
        out=None if arguments.smoke else arguments.out,
    )

    # 5. Sampling: ten evaluations of the network, the labels of the held-out images.
    solver, grid = jd.solvers.dpmpp_multistep(2), jd.grids.karras(process, steps=10, rho=9)

    @jax.jit
    def draw(keys, labels):
        condition = {"label": labels, "vector": jnp.zeros((len(labels), augment.vector_size))}

        def net(x, c_noise):
            return model.apply({"params": state.ema[0]}, x, c_noise, condition)

        denoise = jd.denoiser(net, process, parameterization)
        return jd.sample(keys, denoise, process, solver, grid, shape=data.shape)

    wanted = data.held_out["label"][:count]
    samples = data.from_model(np.asarray(draw(jax.random.split(jax.random.key(1), len(wanted)), wanted)))

    # 6. Honest numbers.
    print(jd.metrics.table(jd.metrics.evaluate(data, samples, wanted, draws=draws)))
    if not arguments.smoke:
        jd.training.save_picture(f"{arguments.out}/samples.png", samples[:100], wanted[:100])
        print(f"picture in {arguments.out}/samples.png")


if __name__ == "__main__":
    main()
