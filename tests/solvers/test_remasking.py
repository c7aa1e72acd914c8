"""Remasking: its law with an exact denoiser, its shares of masks, whom it picks, and its loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff import grids, processes, testing
from jaxdiff.sampling import Draw
from jaxdiff.solvers import discrete
from jaxdiff.solvers.discrete.remasking import Scored

CHAIN = testing.markov_chain([0.5, 0.3, 0.2], [[0.8, 0.15, 0.05], [0.1, 0.6, 0.3], [0.3, 0.1, 0.6]], 2)
PARITY = testing.joint(1.0 - np.indices((2, 2, 2)).sum(0) % 2)  # all but one token are tosses of a coin
N = 12000


def draw(target, solver, grid, n=N, save="state"):
    process = processes.absorbing(target.size)

    def walk(keys):
        return jd.sample(
            keys, target.denoiser(process), process, solver, grid, shape=(target.length,), save=save
        )

    options = {"xla_backend_optimization_level": 1}  # the loop is what costs
    return jax.jit(walk, compiler_options=options)(jax.random.split(jax.random.key(0), n))


@pytest.mark.slow
@pytest.mark.parametrize("options, evaluations", [
    ({"eta": 0.2}, 100),
    ({"eta": 0.03, "limit": "cap"}, 100),
    ({"eta": 0.2, "start": 0.5}, 100),
    ({"eta": 0.03, "limit": "cap", "start": 0.3, "loop": 100}, 200),
], ids=["rescale", "cap", "switch", "loop"])  # fmt: skip
def test_remasking_keeps_the_law(options, evaluations):
    x, state = draw(CHAIN, discrete.remasking(**options), grids.uniform(processes.absorbing(3), 100))
    assert state.evaluations == evaluations
    assert CHAIN.total_variation(x) < 0.02


@pytest.mark.slow
def test_by_confidence_the_law_is_exact_where_confidence_says_nothing_of_values():
    """As eta becomes small: masks that pile up are drawn together at the end."""
    solver = discrete.remasking(0.05, spread="confidence")
    x, state = draw(PARITY, solver, grids.uniform(processes.absorbing(2), 200))
    assert state.evaluations == 200
    assert PARITY.total_variation(x) < 0.02


@pytest.mark.slow
def test_the_loop_mends_what_a_coarse_grid_does_wrong():
    """Three steps draw the tokens of a pair together too often; the loop draws them again one by one."""
    grid = [1.0, 0.6, 0.2, 0.0]
    distances = []
    for options in ({"eta": 0.0}, {"eta": 0.05, "start": 0.2, "loop": 100}):
        x, _ = draw(CHAIN, discrete.remasking(limit="cap", **options), grid)
        distances.append(CHAIN.total_variation(x))
    assert distances[1] < 0.4 * distances[0]


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"eta": 0.4}, {"eta": 0.2, "limit": "cap"}, {"eta": 0.4, "start": 0.5},
    {"eta": 0.3, "limit": "cap", "start": 0.4, "loop": 5},
], ids=["rescale", "cap", "switch", "loop"])  # fmt: skip
def test_the_share_of_masks_is_the_process_s_at_every_time(options):
    """Theorem 3.1, at steps as long as one likes."""
    grid = np.array([1.0, 0.8, 0.5, 0.4, 0.1, 0.0])
    path = draw(CHAIN, discrete.remasking(**options), grid, save="all")
    np.testing.assert_allclose((path == 3).mean((1, 2)), grid, atol=4 * 0.5 / np.sqrt(2 * N))


def test_unsure_tokens_are_remasked_first_and_those_of_the_start_never():
    """One step: the shares of sigma are a softmax over what was drawn, and masks are unmasked as without."""
    n, process = 40000, processes.absorbing(3)
    solver = discrete.remasking(0.9, spread="confidence")
    row = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)[0]), solver.plan(process, [0.6, 0.5]))
    x = np.tile(np.int32([0, 1, 2, 3]), (n, 1))
    score = np.tile(np.float32([0.9, 0.1, np.inf, np.inf]), (n, 1))
    log_p = np.log(np.float32([0.2, 0.3, 0.5]))
    noise = Draw(None, jax.random.split(jax.random.key(0), n))
    denoise = lambda x, t: jnp.broadcast_to(log_p, (n, 4, 3))  # noqa: E731
    state = jax.jit(lambda s: solver.step(denoise, s, row, noise))(Scored(x, jnp.int32(0), score))
    unsure = np.exp([-0.9, -0.1])
    expected = [*(0.9 * unsure / unsure.sum()), 0.0]  # sigma_max is 1 here: (1 - .5) / .4
    found, score = np.asarray(state.x), np.asarray(state.score)
    np.testing.assert_allclose((found[:, :3] == 3).mean(0), expected, atol=0.01)
    np.testing.assert_allclose((found[:, 3] != 3).mean(), 1 - 0.5 / 0.6, atol=0.01)
    drawn = found[:, 3] < 3
    np.testing.assert_allclose(score[drawn, 3], np.exp(log_p)[found[drawn, 3]], rtol=1e-5)
    assert np.isinf(np.where(found == 3, score, np.inf)).all()


def test_the_loop_stands_at_its_time_and_arrives_once():
    solver = discrete.remasking(0.1, start=0.3, loop=4)
    rows = solver.plan(processes.absorbing(3), [1.0, 0.6, 0.3, 0.1, 0.0])
    np.testing.assert_allclose(rows.t, [1, 0.6, 0.3, 0.3, 0.3, 0.3, 0.3, 0.1])
    np.testing.assert_allclose(rows.to, [0.6, 0.3, 0.3, 0.3, 0.3, 0.3, 0.1, 0])
    np.testing.assert_array_equal(rows.arrives, [1, 0, 0, 0, 0, 2, 3, 4])
    assert rows.nfe == 8 and rows.steps == 4


def test_bad_input_is_named():
    process = processes.absorbing(3)
    for options, message in (
        ({"eta": 2.0}, "eta in"), ({"start": 0.0}, "start in"), ({"loop": -1}, "loop to be"),
        ({"limit": "capped"}, "did you mean"), ({"spread": "confident"}, "did you mean"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            discrete.remasking(**options)
    for grid, start in (([1.0, 0.5, 0.0], 0.2), ([1.0, 0.0], 1.0)):
        with pytest.raises(ValueError, match="where the loop is"):
            discrete.remasking(start=start, loop=3).plan(process, grid)
    with pytest.raises(ValueError, match="absorbing process"):
        discrete.remasking().plan(processes.uniform(3), [1.0, 0.0])
