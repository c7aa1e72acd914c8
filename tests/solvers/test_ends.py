"""Exact ends of time: every solver, process and grid, from one step on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import grids, processes, solvers, testing

PROCESSES = [
    processes.VP(),
    processes.CosineVP(),
    processes.SubVP(),
    processes.VE(),
    processes.EDM(),
    processes.RectifiedFlow(),
    processes.Trigonometric(),
    processes.DiscreteVP(np.linspace(1e-4, 0.02, 1000)),
    processes.DiscreteVP(np.append(np.linspace(1e-3, 0.2, 99), 1.0)),
]
SOLVERS = {
    "euler": solvers.euler(),
    "heun": solvers.heun(),
    "ddim": solvers.ddim(),
    "ddim(0.5)": solvers.ddim(0.5),
    "ancestral": solvers.ancestral(),
    "euler_maruyama": solvers.euler_maruyama(),
    "euler_maruyama(0)": solvers.euler_maruyama(tau=0.0),
    "dpmpp 1": solvers.dpmpp_multistep(order=1),
    "dpmpp 2": solvers.dpmpp_multistep(order=2),
    "dpmpp 2 sde": solvers.dpmpp_multistep(order=2, tau=1.0),
    "dpmpp 3": solvers.dpmpp_multistep(order=3),
    "dpmpp 3 sde": solvers.dpmpp_multistep(order=3, tau=1.0),
    "dpmpp 3 final": solvers.dpmpp_multistep(order=3, lower_order_final=True),
}
GRIDS = ["uniform", "log_snr", "karras", "quadratic"]
STEPS = [1, 2, 3, 10]


def fast(*chosen):
    """The processes, all but the chosen types marked slow."""
    return [
        pytest.param(p, marks=() if type(p) in chosen else pytest.mark.slow, id=type(p).__name__)
        for p in PROCESSES[:6]
    ]


@pytest.fixture(scope="module", params=PROCESSES, ids=lambda p: type(p).__name__)
def laid(request):
    """A process and its default grids."""
    return request.param, [getattr(grids, name)(request.param, n) for name in GRIDS for n in STEPS]


@pytest.mark.parametrize("name", SOLVERS)
def test_tables_are_finite_and_the_last_row_is_the_clean_estimate(laid, name):
    process, default_grids = laid
    for grid in default_grids:
        plan = SOLVERS[name].plan(process, grid)
        for leaf in (plan.t, plan.keep, plan.next, plan.base):
            assert np.isfinite(leaf).all()
        np.testing.assert_array_equal(plan.keep[-1], [0, 1])
        last = np.zeros(plan.memory + 3)
        last[2] = 1
        np.testing.assert_allclose(plan.next[-1], last, atol=1e-15)
        assert plan.t[0] == process.t_max and (plan.t > 0).all()


@pytest.mark.parametrize("name", [name for name in SOLVERS if name.startswith(("d", "a"))])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_a_point_mass_is_kept_at_its_scale(process, name):
    """If the clean estimate is one constant m, a deterministic solver moves `x - a m` by `c` alone,
    and no solver adds more than its noise: every row is right about the scale of the process."""
    grid = grids.log_snr(process, 5)
    a, _, c = process.coefficients(grid)
    plan = SOLVERS[name].plan(process, grid)
    estimate = plan.next[:, 2:-1].sum(1)
    np.testing.assert_allclose(a[:-1] * plan.next[:, 0] + estimate, a[1:], atol=1e-9)
    kept = (c[:-1] * plan.next[:, 0]) ** 2 + plan.next[:, -1] ** 2
    np.testing.assert_allclose(kept, c[1:] ** 2, atol=1e-9)


@pytest.mark.parametrize("process", fast(processes.RectifiedFlow)[3:])
def test_samples_end_at_the_clean_estimate_of_their_last_point(process):
    target = testing.gaussian_mixture([[1.0, 0.0], [-1.0, 0.5]], [0.1, 0.2])
    denoise = target.denoiser(process)
    keys, grid = jax.random.split(jax.random.key(0), 8), grids.karras(process, 4)

    @jax.jit
    def run(keys):
        start = jax.vmap(lambda k: process.prior(jax.random.fold_in(k, 0), (2,)))(keys)
        pairs = []
        for solver in (SOLVERS[name] for name in ["heun", "ancestral", "dpmpp 3 sde"]):
            path = jd.sample(keys, denoise, process, solver, grid, x=start, save="all")
            one = jd.sample(keys, denoise, process, solver, [process.t_max, 0.0], shape=(2,))
            pairs += [(path[-1], denoise(path[-2], grid[-2])), (one, denoise(start, process.t_max))]
        return pairs

    for sample, clean in run(keys):
        np.testing.assert_allclose(sample, clean, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("process", fast(processes.VP, processes.RectifiedFlow))
def test_float32_samples_are_those_of_float64(process):
    target = testing.gaussian_mixture([[1.0, 0.0], [-1.0, 0.5]], [0.1, 0.2])
    c = process.coefficients(process.t_max)[2]
    x = np.float32(c) * np.random.default_rng(0).normal(size=(64, 2)).astype(np.float32)
    plans = [SOLVERS[n].plan(process, grids.log_snr(process, 100)) for n in ("ddim", "dpmpp 3")]

    def run(dtype):
        sample = lambda plan: jd.sample(None, target.denoiser(process), process, plan, x=x.astype(dtype))  # noqa: E731
        return np.asarray(jax.jit(jax.vmap(sample))(solvers.stack(plans)), np.float64)

    narrow = run(jnp.float32)
    with jax.enable_x64(True):
        wide = run(jnp.float64)
    assert np.median(np.abs(narrow - wide)) < 3e-6
