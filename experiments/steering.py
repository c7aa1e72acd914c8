"""Steering a trained model by a reward, with nothing but samples: reward against evaluations.

    python experiments/steering.py --out runs/steering            # about two minutes on two cores
    python experiments/steering.py --smoke                        # half a minute

A small flow model of eight Gaussians is trained; the reward asks for the upper right. Every method of
`jd.steering` draws from the same model. Prints the mean reward at equal evaluations per sample, the share of
samples that are still on the data, and saves the picture. Expected: particles, value decoding and rollover
budgets lie above best-of-n at equal evaluations, and more denoising steps alone gain nothing. (Twisted
particles also differentiate the network once an evaluation.)
"""

import argparse
import collections
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxdiff as jd

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=pathlib.Path, default=None, help="folder for the picture")
parser.add_argument("--smoke", action="store_true", help="a few steps, to see that everything runs")
args = parser.parse_args()
TRAIN, SAMPLES, COUNTS = (30, 32, (4,)) if args.smoke else (4000, 512, (2, 4, 8, 16))

process, flow = jd.processes.VP(), jd.processes.RectifiedFlow()
angles = np.arange(8) * np.pi / 4
target = jd.testing.gaussian_mixture(
    2 * np.stack([np.cos(angles), np.sin(angles)], 1), np.full(8, 0.02), np.full(8, 0.125)
)

# train a flow on draws of the target
model = jd.models.MLP(width=96, depth=3)
params = jd.training.init_params(model, jax.random.key(0), (2,))
optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, TRAIN))


@jax.jit
def update(params, state, key):
    data, noise = jax.random.split(key)

    def loss(params):
        net = lambda x, c_noise: model.apply({"params": params}, x, c_noise)  # noqa: E731
        return jd.losses.flow_matching(net, noise, target.sample(data, 256)).mean()

    change, state = optimizer.update(jax.grad(loss)(params), state)
    return optax.apply_updates(params, change), state


state = optimizer.init(params)
for i in range(TRAIN):
    params, state = update(params, state, jax.random.key(i))
net = lambda x, c_noise: model.apply({"params": params}, x, c_noise)  # noqa: E731
of_flow = jd.denoiser(net, flow, jd.parameterizations.velocity())
denoise = jd.steering.change_process(of_flow, flow, process)  # the flow, as a variance preserving model


def reward(x):
    return -0.5 * jnp.sum((x - jnp.array([[1.5, 1.5]])) ** 2, axis=-1)


keys = jax.random.split(jax.random.key(1), SAMPLES)
solvers, steering, steps = jd.solvers, jd.steering, 12
grid = jd.grids.log_snr(process, steps)
stochastic = solvers.dpmpp_multistep(2, tau=1.0)


def draw(solver, grid=grid):
    return jax.jit(lambda keys: jd.sample(keys, denoise, process, solver, grid, shape=(2,)))(keys)


def from_noise(noise):
    return jd.sample(None, denoise, process, solvers.dpmpp_multistep(2), grid, x=noise)


def from_time(x, t):
    levels = np.linspace(process.log_snr(t), process.log_snr(process.t_min), steps)
    times = np.append(process.time_of_log_snr(levels), 0.0)
    return jd.sample(None, denoise, process, solvers.dpmpp_multistep(2), times, x=x)


def best(particles, n):
    """The best particle of every group."""
    groups = particles.reshape(-1, n, 2)
    return jax.vmap(lambda x: x[jnp.argmax(reward(x))])(groups)


def search(find):
    return jax.jit(lambda keys: find(keys).x)(keys)


start = jax.random.normal(jax.random.key(2), (SAMPLES, 2))
curves = collections.defaultdict(list)
for n in COUNTS:
    half = n // 2
    found = {
        "more steps": draw(stochastic, jd.grids.log_snr(process, n * steps)),
        "best of n": search(lambda keys, n=n: steering.best_of_n(keys, from_noise, reward, (2,), n)),
        "zero order": search(
            lambda keys, h=half: steering.zero_order(keys, from_noise, reward, start, h, 2, 0.7)
        ),
        "path search": search(
            lambda keys, h=half: steering.path_search(
                keys, from_time, reward, process, (2,), times=(0.5,), starts=h, branches=h
            )
        ),
        "particles": best(draw(steering.particles(stochastic, reward, n, scale=4.0)), n),
        "twisted": best(draw(steering.twisted(stochastic, lambda x: 4 * reward(x), n, guide=0.3)), n),
        "value decoding": draw(steering.value_decoding(stochastic, reward, n, alpha=0.25)),
        "rollover": draw(steering.rollover(stochastic, reward, n)),
    }
    for name, x in found.items():
        curves[name].append((n, x))

print(f"mean reward, and share on the data, by evaluations per sample (in units of {steps})")
print(f"{'':16}" + "".join(f"{n:>16}" for n in COUNTS))
for name, curve in curves.items():
    cells = []
    for _, x in curve:
        gap = jnp.linalg.norm(x[:, None] - jnp.asarray(target.means)[None], axis=-1).min(1)
        cells.append(f"{float(reward(x).mean()):8.3f} ({float(jnp.mean(gap < 0.6)):.2f})")
    print(f"{name:16}" + "".join(f"{cell:>16}" for cell in cells))

if args.out is not None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    args.out.mkdir(parents=True, exist_ok=True)
    figure, axis = plt.subplots(figsize=(6, 4))
    for name, curve in curves.items():
        axis.plot([n for n, _ in curve], [float(reward(x).mean()) for _, x in curve], marker="o", label=name)
    axis.set_xscale("log", base=2)
    axis.set(xlabel=f"evaluations per sample / {steps}", ylabel="mean reward")
    axis.legend()
    figure.savefig(args.out / "steering.png", dpi=120, bbox_inches="tight")
    print(f"saved {args.out / 'steering.png'}")
