"""Gradients through sampling: right against finite differences, and bounded in memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

VP = processes.VP()
TARGET = testing.gaussian_mixture([[1.0, 0.3], [-0.8, -0.5]], [[0.3, 0.1], [0.2, 0.4]], [0.7, 0.3])
KEYS = jax.random.split(jax.random.key(3), 3)
GRID = jd.grids.quadratic(VP, 7)


def loss(numbers, grid, x, make, gradient, save="final"):
    """Of parameters, a condition per example, the grid, the start and a solver's number."""
    scale, condition, own = numbers

    def denoise(x, t):
        return scale[0] * TARGET.denoiser(VP)(x, t) + scale[1] * t * condition[:, None]

    path = jd.sample(KEYS, denoise, VP, make(own), grid, x=x, gradient=gradient, save=save)
    return jnp.mean(jnp.sin(path) ** 2)


def arguments():
    dtype, x = jnp.result_type(float), np.random.default_rng(2).normal(size=(3, 2))
    numbers = np.array([0.9, 0.1]), np.array([0.3, -0.2, 0.5]), np.array(0.4)
    return jax.tree.map(lambda leaf: leaf.astype(dtype), (numbers, GRID, x))


compute = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)), static_argnums=(3, 4, 5))


MAKE = {
    "ddim with eta": (solvers.ddim, "checkpointed"),
    "heun": (lambda own: solvers.heun(), "checkpointed"),
    "reversible": (lambda own: solvers.reversible_heun(), "reversible"),
}


@pytest.mark.slow
@pytest.mark.parametrize("make, gradient", MAKE.values(), ids=MAKE)
def test_against_finite_differences_and_the_full_gradient(x64, make, gradient):
    """7 steps, whose 7, 13 and 8 evaluations are no square."""
    rng, where, width = np.random.default_rng(0), arguments(), 1e-6
    step = jax.tree.map(lambda leaf: width * rng.normal(size=leaf.shape), where)
    step[1][[0, -1]] = 0.0  # the ends stay
    _, slopes = compute(*where, make, gradient, "final")
    sides = (jax.tree.map(lambda leaf, d, s=s: leaf + s * d, where, step) for s in (1, -1))
    up, down = (compute(*side, make, gradient, "final")[0] for side in sides)
    along = sum(np.sum(d * s) for d, s in zip(*map(jax.tree.leaves, (step, slopes)), strict=True))
    np.testing.assert_allclose(along, (up - down) / 2, rtol=1e-5)
    full, found = (compute(*where, make, g, "all") for g in ("full", gradient))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), full, found)


@pytest.mark.slow
def test_reversible_gradients_under_vmap_of_parameters():
    numbers, grid, x = arguments()
    make = MAKE["reversible"][0]

    @functools.partial(jax.jit, static_argnums=1)
    def of_scale(scale, gradient):
        return jax.grad(lambda s: loss((s, *numbers[1:]), grid, x, make, gradient))(scale)

    scales = np.stack([numbers[0], np.float32(0.5) * numbers[0]])
    found = jax.vmap(lambda s: of_scale(s, "reversible"))(scales)
    np.testing.assert_allclose(found, [of_scale(s, "full") for s in scales], rtol=2e-4, atol=1e-5)


@pytest.mark.slow
def test_the_last_evaluations_alone(x64):
    """A walk cut after k evaluations is the full gradient of the rest, from a start that is constant."""
    numbers, grid, x = arguments()
    make = solvers.ddim
    cut = compute(numbers, grid, x, make, 3, "final")[1]
    (scale, condition, own) = numbers

    def rest(scale, condition):
        def denoise(x, t):
            return scale[0] * TARGET.denoiser(VP)(x, t) + scale[1] * t * condition[:, None]

        middle = jd.sample(
            KEYS, denoise, VP, make(own), grid[:5], x=x, save="state"
        )[0]  # fmt: skip
        rows = jax.tree.map(lambda leaf: leaf[4:], make(own).plan(VP, grid)).replace(steps=3)
        noise = jnp.stack(
            [jax.vmap(lambda k: jax.random.normal(k, (2,)))(jd.core.fold_in(KEYS, i)) for i in (5, 6, 7)]
        )
        middle = jax.lax.stop_gradient(middle)
        return jnp.mean(jnp.sin(jd.sample(noise, denoise, VP, rows, x=middle)) ** 2)

    expected = jax.jit(jax.grad(rest, argnums=(0, 1)))(scale, condition)
    np.testing.assert_allclose(cut[0][0], expected[0], rtol=1e-9)
    np.testing.assert_allclose(cut[0][1], expected[1], rtol=1e-9)
    np.testing.assert_array_equal(cut[2], 0.0)
    whole, full = (compute(numbers, grid, x, make, g, "final")[1][0] for g in (100, "full"))
    np.testing.assert_allclose(whole[0], full[0], rtol=1e-12)


def memory(n, gradient, save="final"):
    """Temporary bytes of a compiled gradient, in units of one state of 64 x 256 floats."""
    weights = jax.ShapeDtypeStruct((256, 256), np.float32)
    grid = jd.grids.log_snr(VP, n, end=VP.t_min)

    def total(weights):
        denoise = lambda x, t: jnp.tanh(jnp.tanh(x @ weights) @ weights.T)  # noqa: E731
        x = jnp.ones((64, 256))
        solver = solvers.reversible_heun()
        return jnp.sum(jd.sample(None, denoise, VP, solver, grid, x=x, gradient=gradient, save=save) ** 2)

    compiled = jax.jit(jax.grad(total)).lower(weights).compile()
    return compiled.memory_analysis().temp_size_in_bytes / (4 * 64 * 256)


@pytest.mark.slow
def test_memory_of_the_compiled_gradient():
    full, root = ([memory(n, g) for n in (63, 255)] for g in ("full", "checkpointed"))
    assert full[1] - full[0] > 2 * 192  # at least two arrays of each of the 192 further evaluations
    slope = (root[1] - root[0]) / (np.sqrt(256) - np.sqrt(64))
    assert 0 < slope < 12 and root[1] < full[1] / 5
    back, last = ([memory(n, g) for n in (63, 255)] for g in ("reversible", 3))
    assert abs(back[1] - back[0]) < 1 and abs(last[1] - last[0]) < 1


@pytest.mark.parametrize("gradient", ["half", 0, True, 2.5, None])
def test_unknown_ways_are_refused(gradient):
    with pytest.raises(ValueError, match="full, checkpointed, reversible or a number k"):
        jd.sample(None, TARGET.denoiser(VP), VP, solvers.ddim(), GRID, x=jnp.ones((2, 2)), gradient=gradient)
