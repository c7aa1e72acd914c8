"""Masked diffusion without time: any-order autoregression, and marginals in one pass."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import batch_keys, fold_in
from jaxdiff.core.categorical import fine_uniform, token_log_prob
from jaxdiff.losses.discrete.bounds import clean_tokens, of_clean, over_tokens


def any_order(net, key, x0, *, process, strata=None):
    """The absorbing bound with time integrated out, nats: the mean over orders of `-log p(x0)`.

        (L / n) sum_masked -log p(x0_i | unmasked),    n uniform in 1 ... L, any n tokens masked

    For a network without time it equals `elbo` in expectation for every schedule, at less variance. Ou et
    al. (2024), arXiv:2406.03736; Hoogeboom et al. (2022), arXiv:2110.02037.

    Args:
      net: `net(tokens, None) -> logits (batch, ..., size)`.
      key: one key or `(batch,)` keys.
      x0: clean tokens, `(batch, ...)`.
      process: the absorbing process, for its tokens.
      strata: as of `denoising`; n is stratified over the batch.

    Returns:
      `(batch,)` nats.
    """
    x0 = clean_tokens("any_order", process, x0)
    rank, n = _order("any_order", key, x0, process, strata)
    masked = rank < n
    logits = net(jnp.where(masked, process.mask, x0), None)
    log_p = token_log_prob(process.check_logits(logits, x0, "any_order"), x0)
    return of_clean(x0, process, -_size(x0) / n.reshape(-1) * over_tokens(jnp.where(masked, log_p, 0.0)))


def normalised(marginal, process):
    """`x -> f(x) - f(everything masked)`: log-marginals that give the empty set probability one."""

    def log_marginal(x):
        return marginal(x) - marginal(jnp.full_like(x, process.mask))

    return log_marginal


def marginalization(marginal, conditional, key, x0, *, process):
    """Marginal self-consistency at a random set S and a token outside of it.

        (log p(x_S) + log p(x_i | x_S) - log p(x_(S and i)))^2

    Where it is 0, `marginal` gives the probability of any subset of tokens in one pass. For data, train
    `conditional` by `any_order` and `marginal` by this with the conditional's gradient stopped; for an
    unnormalised target, see `energy_matching`. Liu et al. (2024), arXiv:2310.12920.

    Args:
      marginal: `marginal(tokens) -> (batch,)` log-probabilities of what is not masked; see `normalised`.
      conditional: `conditional(tokens, None) -> logits (batch, ..., size)`.
      key: one key or `(batch,)` keys.
      x0: clean tokens, `(batch, ...)`, of the data or of any law that covers it.
      process: the absorbing process, for its tokens.

    Returns:
      `(batch,)` squared errors, nats^2.
    """
    x0 = clean_tokens("marginalization", process, x0)
    rank, n = _order("marginalization", key, x0, process, None)
    before, after = (jnp.where(rank < n - i, process.mask, x0) for i in (0, 1))
    logits = process.check_logits(conditional(before, None), x0, "marginalization")
    step = over_tokens(jnp.where(rank == n - 1, token_log_prob(logits, x0), 0.0))
    return of_clean(x0, process, jnp.square(marginal(before) + step - marginal(after)))


def energy_matching(log_prob, x, log_target):
    """A loss whose mean has the gradient of `KL(p | target / Z)`, for samples `x` of the model itself.

        (log p(x) - log target(x) - mean) sg * log p(x)

    Liu et al. (2024), arXiv:2310.12920, with `marginalization` beside it.

    Args:
      log_prob: `log_prob(tokens) -> (batch,)` of complete sequences.
      x: `(batch, ...)` samples of the model.
      log_target: `log_target(tokens) -> (batch,)`, unnormalised.

    Returns:
      `(batch,)`; only the gradient means anything. The baseline is the mean over the batch that is passed.
    """
    log_p = log_prob(x)
    excess = jax.lax.stop_gradient(log_p - log_target(x))
    return (excess - jnp.mean(excess)) * log_p * len(excess) / max(len(excess) - 1, 1)


def _order(where, key, x0, process, strata):
    """Each token's place in a random order, the shape of `x0`, and how many come first, `(batch, 1, ...)`."""
    if getattr(process, "mask_share", 0) != 1:
        raise ValueError(
            f"{where}: expected the absorbing process, of which every altered token is masked, got {process}"
        )
    batch, size = np.shape(x0)[0], _size(x0)
    keys = batch_keys(key, batch, where)
    index, count = (jnp.arange(batch), batch) if strata is None else strata
    u = (index + fine_uniform(fold_in(keys, 0))) / count
    n = jnp.clip(1 + jnp.floor(u * size), 1, size).reshape(-1, *(1,) * (jnp.ndim(x0) - 1))
    scores = fine_uniform(fold_in(keys, 1), (size,))
    rank = jnp.argsort(jnp.argsort(scores, axis=1), axis=1).reshape(jnp.shape(x0))
    return rank, n


def _size(x0):
    return int(np.prod(np.shape(x0)[1:]))
