import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

P = jd.parameterizations
NAMES = ["noise", "data", "v", "velocity", "score", "edm"]
PROCESSES = [
    jd.processes.VP(),
    jd.processes.EDM(),
    jd.processes.SubVP(),
    jd.processes.RectifiedFlow(t_max=0.999),
    jd.processes.Trigonometric(t_max=0.99),
]


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("name", NAMES)
def test_the_ideal_output_gives_back_clean_data(name, process):
    """c_skip (a x0 + c noise) + c_out target = x0: eight coefficients, each in its place."""
    parameterization = getattr(P, name)()
    t = np.linspace(process.t_min, process.t_max, 7)
    x0, noise = np.full(7, 0.3), np.full(7, -1.7)
    a, _, c = process.coefficients(t)
    k = parameterization.coefficients(process, t)
    target = parameterization.target(process, jnp.asarray(x0), jnp.asarray(noise), t)
    p, q = parameterization.target_coefficients(process, t)
    np.testing.assert_allclose(
        k.c_skip * (a * x0 + c * noise) + k.c_out * (p * x0 + q * noise), x0, rtol=1e-7
    )
    np.testing.assert_allclose(target, p * x0 + q * noise, rtol=1e-5)


def test_targets_are_the_published_ones():
    process, t = jd.processes.VP(), np.array([0.3])
    a, _, c = (k[0] for k in process.coefficients(t))
    da, _, dc = (k[0] for k in process.derivatives(t))
    targets = {
        "noise": (0, 1),
        "data": (1, 0),
        "v": (-c, a),
        "velocity": (da, dc),
        "score": (0, -1 / c),
    }
    for name, expected in targets.items():
        got = getattr(P, name)().target_coefficients(process, t)
        np.testing.assert_allclose([float(k[0]) for k in got], expected, rtol=1e-12)


def test_edm_is_table_1_of_the_paper():
    sigma, sd = np.array([0.002, 0.5, 80.0]), 0.5
    k = P.edm(sigma_data=sd).coefficients(jd.processes.EDM(), sigma)
    np.testing.assert_allclose(k.c_skip, sd**2 / (sigma**2 + sd**2), rtol=1e-12)
    np.testing.assert_allclose(k.c_out, sigma * sd / np.sqrt(sigma**2 + sd**2), rtol=1e-12)
    np.testing.assert_allclose(k.c_in, 1 / np.sqrt(sigma**2 + sd**2), rtol=1e-12)
    np.testing.assert_allclose(k.c_noise, np.log(sigma) / 4, rtol=1e-12)


def test_edm_does_not_depend_on_the_scale_of_the_process():
    """x / a of any process is an EDM sample of level c / a."""
    sigma = np.array([0.01, 0.7, 20.0])
    edm = P.edm(0.7).coefficients(jd.processes.EDM(), sigma)
    process = jd.processes.RectifiedFlow()
    t = process.time_of_log_snr(-np.log(sigma))
    a = process.coefficients(t)[0]
    flow = P.edm(0.7).coefficients(process, t)
    np.testing.assert_allclose(flow.c_skip * a, edm.c_skip, rtol=1e-10)
    np.testing.assert_allclose(flow.c_in * a, edm.c_in, rtol=1e-10)
    np.testing.assert_allclose(flow.c_out, edm.c_out, rtol=1e-10)
    np.testing.assert_allclose(flow.c_noise, edm.c_noise, rtol=1e-10)


@pytest.mark.parametrize("source", NAMES)
def test_conversions_agree_with_targets(source):
    process, t = jd.processes.VP(), jnp.array([0.05, 0.5, 0.9])
    x0, noise = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, 0.2, -0.6])
    x = process.perturb(x0, noise, t)
    given = getattr(P, source)()
    output = given.target(process, x0, noise, t)
    for name in NAMES:
        wanted = getattr(P, name)()
        converted = jd.convert(output, x, t, process, given, wanted)
        np.testing.assert_allclose(
            converted, wanted.target(process, x0, noise, t), rtol=2e-3, atol=2e-4, err_msg=f"to {name}"
        )


@pytest.mark.parametrize("name", NAMES)
def test_every_denoiser_returns_its_input_at_exact_data_time(name):
    x, net = np.float32([[0.5, -2.0]]), lambda x, c: x if name == "data" else 0.1 * x + c[:, None] * 0
    every = [jd.denoiser(net, process, getattr(P, name)()) for process in PROCESSES]
    for out in jax.jit(lambda x: [denoise(x, 0.0) for denoise in every])(x):
        np.testing.assert_allclose(out, x, rtol=1e-6)


def test_zero_terminal_snr():
    process = jd.processes.RectifiedFlow()
    told = [jd.denoiser(lambda x, c: x, process, kind) for kind in (P.data(), P.v(), P.velocity(), P.edm())]
    out = jax.jit(lambda x: [denoise(x, 1.0) for denoise in told])(np.ones((2, 3), np.float32))
    assert np.shape(out) == (4, 2, 3) and np.all(np.isfinite(out))
    for name in ("noise", "score"):
        with pytest.raises(ValueError, match=f"{name} prediction has no clean estimate where alpha = 0"):
            jd.denoiser(lambda x, c: x, process, getattr(P, name)())
        with pytest.raises(ValueError, match="use v"):
            jd.convert(jnp.ones(1), jnp.ones(1), 1.0, process, getattr(P, name)(), P.v())


def test_the_network_sees_one_time_per_example():
    seen = []
    net = lambda x, c: seen.append((x.shape, c.shape)) or x  # noqa: E731
    denoise = jd.denoiser(net, jd.processes.VP(), P.v())
    for shape, t in (((4, 2), 0.5), ((4, 2), np.full(4, 0.5)), ((4, 2, 3), np.full((4, 2), 0.5))):
        jax.eval_shape(lambda x, t=t: denoise(x, t), jnp.zeros(shape))
    assert seen == [((4, 2), (4,)), ((4, 2), (4,)), ((4, 2, 3), (4, 2))]
    with pytest.raises(ValueError, match="denoise: expected t of shape"):
        denoise(jnp.zeros((4, 2)), np.ones(3))


def test_classes_and_names_are_refused():
    for process, parameterization in ((jd.processes.VP, P.v()), (jd.processes.VP(), P.v), ("VP", P.v())):
        with pytest.raises(ValueError, match="denoiser: expected .* to be an object such as jd"):
            jd.denoiser(lambda x, c: x, process, parameterization)


def test_a_second_endpoint_that_would_broadcast_is_refused():
    denoise = jd.denoiser(lambda x, c: x, jd.processes.BrownianBridge(), P.data(), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match=r"denoiser: expected y of x's shape \(3, 2\), got \(1, 2\)"):
        denoise(jnp.ones((3, 2)), 0.5)
    assert denoise(jnp.ones((1, 2)), 0.5).shape == (1, 2)


def test_a_velocity_that_does_not_tell_the_data_is_refused():
    process, y = jd.processes.Residual(), jnp.ones((3, 2))  # a = a' = 0 at its end, and noise there
    with pytest.raises(ValueError, match=r"velocity prediction has no clean estimate .* edm\(\), v\(\) if"):
        jd.denoiser(lambda x, c: x, process, P.velocity(), y)
    with pytest.raises(ValueError, match=r"v\(\) or velocity\(\) if there is noise"):
        jd.denoiser(lambda x, c: x, jd.processes.RectifiedFlow(), P.noise())


def test_integers_are_refused():
    denoise = jd.denoiser(lambda x, c: x, jd.processes.VP(), P.v())
    with pytest.raises(ValueError, match="expected a floating x, got int32"):
        denoise(jnp.ones((3, 2), int), 0.5)


def test_wrong_sigma_data():
    with pytest.raises(ValueError, match="sigma_data"):
        P.edm(sigma_data=0.0)


ENDS = [jd.processes.VP(), jd.processes.EDM(), jd.processes.RectifiedFlow(), jd.processes.CosineVP()]


@pytest.mark.parametrize("process", ENDS, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("source", NAMES)
def test_conversions_at_both_ends_are_exact_or_refused(source, process):
    """The answer where sample and output tell it, else an error."""
    x0, noise, given = jnp.array([[0.3, -0.7]]), jnp.array([[1.1, 0.4]]), getattr(P, source)()
    for t in (0.0, process.t_max):
        x = process.perturb(x0, noise, t)
        output = given.target(process, x0, noise, t)
        for name in NAMES if np.all(np.isfinite(output)) else []:
            wanted = getattr(P, name)()
            expected = wanted.target(process, x0, noise, t)
            told = {"noise", "score"} if process.coefficients(t)[0] == 0 else {"data"} if t == 0 else set()
            silent = source in told and name not in told
            if silent or not np.all(np.isfinite(expected)):
                with pytest.raises(ValueError, match=f"convert: {source} prediction leaves {name}"):
                    jd.convert(output, x, t, process, given, wanted)
            else:
                converted = jd.convert(output, x, t, process, given, wanted)
                np.testing.assert_allclose(converted, expected, rtol=2e-4, atol=1e-5, err_msg=name)


def test_a_finite_score_or_infinite_velocity_without_noise_says_that_there_is_none():
    """At c = 0 noise = -c score: the clean data is x / a."""
    process, x = jd.processes.VP(), jnp.array([[0.3, -0.7]])
    for source in (P.score(), P.velocity()):
        clean = jd.convert(jnp.ones_like(x), x, 0.0, process, source, P.data())
        np.testing.assert_allclose(clean, x, rtol=1e-6)
        drawn = jd.convert(jnp.ones_like(x), x, 0.0, process, source, P.noise())
        np.testing.assert_array_equal(drawn, 0 * x)


def test_times_are_not_rounded_with_a_bfloat16_sample():
    seen = []
    net = lambda x, c: seen.append((x, c)) or x  # noqa: E731
    process = jd.processes.DiscreteVP(np.linspace(1e-4, 0.02, 1000))
    denoise = jd.denoiser(net, process, P.v())
    out, (x, c) = jax.jit(lambda x: (denoise(x, 0.502), seen[0]))(jnp.zeros((2, 3), jnp.bfloat16))
    assert out.dtype == jnp.bfloat16
    assert x.dtype == jnp.bfloat16 and abs(np.asarray(c)[0] - 501) < 1e-3


def test_an_output_of_another_shape_is_refused():
    denoise = jd.denoiser(lambda x, c: x[:, :1], jd.processes.VP(), P.v())
    with pytest.raises(ValueError, match=r"return x's shape \(4, 2\), got \(4, 1\)"):
        denoise(jnp.ones((4, 2)), 0.5)
