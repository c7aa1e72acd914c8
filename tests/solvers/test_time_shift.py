"""The time-shift sampler: which time it asks about, and what that is worth."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

PROCESSES = [processes.VP(), processes.RectifiedFlow(), processes.SubVP()]
NAMES = [type(p).__name__ for p in PROCESSES]
SIZE, VARIANCE = 400, 0.25


def asked(x, t):
    """A denoiser that answers with the time it was asked about."""
    return jnp.broadcast_to(jnp.reshape(t, (-1,) + (1,) * (x.ndim - 1)), x.shape)


@functools.cache
def shifts(process):
    """The times asked with a wide window, and with a narrow one of far more and far less noise."""
    wide = solvers.time_shift(asked, process, 0.3, data_variance=VARIANCE, keep="data", candidates=61)
    narrow = solvers.time_shift(asked, process, 0.04, data_variance=VARIANCE, keep="data")
    return jax.jit(lambda x, t: (wide(x, t), narrow(3.0 * x, t), narrow(0.1 * x, t)))


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
@pytest.mark.parametrize("offset", [-0.06, 0.0, 0.05])
def test_the_time_found_is_that_of_the_noise_in_the_sample(process, offset):
    t, n = 0.5, 64
    clean = np.sqrt(VARIANCE) * normal(1, n, SIZE)
    a, _, c = process.coefficients(t + offset)
    x = (a * clean + c * normal(0, n, SIZE)).astype(np.float32)
    found, noisier, cleaner = (np.asarray(v)[:, 0] for v in shifts(process)(x, t))
    slope = np.diff([np.dot(np.square(process.coefficients(s)[::2]), [VARIANCE, 1]) for s in (t, t + 0.01)])
    spread = np.sqrt(2 / SIZE) * np.var(x) / (abs(slope[0]) / 0.01)
    assert abs(np.mean(found) - t - offset) < 4 * spread / np.sqrt(n) + 0.006
    np.testing.assert_allclose(noisier, t + 0.02, rtol=1e-6)
    np.testing.assert_allclose(cleaner, t - 0.02, rtol=1e-6)


def test_published_variance_is_that_of_the_noise_alone():
    process, t = processes.VP(), 0.4
    x = np.float32(process.coefficients(0.45)[2]) * normal(0, 32, 4000)
    shifted = jax.jit(solvers.time_shift(asked, process, 0.2, keep="data", candidates=81))
    found = np.asarray(shifted(x, t))[:, 0]
    assert abs(np.mean(found) - 0.45) < 0.01


def test_there_is_no_shift_at_the_start_nor_below_the_cutoff():
    process = processes.VP()
    shifted = jax.jit(solvers.time_shift(asked, process, 0.2, cutoff=0.3, keep="data"))
    x, t = np.float32(0.01) * normal(0, 3, 8), np.float32([1.0, 0.3, 0.31])
    found = np.asarray(shifted(x, t))[:, 0]
    np.testing.assert_allclose(found[:2], t[:2])
    assert found[2] < 0.25


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_noise_is_kept_where_that_is_asked(process):
    """With the shift known, the clean estimate is (x - c_t e(x, t_s)) / a_t."""
    target = testing.gaussian(np.zeros(8), VARIANCE)
    x, t, denoise = np.float32(0.05) * normal(0, 4, 8), 0.5, target.denoiser(process)
    shifted = solvers.time_shift(denoise, process, 0.1)
    found, clean = jax.jit(lambda x: (shifted(x, t), denoise(x, 0.45)))(x)
    (a_t, _, c_t), (a_s, _, c_s) = process.coefficients(t), process.coefficients(0.45)
    e = (x - a_s * np.asarray(clean)) / c_s
    np.testing.assert_allclose(found, (x - c_t * e) / a_t, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("process", PROCESSES[:2], ids=NAMES[:2])
@pytest.mark.parametrize("solver", [solvers.ddim(), solvers.ancestral()], ids=["ddim", "ancestral"])
def test_variance_lost_in_few_steps_is_won_back(process, solver):
    """Ten steps of a first-order method leave the variance short; the shift tells the denoiser so."""
    target, grid = testing.gaussian(np.zeros(SIZE), VARIANCE), jd.grids.uniform(process, 10, end=0.1)
    x = np.float32(process.coefficients(grid[0])[2]) * normal(0, 64, SIZE)
    a, _, c = process.coefficients(0.1)
    plain = target.denoiser(process)

    settings = dict(window=0.08, data_variance=VARIANCE)
    data = solvers.time_shift(plain, process, keep="data", **settings)
    noise = solvers.time_shift(plain, process, **settings)

    @jax.jit
    def run(drawn, x):
        return [jd.sample(drawn, d, process, solver, grid, x=x) for d in (plain, data, noise)]

    ends = run(normal(1, 10, 64, SIZE), x)
    before, of_data, of_noise = (abs(np.var(end) / (a**2 * VARIANCE + c**2) - 1) for end in ends)
    assert of_data < 0.8 * before
    assert of_noise < 1.1 * before


@pytest.mark.slow
def test_a_sample_depends_on_its_key_alone_and_gradients_are_finite():
    process = processes.RectifiedFlow()
    target = testing.gaussian_mixture([[1.0, 0.3, 0.0], [-0.8, -0.5, 0.2]], [0.3, 0.2])
    denoise = solvers.time_shift(target.denoiser(process), process, 0.1)
    grid = jd.grids.uniform(process, 5)

    def run(keys):
        return jd.sample(keys, denoise, process, solvers.ddim(0.5), grid, shape=(3,))

    testing.invariance(jax.jit(run), jax.random.split(jax.random.key(0), 8), rtol=1e-4)
    total = lambda x: jnp.sum(jd.sample(None, denoise, process, solvers.ddim(), grid, x=x))  # noqa: E731
    assert np.isfinite(jax.grad(total)(np.ones((2, 3), np.float32))).all()


@pytest.mark.parametrize(
    "settings", [{"window": 0.0}, {"keep": "x"}, {"candidates": 4}, {"data_variance": -1.0}]
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError):
        solvers.time_shift(asked, processes.VP(), **{"window": 0.1, **settings})
