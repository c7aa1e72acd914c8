"""Every sampler's law against the exact joint, at its number of evaluations."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import grids, processes, testing
from jaxdiff.processes import schedules
from jaxdiff.solvers import discrete

TARGET = testing.markov_chain([0.5, 0.3, 0.2], [[0.8, 0.15, 0.05], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]], 3)
PAIR = testing.markov_chain([0.5, 0.3, 0.2], [[0.8, 0.15, 0.05], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]], 2)
N = 24000
SOME = {"target": PAIR, "n": 12000}  # nine states need fewer samples
ABSORBING = processes.absorbing(3)
PROCESSES = {
    "absorbing": processes.absorbing(3, schedules.cosine()),
    "per token": processes.absorbing(3, schedules.polynomial(np.array([0.7, 1.0, 2.0]))),
    "uniform": processes.uniform(3),
    "mask and replace": processes.mask_and_replace(3, 0.6),
    "marginal": processes.marginal(np.array([0.5, 0.3, 0.2])),
    "gaussian": processes.discretised_gaussian(3),
}

PRODUCT = testing.joint(np.einsum("i,j,k->ijk", [0.5, 0.3, 0.2], [0.2, 0.2, 0.6], [0.1, 0.1, 0.8]))


def draw(process, solver, grid=None, n=N, target=TARGET, seed=0, denoise=None, **start):
    start = start or {"shape": (target.length,)}
    denoise = denoise or target.denoiser(process)

    def walk(keys):
        return jd.sample(keys, denoise, process, solver, grid, save="state", **start)

    long = n > 1000 and grid is not None and len(grid) > 32  # here the loop is what costs
    options = {"xla_backend_optimization_level": 1} if long else None
    x, state = jax.jit(walk, compiler_options=options)(jax.random.split(jax.random.key(seed), n))
    return np.asarray(x), state


def law_is_exact(process, solver, grid=None, evaluations=None, **options):
    x, state = draw(process, solver, grid, **options)
    assert x.dtype == jnp.int32
    assert state.evaluations == evaluations
    assert options.get("target", TARGET).total_variation(x) < 0.02


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_ancestral_sampling_has_the_exact_law(process):
    options = {} if process is PROCESSES["per token"] else SOME
    law_is_exact(process, discrete.ancestral(), grids.uniform(process, 64), 64, **options)


@pytest.mark.parametrize("process", [
    PROCESSES["mask and replace"], pytest.param(PROCESSES["absorbing"], marks=pytest.mark.slow),
    pytest.param(PROCESSES["uniform"], marks=pytest.mark.slow),
])  # fmt: skip
def test_ancestral_sampling_of_independent_tokens_is_exact_in_two_steps(process):
    law_is_exact(process, discrete.ancestral(), grids.uniform(process, 2), 2, target=PRODUCT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["absorbing", "uniform", "mask and replace", "marginal"])
def test_tau_leaping_has_the_exact_law(name):
    process = PROCESSES[name]
    law_is_exact(process, discrete.tau_leaping(), grids.cosine(process, 128), 128, **SOME)


@pytest.mark.parametrize("schedule", [
    schedules.cosine(), pytest.param(schedules.linear(), marks=pytest.mark.slow),
], ids=["cosine", "linear"])  # fmt: skip
def test_first_hitting_has_the_exact_law_in_as_many_evaluations_as_tokens(schedule):
    law_is_exact(processes.absorbing(3, schedule), discrete.first_hitting(3), None, 3)


@pytest.mark.slow
@pytest.mark.parametrize("solver", [discrete.first_hitting(12), discrete.confidence("entropy")])
def test_twelve_tokens_have_the_exact_law_in_twelve_evaluations(solver):
    """The whole table of 4,096 states."""
    process, target = processes.absorbing(2), testing.ising_chain(12, 1.5, 0.1)
    grid = grids.uniform(process, 12) if isinstance(solver, type(discrete.confidence())) else None
    law_is_exact(process, solver, grid, 12, target=target, n=40000)


@pytest.mark.slow
def test_first_hitting_and_ancestral_agree_in_law_on_twelve_tokens():
    target, process = testing.ising_chain(12, 0.3, 0.1), processes.absorbing(2)
    net = target.denoiser(process)
    fast, _ = draw(process, discrete.first_hitting(12), n=4000, target=target, denoise=net)
    slow, _ = draw(
        process,
        discrete.ancestral(cache=True),
        grids.uniform(process, 200),
        n=4000,
        target=target,
        denoise=net,
    )
    spins = [2 * np.asarray(x) - 1 for x in (fast, slow)]
    exact_pair = (target.probabilities * (1 - 2 * (target.states[:, 0] != target.states[:, 1]))).sum()
    for s in spins:
        assert abs((s * np.roll(s, 1, 1)).mean() - exact_pair) < 0.02
    counts = [np.bincount((s > 0).sum(1), minlength=13) / 4000 for s in spins]
    assert 0.5 * np.abs(counts[0] - counts[1]).sum() < 0.06
    assert (
        0.5 * np.abs(np.mean(counts, 0) - np.bincount(target.states.sum(1), target.probabilities)).sum()
        < 0.05
    )


def test_first_hitting_times_are_those_of_the_process():
    """The network is called at the order statistics of the unmasking times."""
    seen, process = [], processes.absorbing(3, schedules.cosine())

    def net(x, t):
        jax.debug.callback(lambda t: seen.append(np.asarray(t)), t, ordered=True)
        return jnp.zeros((*x.shape, 3))

    draw(process, discrete.first_hitting(4), n=4000, denoise=net, shape=(4,))
    jax.effects_barrier()
    levels = [np.mean(process.schedule.level(np.float64(t))) for t in seen]
    np.testing.assert_allclose(levels, [0.8, 0.6, 0.4, 0.2], atol=0.01)


@pytest.mark.slow
def test_several_tokens_an_event_take_fewer_evaluations():
    x, state = draw(ABSORBING, discrete.first_hitting(3, per_event=2))
    assert state.evaluations == 2 and (x < 3).all()
    assert 0.02 < TARGET.total_variation(x) < 0.3  # two tokens at once are independent
    law_is_exact(ABSORBING, discrete.first_hitting(3, per_event=3), None, 1, target=PRODUCT)


@pytest.mark.parametrize("rule", [
    "entropy", pytest.param("probability", marks=pytest.mark.slow),
    pytest.param("margin", marks=pytest.mark.slow),
])  # fmt: skip
def test_confidence_order_one_token_a_step_has_the_exact_law(rule):
    law_is_exact(ABSORBING, discrete.confidence(rule), grids.uniform(ABSORBING, 3), 3)


@pytest.mark.slow
def test_the_confidence_of_the_drawn_token_prefers_likely_sequences():
    x, _ = draw(ABSORBING, discrete.confidence("token"), grids.uniform(ABSORBING, 3))
    surprise = -np.asarray(TARGET.log_prob(x)).mean()
    assert surprise < TARGET.entropy() - 0.01


@pytest.mark.slow
def test_remasking_without_eta_is_ancestral_and_with_it_changes_tokens():
    grid = grids.uniform(ABSORBING, 20)
    keys = jax.random.split(jax.random.key(0), 500)

    def path_of(solver, grid=grid):
        walk = lambda keys: jd.sample(  # noqa: E731
            keys, TARGET.denoiser(ABSORBING), ABSORBING, solver, grid, shape=(3,), save="all"
        )
        return np.asarray(jax.jit(walk)(keys))

    def changed(path):
        return ((path[:-1] < 3) & (path[1:] != path[:-1])).any()

    assert not changed(path_of(discrete.remasking(0.0)))
    assert changed(path_of(discrete.remasking(0.3)))
    for solver in (discrete.ancestral(), discrete.tau_leaping(), discrete.confidence()):
        assert not changed(path_of(solver))
    path = path_of(discrete.first_hitting(3), None)
    assert not changed(path)
    assert ((path < 3).sum((1, 2)) == 500 * np.arange(4)).all()


def test_the_cache_gives_the_same_samples_with_far_fewer_calls():
    process, grid = processes.absorbing(5), grids.uniform(processes.absorbing(5), 1000)

    def net(x, t):
        return jax.nn.one_hot((x + jnp.roll(x, 1, 1)) % 5, 5) * 2.0

    plain, slow = draw(process, discrete.ancestral(), grid, n=1, denoise=net, shape=(64,))
    cached, fast = draw(process, discrete.ancestral(cache=True), grid, n=1, denoise=net, shape=(64,))
    np.testing.assert_array_equal(plain, cached)
    assert slow.evaluations == 1000
    assert 3 * fast.evaluations < slow.evaluations
    expected = 1000 * (1 - (1 - 1e-3) ** 64)
    assert abs(float(fast.evaluations) - expected) < 15


@pytest.mark.slow
def test_first_hitting_is_ten_times_faster_than_a_thousand_ancestral_steps():
    process = processes.absorbing(64)
    weights = jax.random.normal(jax.random.key(1), (65, 256)), jax.random.normal(jax.random.key(2), (256, 64))

    def net(x, t):
        return jnp.tanh(weights[0][x]) @ weights[1]

    def seconds(solver, grid):
        keys = jax.random.split(jax.random.key(0), 4)
        walk = jax.jit(lambda keys: jd.sample(keys, net, process, solver, grid, shape=(64,)))
        walk = walk.lower(keys).compile()
        start = time.perf_counter()
        walk(keys).block_until_ready()
        return time.perf_counter() - start

    slow = seconds(discrete.ancestral(), grids.uniform(process, 1000))
    assert slow > 10 * min(seconds(discrete.first_hitting(64), None) for _ in range(3))


@pytest.mark.slow
def test_energies_bring_few_steps_to_the_joint_law():
    """In one step a factorised denoiser misses correlations; the exact energy brings them back with k."""
    target, process = testing.joint([[0.45, 0.05], [0.05, 0.45]]), processes.absorbing(2)
    energy = jd.losses.discrete.autoregressive_energy(target.log_prob, process)
    grid = grids.uniform(process, 1)

    def distance(k, window=0.0):
        x, state = draw(process, discrete.importance(energy, k, window), grid, n=10000, target=target)
        assert state.evaluations == 1
        return target.total_variation(x)

    assert abs(distance(1) - 0.4) < 0.02
    assert abs(distance(4, window=2.0) - 0.4) < 0.02
    found = [distance(k) for k in (2, 8, 32)]
    assert found[0] > found[1] > found[2] and found[2] < 0.02


@pytest.mark.slow
def test_strided_sampling_of_a_finite_process():
    """25 steps of mask and replace are near the 64 that have the exact law."""
    process = PROCESSES["mask and replace"]
    x, _ = draw(process, discrete.ancestral(), grids.uniform(process, 25), **SOME)
    assert PAIR.total_variation(x) < 0.05


@pytest.mark.parametrize("solver, grid", [
    (discrete.first_hitting(3), None),
    pytest.param(discrete.ancestral(), grids.uniform(ABSORBING, 50), marks=pytest.mark.slow),
])  # fmt: skip
def test_infilling_is_the_conditional_law(solver, grid):
    start = np.tile(np.int32([3, 1, 3]), (N, 1))
    x, _ = draw(ABSORBING, solver, grid, x=start)
    assert (x[:, 1] == 1).all()
    table = TARGET.probabilities.reshape(3, 3, 3) * np.array([0, 1, 0]).reshape(1, 3, 1)
    assert testing.joint(table).total_variation(x) < 0.02


@pytest.mark.slow
def test_clamping_holds_tokens_of_any_process():
    process = PROCESSES["uniform"]
    tokens, known = np.array([[0, 1, 0]]), np.array([[False, True, False]])
    solver = discrete.clamped(discrete.ancestral(), tokens, known)
    x, _ = draw(process, solver, grids.uniform(process, 50), n=6000)
    assert (x[:, 1] == 1).all()
    table = TARGET.probabilities.reshape(3, 3, 3) * np.array([0, 1, 0]).reshape(1, 3, 1)
    conditional, alone = testing.joint(table), TARGET.probabilities.reshape(3, 3, 3).sum(1)
    unaware = 0.5 * np.abs(table.sum(1) / table.sum() - alone).sum()
    assert conditional.total_variation(x) < 0.7 * unaware
    held = discrete.clamped(discrete.ancestral(), tokens, known)
    masked, _ = draw(ABSORBING, held, grids.uniform(ABSORBING, 50), n=12000)
    assert conditional.total_variation(masked) < 0.02


def test_scaffolds_keep_their_schema_and_give_up_their_slack():
    process = processes.absorbing(6)
    plan = discrete.scaffold(process, [[4, 5], 3, [4], 2, [5]], null=0)
    np.testing.assert_array_equal(plan.tokens, [4, 5, 6, 6, 6, 4, 6, 6, 5])
    uniform = discrete.restrict(lambda x, t: jnp.zeros((*x.shape, 6)), np.arange(6) < 4)
    x, state = draw(process, discrete.first_hitting(9), n=200, denoise=uniform, x=plan.start(200))
    assert state.evaluations == 5
    np.testing.assert_array_equal(x[:, [0, 1, 5, 8]], np.tile([4, 5, 4, 5], (200, 1)))
    values = np.delete(np.asarray(x), [0, 1, 5, 8], axis=1)
    assert values.max() < 4 and (np.bincount(values.ravel()) > 150).all()
    stripped = plan.strip(x)
    assert all((row != 0).all() for row in stripped) and {len(row) for row in stripped} >= {6, 7, 8, 9}


def test_a_denoiser_tells_the_network_one_time_per_example():
    net = lambda x, c_noise: jnp.zeros((*x.shape, 3)) + c_noise[:, None, None]  # noqa: E731
    denoise, x = discrete.denoiser(net, ABSORBING), jnp.zeros((2, 3), jnp.int32)
    np.testing.assert_allclose(denoise(x, 0.25), 0.25)
    np.testing.assert_allclose(denoise(x, jnp.array([0.1, 0.9]))[1], 0.9)


def test_top_p_and_temperature():
    logits = np.log(np.float32([0.5, 0.05, 0.3, 0.15]))[None, None]
    net = lambda x, t: x  # noqa: E731
    nets = [discrete.top_p(net, p) for p in (0.7, 0.4, 1.0)] + [discrete.temperature(net, 0.5)]
    few, one, every, cold = (np.asarray(v) for v in jax.jit(lambda x: [f(x, None) for f in nets])(logits))
    np.testing.assert_allclose(np.exp(few[0, 0]), [0.5, 0, 0.3, 0], atol=1e-6)
    assert (np.exp(one[0, 0]) > 0).sum() == 1
    np.testing.assert_allclose(every, logits)
    np.testing.assert_allclose(cold, 2 * logits)


@pytest.mark.parametrize("solver, grid", [
    (discrete.first_hitting(3), None),
    pytest.param(discrete.ancestral(), grids.uniform(ABSORBING, 5), marks=pytest.mark.slow),
    pytest.param(discrete.confidence(), grids.uniform(ABSORBING, 3), marks=pytest.mark.slow),
])  # fmt: skip
def test_a_sample_depends_on_its_own_key(solver, grid):
    keys, denoise = jax.random.split(jax.random.key(0), 7), TARGET.denoiser(ABSORBING)
    walk = lambda keys: jd.sample(keys, denoise, ABSORBING, solver, grid, shape=(3,))  # noqa: E731
    both, one = jax.jit(lambda keys: (walk(keys), walk(keys[4:5])))(keys)
    np.testing.assert_array_equal(np.asarray(both)[4], np.asarray(one)[0])


def test_tokens_are_int32_where_integers_are_of_64_bits(x64):
    def kind(process, solver, grid, **start):
        return jax.eval_shape(
            lambda keys: jd.sample(keys, TARGET.denoiser(process), process, solver, grid, **start),
            jax.random.split(jax.random.key(0), 2),
        ).dtype

    for process, solver, grid in (
        (ABSORBING, discrete.first_hitting(3), None),
        (PROCESSES["uniform"], discrete.tau_leaping(), np.array([1.0, 0.5, 0.0])),
        (PROCESSES["gaussian"], discrete.ancestral(), np.array([1.0, 0.5, 0.0])),
    ):
        for start in ({"shape": (3,)}, {"x": jnp.zeros((2, 3), jnp.int32)}):
            assert kind(process, solver, grid, **start) == jnp.int32


def test_bad_input_is_named():
    grid, denoise = grids.uniform(ABSORBING, 4), TARGET.denoiser(ABSORBING)
    keys = jax.random.split(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="cut the prompt"):
        discrete.prompt(ABSORBING, np.zeros(9, int), 8)
    with pytest.raises(ValueError, match="prompt: expected integer tokens in"):
        discrete.prompt(ABSORBING, np.array([4]), 8)
    with pytest.raises(ValueError, match="batch = 2 of them"):
        discrete.prompt(ABSORBING, np.zeros((3, 2), int), 8, batch=2)
    for tokens, message in ((np.zeros((1, 5), int), "samples' shape"), (np.full((1, 3), 7), "token 7")):
        held = discrete.clamped(discrete.ancestral(), tokens, np.ones(tokens.shape, bool))
        with pytest.raises(ValueError, match=message):
            jd.sample(keys, denoise, ABSORBING, held, grid, shape=(3,))
    with pytest.raises(ValueError, match="restrict: expected allowed of shape"):
        jd.sample(
            keys,
            discrete.restrict(denoise, np.ones(5, bool)),
            ABSORBING,
            discrete.ancestral(),
            grid,
            shape=(3,),
        )
    with pytest.raises(ValueError, match="integer tokens in"):
        jd.sample(keys, denoise, ABSORBING, discrete.ancestral(), grid, x=np.full((2, 3), 4))
    with pytest.raises(ValueError, match="integer tokens in"):
        jd.sample(keys, denoise, ABSORBING, discrete.ancestral(), grid, x=np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"expected \(batch,\) keys; this solver draws several times"):
        start = np.zeros((2, 3), int)
        jd.sample(np.zeros((4, 2, 3)), denoise, ABSORBING, discrete.ancestral(), grid, x=start)
    with pytest.raises(ValueError, match="absorbing process"):
        jd.sample(keys, denoise, PROCESSES["uniform"], discrete.remasking(), grid, shape=(3,))
    with pytest.raises(ValueError, match="discrete process"):
        jd.sample(keys, denoise, processes.VP(), discrete.ancestral(), grid, shape=(3,))
    with pytest.raises(ValueError, match="no grid"):
        jd.sample(keys, denoise, ABSORBING, discrete.first_hitting(3), grid, shape=(3,))
    with pytest.raises(ValueError, match="pass the length"):
        jd.sample(keys, denoise, ABSORBING, discrete.first_hitting(4), shape=(3,))
    with pytest.raises(ValueError, match="logits of the 3"):
        jd.sample(keys, lambda x, t: x, ABSORBING, discrete.ancestral(), grid, shape=(3,))
    with pytest.raises(ValueError, match="did you mean"):
        discrete.confidence("entropies")
