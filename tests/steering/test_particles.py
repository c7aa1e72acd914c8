"""Particles, value decoding and budgets against exactly tilted laws."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

S, ST = jd.solvers, jd.steering
VP = jd.processes.VP()
TARGET = jd.testing.gaussian_mixture(np.array([[1.0], [-1.0]]), np.full(2, 0.04), np.array([0.5, 0.5]))
DENOISE = TARGET.denoiser(VP)
GRID = jd.grids.log_snr(VP, 24)


def reward(x0):
    return 2.0 * x0[:, 0]


# p(x0) exp(2 x): modes at +-1 + 2 * 0.04, weights exp(+-2) alike
EXACT = {"weight": 1 / (1 + np.exp(-4.0)), "log_z": np.log(np.cosh(2.0)) + 2 * 0.04}
SECOND = S.dpmpp_multistep(2, tau=1.0)


def samples(solver, number, denoise=DENOISE, grid=GRID, **options):
    """So many samples, in one program."""

    @jax.jit
    def work(key):
        keys = jax.random.split(key, number)
        return jd.sample(keys, denoise, VP, solver, grid, shape=(1,), **options)

    return jax.device_get(work(jax.random.key(0)))


def run(solver, groups, count):
    return samples(solver, groups * count, save="state")


def test_one_particle_or_proposal_is_plain_sampling():
    """Where curves over the count begin."""
    keys, few = jax.random.split(jax.random.key(0), 4096), jd.grids.log_snr(VP, 3)

    @jax.jit
    def work(keys):
        made = [make(S.ancestral(), reward, 1) for make in (ST.particles, ST.value_decoding)]
        return [jd.sample(keys, DENOISE, VP, solver, few, shape=(1,)) for solver in (S.ancestral(), *made)]

    plain, alone, one = jax.device_get(work(keys))
    np.testing.assert_allclose(alone, plain, atol=1e-5)
    assert abs(np.mean(one > 0) - np.mean(plain > 0)) < 0.04
    np.testing.assert_allclose([one.mean(), one.std()], [plain.mean(), plain.std()], atol=0.04)


@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_particles_follow_the_tilted_law(potential):
    every = 1 if potential == "difference" else 12
    x, state = run(ST.particles(SECOND, reward, 64, potential=potential, every=every), 60, 64)
    weight = np.mean(x > 0)
    assert abs(weight - EXACT["weight"]) < 0.03, weight
    high = x[x > 0]
    np.testing.assert_allclose([high.mean(), high.var()], [1.08, 0.04], atol=0.03)
    np.testing.assert_allclose(np.log(np.mean(np.exp(state.log_normaliser))), EXACT["log_z"], atol=0.1)


@pytest.mark.slow
def test_the_error_falls_with_the_number_of_particles():
    weights = [
        np.mean(run(ST.particles(S.ancestral(), reward, n), 640 // n, n)[0] > 0) for n in (2, 64)
    ]
    assert abs(weights[1] - EXACT["weight"]) < abs(weights[0] - EXACT["weight"]) - 0.02
    assert 0.5 < weights[0] < weights[1]


def test_twisted_particles_give_the_posterior():
    """y = x + noise of variance 1/2 at y = 0.6: a mixture posterior with known weight."""

    def log_likelihood(x0):
        return -jnp.sum((0.6 - x0) ** 2, -1)

    x, _ = run(ST.twisted(SECOND, log_likelihood, 16, guide=0.5), 80, 16)
    evidence = np.exp(-((0.6 - np.array([1.0, -1.0])) ** 2) / (2 * (0.04 + 0.5)))
    assert abs(np.mean(x > 0) - evidence[0] / evidence.sum()) < 0.05
    mean = (1.0 / 0.04 + 0.6 / 0.5) / (1 / 0.04 + 1 / 0.5)
    np.testing.assert_allclose(x[x > 0].mean(), mean, atol=0.03)


@pytest.mark.slow
def test_twisted_particles_of_a_multistep_solver_are_led_without_bias():
    """N(0, 1) tilted by exp(-(1.5 - x)^2 / 2), 8 steps of second order: the chain's own law is the prior.

    With estimates of led proposals among those that the solver remembers the mean would be 0.46.
    """
    prior = jd.testing.gaussian(np.zeros(1), np.ones(1)).denoiser(VP)
    solver = ST.twisted(SECOND, lambda x0: -0.5 * jnp.sum((1.5 - x0) ** 2, -1), 64, guide=0.3)
    own, x = (samples(s, 300 * 64, prior, jd.grids.log_snr(VP, 8)) for s in (SECOND, solver))
    own = own.var()
    np.testing.assert_allclose([x.mean(), x.var()], [1.5 / (1 / own + 1), 1 / (1 / own + 1)], atol=0.04)


CHAIN = jd.testing.markov_chain([0.6, 0.3, 0.1], [[0.7, 0.2, 0.1], [0.2, 0.5, 0.3], [0.1, 0.3, 0.6]], 3)


@pytest.mark.slow
@pytest.mark.parametrize("make", [
    lambda r: ST.particles(S.discrete.ancestral(), r, 32),
    lambda r: ST.particles(S.discrete.tau_leaping(), r, 32, potential="max", every=4),
    lambda r: ST.value_decoding(S.discrete.ancestral(), r, 12),
], ids=["particles", "max", "value decoding"])  # fmt: skip
def test_tokens_follow_the_tilted_law(make):
    """p(x) exp(number of twos) over all sequences of three tokens, known by counting."""
    process = jd.processes.absorbing(3)
    tilted = CHAIN.probabilities * np.exp(np.sum(CHAIN.states == 2, 1))
    tilted /= tilted.sum()
    assert 0.5 * np.abs(CHAIN.probabilities - tilted).sum() > 0.4
    solver, grid = make(lambda x0: 1.0 * jnp.sum(x0 == 2, -1)), jd.grids.uniform(process, 16)

    @jax.jit
    def draw():
        keys = jax.random.split(jax.random.key(0), 2048)
        return CHAIN.index(jd.sample(keys, CHAIN.denoiser(process), process, solver, grid, shape=(3,)))

    found = np.bincount(np.asarray(draw()), minlength=27) / 2048
    assert 0.5 * np.abs(found - tilted).sum() < 0.12


def test_groups_do_not_mix_and_cost_one_evaluation_a_particle():
    calls = []

    def counted(x, t):
        calls.append(x.shape)
        return DENOISE(x, t)

    solver = ST.particles(S.ancestral(), reward, 8)

    @jax.jit
    def both(key):
        keys = jax.random.split(key, 32)
        all_x = jd.sample(keys, counted, VP, solver, GRID, shape=(1,))
        return all_x, jd.sample(keys[8:16], DENOISE, VP, solver, GRID, shape=(1,))

    all_x, part = jax.device_get(both(jax.random.key(1)))
    assert calls == [(32, 1)]  # traced once, inside the scan
    np.testing.assert_allclose(all_x[8:16], part, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_groups_over_devices_are_those_of_one():
    keys = jax.random.split(jax.random.key(1), 64)
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    spec = jax.sharding.PartitionSpec("data")

    @functools.partial(jax.jit, static_argnums=1)
    def walk(keys, count):
        return jd.sample(keys, DENOISE, VP, ST.particles(S.ancestral(), reward, count), GRID, shape=(1,))

    spread = jax.jit(jax.shard_map(lambda k: walk(k, 8), mesh=mesh, in_specs=spec, out_specs=spec))
    np.testing.assert_allclose(spread(keys), walk(keys, 8), rtol=1e-5, atol=1e-6)
    alone = jax.sharding.NamedSharding(mesh, spec)
    one = jax.jit(lambda k: walk(k, 64), in_shardings=alone)(keys)  # one group over all devices
    np.testing.assert_allclose(one, walk(keys, 64), rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"8(.|\n)*4"):
        jax.device_put(keys[:4], alone)  # fewer particles than devices
    with pytest.raises(ValueError, match="whole groups of 16, a multiple of it, got 8"):
        jax.shard_map(lambda k: walk(k, 16), mesh=mesh, in_specs=spec, out_specs=spec)(keys)


def test_rewards_that_are_no_numbers_are_dropped_and_counted():
    spoiled = lambda x0: jnp.where(x0[:, 0] > 0, jnp.nan, reward(x0))  # noqa: E731
    x, state = run(ST.particles(S.ancestral(), spoiled, 16), 10, 16)
    assert np.isfinite(x).all() and np.mean(x > 0) < 0.1 and state.dropped.sum() > 0


@pytest.mark.slow
def test_proposals_whose_reward_is_no_number_are_counted():
    spoiled = lambda x0: jnp.where(x0[:, 0] > 0, jnp.nan, x0[:, 0])  # noqa: E731
    for solver in (ST.value_decoding(S.ancestral(), spoiled, 4), ST.rollover(S.ancestral(), spoiled, 2)):
        x, state = samples(solver, 16, grid=jd.grids.log_snr(VP, 6), save="state")
        assert np.isfinite(x).all() and state.dropped.shape == (16,)
        assert 0 < state.dropped.sum() < 16 * 6 * 4 and np.mean(x < 0) > 0.6


@pytest.mark.parametrize("proposals, low, high", [(2, 0.75, 0.93), (16, 0.94, 1.0)])
def test_value_decoding_tends_to_the_tilted_weight(proposals, low, high):
    steps = jnp.sign  # not differentiable
    x = samples(ST.value_decoding(S.ancestral(), lambda x0: 2.0 * steps(x0[:, 0]), proposals), 1500)
    assert low < np.mean(x > 0) < high
    np.testing.assert_allclose(x[x > 0].mean(), 1.0, atol=0.1)


@pytest.mark.slow
def test_rollover_spends_what_it_has_and_beats_as_many_samples():
    dim2 = lambda x0: x0[:, 0]  # noqa: E731
    solver, scale = ST.rollover(S.ancestral(), dim2, 4), VP.coefficients(1.0)[2]

    def sampler(noise):
        return jd.sample(None, DENOISE, VP, S.ddim(), GRID, x=scale * noise)

    @jax.jit
    def work():
        keys = jax.random.split(jax.random.key(0), 300)
        x, state = jd.sample(keys, DENOISE, VP, solver, GRID, shape=(1,), save="state")
        return x, state.used, state.left, ST.best_of_n(keys, sampler, dim2, (1,), 4)

    x, used, left, best = jax.device_get(work())
    assert used.max() <= 1 + 4 * 23 and (left + used).min() == 1 + 4 * 23
    assert dim2(x).mean() > best.reward.mean()
    np.testing.assert_allclose(dim2(best.x), best.reward, rtol=1e-6)


@pytest.mark.slow
def test_search_over_noises():
    goal = lambda x: -jnp.abs(x[:, 0] - 0.9)  # noqa: E731

    def sampler(noise):
        return jd.sample(None, DENOISE, VP, S.dpmpp_multistep(2), jd.grids.log_snr(VP, 8), x=noise)

    def resume(x, t):
        grid = VP.time_of_log_snr(np.linspace(VP.log_snr(t), 4.0, 7))
        return jd.sample(None, DENOISE, VP, S.dpmpp_multistep(2), np.append(grid, 0.0), x=x)

    @jax.jit
    def work():
        keys, start = jax.random.split(jax.random.key(0), 100), jax.random.normal(jax.random.key(1), (100, 1))
        best = [ST.best_of_n(keys, sampler, goal, (1,), n) for n in (2, 4, 12)]
        near = ST.zero_order(keys, sampler, goal, start, n=4, iterations=4, radius=0.2)
        path = ST.path_search(keys, resume, goal, VP, (1,), times=(0.6, 0.3), starts=4, branches=4)
        return start, goal(sampler(start)), best, near, path

    start, plain, (few, some, many), near, path = jax.device_get(work())
    assert many.reward.mean() > few.reward.mean() > plain.mean()
    assert near.reward.mean() > plain.mean() + 0.05
    assert np.abs(near.start - start).mean() < 0.7 * np.abs(many.start - start).mean()
    assert path.reward.mean() > some.reward.mean()


@pytest.mark.slow
def test_a_flow_under_another_process_keeps_its_law():
    flow = jd.processes.RectifiedFlow()
    changed = ST.change_process(TARGET.denoiser(flow), flow, VP)
    back = ST.change_process(DENOISE, VP, flow)

    @jax.jit
    def work(x, half):
        pairs = [(changed(x, t), DENOISE(x, t)) for t in (0.1, 0.5, 1.0)]
        pairs += [(back(x, 0.5), TARGET.denoiser(flow)(x, 0.5)), (changed(x, half), DENOISE(x, 0.5))]
        return pairs, back(x, 1.0)

    x = np.random.default_rng(0).normal(size=(16, 1)).astype(np.float32)
    pairs, mean = work(x, np.full(16, 0.5, np.float32))
    for got, exact in pairs:
        np.testing.assert_allclose(got, exact, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(mean, 0.0, atol=0.02)  # pure noise


@pytest.mark.parametrize("make", [ST.particles, ST.twisted, ST.value_decoding, ST.rollover])
def test_wide_numbers_and_half_rewards(make, x64):
    keys, grid = jax.random.split(jax.random.key(0), 4), jd.grids.log_snr(VP, 3)
    denoise = lambda x, t: DENOISE(x, t).astype(jnp.float64)  # noqa: E731
    for dtype, kind in ((jnp.float64, jnp.float64), (jnp.float32, jnp.bfloat16)):
        solver = make(S.ancestral(), lambda x0, kind=kind: reward(x0).astype(kind), 2)
        sample = lambda x, solver=solver: jd.sample(keys, denoise, VP, solver, grid, x=x)  # noqa: E731
        x = jax.jit(sample)(np.ones((4, 1), dtype))
        assert x.dtype == dtype and np.isfinite(x).all()


def test_twisted_particles_are_not_led_where_no_noise_is_drawn():
    """A step without noise cannot be weighed: there the proposals are the model's own."""
    rows = S.ancestral().plan(VP, jd.grids.log_snr(VP, 4))
    rows = rows.replace(next=rows.next * np.append(np.ones(rows.next.shape[1] - 1), 0.0))
    keys = jax.random.split(jax.random.key(0), 8)
    led, own = (
        jd.sample(keys, DENOISE, VP, make(rows, reward, 4), shape=(1,)) for make in (ST.twisted, ST.particles)
    )
    np.testing.assert_allclose(led, own, rtol=1e-5, atol=1e-6)


def test_proposals_are_judged_by_what_their_own_example_wants():
    side = np.tile(np.float32([-1, 1]), 100)
    denoise = jd.guidance.classifier_free(DENOISE, lambda x, t: 0.5 * x, np.ones(200, np.float32))
    solver = ST.value_decoding(S.ancestral(), lambda x0: side * x0[:, 0], 4, alpha=0.1)
    x = samples(solver, 200, denoise=denoise, grid=jd.grids.log_snr(VP, 8))
    assert np.mean(side * x[:, 0] > 0) > 0.9


def test_wrong_arguments():
    keys = jax.random.split(jax.random.key(0), 6)

    def run(solver, grid=GRID):
        jax.eval_shape(lambda: jd.sample(keys, DENOISE, VP, solver, grid, shape=(1,)))

    with pytest.raises(ValueError, match="whole groups"):
        run(ST.particles(S.ancestral(), reward, 4))
    with pytest.raises(ValueError, match="draws noise"):
        run(ST.particles(S.ddim(), reward, 3))
    with pytest.raises(ValueError, match="twisted: .* draws noise"):
        run(ST.twisted(S.ddim(), reward, 3))
    with pytest.raises(ValueError, match="exact data"):
        run(ST.particles(S.ancestral(), reward, 3), jd.grids.uniform(VP, 4, end=0.1))
    for made in (ST.particles, ST.value_decoding, ST.rollover):
        with pytest.raises(ValueError, match=r"one number per example, \(\d+,\), got \(\d+, 1\)"):
            run(made(S.ancestral(), lambda x: x, 3))
    for made in (ST.particles, ST.value_decoding, ST.rollover):
        with pytest.raises(ValueError, match="keys; this solver draws several times"):
            noise, solver = jnp.zeros((12, 6, 1)), made(S.ancestral(), reward, 3)
            jd.sample(noise, DENOISE, VP, solver, jd.grids.uniform(VP, 12), x=jnp.zeros((6, 1)))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        ST.particles(S.ancestral(), reward, 0)
    with pytest.raises(ValueError, match="potential"):
        ST.particles(S.ancestral(), reward, 2, potential="min")
    with pytest.raises(ValueError, match="proposals"):
        ST.value_decoding(S.ancestral(), reward, 0)
    with pytest.raises(ValueError, match="budget"):
        ST.rollover(S.ancestral(), reward, 0)
    with pytest.raises(ValueError, match="radius"):
        ST.zero_order(keys, None, reward, jnp.zeros((6, 1)), 2, 2, radius=0.0)
