"""Combined denoisers against the exactly tilted laws of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

G = jd.guidance
VP = jd.processes.VP()
X = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
T = 0.4


def normal(mean, variance=1.0):
    return jd.testing.gaussian(np.broadcast_to(mean, (2,)).astype(float), np.full(2, variance)).denoiser(VP)


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


def agree(*pairs):
    """The denoisers of each pair are the same, asked in one program."""
    for out, expected in jax.jit(lambda x: [[denoise(x, T) for denoise in pair] for pair in pairs])(X):
        close(out, expected)


@pytest.mark.slow
def test_chained_conditions_tilt_the_score():
    """N(0, 1), then given c1 N(1, 1), then given both N(3, 1): scores are linear in the means."""
    chain = [normal(0.0), normal(1.0), normal(3.0)]
    calls = []
    counted = [lambda x, t, D=D: calls.append(1) or D(x, t) for D in chain]
    agree(
        (G.chained(chain, [2.0, 0.5]), normal(2 * 1 + 0.5 * 2)),
        (G.chained(counted, [1.5, 1.5]), normal(4.5)),
    )
    assert len(calls) == 2  # two evaluations of three denoisers
    with pytest.raises(ValueError, match="one denoiser more"):
        G.chained(chain, [1.0])


def test_composed_conditions_and_negative_ones():
    agree(
        (G.composed(normal(0.0), [normal(1.0), normal(-0.5)], [2.0, 1.0]), normal(1.5)),
        (G.composed(normal(0.0), [normal(1.0), normal(2.0)], [3.0, -1.0]), normal(1.0)),
        (G.cluster_conditioned(normal(1.0), [normal(2.0), normal(0.0)], normal(0.0), 3.0, 1.0), normal(2.0)),
        (G.autoguidance(normal(1.0), normal(0.5), 2.0), normal(1.5)),
    )
    with pytest.raises(ValueError, match="as many scales"):
        G.composed(normal(0.0), [normal(1.0)], [])


@pytest.mark.slow
def test_dynamic_scales_and_one_call():
    def denoise(x, t, condition):
        return VP.coefficients(t)[0] * x * condition[:, None]

    cond, uncond, scale = np.full(6, 2.0, np.float32), np.full(6, 0.5, np.float32), lambda t: 1 + 4 * t
    parts = [lambda x, t, c=c: denoise(x, t, c) for c in (cond, uncond)]
    two = G.classifier_free(*parts, scale)

    def third(x, t):
        scaled = lambda s: G.classifier_free(normal(1.0), normal(0.0), s)(x, t)  # noqa: E731
        return jax.vmap(scaled)(jnp.arange(6.0))[3]

    agree(
        (G.classifier_free(G.in_one_call(denoise, cond, uncond), None, scale), two),
        (two, G.classifier_free(*parts, 1 + 4 * T)),
        (third, normal(3.0)),
    )


def test_an_expert_that_is_not_asked_has_no_say():
    both = G.experts([lambda x, t: x, lambda x, t: x - jnp.inf], [0.5])
    out = np.asarray(jax.jit(both)(X, np.float32(3 * [0.1] + 3 * [0.9])))
    np.testing.assert_array_equal(out[:3], X[:3])
    assert np.all(out[3:] == -np.inf)


@pytest.mark.slow
def test_experts_by_noise_level():
    mixed = G.experts([normal(0.0), normal(1.0), normal(2.0)], [0.3, 0.6])
    logs = G.experts([lambda x, t: x[:, 0], lambda x, t: x[:, 1]], [0.3])  # classifiers: one number each

    @jax.jit
    def found(x, t):
        at = (0.1, 0.0), (0.3, 1.0), (0.59, 1.0), (0.9, 2.0)
        alone = [(mixed(x, t), normal(mean)(x, t)) for t, mean in at]
        return alone, mixed(x, t), normal(1.0)(x, t), normal(2.0)(x, t), logs(x, t)

    t = np.float32([0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
    alone, out, middle, last, chosen = jax.device_get(found(X, t))
    for pair in alone:
        close(*pair)
    close(out[4], last[4])
    close(out[2], middle[2])
    close(chosen, np.where(t < 0.3, X[:, 0], X[:, 1]))
    with pytest.raises(ValueError, match="increasing edges"):
        G.experts([normal(0.0), normal(1.0)], [0.6, 0.3])


@pytest.mark.slow
def test_models_of_one_space_and_of_two():
    # the other space is this one scaled by 2 and shifted, under another process: the same model there
    flow = jd.processes.RectifiedFlow()
    there = jd.testing.gaussian(np.full(2, 2 * 1.0 + 1), np.full(2, 4.0)).denoiser(flow)
    ways = lambda x: 2 * x + 1, lambda x: (x - 1) / 2
    both, own = (G.across(normal(1.0), there, weight, *ways, VP, flow) for weight in (1.0, 0.0))
    turned = G.across(there, normal(1.0), 1.0, *ways[::-1], flow, VP)
    a, _, c = VP.coefficients(T)  # noise in the other space is 2 noise
    t_other = flow.time_of_log_snr(VP.log_snr(T))
    a2, _, c2 = flow.coefficients(t_other)

    def by_hand(x, t):
        clean = normal(1.0)(x, t)
        noise = (x - a * clean) / c
        return (there(a2 * (2 * clean + 1) + c2 * 2 * noise, t_other) - 1) / 2

    agree(
        (G.mixed([normal(0.0), normal(1.0)], [1.0, 3.0]),
         lambda x, t: 0.25 * normal(0.0)(x, t) + 0.75 * normal(1.0)(x, t)),
        (both, by_hand),
        (own, normal(1.0)),
    )  # fmt: skip

    @jax.jit
    def found(x, t):
        return turned(x, 1.0), both(x, t)[2:3], both(x[2:3], t[2])

    end, *rows = found(X, np.linspace(0.2, 1.0, 6, dtype=np.float32))
    np.testing.assert_allclose(end, np.full((6, 2), 3.0), atol=0.05)  # pure noise: the mean
    close(*rows)
