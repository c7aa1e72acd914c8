"""Discrete processes against brute-force matrices and Bayes' rule."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import processes, testing
from jaxdiff.processes import schedules
from jaxdiff.processes.discrete import DiscreteProcess, times_for

K = 4
PI = np.array([0.5, 0.2, 0.2, 0.1])
PROCESSES = {
    "absorbing": processes.absorbing(K),
    "uniform": processes.uniform(K, schedules.cosine()),
    "mask and replace": processes.mask_and_replace(K, 0.7, schedules.polynomial(1.5)),
    "bits": processes.bits(),
    "marginal": processes.marginal(PI),
    "gaussian": processes.discretised_gaussian(K, schedules.cosine()),
}
each = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
first = pytest.mark.parametrize("process", [  # the others are compiled for themselves, and slow
    pytest.param(process, id=name, marks=[pytest.mark.slow] if i else []) for i, (name, process) in
    enumerate(PROCESSES.items())
])  # fmt: skip


@functools.partial(jax.jit, static_argnums=1)
def call(process, method, *arguments):
    """`process.method(*arguments)`, compiled once for all tests."""
    return getattr(process, method)(*arguments)


def matrix(process, t, s=None):
    """`q(x_t = column | x_s = row)`, from all states, or `q(x_t | x0)` from the clean ones if s is None."""
    x = np.arange(process.states)[None]
    q = call(process, "likelihood", x, t) if s is None else call(process, "transition", x, t, s)
    return np.asarray(q, np.float64)[0].T


def pairs(process):
    """Every noisy token with every clean one, `(1, states size)` each."""
    return np.divmod(np.arange(process.states * process.size)[None], process.size)


@each
def test_marginals_are_products_of_transitions(process, x64):
    t = np.array([0.2, 0.45, 0.9])
    product = matrix(process, t[0]) @ matrix(process, t[1], t[0]) @ matrix(process, t[2], t[1])
    np.testing.assert_allclose(product, matrix(process, t[2]), atol=1e-12)
    np.testing.assert_allclose(product.sum(1), 1, atol=1e-12)
    marginal = call(process, "marginal", np.arange(process.size)[None], t[2])
    np.testing.assert_allclose(np.asarray(marginal)[0], product, atol=1e-12)


@pytest.mark.parametrize("wide", [False, True])
def test_times_of_python_are_as_exact_as_jax_is_set_to_be(wide):
    with jax.enable_x64(wide):
        expected = jnp.float64 if wide else jnp.float32
        for t in (0.35, 1, np.float64(0.35), np.array([0, 1])):
            assert times_for(np.zeros((2, 3), int), t, "times").dtype == expected
        for t in (np.float16(0.35), np.float32([0.35, 0.4])):
            assert times_for(np.zeros((2, 3), int), t, "times").dtype == jnp.float32
        assert float(times_for(np.zeros(3, int), 0.35, "times")[0]) == (0.35 if wide else np.float32(0.35))


def test_vq_diffusion_closed_form_is_the_product_of_its_matrices(x64):
    process = processes.mask_and_replace(3, 0.9)
    alpha, _, gamma = np.array([process.coefficients(i / 10) for i in range(11)]).T
    product = np.eye(4)
    for i in range(1, 11):
        a, g = alpha[i] / alpha[i - 1], 1 - (1 - gamma[i]) / (1 - gamma[i - 1])
        q = np.zeros((4, 4))
        q[:3, :3] = a * np.eye(3) + (1 - a - g) / 3
        q[:3, 3], q[3, 3] = g, 1
        product = product @ q
        np.testing.assert_allclose(matrix(process, np.float64(i / 10)), product[:3], atol=1e-12)


@each
def test_the_posterior_is_bayes_rule(process, x64):
    t, s = np.float64(0.7), np.float64(0.3)
    first, second = matrix(process, s), matrix(process, t, s)
    tokens = pairs(process)
    posterior = np.asarray(call(process, "posterior", *tokens, t, s))[0]
    jumps = isinstance(process, processes.Categorical)
    weights = np.concatenate(call(process, "jump", *tokens, t, s)).T if jumps else [None] * len(posterior)
    for x_t, x0, got, own in zip(*np.concatenate(tokens), posterior, weights, strict=True):
        expected = first[x0] * second[:, x_t]
        if expected.sum() == 0:
            continue
        expected = expected / expected.sum()
        np.testing.assert_allclose(got, expected, atol=1e-6)
        if jumps:
            pi = np.full(process.size, 1 / process.size) if process.replacement is None else PI
            pi, eye = np.append(pi, 0), np.eye(process.size + 1)
            clean, fresh = own
            mixture = clean * eye[x0] + fresh * pi + (1 - clean - fresh) * eye[x_t]
            np.testing.assert_allclose(mixture[: process.states], expected, atol=1e-6)


@each
def test_the_model_posterior_is_the_mean_over_clean_tokens(process, x64):
    t, s, p = np.float64(0.7), np.float64(0.3), np.array([0.1, 0.2, 0.3, 0.4])[: process.size]
    p = p / p.sum()
    each_one = np.asarray(call(process, "posterior", *pairs(process), t, s))[0, -process.size :]
    got = call(process, "posterior", np.array([[process.states - 1]]), np.log(p)[None, None], t, s)
    np.testing.assert_allclose(got, (p @ each_one)[None, None], atol=1e-6)


@first
def test_draws_follow_the_formulas(process):
    n, t, s = 40000, 0.6, 0.25
    atol = 4 * 0.5 / np.sqrt(n)
    x0, last = np.full((n, 1), 1), np.full((n, 1), process.states - 1)

    @jax.jit
    def draws(x0, last):
        keys, again = (jax.random.split(jax.random.key(seed), n) for seed in (0, 1))
        x_t = process.perturb(x0, process.noise(keys, x0), jnp.full(n, t))
        x_s = process.reverse(process.noise(again, x0), last, x0, t, s)
        return x_t, x_s, jax.vmap(lambda key: process.prior(key, (1,)))(keys)

    posterior = np.asarray(call(process, "posterior", last[:1], x0[:1], t, s))[0, 0]
    laws = matrix(process, np.float32(t))[1], posterior, matrix(process, np.float32(1))[0]
    for drawn, law in zip(draws(x0, last), laws, strict=True):
        found = np.bincount(np.asarray(drawn)[:, 0], minlength=process.states) / n
        np.testing.assert_allclose(found, law, atol=atol)


@each
def test_rates_are_the_small_step_limit(process, x64):
    t, h = np.float64(0.5), 1e-6
    x = np.arange(process.states)[None]
    step = np.asarray(call(process, "transition", x, t + h, t))[0]
    rates = np.asarray(call(process, "rates", x, t))[0]
    off = ~np.eye(process.states, dtype=bool)
    np.testing.assert_allclose(rates[off], step[off] / h, rtol=1e-4, atol=1e-4)
    if isinstance(process, processes.Categorical):
        limit, weights = (call(process, "jump", *pairs(process), *at) for at in ((t,), (t, t - h)))
        np.testing.assert_allclose(np.array(limit), np.array(weights) / h, rtol=1e-4, atol=1e-4)


def test_rates_are_finite_where_everything_is_masked():
    process = processes.absorbing(K, schedules.cosine())
    weights = call(process, "jump", np.array([[K]]), np.array([[0]]), 1.0)
    np.testing.assert_allclose(np.ravel(weights), [np.pi / 2, 0], rtol=1e-5)
    weights = call(processes.uniform(K), "jump", np.array([[1]]), np.array([[0]]), 1.0)
    assert np.ravel(weights).tolist() == [1, np.inf]


def test_the_gaussian_process_has_the_variance_it_says():
    process = processes.discretised_gaussian(64)
    q = matrix(process, np.float32(0.01))[32]
    d = np.arange(64) - 32
    assert abs((q * d**2).sum() / (-np.log(0.99) / (1 - np.cos(np.pi / 64))) - 1) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("process", [
    PROCESSES["mask and replace"],
    pytest.param(processes.marginal(np.array([0.5, 0.3, 0.2, 0.0])), marks=pytest.mark.slow),
], ids=["mask and replace", "marginal"])  # fmt: skip
def test_bounds_in_one_pass_over_the_logits_are_the_general_formulas(process, x64):
    """For every pair of tokens that can meet, at both ends too; the last token of pi is never drawn."""
    x_t, x0 = np.divmod(np.arange(process.states * K), K)
    likely = np.asarray(call(process, "likelihood", x_t, 0.5))[np.arange(len(x0)), x0] > 0
    x_t, x0 = x_t[None, likely], x0[None, likely]
    logits = np.random.default_rng(0).normal(size=(1, x0.size, K))

    def both(of, logits, t, s):
        finite = of.divergence(process, logits, x0, x_t, t, s)
        rate = of.rate_divergence(process, logits, x0, x_t, jnp.minimum(t, 0.99))
        return jnp.sum(jnp.arange(1, x0.size + 1)[None] * (finite + 0.3 * rate))

    both = jax.jit(jax.value_and_grad(both, 1), static_argnums=0)
    for t, s in ((0.7, 0.3), (0.2, 0.0), (1.0, 0.6)):
        ours, general = (both(of, logits, t, s) for of in (processes.Categorical, DiscreteProcess))
        np.testing.assert_allclose(ours[0], general[0], rtol=1e-6)
        np.testing.assert_allclose(ours[1], general[1], atol=1e-4)


@pytest.mark.slow
def test_the_bound_of_a_large_uniform_vocabulary_is_a_few_times_its_logits():
    shape, process = (8, 256, 32768), processes.uniform(32768)

    def loss(logits, x0, x_t, t):
        return process.rate_divergence(logits, x0, x_t, t).sum()

    tokens = jax.ShapeDtypeStruct(shape[:2], jnp.int32)
    arguments = jax.ShapeDtypeStruct(shape, jnp.float32), tokens, tokens, jax.ShapeDtypeStruct((8,), float)
    memory = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 5.2 * 4 * np.prod(shape)


@pytest.mark.parametrize("t", [1e-3, *(pytest.param(t, marks=pytest.mark.slow) for t in (0.05, 0.6))])
def test_the_gaussian_process_is_exact_for_what_is_all_but_impossible(t):
    """A network that believes every value likely, in float32, against the matrix exponential."""
    size, s = 16, 0.9 * t
    process, x0, x_t = processes.discretised_gaussian(size), 8, min(10 + int(20 * t), 15)
    walk = 0.5 * (np.eye(size, k=1) + np.eye(size, k=-1))
    walk -= np.diag(walk.sum(1))
    rate = 1 / (1 - np.cos(np.pi / size))
    q_t, q_s = (_exponential(-np.log1p(-time) * rate * walk) for time in (t, s))
    back = _exponential((np.log1p(-s) - np.log1p(-t)) * rate * walk)
    p, bound = np.full(size, 1 / size), 0.0
    for y in {x_t - 1, min(x_t + 1, size - 1)} - {x_t}:
        model, true = (p * q_t[:, y] / q_t[:, x_t]).sum(), q_t[x0, y] / q_t[x0, x_t]
        bound += 0.5 * rate / (1 - t) * (model - true + true * np.log(true / model))
    tokens, logits = (np.array([[x0]]), np.array([[x_t]])), np.zeros((1, 1, size), np.float32)
    np.testing.assert_allclose(call(process, "rate_divergence", logits, *tokens, t), [[bound]], rtol=2e-4)
    expected = np.einsum("k,ky,y->y", p / q_t[:, x_t], q_s, back[:, x_t])
    got = call(process, "posterior", tokens[1], logits, t, s)
    np.testing.assert_allclose(got, expected[None, None], atol=2e-4)
    likelihood = call(process, "likelihood", tokens[1], t)
    np.testing.assert_allclose(likelihood, q_t[None, None, :, x_t], rtol=1e-3)


def _exponential(a):
    """Of a matrix of rates, exact in its smallest entries: every term is positive (uniformisation)."""
    rate, power, total = -a.min(), np.eye(len(a)), np.zeros_like(a)
    weight, step = np.exp(-rate), np.eye(len(a)) + a / rate
    for k in range(1, 400):
        total, power, weight = total + weight * power, power @ step, weight * rate / k
    return total


@pytest.mark.slow
def test_a_schedule_per_token_gives_each_token_its_own_share(x64):
    powers = np.array([0.5, 1.0, 3.0])
    process = processes.absorbing(5, schedules.polynomial(powers))
    x0, u = np.zeros((7, 3), int), np.tile(0.3**powers, (7, 1))

    @jax.jit
    def run(keys, t):
        noise = process.noise(keys, x0)
        noisy = [process.perturb(x0, noise._replace(u=u + more), t) for more in (1e-6, -1e-6)]
        return *noisy, process.likelihood(x0, t)[..., 0]

    for t in (0.3, np.full(7, 0.3), np.full((7, 3), 0.3)):
        clean, masked, kept = map(np.asarray, run(jax.random.split(jax.random.key(0), 7), t))
        assert (clean == 0).all()
        assert (masked == 5).all()
        np.testing.assert_allclose(kept, np.tile(1 - 0.3**powers, (7, 1)), rtol=1e-6)


def test_schedules_run_from_one_to_zero():
    known = (schedules.linear(), schedules.cosine(), schedules.polynomial(2.0), schedules.log_linear())
    t = np.float32([0.1, 0.5, 0.8])

    def values(schedule, zero, t):
        difference = (schedule.level(t + 1e-2) - schedule.level(t - 1e-2)) / 2e-2
        return schedule.alpha(zero), schedule.time(schedule.level(t)), schedule.slope(t), difference

    found = jax.jit(lambda *at: [values(schedule, *at) for schedule in known])(np.float32(0.0), t)
    for start, time, slope, difference in found:
        np.testing.assert_allclose(start, 1, atol=1e-6)
        np.testing.assert_allclose(time, t, atol=1e-5)
        np.testing.assert_allclose(slope, difference, rtol=1e-3)
    finite = jax.jit(schedules.table(np.array([0.9, 0.4, 0.0])).alpha)(np.float32([0.0, 1 / 3, 2 / 3, 1.0]))
    np.testing.assert_allclose(finite, [1, 0.9, 0.4, 0], atol=1e-6)


def test_the_mask_token_need_not_fit_into_the_type_of_the_data():
    process, x0 = processes.absorbing(256), np.full((2, 3), 200, np.uint8)
    noise = call(process, "noise", jax.random.split(jax.random.key(0), 2), x0)
    assert (np.asarray(process.perturb(x0, noise, 1.0)) == 256).all()


def test_bad_input_is_named_before_compilation():
    process = processes.absorbing(K)
    noise = call(process, "noise", jax.random.split(jax.random.key(0), 2), np.zeros((2, 3)))
    with pytest.raises(ValueError, match="the mask token"):
        process.perturb(np.array([[0, 1, 4], [0, 1, 2]]), noise, 0.5)
    with pytest.raises(ValueError, match="token 7"):
        process.perturb(np.array([[0, 1, 7], [0, 1, 2]]), noise, 0.5)
    with pytest.raises(ValueError, match="integer tokens"):
        process.perturb(np.zeros((2, 3)), noise, 0.5)
    with pytest.raises(ValueError, match="from 1 at t = 0"):
        schedules.table(np.array([0.9, 0.4]))
    with pytest.raises(ValueError, match="decrease from 1"):
        schedules.table(np.array([0.5, 0.7, 0.0]))
    with pytest.raises(ValueError, match="expected a schedule"):
        processes.DiscretisedGaussian(4, None)
    with pytest.raises(ValueError, match="from 1 at t = 0"):
        schedules.Schedule(lambda t: 1 - t, {})
    with pytest.raises(ValueError, match="one time per example"):
        process.perturb(np.zeros((2, 3), int), noise, np.zeros(5))


@each
def test_the_exact_denoiser_is_bayes_rule_over_the_table(process, x64):
    table = np.random.default_rng(0).random((process.size,) * 3)
    target, t = testing.joint(table), np.float64(0.6)
    x = np.array([[0, process.states - 1, 1]])
    q = matrix(process, t)
    expected = target.probabilities.reshape(table.shape).copy()
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = -1
        expected *= q[:, x[0, axis]].reshape(shape)
    expected /= expected.sum()
    got = np.exp(jax.jit(target.denoiser(process))(x, t))[0]
    for axis in range(3):
        others = tuple(i for i in range(3) if i != axis)
        np.testing.assert_allclose(got[axis], expected.sum(others), atol=1e-6)


def test_a_tabled_schedule_takes_python_and_whole_times():
    schedule = schedules.table([0.5, 0.0])
    np.testing.assert_allclose([schedule.alpha(0.5), schedule.alpha(0.25)], [0.5, 0.75])
    np.testing.assert_allclose(schedule.alpha(jnp.array([0, 1])), [1.0, 0.0])


@pytest.mark.parametrize("loss", ["rate_divergence", pytest.param("divergence", marks=pytest.mark.slow)])
def test_a_schedule_of_the_gaussian_process_is_learned_at_every_time(loss):
    x0, x_t, times = np.array([[3]]), np.array([[5]]), np.float32([0.01, 0.1, 0.4, 0.9, 1.0])
    logits = np.random.default_rng(0).normal(size=(1, 1, 16)).astype(np.float32)

    def value(power, t):
        process = processes.discretised_gaussian(16, schedules.polynomial(power))
        earlier = (0.5 * t,) if loss == "divergence" else ()
        return getattr(process, loss)(logits, x0, x_t, t, *earlier)[0, 0]

    @jax.jit
    def both(step):
        ends = [jax.vmap(lambda t, p=p: value(p, t))(times) for p in (1.3 + step, 1.3 - step)]
        return jax.vmap(jax.grad(value), (None, 0))(1.3, times), (ends[0] - ends[1]) / (2 * step)

    found, differences = map(np.asarray, both(np.float32(0.01)))
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, differences, rtol=2e-2, atol=2e-2)
