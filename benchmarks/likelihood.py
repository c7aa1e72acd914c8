"""What exact likelihood costs: 1,000 digits of 8 x 8, one compiled program, no callback to the host.

One run, float32:

    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= python benchmarks/likelihood.py [--save]

(The flag: on a CPU some reductions over thousands of rows are wrong without it.) The density is a mixture of
ten Gaussians fitted to the digits, dequantised, so every answer is known; MLP-B, untrained, is there for its
cost. Columns: derivatives of the network in an evaluation, evaluations, CPU-seconds for all examples,
CPU-milliseconds an example, microseconds an example and evaluation, the mean error in nats with its standard
error, the spread of one example's error, and bits per dimension (17 grey levels).
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd

RESULTS = pathlib.Path(__file__).parent / "results" / "likelihood.md"
COUNT, SIZE, LEVELS, STEPS = 1000, 64, 17, 50
TRACES = {"exact": (1, SIZE), "hutchinson": (1, 1), "hutchinson, 8": (8, 8), "hutch++, 8": (8, 24)}


def problem():
    """1,000 dequantised digits in [-1, 1] and the mixture of their classes' Gaussians."""
    data = jd.data.load("digits")
    levels = np.asarray(data.train["x"][:COUNT], np.int32)
    x0 = jd.likelihood.dequantize(jax.random.key(0), jnp.asarray(levels), LEVELS)
    label, flat = data.train["label"][:COUNT], np.asarray(x0, np.float64).reshape(COUNT, -1)
    own = [flat[label == k] for k in range(10)]
    means = np.stack([x.mean(0) for x in own]).reshape(10, 8, 8, 1)
    spread = np.stack([0.8 * np.cov(x.T) + 0.01 * np.eye(SIZE) for x in own])
    return x0, jd.testing.gaussian_mixture(means, spread, np.array([len(x) for x in own]) / COUNT)


def network(process):
    model = jd.models.build("MLP-B", sample_shape=(8, 8, 1))
    params = model.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), jnp.zeros(2))["params"]
    params = jax.tree.map(lambda p: p + 0.02 * jax.random.normal(jax.random.key(1), p.shape), params)
    kind = jd.parameterizations.edm()
    return lambda x, t: jd.denoiser(lambda x, c: model.apply({"params": params}, x, c), process, kind)(x, t)


def measure(denoise, process, grid, x0, trace, probes):
    """Log-densities and CPU-seconds; compilation is not counted."""

    def run(key, x0):
        return jd.likelihood.log_prob(
            key, denoise, process, x0, solver=jd.solvers.unipc(2), grid=grid, trace=trace, probes=probes
        )

    compiled = jax.jit(run).lower(jax.random.key(1), x0).compile()
    assert "callback" not in compiled.as_text()
    start = time.process_time()
    logp = compiled(jax.random.key(1), x0).block_until_ready()
    return np.asarray(logp, np.float64), time.process_time() - start


def report():
    x0, target = problem()
    process = jd.processes.VP()
    grid = jd.grids.log_snr(process, STEPS + 1)  # whose last step, to data, is not taken
    exact = np.asarray(target.log_prob(process, x0, process.t_min), np.float64)
    yield (
        "| density | trace | derivatives | evaluations | CPU s | ms an example | us an evaluation | "
        "error, nats | spread, nats | bits |"
    )
    yield "|---" * 10 + "|"
    for title, denoise in (("mixture", target.denoiser(process)), ("MLP-B", network(process))):
        for name, (probes, derivatives) in TRACES.items():
            logp, seconds = measure(denoise, process, grid, x0, name.split(",")[0], probes)
            known = title == "mixture"
            gap = logp - exact
            error = (
                f"{gap.mean():.3f} +- {gap.std() / COUNT**0.5:.3f} | {gap.std():.3f}" if known else "- | -"
            )
            bits = f"{jd.likelihood.bits_per_dimension(logp, SIZE, LEVELS).mean():.3f}" if known else "-"
            yield (
                f"| {title} | {name} | {derivatives} | {STEPS} | {seconds:.2f} | {1e3 * seconds / COUNT:.2f} "
                f"| {1e6 * seconds / COUNT / STEPS:.1f} | {error} | {bits} |"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    lines = []
    for line in report():
        print(line, flush=True)
        lines.append(line)
    if arguments.save:
        title = f"# Exact likelihood of {COUNT} images of 8 x 8\n\nVP, UniPC-2 on the log-SNR grid.\n\n"
        RESULTS.write_text(title + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
