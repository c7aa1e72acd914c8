"""Mixtures of solvers: constant ones are the named solvers, others keep their order."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import processes, solvers, testing

LAW = [[1.0, 0.3], [-0.8, -0.5]], [[0.3, 0.1], [0.2, 0.4]], [0.7, 0.3]
TARGET = testing.gaussian_mixture(*LAW)
PROCESSES = [processes.VP(), processes.EDM(), processes.RectifiedFlow()]
NAMES = [type(p).__name__ for p in PROCESSES]
SAME = [
    (dict(orders=1, correctors=False), solvers.ddim()),
    (dict(orders=2, rules="midpoint", correctors=False), solvers.dpmpp_multistep(2)),
    (dict(orders=3, correctors=False), solvers.dpmpp_multistep(3)),
    (dict(orders=2, rules="differences", correctors=False), solvers.dpmpp_multistep(2, rule="lagrange")),
    (dict(orders=3, predictions="noise", correctors=False), solvers.dpm_multistep(3)),
    (dict(orders=2, predictions="noise", rules="midpoint", correctors=False), solvers.dpm_multistep(2)),
    *[
        (
            dict(orders=p, predictions=kind),
            solvers.unipc(p, prediction=kind, lower_order_final=False),
        )
        for p in (1, 2, 3)
        for kind in ("data", "noise")
    ],
    (dict(orders=(1, 2, 3, 3, 3, 3, 2, 1)), solvers.unipc(3)),
]


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=NAMES)
def test_constant_mixtures_are_the_named_solvers(x64, process):
    grid = jd.grids.log_snr(process, 8)
    x = process.t_max * np.random.default_rng(0).normal(size=(4, 2))
    walk = jax.jit(lambda rows: jd.sample(None, TARGET.denoiser(process), process, rows, x=x))
    plans = [solvers.unified(**settings).plan(process, grid) for settings, _ in SAME]
    mixed = jax.vmap(walk)(jax.tree.map(lambda *leaves: np.stack(leaves), *plans))
    for out, (settings, solver) in zip(np.asarray(mixed), SAME, strict=True):
        named = walk(solver.plan(process, grid))
        np.testing.assert_allclose(out, named, rtol=1e-8, atol=1e-8, err_msg=str(settings))


def between(process, steps):
    return np.minimum(process.time_of_log_snr(np.linspace(-4.382, 4.0, steps + 1)), process.t_max)


@pytest.mark.slow
def test_wild_mixtures_keep_third_order(x64, longer, mixed):
    """Kinds and correctors that alternate look back at points and estimates of the other kind."""

    def mixture(n):
        kinds = tuple(("data", "noise", "noise", "data", "noise")[i % 5] for i in range(n))
        return solvers.unified(3, kinds, "lagrange", tuple(i % 3 != 1 for i in range(n)))

    clean, noise = mixed(*LAW, 16), np.random.default_rng(1).normal(size=(16, 2))
    for process in PROCESSES:
        start, end = between(process, 1)
        a, _, c = process.coefficients(start)
        x = a * clean + c * noise
        walk = jax.jit(lambda rows, p=process, x=x: jd.sample(None, TARGET.denoiser(p), p, rows, x=x))
        found = testing.measure_order(
            lambda n, p=process, walk=walk: walk(longer(mixture(n).plan(p, between(p, n)), 192)),
            testing.flow_map(TARGET, process, x, start, end),
            (48, 96, 192),
        )
        assert found.slope > 2.7, (process, found)


def test_differences_are_another_rule_of_order_two(x64, longer, mixed):
    """`g[0..2] u^2` in the place of `g[0..2] u (u - u_1)` differs at second order."""
    process, solver = processes.VP(), solvers.unified(3, rules="differences", correctors=False)
    start, end = between(process, 1)
    a, _, c = process.coefficients(start)
    x = a * mixed(*LAW, 16) + c * np.random.default_rng(1).normal(size=(16, 2))
    run = jax.jit(lambda rows: jd.sample(None, TARGET.denoiser(process), process, rows, x=x))
    found = testing.measure_order(
        lambda n: run(longer(solver.plan(process, between(process, n)), 192)),
        testing.flow_map(TARGET, process, x, start, end),
        (48, 96, 192),
    )
    assert abs(found.slope - 2) < 0.25, found


@pytest.mark.slow
def test_ends_are_finite_in_float32_and_gradients_reach_the_grid(longer):
    noise = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    for process in PROCESSES:
        denoise = jax.jit(TARGET.denoiser(process))
        walk = jax.jit(lambda rows, x, p=process, d=denoise: jd.sample(None, d, p, rows, x=x, save="all"))
        x = np.float32(process.coefficients(process.t_max)[2]) * noise
        for steps in (1, 2, 6) if process.t_max == 1 else (6,):
            grid = jd.grids.log_snr(process, steps)
            solver = solvers.unified(3, ("noise", "data", "noise", "data", "data", "noise")[:steps])
            rows = solver.plan(process, grid)
            assert rows.nfe == rows.steps == steps
            path = np.asarray(walk(longer(rows, 6), x))[: steps + 1]
            assert np.isfinite(path).all()
            last = denoise(path[-2], np.float32(grid[-2]))
            np.testing.assert_allclose(path[-1], last, rtol=1e-4, atol=1e-5)
        with jax.enable_x64(True):
            exact = walk(rows, np.float64(x))[-1]
        np.testing.assert_allclose(path[-1], exact, rtol=2e-4, atol=2e-4)

    def total(grid):
        x, process = jnp.ones((2, 2)), PROCESSES[0]
        return jnp.sum(jd.sample(None, TARGET.denoiser(process), process, solvers.unified(3), grid, x=x))

    grid = jd.grids.log_snr(PROCESSES[0], 5).astype(np.float32)
    assert np.isfinite(jax.jit(jax.grad(total))(grid)).all()


def test_a_plan_over_a_traced_grid_is_the_plan():
    process = processes.VP()
    grid = jd.grids.uniform(process, 5)
    solver = solvers.unified(rules=("lagrange", "midpoint", "differences", "lagrange", "lagrange"), orders=2)
    traced = jax.jit(lambda grid: solver.plan(process, grid))(jnp.asarray(grid))
    for a, b in zip(jax.tree.leaves(traced), jax.tree.leaves(solver.plan(process, grid)), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_it_is_a_predictor_like_any_other():
    """Wrappers walk the plan by its own step."""
    process, grid = processes.VP(), jd.grids.log_snr(processes.VP(), 5)
    x = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
    solver = solvers.unified(3, ("noise", "data", "noise", "noise", "data"))
    both = solver, solvers.predictor_corrector(solver, 0)
    run = jax.jit(lambda: [jd.sample(None, TARGET.denoiser(process), process, s, grid, x=x) for s in both])
    np.testing.assert_allclose(*run(), rtol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(orders=4), "orders"),
        (dict(predictions="v"), "predictions"),
        (dict(rules=("lagrange", "taylor")), "rules"),
        (dict(orders=(1, 2)), "5 of orders, one a step, got 2"),
        (dict(rules="midpoint"), "order 2 alone"),
    ],
)
def test_wrong_settings(settings, message):
    process = processes.VP()
    with pytest.raises(ValueError, match=message):
        solvers.unified(**settings).plan(process, jd.grids.uniform(process, 5))
