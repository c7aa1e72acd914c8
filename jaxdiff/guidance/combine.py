"""Several denoisers as one: chained and composed conditions, weaker models, experts, other spaces."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxdiff.core import match_dims
from jaxdiff.guidance.classifier_free import along, classifier_free, strength_at


def chained(denoisers, scales):
    """Conditions that are added one after the other, each with a scale of its own.

        D = D_0 + sum_i scale_i (D_i - D_(i-1)),    D_i given the first i conditions

    exact for `p(x) prod p(c_i | x, c_1, ..., c_(i-1))^scale_i`. Equal scales need the two ends alone: the
    fast variant. Avrahami et al. (2023), arXiv:2211.14305.

    Args:
      denoisers: `[D_0, ..., D_n]`.
      scales: n scales as of `classifier_free`.
    """
    if len(denoisers) != len(scales) + 1 or not scales:
        raise ValueError(
            f"chained: expected one denoiser more than scales, got {len(denoisers)} and {len(scales)}"
        )
    known = all(isinstance(scale, (int, float)) for scale in scales)
    if known and len(set(scales)) == 1:
        return classifier_free(denoisers[-1], denoisers[0], scales[0])

    def denoise(x, t):
        clean = [D(x, t) for D in denoisers]
        steps = zip(scales, clean[1:], clean[:-1], strict=True)
        return along(clean[0], [(strength_at(s, one, t, "chained"), one, other) for s, one, other in steps])

    return denoise


def composed(uncond, conds, scales):
    """Conditions side by side: `D = D_u + sum_i scale_i (D_i - D_u)`; a negative scale leads away.

    Exact for independent conditions, `p(x) prod p(c_i | x)^scale_i`. Liu et al. (2022), arXiv:2206.01714.

    Args:
      uncond: denoiser without condition.
      conds: denoisers, one per condition.
      scales: as many scales as of `classifier_free`.
    """
    if len(conds) != len(scales):
        raise ValueError(
            f"composed: expected as many scales as conditions, got {len(scales)} and {len(conds)}"
        )

    def denoise(x, t):
        base = uncond(x, t)
        pulls = zip(scales, conds, strict=True)
        return along(base, [(strength_at(s, base, t, "composed"), D(x, t), base) for s, D in pulls])

    return denoise


def cluster_conditioned(target, auxiliaries, uncond, scale, repel):
    """Towards one cluster and away from its neighbours: one subject kept over many samples.

        D = D_u + scale (D_target - D_u) - repel mean_k (D_k - D_u)

    where the conditions differ by a learned offset: the target's and those of other subjects of the same
    prompt. Wang et al. (2024), arXiv:2404.10267.

    Args:
      target: denoiser of the target cluster.
      auxiliaries: denoisers of other clusters.
      uncond: denoiser without condition.
      scale, repel: numbers.
    """
    return composed(uncond, [target, *auxiliaries], [scale, *[-repel / len(auxiliaries)] * len(auxiliaries)])


def autoguidance(denoise, weak, scale, interval=None):
    """Away from a weaker version of the model itself: `D = D_weak + scale (D - D_weak)`.

    Smaller, or trained for less; under the same condition. Karras et al. (2024), arXiv:2406.02507.
    """
    return classifier_free(denoise, weak, scale, interval)


def experts(denoisers, edges):
    """A denoiser for each range of noise; only the one that is asked is evaluated.

    For models trained in parts of time (Balaji et al. (2022), arXiv:2211.01324), and for guidance experts:
    classifiers `(x, t) -> log p(y | x_t)`, one for each range, make one `log_prob` for `classifier` (Go et
    al. (2023), arXiv:2212.05973).

    Args:
      denoisers: `[D_1, ..., D_n]` from data to noise.
      edges: n - 1 increasing times between them: `D_1` below the first, `D_n` from the last on.
    """
    if len(denoisers) != len(edges) + 1 or np.any(np.diff(edges) <= 0):
        raise ValueError(
            f"experts: expected n - 1 increasing edges for n denoisers, got {list(edges)} and "
            f"{len(denoisers)}"
        )

    def denoise(x, t):
        if jnp.ndim(t) == 0:
            return jax.lax.switch(jnp.searchsorted(jnp.asarray(edges), t, side="right"), denoisers, x, t)
        which = jnp.searchsorted(jnp.asarray(edges), t, side="right")
        found = [D(x, t) for D in denoisers]  # times per example: all are evaluated
        return sum(jnp.where(match_dims(which == i, one, "experts"), one, 0) for i, one in enumerate(found))

    return denoise


def mixed(denoisers, weights):
    """A weighted mean of clean estimates, for models of one space: `sum_i w_i D_i / sum_i w_i`.

    Args:
      denoisers: denoisers of any conditions, sizes or architectures.
      weights: as many scales as of `classifier_free`.
    """
    if len(denoisers) != len(weights) or not denoisers:
        raise ValueError(
            f"mixed: expected as many weights as denoisers, got {len(weights)} and {len(denoisers)}"
        )

    def denoise(x, t):
        found = [D(x, t) for D in denoisers]
        w = [strength_at(weight, found[0], t, "mixed") for weight in weights]
        return sum(k * one for k, one in zip(w, found, strict=True)) / sum(w)

    return denoise


def across(denoise, other, weight, to_other, from_other, process, other_process):
    """Two models of different latent spaces, combined through their clean estimates.

    The other model sees what this one's estimate and noise would be in its own space at equal log-SNR:
    `x' = a' E(D) + c' noise`, with the noise `(x - a D) / c` carried over by the same map; its estimate
    comes back by the inverse map. Lu et al. (2023), arXiv:2312.16486.

    Args:
      denoise: denoiser of this space.
      other: denoiser of the other space.
      weight: of the other's estimate, in [0, 1].
      to_other: clean `(batch, ...)` of this space -> clean of the other.
      from_other: and back.
      process, other_process: forward processes of the two spaces.
    """

    def combined(x, t):
        clean = denoise(x, t)
        a, _, c = process.coefficients_for(x, t, "across")
        noise = to_other((x - a * clean) / c) - to_other(jnp.zeros_like(x))
        least = other_process.log_snr(other_process.t_max)  # pure noise may have none of its own there
        t_other = other_process.time_of_log_snr(jnp.maximum(process.log_snr(t), least))
        there = to_other(clean)
        a_other, _, c_other = other_process.coefficients_for(there, t_other, "across")
        estimate = from_other(other(a_other * there + c_other * noise, t_other))
        return (1 - weight) * clean + weight * estimate

    return combined
