import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

X0 = np.random.default_rng(1).normal(0.2, 0.5, (256, 3)).astype(np.float32)
P = jd.parameterizations
PROCESSES = [jd.processes.VP(), jd.processes.EDM(), jd.processes.RectifiedFlow(t_max=0.99)]


def ideal_net(process, parameterization, x0, error=0.0):
    """A network that knows the clean data: its output is the target plus `error`."""

    def net(scaled, c_noise):
        t = net.times
        k = parameterization.coefficients(process, t)
        x_t = scaled / jnp.reshape(k.c_in, (-1, 1))
        a, _, c = (jnp.reshape(v, (-1, 1)) for v in process.coefficients(t))
        return parameterization.target(process, x0, (x_t - a * x0) / c, t) + error

    return net


class Recorder:
    """A distribution of times that shows the loss's times to the network."""

    def __init__(self, times, net):
        self.times, self.net = times, net

    def draw(self, keys, process, strata=None):
        self.net.times = self.times.draw(keys, process, strata)
        return self.net.times


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", ["noise", "data", "v", "velocity", "score", "edm"])
def test_the_ideal_network_has_no_loss_and_an_error_of_one_half_costs_a_quarter(name, process):
    parameterization = getattr(P, name)()
    times = jd.times.log_normal(0.0, 0.5)
    for error in (0.0, 0.5):
        net = ideal_net(process, parameterization, X0, error)
        loss = jd.losses.denoising(
            net, jax.random.key(0), X0, process=process, parameterization=parameterization,
            times=Recorder(times, net),
        )  # fmt: skip
        assert loss.shape == (256,)
        np.testing.assert_allclose(loss, error**2, atol=2e-4)


def test_weighting_is_on_the_clean_estimate_whatever_is_predicted():
    """A network whose clean estimate is 0 loses w(t) |x0|^2 under every parameterization."""
    process, key = jd.processes.VP(t_min=0.05, t_max=0.9), jax.random.key(0)
    times, weighting = jd.times.uniform(), jd.weightings.min_snr(2.0)
    for name in ("noise", "data", "v", "velocity", "score", "edm"):
        parameterization = getattr(P, name)()

        def net(scaled, c_noise, parameterization=parameterization):
            k = parameterization.coefficients(process, net.times)
            c_skip, c_out, c_in = (jnp.reshape(v, (-1, 1)) for v in k[:3])
            return -c_skip * scaled / c_in / c_out

        loss = jd.losses.denoising(
            net, key, X0, process=process, parameterization=parameterization, weighting=weighting,
            times=Recorder(times, net),
        )  # fmt: skip
        expected = weighting(process, net.times) * np.mean(X0**2, axis=1)
        np.testing.assert_allclose(loss, expected, rtol=5e-3)


def test_the_loss_of_an_example_is_its_keys_alone():
    process, parameterization = jd.processes.VP(), P.v()

    def loss(key, x0, strata=None):
        return jd.losses.denoising(
            lambda x, c: 0.3 * x + c[:, None], key, x0, process=process,
            parameterization=parameterization, strata=strata,
        )  # fmt: skip

    keys = jax.random.split(jax.random.key(3), 256)
    whole = loss(keys, X0)
    parts = [loss(keys[i : i + 64], X0[i : i + 64], (np.arange(i, i + 64), 256)) for i in range(0, 256, 64)]
    np.testing.assert_array_equal(whole, np.concatenate(parts))
    one = loss(jax.random.key(9), X0)
    assert not np.allclose(one, loss(jax.random.key(10), X0))


def test_bfloat16_data_is_perturbed_in_float32():
    def net(x, c):
        assert x.dtype == jnp.float32
        return x.astype(jnp.bfloat16)

    loss = jd.losses.denoising(
        net, jax.random.key(0), X0.astype(jnp.bfloat16), process=jd.processes.VP(), parameterization=P.v()
    )
    assert loss.dtype == jnp.float32


def test_parts_of_a_pytree_share_their_times_and_the_mean_is_over_all_values():
    process, parts = jd.processes.VP(), {"u": X0[:8, :2], "v": X0[:8, 2:, None]}
    noise = jax.tree.map(np.cos, parts)

    def whole(tree):
        return jnp.concatenate([tree["u"], tree["v"][..., 0]], axis=1)

    def net(x, c_noise):
        return jax.tree.map(lambda x: jnp.sin(x) * c_noise.reshape(-1, *[1] * (x.ndim - 1)), x)

    settings = dict(process=process, parameterization=P.edm())

    @jax.jit
    def both(parts, noise):
        got = jd.losses.denoising(net, jax.random.key(0), parts, noise=noise, **settings)
        one = jd.losses.denoising(net, jax.random.key(0), whole(parts), noise=whole(noise), **settings)
        denoise = jd.denoiser(net, process, P.edm())
        clean = denoise(parts, 0.5)
        assert clean["v"].shape == (8, 1, 1)
        return (got, whole(clean)), (one, denoise(whole(parts), 0.5))

    for of_parts, of_whole in zip(*both(parts, noise), strict=True):
        np.testing.assert_allclose(of_parts, of_whole, rtol=1e-5)


def test_wrong_data():
    with pytest.raises(ValueError, match="expected x0 to be a floating array .* got uint8"):
        jd.losses.denoising(
            lambda x, c: x, jax.random.key(0), jnp.zeros((4, 2), jnp.uint8),
            process=jd.processes.VP(), parameterization=P.v(),
        )  # fmt: skip
    wrong = ([0.0, 1.0], "pytree of them, got float"), ({"u": X0, "v": X0[:3]}, "one batch axis")
    for data, words in wrong:
        with pytest.raises(ValueError, match=words):
            jd.losses.denoising(
                lambda x, c: x, jax.random.key(0), data, process=jd.processes.VP(), parameterization=P.v()
            )
    for name, value in dict(process="VP", parameterization=P.v, times="uniform", weighting="edm").items():
        settings = dict(process=jd.processes.VP(), parameterization=P.v()) | {name: value}
        with pytest.raises(ValueError, match=f"denoising: expected {name} to be an? .* such as jd"):
            jd.losses.denoising(lambda x, c: x, jax.random.key(0), X0, **settings)
    with pytest.raises(ValueError, match="keys"):
        jd.losses.denoising(
            lambda x, c: x, jax.random.split(jax.random.key(0), 3), X0,
            process=jd.processes.VP(), parameterization=P.v(),
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"denoising: expected net.* x's shape \(256, 3\), got \(256, 1\)"):
        jd.losses.denoising(
            lambda x, c: x[:, :1], jax.random.key(0), X0, process=jd.processes.VP(), parameterization=P.v()
        )


def test_wider_times_do_not_widen_what_the_network_sees(x64):
    seen = []

    def net(x, c_noise):
        seen.append((x.dtype, c_noise.dtype))
        return x

    settings = {"process": jd.processes.VP(), "weighting": jd.weightings.min_snr()}
    for x0, dtype in (X0, jnp.float32), (X0.astype(float), jnp.float64):
        loss = jax.eval_shape(
            lambda x: jd.losses.denoising(net, jax.random.key(0), x, parameterization=P.edm(), **settings), x0
        )
        assert seen == [(dtype, dtype)] and loss.dtype == dtype
        seen.clear()


def test_the_loss_of_a_schedule_weighs_by_the_density_of_its_times():
    times, x0 = jd.times.log_snr(), np.ones_like(X0)
    settings = {"process": jd.processes.VP(), "parameterization": jd.parameterizations.data(), "times": times}
    net = lambda x, c_noise: 0.5 * x  # noqa: E731
    squares = jd.losses.schedule(net, jax.random.key(0), x0, **settings)
    bound = jd.losses.denoising(
        net, jax.random.key(0), x0, weighting=jd.weightings.likelihood(times), **settings
    )
    np.testing.assert_allclose(squares, bound**2, rtol=1e-5)
