import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.core import dataclass, static_field
from jaxdiff.processes import linear

BETAS = np.linspace(1e-4, 0.02, 1000)
ZERO_SNR = np.append(BETAS[:-1], 1.0)
PROCESSES = [
    jd.processes.VP(),
    jd.processes.VP(beta_min=0.2, beta_max=5.0),
    jd.processes.CosineVP(),
    jd.processes.SubVP(),
    jd.processes.VE(),
    jd.processes.EDM(),
    jd.processes.RectifiedFlow(),
    jd.processes.Trigonometric(),
    jd.processes.DiscreteVP(BETAS),
    jd.processes.DiscreteVP(ZERO_SNR),
]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)


def test_published_coefficients():
    t = np.linspace(0.05, 0.95, 7)
    p = jd.processes
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    a, b, c = p.VP(beta_min=0.1, beta_max=20.0).coefficients(t)
    np.testing.assert_allclose(a, np.exp(-integral / 2), rtol=1e-14)
    np.testing.assert_allclose(c, np.sqrt(1 - np.exp(-integral)), rtol=1e-13)
    assert np.all(b == 0)
    a, _, c = p.SubVP().coefficients(t)
    np.testing.assert_allclose((a, c), (np.exp(-integral / 2), 1 - np.exp(-integral)), rtol=1e-13)
    cosine = np.cos((t + 0.008) / 1.008 * np.pi / 2) / np.cos(0.008 / 1.008 * np.pi / 2)
    a, _, c = p.CosineVP().coefficients(t)
    np.testing.assert_allclose((a, c), (cosine, np.sqrt(1 - cosine**2)), rtol=1e-13)
    np.testing.assert_allclose(p.VE(0.02, 10.0).coefficients(t)[2], 0.02 * 500**t, rtol=1e-13)
    np.testing.assert_allclose(p.EDM().coefficients(t)[2], t)
    np.testing.assert_allclose(p.RectifiedFlow().coefficients(t)[::2], (1 - t, t))
    angles = np.pi * t / 2
    np.testing.assert_allclose(p.Trigonometric().coefficients(t)[::2], (np.cos(angles), np.sin(angles)))


def test_table_agrees_with_its_betas_and_with_the_continuous_process():
    process = jd.processes.DiscreteVP(BETAS)
    index = np.array([0, 1, 17, 500, 999])
    a, _, c = process.coefficients(process.time_of_index(index))
    np.testing.assert_allclose(a**2, np.cumprod(1 - BETAS)[index], rtol=1e-12)
    np.testing.assert_allclose(a**2 + c**2, 1, rtol=1e-14)
    np.testing.assert_allclose(process.c_noise(process.time_of_index(index)), index, atol=1e-9)
    between = process.log_snr(np.array([17.5, 17.0, 18.0]) / 1000)
    np.testing.assert_allclose(between[0], between[1:].mean(), rtol=1e-12)
    np.testing.assert_allclose(
        process.coefficients(0.7)[0], jd.processes.VP().coefficients(0.7)[0], rtol=2e-2
    )


@each
def test_ends_of_time_are_exact(process):
    assert [float(k) for k in process.coefficients(0.0)] == [1.0, 0.0, 0.0]

    @jax.jit
    def single(t):
        slopes = jax.jacfwd(lambda t: jnp.stack(process.coefficients(t)))(t)
        return process.coefficients(t), slopes, jax.grad(lambda t: sum(process.coefficients(t)))(t)

    at_data, slopes, _ = single(np.float32(0.0))
    assert [float(k) for k in at_data] == [1.0, 0.0, 0.0]
    assert process.log_snr(0.0) == np.inf
    assert process.time_of_log_snr(np.inf) == 0.0
    (a, _, c), _, gradient = single(np.float32(process.t_max))
    assert a >= 0 and np.isfinite(c)
    if a == 0:
        assert c == 1 and process.log_snr(process.t_max) == -np.inf
        assert process.time_of_log_snr(-np.inf) == process.t_max
    assert np.all(np.isfinite(slopes)) and np.isfinite(gradient)


@each
def test_log_snr_and_its_inverse(process):
    t = np.linspace(process.t_min, process.t_max, 41)[:-1]
    a, _, c = process.coefficients(t)
    log_snr = process.log_snr(t)
    np.testing.assert_allclose(log_snr, np.log(a / c), rtol=1e-10, atol=1e-10)
    assert np.all(np.diff(log_snr) < 0)
    np.testing.assert_allclose(process.time_of_log_snr(log_snr), t, rtol=1e-10)
    single = jax.jit(lambda t: process.time_of_log_snr(process.log_snr(t)))(np.float32(t))
    np.testing.assert_allclose(single, t, rtol=2e-5, atol=1e-7)


@each
def test_sde_reproduces_the_marginal_moments(process):
    t = np.linspace(process.t_min * 1.5, 0.98 * process.t_max, 9)
    width = 1e-5 * process.t_max
    a, _, c = process.coefficients(t)
    up, down = process.coefficients(t + width), process.coefficients(t - width)
    f, g2 = process.sde(t)
    rtol = 2e-2 if isinstance(process, jd.processes.DiscreteVP) else 2e-4  # a table has kinks
    np.testing.assert_allclose(f * a, (up[0] - down[0]) / (2 * width), rtol=rtol, atol=1e-6)
    slope = (up[2] ** 2 - down[2] ** 2) / (2 * width)
    np.testing.assert_allclose(2 * f * c**2 + g2, slope, rtol=rtol, atol=1e-8)
    x = jnp.ones((2, 3))
    np.testing.assert_allclose(
        process.drift(x, 0.5 * process.t_max)[0, 0], process.sde(0.5 * process.t_max)[0]
    )
    np.testing.assert_allclose(process.diffusion(t) ** 2, g2, rtol=1e-12)


def test_a_table_that_ends_in_noise_may_be_traced():
    process = jd.processes.DiscreteVP([0.1, 0.3, 1.0])
    t = np.array([0.0, 0.2, 0.5, 0.8, 1.0])
    for name in ("coefficients", "log_snr"):
        traced = jax.jit(lambda p, t, name=name: getattr(p, name)(t))(process, t)
        np.testing.assert_allclose(traced, getattr(process, name)(t), rtol=1e-5, atol=1e-6)
    levels = process.log_snr(t[1:])
    times = jax.jit(lambda p, levels: p.time_of_log_snr(levels))(process, levels)
    np.testing.assert_allclose(times, t[1:], rtol=1e-5)
    slope = jax.jit(jax.grad(lambda p: p.coefficients(0.8)[0]))(process)
    assert np.all(np.isfinite(slope.betas)) and np.all(slope.betas[:2] < 0)


def test_vp_sde_is_the_published_one():
    t = np.array([0.0, 0.3, 1.0])
    beta = 0.1 + t * 19.9
    f, g2 = jd.processes.VP().sde(t)
    np.testing.assert_allclose(f, -beta / 2, rtol=1e-12)
    np.testing.assert_allclose(g2, beta, rtol=1e-10)
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    np.testing.assert_allclose(
        jd.processes.SubVP().sde(t)[1], beta * (1 - np.exp(-2 * integral)), rtol=1e-9, atol=1e-12
    )


@each
def test_perturb_and_prior(process):
    x0 = np.arange(6, dtype=np.float32).reshape(2, 3)
    x, noise = jnp.asarray(x0), jnp.asarray(np.ones((2, 3), np.float32))
    t = 0.4 * process.t_max
    a, _, c = process.coefficients(t)
    np.testing.assert_allclose(process.perturb(x, noise, t), a * x0 + c, rtol=1e-5)
    per_example = np.asarray(process.perturb(x, noise, jnp.array([0.0, t])))
    np.testing.assert_allclose(per_example[0], x0[0])
    np.testing.assert_allclose(per_example[1], a * x0[1] + c, rtol=1e-5)
    draws = np.asarray(process.prior(jax.random.key(0), (20000,)))
    np.testing.assert_allclose(draws.std(), process.coefficients(process.t_max)[2], rtol=0.02)


def test_every_leaf_of_a_pytree_is_perturbed_at_the_same_times():
    process, t = jd.processes.VP(), jnp.array([0.1, 0.7])
    x0 = {"a": jnp.arange(6.0).reshape(2, 3), "b": (jnp.array([3.0, -1.0]),)}
    noise = jax.tree.map(lambda x: 1 - x, x0)
    x_t = process.perturb(x0, noise, t)
    np.testing.assert_array_equal(x_t["a"], process.perturb(x0["a"], noise["a"], t))
    np.testing.assert_array_equal(x_t["b"][0], process.perturb(x0["b"][0], noise["b"][0], t))
    bridge, y = jd.processes.BrownianBridge(), jax.tree.map(lambda x: x - 1, x0)
    x_t = bridge.perturb(x0, noise, t, y)
    np.testing.assert_array_equal(x_t["a"], bridge.perturb(x0["a"], noise["a"], t, y["a"]))


@each
def test_posterior_is_bayes_rule(process):
    """q(x_s | x_t, x0) is proportional to q(x_t | x_s) q(x_s | x0), on a grid of x_s."""
    t, s = 0.6 * process.t_max, 0.35 * process.t_max
    (a_t, _, c_t), (a_s, _, c_s) = process.coefficients(t), process.coefficients(s)
    x0, x_t = 0.3, a_t * 0.3 + 0.7 * c_t
    mean, std = process.posterior(np.array([x_t]), np.array([x0]), t, s)
    x_s = np.linspace(mean[0] - 9 * std, mean[0] + 9 * std, 4001)
    forward = c_t**2 - (a_t / a_s * c_s) ** 2
    log_q = -((x_t - a_t / a_s * x_s) ** 2) / (2 * forward) - (x_s - a_s * x0) ** 2 / (2 * c_s**2)
    weight = np.exp(log_q - log_q.max())
    weight /= weight.sum()
    np.testing.assert_allclose((weight * x_s).sum(), mean[0], rtol=1e-4, atol=1e-4 * std)
    np.testing.assert_allclose(np.sqrt((weight * (x_s - mean[0]) ** 2).sum()), std, rtol=1e-4)
    mean, std = process.posterior(jnp.array([x_t]), jnp.array([x0]), t, 0.0)
    assert mean[0] == jnp.float32(x0) and std == 0


def test_processes_are_pytrees_under_jit_grad_and_vmap():
    sweep = jax.tree.map(lambda *leaves: np.stack(leaves), jd.processes.VP(), jd.processes.VP(beta_max=5.0))
    a = jax.jit(jax.vmap(lambda p: p.coefficients(0.5)[0]))(sweep)
    expected = [jd.processes.VP(beta_max=m).coefficients(0.5)[0] for m in (20.0, 5.0)]
    np.testing.assert_allclose(a, expected, rtol=1e-6)
    slope = jax.jit(jax.grad(lambda b: jd.processes.VP(beta_min=b).coefficients(0.5)[0]))(0.1)
    a = jd.processes.VP().coefficients(0.5)[0]
    np.testing.assert_allclose(slope, a * -0.5 * (0.5 - 0.125), rtol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: jd.processes.VP(beta_min=-1.0), "beta_min .* above 0, got -1"),
        (lambda: jd.processes.VP(beta_max="20"), "beta_max .* above 0, got '20'"),
        (lambda: jd.processes.EDM(t_min=2.0, t_max=1.0), "t_min < t_max, got 2.0 and 1.0"),
        (lambda: jd.processes.VE(sigma_max=0.0), "sigma_max"),
        (lambda: jd.processes.VE(sigma_min=2.0, sigma_max=1.0), "sigma_min < sigma_max, got 2.0 and 1.0"),
        (lambda: jd.processes.RectifiedFlow(t_max=2.0), "t_min < t_max <= 1, got 0.001 and 2.0"),
        (lambda: jd.processes.LearnedVP(np.zeros(3), t_max=2.0), "t_min < t_max <= 1, got 0.001 and 2.0"),
        (lambda: jd.processes.kinetic_optimal(np.eye(3)).replace(t_min=2.0), "t_min < t_max <= 1, got 2.0 a"),
        (lambda: jd.processes.CosineVP(t_max=1.5), "t_max <= 1"),
        (lambda: jd.processes.Trigonometric(t_max=1.1), "t_max <= 1"),
        (lambda: jd.processes.DiscreteVP([0.1, 0.2], t_max=1.1), "t_max <= 1"),
        (lambda: jd.processes.DiscreteVP([]), r"got shape \(0,\)"),
        (lambda: jd.processes.DiscreteVP([0.1, 1.2]), "in \\(0, 1\\)"),
        (
            lambda: jd.processes.VP().perturb(jnp.ones((8, 2)), jnp.ones((8, 2)), jnp.ones(4)),
            "or \\(8,\\), got \\(4,\\)",
        ),
        (lambda: jd.processes.VP().perturb(jnp.ones((8, 2)), jnp.ones((8, 3)), 0.1), "noise of x0's shape"),
        (
            lambda: jd.processes.VP().perturb(jnp.ones(2), jnp.ones(2), 0.1, y=jnp.ones(2)),
            "no second endpoint",
        ),
        (lambda: jd.processes.VP().posterior(jnp.ones(2), jnp.ones(2), 0.1, 0.2), "s < t"),
        (
            lambda: jd.processes.VP().perturb(jnp.ones((8, 2), int), jnp.ones((8, 2)), 0.1),
            "perturb: expected a floating array, got int32",
        ),
    ],
)
def test_wrong_arguments(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_derivatives_on_the_host_are_compiled_once_for_grids_of_any_usual_length():
    process, t = jd.processes.VP(beta_max=17.0), np.linspace(1.0, 0.01, 60).reshape(3, 20)
    whole = process.derivatives(t)
    compiled = linear._compiled_slopes()._cache_size()
    for part in (np.s_[1], np.s_[2, 5], np.s_[:, :2], np.s_[0, ::3]):
        for got, slope in zip(process.derivatives(t[part]), whole, strict=True):
            np.testing.assert_array_equal(got, np.broadcast_to(slope, t.shape)[part], strict=True)
    assert linear._compiled_slopes()._cache_size() == compiled
    assert process.derivatives(np.ones(200))[0].shape == (200,)


class Plain(linear.LinearProcess):
    """A user's process that is no pytree."""

    t_min, t_max = 1e-3, 1.0

    def coefficients(self, t):
        return (1 - t) ** 2, 0 * t, t + 0.0


@dataclass
class Listed(Plain):
    """One whose structure has no hash."""

    names: list = static_field()


@pytest.mark.parametrize("process", [Plain(), Listed(["a"])], ids=["plain", "listed"])
def test_a_process_that_jit_does_not_take_has_derivatives(process):
    t = np.array([1.0, 0.6, 0.1])
    np.testing.assert_allclose(process.derivatives(t), [-2 * (1 - t), 0 * t, 1 + 0 * t], atol=1e-15)
    assert jd.solvers.heun().plan(process, t).nfe == 4


def test_the_prior_has_the_dtype_that_was_asked_for():
    for dtype in (jnp.bfloat16, jnp.float32):
        draw = functools.partial(jd.processes.VP().prior, shape=(4,), dtype=dtype)
        assert jax.eval_shape(draw, jax.random.key(0)).dtype == dtype
