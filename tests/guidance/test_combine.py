"""Combined denoisers against the exactly tilted laws of Gaussians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

G = jd.guidance
VP = jd.processes.VP()
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 2)), jnp.float32)
T = 0.4


def normal(mean, variance=1.0):
    return jd.testing.gaussian(np.broadcast_to(mean, (2,)).astype(float), np.full(2, variance)).denoiser(VP)


def close(one, other):
    np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-5)


@pytest.mark.slow
def test_chained_conditions_tilt_the_score():
    """N(0, 1), then given c1 N(1, 1), then given both N(3, 1): scores are linear in the means."""
    chain = [normal(0.0), normal(1.0), normal(3.0)]
    close(G.chained(chain, [2.0, 0.5])(X, T), normal(2 * 1 + 0.5 * 2)(X, T))
    close(G.chained(chain, [1.5, 1.5])(X, T), normal(4.5)(X, T))  # two evaluations
    calls = []
    counted = [lambda x, t, D=D: calls.append(1) or D(x, t) for D in chain]
    G.chained(counted, [1.5, 1.5])(X, T)
    assert len(calls) == 2
    with pytest.raises(ValueError, match="one denoiser more"):
        G.chained(chain, [1.0])


def test_composed_conditions_and_negative_ones():
    pairs = (
        (G.composed(normal(0.0), [normal(1.0), normal(-0.5)], [2.0, 1.0]), normal(1.5)),
        (G.composed(normal(0.0), [normal(1.0), normal(2.0)], [3.0, -1.0]), normal(1.0)),
        (G.cluster_conditioned(normal(1.0), [normal(2.0), normal(0.0)], normal(0.0), 3.0, 1.0), normal(2.0)),
        (G.autoguidance(normal(1.0), normal(0.5), 2.0), normal(1.5)),
    )
    for out, expected in jax.jit(lambda x: [[denoise(x, T) for denoise in pair] for pair in pairs])(X):
        close(out, expected)
    with pytest.raises(ValueError, match="as many scales"):
        G.composed(normal(0.0), [normal(1.0)], [])


@pytest.mark.slow
def test_dynamic_scales_and_one_call():
    def denoise(x, t, condition):
        return VP.coefficients(t)[0] * x * condition[:, None]

    cond, uncond = jnp.full(6, 2.0), jnp.full(6, 0.5)
    pair = G.in_one_call(denoise, cond, uncond)
    two = G.classifier_free(
        lambda x, t: denoise(x, t, cond), lambda x, t: denoise(x, t, uncond), lambda t: 1 + 4 * t
    )
    close(G.classifier_free(pair, None, lambda t: 1 + 4 * t)(X, T), two(X, T))
    fixed = G.classifier_free(lambda x, t: denoise(x, t, cond), lambda x, t: denoise(x, t, uncond), 1 + 4 * T)
    close(two(X, T), fixed(X, T))
    per_example = jnp.arange(6.0)
    out = jax.vmap(lambda s: G.classifier_free(normal(1.0), normal(0.0), s)(X, T))(per_example)
    close(out[3], normal(3.0)(X, T))


def test_an_expert_that_is_not_asked_has_no_say():
    both = G.experts([lambda x, t: x, lambda x, t: x - jnp.inf], [0.5])
    out = np.asarray(jax.jit(both)(X, np.float32(3 * [0.1] + 3 * [0.9])))
    np.testing.assert_array_equal(out[:3], np.asarray(X)[:3])
    assert np.all(out[3:] == -np.inf)


@pytest.mark.slow
def test_experts_by_noise_level():
    mixed = G.experts([normal(0.0), normal(1.0), normal(2.0)], [0.3, 0.6])
    for t, mean in ((0.1, 0.0), (0.3, 1.0), (0.59, 1.0), (0.9, 2.0)):
        close(mixed(X, t), normal(mean)(X, t))
    t = jnp.array([0.1, 0.2, 0.3, 0.5, 0.7, 0.9])
    close(mixed(X, t)[4], normal(2.0)(X, t)[4])
    close(mixed(X, t)[2], normal(1.0)(X, t)[2])
    logs = G.experts([lambda x, t: x[:, 0], lambda x, t: x[:, 1]], [0.3])  # classifiers: one number each
    close(logs(X, t), jnp.where(t < 0.3, X[:, 0], X[:, 1]))
    with pytest.raises(ValueError, match="increasing edges"):
        G.experts([normal(0.0), normal(1.0)], [0.6, 0.3])


@pytest.mark.slow
def test_models_of_one_space_and_of_two():
    close(
        G.mixed([normal(0.0), normal(1.0)], [1.0, 3.0])(X, T),
        0.25 * normal(0.0)(X, T) + 0.75 * normal(1.0)(X, T),
    )
    # the other space is this one scaled by 2 and shifted, under another process: the same model there
    flow = jd.processes.RectifiedFlow()
    there = jd.testing.gaussian(np.full(2, 2 * 1.0 + 1), np.full(2, 4.0)).denoiser(flow)
    both = G.across(normal(1.0), there, 1.0, lambda x: 2 * x + 1, lambda x: (x - 1) / 2, VP, flow)
    a, _, c = VP.coefficients(T)  # noise in the other space is 2 noise
    clean = normal(1.0)(X, T)
    noise = (X - a * clean) / c
    t_other = flow.time_of_log_snr(VP.log_snr(T))
    a2, _, c2 = flow.coefficients(t_other)
    close(both(X, T), (there(a2 * (2 * clean + 1) + c2 * 2 * noise, t_other) - 1) / 2)
    t = jnp.linspace(0.2, 1.0, 6)
    turned = G.across(there, normal(1.0), 1.0, lambda x: (x - 1) / 2, lambda x: 2 * x + 1, flow, VP)
    np.testing.assert_allclose(turned(X, 1.0), np.full((6, 2), 3.0), atol=0.05)  # pure noise: the mean
    close(both(X, t)[2:3], both(X[2:3], t[2]))
    close(
        G.across(normal(1.0), there, 0.0, lambda x: 2 * x + 1, lambda x: (x - 1) / 2, VP, flow)(X, T), clean
    )
