"""Couplings: which noise, or which second sample, an example of a batch is paired with.

A coupling is `(key, x0, x1, label=None) -> x1` in another order, with both arrays `(batch, ...)`. Losses
take the result as `noise=` or `y=`. It runs on the device, under `jit`. `reflow` makes new pairs instead.
"""

import functools

import jax
import jax.numpy as jnp

from jaxdiff.core import check_choice, check_positive, matmul

EXACT_LIMIT = 256  # beyond it the exact assignment takes longer than a training step


def independent(key, x0, x1, label=None):
    """`x1` as it is."""
    del key, x0, label
    return x1


def optimal_transport(method="auto", regularization=0.05):
    """Minibatch optimal transport: pairs of the least total squared distance.

    Straighter paths and a lower variance of the flow-matching target, with the same marginals. With
    labels, examples are exchanged within their class only, so that noise stays independent of the class, as
    it is in sampling; so it has to be of whatever else a network is told of an example. Within `shard_map` it
    pairs each device's share, and needs `check_vma=False`.

    Tong et al. (2024), arXiv:2302.00482, and Pooladian et al. (2023), arXiv:2304.14772.

    Args:
      method: "exact" (an assignment, by the Hungarian algorithm), "entropic" (a partner is drawn from the
        row of the Sinkhorn plan: some may be drawn twice) or "auto": exact up to 256 examples.
      regularization: of the entropic plan, as a share of the mean cost, above 0. A share that stands for
        `2 scale^2` in the units of the cost makes the pairs those of the Schroedinger bridge, to be joined
        by `BrownianBridge(scale)`.

    Returns:
      A coupling.
    """
    check_choice("optimal_transport", "method", method, ("auto", "exact", "entropic"))
    check_positive("optimal_transport", regularization=regularization)
    return functools.partial(_optimal_transport, method, regularization)


def _optimal_transport(method, regularization, key, x0, x1, label=None):
    if x0.shape[0] != x1.shape[0]:
        raise ValueError(f"optimal_transport: expected equal batches, got {x0.shape[0]} and {x1.shape[0]}")
    if label is not None and jnp.shape(label) != x0.shape[:1]:
        raise ValueError(
            f"optimal_transport: expected label of shape {x0.shape[:1]}, one class per example, got "
            f"{jnp.shape(label)}"
        )
    cost = costs(x0, x1)
    scale = jnp.mean(cost)
    if label is not None:
        apart = label[:, None] != label[None]
        cost = jnp.where(apart, cost + 2 * x0.shape[0] * (jnp.max(cost) + scale), cost)
    if method == "exact" or (method == "auto" and x0.shape[0] <= EXACT_LIMIT):
        return jnp.asarray(x1)[assignment(cost)]
    plan = sinkhorn(cost, regularization * scale)
    return jnp.asarray(x1)[jax.random.categorical(key, plan, axis=1)]


def reflow(keys, walk, process, shape):
    """Pairs of noise and the data that a flow takes it to, for training a straighter flow on them.

    Their straight lines cross less than those of independent pairs and the marginals are the same, so the
    flow that matches them needs fewer steps: `jd.losses.flow_matching(net, key, x0, noise=noise)`. Liu et
    al. (2023), arXiv:2209.03003, section 2.2.

    Args:
      keys: `(n,)` keys, one per pair.
      walk: `x_T -> x0`, deterministic: `lambda x: jd.sample(None, denoise, process, solver, grid, x=x)`.
      process: forward process without a second endpoint.
      shape: of one example.

    Returns:
      `(x0, noise)`, both `(n, *shape)`.
    """
    noise = process.noise(keys, jnp.zeros((keys.shape[0], *shape)))
    return walk(process.perturb(jnp.zeros_like(noise), noise, process.t_max)), noise


def costs(x0, x1):
    """`(n, m)` squared Euclidean distances between two batches."""
    x0, x1 = (x.reshape(x.shape[0], -1).astype(jnp.promote_types(x.dtype, jnp.float32)) for x in (x0, x1))
    squares = jnp.sum(x0**2, 1)[:, None] + jnp.sum(x1**2, 1)[None]
    return jnp.maximum(squares - 2 * matmul(x0, x1.T), 0.0)


def assignment(cost):
    """The column of each row in the assignment of least total cost, `(n,)`; `cost` is `(n, n)`."""
    from optax.assignment import hungarian_algorithm

    rows, columns = hungarian_algorithm(cost)
    return jnp.zeros_like(columns).at[rows].set(columns)


def sinkhorn(cost, regularization, iterations=200):
    """The logarithm of the entropic plan between uniform marginals, up to a constant per row.

    Cuturi (2013), arXiv:1306.0895, in the logarithmic domain.

    Args:
      cost: `(n, m)`.
      regularization: in the units of the cost, above 0.
      iterations: of alternating normalisation.
    """
    kernel = -cost / regularization

    def normalise(_, columns):
        rows = -jax.nn.logsumexp(kernel + columns[None], axis=1)
        return -jax.nn.logsumexp(kernel + rows[:, None], axis=0)

    columns = jax.lax.fori_loop(0, iterations, normalise, jnp.zeros(cost.shape[1], cost.dtype))
    return kernel + columns[None]
