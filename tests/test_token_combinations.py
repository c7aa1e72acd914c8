"""Pieces for tokens that meet: right together, or refused with the name of what does not fit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import grids, guidance, losses
from jaxdiff import processes as P
from jaxdiff import solvers as S
from jaxdiff import steering as ST
from jaxdiff import testing as T
from jaxdiff.core import fold_in
from jaxdiff.core.categorical import FactoredLogits, categorical
from jaxdiff.solvers import discrete as D

ABSORBING, UNIFORM, BOTH = P.absorbing(3), P.uniform(3), P.mask_and_replace(3)
GRID = grids.uniform(ABSORBING, 4)
KEY, KEYS = jax.random.key(0), jax.random.split(jax.random.key(0), 4)
X0 = np.array([[0, 2, 1, 2]] * 4)
TOKENS, KNOWN = np.zeros((1, 2), int), np.array([[True, False]])


def flat(x, t):
    return jnp.zeros((*x.shape, 3))


def walk(process, solver, grid=GRID, denoise=flat, keys=KEYS, shape=(2,), **settings):
    start = {} if "x" in settings else {"shape": shape}
    return jd.sample(keys, denoise, process, solver, grid, **start, **settings)


def last(x):
    return 1.0 * x[:, -1]


def elbo(net=flat, process=ABSORBING, **settings):
    return losses.discrete.elbo(net, KEY, X0, process=process, **settings)


REFUSED = {
    "a prompt of tokens that are replaced": (
        lambda: D.prompt(BOTH, [0, 1], 4), "prompt: expected the absorbing process, .* use clamped"
    ),
    "a scaffold of tokens that are replaced": (
        lambda: D.scaffold(BOTH, [[0], 2], 1), "scaffold: expected the absorbing process"
    ),
    "particles held from outside": (
        lambda: D.clamped(ST.particles(D.ancestral(), last, 2), TOKENS, KNOWN), "Steered; particles and"
    ),
    "particles around energies": (
        lambda: walk(ABSORBING, ST.particles(D.importance(lambda *a: jnp.zeros(len(a[0]))), last, 2)),
        "particles: expected a solver that draws .* got Importance, which chooses among draws",
    ),
    "candidates at times of their own": (
        lambda: walk(ABSORBING, ST.value_decoding(D.first_hitting(2), last, 2), None),
        "value_decoding: expected a solver that draws .* got FirstHitting, which asks at times of its own",
    ),
    "the same, held": (
        lambda: walk(ABSORBING, ST.particles(D.clamped(D.first_hitting(2), TOKENS, KNOWN), last, 2), None),
        "particles: expected a solver that draws .* which asks at times of its own",
    ),
    "guidance that remembers": (
        lambda: walk(ABSORBING, guidance.momentum(D.ancestral(), 2.0)), "expected a linear solver, got one of"
    ),
    "adaptive steps": (
        lambda: walk(ABSORBING, S.adaptive()), "adaptive: expected a process x_t = a x0 .* got Categorical"
    ),
    "levels of noise": (lambda: grids.karras(ABSORBING, 4), "signal-to-noise ratio, got Categorical"),
    "times by level": (lambda: elbo(times=jd.times.log_snr()), "signal-to-noise ratio, got Categorical"),
    "times by normal level": (lambda: elbo(times=jd.times.log_normal()), "log_normal: .* got Categorical"),
    "times not made": (lambda: elbo(times=jd.times.uniform), r"elbo: expected times .* jd.times.uniform\(\)"),
    "the loss of another kind of process": (
        lambda: elbo(process=P.VP()), "elbo: expected a discrete process, got VP"
    ),
    "the loss of numbers": (
        lambda: losses.denoising(flat, KEY, X0, process=ABSORBING, parameterization=jd.parameterizations.v()),
        "got int64 of shape .* tokens have jd.losses.discrete",
    ),
    "the denoiser of numbers": (
        lambda: jd.denoiser(flat, ABSORBING, jd.parameterizations.data())(X0, 0.5),
        "jd.solvers.discrete.denoiser for tokens",
    ),
    "noise that is a key": (
        lambda: ABSORBING.perturb(X0, KEY, 0.5),
        r"perturb: expected noise of process.noise\(keys, x0\), got PRNGKeyArray",
    ),
    "keys of other examples": (lambda: UNIFORM.noise(KEYS[:2], X0), "one key or .4,. keys, got shape .2,"),
    "shares below 0": (
        lambda: P.marginal(np.array([1.5, -0.5])), r"expected replacement to be \(2,\) .* got \[ 1.5 -0.5\]"
    ),
    "weights below 0": (lambda: T.joint([2.0, -1.0]), r"joint: .* got shape \(2,\) with -1 to 2"),
    "chains without tokens": (
        lambda: T.markov_chain([0.5, 0.5], np.full((2, 2), 0.5), 0), "markov_chain: expected length .* got 0"
    ),
    "rings without spins": (lambda: T.ising_chain(0, 0.5), "ising_chain: expected length .* got 0"),
}  # fmt: skip


@pytest.mark.parametrize(("call", "match"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_one_key_makes_the_noise_of_a_batch():
    @jax.jit
    def draw(key):
        each, like = (key, fold_in(key, jnp.arange(3))), jnp.zeros((3, 20))
        parts = UNIFORM, P.discretised_gaussian(3), P.PoissonFlow()
        return [[process.noise(keys, like) for keys in each] for process in parts]

    for one, own in draw(KEY):
        jax.tree.map(np.testing.assert_array_equal, one, own)
        noise = jax.tree.leaves(one)[0]
        assert (noise[0] != noise[1]).any() and (noise[1] != noise[2]).any()


def test_ordered_values_far_apart_meet_halfway():
    """Where the kernel underflows; between 10 and 200, at half the time, the walk is halfway."""
    process = P.discretised_gaussian(256)
    x_t, x0 = jnp.full((1, 4000), 10), jnp.full((1, 4000), 200)

    @jax.jit
    def steps(key):
        noise = process.noise(key[None], x_t)
        return [process.reverse(noise, x_t, x0, t, s) for t, s in ((0.005, 0.0), (0.01, 0.005), (1e-9, 0.0))]

    clean, half, still = map(np.asarray, steps(KEY))
    assert np.all(clean == 200) and np.all(still == 200)
    assert abs(half.mean() - 105) < 1 and 5 < half.std() < 15


def test_values_in_a_softmax_tail_are_drawn_as_often_as_believed():
    process, share = P.discretised_gaussian(32), 4e-3
    row = np.full(32, share / 32, np.float32)
    row[20] += 1 - share
    grid = np.append(np.linspace(1, 0.02, 16), [1e-3, 1e-5, 0])

    @jax.jit
    def run(keys, row):
        net = lambda x, t: jnp.broadcast_to(jnp.log(row), (*x.shape, 32))  # noqa: E731
        return walk(process, D.ancestral(), grid, net, keys, (128,))

    out = np.asarray(run(jax.random.split(KEY, 64), row))
    assert out.min() >= 0 and out.max() < 32
    wanted = share * 31 / 32 * out.size
    assert abs((out != 20).sum() - wanted) < 4 * np.sqrt(wanted)


def test_held_tokens_count_as_unmasked():
    """Four bits of even parity, two of them known: one a step is exact."""
    process = P.absorbing(2)
    exact = T.joint((np.indices((2,) * 4).sum(0) + 1.0) % 2).denoiser(process)
    solver = D.clamped(D.confidence(), np.zeros((1, 4), int), np.array([[True, True, False, False]]))
    run = jax.jit(lambda keys: walk(process, solver, np.linspace(1, 0, 3), exact, keys, (4,)))
    out = np.asarray(run(jax.random.split(KEY, 200)))
    assert np.all(out.sum(1) % 2 == 0) and np.all(out[:, :2] == 0) and 0.3 < out[:, 2].mean() < 0.7


def test_rewards_are_asked_of_the_tokens_that_are_held():
    solver = ST.particles(D.clamped(D.ancestral(), TOKENS, KNOWN), lambda x: 10.0 * (x[:, 0] == 2), 2)
    run = jax.jit(lambda keys: walk(UNIFORM, solver, np.linspace(1, 0, 9), keys=keys, save="state"))
    out, state = run(KEYS)
    assert np.all(np.asarray(out)[:, 0] == 0)
    np.testing.assert_array_equal(state.log_normaliser, 0.0)


def test_replacements_are_normalised_within_jit_too():
    counts = np.array([1.0, 2.0, 5.0])
    found = jax.jit(lambda counts: P.marginal(counts).marginal(jnp.zeros((1, 1), int), 0.5))(counts)
    np.testing.assert_allclose(found[0, 0], 0.5 * np.array([1, 0, 0]) + 0.5 * counts / 8, rtol=1e-6)


def test_guided_logits_of_what_one_side_holds_for_impossible_are_those_of_the_law():
    """`p_u^(1 - s) p_c^s`: each forbids a token of its own; what p_u alone forbids is certain above 1."""
    with np.errstate(divide="ignore"):
        conditional, free = np.log(np.float32([[0, 0.5, 0.5], [0.6, 0.4, 0]]))
    sides = [lambda x, t, one=one: jnp.broadcast_to(one, (*x.shape, 3)) for one in (conditional, free)]

    def guided(scale, keys):
        logits = guidance.classifier_free(*sides, scale)(jnp.zeros((4, 1), jnp.int32), 0.5)
        return logits[:, 0], categorical(keys, logits)[:, 0]

    scale = np.float32([0.25, 0.5, 1.0, 2.0])
    logits, drawn = jax.jit(guided)(scale, KEYS)
    wanted = scale * conditional[1] + (1 - scale) * free[1]
    third = [-np.inf, -np.inf, conditional[2]]
    np.testing.assert_allclose(logits[:, :2], np.stack([np.full(4, -np.inf), wanted], 1), rtol=1e-5)
    np.testing.assert_allclose(logits[:3, 2], third, rtol=1e-5)
    np.testing.assert_array_equal(np.asarray(jax.nn.softmax(logits))[3], [0, 0, 1])
    assert list(drawn[:2]) == [1, 1] and drawn[3] == 2


def test_what_is_no_law_draws_no_token():
    rows = jnp.array([[0.0, jnp.nan, 0.0], [-jnp.inf] * 3, [0.0, jnp.inf, 0.0], [-jnp.inf, 0.0, -jnp.inf]])
    np.testing.assert_array_equal(jax.jit(categorical)(KEYS, rows), [-1, -1, 1, 1])
    net = lambda x, t: jnp.nan * flat(x, t)  # noqa: E731
    processes = ABSORBING, UNIFORM, P.discretised_gaussian(3)
    every = jax.jit(lambda keys: [walk(p, D.ancestral(), GRID, net, keys) for p in processes])
    for out in every(KEYS):
        np.testing.assert_array_equal(out, -1)


def test_a_step_to_data_leaves_no_masks():
    run = jax.jit(lambda x: walk(ABSORBING, D.remasking(1.0), np.array([1.0, 0.0]), x=x))
    out = run(np.zeros((4, 2), np.int32))
    np.testing.assert_array_equal(out, 0)


def test_a_bound_where_the_schedule_stands_still_is_finite():
    process = P.uniform(3, P.schedules.table(np.array([0.5, 0.0, 0.0])))
    bound = jax.jit(lambda key: losses.discrete.finite_elbo(flat, key, X0, process=process, steps=3))(KEY)
    assert np.isfinite(bound).all() and bound[-1] == 0


def test_tokens_that_are_not_clean_are_nan_within_jit_wherever_they_stand():
    spoiled = X0.copy()
    spoiled[0, 0] = 3
    loss = losses.discrete

    @jax.jit
    def both(x):
        negatives = jnp.stack([X0, x], 1)
        marginal = loss.marginalization(lambda x: jnp.zeros(len(x)), flat, KEY, x, process=ABSORBING)
        return loss.contrastive(flat, KEY, X0, negatives, process=ABSORBING, kind="sample"), marginal

    for found in both(spoiled):
        assert np.isnan(found[0]) and np.isfinite(found[1:]).all()


def test_scores_in_half_precision_do_not_overflow():
    def loss(kind):
        net = lambda x, t: jnp.full((*x.shape, 4), 12.0, kind)  # noqa: E731
        return losses.discrete.score_entropy(net, KEY, X0, process=ABSORBING)

    np.testing.assert_allclose(*jax.jit(lambda: [loss(jnp.float16), loss(jnp.float32)])(), rtol=1e-5)


def test_factors_of_logits_are_multiplied_out_where_they_have_to_be():
    kernel = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)

    def factored(x, t):
        return FactoredLogits(jnp.stack([x, 1 + x], -1).astype(jnp.float32), kernel)

    def dense(x, t):
        return factored(x, t).dense()

    def every(net):
        energy = lambda x0, x, t, logits: jnp.sum(x0, axis=1) * 1.0  # noqa: E731
        nce = losses.discrete.residual_nce(energy, net, KEY, X0, process=ABSORBING)
        guess = walk(ABSORBING, D.confidence(), denoise=net)
        steered = walk(ABSORBING, ST.particles(D.ancestral(), last, 2), denoise=net)
        return elbo(net, UNIFORM), nce, guess, steered

    for found, wanted in zip(*jax.jit(lambda: (every(factored), every(dense)))(), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-5)
