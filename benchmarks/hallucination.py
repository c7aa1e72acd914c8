"""Training on one's own samples: hallucinations over generations, with and without the filter by their paths.

    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= python benchmarks/hallucination.py [--save]

(The flag: on a CPU some reductions over thousands of rows are wrong without it.) Data is nine narrow modes; a
small network puts some samples between them, where no data is, and the next network is trained on samples of
the one before. Of a tenth more samples than are needed, "by path" leaves out those whose clean estimates
wandered most late in sampling (`jd.diagnostics.hallucination`), "at random" leaves out any. Aithal et al.
(2024), arXiv:2406.09358, do so with 25 modes, 100,000 samples, a fortieth of them left out and a thousand
steps of which the last ten are looked at. Takes a minute on an idle core. Seen: samples far from every mode
more than double in the next generation when any are left out; by path they grow by a quarter, and what is
trained on holds a fifth as many. The modes widen, at random to 1.44 of their deviation by the third
generation, by path to 1.24. Of the far samples 66 to 75 % are left out; the paper reports 95 %.

Columns: samples further than six deviations from every mode, of all and of those that the next generation is
trained on; how many of the far ones were left out, and how many of the near ones kept; the samples' distance
(sliced Wasserstein) from fresh data, and the near ones' deviation from their modes in units of the data's.
"""

import argparse
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from regularizers import init, line, mlp

import jaxdiff as jd

RESULTS = pathlib.Path(__file__).parent / "results" / "hallucination.md"
GENERATIONS, SEEDS, STEPS, BATCH, WIDTH = 3, 2, 4000, 256, 96
KEPT, DRAWN = 10000, 11000
VP, KIND = jd.processes.VP(t_min=1e-3), jd.parameterizations.edm(1.0)
GRID = np.stack(np.meshgrid(*2 * [np.array([-1.2, 0.0, 1.2])]), -1).reshape(-1, 2)
SPREAD = 0.06  # a twentieth of the modes' distance
DATA = jd.testing.gaussian_mixture(GRID, np.full(9, SPREAD**2))


def trained(key, x0):
    """The denoiser of a network trained on `x0` alone."""
    first, second = jax.random.split(key)
    rule = optax.adam(optax.cosine_decay_schedule(3e-3, STEPS))

    def loss(params, key):
        pick, noise = jax.random.split(key)
        batch = x0[jax.random.randint(pick, (BATCH,), 0, len(x0))]
        net = lambda x, c: mlp(params, x, c)  # noqa: E731
        return jd.losses.denoising(net, noise, batch, process=VP, parameterization=KIND).mean()

    def step(state, key):
        change, moments = rule.update(jax.grad(loss)(state[0], key), state[1])
        return (optax.apply_updates(state[0], change), moments), None

    params = init(first, 10, 2, WIDTH)
    params, _ = jax.lax.scan(step, (params, rule.init(params)), jax.random.split(second, STEPS))[0]
    return jd.denoiser(lambda x, c: mlp(params, x, c), VP, KIND)


@jax.jit
@jax.vmap
def generation(key, x0, by_path):
    """Samples of a network trained on `x0`, in the order in which they are kept, and whether each is near."""
    first, second, third = jax.random.split(key, 3)
    denoise, grid = trained(first, x0), jd.grids.log_snr(VP, 60)
    levels = VP.log_snr(grid[:-1])
    late = grid[:-1][(levels > 1.5) & (levels < 3.0)]
    x, score = jd.diagnostics.hallucination(
        jax.random.split(second, DRAWN), denoise, VP, jd.solvers.ancestral(), grid,
        window=(late[-1], late[0]), shape=(2,),
    )  # fmt: skip
    x = x[jnp.argsort(jnp.where(by_path, score, jax.random.uniform(third, (DRAWN,))))]
    distance = jnp.sqrt(jnp.min(jd.couplings.costs(x, jnp.asarray(GRID, x.dtype)), 1))
    return x, distance


def measured(x, distance, fresh):
    """The columns of one generation and seed."""
    off = distance > 6 * SPREAD
    dropped, kept = np.mean(off[KEPT:]) * (DRAWN - KEPT) / max(off.sum(), 1), np.mean(~off[:KEPT]) * KEPT
    away = jd.metrics.sliced_wasserstein(x[:KEPT][:4000], fresh)
    spread = np.sqrt(np.mean(np.square(distance[~off])) / 2) / SPREAD
    return off.mean(), off[:KEPT].mean(), dropped, kept / (~off).sum(), away, spread


def report():
    yield "| generation | left out | far, drawn | far, kept | far left out | near kept | distance | spread |"
    yield "|---" * 8 + "|"
    fresh = np.asarray(DATA.sample(jax.random.key(8), 4000))
    start = jax.vmap(lambda key: DATA.sample(key, KEPT))(jax.random.split(jax.random.key(0), SEEDS))
    x0, by_path = jnp.tile(start, (2, 1, 1)), jnp.arange(2 * SEEDS) < SEEDS
    for number in range(1, GENERATIONS + 1):
        keys = jnp.tile(jax.random.split(jax.random.key(number), SEEDS), 2)
        x, distance = (np.asarray(part) for part in generation(keys, x0, by_path))
        x0 = x[:, :KEPT]
        for name, arm in (("at random", slice(SEEDS, None)), ("by path", slice(SEEDS))):
            rows = [measured(*pair, fresh) for pair in zip(x[arm], distance[arm], strict=True)]
            yield line(f"{number} | {name}", *zip(*rows, strict=True))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    lines = [f"# Training on one's own samples, {SEEDS} seeds", ""]
    for text in report():
        print(text, flush=True)
        lines.append(text)
    if arguments.save:
        RESULTS.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
