"""Straight-through bits, and flips as another way to say the clean bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.losses import discrete

TARGET = jd.testing.ising_chain(6, 0.4, 0.2)
BITS = jd.processes.bits()


@pytest.mark.slow
def test_sixteen_steps_of_flip_prediction_are_near_the_exact_joint():
    exact = TARGET.denoiser(BITS)

    def flips(x, t):
        p = jnp.exp(exact(x, t))
        kept = jnp.take_along_axis(p, x[..., None], -1)[..., 0]
        return jnp.log1p(-kept) - jnp.log(kept)

    denoise, n = discrete.from_flips(flips), 40000
    x = np.random.default_rng(0).integers(0, 2, (100, 6), np.int32)
    both = jax.jit(lambda x: (jax.nn.log_softmax(denoise(x, 0.4)), exact(x, 0.4)))
    np.testing.assert_allclose(*both(x), atol=1e-4)

    @jax.jit
    def walk(key):
        keys, grid = jax.random.split(key, n), jd.grids.uniform(BITS, 16)
        return jd.sample(keys, denoise, BITS, jd.solvers.discrete.ancestral(), grid, shape=(6,))

    assert TARGET.total_variation(walk(jax.random.key(1))) < 0.05
    with pytest.raises(ValueError, match="log-odds of the bits"):
        jax.eval_shape(lambda x: discrete.from_flips(exact)(x, 0.4), x)


def test_straight_through_bits_have_the_gradient_of_their_probabilities():
    logits, u = np.float32([-1.0, 0.5, 2.0]), np.float32([0.2, 0.7, 0.5])

    @jax.jit
    def all_of(logits):
        bits, pull = jax.vjp(lambda z: discrete.straight_through(u, z), logits)
        return bits, *pull(jnp.ones(3)), jax.grad(lambda z: jax.nn.sigmoid(z).sum())(logits)

    bits, ours, wanted = all_of(logits)
    np.testing.assert_array_equal(bits, [1.0, 0.0, 1.0])
    np.testing.assert_allclose(ours, wanted)
