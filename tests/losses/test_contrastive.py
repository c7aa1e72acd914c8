"""Contrastive discrete diffusion: both kinds of negatives in closed form, and retrieval of conditions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import processes
from jaxdiff.losses.discrete import contrastive, elbo

PROCESS, N, LENGTH, M = processes.absorbing(4), 2000, 3, 2
LABEL = np.random.default_rng(0).integers(0, 4, N)
X0 = np.stack([LABEL] * LENGTH, 1).astype(np.int32)
NEGATIVES = np.stack([(X0 + i) % 4 for i in (1, 2)], 1)
SURE = np.log(np.float32([0.7, 0.1, 0.15, 0.05]))  # of the label, and of what is 1, 2 and 3 above it
LOGITS = np.stack([np.roll(SURE, label) for label in range(4)])[LABEL][:, None].repeat(LENGTH, 1)


def losses(kind, bounded, weight, logits=LOGITS, key=1):
    return contrastive(
        lambda x, t: jnp.asarray(logits), jax.random.key(key), X0, NEGATIVES, process=PROCESS,
        weight=weight, kind=kind, bounded=bounded,
    )  # fmt: skip


def test_negatives_enter_as_published():
    """The same logits for all: l_j is the weight of the masks and minus the negative's log-probability."""

    def all_of(key):
        bound = elbo(lambda x, t: jnp.asarray(LOGITS), key, X0, process=PROCESS)
        kinds = [(kind, bounded) for kind in ("step", "sample") for bounded in (True, False)]
        return bound, {(kind, bounded): losses(kind, bounded, 1.0) - bound for kind, bounded in kinds}

    bound, terms = jax.jit(all_of)(jax.random.key(1))
    scale = np.asarray(bound) / -float(SURE[0]) / LENGTH  # the masks' share, times their weight if "step"
    step = scale[:, None] * (SURE[1:3] - SURE[0])[None]  # l_0 - l_j
    np.testing.assert_allclose(terms["step", False], step.mean(1), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(terms["step", True], np.log1p(np.exp(step).sum(1)), rtol=1e-3, atol=1e-3)
    masks = np.asarray(terms["sample", False]) / float((SURE[1:3] - SURE[0]).mean()) * LENGTH
    np.testing.assert_allclose(masks, np.round(masks), atol=1e-3)  # a cross-entropy: the masks are counted
    np.testing.assert_allclose(np.bincount(np.round(masks).astype(int)) / N, 0.25, atol=0.04)
    sample = masks[:, None] / LENGTH * (SURE[1:3] - SURE[0])[None]
    np.testing.assert_allclose(terms["sample", True], np.log1p(np.exp(sample).sum(1)), atol=1e-3)


@pytest.mark.parametrize("kind", [pytest.param("step", marks=pytest.mark.slow), "sample"])
def test_the_published_form_is_the_first_order_of_infonce(kind):
    """At a blind network, whose l are all alike, InfoNCE is log(m + 1) and its slope M / (M + 1) times it."""

    def slope(scale, bounded):
        return (
            losses(kind, bounded, 1.0, scale * LOGITS).mean()
            - losses(kind, bounded, 0.0, scale * LOGITS).mean()
        )

    for_both = jax.jit(lambda scale: [jax.value_and_grad(slope)(scale, bounded) for bounded in (True, False)])
    (value, infonce), (zero, published) = for_both(0.0)
    np.testing.assert_allclose([value, zero], [np.log(M + 1), 0.0], atol=2e-3)
    np.testing.assert_allclose(infonce, M / (M + 1) * published, rtol=1e-3)
    assert published < -0.1


def test_negatives_of_another_shape_are_refused():
    with pytest.raises(ValueError, match="negatives"):
        contrastive(None, jax.random.key(0), X0, X0, process=PROCESS)
    with pytest.raises(ValueError, match="did you mean"):
        contrastive(None, jax.random.key(0), X0, NEGATIVES, process=PROCESS, kind="samples")
