"""Fitted schedules: the separation of known data, the optimal path's energy, gradients of learned ones."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff as jd
from jaxdiff.core import dataclass, namespace
from jaxdiff.processes.linear import LinearProcess

P = jd.processes


def test_the_separation_of_gaussian_data_and_of_few_points():
    rng = np.random.default_rng(0)
    r = np.array([0.1, 0.5, 1.0, 2.0])
    normal = rng.normal(size=(1500, 2))
    got = P.data_separation(normal, r)
    np.testing.assert_allclose(got, r**2 / (1 + r**2), atol=0.03)
    few = rng.normal(size=(5, 1000))
    np.testing.assert_allclose(P.data_separation(few, r[1:]), 1.0, atol=1e-6)


def test_kinetic_energies_in_closed_form():
    """Gaussian data costs a variance preserving path nothing; few points make any path's energy plain."""
    gaussian = lambda r: r**2 / (1 + r**2)  # noqa: E731
    np.testing.assert_allclose(P.kinetic_energy(P.VP(), gaussian), 0.0, atol=1e-6)
    np.testing.assert_allclose(P.kinetic_energy(P.RectifiedFlow(), gaussian), 2 - np.pi / 2, rtol=1e-6)
    np.testing.assert_allclose(P.kinetic_energy(P.RectifiedFlow(), np.ones_like, scale=3.0), 10.0, rtol=1e-6)
    np.testing.assert_allclose(P.kinetic_energy(P.Trigonometric(), np.ones_like), np.pi**2 / 4, rtol=1e-6)
    with pytest.raises(ValueError, match="kinetic_energy: expected a process without a second endpoint"):
        P.kinetic_energy(P.BrownianBridge(), gaussian)


@pytest.mark.slow
def test_the_fitted_path_has_the_least_energy():
    rng = np.random.default_rng(1)
    for data in (
        rng.normal(size=(6, 1000)),
        2.0 * rng.choice([-1.0, 1.0], size=(800, 1)) + 0.1 * rng.normal(size=(800, 1)),
    ):
        process = P.kinetic_optimal(data)
        grid = np.exp(np.linspace(-9, 9, 100))
        table = P.data_separation(data, grid)

        def separation(ratio, grid=grid, table=table):
            return 1 - np.interp(np.log(ratio), np.log(grid), (1 - table) * (1 + grid**2)) / (1 + ratio**2)

        own = P.kinetic_energy(process, separation, process.scale)
        np.testing.assert_allclose(own, process.kinetic_energy, rtol=0.05)
        for other in (P.RectifiedFlow(), P.Trigonometric(), P.CosineVP()):
            assert own < P.kinetic_energy(other, separation, process.scale) + 0.02


@pytest.mark.slow
def test_known_optima():
    few = P.kinetic_optimal(np.random.default_rng(0).normal(size=(5, 1000)))
    t = np.linspace(0.02, 0.98, 9)
    a, _, c = few.coefficients(t)  # rectified flow where every noisy point tells its example
    np.testing.assert_allclose((a, c), (1 - t, t), atol=0.05)
    normal = P.kinetic_optimal(np.random.default_rng(0).normal(size=(1500, 2)))
    a, _, c = normal.coefficients(t)
    np.testing.assert_allclose(a**2 + c**2, 1, atol=0.05)


@pytest.mark.parametrize(
    "process",
    [P.kinetic_optimal(np.random.default_rng(0).normal(size=(40, 8))), P.LearnedVP(np.linspace(-1, 1, 9))],
    ids=lambda p: type(p).__name__,
)
def test_ends_and_inverse(process):
    assert [float(k) for k in process.coefficients(0.0)] == [1.0, 0.0, 0.0]
    t = np.linspace(process.t_min, 0.99, 33)
    np.testing.assert_allclose(process.time_of_log_snr(process.log_snr(t)), t, rtol=1e-6)
    a, _, c = process.coefficients(np.linspace(0, 1, 101))
    assert np.all(np.diff(a) < 0) and np.all(np.isfinite(c))
    rows = jd.solvers.dpmpp_multistep(2).plan(process, jd.grids.log_snr(process, 6))
    assert np.isfinite(rows.next).all()


def test_derivatives_of_the_fitted_path_are_those_of_its_pieces():
    process = P.kinetic_optimal(np.random.default_rng(0).normal(size=(200, 2)), nodes=33)
    t = np.linspace(0.01, 0.99, 200)
    up, down = process.coefficients(t + 1e-7), process.coefficients(t - 1e-7)
    for slope, high, low in zip(process.derivatives(t), up, down, strict=True):
        np.testing.assert_allclose(slope, (high - low) / 2e-7, atol=1e-6)


@pytest.mark.slow
def test_a_learned_schedule_lowers_the_variance_of_the_bound():
    target = jd.testing.gaussian_mixture(
        np.array([[1.0], [-1.0]]), np.array([0.01, 0.01]), np.array([0.5, 0.5])
    )
    x0 = jax.jit(lambda key: target.sample(key, 512))(jax.random.key(1))
    net = lambda process: lambda x, c_noise: target.denoiser(process)(x, c_noise)  # noqa: E731

    def second_moment(heights, key):
        process = P.LearnedVP(heights)
        losses = jd.losses.schedule(
            net(process), key, x0, process=process, parameterization=jd.parameterizations.data()
        )
        return losses.mean()

    start, adam = np.zeros(16, np.float32), optax.adam(0.05)

    @jax.jit
    def step(heights, state, key):
        value, gradient = jax.value_and_grad(second_moment)(heights, key)
        change, state = adam.update(gradient, state)
        return heights + change, state, value

    heights, state = start, adam.init(start)
    for i in range(100):
        heights, state, _ = step(heights, state, jax.random.key(i))
    check = [
        np.mean([step(h, state, jax.random.key(100 + i))[2] for i in range(4)]) for h in (start, heights)
    ]
    assert check[1] < 0.8 * check[0], check


def test_the_slope_of_the_fitted_path_at_its_prior():
    process = jd.processes.kinetic_optimal(np.random.default_rng(0).normal(size=(40, 2)), queries=20, nodes=9)
    h = 1e-5
    expected = -float(process.coefficients(1 - h)[0]) / h
    np.testing.assert_allclose(process.derivatives(1.0)[0], expected, rtol=1e-3)
    jd.denoiser(lambda x, c: x, process, jd.parameterizations.velocity())  # says something of the data there


def test_trained_heights_are_read_as_known_numbers_and_stay_as_they_are():
    heights = jnp.array([0.1, -0.2, 0.3])
    process = jax.tree.map(lambda leaf: leaf, P.LearnedVP(heights))
    assert isinstance(process.heights, np.ndarray) and process.heights.dtype == np.float64
    assert process.log_snr(np.array([0.5])).dtype == np.float64
    assert jax.tree.leaves(process)[0] is heights
    assert jax.tree.leaves(process.replace(log_snr_max=5.0))[0] is heights
    assert process == jax.tree.map(lambda leaf: leaf, process) and process != P.VP()


@dataclasses.dataclass(frozen=True)
class Bare:
    """A process of one's own that shares nothing with ours."""

    w: object
    t_min, t_max, paired, normal, repeats = 1e-3, 1.0, False, True, False

    def coefficients(self, t):
        xp, w = namespace(t, self), self.w["w"] if isinstance(self.w, dict) else self.w
        return xp.cos(t * w), 0 * t, xp.sin(t * w)

    def log_snr(self, t):
        a, _, c = self.coefficients(t)
        return namespace(t, self).log(a / c)

    def endpoint(self, y):
        return y


jax.tree_util.register_dataclass(Bare, ["w"], [])


@dataclass
class Kept(LinearProcess):
    """A process of one's own that keeps its numbers in a dict."""

    w: dict
    t_min: float = 1e-3
    t_max: float = 1.0
    coefficients = Bare.coefficients


def test_processes_of_ones_own_hold_jax_numbers_within_jit():
    grid, x, w = np.linspace(1, 0.01, 5), np.ones((2, 3), np.float32), jnp.float32(1.25)
    every = Bare(w), Kept({"w": w}), Kept({"w": 1.25})

    @jax.jit
    def walks(x):
        return [jd.sample(None, lambda x, t: 0.5 * x, p, jd.solvers.ddim(), grid, x=x) for p in every]

    bare, kept, known = walks(x)
    np.testing.assert_allclose(bare, known, rtol=1e-6)
    np.testing.assert_array_equal(kept, known)
