"""The denoising loss of a product process: one network call, a time and an error for every part."""

import functools

import jax
import jax.numpy as jnp

from jaxdiff import times as times_
from jaxdiff.core import batch_keys, check_output, floating, fold_in, match_dims


def joint(net, key, x0, *, process, parameterization, weights=None, times=None, shared=0.0):
    """Squared errors of a network that denoises all parts of a `Product`, at a time of each part's own.

        loss = sum over parts of weight mean |F_part(c_in x_t, c_noise) - target_part|^2

    With independent times one network learns the joint, every conditional and every marginal (Li et al.
    (2024), arXiv:2410.11439; Bao et al. (2023), arXiv:2303.06555).

    Args:
      net: `net(x, c_noise) -> F`, dicts with the product's names.
      key: one key or `(batch,)` keys.
      x0: dict of clean data, `(batch, ...)`, floating.
      process: `jd.processes.Product`.
      parameterization: one for all parts, or a dict.
      weights: dict of numbers on the parts' errors, 1 by default.
      times: distribution of t, one for all parts or a dict; uniform by default. Not stratified: strata of
        the batch would tie the parts' times to each other.
      shared: share of examples, in [0, 1], whose parts have the same quantile of time, for sampling all
        parts together.

    Returns:
      `(batch,)` losses.
    """
    x0 = jax.tree.map(functools.partial(floating, "joint"), process.named("joint", x0))
    process.named("joint", weights or {})
    for what, given in (("x0", x0), ("parameterization", parameterization), ("times", times)):
        _check_complete(process, what, given)
    batch = jax.tree.leaves(x0)[0].shape[0]
    keys = batch_keys(key, batch, "joint")
    together = jax.vmap(lambda k: jax.random.bernoulli(k, shared))(fold_in(keys, 0))
    choose = jax.vmap(lambda k, same: jnp.where(same, *map(jax.random.key_data, k)))
    x_t, c_noise, target = {}, {}, {}
    noises = process.noise(fold_in(keys, 1), x0)
    for number, (name, part) in enumerate(process.parts.items()):
        kind, law = (_of(name, value) for value in (parameterization, times))
        which = choose((fold_in(keys, 2), fold_in(keys, 3 + number)), together)
        which = jax.random.wrap_key_data(which, impl=jax.random.key_impl(keys))
        t = (law or times_.uniform()).replace(stratified=False).draw(which, part)
        k = kind.coefficients(part, t)
        noisy = part.perturb(x0[name], noises[name], t)
        x_t[name] = match_dims(jnp.asarray(k.c_in, noisy.dtype), noisy) * noisy
        c_noise[name] = jnp.asarray(k.c_noise, noisy.dtype)  # times may be wider
        target[name] = kind.target(part, x0[name], noises[name], t)
    output, loss = net(x_t, c_noise), 0.0
    _check_complete(process, "the network's output", output)
    for name, value in target.items():
        error = check_output("joint", output[name], value).astype(value.dtype) - value
        loss = loss + (weights or {}).get(name, 1.0) * jax.vmap(jnp.mean)(jnp.square(error))
    return loss


def _check_complete(process, what, given):
    if isinstance(given, dict) and (missing := process.parts.keys() - given):
        names = sorted(process.parts)
        raise ValueError(f"joint: expected {what} for each of {names}, got none for {sorted(missing)}")


def _of(name, value):
    return value[name] if isinstance(value, dict) else value
