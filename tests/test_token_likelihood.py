"""Bits per token and perplexity of discrete diffusion against enumeration."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import likelihood, processes, testing

TARGET = testing.ising_chain(6, 0.5, 0.2)


def test_the_bound_of_the_exact_denoiser_is_the_log_probability():
    """Of every sequence by itself, not only on average."""
    process = processes.absorbing(2)
    four, denoise = TARGET.states[[0, 5, 21, 63]].astype(np.int32), TARGET.denoiser(process)

    @jax.jit
    def values(key, x0):
        return likelihood.token_bound(key, denoise, process, x0, samples=32), TARGET.log_prob(x0[::256])

    bound, exact = (np.asarray(found) for found in values(jax.random.key(0), np.repeat(four, 256, axis=0)))
    bound = bound.reshape(4, 256)
    error = bound.std(1) / 16
    assert (np.abs(bound.mean(1) - exact) < 5 * error + 1e-3).all()
    assert (error < 0.2).all()


@pytest.mark.slow
def test_a_wrong_denoiser_has_a_lower_bound():
    process = processes.absorbing(2)

    @jax.jit
    def bound(draw, key):
        x0 = TARGET.sample(draw, 2000)
        return likelihood.token_bound(key, lambda x, t: jnp.zeros((*x.shape, 2)), process, x0, samples=64)

    uniform = bound(jax.random.key(0), jax.random.key(1))
    assert abs(float(likelihood.bits_per_token(uniform, 6).mean()) - 1) < 0.01
    assert abs(float(likelihood.perplexity(uniform, 6)) - 2) < 0.02
    assert TARGET.entropy() < -float(uniform.mean())
