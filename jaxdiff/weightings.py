"""Weights of the denoising loss as functions of the noise level.

A weighting is `weight(process, t)`, the weight on the squared error of the clean estimate,
`|D(x_t, t) - x0|^2`, whatever the network predicts. A parameterization whose output is scaled by
`c_out` sees it as `c_out^2 weight`; no weighting at all is the plain squared error of the output.
"""

import jax
import jax.numpy as jnp

from jaxdiff.core import check_positive, safe_divide

LIMIT = 25.0  # log-SNR beyond which float32 has no signal or no noise left


def edm(sigma_data=0.5):
    """`1 / sigma^2 + 1 / sigma_data^2`: unit weight on EDM's output (arXiv:2206.00364, table 1)."""
    check_positive("edm", sigma_data=sigma_data)
    return lambda process, t: _snr(process, t) + 1 / sigma_data**2


def min_snr(gamma=5.0):
    """`min(SNR, gamma)` (Hang et al. (2023), arXiv:2303.09556)."""
    check_positive("min_snr", gamma=gamma)
    return lambda process, t: jnp.minimum(_snr(process, t), gamma)


def p2(k=1.0, gamma=1.0):
    """`SNR / (k + SNR)^gamma` (Choi et al. (2022), arXiv:2204.00227, eq. 8)."""
    check_positive("p2", k=k)
    return lambda process, t: _snr(process, t) / (k + _snr(process, t)) ** gamma


def sigmoid(bias=2.0):
    """The likelihood weight times `sigmoid(bias - log SNR)`, SNR = (a / c)^2, for uniform times.

    Kingma and Gao (2023), arXiv:2303.00848, appendix D.
    """
    return lambda process, t: likelihood()(process, t) * jax.nn.sigmoid(
        bias - 2 * _log_snr(process, t)
    )


def likelihood(times=None):
    """`-(dSNR / dt) / (2 p(t))`, p the density of the training times: the loss is the variational bound.

    Its mean is then the bound's diffusion term in nats per dimension (Kingma et al. (2021),
    arXiv:2107.00630, eq. 15), whatever the times; its variance is not: `jd.times.log_snr()` are those of
    importance sampling (Song et al. (2021), arXiv:2101.09258).

    Args:
      times: the distribution that the loss draws its times from, with a density; uniform if None.
    """

    def weight(process, t):
        t = jnp.asarray(t)
        slope = jax.jvp(process.log_snr, (t,), (jnp.ones_like(t),))[1]
        falls = -slope * _snr(process, t)
        if times is None:
            return falls * (process.t_max - process.t_min)
        inside = (t > process.t_min) & (t < process.t_max)  # times beyond were moved to the ends: no density
        density = times.density(process, jnp.where(inside, t, 0.5 * (process.t_min + process.t_max)))
        return jnp.where(inside, safe_divide(falls, density), 0.0)

    return weight


def inverse_deviation(most=5.0):
    """`min(1 / c, most)`, for networks that predict `x_t - x0` of a Brownian bridge.

    Lyu et al. (2024), arXiv:2405.05953, with `c` the bridge's standard deviation.
    """
    check_positive("inverse_deviation", most=most)
    return lambda process, t: 1 / jnp.maximum(process.coefficients(t)[2], 1 / most)


def _log_snr(process, t):
    return jnp.clip(process.log_snr(t), -LIMIT, LIMIT)


def _snr(process, t):
    return jnp.exp(2 * _log_snr(process, t))
