"""Defaults, evolution and predicted search, on targets with exact flows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

S, VP = jd.solvers, jd.processes.VP()
LAW = np.array([[1.0, 0.0], [-1.0, 0.5]]), np.array([0.02, 0.05]), np.array([0.4, 0.6])
TARGET = jd.testing.gaussian_mixture(*LAW)
DENOISE = TARGET.denoiser(VP)
STARTS = np.random.default_rng(9).normal(size=(512, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def exact():
    return jd.testing.flow_map(TARGET, VP, STARTS, 1.0, 0.0)


@jax.jit
def ends(rows):
    return jd.sample(None, DENOISE, VP, rows, x=STARTS)


def median(rows, exact):
    return float(np.median(np.linalg.norm(np.asarray(ends(rows)) - exact, axis=1)))


@pytest.mark.parametrize("nfe", [5, 8, 12, 20])
def test_the_default_beats_stock_configurations(nfe, exact, longer):
    own = median(longer(S.default(VP, nfe), 20), exact)
    assert S.default(VP, nfe).nfe == nfe
    for grid in (jd.grids.log_snr(VP, nfe), jd.grids.quadratic(VP, nfe), jd.grids.uniform(VP, nfe)):
        for solver in (S.unipc(2), S.unipc(3), S.dpmpp_multistep(2), S.ddim()):
            assert own < 1.3 * median(longer(solver.plan(VP, grid), 20), exact), (solver.name, nfe)


def test_evolution_finds_better_steps_than_even_ones(mixed):
    references = mixed(*LAW, 400).astype(np.float32)
    times = np.linspace(1.0, 0.02, 40)

    def distance(x, y):
        directions = np.stack([np.cos(np.arange(8) * np.pi / 8), np.sin(np.arange(8) * np.pi / 8)])
        return float(np.abs(np.sort(x @ directions, 0) - np.sort(y @ directions, 0)).mean())

    for solver in (S.ddim(), S.dpmpp_multistep(2)):
        fitness = S.distribution_fitness(jax.random.key(4), DENOISE, VP, solver, references, distance)
        grid, best, history = S.evolve(jax.random.key(0), fitness, times, 4, generations=6)
        even = fitness(np.append(times[[0, 13, 26, 39]], 0.0))
        assert best < 0.8 * even and np.all(np.diff(history) <= 0) and len(grid) == 5
        fresh = S.distribution_fitness(jax.random.key(5), DENOISE, VP, solver, references, distance)
        assert fresh(grid) < fresh(np.append(times[[0, 13, 26, 39]], 0.0))
    with pytest.raises(ValueError, match="steps"):
        S.evolve(jax.random.key(0), fitness, times, 41)


def test_what_is_not_a_number_is_the_worst():
    times = np.linspace(1.0, 0.1, 10)

    def fitness(grid):
        return np.nan if grid[2] > 0.45 else abs(grid[1] - 0.35) + abs(grid[2] - 0.2)

    for seed in range(3):
        grid, best, _ = S.evolve(jax.random.key(seed), fitness, times, 3, generations=3)
        np.testing.assert_allclose(grid, [1.0, 0.4, 0.2, 0.0])
        assert np.isclose(best, 0.05)
    values = {0: np.nan, 1: np.inf, 2: 2.0, 3: 1.0}
    evaluate = lambda tried: [values[a] + b for a, b in tried]  # noqa: E731
    options = {"first": 12, "rounds": 2, "batch": 4, "pool": 20}
    best, error, tried = S.predicted_search(jax.random.key(0), evaluate, [range(4), range(3)], **options)
    assert (best, error) == ((3, 0), 1.0)
    assert all(value == np.inf for (a, _), value in tried if a < 2)


@pytest.mark.slow
def test_a_mixture_found_by_prediction_beats_fixed_solvers_on_fresh_noises(exact, tmp_path):
    """Orders, predictions, rules and correctors of six steps: 80 schedules tried, all in one program."""
    grid, steps = jd.grids.log_snr(VP, 6), 6
    x = np.random.default_rng(1).normal(size=(256, 2)).astype(np.float32)
    flowed = jd.testing.flow_map(TARGET, VP, x, 1.0, 0.0)
    settings = [(o, r) for o in (1, 2, 3) for r in ("lagrange", "differences")] + [(2, "midpoint")]
    choices = [settings] * steps + [("data", "noise")] * steps + [(True, False)] * steps

    def solver(schedule):
        orders, rules = zip(*schedule[:steps], strict=True)
        return S.unified(orders, schedule[steps : 2 * steps], rules, schedule[2 * steps :])

    @jax.jit
    def errors(plans):
        run = jax.vmap(lambda rows: jd.sample(None, DENOISE, VP, rows, x=x))
        return jnp.median(jnp.linalg.norm(run(plans) - flowed[None], axis=-1), axis=-1)

    def evaluate(schedules):
        found = [solver(s).plan(VP, grid) for s in (*schedules, *[schedules[0]] * (32 - len(schedules)))]
        return np.asarray(errors(S.stack(found)))[: len(schedules)]

    best, error, tried = S.predicted_search(jax.random.key(0), evaluate, choices)
    assert len(tried) == 80 and error == min(value for _, value in tried)
    own = median(solver(best).plan(VP, grid), exact)
    fixed = (S.ddim(), S.dpmpp_multistep(2), S.dpmpp_multistep(3), S.unipc(2), S.unipc(3), S.dpm_multistep(2))
    assert own < 0.9 * min(median(each.plan(VP, grid), exact) for each in fixed)
    S.Tuned(solver(best).plan(VP, grid), "VP").save(tmp_path / "mixture.json")
    with pytest.warns(UserWarning, match="tuned for VP"):
        assert median(S.load(tmp_path / "mixture.json").plan(VP, None), exact) == own


def test_predicted_search_beats_random_search():
    """A hidden sum over entries: the predictor learns which choices are good."""
    rng = np.random.default_rng(0)
    choices = [(1, 2, 3, 4)] * 8
    costs = rng.uniform(size=(8, 4))

    def evaluate(schedules):
        return np.array([np.exp(sum(costs[i, c - 1] for i, c in enumerate(s))) for s in schedules])

    best, error, tried = S.predicted_search(jax.random.key(0), evaluate, choices)
    random = np.exp(np.min([costs[np.arange(8), rng.integers(4, size=8)].sum() for _ in range(len(tried))]))
    assert error == evaluate([best])[0] and error < random and len(tried) <= 32 + 48
    least = np.exp(costs.min(1).sum())
    assert error < least * 1.35
