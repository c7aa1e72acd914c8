import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxdiff as jd


def fresh_keys():
    return jax.random.split(jax.random.key(0), 4000)


def ks(samples, cdf):
    return stats.kstest(np.asarray(samples), cdf).statistic


def test_distributions_against_their_laws():
    flow, edm, vp = jd.processes.RectifiedFlow(), jd.processes.EDM(), jd.processes.VP()
    laws = (
        (jd.times.uniform(), vp), (jd.times.log_normal(-0.8, 1.0), edm), (jd.times.log_snr(), vp),
        (jd.times.log_normal(-0.8, 1.0), vp), (jd.times.logit_normal(0.3, 0.8), flow),
        (jd.times.logit_normal(0.3, 0.8, shift=3.0), flow),
    )  # fmt: skip
    drawn = jax.jit(lambda: [law.draw(fresh_keys(), process) for law, process in laws])()
    uniform, sigma, even, t, u, shifted = (np.asarray(t, float) for t in drawn)
    assert ks(uniform, stats.uniform(1e-3, 1 - 1e-3).cdf) < 0.03
    assert ks(np.log(sigma), stats.norm(-0.8, 1.0).cdf) < 0.01
    high, low = vp.log_snr(vp.t_min), vp.log_snr(vp.t_max)
    assert ks(vp.log_snr(even), stats.uniform(low, high - low).cdf) < 0.01
    assert ks(-vp.log_snr(t), stats.norm(-0.8, 1.0).cdf) < 0.01
    assert ks(np.log(u / (1 - u)), stats.norm(0.3, 0.8).cdf) < 0.01
    np.testing.assert_allclose(shifted, 3 * u / (1 + 2 * u), rtol=1e-4)


def test_mode_is_the_published_map():
    u, s = np.linspace(0.01, 0.99, 9), 1.29
    flow, law = jd.processes.RectifiedFlow(), jd.times.mode(s)
    t = jax.jit(lambda u: law.quantile(flow, u, scale=s, shift=1.0))(u)
    v = 1 - u
    np.testing.assert_allclose(t, 1 - v - s * (np.cos(np.pi * v / 2) ** 2 - 1 + v), rtol=1e-5)
    assert np.all(np.diff(t) > 0)
    with pytest.raises(ValueError, match="scale in"):
        jd.times.mode(3.0)


@pytest.mark.keys_again
def test_strata_put_one_time_in_each_interval_however_the_batch_is_cut():
    vp = jd.processes.VP(t_min=1e-9)
    stratified, uniform = jd.times.stratified(), jd.times.uniform()

    @jax.jit
    def draws():
        keys = fresh_keys()[:16]
        half = stratified.draw(keys[8:], vp, (jnp.arange(8, 16), 16))
        return stratified.draw(keys, vp), uniform.draw(keys, vp), half

    t, alone, half = (np.asarray(drawn) for drawn in draws())
    assert np.array_equal(np.floor(t * 16), np.arange(16))
    assert not np.array_equal(np.floor(alone * 16), np.arange(16))
    np.testing.assert_array_equal(half, t[8:])


def test_times_stay_inside_the_process():
    laws = jd.times.log_normal(5.0, 4.0), jd.times.logit_normal(0, 9.0), jd.times.mode()
    every = jd.processes.VP(), jd.processes.EDM(), jd.processes.RectifiedFlow()
    drawn = jax.jit(lambda: [[law.draw(fresh_keys()[:500], process) for law in laws] for process in every])()
    for process, t in zip(every, np.asarray(drawn), strict=True):
        assert t.shape == (3, 500)
        assert t.min() >= np.float32(process.t_min) and t.max() <= process.t_max


def test_densities_are_those_of_the_quantiles():
    """p(q(u)) dq / du = 1."""
    u, vp = np.linspace(0.05, 0.95, 19, dtype=np.float32), jd.processes.VP()
    laws = jd.times.uniform(), jd.times.log_snr(), jd.times.log_normal(), jd.times.logit_normal(0.3, 0.8, 3.0)

    def product(law):
        t, slope = jax.jvp(lambda u: law.quantile(vp, u, **law.numbers), (u,), (jnp.ones_like(u),))
        return law.density(vp, t) * slope

    found = jax.jit(lambda: jnp.stack([product(law) for law in laws]))()
    np.testing.assert_allclose(found, 1.0, rtol=2e-3)
    with pytest.raises(ValueError, match="known density"):
        jd.times.mode().density(vp, u)


@pytest.mark.keys_again
def test_importance_sampling_keeps_the_likelihood_weighted_loss_and_lowers_its_variance():
    """For every process, in closed form: processes/test_every_process.py."""
    target, vp = jd.testing.gaussian(np.zeros(2), np.full(2, 0.5)), jd.processes.VP(t_min=0.01)
    x0 = jax.jit(lambda key: target.sample(key, 20_000))(jax.random.key(0))

    def loss(key, times):
        return jd.losses.denoising(
            target.denoiser(vp), key, x0, process=vp, parameterization=jd.parameterizations.data(),
            times=times, weighting=jd.weightings.likelihood(times),
        )  # fmt: skip

    laws = jd.times.stratified(), jd.times.log_snr()
    uniform, importance = jax.jit(lambda key: [loss(key, law) for law in laws])(jax.random.key(1))
    snr = [np.exp(2 * vp.log_snr(t)) for t in (vp.t_min, vp.t_max)]
    exact = 0.5 * np.log((1 + 0.5 * snr[0]) / (1 + 0.5 * snr[1]))  # the information of x_t_min about x0
    for found in (uniform, importance):
        assert abs(found.mean() - exact) < 3 * found.std() / np.sqrt(len(x0))
    assert importance.std() < 0.6 * uniform.std(), (importance.std(), uniform.std())
