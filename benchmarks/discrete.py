"""Discrete diffusion: laws and network calls of its samplers, speed of its draws, and memory of its loss.

    python benchmarks/discrete.py [--samples 32000] [--save]     # about six minutes on one core

Laws are measured on twelve spins of an Ising ring of 4,096 states with the exact denoiser, as total
variation distance between samples and the enumerated joint; that of exact draws stands beside it, as no
finite number of samples has none. Speed is that of a small transformer on 64 tokens, memory is what XLA's
own analysis of the compiled value and gradient gives, beside arguments and results.
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd
from jaxdiff.core.categorical import FactoredLogits, categorical
from jaxdiff.solvers import discrete

RESULTS = pathlib.Path(__file__).parent / "results" / "discrete.md"


def timed(walk, *arguments):
    """`(result, CPU-seconds)` of a call after the one that compiles."""
    jax.block_until_ready(walk(*arguments))
    start = time.process_time()
    result = jax.block_until_ready(walk(*arguments))
    return result, time.process_time() - start


def laws(samples):
    """Total variation of every sampler at its number of evaluations, twelve tokens."""
    target, process = jd.testing.ising_chain(12, 1.5, 0.1), jd.processes.absorbing(2)
    denoise, grid = target.denoiser(process), jd.grids.uniform(process, 1000)
    short, loop = (jd.grids.uniform(process, steps) for steps in (200, 50))
    solvers = {
        "first hitting": (discrete.first_hitting(12), None),
        "by confidence (entropy)": (discrete.confidence("entropy"), jd.grids.uniform(process, 12)),
        "ancestral": (discrete.ancestral(), grid),
        "tau-leaping": (discrete.tau_leaping(), grid),
        "remasking, eta .02": (discrete.remasking(0.02, "cap"), grid),
        "remasking from t = .5, eta .02": (discrete.remasking(0.02, "cap", start=0.5), short),
        "remasking in a loop, eta .02": (discrete.remasking(0.02, "cap", start=0.2, loop=150), loop),
        "remasking by confidence, eta 1": (discrete.remasking(1.0, spread="confidence"), short),
    }
    yield "| twelve tokens, exact denoiser | network calls | total variation | CPU-seconds |"
    yield "|---|---|---|---|"
    exact = target.total_variation(target.sample(jax.random.key(1), samples))
    yield f"| exact draws | | {exact:.4f} | |"
    keys = jax.random.split(jax.random.key(0), samples)
    for name, (solver, grid) in solvers.items():
        walk = jax.jit(
            lambda keys, solver=solver, grid=grid: jd.sample(
                keys, denoise, process, solver, grid, shape=(12,), save="state"
            )
        )
        start = time.process_time()
        x, state = walk(keys)
        distance = target.total_variation(x)
        seconds = time.process_time() - start
        yield f"| {name} | {state.evaluations} | {distance:.4f} | {seconds:.1f} with compilation |"


def calls():
    """First-hitting and the cache against a thousand ancestral steps, 64 tokens."""
    process = jd.processes.absorbing(64)
    model = jd.models.TokenTransformer(vocabulary=64, width=64, depth=2, heads=2, time=False)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64), jnp.int32))["params"]
    params = jax.tree.map(lambda p: p + 0.05 * jax.random.normal(jax.random.key(p.size), p.shape), params)
    net = lambda x, t: model.apply({"params": params}, x)  # noqa: E731
    grid = jd.grids.uniform(process, 1000)
    yield "| 64 tokens, transformer | samples | network calls | CPU-seconds |"
    yield "|---|---|---|---|"
    drawn = {}
    for name, solver, times, batch in (
        ("ancestral, 1,000 steps", discrete.ancestral(), grid, 1),
        ("the same, cached", discrete.ancestral(cache=True), grid, 1),
        ("first hitting", discrete.first_hitting(64), None, 1),
        ("ancestral, 1,000 steps", discrete.ancestral(), grid, 8),
        ("first hitting", discrete.first_hitting(64), None, 8),
    ):
        walk = jax.jit(
            lambda keys, solver=solver, times=times: jd.sample(
                keys, net, process, solver, times, shape=(64,), save="state"
            )
        )
        (x, state), seconds = timed(walk, jax.random.split(jax.random.key(0), batch))
        drawn[name, batch] = np.asarray(x)
        yield f"| {name} | {batch} | {state.evaluations} | {seconds:.2f} |"
    same = (drawn["ancestral, 1,000 steps", 1] == drawn["the same, cached", 1]).all()
    yield f"\nThe cached samples are {'the same' if same else 'NOT the same'} as the uncached ones."


def draws(pairs=15):
    """An exact draw against `jax.random.categorical`, float32, one call of each in turn."""
    both = jax.jit(categorical), jax.jit(jax.vmap(jax.random.categorical))
    yield "| float32 draws | tokens | exact, ms | `jax.random.categorical`, ms | ratio |"
    yield "|---|---|---|---|---|"
    for size, batch in ((1000, 64), (32768, 8)):
        logits = 3 * jax.random.normal(jax.random.key(0), (batch, 64, size))
        keys, seconds = jax.random.split(jax.random.key(1), batch), []
        for _ in range(pairs):
            seconds.append([timed(draw, keys, logits)[1] for draw in both])
        ours, other = 1000 * np.median(seconds, axis=0)
        ratio = np.median([a / b for a, b in seconds])
        yield f"| vocabulary {size:,} | {batch * 64} | {ours:.0f} | {other:.0f} | {ratio:.2f} |"


def memory():
    """Temporary memory of the masked bound and its gradient over the logits', head included."""
    process, rows, width = jd.processes.absorbing(32768), (8, 256), 512

    def held(make, dtype, *shapes):
        def loss(arrays, x0):
            logits = make(*(array.astype(dtype) for array in arrays))
            net = lambda x, t: logits  # noqa: E731
            return jd.losses.discrete.elbo(net, jax.random.key(0), x0, process=process).mean()

        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        tokens = jax.ShapeDtypeStruct(rows, jnp.int32)
        program = jax.jit(jax.value_and_grad(loss)).lower(arrays, tokens).compile()
        logits = np.prod(rows) * 32768 * jnp.dtype(dtype).itemsize
        return program.memory_analysis().temp_size_in_bytes / logits

    features, kernel = (*rows, width), (width, 32768)
    yield "| vocabulary 32,768, length 256, batch 8 | temporary memory over that of the logits |"
    yield "|---|---|"
    for dtype in (jnp.float32, jnp.bfloat16):
        for name, make in (
            ("head multiplied out", lambda f, k: FactoredLogits(f, k).dense()),
            ("factored head", FactoredLogits),
        ):
            yield f"| {name}, {jnp.dtype(dtype).name} | {held(make, dtype, features, kernel):.2f} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=32000)
    parser.add_argument("--save", action="store_true", help=f"also write {RESULTS.name}")
    arguments = parser.parse_args()
    lines = []
    for part in (memory(), draws(), calls(), laws(arguments.samples)):
        for line in part:
            print(line, flush=True)
            lines.append(line)
        print()
        lines.append("")
    if arguments.save:
        title = f"# Discrete diffusion\n\n`python benchmarks/discrete.py`, jax {jax.__version__}, CPU.\n\n"
        RESULTS.write_text(title + "\n".join(lines).rstrip() + "\n")


if __name__ == "__main__":
    main()
