"""Log-likelihood: exactly along the probability-flow ODE, and bounded by the variational bound.

The first is `sample` on the pair of a point and its log-density. Tokens have the bound of their losses.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import (
    batch_keys,
    check_choice,
    check_count,
    check_made,
    check_noise,
    concrete,
    einsum,
    floating,
    fold_in,
    is_concrete,
    namespace,
    quadratic_forms,
    random_tangents,
    unit_tangents,
)
from jaxdiff.grids import log_snr_range
from jaxdiff.losses.discrete import elbo
from jaxdiff.processes.product import Product
from jaxdiff.sampling import sample
from jaxdiff.solvers.tableau import is_pinned

TRACES = ("exact", "hutchinson", "hutch++")


def log_prob(key, denoise, process, x0, *, solver, grid, trace="exact", probes=1, y=None):
    """Log-density of data under the probability-flow ODE, by the exact change of variables.

    With `z = (x - b y) / c` and log-SNR as time the ODE is `dz / dlambda = (a / c) D`, of divergence
    `a tr J`, `J` the Jacobian of the clean estimate. That of N(0, I) data in d dimensions is `d a / s^2`,
    `s^2 = a^2 + c^2`, of which the integral has a closed form; with d that of the trace at the data end (from
    0 to n, one evaluation more) it takes away what is largest there. So, from the data end 0 to the prior end
    T of the grid, in n dimensions,

        log p(x0) = log prior(x_T) + d log(s_T / s_0) + (n - d) log(c_T / c_0) + q_T
        dq / dlambda = a (tr J - d a / s^2),  q_0 = 0

    and `c q` is a coordinate that every solver integrates beside `x`, with `c (tr J - d a / s^2)` in the
    place of its clean estimate (Song et al. (2021), arXiv:2011.13456, section 4.3, for any process).

    Args:
      key: one key or `(batch,)` keys, for the probes of an estimated trace.
      denoise: `(x, t) -> clean estimate`.
      process: forward process; of a `Product` the parts walk together, each with a `q` and the trace of its
        own block of J.
      x0: data, `(batch, ...)`, or a dict of a product's parts.
      solver: a deterministic solver of `jd.solvers`; for a product one of `jd.solvers.joint`.
      grid: `(steps + 1,)` decreasing times as for sampling, walked backwards; an end at exact data is
        replaced by `process.t_min`, whose noise level is that of the density. Where a bridge ends in its
        second endpoint the walk ends one step before. For a product a dict.
      trace: "exact" (n forward derivatives an evaluation), "hutchinson" (unbiased, one derivative per
        probe) or "hutch++" (exact on a sketch of `probes` directions, estimated with as many normalised
        probes on the rest: 3 derivatives per probe; Meyer et al. (2021), arXiv:2010.09649). The same
        probes serve the whole path.
      probes: number of probes; from n / 2 on "hutch++" is exact.
      y: the second endpoint, the shape of `x0`, for processes that have one: log p(x0 | y).

    Returns:
      `(batch,)` log-densities in nats; see `bits_per_dimension`.

    Raises:
      ValueError: for an unknown trace, a solver that draws noise, or a grid that is no sampling grid.
    """
    check_made("log_prob", "process", process, "endpoint", "jd.processes.VP()")
    check_choice("log_prob", "trace", trace, TRACES)
    check_count("log_prob", probes=probes)
    process.endpoint(y)
    if hasattr(solver, "to") and is_concrete(solver.t, solver.to) and solver.t[0] > solver.to[-1]:
        raise ValueError(
            f"log_prob: expected a solver, or a plan from data to noise, got a plan from {solver.t[0]:g} to "
            f"{solver.to[-1]:g}"
        )
    if isinstance(process, Product):
        return _of_parts(key, denoise, process, x0, solver, grid, trace, probes)
    grid = _ascending(process, grid)
    if hasattr(solver, "to") and is_concrete(solver.t, solver.to, grid):
        ends = float(solver.t[0]), float(solver.to[-1])
        if not np.allclose(ends, (grid[0], grid[-1]), rtol=1e-5):
            raise ValueError(
                f"log_prob: expected a plan on the grid, from {grid[0]:g} to {grid[-1]:g}, got one from "
                f"{ends[0]:g} to {ends[1]:g}"
            )
    start = _start(x0)
    estimate = _estimator(key, start["x"], trace, probes)

    def clean_and_trace(x, t):
        clean, derivative = jax.linearize(lambda x: denoise(x, t), x)
        return clean, estimate(derivative, x)

    def pair(state, t):
        clean, trace = clean_and_trace(state["x"], t)
        return {"x": clean, "cq": _growth(process, t, trace, d)}

    first = jnp.asarray(grid[0], start["x"].dtype)
    d = _dimension(process, first, clean_and_trace(start["x"], first)[1], start["x"])
    ends = None if y is None else _start(jnp.asarray(y, start["x"].dtype))
    end = sample(None, pair, process, solver, grid, x=start, y=ends)
    return _density(process, grid, end, d, None if y is None else ends["x"])


def _of_parts(key, denoise, process, x0, solver, grid, trace, probes):
    """`log_prob` of a product: one walk, and every part's own change of volume."""
    process.coefficients(process.t_max)  # not of tokens
    x0, grid = process.named("log_prob", x0), process.named("log_prob", grid)
    grid = {name: _ascending(part, grid[name]) for name, part in process.parts.items()}
    start = {name: _start(x0[name]) for name in process.parts}
    keys = None if trace == "exact" else batch_keys(key, len(jax.tree.leaves(start)[0]), "log_prob")
    estimates = {
        name: _estimator(None if keys is None else fold_in(keys, i), part["x"], trace, probes)
        for i, (name, part) in enumerate(start.items())
    }

    def clean_and_traces(state, t):
        x = {name: part["x"] for name, part in state.items()}
        clean, derivative = jax.linearize(lambda x: denoise(x, t), x)
        still = jax.tree.map(jnp.zeros_like, x)

        def trace(name):
            return estimates[name](lambda v: derivative({**still, name: v})[name], x[name])

        return clean, {name: trace(name) for name in x}

    def pair(state, t):
        clean, traces = clean_and_traces(state, t)
        return {
            name: {"x": clean[name], "cq": _growth(part, t[name], traces[name], d[name])}
            for name, part in process.parts.items()
        }

    first = {name: jnp.asarray(grid[name][0], part["x"].dtype) for name, part in start.items()}
    traces = clean_and_traces(start, first)[1]
    d = {
        name: _dimension(part, first[name], traces[name], start[name]["x"])
        for name, part in process.parts.items()
    }
    end = sample(None, pair, process, solver, grid, x=start)
    return sum(_density(part, grid[name], end[name], d[name]) for name, part in process.parts.items())


def variational_bound(key, denoise, process, x0, *, samples=1, y=None):
    """A lower bound on log p(x0) in nats, unbiased, by random times: for training and comparison.

        E log N(x0; x_0 / a_0, (c_0 / a_0)^2) - KL(q(x_T | x0) | prior) - 1/2 int |D - x0|^2 dSNR

    where 0 is at `t_min` and T at `t_max`, or at the mirror image of `t_min`'s log-SNR where that of `t_max`
    is infinite. Times are uniform in log-SNR, which takes the weight's range out of the average. Tight for
    the exact denoiser where data is smooth on the scale of c_0. Kingma et al. (2021), arXiv:2107.00630,
    eq. 11 and 15, for any process.

    Args:
      key: one key or `(batch,)` keys.
      denoise: `(x, t) -> clean estimate`; t is `(batch,)`.
      process: forward process.
      x0: data, `(batch, ...)`.
      samples: times and noises per example, stratified.
      y: the second endpoint, for processes that have one.

    Returns:
      `(batch,)` bounds.
    """
    check_noise("variational_bound", process, "see log_prob")
    check_count("variational_bound", samples=samples)
    x0 = floating("variational_bound", x0)
    keys, size = batch_keys(key, x0.shape[0], "variational_bound"), x0[0].size
    high, low = log_snr_range(process)
    ends = np.array([0.0, 1.0]) * (low - high) + high
    a, _, c = (jnp.asarray(k, x0.dtype) for k in process.coefficients(process.time_of_log_snr(ends)))

    def term(i):
        own = fold_in(keys, i)
        u = (i + jax.vmap(lambda k: jax.random.uniform(k, ()))(fold_in(own, 0))) / samples
        level = high + (low - high) * u
        t = process.time_of_log_snr(level)
        x_t = process.perturb(x0, process.noise(fold_in(own, 1), x0), t, y)
        return (high - low) * jnp.exp(2 * level) * _sum(jnp.square(denoise(x_t, t) - x0))

    diffusion = jnp.mean(jax.lax.map(term, jnp.arange(samples)), 0)
    mean = a[1] * x0 if y is None else a[1] * (x0 - y)  # less the prior's
    prior = 0.5 * _sum(jnp.square(mean / c[1]))
    return -0.5 * size * (np.log(2 * np.pi) + 1) - size * jnp.log(c[0] / a[0]) - prior - diffusion


def token_bound(key, net, process, x0, *, samples=16):
    """A lower bound on log p(x0) of tokens in nats, unbiased: minus `jd.losses.discrete.elbo`.

    Args:
      key: one key or `(batch,)` keys.
      net: `net(tokens, c_noise) -> logits (batch, ..., size)`.
      process: a discrete process.
      x0: clean tokens, `(batch, ...)`.
      samples: times and noises per example, stratified.

    Returns:
      `(batch,)` bounds; see `bits_per_token` and `perplexity`.
    """
    check_count("token_bound", samples=samples)
    x0 = process.check_clean(x0, "token_bound")
    keys = batch_keys(key, x0.shape[0], "token_bound")

    def term(i):
        return elbo(net, fold_in(keys, i), x0, process=process, strata=(i, samples))

    return -jnp.mean(jax.lax.map(term, jnp.arange(samples)), axis=0)


def bits_per_token(log_prob, length):
    """Bits per token of sequences of `length` tokens from their log-probabilities in nats."""
    return -log_prob / (length * np.log(2))


def perplexity(log_prob, length):
    """`exp(mean nats per token)` over sequences `(batch,)` of `length` tokens."""
    return jnp.exp(-jnp.mean(log_prob) / length)


def dequantize(key, levels, count=256, low=-1.0, high=1.0):
    """Integer levels 0 ... count - 1 as floats in [low, high], uniform within each level's bin.

    Args:
      key: one key or `(batch,)` keys.
      levels: `(batch, ...)` integers.

    Raises:
      ValueError: for arrays that are not integers, or known values outside the levels.
    """
    if not jnp.issubdtype(jnp.result_type(levels), jnp.integer):
        raise ValueError(f"dequantize: expected integer levels, got {jnp.result_type(levels)}")
    known = concrete(levels)
    if known is not None and known.size and (known.min() < 0 or known.max() >= count):
        raise ValueError(
            f"dequantize: expected levels in [0, {count - 1}], got {known.min()} to {known.max()}"
        )
    keys = batch_keys(key, levels.shape[0], "dequantize")
    u = jax.vmap(lambda k: jax.random.uniform(k, levels.shape[1:]))(keys)
    return low + (high - low) * (levels + u) / count


def bits_per_dimension(log_density, size, count=256, low=-1.0, high=1.0):
    """Bits per dimension of discrete data from the log-density of its dequantized floats.

    Args:
      log_density: `(batch,)` nats, of `dequantize`d data.
      size: dimensions of one example.
      count, low, high: as of `dequantize`.
    """
    return -(log_density / size + np.log((high - low) / count)) / np.log(2)


def _start(x):
    x = floating("log_prob", x)
    return {"x": x, "cq": jnp.sum(jnp.zeros_like(x), axis=tuple(range(1, x.ndim)))}  # on the devices of x


def _dimension(process, t, trace, x):
    """`(batch,)`: of how many dimensions N(0, I) data would have this trace."""
    a, _, c = (jnp.asarray(k, x.dtype) for k in process.coefficients(t))
    return jax.lax.stop_gradient(jnp.clip(trace * (a**2 + c**2) / a, 0.0, x[0].size))


def _growth(process, t, trace, d):
    """The "clean estimate" of `c q`: the trace beyond that of N(0, I) data in d dimensions, times c."""
    a, _, c = (jnp.asarray(k, d.dtype) for k in process.coefficients(t))
    return c * (trace - d * a / (a**2 + c**2))


def _density(process, grid, end, d, y=None):
    """The prior's log-density at the end of the walk, less the change of volume on the way."""
    x = end["x"]
    a, b, c = (jnp.asarray(k, x.dtype) for k in process.coefficients(grid))
    mean = 0.0 if y is None else (a[-1] + b[-1]) * y
    s, n = jnp.sqrt(a**2 + c**2), x[0].size
    volume = d * jnp.log(s[-1] / s[0]) + (n - d) * jnp.log(c[-1] / c[0]) - n * jnp.log(c[-1])
    return process.log_noise((x - mean) / c[-1]) + volume + end["cq"] / c[-1]


def _estimator(key, x, trace, probes):
    """`(derivative, x) -> trace of the Jacobian`, `(batch,)`."""
    if trace == "exact":
        return _exact
    if trace == "hutch++" and 2 * probes >= x[0].size:
        return _exact  # no more derivatives, and nothing left to estimate
    keys = batch_keys(key, x.shape[0], "log_prob")
    if trace == "hutchinson":
        return _hutchinson(random_tangents(keys, x, probes))
    return _hutch_plus_plus(random_tangents(keys, x, 2 * probes, jax.random.normal))


def _ascending(process, grid):
    known = concrete(grid)
    if known is not None and known.ndim == 1 and known.size > 1 and np.all(np.diff(known) < 0):
        known = np.array(known[::-1], np.float64)
        if is_pinned(process, known[-1:]):
            known = known[:-1]
        if known[0] == 0:
            first = concrete(process.t_min)
            rest = known[known > (0.0 if first is None else first)]
            known = namespace(process.t_min).append(process.t_min, rest)
        if known.size > 1:
            return known
    raise ValueError(
        "log_prob: expected grid to be a known decreasing grid of times above t_min, as of jd.grids; got "
        f"{grid if known is None else known}"
    )


def _exact(derivative, x):
    """The trace `(batch,)` of a Jacobian given as a linear map."""
    return jnp.sum(quadratic_forms(derivative, unit_tangents(x)), 0)


def _hutchinson(probes):
    return lambda derivative, x: jnp.mean(quadratic_forms(derivative, probes), 0)


def _hutch_plus_plus(probes):
    sketch, rest = jnp.split(probes, 2)

    def estimate(derivative, x):
        flat = x.shape[0], x[0].size
        seen = jax.vmap(derivative)(sketch).reshape(-1, *flat)
        q = jnp.moveaxis(jnp.linalg.qr(jnp.moveaxis(seen, 0, -1))[0], -1, 0)  # (k, batch, n)
        along = einsum("kbn,mbn->kmb", q, rest.reshape(-1, *flat))
        outside = rest - einsum("kbn,kmb->mbn", q, along).reshape(rest.shape)
        # of the length that makes the estimate exact where the rest of J is a multiple of the identity
        square = jnp.sum(jnp.square(outside), axis=tuple(range(2, outside.ndim)), keepdims=True)
        outside = outside * jnp.sqrt((x[0].size - q.shape[0]) / square)
        inside = quadratic_forms(derivative, q.reshape(-1, *x.shape))
        return jnp.sum(inside, 0) + jnp.mean(quadratic_forms(derivative, outside), 0)

    return estimate


_sum = jax.vmap(jnp.sum)
