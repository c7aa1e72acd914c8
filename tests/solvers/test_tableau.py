import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

S, VP = jd.solvers, jd.processes.VP()
GRID = jd.grids.uniform(VP, 6)
RNG = np.random.default_rng(0)
X, NOISE = (RNG.normal(size=shape).astype(np.float32) for shape in ((5, 2), (12, 5, 2)))


def denoise(x, t):
    return 0.6 * jnp.tanh(x) + 0.1 * t


@jax.jit
def run(rows):
    return jd.sample(NOISE[: rows.nfe], denoise, VP, rows, x=X)


def by_hand(rows, x, noise):
    """The executor's definition, one row at a time in numpy float64."""
    base, history = x, [np.zeros_like(x)] * (rows.memory - 1)
    for k in range(rows.nfe):
        clean = 0.6 * np.tanh(x) + 0.1 * rows.t[k]
        e = rows.keep[k, 0] * x + rows.keep[k, 1] * clean
        columns = [x, base, e, *history, noise[k]]
        x = sum(w * c for w, c in zip(rows.next[k], columns, strict=True))
        base = sum(w * c for w, c in zip(rows.base[k], columns, strict=True))
        history = [e, *history][: len(history)]
    return x


def test_the_executor_is_its_definition(x64):
    rng = np.random.default_rng(0)
    for based, plain, noisy in [(True, False, True), (False, True, False), (True, True, True)]:
        plan = jd.solvers.dpmpp_multistep(3, tau=0.5).plan(VP, GRID)
        next_x = rng.normal(size=plan.next.shape)
        base = rng.normal(size=plan.base.shape) if based else next_x
        keep = rng.normal(size=plan.keep.shape) if not plain else plan.keep
        next_x[:, -1] *= noisy
        rows = plan.replace(next=next_x, base=base, keep=keep, based=based, plain=plain, noisy=noisy)
        x, noise = rng.normal(size=(5, 2)), rng.normal(size=(6, 5, 2))
        out = jd.sample(noise, denoise, VP, rows, x=x)
        if not based:  # an unused base point may hold anything
            rows = rows.replace(next=next_x * (np.arange(6) != 1))
        np.testing.assert_allclose(out, by_hand(rows, x, noise), rtol=1e-9)


def test_rows_are_an_argument_that_does_not_recompile():
    traces = []

    @jax.jit
    def run(keys, rows):
        traces.append(rows)
        return jd.sample(keys, denoise, VP, rows, shape=(2,))

    keys = jax.random.split(jax.random.key(0), 5)

    s = jd.solvers
    plans = [s.dpmpp_multistep(2).plan(VP, GRID), s.dpmpp_multistep(2, rule="lagrange").plan(VP, GRID)]
    plans.append(s.dpmpp_multistep(2).plan(VP, jd.grids.log_snr(VP, 6)))
    outs = [run(keys, plan) for plan in plans]
    assert len(traces) == 1
    assert not np.allclose(outs[0], outs[1]) and not np.allclose(outs[0], outs[2])


def test_stacked_plans_compare_solvers_in_one_program():
    s = jd.solvers
    solvers = [s.ddim(), s.dpmpp_multistep(2), s.dpmpp_multistep(3), s.euler(), s.ancestral()]
    stacked = s.stack([solver.plan(VP, GRID) for solver in solvers])
    together = np.asarray(jax.jit(jax.vmap(run))(stacked))
    for solver, out in zip(solvers, together, strict=True):
        alone = run(solver.plan(VP, GRID))
        np.testing.assert_allclose(out, alone, rtol=2e-5, atol=2e-6)
    with pytest.raises(ValueError, match="equal"):
        s.stack([s.ddim().plan(VP, GRID), s.heun().plan(VP, GRID)])
    with pytest.raises(ValueError, match="one kind, got MixedTableau and Tableau"):
        s.stack([s.ddim().plan(VP, GRID), s.unified(1).plan(VP, GRID)])


def test_a_coefficient_may_have_the_shape_of_one_example():
    plan = jd.solvers.ddim().plan(VP, GRID)
    wide = plan.next[:, :, None] * np.ones(2)
    rows = plan.replace(next=wide)
    out = jd.sample(None, denoise, VP, rows, x=jnp.ones((5, 2)))
    np.testing.assert_allclose(out, jd.sample(None, denoise, VP, plan, x=jnp.ones((5, 2))), rtol=1e-6)


def test_one_row_is_one_evaluation():
    for solver, nfe in [("ddim", 6), ("euler", 6), ("heun", 11), ("euler_maruyama", 6), ("ancestral", 6)]:
        rows = getattr(jd.solvers, solver)().plan(VP, GRID)
        assert rows.nfe == nfe and rows.steps == 6
    assert jd.solvers.heun().plan(VP, jd.grids.uniform(VP, 6, end=1e-3)).nfe == 12


def test_plans_are_float64_inside_jit_and_traced_when_the_process_is():
    solver = jd.solvers.dpmpp_multistep(3)
    seen = []
    jax.jit(lambda x: seen.append(solver.plan(VP, GRID)) or x)(1.0)
    assert seen[0].next.dtype == np.float64
    np.testing.assert_array_equal(seen[0].next, solver.plan(VP, GRID).next)
    for make in (jd.solvers.ddim, jd.solvers.heun, jd.solvers.euler_maruyama, jd.solvers.euler):
        solver = make()

        def walk(process, solver=solver):
            noise = NOISE[: solver.plan(process, GRID).nfe]
            return jd.sample(noise, denoise, process, solver, GRID, x=X)

        np.testing.assert_allclose(jax.jit(walk)(VP), run(solver.plan(VP, GRID)), rtol=1e-3, atol=1e-4)

    keys = jax.random.split(jax.random.key(0), 5)

    def from_prior(process):
        return jd.sample(keys, denoise, process, jd.solvers.ancestral(), GRID, shape=(2,))

    np.testing.assert_allclose(jax.jit(from_prior)(VP), from_prior(VP), rtol=1e-3, atol=1e-4)


def test_numbers_of_a_solver_are_leaves():
    def mean(eta):
        return jnp.mean(jd.sample(NOISE[:6], denoise, VP, jd.solvers.ddim(eta), GRID, x=X) ** 2)

    etas = [0.0, 0.5, 1.0]
    swept = jax.jit(jax.vmap(mean))(np.float32(etas))
    np.testing.assert_allclose(swept, jax.jit(lambda: [mean(eta) for eta in etas])(), rtol=1e-4)
    assert np.isfinite(jax.jit(jax.grad(mean))(0.5))


def test_wrong_settings():
    with pytest.raises(ValueError, match="order 1, 2 or 3, got 4"):
        jd.solvers.dpmpp_multistep(order=4)
    with pytest.raises(ValueError, match="midpoint"):
        jd.solvers.dpmpp_multistep(order=3, rule="midpoint")
    with pytest.raises(ValueError, match=r"eta in \[0, 1\], got 2"):
        jd.solvers.ddim(2.0)
    with pytest.raises(ValueError, match="tau"):
        jd.solvers.euler_maruyama(tau=-1)
    with pytest.raises(ValueError, match="expected a grid"):
        jd.sample(None, denoise, VP, jd.solvers.ddim(), x=X)


@pytest.mark.parametrize("coordinate", ["sigma", "log_snr"])
def test_runge_kutta_goes_from_data_to_pure_noise(coordinate):
    """The last step, to a = 0 where the coordinate is infinite, is DDIM's."""
    process = jd.processes.RectifiedFlow()
    grid = np.linspace(0.1, 1.0, 5)
    ddim = S.ddim().plan(process, grid).next[-1]
    for solver in (S.euler, S.heun, S.ralston, S.rk4):
        rows = solver(coordinate).plan(process, grid)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))
        p, q = (0.0, 1.0) if rows.plain else rows.keep[-1]
        x, estimate = rows.next[-1, 0] + p * rows.next[-1, 2], q * rows.next[-1, 2]
        np.testing.assert_allclose((x, estimate), (ddim[0], ddim[2]), atol=1e-12)


def test_processes_and_bridges_that_a_solver_cannot_follow():
    tokens = jd.processes.absorbing(8)
    for solver in (S.pndm(), S.unipc(2), S.ddim()):
        with pytest.raises(ValueError, match="got Categorical; tokens are sampled by jd.solvers.discrete"):
            solver.plan(tokens, np.linspace(1.0, 0.0, 5))
    with pytest.raises(ValueError, match="got Product"):
        S.pndm().plan(jd.processes.Product({"image": VP}), np.linspace(1.0, 0.0, 5))
    bridge = jd.processes.BrownianBridge()
    with pytest.raises(ValueError, match="BrownianBridge is pinned to its end"):
        S.dc_solver(np.ones(4)).plan(bridge, np.linspace(1.0, 0.0, 5))
