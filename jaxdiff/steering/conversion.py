"""A denoiser of one process, used under another: the same clean estimate at equal log-SNR."""

import jax.numpy as jnp

from jaxdiff.core import match_dims


def change_process(denoise, process, other):
    """The denoiser of `process` for samples of `other`: time and scale are mapped, nothing is trained.

        D'(x, t) = D(a(s) / a'(t) x, s),   log-SNR of s under `process` = that of t under `other`

    A flow becomes a variance preserving model whose SDE has more variety between steps, without training
    (Kim et al. (2025), arXiv:2503.19385). Where a'(t) = 0 the noise is scaled instead.

    Args:
      denoise: `(x, t) -> clean estimate` for `process`.
      process, other: processes without a second endpoint.
    """

    def changed(x, t):
        least = process.log_snr(process.t_max)  # of pure noise under `other` the process may know nothing
        s = process.time_of_log_snr(jnp.maximum(other.log_snr(t), least))
        a, _, c = process.coefficients(s)
        a_other, _, c_other = other.coefficients(t)
        # by the larger of the two coefficients: neither end divides by 0
        scale = (a * a_other + c * c_other) / (a_other**2 + c_other**2)
        return denoise(match_dims(scale, x, "change_process") * x, s)

    return changed
