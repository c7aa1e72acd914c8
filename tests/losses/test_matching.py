"""Flow matching and average velocities, against exact fields."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

KEY = jax.random.key(0)
TARGET = jd.testing.gaussian_mixture(np.array([[1.5], [-1.5]]), np.array([0.05, 0.05]), np.array([0.5, 0.5]))


def exact_velocity(process):
    denoise = TARGET.denoiser(process)
    return lambda x, t: (x - denoise(x, t)) / t[:, None]


def test_flow_matching_is_denoising_of_the_velocity():
    process, velocity = jd.processes.RectifiedFlow(), jd.parameterizations.velocity()
    net = exact_velocity(process)

    @jax.jit
    def both(key, again):
        x0 = TARGET.sample(jax.random.key(1), 64)
        one = jd.losses.flow_matching(net, key, x0)
        return one, jd.losses.denoising(net, again, x0, process=process, parameterization=velocity)

    np.testing.assert_array_equal(*both(KEY, jax.random.clone(KEY)))


@pytest.mark.slow
def test_optimal_transport_lowers_the_least_loss():
    """The loss of the best field is the variance of the velocity, which the coupling lowers."""
    points = np.float32([[2.0, 0.0], [-2.0, 0.0]])
    x0 = points[np.arange(256) % 2]

    def net(x, t):  # the field of pairs that never cross: towards the point of one's own side
        return (x - jnp.sign(x[:, :1]) * points[:1]) / t[:, None]

    late = jd.times.Times(lambda process, u: 0 * u + 0.9, {}, False)

    @jax.jit
    def losses(key, again, x0):
        coupling = jd.couplings.optimal_transport()
        plain = jd.losses.flow_matching(net, key, x0, times=late).mean()
        return plain, jd.losses.flow_matching(net, again, x0, times=late, coupling=coupling).mean()

    plain, coupled = losses(KEY, jax.random.clone(KEY), x0)
    assert coupled < 0.5 * plain


@pytest.mark.slow
def test_interpolant_velocity_between_two_gaussians():
    """The least loss is at the closed-form velocity of a linear interpolant between independent Gaussians."""
    process = jd.processes.StochasticInterpolant(scale=0.5)
    x0, y = np.random.default_rng(0).standard_normal((2, 4096, 1), np.float32)
    x0, y = np.float32(0.5) * x0 + 1, y - 1

    def velocity(x, t, sign, scale):
        t = t[:, None]
        mean, variance = (1 - t) - t, 0.25 * (1 - t) ** 2 + t**2 + 0.25 * t * (1 - t)
        slope = -0.25 * (1 - t) + t + sign * 0.125 * (1 - 2 * t)
        return scale * (-2.0 + slope / variance * (x - mean))

    def noise(x, t, scale):  # E[noise | x_t] = -c score
        t = t[:, None]
        mean, variance = (1 - t) - t, 0.25 * (1 - t) ** 2 + t**2 + 0.25 * t * (1 - t)
        return scale * 0.5 * jnp.sqrt(t * (1 - t)) / variance * (x - mean)

    settings = {"process": process, "times": jd.times.Times(lambda process, u: 0.05 + 0.9 * u, {}), "y": y}

    @jax.jit
    def of_velocity(sign, scale):
        net = lambda x, t: velocity(x, t, sign, scale)  # noqa: E731
        return jd.losses.flow_matching(net, jax.random.key(0), x0, **settings).mean()

    @jax.jit
    def of_noise(scale):
        net, kind = lambda x, t: noise(x, t, scale), jd.parameterizations.noise()
        return jd.losses.denoising(net, jax.random.key(0), x0, parameterization=kind, **settings).mean()

    losses = [float(of_velocity(*change)) for change in ((1.0, 1.0), (-1.0, 1.0), (1.0, 1.05))]
    assert losses[0] < min(losses[1:]) - 1e-3, losses
    losses = [float(of_noise(scale)) for scale in (1.0, 0.8, 1.2)]
    assert losses[0] < min(losses[1:]) - 1e-3, losses


@pytest.mark.slow
@pytest.mark.keys_again
def test_mean_flow_is_solved_by_the_exact_average_velocity():
    """For one Gaussian the flow is linear, x_r = s_r / s_t x_t, and so is its average velocity."""
    std = 0.4

    def spread(t):
        return jnp.sqrt((1 - t) ** 2 * std**2 + t**2)

    def average(x, t, r):
        gap = jnp.where(t == r, 1.0, t - r)
        chord = (1 - spread(r) / spread(t)) / gap
        slope = (-(1 - t) * std**2 + t) / spread(t) ** 2
        return jnp.where(t == r, slope, chord)[:, None] * x

    x0 = std * np.random.default_rng(0).standard_normal((20000, 1), np.float32)
    apart = jd.times.Times(lambda process, u: 0.05 + 0.9 * u, {}, False)

    @jax.jit
    def slopes(x0, scale, early):
        """Gradients along two changes of the network: zero where it is the fixed point of its own target."""

        def loss(change):
            def changed(x, t, r):
                net = scale * average(x, t, jnp.where(early, t, r))
                return net + change[0] * x + change[1] * x * (t - r)[:, None]

            return jd.losses.mean_flow(changed, KEY, x0, share=1.0, times=apart).mean()

        return jax.grad(loss)(jnp.zeros(2))

    np.testing.assert_allclose(slopes(x0, 1.0, False), 0.0, atol=0.01)
    for wrong in ((1.1, False), (1.0, True)):
        assert np.abs(slopes(x0, *wrong)).max() > 0.02

    @jax.jit
    def rest(x0):
        keys, process = jax.random.split(KEY, 4000), jd.processes.RectifiedFlow()
        samples = [
            jd.sample(keys, None, process, jd.solvers.flow_map(average), grid, shape=(1,))
            for grid in (jd.grids.uniform(process, steps) for steps in (1, 3))
        ]
        return [jd.losses.mean_flow(average, KEY, x0, power=power) for power in (0.0, 1.0)], samples

    (plain, tamed), samples = jax.device_get(rest(x0[:64]))
    np.testing.assert_allclose(tamed, plain / (plain + 1e-3), rtol=1e-5)
    for x in samples:
        np.testing.assert_allclose(x.std(), std, rtol=0.05)


def test_stratified_times_of_average_velocities_are_drawn_apart():
    """In one stratum of 64 the two times of an example would differ by less than 1 / 64."""
    gaps = lambda x, t, r: 10 * (t - r)[:, None] + 0 * x  # noqa: E731
    x0, given, seen = np.zeros((64, 1), np.float32), jd.times.logit_normal(-0.4), []

    def told(x, t, r):
        jax.debug.callback(lambda gap: seen.append(np.max(gap)), t - r)
        return gaps(x, t, r)

    class Own:
        def draw(self, keys, process):
            return jnp.full(len(keys), 0.5)

    @jax.jit
    def losses():
        default = jd.losses.mean_flow(gaps, jax.random.key(1), x0, share=1.0)
        same = jd.losses.mean_flow(told, jax.random.key(1), x0, share=1.0, times=given)
        return default, same, jd.losses.mean_flow(gaps, jax.random.key(1), x0, times=Own())

    default, same, own = losses()
    np.testing.assert_array_equal(default, same)
    jax.effects_barrier()
    assert max(seen) > 0.3
    assert np.isfinite(own).all()


def test_average_velocities_of_another_shape():
    with pytest.raises(ValueError, match=r"mean_flow: expected net.* shape \(4, 3\), got \(4, 1\)"):
        jax.eval_shape(lambda key: jd.losses.mean_flow(lambda x, t, r: x[:, :1], key, jnp.ones((4, 3))), KEY)
