"""Log-likelihood along the probability-flow ODE: `sample` on the pair of a point and its log-density."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import batch_keys, check_choice, concrete, fold_in
from jaxdiff.sampling import sample

TRACES = ("exact", "hutchinson")


def log_prob(key, denoise, process, x0, *, solver, grid, trace="exact", probes=1):
    """Log-density of data under the probability-flow ODE, by the exact change of variables.

    With `z = x / c` and log-SNR as time the ODE is `dz / dlambda = (a / c) D`, of divergence `a tr J`,
    `J` the Jacobian of the clean estimate. So, from the data end 0 to the prior end T of the grid, in n
    dimensions,

        log p(x0) = log N(x_T; 0, c_T^2) + n log(c_T / c_0) + q_T,    dq / dlambda = a tr J,  q_0 = 0

    and `c q` is a coordinate that every solver integrates beside `x`, with `c tr J` in the place of its
    clean estimate (Song et al. (2021), arXiv:2011.13456, section 4.3, for any process).

    Args:
      key: one key or `(batch,)` keys, for the probes of the estimated trace.
      denoise: `(x, t) -> clean estimate`.
      process: forward process.
      x0: data, `(batch, ...)`.
      solver: a deterministic solver of `jd.solvers`.
      grid: `(steps + 1,)` decreasing times as for sampling, walked backwards; an end at exact data is
        replaced by `process.t_min`, whose noise level is that of the density.
      trace: "exact" (n forward derivatives an evaluation) or "hutchinson" (unbiased, one per probe; the
        same probes along the whole path).
      probes: Rademacher probes of the estimate.

    Returns:
      `(batch,)` log-densities in nats; divide by `-n log 2` for bits per dimension.

    Raises:
      ValueError: for an unknown trace, a solver that draws noise, or a grid that is no sampling grid.
    """
    check_choice("log_prob", "trace", trace, TRACES)
    if isinstance(probes, bool) or not isinstance(probes, int) or probes < 1:
        raise ValueError(f"log_prob: expected probes to be an integer of at least 1, got {probes}")
    times = _ascending(process, grid)
    x0 = jnp.asarray(x0, jnp.result_type(x0, jnp.float32))
    probe = None
    if trace == "hutchinson":
        keys = batch_keys(key, x0.shape[0], "log_prob")
        probe = jnp.stack([_rademacher(fold_in(keys, i), x0) for i in range(probes)])

    def pair(state, t):
        clean, tr = _trace(denoise, state["x"], t, probe)
        c = jnp.asarray(process.coefficients(t)[2], clean.dtype)
        return {"x": clean, "cq": c * tr}

    start = {"x": x0, "cq": jnp.zeros(x0.shape[0], x0.dtype)}
    end = sample(None, pair, process, solver, times, x=start)
    c = process.coefficients(times)[2]
    c_0, c_T = (jnp.asarray(c[i], x0.dtype) for i in (0, -1))
    size = x0[0].size
    squares = jnp.sum(jnp.square(end["x"] / c_T), axis=tuple(range(1, x0.ndim)))
    normal = -0.5 * squares - 0.5 * size * np.log(2 * np.pi)
    return normal - size * jnp.log(c_0) + end["cq"] / c_T


def _ascending(process, grid):
    known = concrete(grid)
    if known is not None and known.ndim == 1 and known.size > 1 and np.all(np.diff(known) < 0):
        known = np.array(known[::-1], np.float64)
        if known[0] == 0:
            known = np.append(process.t_min, known[known > process.t_min])
        if known.size > 1:
            return known
    raise ValueError(
        "log_prob: expected grid to be a known decreasing grid of times above t_min, as of jd.grids; got "
        f"{grid if known is None else known}"
    )


def _rademacher(keys, x0):
    return jax.vmap(lambda key: jax.random.rademacher(key, x0.shape[1:], x0.dtype))(keys)


def _trace(denoise, x, t, probe):
    """The clean estimate and the trace of its Jacobian, `(batch,)`."""
    clean, derivative = jax.linearize(lambda x: denoise(x, t), x)
    if probe is None:
        basis = jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, 1, *x.shape[1:])
        tangents = jnp.broadcast_to(basis, (basis.shape[0], *x.shape))
    else:
        tangents = probe
    products = jax.vmap(derivative)(tangents) * tangents
    total = jnp.sum(products, axis=(0, *range(2, products.ndim)))
    return clean, total if probe is None else total / probe.shape[0]
