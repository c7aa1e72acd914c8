import jax
import jax.numpy as jnp
import numpy as np

import jaxdiff as jd

T = jnp.array([0.1, 0.4, 0.8])


def test_published_weights_on_the_clean_estimate():
    process = jd.processes.VP()
    a, _, c = process.coefficients(np.asarray(T))
    snr = (a / c) ** 2
    w = jd.weightings
    np.testing.assert_allclose(w.min_snr(5.0)(process, T), np.minimum(snr, 5.0), rtol=1e-4)
    np.testing.assert_allclose(w.p2(1.0, 0.5)(process, T), snr / (1 + snr) ** 0.5, rtol=1e-4)
    np.testing.assert_allclose(w.edm(0.5)(process, T), snr + 4, rtol=1e-4)
    width = 1e-4
    slope = [np.exp(2 * process.log_snr(np.asarray(T) + s * width)) for s in (1, -1)]
    bound = -(slope[0] - slope[1]) / (2 * width) / 2 * (1 - 1e-3)
    np.testing.assert_allclose(w.likelihood()(process, T), bound, rtol=1e-3)
    gate = 1 / (1 + np.exp(np.log(snr) - 2.0))
    np.testing.assert_allclose(w.sigmoid(2.0)(process, T), bound * gate, rtol=1e-3)


def test_edm_weighting_is_unit_weight_on_the_network():
    sigma = jnp.array([0.01, 0.5, 30.0])
    process = jd.processes.EDM()
    k = jd.parameterizations.edm(0.7).coefficients(process, sigma)
    np.testing.assert_allclose(jd.weightings.edm(0.7)(process, sigma) * k.c_out**2, 1, rtol=1e-4)


def test_min_snr_on_noise_prediction_is_the_published_ratio():
    process = jd.processes.VP()
    a, _, c = process.coefficients(np.asarray(T))
    k = jd.parameterizations.noise().coefficients(process, T)
    weight = jd.weightings.min_snr(5.0)(process, T) * k.c_out**2
    np.testing.assert_allclose(weight, np.minimum(1, 5.0 / (a / c) ** 2), rtol=1e-4)


def test_times_moved_to_the_ends_have_no_weight():
    vp, times = jd.processes.VP(), jd.times.log_normal()
    flow, wide = jd.processes.RectifiedFlow(), jd.times.logit_normal(0.0, 9.0)

    @jax.jit
    def weights(t, of_flow):
        of_vp = jd.weightings.likelihood(times)(vp, t)
        return of_vp, jd.weightings.likelihood(wide)(flow, of_flow), times.density(vp, jnp.float32(0.3))

    ends = np.float32([vp.t_min, 0.3, vp.t_max]), np.float32([flow.t_min, 0.5, 1.0])
    got, finite, density = (np.asarray(found) for found in weights(*ends))
    np.testing.assert_array_equal(got[[0, 2]], 0.0)
    h = 1e-4
    high, low = (np.exp(2 * vp.log_snr(0.3 + s)) for s in (h, -h))
    np.testing.assert_allclose(got[1], (low - high) / (4 * h) / density, rtol=1e-3)
    assert np.isfinite(finite).all()
