"""Discrete contrastive diffusion: the bound, and data told from negatives under the same condition."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import check_choice, fold_in
from jaxdiff.core.categorical import token_log_prob
from jaxdiff.losses.discrete.bounds import clean_tokens, draw_times, of_clean, over_tokens

KINDS = ("step", "sample")


def contrastive(
    net, key, x0, negatives, *, process, weight=0.1, kind="step", bounded=True, times=None, strata=None,
):  # fmt: skip
    """The bound plus a contrastive term: the condition that makes x0 likely has to make negatives unlikely.

        L_vb(x0) + weight L,    L = -log(exp(-l_0) / sum_j exp(-l_j))     InfoNCE, j = 0 is x0
                                L = l_0 - mean_(j > 0) l_j                as published

    at one random time, with L_vb the integrand of `elbo` and l_j an estimate of `-log p(x_j | condition)` in
    nats per token. "step", step-wise parallel diffusion, takes L_vb itself: every negative has a
    diffusion process of its own beside that of x0, at its time and with its noise, and enters the bound as
    `-L_vb(negative)`; m + 1 evaluations. "sample", sample-wise auxiliary diffusion, has the process
    of x0 alone: l_j is the auxiliary cross-entropy `-log p(x_j | x_t, condition)` of the tokens that x_t
    leaves open; one evaluation.

    The published form, which drops p(x_j) from the density ratios, is (m + 1) / m times the first order of
    InfoNCE in l and has no lower bound: it needs a small weight (theirs is 5e-5 per example, so times the
    number of tokens here). Zhu et al. (2023), arXiv:2206.07771; their code scores a step's
    negatives on the noisy tokens of x0 itself.

    Args:
      net: `net(tokens, c_noise) -> logits`, closed over the condition of `x0`.
      key: one key or `(batch,)` keys.
      x0: clean tokens, `(batch, ...)`.
      negatives: `(batch, m, ...)` clean tokens that do not go with the condition: of other examples
        (inter-negative), or `x0` with its pieces in another order (intra-negative).
      process: a discrete process.
      weight: of the contrastive term.
      kind: "step" or "sample".
      bounded: InfoNCE, or else the published difference.

    Returns:
      `(batch,)`.
    """
    check_choice("contrastive", "kind", kind, KINDS)
    shape = np.shape(x0)
    if np.ndim(negatives) != len(shape) + 1 or np.shape(negatives)[:1] + np.shape(negatives)[2:] != shape:
        raise ValueError(
            f"contrastive: expected negatives {(shape[0], 'm', *shape[1:])}, got {np.shape(negatives)}"
        )
    x0, negatives = (clean_tokens("contrastive", process, tokens) for tokens in (x0, negatives))
    keys, t = draw_times("contrastive", key, x0, process, times, strata)
    noise, others = process.noise(fold_in(keys, 1), x0), jnp.moveaxis(negatives, 1, 0)

    def diffused(tokens):
        x_t = process.perturb(tokens, noise, t)
        logits = process.check_logits(net(x_t, process.c_noise(t)), tokens, "contrastive")
        return x_t, logits, over_tokens(process.rate_divergence(logits, tokens, x_t, t))

    if kind == "step":
        bounds = jax.lax.map(lambda tokens: diffused(tokens)[2], jnp.concatenate([x0[None], others]))
        bound = mine = bounds[0]
        theirs = bounds[1:]
    else:
        x_t, logits, bound = diffused(x0)
        open_ = process.hidden(x_t)

        def auxiliary(tokens):
            return -over_tokens(jnp.where(open_, token_log_prob(logits, tokens), 0.0))

        mine, theirs = auxiliary(x0), jax.lax.map(auxiliary, others)
    gap = (mine[None] - theirs) / int(np.prod(shape[1:]))
    term = jax.nn.softplus(jax.nn.logsumexp(gap, axis=0)) if bounded else jnp.mean(gap, axis=0)
    every = jnp.concatenate([x0[:, None], negatives], axis=1)
    return of_clean(every, process, bound + weight * term)
