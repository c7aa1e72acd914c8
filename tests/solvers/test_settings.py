"""Settings of solvers: functions of time, one for each step, traced, and processes made of jax arrays."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.processes import EDM, VP, BrownianBridge, RectifiedFlow, Symmetric

BRIDGE = BrownianBridge(0.7)
GRID = jd.grids.uniform(BRIDGE, 4)


def same_plans(a, b):
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-6)


def test_a_yes_or_no_in_time_is_a_noise_level():
    grid = jd.grids.uniform(VP(), 5, end=0.01)
    levels = (lambda t: (t > 0.2) & (t < 0.8)), (lambda t: 1.0 * (t > 0.2) * (t < 0.8))
    same_plans(*(jd.solvers.sa_solver(tau=tau).plan(VP(), grid) for tau in levels))


@pytest.mark.parametrize("eta", [lambda t: 2.0 + 0 * t, lambda t: t - 0.5])
def test_eta_as_a_function_is_looked_at(eta):
    with pytest.raises(ValueError, match="ddim: expected eta of at least 0 and at most 1"):
        jd.solvers.ddim(eta).plan(VP(), jd.grids.uniform(VP(), 4))


@pytest.mark.parametrize(
    "solver",
    [jd.solvers.ddim(), jd.solvers.dpmpp_multistep(2), jd.solvers.euler("time")],
    ids=lambda solver: solver.name,
)
def test_a_bridge_with_a_traced_scale_starts_with_its_draw(solver):
    known = solver.plan(BRIDGE, GRID)
    traced = jax.jit(lambda scale: solver.plan(BrownianBridge(scale), GRID))(0.7)
    assert known.noisy and traced.noisy
    same_plans(known, traced)


def test_a_bridge_needs_known_times():
    with pytest.raises(ValueError, match="expected known times for BrownianBridge"):
        jax.jit(lambda grid: jd.solvers.ddim().plan(BrownianBridge(), grid))(jnp.asarray(GRID))


def test_settings_of_steps_from_a_pinned_end():
    levels = np.array([0.9, 0.1, 0.2, 0.3])  # the first step is a draw, without a level
    by_step = jd.solvers.ddim(levels).plan(BRIDGE, GRID)
    rest = jd.solvers.ddim(levels[1:]).plan(BRIDGE, GRID[1:])
    np.testing.assert_array_equal(by_step.next[1:], rest.next)
    traced = jax.jit(lambda levels: jd.solvers.ddim(levels).plan(BRIDGE, GRID))(levels)
    same_plans(by_step, traced)


@pytest.mark.parametrize(
    "solver, value", [(jd.solvers.edict, 0.9), (jd.solvers.bdia, 0.9), (jd.solvers.splitting, 0.1)]
)
def test_numbers_of_a_solver_may_be_traced(solver, value):
    grid = jd.grids.uniform(VP(), 3, end=0.01)
    same_plans(jax.jit(lambda v: solver(v).plan(VP(), grid))(value), solver(value).plan(VP(), grid))


def test_epsilon_may_be_traced():
    flow, grid = RectifiedFlow(), jd.grids.uniform(RectifiedFlow(), 3, end=0.01)
    make = jd.solvers.interpolant_sde
    same_plans(jax.jit(lambda e: make(e).plan(flow, grid))(0.5), make(0.5).plan(flow, grid))


@pytest.mark.parametrize("process", [VP(beta_max=jnp.float32(20)), jd.processes.LearnedVP(jnp.zeros(4))])
def test_processes_of_jax_arrays_under_jit(process):
    grid, solver = np.linspace(1.0, 0.05, 4), jd.solvers.dpmpp_multistep(2)
    keys = jax.random.split(jax.random.key(0), 3)

    def run(keys):
        denoise = jd.denoiser(lambda x, c: x, process, jd.parameterizations.v())
        jd.times.log_snr().draw(keys, process)
        return jd.sample(keys, denoise, process, solver, grid, shape=(2,))

    np.testing.assert_allclose(jax.jit(run)(keys), run(keys), rtol=1e-5, atol=1e-6)


UP = np.array([0.01, 0.3, 0.7, 1.0])


@pytest.mark.parametrize(
    "solver, process",
    [
        (jd.solvers.ddim(), Symmetric(RectifiedFlow())),
        (jd.solvers.churn(0.0), RectifiedFlow()),
        (jd.solvers.churn(0.0, method="euler"), RectifiedFlow()),
        (jd.solvers.reverse_diffusion(tau=0.0), RectifiedFlow()),
    ],
)
def test_data_is_taken_up_to_a_prior_without_data(solver, process):
    rows = solver.plan(process, UP)
    expected = jd.solvers.ddim().plan(RectifiedFlow(), UP)
    last = rows.next[-1]
    assert np.isfinite(rows.next).all()
    np.testing.assert_allclose([last[0], last[2]], [expected.next[-1][0], expected.next[-1][2]], rtol=1e-12)


def test_quadratic_and_shifted_grids_take_traced_ends():
    for make in (jd.grids.quadratic, lambda p, n, end: jd.grids.shifted(p, n, end=end, power=2.0)):
        flow = RectifiedFlow()
        traced = jax.jit(lambda end, make=make, flow=flow: make(flow, 4, end=end))(0.1)
        np.testing.assert_allclose(traced, make(flow, 4, end=0.1), rtol=1e-5)


def test_fitness_of_grids_needs_a_solver_without_noise():
    key, data = jax.random.key(0), np.zeros((4, 2))
    solver = jd.solvers.ancestral()
    fitness = jd.solvers.distribution_fitness(key, lambda x, t: 0 * x, VP(), solver, data, lambda a, b: 0.0)
    with pytest.raises(ValueError, match="draws no noise"):
        fitness(jd.grids.uniform(VP(), 3))


def test_a_path_of_other_keys_is_refused():
    grid, solver = jd.grids.uniform(VP(), 3), jd.solvers.ddim(1.0)
    path = jd.solvers.brownian(jax.random.split(jax.random.key(0), 1), VP())
    with pytest.raises(ValueError, match=r"\(8,\) keys, got shape \(1,\)"):
        jd.sample(path, lambda x, t: 0 * x, VP(), solver, grid, x=jnp.ones((8, 2)))


def test_every_part_of_a_product_starts_at_its_prior():
    process = jd.processes.Product({"nodes": EDM(), "edges": VP()})
    grids = {name: jd.grids.uniform(part, 3) for name, part in process.parts.items()}
    keys, shape = jax.random.split(jax.random.key(0), 2), {"nodes": (2,), "edges": (3,)}
    solver = jd.solvers.joint(jd.solvers.ddim())

    def zeros(x, t):
        return jax.tree.map(jnp.zeros_like, x)

    def run(grids):
        return jd.sample(keys, zeros, process, solver, grids, shape=shape)

    assert jax.jit(lambda: run(grids))()["edges"].shape == (2, 3)
    with pytest.raises(ValueError, match="the grid of 'edges' starts at 0.5"):
        run(grids | {"edges": np.array([0.5, 0.3, 0.1, 0.0])})
    with pytest.raises(ValueError, match=r"joint: expected a grid for each of \['edges', 'nodes'\]"):
        run({"nodes": grids["nodes"]})
