"""Residual energies over a factorised denoiser: `p(x0 | x_t) ~ mu(x0 | x_t) exp(-E(x0, x_t, t))`.

An energy is `energy(x0, x_t, t, logits) -> (batch,)`, `logits` those of mu. Xu et al. (2025),
arXiv:2410.21357.
"""

import jax
import jax.numpy as jnp

from jaxdiff.core import fold_in
from jaxdiff.core.categorical import categorical, token_log_prob
from jaxdiff.losses.discrete.bounds import clean_tokens, draw_times, of_clean, over_tokens, predict


def autoregressive_energy(log_prob, process):
    """The energy that turns the denoiser into Bayes' rule under a model of clean sequences.

        E(x0) = log mu(x0 | x_t) - log p(x0) - log q(x_t | x0)

    up to a constant; of masked diffusion the last is one, and left out. Xu et al. (2025), arXiv:2410.21357.

    Args:
      log_prob: `log_prob(tokens) -> (batch,)`.
      process: the discrete process.
    """

    def energy(x0, x_t, t, logits):
        mu = jnp.where(process.hidden(x_t), token_log_prob(logits, x0), 0.0)
        if getattr(process, "mask_share", 0) < 1:
            seen = jnp.take_along_axis(process.likelihood(x_t, t), x0[..., None], axis=-1)[..., 0]
            mu = mu - jnp.log(seen)
        return over_tokens(mu) - log_prob(x0)

    return energy


def residual_nce(energy, net, key, x0, *, process, times=None, strata=None):
    """Noise-contrastive estimation of the energy: data against draws of the denoiser.

        -log sigmoid(-E(x0)) - log sigmoid(E(x)),    x ~ mu(. | x_t)

    whose minimum is `E = log mu(x0 | x_t) - log p(x0 | x_t)`. The denoiser gets no gradient. Xu et al.
    (2025), arXiv:2410.21357.

    Args:
      energy: the network, `energy(x0, x_t, t, logits) -> (batch,)`.
      net: the denoiser, `net(tokens, c_noise) -> logits`.
      key, x0, process, times, strata: as of `elbo`.

    Returns:
      `(batch,)` nats.
    """
    x0 = clean_tokens("residual_nce", process, x0)
    keys, t = draw_times("residual_nce", key, x0, process, times, strata)
    x_t, logits = jax.lax.stop_gradient(predict("residual_nce", net, keys, x0, t, process))
    drawn = process.consistent(categorical(fold_in(keys, 2), logits), x_t)
    real, fake = (energy(x, x_t, t, logits) for x in (x0, drawn))
    return of_clean(x0, process, jax.nn.softplus(real) + jax.nn.softplus(-fake))
