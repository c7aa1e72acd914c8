"""Along a sampler's path: the Fokker-Planck residual, the gap of ODE and SDE, hallucinations."""

import jax
import jax.numpy as jnp

from jaxdiff.core import batch_keys, concrete, fold_in
from jaxdiff.losses.regularizers import fokker_planck_residual
from jaxdiff.sampling import sample


def fokker_planck_profile(log_prob, process, key, x0, times, probes=4, exact=False):
    """Mean squared residual of the Fokker-Planck equation at noised data, for every time: `(len(times),)`.

    0 for a consistent density model. Its size over time bounds the distance between the laws of the ODE's
    and the SDE's samples. Deveney et al. (2023), arXiv:2311.15996.

    Args:
      log_prob: `(x, t) -> (batch,)`.
      x0: `(batch, ...)` data.
      times: `(m,)` times in (0, t_max).
      probes, exact: as of `jd.losses.regularizers.fokker_planck`.
    """
    keys = batch_keys(key, x0.shape[0], "fokker_planck_profile")

    def at(pair):
        i, t = pair
        own = fold_in(keys, i)
        t = jnp.full(x0.shape[0], t, x0.dtype)
        x = process.perturb(x0, process.noise(fold_in(own, 0), x0), t)
        return jnp.mean(fokker_planck_residual(log_prob, process, fold_in(own, 1), x, t, probes, exact) ** 2)

    times = jnp.asarray(times, x0.dtype)
    return jax.lax.map(at, (jnp.arange(len(times)), times))


def ode_sde_gap(keys, denoise, process, grid, *, shape, ode, sde, distance):
    """Distance between the samples of a deterministic and of a stochastic solver from the same starts.

    With the exact denoiser both follow the data, so what is left of the distance at many steps is the
    denoiser's. Deveney et al. (2023), arXiv:2311.15996.

    Args:
      keys: `(batch,)` keys.
      grid: of both solvers.
      shape: of one sample.
      ode, sde: solvers of `jd.solvers`.
      distance: `(x, x) -> number`, such as `jd.metrics.sliced_wasserstein`.
    """
    keys = batch_keys(keys, None, "ode_sde_gap")
    starts = jax.vmap(lambda key: process.prior(jax.random.fold_in(key, 0), tuple(shape)))(keys)
    ends = [sample(fold_in(keys, 1), denoise, process, solver, grid, x=starts) for solver in (ode, sde)]
    return distance(*ends)


def hallucination(keys, denoise, process, solver, grid, *, window, shape=None, x=None):
    """Samples and how much their clean estimates wandered late in sampling: `(samples, (batch,) scores)`.

        score = mean over t in the window of |D_t - mean of D|^2, per dimension

    Samples between modes, on no data, wander more: leave out those above a quantile of the scores, above all
    before training on them (`benchmarks/hallucination.py`). Noise of the window about as wide as the modes
    tells best, with a stochastic solver. Aithal et al. (2024), arXiv:2406.09358, and their code.

    Args:
      keys, denoise, process, solver, grid, shape, x: as of `jd.sample`.
      window: `(t_first, t_last)`: the grid's times between them count, at least two.

    Raises:
      ValueError: if fewer than two times of the grid lie in the window.
    """
    times = concrete(grid)
    if times is None:
        raise ValueError("hallucination: expected a known grid, got a traced one; make it outside of jit")
    times = times[:-1]
    inside = (times >= min(window)) & (times <= max(window))
    if inside.sum() < 2:
        raise ValueError(
            f"hallucination: expected at least two times of the grid in the window {window}, got "
            f"{int(inside.sum())} of {times}"
        )
    path = sample(keys, denoise, process, solver, grid, shape=shape, x=x, save="all")
    points, at = path[:-1][inside], jnp.asarray(times[inside], path.dtype)
    clean = jax.lax.map(lambda pair: denoise(*pair), (points, at))
    spread = jnp.mean(jnp.square(clean - jnp.mean(clean, 0, keepdims=True)), 0)
    return path[-1], jnp.mean(spread.reshape(spread.shape[0], -1), axis=1)
