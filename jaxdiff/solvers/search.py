"""Search over solvers: steps by evolution, schedules by prediction. Numbers are fitted by `tuning`."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import typed


def evolve(key, fitness, times, steps, *, population=24, generations=12, parents=8, mutation=0.3):
    """The subset of given times with the least fitness, by evolution; ends at exact data.

    Each generation keeps its best, crosses pairs of them and moves single times to others. Li et al. (2023),
    arXiv:2309.10438 (AutoDiffusion, its steps).

    Args:
      key: a key.
      fitness: `fitness(grid) -> number`, the smaller the better and not-a-number the worst, such as
        `distribution_fitness`'s.
      times: `(n,)` decreasing times to choose from, the first always taken.
      steps: evaluations of a grid, at most n.
      population, generations, parents: sizes.
      mutation: chance of each time to move.

    Returns:
      `(grid, fitness, history)`: the best grid, its fitness and the best fitness of every generation.
    """
    times, rng = np.asarray(times, np.float64), np.random.default_rng(seed_of(key))
    if not 1 <= steps <= len(times):
        raise ValueError(f"evolve: expected steps in [1, {len(times)}], the number of times, got {steps}")
    inner, seen = np.arange(1, len(times)), {}

    def judge(genes):
        if genes not in seen:
            seen[genes] = _known(fitness(np.append(times[[0, *genes]], 0.0)))
        return seen[genes]

    def draw(pool):
        return tuple(sorted(rng.choice(pool, steps - 1, replace=False).tolist()))

    def child(one, other):
        pool = np.array(sorted({*one, *other}))
        genes = set(draw(pool if len(pool) >= steps - 1 else inner))
        for gene in list(genes):
            free = [g for g in inner if g not in genes]
            if free and rng.uniform() < mutation:
                genes = genes - {gene} | {int(rng.choice(free))}
        return tuple(sorted(genes))

    even = tuple(np.unique(np.linspace(1, len(times) - 1, steps - 1).round().astype(int)).tolist())
    alive = [even] if len(even) == steps - 1 else []
    alive += [draw(inner) for _ in range(population - len(alive))]
    history = []
    for _ in range(generations):
        alive = sorted(set(alive), key=judge)[:parents]
        history.append(judge(alive[0]))
        pairs = rng.integers(len(alive), size=(population - len(alive), 2))
        alive += [child(alive[i], alive[j]) for i, j in pairs]
    best = min(set(alive), key=judge)
    return np.append(times[[0, *best]], 0.0), judge(best), [*history, judge(best)]


def distribution_fitness(key, denoise, process, solver, references, distance):
    """`fitness(grid)`: the distance of a solver's samples from references; compiled once per length.

    Args:
      key: a key, the same starts for every grid.
      solver: deterministic.
      references: `(n, ...)` data or fine samples; as many samples are drawn.
      distance: `(samples, references) -> number`, such as `jd.metrics.sliced_wasserstein` or `mmd`.
    """
    keys = jax.random.split(typed(key, "distribution_fitness"), len(references))
    x = jax.vmap(lambda k: process.prior(k, references.shape[1:]))(keys)
    draw = jax.jit(lambda rows: walk_to_end(denoise, rows, x))
    return lambda grid: distance(
        np.asarray(draw(numeric(solver.plan(process, grid)))), np.asarray(references)
    )


def predicted_search(key, evaluate, choices, *, first=32, rounds=6, batch=8, pool=2000):
    """The best of very many schedules, by a predictor that learns from those that were tried.

    Each round fits kernel ridge regression to the logarithm of the values seen, and evaluates the schedules
    of a random pool (and of changes of the best) that it thinks best. Liu et al. (2024), arXiv:2312.07243.

    Args:
      key: a key.
      evaluate: `evaluate(schedules) -> (n,)` errors above 0 of a list of tuples.
      choices: for every entry of a schedule, the sequence of its choices: orders, predictions, rules and
        correctors of each step of `jd.solvers.unified`, warps of a grid, ...
      first: schedules tried before the predictor is used.
      rounds, batch: how many are tried after.
      pool: candidates judged by the predictor in each round.

    Returns:
      `(schedule, error, tried)`: the best, its error, and all `(schedule, error)` in the order tried.
    """
    rng = np.random.default_rng(seed_of(key))

    def random():
        return tuple(int(rng.integers(len(options))) for options in choices)

    def changed(genes):
        where = rng.integers(len(choices))
        return genes[:where] + (int(rng.integers(len(choices[where]))),) + genes[where + 1 :]

    def decode(genes):
        return tuple(options[g] for options, g in zip(choices, genes, strict=True))

    def one_hot(genes):
        return np.concatenate([np.eye(len(options))[g] for options, g in zip(choices, genes, strict=True)])

    tried = {}

    def attempt(new):
        new = list(dict.fromkeys(g for g in new if g not in tried))
        values = evaluate([decode(g) for g in new]) if new else []
        tried.update({g: _known(v) for g, v in zip(new, values, strict=True)})

    attempt([random() for _ in range(first)])
    for _ in range(rounds):
        known = [g for g, v in tried.items() if np.isfinite(v) and v > 0]
        seen, values = np.stack([one_hot(g) for g in known]), np.log([tried[g] for g in known])
        best = sorted(known, key=tried.get)[:8]
        candidates = {random() for _ in range(pool // 2)} | {
            changed(changed(best[rng.integers(len(best))])) for _ in range(pool // 2)
        }
        candidates = [g for g in candidates if g not in tried]
        if not candidates:
            break
        guess = _kernel_ridge(seen, values, np.stack([one_hot(g) for g in candidates]), len(choices))
        attempt([candidates[i] for i in np.argsort(guess)[:batch]])
    winner = min(tried, key=tried.get)
    return decode(winner), tried[winner], [(decode(g), v) for g, v in tried.items()]


def _known(value):
    """A number to be minimised, the worst where it is not a number."""
    return np.inf if np.isnan(value) else float(value)


def _kernel_ridge(seen, values, candidates, entries, ridge=0.1):
    """Regression with a kernel of the number of entries in common."""
    kernel = np.exp(seen @ seen.T / entries * 3 - 3)
    weights = np.linalg.solve(kernel + ridge * np.eye(len(seen)), values - values.mean())
    return values.mean() + np.exp(candidates @ seen.T / entries * 3 - 3) @ weights


def walk_to_end(denoise, rows, x):
    """The end of a deterministic plan from `x`."""
    if rows.noisy:
        raise ValueError("expected a solver that draws no noise, such as ddim() or dpmpp_multistep(2)")
    rows = numeric(rows)

    def step(state, row):
        return row.step(denoise, state, row, lambda: None), None

    return jax.lax.scan(step, rows.init(x, rows), rows)[0].x


def numeric(rows):
    """A plan's numbers in float32 and int32."""

    def leaf(value):
        floating = jnp.issubdtype(jnp.result_type(value), jnp.floating)
        return jnp.asarray(value, jnp.float32 if floating else jnp.int32)

    return jax.tree.map(leaf, rows)


def seed_of(key):
    """A seed for numpy's generators."""
    return np.asarray(jax.random.key_data(key)).astype(np.uint32).tolist()


__all__ = ["distribution_fitness", "evolve", "predicted_search"]
