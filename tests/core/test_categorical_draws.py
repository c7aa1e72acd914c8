"""Exact categorical draws where float32 Gumbel noise fails, and the memory of gathered log-probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff.core.categorical import categorical, fine_uniform, inverse_cdf, token_log_prob

SIZE, UNMASK = 1000, 1e-5
ZIPF = 1 / np.arange(1, SIZE + 1)
ZIPF = ZIPF / ZIPF.sum()


def entropy(p):
    p = p[p > 0]
    return -np.sum(p * np.log(p))


@pytest.mark.slow
def test_token_entropy_matches_float64_where_gumbel_noise_does_not():
    """A step that unmasks with probability 1e-5: 5.19 nats in truth, about 3.15 by float32 Gumbel noise."""
    truth = entropy(ZIPF)
    assert abs(truth - 5.19) < 0.01
    # float32 Gumbel noise: u is a multiple of 2^-24 (2^-23 in jax: 2.57 nats); the chance to beat the mask's
    mask = -np.log(-np.log((np.arange(2000) + 0.5) / 2000))
    needed = -np.log(UNMASK * ZIPF)[:, None] + mask[None]
    wins = np.floor(-np.expm1(-np.exp(-needed)) * 2.0**24).mean(1)
    assert abs(entropy(wins / wins.sum()) - 3.15) < 0.15
    n = 200_000
    keys = jax.random.split(jax.random.key(0), n // 100)
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(ZIPF, jnp.float32)), (n // 100, 100, SIZE))
    found = np.bincount(np.asarray(jax.jit(categorical)(keys, logits)).ravel(), minlength=SIZE) / n
    assert abs(entropy(found) + (SIZE - 1) / (2 * n) - truth) < 0.02  # Miller-Madow
    np.testing.assert_allclose(found, ZIPF, atol=5 * np.sqrt(0.25 / n))


def test_uniform_numbers_are_fine_near_zero():
    u = jax.jit(lambda key: fine_uniform(jax.random.split(key, 4), (1_000_000,)))(jax.random.key(0))
    u = np.asarray(u).ravel()
    small = u[u < 2.0**-16]
    assert abs(len(small) / len(u) / 2.0**-16 - 1) < 0.5
    assert len(np.unique(small)) == len(small)
    assert (small * 2.0**32 % 1 != 0).mean() > 0.5  # finer than 32 bits
    assert abs(u.mean() - 0.5) < 1e-3 and u.max() < 1


def test_rare_entries_have_their_probability_and_impossible_ones_none():
    p = np.float32([0.0, 0.6, 0.0, 0.399, 0.001, 0.0, 0.0])

    @jax.jit
    def draw(key, p):
        return categorical(jax.random.split(key, 200_000), jnp.broadcast_to(jnp.log(p), (200_000, 7)))

    found = np.bincount(np.asarray(draw(jax.random.key(1), p)), minlength=7)
    np.testing.assert_allclose(found / 200_000, p, atol=0.005)
    assert found[[0, 2, 5, 6]].sum() == 0 and 140 < found[4] < 270
    weights = jnp.asarray([[0.0, 1e-30, 0.0], [0.0, 0.3, 0.0]])
    assert (np.asarray(inverse_cdf(weights, jnp.asarray([0.9999999, 0.9999999]))) == 1).all()


def test_token_log_prob_is_the_gathered_log_softmax():
    rng = np.random.default_rng(0)
    logits, tokens = rng.normal(size=(3, 5, 11)).astype(np.float32), rng.integers(0, 11, (3, 5))

    def plain(logits, tokens):
        return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], -1)[..., 0]

    @functools.partial(jax.jit, static_argnums=0)
    def with_slope(log_prob, logits, tokens):
        _, back = jax.vjp(lambda logits: log_prob(logits, tokens), logits)
        return log_prob(logits, tokens), back(jnp.arange(15.0).reshape(3, 5))[0]

    ours, theirs = (with_slope(log_prob, logits, tokens) for log_prob in (token_log_prob, plain))
    np.testing.assert_allclose(ours[0], theirs[0], atol=1e-6)
    np.testing.assert_allclose(ours[1], theirs[1], atol=1e-5)
    none = token_log_prob(jnp.zeros((4, 300)), jnp.asarray([-1, 5, 127, -128], jnp.int8))
    np.testing.assert_allclose(none, [np.nan, -np.log(300), -np.log(300), np.nan], rtol=1e-5)


def test_large_vocabularies_cost_little_more_than_their_logits():
    """Value and gradient hold the gradient, of the logits' size, and next to nothing else."""
    shape = (8, 256, 32768)
    tokens, logits = jax.ShapeDtypeStruct(shape[:2], jnp.int32), jax.ShapeDtypeStruct(shape, jnp.float32)
    loss = jax.value_and_grad(lambda logits, tokens: -jnp.mean(token_log_prob(logits, tokens)))
    memory = jax.jit(loss).lower(logits, tokens).compile().memory_analysis()
    held = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert held < 1.2 * np.prod(shape) * 4
    # as users compile it: without these kernels, which the tests switch off, XLA holds a copy for any sum
    kernels = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    program = jax.jit(token_log_prob).lower(logits, tokens).compile(compiler_options=kernels)
    assert program.memory_analysis().temp_size_in_bytes < 0.2 * np.prod(shape) * 4


def test_a_vocabulary_cut_over_devices_stays_where_it_lies():
    """50,000 tokens and a length of 1,024: every device holds its share of the logits, no more."""
    mesh = jax.make_mesh((8,), ("vocabulary",), axis_types=(jax.sharding.AxisType.Auto,))
    cut = jax.NamedSharding(mesh, jax.P(None, None, "vocabulary"))
    whole = jax.NamedSharding(mesh, jax.P())
    shape = (2, 1024, 50000)
    tokens = jax.ShapeDtypeStruct(shape[:2], jnp.int32, sharding=whole)
    logits = jax.ShapeDtypeStruct(shape, jnp.float32, sharding=cut)
    loss = jax.value_and_grad(lambda logits, tokens: -jnp.mean(token_log_prob(logits, tokens)))
    memory = jax.jit(loss, out_shardings=(whole, cut)).lower(logits, tokens).compile().memory_analysis()
    held = memory.temp_size_in_bytes + memory.output_size_in_bytes
    assert held < 1.2 * np.prod(shape) * 4 / 8
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 2))
    keys = jax.ShapeDtypeStruct(keys.shape, keys.dtype, sharding=whole)
    memory = jax.jit(categorical).lower(keys, logits).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 2.2 * np.prod(shape) * 4 / 8  # and so do draws of them
