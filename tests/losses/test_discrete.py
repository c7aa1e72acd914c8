"""Bounds of discrete diffusion against the exact entropy, and the losses that share their minimum."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from jaxdiff import processes, testing
from jaxdiff.core.categorical import categorical
from jaxdiff.losses import discrete
from jaxdiff.processes import schedules

TABLE = np.random.default_rng(1).gamma(0.6, size=(3, 3, 3)) + 0.02
TARGET = testing.joint(TABLE)
PROCESSES = {
    "absorbing": processes.absorbing(3, schedules.cosine()),
    "per token": processes.absorbing(3, schedules.polynomial(np.array([0.7, 1.0, 2.0]))),
    "uniform": processes.uniform(3),
    "mask and replace": processes.mask_and_replace(3, 0.6),
    "marginal": processes.marginal(np.array([0.5, 0.3, 0.2])),
    "gaussian": processes.discretised_gaussian(3),
}
SLOWER = ("per token", "uniform", "marginal")
each = pytest.mark.parametrize("process", [
    pytest.param(process, id=name, marks=[pytest.mark.slow] if name in SLOWER else [])
    for name, process in PROCESSES.items()
])  # fmt: skip
N = 40000


@functools.cache
def drawn():
    return np.asarray(jax.jit(TARGET.sample, static_argnums=1)(jax.random.key(0), N))


def data(n=N):
    return drawn()[:n]


NO_CHANGE, CHANGE = (1.0, np.zeros(3, np.float32)), (0.7, np.float32([0.3, 0.0, -0.2]))


def wrong(process, scale=CHANGE[0], shift=CHANGE[1]):
    """The exact denoiser with its log-odds changed."""
    exact = TARGET.denoiser(process)
    return lambda x, t: scale * exact(x, t) + shift[None, None]


@each
def test_the_continuous_bound_is_the_entropy_for_the_exact_denoiser_and_above_it_otherwise(process):
    @jax.jit
    def bound(x, scale, shift):
        return discrete.elbo(wrong(process, scale, shift), jax.random.key(1), x, process=process)

    losses = np.asarray(bound(data(), *NO_CHANGE))
    assert losses.shape == (N,)
    value, error = float(losses.mean()), float(losses.std() / np.sqrt(N))
    assert abs(value - TARGET.entropy()) < 5 * error + 0.02
    assert np.mean(bound(data(), *CHANGE)) > value + 0.03


@pytest.mark.slow
@each
def test_the_finite_bound_is_above_the_entropy_and_falls_to_it(process):
    net = TARGET.denoiser(process)

    def mean(steps):
        def loss(x):
            return discrete.finite_elbo(net, jax.random.key(1), x, process=process, steps=steps)

        return float(jax.jit(loss)(data()).mean())

    one, many = mean(1), mean(100)
    assert one > TARGET.entropy() + 0.04
    assert abs(many - TARGET.entropy()) < 0.08 < 2 * (one - TARGET.entropy())


@each
def test_gradients_are_finite_at_every_time(process):
    x0 = data(64)

    def loss(logits, t):
        noise = process.noise(jax.random.split(jax.random.key(4), 64), x0)
        x_t = process.perturb(x0, noise, t)
        rate = process.rate_divergence(logits, x0, x_t, jnp.minimum(t, 1 - 1e-4))
        return jnp.sum(rate) + jnp.sum(process.divergence(logits, x0, x_t, t, 0.9 * t))

    logits = np.random.default_rng(5).standard_normal((64, 3, 3), np.float32)
    gradient = jax.jit(jax.value_and_grad(loss))
    for t in (1e-4, 0.5, 1.0):
        value, slope = gradient(logits, t)
        assert np.isfinite(value) and np.isfinite(slope).all()


def test_a_schedule_per_token_is_learned_by_gradient():
    """A token's weight in the bound at time t is `power / t`, whatever the token."""
    x0 = data(2000)

    def loss(power):
        process = processes.absorbing(3, schedules.polynomial(power))
        x_t = jnp.full_like(x0, 3)
        return process.rate_divergence(jnp.zeros((2000, 3, 3)), x0, x_t, 0.5).mean(0).sum()

    slope = jax.jit(jax.grad(loss))(np.float32([0.5, 1.0, 3.0]))
    np.testing.assert_allclose(slope, np.log(3) / 0.5, rtol=1e-4)


def test_one_step_of_the_absorbing_bound_is_the_sum_of_marginal_entropies():
    process = processes.absorbing(3)
    net = TARGET.denoiser(process)
    loss = jax.jit(lambda x, key: discrete.finite_elbo(net, key, x, process=process, steps=1))
    losses = loss(data(), jax.random.key(0))
    table, expected = TABLE / TABLE.sum(), 0.0
    for axis in range(3):
        p = table.sum(tuple(i for i in range(3) if i != axis))
        expected -= (p * np.log(p)).sum()
    assert abs(np.mean(losses) - expected) < 0.02


def test_hybrid_adds_the_cross_entropy_of_clean_tokens():
    process, x0, key = processes.uniform(3), data(8), jax.random.key(0)
    logits = np.random.default_rng(2).standard_normal((8, 3, 3), np.float32)
    loss = jax.jit(
        lambda key, weight: discrete.hybrid(
            lambda x, t: logits, key, x0, process=process, steps=10, auxiliary=weight
        )
    )
    plain, both = np.asarray(loss(key, 0.0)), np.asarray(loss(jax.random.key(0), 0.3))
    cross = -np.take_along_axis(log_softmax(logits, -1), x0[..., None], -1).sum((1, 2))
    np.testing.assert_allclose(both - plain, 3.0 * cross, rtol=1e-4)


@pytest.mark.slow
@each
def test_score_entropy_of_the_ratios_is_the_bound(process):
    exact = TARGET.denoiser(process)
    ratios = lambda x, t: jnp.log(process.ratios(x, exact(x, t), t))  # noqa: E731
    x0 = data(512)
    ours = jax.jit(lambda x, key: discrete.score_entropy(ratios, key, x, process=process))
    bound = jax.jit(lambda x, key: discrete.elbo(exact, key, x, process=process))
    np.testing.assert_allclose(
        ours(x0, jax.random.key(1)), bound(x0, jax.random.key(1)), rtol=2e-3, atol=2e-3
    )


@pytest.mark.slow
def test_score_entropy_is_least_at_the_true_ratios_of_noisy_marginals():
    """Exact concrete scores of the noisy joint, by enumeration, are stationary."""
    process, x0 = processes.absorbing(3), data(20000)
    exact = TARGET.denoiser(process)

    @jax.jit
    @jax.value_and_grad
    def loss(shift):
        net = lambda x, t: jnp.log(process.ratios(x, exact(x, t), t)) + shift  # noqa: E731
        return discrete.score_entropy(net, jax.random.key(3), x0, process=process).mean()

    value, slope = loss(0.0)
    assert abs(float(slope)) < 0.05
    assert loss(0.2)[0] > value < loss(-0.2)[0]


@pytest.mark.slow
@pytest.mark.parametrize("schedule", [schedules.linear(), schedules.cosine()], ids=["linear", "cosine"])
def test_the_any_order_loss_is_the_bound_in_expectation(schedule):
    process = processes.absorbing(3, schedule)

    @jax.jit
    def any_order(x, scale, shift):
        return discrete.any_order(wrong(process, scale, shift), jax.random.key(1), x, process=process)

    bound = jax.jit(lambda x: discrete.elbo(wrong(process), jax.random.key(1), x, process=process))(data())
    order = any_order(data(), *CHANGE)
    error = np.hypot(bound.std(), order.std()) / np.sqrt(N)
    assert abs(float(bound.mean() - order.mean())) < 4 * error
    assert order.std() < bound.std()
    order = any_order(data(), *NO_CHANGE)
    assert abs(float(order.mean()) - TARGET.entropy()) < 4 * float(order.std()) / np.sqrt(N)


def test_marginals_that_agree_have_no_loss():
    process, x0 = processes.absorbing(3), data(256)
    exact = TARGET.denoiser(process)
    shifted = discrete.normalised(lambda x: TARGET.log_marginal(x) + 3.0, process)

    def loss(scale, key):
        marginal = lambda x: scale * shifted(x)  # noqa: E731
        return discrete.marginalization(marginal, exact, key, x0, process=process)

    loss = jax.jit(loss)
    np.testing.assert_allclose(loss(1.0, jax.random.key(0)), 0, atol=1e-8)
    assert np.mean(loss(1.1, jax.random.key(0))) > 1e-3


@pytest.mark.slow
def test_marginals_learned_from_self_consistency_match_enumeration():
    """A table over partly known ring states, trained on the exact conditionals of an Ising chain."""
    import optax

    target, process = testing.ising_chain(8, 0.4, 0.1), processes.absorbing(2)
    exact = target.denoiser(process)
    x_all = jnp.asarray(np.stack(np.meshgrid(*[range(3)] * 8, indexing="ij"), -1).reshape(-1, 8))
    place = 3 ** jnp.arange(7, -1, -1)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.1, 1500))

    def loss(table, key):
        marginal = discrete.normalised(lambda x: table[(x * place[None]).sum(-1)], process)
        x0 = jax.random.randint(jax.random.fold_in(key, 1), (256, 8), 0, 2)
        return discrete.marginalization(
            marginal, exact, jax.random.fold_in(key, 2), x0, process=process
        ).mean()

    @jax.jit
    def train(table):
        def step(carry, key):
            updates, state = optimizer.update(jax.grad(loss)(carry[0], key), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        keys = jax.random.split(jax.random.key(0), 1500)
        return jax.lax.scan(step, (table, optimizer.init(table)), keys)[0][0]

    table = train(jnp.zeros(3**8))
    error = jnp.abs(table - table[-1] - target.log_marginal(x_all))
    assert float(jnp.mean(error)) < 0.05


def test_energy_matching_has_the_gradient_of_the_divergence():
    logits, target = np.float32([0.3, -0.2, 0.5, 0.0]), jnp.array([1.0, 0.0, -1.0, 0.4])

    def divergence(w):
        log_p = jax.nn.log_softmax(w)
        return jnp.sum(jnp.exp(log_p) * (log_p - target))

    @jax.jit
    def slopes(logits):
        x = categorical(jax.random.split(jax.random.key(0), 200000), jnp.broadcast_to(logits, (200000, 4)))
        loss = lambda w: discrete.energy_matching(  # noqa: E731
            lambda x: jax.nn.log_softmax(w)[x], x, lambda x: target[x]
        ).mean()
        return jax.grad(loss)(logits), jax.grad(divergence)(logits)

    np.testing.assert_allclose(*slopes(logits), atol=0.01)


@pytest.mark.slow
def test_residual_nce_finds_the_log_ratio():
    """Two bits that are equal: the factorised denoiser misses it, and the energy makes up for it."""
    target, process = testing.joint([[0.45, 0.05], [0.05, 0.45]]), processes.absorbing(2)
    net = target.denoiser(process)
    x0 = np.asarray(jax.jit(lambda key: target.sample(key, 50000))(jax.random.key(0)))

    @jax.jit
    @jax.value_and_grad
    def loss(w):
        def energy(x, x_t, t, logits):
            both = jnp.all(x_t == 2, axis=1)
            return both * jnp.where(x[:, 0] == x[:, 1], w[0], w[1])

        return discrete.residual_nce(energy, net, jax.random.key(1), x0, process=process).mean()

    exact = np.log(np.float32([0.25 / 0.45, 0.25 / 0.05]))
    least, slope = loss(exact)
    np.testing.assert_allclose(slope, 0, atol=0.01)
    assert least < loss(exact + np.float32(0.3))[0] and least < loss(np.zeros(2, np.float32))[0]

    @jax.jit
    def energies(x, x_t):
        return discrete.autoregressive_energy(target.log_prob, process)(x, x_t, 1.0, net(x_t, None))

    values = energies(np.asarray(target.states), np.full((4, 2), 2))
    np.testing.assert_allclose(values, exact[[0, 1, 1, 0]], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["absorbing", "uniform"])
def test_the_autoregressive_energy_makes_bayes_rule_of_any_denoiser(name):
    """`mu exp(-E)` over all sequences is `p(x0 | x_t)`, also where noisy tokens are not masks."""
    process, x_t = PROCESSES[name], np.array([[0, PROCESSES[name].states - 1, 2]])
    net = wrong(process)

    @jax.jit
    def work(x, one):
        logits, x_t = jnp.tile(net(one, 0.6), (27, 1, 1)), jnp.tile(one, (27, 1))
        energy = discrete.autoregressive_energy(TARGET.log_prob, process)(x, x_t, 0.6, logits)
        log_mu = jnp.take_along_axis(jax.nn.log_softmax(logits), x[..., None], -1)[..., 0]
        consistent = (process.consistent(x, x_t) == x).all(1)
        log_mu = jnp.sum(jnp.where(process.hidden(x_t), log_mu, 0.0), 1)
        got = jax.nn.softmax(jnp.where(consistent, log_mu - energy, -jnp.inf))
        return got, TARGET.posterior(process, one, 0.6)[0]

    np.testing.assert_allclose(*work(np.int32(TARGET.states), x_t), atol=1e-5)


def test_the_masked_bound_stays_within_its_logits():
    shape, process = (8, 256, 32768), processes.absorbing(32768)

    def loss(logits, x0):
        return discrete.elbo(lambda x, t: logits, jax.random.key(0), x0, process=process).mean()

    arguments = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct(shape[:2], jnp.int32)
    memory = jax.jit(jax.value_and_grad(loss)).lower(*arguments).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 1.2 * 4 * np.prod(shape)


@pytest.mark.slow
def test_bytes_are_tokens_of_a_larger_vocabulary():
    """Neither the mask token nor the places of the logits fit into the type of the data."""
    process, x0 = processes.absorbing(300), np.full((2, 3), 10, np.uint8)
    net = lambda x, t: jnp.zeros((*x.shape, 300)) + (x[..., None] == 300)  # noqa: E731
    for loss in (discrete.elbo, discrete.any_order):
        of = jax.jit(lambda key, x, f=loss: f(net, key, x, process=process))
        wide = of(jax.random.key(0), x0.astype(np.int32))
        np.testing.assert_array_equal(of(jax.random.key(0), x0), wide)
        assert (wide > 0).all()


def test_bad_input_is_named():
    process, key = processes.absorbing(3), jax.random.key(0)
    net = lambda x, t: jnp.zeros((*x.shape, 4))  # noqa: E731
    with pytest.raises(ValueError, match="mask token"):
        discrete.elbo(net, key, np.full((2, 3), 3), process=process)
    with pytest.raises(ValueError, match="logits of the 3 clean tokens"):
        jax.eval_shape(lambda key: discrete.elbo(net, key, np.zeros((2, 3), int), process=process), key)
    for other in (processes.uniform(3), processes.mask_and_replace(3, 0.6)):
        with pytest.raises(ValueError, match="absorbing process"):
            discrete.any_order(net, jax.random.key(0), np.zeros((2, 3), int), process=other)


@pytest.mark.parametrize("name", ["absorbing", pytest.param("uniform", marks=pytest.mark.slow)])
def test_under_jit_the_loss_of_tokens_that_are_not_clean_is_nan(name):
    """The mask token, one above it and one below 0; at few masks they need not have been drawn."""
    process = PROCESSES[name]
    x0 = np.int32([[0, 1, 2], [0, 3, 1], [4, 0, 0], [1, -1, 2]])
    net = lambda x, t: jnp.zeros((*x.shape, 3))  # noqa: E731

    def losses(x0, key):
        one, other = jax.random.split(key)
        finite = discrete.finite_elbo(net, one, x0, process=process, steps=10)
        return finite, discrete.elbo(net, other, x0, process=process)

    for loss in jax.jit(losses)(x0, jax.random.key(0)):
        np.testing.assert_array_equal(np.isfinite(loss), [True, False, False, False])
    if name == "absorbing":
        loss = jax.jit(lambda x, key: discrete.any_order(net, key, x, process=process))
        np.testing.assert_array_equal(np.isfinite(loss(x0, jax.random.key(1)))[1:], [False] * 3)
