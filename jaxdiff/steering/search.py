"""Search over noises with a verifier: the start of a sampler is what is looked for."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxdiff.core import batch_keys, fold_in, match_dims, normal_like


class Found(NamedTuple):
    """What a search found.

    Attributes:
      x: `(batch, ...)` samples.
      start: `(batch, ...)` noises they come from.
      reward: `(batch,)`.
    """

    x: jax.Array
    start: jax.Array
    reward: jax.Array


def best_of_n(keys, sampler, verifier, shape, n):
    """The best of n samples of independent noises, for every key.

    Ma et al. (2025), arXiv:2501.09732 (random search).

    Args:
      keys: `(batch,)` keys.
      sampler: `noise -> samples`, both `(batch, ...)`; standard normal noise in.
      verifier: `samples -> (batch,)`, the larger the better; not-a-number counts as the worst.
      shape: of one sample.
      n: number of noises; one is sampled after another, so memory does not grow.

    Returns:
      `Found`.
    """
    keys = batch_keys(keys, None, "best_of_n")

    def draw(i):
        return normal_like(fold_in(keys, i), jnp.zeros((keys.shape[0], *shape)))

    return _best(sampler, verifier, draw, n)


def zero_order(keys, sampler, verifier, start, n, iterations, radius=0.3):
    """Local search: n neighbours of a pivot noise are tried, and the best becomes the pivot.

        neighbour = sqrt(1 - radius^2) pivot + radius noise

    which keeps noise normal, and samples near the pivot's. Ma et al. (2025), arXiv:2501.09732.

    Args:
      keys, sampler, verifier: as of `best_of_n`.
      start: `(batch, ...)` first pivots.
      n: neighbours an iteration.
      iterations: number of iterations.
      radius: in (0, 1].
    """
    if isinstance(radius, (int, float)) and not 0 < radius <= 1:
        raise ValueError(f"zero_order: expected radius in (0, 1], got {radius}")
    keys, x = batch_keys(keys, len(start), "zero_order"), sampler(start)
    found = Found(x, start, _score(verifier, x))

    def iterate(found, k):
        own = fold_in(keys, k)

        def neighbour(i):
            noise = normal_like(fold_in(own, i), found.start)
            return (jnp.sqrt(1 - radius**2) * found.start + radius * noise).astype(found.start.dtype)

        return _best(sampler, verifier, neighbour, n, found), None

    return jax.lax.scan(iterate, found, jnp.arange(iterations))[0]


def path_search(keys, sampler, verifier, process, shape, *, times, starts=4, branches=4):
    """Search over paths: samples are noised again to ever lower levels and sampled anew from there.

    From `starts` noises the best sample is kept; then, for every time, `branches` noisings of it are
    sampled from that time on, and the best goes on. Ma et al. (2025), arXiv:2501.09732.

    Args:
      keys, verifier, shape: as of `best_of_n`.
      sampler: `(x_t, t) -> samples`: sampling from a point at a grid time.
      process: forward process.
      times: decreasing times below t_max to go back to.
      starts, branches: numbers of noises.
    """
    keys, (_, _, c) = batch_keys(keys, None, "path_search"), process.coefficients(process.t_max)

    def first(i):
        return jnp.float32(c) * process.noise(fold_in(keys, i), jnp.zeros((keys.shape[0], *shape)))

    found = _best(lambda x: sampler(x, process.t_max), verifier, first, starts)
    for k, t in enumerate(times):
        own, base = fold_in(keys, starts + k), found.x

        def branch(i, own=own, base=base, t=t):
            return process.perturb(base, process.noise(fold_in(own, i), base), t)

        found = _best(lambda x, t=t: sampler(x, t), verifier, branch, branches, found)
    return found


def _best(sampler, verifier, draw, n, found=None):
    """The best of `n` draws, and of what was found before."""
    if n < 1:
        raise ValueError(f"search: expected at least one noise to try, got {n}")

    def attempt(best, i):
        start = draw(i)
        x = sampler(start)
        new = Found(x, start, _score(verifier, x))
        take = new.reward > best.reward
        return jax.tree.map(lambda one, other: jnp.where(match_dims(take, one), one, other), new, best), None

    if found is None:
        start = draw(0)
        x = sampler(start)
        found = Found(x, start, _score(verifier, x))
        return jax.lax.scan(attempt, found, jnp.arange(1, n))[0]
    return jax.lax.scan(attempt, found, jnp.arange(n))[0]


def _score(verifier, x):
    score = verifier(x)
    if jnp.shape(score) != x.shape[:1]:
        raise ValueError(
            f"search: expected verifier to return one number per sample, {x.shape[:1]}, got "
            f"{jnp.shape(score)}"
        )
    return jnp.where(jnp.isnan(score), -jnp.inf, score)
