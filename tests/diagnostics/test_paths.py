"""Diagnostics along sampling paths, on a mixture with an exact and a spoiled denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

VP = jd.processes.VP()
MEANS = np.array([[-2.0], [0.0], [2.0]])
TARGET = jd.testing.gaussian_mixture(MEANS, np.full(3, 4e-3), np.full(3, 1 / 3))


@pytest.mark.slow
def test_fokker_planck_profile():
    times = np.array([0.2, 0.5, 0.8])
    wide = jd.testing.gaussian_mixture(MEANS, np.full(3, 0.1), np.full(3, 1 / 3))

    @jax.jit
    def profile(change):
        x0 = TARGET.sample(jax.random.key(0), 64)
        log_prob = lambda x, t: wide.log_prob(VP, x, t) + change * jnp.sum(jnp.sin(3 * x), -1)  # noqa: E731
        return jd.diagnostics.fokker_planck_profile(log_prob, VP, jax.random.key(1), x0, times, exact=True)

    exact, wrong = np.asarray(profile(0.0)), np.asarray(profile(0.05))
    np.testing.assert_allclose(exact, 0, atol=1e-3)
    assert np.all(wrong > 20 * exact + 1e-2)


@pytest.mark.slow
def test_the_gap_of_ode_and_sde_is_the_denoisers_error():
    grid, exact = jd.grids.log_snr(VP, 60), TARGET.denoiser(VP)

    @jax.jit
    def gap(change):
        def distance(x, y):
            return jnp.mean(jnp.abs(jnp.sort(x, 0) - jnp.sort(y, 0)))

        keys = jax.random.split(jax.random.key(0), 1500)
        return jd.diagnostics.ode_sde_gap(
            keys, lambda x, t: exact(x, t) + change * jnp.sin(4 * x), VP, grid, shape=(1,),
            ode=jd.solvers.dpmpp_multistep(2), sde=jd.solvers.dpmpp_multistep(2, tau=1.0), distance=distance,
        )  # fmt: skip

    right, wrong = (float(gap(change)) for change in (0.0, 0.3))
    assert right < 0.1
    assert wrong > 2 * right


@pytest.mark.slow
def test_samples_between_modes_wander():
    """A smoothed denoiser, as networks learn, puts samples between the modes; their scores stand out."""
    exact, blur = TARGET.denoiser(VP), np.linspace(-0.3, 0.3, 17, dtype=np.float32)

    def smooth(x, t):
        return jnp.mean(jax.vmap(lambda shift: exact(x + shift, t))(blur), 0)

    grid = jd.grids.log_snr(VP, 40)
    times = grid[(VP.log_snr(grid) > 1.5) & (VP.log_snr(grid) < 3.0)]

    def found(window):
        keys = jax.random.split(jax.random.key(1), 3000)
        return jd.diagnostics.hallucination(
            keys, smooth, VP, jd.solvers.ddim(), grid, window=window, shape=(1,)
        )

    x, score = jax.device_get(jax.jit(lambda: found((times[-1], times[0])))())
    between = np.abs(x - MEANS.T).min(1) > 0.3
    assert between.mean() > 0.01
    threshold = np.quantile(score[~between], 0.95)  # loses one in twenty of the good
    assert np.mean(score[between] > threshold) > 0.85
    with pytest.raises(ValueError, match="at least two times"):
        found((0.5, 0.5))
