import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

NAMES = ["uniform", "quadratic", "cosine", "shifted", "log_snr", "karras"]
PROCESSES = [
    jd.processes.VP(), jd.processes.CosineVP(), jd.processes.SubVP(), jd.processes.VE(), jd.processes.EDM(),
    jd.processes.RectifiedFlow(), jd.processes.Trigonometric(),
    jd.processes.DiscreteVP(np.linspace(1e-4, 0.02, 100)),
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_ends_are_included_and_times_decrease(name, process):
    for steps in (1, 2, 3, 25):
        for end in (None, process.t_min, 0.3 * process.t_max):
            grid = getattr(jd.grids, name)(process, steps, end=end)
            assert grid.shape == (steps + 1,) and grid.dtype == np.float64
            assert grid[0] == process.t_max and grid[-1] == (end or 0.0)
            assert np.all(np.diff(grid) < 0)


def test_published_grids():
    edm = jd.processes.EDM()
    i = np.arange(18)
    sigma = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(jd.grids.karras(edm, 18), [*sigma, 0], rtol=1e-10)
    vp = jd.processes.VP()
    np.testing.assert_allclose(jd.grids.uniform(vp, 4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(jd.grids.quadratic(vp, 4), np.array([1, 0.75, 0.5, 0.25, 0]) ** 2)
    np.testing.assert_allclose(jd.grids.shifted(vp, 2, shift=3.0), [1, 0.75, 0])
    np.testing.assert_allclose(jd.grids.cosine(vp, 2), [1, 1 - np.sin(np.pi / 4), 0])
    steps = np.diff(vp.log_snr(jd.grids.log_snr(vp, 10, end=1e-3)))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-9)
    sigma = jd.grids.karras(vp, 10, rho=5.0, end=1e-3)
    steps = np.diff(np.exp(-vp.log_snr(sigma) / 5.0))
    np.testing.assert_allclose(steps, steps[0], rtol=1e-8)


def test_a_grid_can_be_learned_through_its_process():
    slope = jax.grad(lambda b: jd.grids.log_snr(jd.processes.VP(beta_max=b), 5)[2])(20.0)
    width = 1e-3
    up, down = (jd.grids.log_snr(jd.processes.VP(beta_max=20.0 + s * width), 5)[2] for s in (1, -1))
    np.testing.assert_allclose(slope, (up - down) / (2 * width), rtol=1e-3)


@pytest.mark.parametrize(
    "times, message",
    [
        ([1.0, 0.5, 0.5, 0.0], "strictly decreasing times, got 0.5 then 0.5 at positions 1 and 2"),
        ([0.0, 0.5, 1.0], "strictly decreasing"),
        ([2.0, 0.5, 0.0], r"within \[0, 1.0\] of VP, got 2 to 0"),
        ([1.0, -0.1], "within"),
        ([1.0], "at least 2"),
        ([1.0, np.nan, 0.0], "finite"),
    ],
)
def test_wrong_grids(times, message):
    with pytest.raises(ValueError, match=message):
        jd.grids.explicit(jd.processes.VP(), times)
    with pytest.raises(ValueError, match=message):
        jd.solvers.ddim().plan(jd.processes.VP(), times)


def test_wrong_arguments():
    vp = jd.processes.VP()
    with pytest.raises(ValueError, match="uniform: expected steps to be an integer of at least 1, got 0"):
        jd.grids.uniform(vp, 0)
    with pytest.raises(ValueError, match="got 2.5"):
        jd.grids.karras(vp, 2.5)
    with pytest.raises(ValueError, match="end in"):
        jd.grids.log_snr(vp, 5, end=1.5)
    with pytest.raises(ValueError, match="rho"):
        jd.grids.karras(vp, 5, rho=0.0)
    assert jnp.ndim(jd.grids.uniform(vp, np.int64(3))) == 1


@pytest.mark.parametrize("name", NAMES)
def test_an_end_at_exact_data_is_the_default(name):
    for process in (jd.processes.VP(), jd.processes.EDM()):
        make = getattr(jd.grids, name)
        np.testing.assert_array_equal(make(process, 6, end=0.0), make(process, 6))
