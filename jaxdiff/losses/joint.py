"""The denoising loss of a product process: one network call, a time and an error for every part."""

import jax
import jax.numpy as jnp

from jaxdiff import times as times_
from jaxdiff.core import batch_keys, check_made, check_output, floating, fold_in, match_dims
from jaxdiff.losses.discrete.bounds import of_clean, over_tokens


def joint(net, key, x0, *, process, parameterization, weights=None, times=None, shared=0.0):
    """Errors of a network that denoises all parts of a `Product`, at a time of each part's own.

        loss = sum over parts of weight mean |F_part(c_in x_t, c_noise) - target_part|^2

    and of weight times the integrand of `jd.losses.discrete.elbo`, nats of a whole example, for tokens.
    With independent times one network learns the joint, every conditional and every marginal (Li et al.
    (2024), arXiv:2410.11439; Bao et al. (2023), arXiv:2303.06555).

    Args:
      net: `net(x, c_noise) -> F`, dicts with the product's names; logits `(batch, ..., size)` for tokens.
      key: one key or `(batch,)` keys.
      x0: dict of clean data, `(batch, ...)`, floating; integers where they are tokens.
      process: `jd.processes.Product`.
      parameterization: one for all parts that are no tokens, or a dict; None if there are none.
      weights: dict of numbers on the parts' errors, 1 by default.
      times: distribution of t, one for all parts or a dict; uniform by default. Not stratified: strata of
        the batch would tie the parts' times to each other.
      shared: share of examples, in [0, 1], whose parts have the same quantile of time, for sampling all
        parts together.

    Returns:
      `(batch,)` losses.
    """
    tokens = process.discrete
    _check_complete(process.parts, "x0", process.named("joint", x0))
    x0 = {
        name: part.check_clean(x0[name], "joint") if name in tokens else floating("joint", x0[name])
        for name, part in process.parts.items()
    }
    process.named("joint", weights or {})
    numbers = process.parts.keys() - tokens
    _check_complete(numbers, "parameterization", parameterization)
    for name in sorted(numbers):
        kind = _of(name, parameterization)
        check_made("joint", "parameterization", kind, "target", "jd.parameterizations.v()")
    _check_complete(process.parts, "times", times)
    batch = jax.tree.leaves(x0)[0].shape[0]
    keys = batch_keys(key, batch, "joint")
    together = jax.vmap(lambda k: jax.random.bernoulli(k, shared))(fold_in(keys, 0))
    choose = jax.vmap(lambda k, same: jnp.where(same, *map(jax.random.key_data, k)))
    x_t, c_noise, time, target = {}, {}, {}, {}
    noises = process.noise(fold_in(keys, 1), x0)
    for number, (name, part) in enumerate(process.parts.items()):
        law = _of(name, times)
        which = choose((fold_in(keys, 2), fold_in(keys, 3 + number)), together)
        which = jax.random.wrap_key_data(which, impl=jax.random.key_impl(keys))
        t = time[name] = (law or times_.uniform()).replace(stratified=False).draw(which, part)
        noisy = part.perturb(x0[name], noises[name], t)
        if name in tokens:
            x_t[name], c_noise[name] = noisy, part.c_noise(t)
            continue
        kind = _of(name, parameterization)
        k = kind.coefficients(part, t)
        x_t[name] = match_dims(jnp.asarray(k.c_in, noisy.dtype), noisy) * noisy
        c_noise[name] = jnp.asarray(k.c_noise, noisy.dtype)  # times may be wider
        target[name] = kind.target(part, x0[name], noises[name], t)
    output, loss = net(x_t, c_noise), 0.0
    _check_complete(process.parts, "the network's output", output)
    for name, part in process.parts.items():
        if name in tokens:
            logits = part.check_logits(output[name], x0[name], "joint")
            nats = over_tokens(part.rate_divergence(logits, x0[name], x_t[name], time[name]))
            error = of_clean(x0[name], part, nats)
        else:
            value = target[name]
            error = check_output("joint", output[name], value).astype(value.dtype) - value
            error = jax.vmap(jnp.mean)(jnp.square(error))
        loss = loss + (weights or {}).get(name, 1.0) * error
    return loss


def _check_complete(names, what, given):
    if isinstance(given, dict) and (missing := sorted(set(names) - set(given))):
        raise ValueError(f"joint: expected {what} for each of {sorted(names)}, got none for {missing}")


def _of(name, value):
    return value[name] if isinstance(value, dict) else value
