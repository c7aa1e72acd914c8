"""Posterior error against evaluations and time, for every method of `jd.inverse` on the same problems.

The prior is a mixture of three correlated Gaussians on 4 x 4 images, so the posterior given any linear
measurement is known. One run, float32:

    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= python benchmarks/inverse.py [--save]

(The flag: on a CPU some reductions over thousands of rows are wrong without it.) Columns: evaluations of the
network for a sample, backward passes through it, CPU-seconds for 2,000 samples of one measurement, and the
posterior's errors: of the weights (total variation), of the means within the right modes and of their
covariances (largest entry, in units of the posterior's own).
"""

import argparse
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd

RESULTS = pathlib.Path(__file__).parent / "results" / "inverse.md"
SIDE, SIGMA, COUNT, STEPS = 4, 0.2, 2000, 60
EVENT, SIZE = (SIDE, SIDE, 1), SIDE**2
inverse = jd.inverse


def prior():
    """Means, covariances with neighbours alike, weights."""
    rng = np.random.default_rng(0)
    place = np.stack(np.mgrid[:SIDE, :SIDE].reshape(2, -1), 1)
    near = np.exp(-np.sum((place[:, None] - place[None]) ** 2, -1) / 4.0)
    covariances = np.stack([scale * near + 0.02 * np.eye(SIZE) for scale in (0.1, 0.2, 0.15)])
    return 0.8 * rng.normal(size=(3, SIZE)), covariances, np.array([0.5, 0.3, 0.2])


def operators():
    seen = np.ones((SIDE, SIDE))
    seen[1:3, 1:3] = 0
    return {
        "inpainting": inverse.mask(seen),
        "blur": inverse.gaussian_blur(0.8, 3),
        "half the size": inverse.downsample(2),
        "two projections": inverse.radon(SIDE, np.array([0.0, np.pi / 2])),
    }


def exact(operator, y, means, covariances, weights):
    """Weights, means and covariances of the posterior of one measurement."""
    a = np.asarray(operator.forward(jnp.eye(SIZE).reshape(SIZE, *EVENT)), np.float64).reshape(SIZE, -1).T
    out = []
    for mean, s, weight in zip(means, covariances, weights, strict=True):
        total = a @ s @ a.T + SIGMA**2 * np.eye(len(a))
        gain, e = s @ a.T @ np.linalg.inv(total), np.ravel(y) - a @ mean
        odds = np.log(weight) - 0.5 * (e @ np.linalg.solve(total, e) + np.linalg.slogdet(total)[1])
        out.append((odds, mean + gain @ e, s - gain @ a @ s))
    odds, means, covariances = (np.stack(v) for v in zip(*out, strict=True))
    p = np.exp(odds - odds.max())
    return p / p.sum(), means, covariances


def errors(x, truth):
    """Of weights, means and covariances; samples go to the mode that most likely made them."""
    weights, means, covariances = truth
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    if not np.isfinite(x).all():
        return (np.inf,) * 3
    odds = [
        np.log(p + 1e-12) - 0.5 * (np.einsum("ni,ij,nj->n", x - m, np.linalg.inv(s), x - m)
                                   + np.linalg.slogdet(s)[1])
        for p, m, s in zip(weights, means, covariances, strict=True)
    ]  # fmt: skip
    mode = np.argmax(odds, 0)
    share = np.bincount(mode, minlength=len(weights)) / len(x)
    best = int(np.argmax(weights))
    mine = x[mode == best]
    if len(mine) < 50:
        return 0.5 * np.abs(share - weights).sum(), np.inf, np.inf
    spread = np.sqrt(np.diag(covariances[best]).max())
    return (
        0.5 * np.abs(share - weights).sum(),
        np.abs(mine.mean(0) - means[best]).max() / spread,
        np.abs(np.cov(mine.T) - covariances[best]).max() / spread**2,
    )


def methods(mixture, operator):
    """Method -> (options, steps of the grid); steps along gradients of A go by its largest singular value."""
    x = jnp.eye(SIZE).reshape(SIZE, *EVENT)
    s2 = float(max(1.0, np.linalg.norm(np.asarray(operator.forward(x)).reshape(SIZE, -1), 2) ** 2))
    means, covariances, weights = (np.asarray(v, np.float32) for v in mixture)
    known = inverse.MixturePrior(means, covariances, weights, EVENT)
    return {
        "tractable": ({"prior": known}, STEPS), "mmps": ({}, STEPS), "tmpd": ({}, STEPS),
        "pigdm": ({}, STEPS), "dps": ({}, 4 * round(max(1, s2 / 2)) * STEPS), "mcg": ({}, STEPS),
        "jacobian_free": ({}, STEPS),
        "diffpir": ({}, STEPS), "ddnm": ({}, STEPS), "ddrm": ({}, STEPS), "replacement": ({}, STEPS),
        "repaint": ({"cycles": 10}, STEPS), "cyclic_one_way": ({}, STEPS),
        "flow_chef": ({"step_size": 0.5 / s2}, STEPS), "daps": ({"step_size": 0.03 / s2}, 30),
        "red_diff": ({}, 4 * STEPS),
    }  # fmt: skip


def conditioned(name, options, process, denoise, operator, y, count):
    """`(denoiser, solver)` of a method, for `count` samples of one measurement."""
    level = 0.0 if name in ("ddnm", "replacement", "repaint", "cyclic_one_way", "flow_chef") else SIGMA
    ys = jnp.tile(jnp.asarray(y, jnp.float32), (count, *[1] * (y.ndim - 1)))
    made = inverse.posterior(denoise, process, operator, ys, name, level, **options)
    solver = jd.solvers.dpmpp_multistep(2, tau=1.0)
    return (made, solver) if name in inverse.TRANSFORMS else (denoise, made)


def draw(name, options, steps, process, denoise, operator, y):
    """`(samples, rows, CPU-seconds)`; the second call is timed."""
    grid = jd.grids.log_snr(process, steps)
    keys = jax.random.split(jax.random.key(0), COUNT)
    net, solver = conditioned(name, options, process, denoise, operator, y, COUNT)
    run = jax.jit(lambda keys: jd.sample(keys, net, process, solver, grid, shape=EVENT))
    run(keys).block_until_ready()
    start = time.process_time()
    x = run(keys).block_until_ready()
    return x, solver.plan(process, grid).nfe, time.process_time() - start


def counted(name, options, process, denoise, operator, y):
    """Calls of the network and backward passes through it, of a row: counted while one sample is drawn."""
    calls, backwards = [], []

    @jax.custom_vjp
    def network(x, t):
        return denoise(x, t)

    def forward(x, t):
        return jax.vjp(lambda x: denoise(x, t), x)

    def backward(pull, g):
        backwards.append(1)
        return pull(g)[0], None

    network.defvjp(forward, backward)
    options = options | ({"langevin_steps": 1} if name == "daps" else {})
    counting = lambda x, t: calls.append(1) or network(x, t)  # noqa: E731
    net, solver = conditioned(name, options, process, counting, operator, y, 1)
    grid = jd.grids.log_snr(process, 2)
    with jax.disable_jit():
        jd.sample(jax.random.split(jax.random.key(0), 1), net, process, solver, grid, shape=EVENT)
    rows = solver.plan(process, grid).nfe
    return len(calls) / rows, len(backwards) / rows


def report():
    mixture = prior()
    target = jd.testing.gaussian_mixture(mixture[0].reshape(3, *EVENT), mixture[1], mixture[2])
    process = jd.processes.RectifiedFlow()
    denoise, rng = target.denoiser(process), np.random.default_rng(1)
    yield f"Rectified flow, {SIDE} x {SIDE}, three modes, measurement noise {SIGMA}, {COUNT} samples."
    yield "n/a: not finite, or fewer than 50 samples in the likeliest mode. Methods for measurements"
    yield "without noise (ddnm, mcg, replacement and its cycles) copy it, and a blur's inverse enlarges it."
    yield "Evaluations and backward passes are counted where the network is called."
    counts = {}
    for title, operator in operators().items():
        x0 = target.sample(jax.random.key(5), 1)
        clean = np.asarray(operator.forward(x0))
        y = clean + SIGMA * rng.normal(size=clean.shape) * (np.abs(clean) > 0)
        truth = exact(operator, y, *mixture)
        yield f"\n## {title}\n"
        yield "| method | evaluations | backward passes | CPU s | weights | means | covariances |"
        yield "|---|---|---|---|---|---|---|"
        for name, (options, steps) in methods(mixture, operator).items():
            setting = process, denoise, operator, y
            x, rows, seconds = draw(name, options, steps, *setting)
            if name not in counts:  # an evaluation is one whatever is measured
                counts[name] = counted(name, options, *setting)
            calls, backwards = counts[name]
            found = " | ".join(f"{v:.2f}" if np.isfinite(v) else "n/a" for v in errors(x, truth))
            yield f"| {name} | {calls * rows:.0f} | {backwards * rows:.0f} | {seconds:.2f} | {found} |"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    lines = []
    for line in report():
        print(line, flush=True)
        lines.append(line)
    if arguments.save:
        RESULTS.write_text("# Inverse problems\n\n" + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
