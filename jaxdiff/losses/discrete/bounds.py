"""Upper bounds on `-log p(x0)` of discrete diffusion, in continuous time and in T steps.

Everywhere `net(tokens, c_noise) -> logits (batch, ..., size)` of the clean tokens, `key` is one key or
`(batch,)` keys, `x0` are clean tokens `(batch, ...)`, `times` is `jd.times.stratified()` by default (any
other but `uniform()` gives no bound), and `strata` is as of `denoising`. Tokens that are not clean are
refused; under `jit`, where they cannot be looked at, their example's loss is NaN, which `fit` reports.
"""

import jax.numpy as jnp
import numpy as np

from jaxdiff import times as times_
from jaxdiff.core import batch_keys, check_count, check_made, fold_in
from jaxdiff.core.categorical import token_log_prob
from jaxdiff.processes.discrete import check_discrete


def elbo(net, key, x0, *, process, times=None, strata=None):
    """The continuous-time bound at one random time per example, nats.

        -log p(x0) <= E_t sum_i sum_y rate(y, x_t) (s_y - r_y + r_y log(r_y / s_y))

    summed over tokens, s and r the concrete scores of the logits and of x0. For the absorbing process it is
    the weighted cross-entropy `E_t -alpha' / (1 - alpha) sum_masked -log p(x0 | x_t)` (Shi et al. (2024),
    arXiv:2406.04329), which holds no array beyond the logits and their gradient.

    Returns:
      `(batch,)` nats per example, in float32 or wider.

    Raises:
      ValueError: for tokens that are not clean, or a network that returns another shape.
    """
    x0 = clean_tokens("elbo", process, x0)
    keys, t = draw_times("elbo", key, x0, process, times, strata)
    x_t, logits = predict("elbo", net, keys, x0, t, process)
    return of_clean(x0, process, over_tokens(process.rate_divergence(logits, x0, x_t, t)))


def finite_elbo(net, key, x0, *, process, steps, times=None, strata=None):
    """The bound of a process of T steps at one random step per example, nats.

        -log p(x0) <= T E_i KL(q(x_s | x_t, x0) | p(x_s | x_t)),    t = i / T, s = (i - 1) / T

    with `p(x_s | x_t) = sum_k q(x_s | x_t, k) p(k | x_t)`; the last step, s = 0, is `-log p(x0 | x_t)`.
    Austin et al. (2021), arXiv:2107.03006.

    Args:
      steps: T, at least 1.
    """
    return hybrid(net, key, x0, process=process, steps=steps, auxiliary=0.0, times=times, strata=strata)


def hybrid(net, key, x0, *, process, steps, auxiliary=5e-4, times=None, strata=None):
    """`finite_elbo` plus `auxiliary` times T times the cross-entropy of the clean tokens.

    Gu et al. (2022), arXiv:2111.14822.

    Args:
      steps: T, at least 1.
      auxiliary: weight of the cross-entropy, at least 0.
    """
    check_count("hybrid", steps=steps)
    if isinstance(auxiliary, (int, float)) and auxiliary < 0:
        raise ValueError(f"hybrid: expected auxiliary to be at least 0, got {auxiliary}")
    x0 = clean_tokens("hybrid", process, x0)
    keys, t = draw_times("hybrid", key, x0, process, times, strata)
    i = jnp.clip(jnp.ceil(t * steps), 1, steps)
    t, s = i / steps, (i - 1) / steps
    x_t, logits = predict("hybrid", net, keys, x0, t, process)
    loss = of_clean(x0, process, over_tokens(process.divergence(logits, x0, x_t, t, s)))
    if isinstance(auxiliary, (int, float)) and auxiliary == 0:
        return steps * loss
    return steps * (loss - auxiliary * over_tokens(token_log_prob(logits, x0)))


def score_entropy(net, key, x0, *, process, times=None, strata=None):
    """The same bound for a network of concrete scores: denoising score entropy, nats.

    Lou et al. (2024), arXiv:2310.16834.

    Args:
      net: `net(tokens, c_noise) -> log p_t(.. y ..) / p_t(x_t)` for every noisy y, `(batch, ..., states)`;
        what it says of y = x_t is not looked at.
    """
    x0 = clean_tokens("score_entropy", process, x0)
    keys, t = draw_times("score_entropy", key, x0, process, times, strata)
    x_t = process.perturb(x0, process.noise(fold_in(keys, 1), x0), t)
    log_ratios = net(x_t, process.c_noise(t))
    if np.shape(log_ratios) != (*np.shape(x0), process.states):
        raise ValueError(
            f"score_entropy: expected net to return log-ratios {(*np.shape(x0), process.states)}, one per "
            f"noisy value, got {np.shape(log_ratios)}"
        )
    return of_clean(x0, process, over_tokens(process.entropy_of_ratios(log_ratios, x0, x_t, t)))


def clean_tokens(where, process, x0):
    """`x0`, refused unless it is clean tokens of a discrete process."""
    check_discrete(where, process)
    return process.check_clean(x0, where)


def draw_times(where, key, x0, process, times, strata):
    """`(batch,)` keys and times for clean tokens."""
    keys, times = batch_keys(key, np.shape(x0)[0], where), times or times_.stratified()
    check_made(where, "times", times, "draw", "jd.times.uniform()")
    return keys, times.draw(fold_in(keys, 0), process, strata)


def predict(where, net, keys, x0, t, process):
    """Noisy tokens and the logits of the clean ones."""
    x_t = process.perturb(x0, process.noise(fold_in(keys, 1), x0), t)
    return x_t, process.check_logits(net(x_t, process.c_noise(t)), x0, where)


def over_tokens(values):
    """Sums over everything but the batch."""
    return jnp.sum(values, axis=tuple(range(1, values.ndim)))


def of_clean(x0, process, losses):
    """`(batch,)` losses, NaN for examples with tokens outside [0, size)."""
    clean = jnp.all((x0 >= 0) & (x0 < process.size), axis=tuple(range(1, x0.ndim)))
    return jnp.where(clean, losses, jnp.nan)
