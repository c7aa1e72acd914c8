"""What the regularisers of `jd.losses.regularizers` do to what they are meant for, and to the samples.

    XLA_FLAGS=--xla_cpu_experimental_ynn_fusion_type= python benchmarks/regularizers.py [--save]

(The flag: on a CPU some reductions over thousands of rows are wrong without it.) Networks of three layers
of 64 on two-dimensional mixtures, 800 steps of 128, the mean and standard deviation over three seeds; every
row of a table is trained at once under `vmap`. The distance is sliced Wasserstein to fresh data; that of data
to data is .04 on the ring. On digits (networks of 128 and 160, two seeds) distances are of pixels.

- Step-wise variation (unevenness of samples along slerp paths of noise, with one running mean or one for each
  of 16 noise levels): lower with the weight, at the price of distance; one mean is enough.
- Corruption of conditions with 16 examples a class: no rate or strength tried helped.
- Fokker-Planck residual: it falls to a quarter; the distance of the ODE's from the SDE's samples is that of
  data to data before and after, so there was no gap to close.
- Context prediction on digits: no effect outside of the spread.
- Few-shot terms: a network of digits, adapted to ten of their outlines. Diversity is the distance within
  clusters about the ten, energy that of Haar details, both over those of held-out outlines. After 400 steps
  plain fine-tuning draws noisy images of high energy; the pairs' terms more than halve their distance from
  real outlines. After 1,200 it draws less various ones than with all three terms, further from real ones. The
  error of details alone brings their energy nearer to that of outlines; with the pairs' terms it is too low.
"""

import argparse
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
from scipy.spatial.distance import pdist

import jaxdiff as jd

RESULTS = pathlib.Path(__file__).parent / "results" / "regularizers.md"
SEEDS, STEPS, BATCH, WIDTH = 3, 800, 128, 64
R = jd.losses.regularizers
VP, KIND = jd.processes.VP(t_min=0.01), jd.parameterizations.edm(0.9)
BINS, FRESH = 16, jax.random.key(9)
ANGLES = np.arange(8) * np.pi / 4
RING = jd.testing.gaussian_mixture(1.2 * np.stack([np.cos(ANGLES), np.sin(ANGLES)], 1), np.full(8, 0.02))

BROAD = jd.testing.gaussian_mixture(
    np.array([[1.0, 0.0], [-1.0, 0.2], [0.0, -1.2]]), np.full(3, 0.12), np.array([0.5, 0.3, 0.2])
)


def init(key, size, out, width=WIDTH):
    sizes = [size, width, width, width, out]
    keys = jax.random.split(key, len(sizes) - 1)
    pairs = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [(jax.random.normal(k, (m, n)) / m**0.5, jnp.zeros(n)) for k, m, n in pairs]


def mlp(params, x, level, *more):
    """`(batch, out)`; `level` is `(batch,)` or a scalar."""
    phase = jnp.broadcast_to(level, x.shape[:1])[:, None] * 2.0 ** jnp.arange(4)[None]
    h = jnp.concatenate([x, jnp.sin(phase), jnp.cos(phase), *more], 1)
    for w, b in params[:-1]:
        h = jax.nn.silu(h @ w + b[None])
    return h @ params[-1][0] + params[-1][1][None]


def train(key, params, loss, carry=0.0, steps=STEPS, rate=3e-3):
    """Adam on `loss(params, key, carry) -> (scalar, carry)`."""
    rule = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(state, key):
        params, moments, carry = state
        gradient, carry = jax.grad(loss, has_aux=True)(params, key, carry)
        change, moments = rule.update(gradient, moments)
        return (optax.apply_updates(params, change), moments, carry), None

    state = (params, rule.init(params), carry)
    return jax.lax.scan(step, state, jax.random.split(key, steps))[0][0]


def every(run, settings, seeds=SEEDS):
    """`run(setting, key)` for all settings and seeds at once, `(settings, seeds, ...)` in numpy."""
    keys = jax.random.split(jax.random.key(0), seeds)
    both = jax.jit(jax.vmap(jax.vmap(run, (None, 0)), (0, None)))
    return jax.tree.map(np.asarray, both(jnp.asarray(settings), keys))


def line(name, *columns):
    """One row: the mean over seeds and its spread."""
    return f"| {name} | " + " | ".join(f"{np.mean(c):.3f} +- {np.std(c):.3f}" for c in columns) + " |"


def distances(samples, real):
    return [float(jd.metrics.sliced_wasserstein(x, real)) for x in samples]


def smoothness():
    """Step-wise variation: samples along great circles of noise."""
    settings, real = [(0, 1), (1, 1), (10, 1), (1, BINS), (10, BINS)], BROAD.sample(FRESH, 2000)

    def run(setting, key):
        (weight, bins), (first, second, third) = setting, jax.random.split(key, 3)

        def denoise(params):
            return jd.denoiser(lambda x, c: mlp(params, x, c), VP, KIND)

        def loss(params, key, levels):
            draw, noisy, slopes = jax.random.split(key, 3)
            x0 = BROAD.sample(draw, BATCH)
            net = lambda x, c: mlp(params, x, c)  # noqa: E731
            losses = jd.losses.denoising(net, noisy, x0, process=VP, parameterization=KIND)
            keys = jax.random.split(slopes, 3)
            t = jd.times.stratified().draw(jax.random.split(keys[0], BATCH), VP)  # in increasing order
            x = VP.perturb(x0, jax.random.normal(keys[1], x0.shape), t)
            level = jnp.repeat(levels, BATCH // BINS)
            uneven, n = R.step_wise_variation(denoise(params), VP, keys[2], x, t, level)
            n = jax.lax.stop_gradient(n)
            mean = jnp.where(bins > 1, n.reshape(BINS, -1).mean(1), n.mean())
            return losses.mean() + weight * uneven.mean(), 0.99 * levels + 0.01 * mean

        params = train(first, init(second, 10, 2), loss, jnp.full(BINS, 0.5))
        one, other = jax.random.normal(third, (2, 1000, 2))
        path = jax.vmap(lambda u: jd.editing.slerp(one, other, u))(jnp.linspace(0, 1, 17))
        solver, grid = jd.solvers.dpmpp_multistep(2), jd.grids.log_snr(VP, 20)
        x = jd.sample(None, denoise(params), VP, solver, grid, x=path.reshape(-1, 2)).reshape(path.shape)
        return jd.editing.smoothness(x).mean(), x[0]

    uneven, samples = every(run, settings)
    yield "| weight of step-wise variation | levels | unevenness | distance |\n|---|---|---|---|"
    for i, (weight, bins) in enumerate(settings):
        yield line(f"{weight} | {bins}", uneven[i], distances(samples[i], real))


def fokker_planck():
    """The gap of ODE and SDE of a density model."""
    weights, real = (0.0, 1e-4, 1e-3), RING.sample(FRESH, 2000)

    def run(weight, key):
        first, second, third = jax.random.split(key, 3)

        def log_prob(params):
            def value(x, t):
                a, _, c = VP.coefficients(t)
                wide = jnp.broadcast_to(0.75 * a**2 + c**2, x.shape[:1])
                return mlp(params, x, VP.c_noise(t) * 3)[:, 0] - 0.5 * jnp.sum(x**2, 1) / wide - jnp.log(wide)

            return value

        def score(params):
            return lambda x, t: jax.grad(lambda x: jnp.sum(log_prob(params)(x, t)))(x)

        def loss(params, key, carry):
            keys = jax.random.split(key, 4)
            x0, t = RING.sample(keys[0], BATCH), jax.random.uniform(keys[1], (BATCH,), minval=0.01)
            noise = jax.random.normal(keys[2], x0.shape)
            x, c = VP.perturb(x0, noise, t), VP.coefficients(t)[2][:, None]
            matching = jnp.mean(jnp.square(c * score(params)(x, t) + noise))
            residual = R.fokker_planck(log_prob(params), VP, keys[3], x, t, exact=True)
            return matching + weight * residual.mean(), carry

        params = train(first, init(second, 10, 1), loss)

        def denoise(x, t):
            a, _, c = (jnp.asarray(k, x.dtype) for k in VP.coefficients(t))
            return (x + c**2 * score(params)(x, t)) / a

        keys, grid = jax.random.split(third, 2000), jd.grids.log_snr(VP, 100)
        ends = [
            jd.sample(keys, denoise, VP, jd.solvers.dpmpp_multistep(2, tau=tau), grid, shape=(2,))
            for tau in (0.0, 1.0)
        ]
        x0, times = RING.sample(third, 500), np.array([0.1, 0.3, 0.5, 0.7])
        profile = jd.diagnostics.fokker_planck_profile(log_prob(params), VP, third, x0, times, exact=True)
        return jnp.sqrt(profile.mean()), *ends

    residual, ode, sde = every(run, weights)
    yield "| weight of the residual | residual | ODE to SDE | ODE to data | SDE to data |"
    yield "|---|---|---|---|---|"
    for i, weight in enumerate(weights):
        gap = [float(jd.metrics.sliced_wasserstein(*pair)) for pair in zip(ode[i], sde[i], strict=True)]
        yield line(weight, residual[i], gap, distances(ode[i], real), distances(sde[i], real))


def corruption():
    """Wrong labels, and noise on their embeddings, with few examples a class."""
    settings = [(0.0, 0.0), (0.05, 0.0), (0.3, 0.0), (0.0, 0.3), (0.0, 1.0)]
    means = jnp.asarray(RING.means, jnp.float32)
    label = jnp.arange(128) % 8
    fresh = np.asarray(RING.means)[np.arange(2000) % 8] + 0.02**0.5 * np.random.default_rng(0).normal(
        size=(2000, 2)
    )

    def run(setting, key):
        rate, gamma = setting
        keys = jax.random.split(key, 6)
        x0 = means[label] + 0.02**0.5 * jax.random.normal(keys[0], (128, 2))
        told = R.corrupt_labels(keys[1], label, rate, 8)

        def loss(params, key, carry):
            draw, noise, noisy = jax.random.split(key, 3)
            pick = jax.random.randint(draw, (BATCH,), 0, 128)
            embedding = R.perturb_condition(noise, params[1][told[pick]], gamma)
            net = lambda x, c: mlp(params[0], x, c, embedding)  # noqa: E731
            return jd.losses.denoising(net, noisy, x0[pick], process=VP, parameterization=KIND).mean(), carry

        start = init(keys[2], 18, 2), jax.random.normal(keys[3], (8, 8))
        net, table = train(keys[4], start, loss)
        asked = table[jnp.arange(2000) % 8]
        denoise = jd.denoiser(lambda x, c: mlp(net, x, c, asked), VP, KIND)
        own = jax.random.split(keys[5], 2000)
        solver, grid = jd.solvers.dpmpp_multistep(2), jd.grids.log_snr(VP, 20)
        x = jd.sample(own, denoise, VP, solver, grid, shape=(2,))
        near = jnp.argmin(jnp.sum((x[:, None] - means[None]) ** 2, -1), 1) == jnp.arange(2000) % 8
        return x, jnp.mean(near)

    samples, right = every(run, settings)
    yield "| wrong labels | noise on embeddings | distance | distance within classes | right class |"
    yield "|---|---|---|---|---|"
    for i, (rate, gamma) in enumerate(settings):
        own = [
            np.mean([jd.metrics.sliced_wasserstein(x[k::8], fresh[k::8]) for k in range(8)])
            for x in samples[i]
        ]
        yield line(f"{rate} | {gamma}", distances(samples[i], fresh), own, right[i])


def digits():
    """Training and held-out images in [-1, 1], and the training labels."""
    data = jd.data.load("digits")
    return data.train["x"] / 8 - 1, data.held_out["x"] / 8 - 1, data.train["label"]


def drawn(key, denoise, count):
    """Images of 8 x 8 by twenty evaluations."""
    solver, grid = jd.solvers.dpmpp_multistep(2), jd.grids.log_snr(VP, 20)
    return jd.sample(jax.random.split(key, count), denoise, VP, solver, grid, shape=(8, 8, 1))


def context():
    """Context prediction: digits, and how neighbouring pixels go together."""
    weights, features, steps, batch = (0.0, 0.1), 6, 1000, 64
    x, held_out, _ = digits()

    def seen(params, x, c):
        """The last features of every pixel, from which both heads read."""
        return jax.nn.silu(mlp(params[0], x.reshape(-1, 64), c).reshape(-1, 8, 8, features))

    def run(weight, key):
        keys = jax.random.split(key, 4)
        draw = lambda key, *shape: jax.random.normal(key, shape) / shape[0] ** 0.5  # noqa: E731
        heads = [draw(k, *s) for k, s in zip(jax.random.split(keys[0], 3), HEADS, strict=True)]
        params = init(keys[1], 72, 64 * features, 128), heads[0], heads[1:]

        def loss(params, key, carry):
            pick, noisy = jax.random.split(key)
            x0, at = jnp.asarray(x)[jax.random.randint(pick, (batch,), 0, len(x))], []

            def net(x, c):
                at.append(seen(params, x, c))
                return at[0] @ params[1]

            losses = jd.losses.denoising(net, noisy, x0, process=VP, parameterization=KIND)
            first, second = params[2]
            around = R.context_prediction((jax.nn.silu(at[0] @ first) @ second)[..., None], x0)
            return losses.mean() + weight * around.mean(), around.mean()

        params = train(keys[2], params, loss, steps=steps)
        return drawn(keys[3], jd.denoiser(lambda x, c: seen(params, x, c) @ params[1], VP, KIND), 600)

    def neighbours(x):
        """Products of neighbouring pixels, averaged over images, less those of their means."""
        x = np.asarray(x)[..., 0]
        x = x - x.mean(0)
        return np.concatenate([(x[:, 1:] * x[:, :-1]).mean(0), (x[:, :, 1:] * x[:, :, :-1]).mean(0).T])

    def columns(images):
        gaps = [np.abs(neighbours(one) - neighbours(held_out)).mean() for one in images]
        flat = [one.reshape(len(one), -1) for one in images]
        real = held_out.reshape(len(held_out), -1)
        return (
            gaps,
            [jd.metrics.mmd(one, real) for one in flat],
            [jd.metrics.frechet_distance(one, real) for one in flat],
        )

    yield "| weight of context prediction | error of neighbours' covariance | MMD | Frechet, pixels |"
    yield "|---|---|---|---|"
    for weight, images in zip(weights, every(run, weights, 2), strict=True):
        yield line(weight, *columns(images))
    yield line("training images", *columns(np.split(x[:1196], 2)))


def few_shot():
    """Ten outlines for a network of digits: pairwise similarities and details."""
    plain, all_three = (0, 0, 0), (30, 30, 0.3)
    short = [plain, (30, 0, 0), (0, 30, 0), (0, 0, 0.3), (30, 30, 0), all_three, (300, 300, 0.3)]
    x, held_out, label = digits()
    ten = jnp.asarray(outline(x[[np.flatnonzero(label == k)[0] for k in range(10)]]))
    real = outline(held_out)

    def denoiser(params):
        net = lambda x, c: mlp(params, x.reshape(-1, 64), c).reshape(x.shape)  # noqa: E731
        return net, jd.denoiser(net, VP, KIND)

    def source(key):
        def loss(params, key, carry):
            pick, noisy = jax.random.split(key)
            x0 = jnp.asarray(x)[jax.random.randint(pick, (BATCH,), 0, len(x))]
            net = denoiser(params)[0]
            return jd.losses.denoising(net, noisy, x0, process=VP, parameterization=KIND).mean(), carry

        first, second = jax.random.split(key)
        return train(second, init(first, 72, 64, 160), loss, steps=2000)

    def run(steps, setting, key, params):
        source, (first, second) = params, jax.random.split(key)

        def loss(params, key, carry):
            noisy, *keys = jax.random.split(key, 3)
            net, adapted = denoiser(params)
            losses = jd.losses.denoising(net, noisy, ten, process=VP, parameterization=KIND)
            t = jd.times.uniform().draw(jax.random.split(keys[0], len(ten)), VP)
            x_t = VP.perturb(ten, jax.random.normal(keys[1], ten.shape), t)
            ours, theirs = adapted(x_t, t), denoiser(source)[1](x_t, t)
            terms = [R.pairwise_similarity(ours, theirs, details) for details in (False, True)]
            terms.append(R.high_frequency(ours, ten))
            extra = sum(weight * term.mean() for weight, term in zip(setting, terms, strict=True))
            return losses.mean() + extra, carry

        params = train(first, params, loss, steps=steps, rate=1e-3)
        return drawn(second, denoiser(params)[1], 600)

    def columns(images):
        return list(zip(*[measured(np.asarray(one), real, np.asarray(ten)) for one in images], strict=True))

    keys = jax.random.split(jax.random.key(1), 2)
    sources = jax.jit(jax.vmap(source))(keys)
    yield "| steps | weights: pairs, details, errors | diversity | energy of details | Frechet, pixels |"
    yield "|---|---|---|---|---|"
    for steps, settings in ((400, short), (1200, [plain, all_three])):
        each = functools.partial(run, steps)
        both = jax.jit(jax.vmap(jax.vmap(each, (None, 0, 0)), (0, None, None)))
        for setting, images in zip(settings, both(jnp.asarray(settings), keys, sources), strict=True):
            yield line(f"{steps} | {', '.join(map(str, setting))}", *columns(images))
    before = jax.vmap(lambda key, params: drawn(key, denoiser(params)[1], 600))(keys, sources)
    yield line("0 | the network of digits", *columns(before))
    yield line("- | outlines of training images", *columns(np.split(outline(x[:1196]), 2)))


HEADS = ((6, 1), (6, 32), (32, 8))


def outline(x):
    """-1 and 1: where the slope of images is steep, as in experiments/bridge.py."""
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    rise, run = padded[:, 2:, 1:-1] - padded[:, :-2, 1:-1], padded[:, 1:-1, 2:] - padded[:, 1:-1, :-2]
    return np.where(np.hypot(rise, run) > 1.0, 1.0, -1.0).astype(np.float32)


def measured(images, real, ten):
    """Diversity within the clusters of the ten examples, energy of details, distance from real outlines."""

    def within(images):
        flat, centres = images.reshape(len(images), -1), ten.reshape(10, -1)
        own = np.argmin(((flat[:, None] - centres[None]) ** 2).sum(-1), 1)
        clusters = [flat[own == k] for k in range(10) if np.sum(own == k) > 1]
        return np.mean([pdist(cluster).mean() for cluster in clusters])

    energy = [np.mean(np.square(R.haar_details(jnp.asarray(part)))) for part in (images, real)]
    flat = [part.reshape(len(part), -1) for part in (images, real)]
    return within(images) / within(real), energy[0] / energy[1], jd.metrics.frechet_distance(*flat)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}")
    parser.add_argument("--only", choices=list(PARTS), nargs="*", default=list(PARTS), help="these tables")
    arguments = parser.parse_args()
    before = RESULTS.read_text() if RESULTS.exists() else ""
    sections = dict(part.split("\n", 1) for part in before.split("\n## ")[1:])
    for name in arguments.only:
        title, lines = PARTS[name].__doc__, []
        print(f"\n## {title}\n", flush=True)
        for text in PARTS[name]():
            print(text, flush=True)
            lines.append(text)
        sections[title] = "\n" + "\n".join(lines) + "\n"
        if not arguments.save:
            continue
        tables = [
            f"\n## {part.__doc__}\n{sections[part.__doc__]}"
            for part in PARTS.values()
            if part.__doc__ in sections
        ]
        RESULTS.write_text("# Regularisers, two or three seeds\n" + "".join(tables))


PARTS = {
    "smoothness": smoothness, "corruption": corruption, "fokker-planck": fokker_planck,
    "context": context, "few-shot": few_shot,
}  # fmt: skip


if __name__ == "__main__":
    main()
