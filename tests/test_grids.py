import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

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


@pytest.mark.slow
def test_a_grid_can_be_learned_through_its_process():
    slope = jax.jit(jax.grad(lambda b: jd.grids.log_snr(jd.processes.VP(beta_max=b), 5)[2]))(20.0)
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


def test_grids_of_a_table():
    process = jd.processes.DiscreteVP(np.linspace(1e-4, 0.02, 1000))
    index = lambda grid: np.round(grid[:-1] * 1000 - 1).astype(int).tolist()  # noqa: E731
    assert index(jd.grids.spaced(process, 5, "leading", offset=1)) == [801, 601, 401, 201, 1]
    assert index(jd.grids.spaced(process, 7, "leading")) == [852, 710, 568, 426, 284, 142, 0]
    assert index(jd.grids.spaced(process, 5, "linspace")) == [999, 749, 500, 250, 0]
    assert index(jd.grids.spaced(process, 5, "trailing")) == [999, 799, 599, 399, 199]
    assert index(jd.grids.spaced(process, 7, "trailing"))[:3] == [999, 856, 713]
    assert index(jd.grids.from_indices(process, [999, 3])) == [999, 3]
    for spacing in ("leading", "linspace", "trailing"):
        for steps in (1, 2, 1000):
            assert len(jd.grids.spaced(process, steps, spacing)) == steps + 1
    with pytest.raises(ValueError, match="at most 1000"):
        jd.grids.spaced(process, 1001)
    with pytest.raises(ValueError, match="integers in"):
        jd.grids.from_indices(process, [1000, 0])
    with pytest.raises(ValueError, match="with a table"):
        jd.grids.spaced(jd.processes.VP(), 5)


def test_beta_polyexponential_and_aligned_levels():
    process = jd.processes.RectifiedFlow()
    np.testing.assert_allclose(jd.grids.beta(process, 6, 1.0, 1.0), jd.grids.uniform(process, 6), atol=1e-12)
    u = jd.grids.beta(process, 20)
    assert np.diff(u)[0] > np.diff(u)[9] and np.diff(u)[-1] > np.diff(u)[9]  # shorter steps at both ends
    quantile = scipy.special.betaincinv(0.6, 0.6, 1 - np.arange(21) / 20)
    np.testing.assert_allclose(u, quantile, atol=1e-12)
    root = np.sqrt([1, 0.75, 0.5, 0.25, 0])  # of the law with density 2 t
    np.testing.assert_allclose(jd.grids.beta(process, 4, alpha=2.0, beta=1.0), root, atol=1e-12)
    vp = jd.processes.VP()
    np.testing.assert_allclose(jd.grids.polyexponential(vp, 6), jd.grids.log_snr(vp, 6), rtol=1e-9)
    np.testing.assert_allclose(jd.grids.exponential(vp, 6), jd.grids.log_snr(vp, 6))
    levels = vp.log_snr(jd.grids.polyexponential(vp, 9, rho=2.0)[:-1])
    assert np.all(np.diff(np.diff(levels)) < 0)  # ever shorter steps towards data
    edm = jd.processes.EDM()
    sigma = np.exp(np.linspace(1, 0, 9) ** 2.0 * np.log(80 / 0.002) + np.log(0.002))  # k-diffusion's
    np.testing.assert_allclose(jd.grids.polyexponential(edm, 9, rho=2.0), [*sigma, 0], rtol=1e-9)
    published = {
        "sd15": [6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152],
        "sdxl": [6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113],
        "svd": [54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034],
    }
    for model, levels in published.items():
        ten = jd.grids.align_your_steps(edm, 10, model)
        np.testing.assert_allclose(ten, [80, *levels, 0], rtol=1e-9)
        five = jd.grids.align_your_steps(edm, 5, model)
        np.testing.assert_allclose(five[1:5], levels[1::2], rtol=1e-9)
    first = jd.grids.align_your_steps(edm, 20, "sd15")[1]  # halfway in log sigma to the first level
    np.testing.assert_allclose(first, np.sqrt(14.615 * 6.475), rtol=1e-9)
    for steps in (1, 2, 5, 30):
        for model in jd.grids.ALIGNED:
            grid = jd.grids.align_your_steps(jd.processes.EDM(), steps, model)
            assert len(grid) == steps + 1 and grid[-1] == 0


def test_shifts():
    process = jd.processes.RectifiedFlow()
    plain = jd.grids.shifted(process, 6, 3.0)
    np.testing.assert_allclose(jd.grids.shifted(process, 6, 3.0, power=1.0 + 1e-9), plain, atol=1e-6)
    np.testing.assert_allclose(plain[3], 0.75)
    np.testing.assert_allclose(jd.grids.shifted(process, 4, 3.0, power=2.0), [1, 27 / 28, 0.75, 0.25, 0])
    stretched = jd.grids.shifted(process, 6, 3.0, terminal=0.1)
    np.testing.assert_allclose(stretched[-2:], [0.1, 0.0])
    np.testing.assert_allclose((1 - stretched[1:-1]) / (1 - plain[1:-1]), 0.9 / (1 - plain[-2]))
    assert len(jd.grids.shifted(process, 1, 3.0, terminal=0.1)) == 2
    np.testing.assert_allclose(jd.grids.shift_of_length(256), np.exp(0.5))
    np.testing.assert_allclose(jd.grids.shift_of_length(4096), np.exp(1.15))
    with pytest.raises(ValueError, match="end|terminal"):
        jd.grids.shifted(process, 4, terminal=1.5)
