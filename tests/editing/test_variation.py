"""Variations of an exemplar by alignment to its inversion chain, with a trained attention network (RIVAL)."""

import jax
import numpy as np
import pytest

import jaxdiff as jd

PATTERNS = 0.7 * np.array([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]).reshape(4, 2, 2)
PROCESS, PARAMETERIZATION = jd.processes.RectifiedFlow(), jd.parameterizations.velocity()
SHAPE, COUNT = (8, 8, 1), 64


def textures(seed, n):
    """Images of sixteen patches, all of one of four patterns, each as it is or turned into its negative."""
    rng = np.random.default_rng(seed)
    kind, sign = rng.integers(0, 4, n), rng.choice([-1.0, 1.0], (n, 4, 4))
    x = np.einsum("nij,nab->niajb", sign, PATTERNS[kind]).reshape(n, *SHAPE)
    return kind, sign, (x + 0.1 * rng.normal(size=x.shape)).astype(np.float32)


def projections(x):
    """Of every patch on every pattern, `(n, 4, 4, 4)`; those of an image's own are near 1."""
    patches = np.asarray(x).reshape(-1, 4, 2, 4, 2)
    return np.einsum("niajb,kab->nijk", patches, PATTERNS) / (4 * 0.7**2)


def likeness(x, kind):
    """Share of an image that is of the pattern `kind`."""
    energy = np.square(projections(x)).mean((1, 2))
    return energy[np.arange(len(energy)), kind] / energy.sum(1)


def trained(steps=300):
    model = jd.models.DiT(patch=2, width=32, depth=2, heads=2)
    params = jd.training.init_params(model, jax.random.key(0), SHAPE)
    state = jd.training.fit(
        params, jd.training.denoising_objective(model, PROCESS, PARAMETERIZATION),
        {"x": textures(0, 4096)[2]}, steps=steps, batch_size=64, ema=(50,),
        optimizer=jd.training.adamw(jd.training.learning_rates(3e-3, steps, warmup=50)),
    )  # fmt: skip
    return model, {"params": state.ema[0]}


@pytest.mark.slow
def test_variations_have_the_look_of_the_exemplar_and_a_layout_of_their_own():
    """Samples by themselves have each pattern alike; seen: .98 of a variation is of the exemplar's."""
    model, variables = trained()
    kind, sign, exemplar = textures(1, COUNT)
    grid, solver = jd.grids.uniform(PROCESS, 40, end=0.01), jd.solvers.ddim()
    keys = jax.random.split(jax.random.key(1), COUNT)
    attend = jd.models.attending(model)

    def plain(x, t):
        net = lambda x, c_noise: model.apply(variables, x, c_noise)  # noqa: E731
        return jd.denoiser(net, PROCESS, PARAMETERIZATION)(x, t)

    @jax.jit
    def draw():
        chain = jd.sample(None, plain, PROCESS, solver, grid[::-1], x=exemplar, save="all")[::-1]
        at = jd.editing.chain_at(chain, grid)

        def attending(x, t):
            net = lambda x, c_noise: attend(variables, x, at(t), c_noise, alone=t > 0.6)  # noqa: E731
            return jd.denoiser(net, PROCESS, PARAMETERIZATION)(x, t)

        def walk(denoise, solver):
            return jd.sample(None, denoise, PROCESS, solver, grid, x=start, save="all")

        start = jd.editing.shuffled(keys, chain[0])
        aligned = jd.editing.aligned(solver, chain, until=0.6)
        return chain, walk(plain, solver)[-1], walk(plain, aligned)[-1], walk(attending, aligned)

    chain, own, alike, path = (np.asarray(v) for v in draw())
    early = grid >= 0.6
    np.testing.assert_allclose(path[early].mean((2, 3)), chain[early].mean((2, 3)), atol=1e-4)
    np.testing.assert_allclose(path[early].std((2, 3)), chain[early].std((2, 3)), atol=1e-4)
    assert likeness(exemplar, kind).mean() > 0.95
    assert likeness(own, kind).mean() < 0.4 and likeness(alike, kind).mean() < 0.5
    assert likeness(path[-1], kind).mean() > 0.9
    layout = np.sign(np.take_along_axis(projections(path[-1]), kind[:, None, None, None], 3))[..., 0]
    assert abs((layout == sign).mean() - 0.5) < 0.15
