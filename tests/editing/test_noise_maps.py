"""Recorded noise, interpolation and alignment."""

import jax
import numpy as np
import pytest

import jaxdiff as jd

E, S = jd.editing, jd.solvers
VP = jd.processes.VP()
GRID = jd.grids.log_snr(VP, 20, end=VP.t_min)
A = jd.testing.gaussian_mixture(
    np.array([[2.0, 0.0], [0.0, 0.0]]), np.array([0.3, 0.3]), np.array([0.5, 0.5])
)
B = jd.testing.gaussian_mixture(
    np.array([[2.0, 5.0], [0.0, 5.0]]), np.array([0.3, 0.3]), np.array([0.5, 0.5])
)
RNG = np.random.default_rng(0)
X0 = [2.0, 0.0] * RNG.integers(2, size=(400, 1)) + np.sqrt(0.3) * RNG.normal(size=(400, 2))
X0 = X0.astype(np.float32)


@pytest.mark.parametrize("path", ["independent", "chain"])
@pytest.mark.parametrize(
    "solver", [S.ancestral(), S.dpmpp_multistep(1, tau=0.7), S.euler_maruyama()], ids=lambda s: s.name
)
def test_replayed_maps_give_the_data_back(path, solver):
    maps = E.encode(jax.random.key(1), A.denoiser(VP), VP, solver, GRID, X0, path)
    back = jd.sample(maps.noise, A.denoiser(VP), VP, solver, GRID, x=maps.start)
    np.testing.assert_allclose(back, X0, atol=1e-5)


@pytest.mark.slow
def test_edit_friendly_maps_are_wide_and_turn_back_and_chains_are_normal():
    fine = jd.grids.log_snr(VP, 400, end=VP.t_min)

    def noise(seed, grid, x0, *path):
        maps = E.encode(jax.random.key(seed), A.denoiser(VP), VP, S.ancestral(), grid, x0, *path)
        return np.asarray(maps.noise)

    friendly, chain = noise(1, GRID, X0), noise(2, GRID, X0, "chain")
    long = noise(2, fine, X0[:50], "chain")
    z = friendly[3:17]
    assert z.var() > 1.5 * chain[3:17].var()
    np.testing.assert_allclose(long[50:350].var(), 1.0, atol=0.1)  # the forward chain's own noise
    assert np.mean(z[1:] * z[:-1]) / np.mean(z**2) < -0.1


def test_cycle_between_two_domains_keeps_what_they_share():
    """B is A moved by 5: the maps of A replayed with B's model translate each example."""
    maps = E.encode(jax.random.key(3), A.denoiser(VP), VP, S.ancestral(), GRID, X0, "chain")
    run = jax.jit(lambda noise, x: jd.sample(noise, B.denoiser(VP), VP, S.ancestral(), GRID, x=x))
    y = np.asarray(run(maps.noise, maps.start))
    np.testing.assert_allclose(y[:, 1].mean(), X0[:, 1].mean() + 5, atol=0.3)
    assert np.corrcoef(y[:, 0], X0[:, 0])[0, 1] > 0.9


def test_sdedit_changes_more_the_more_is_hidden():
    keys = jax.random.split(jax.random.key(4), 400)
    moved = []
    for level in (2.0, -2.0):
        grid = VP.time_of_log_snr(np.linspace(level, 4.0, 21))
        run = jax.jit(lambda keys, grid=grid: E.sdedit(keys, A.denoiser(VP), VP, S.ddim(), grid, X0))
        x = np.asarray(run(keys))
        moved.append(np.abs(x - X0).mean())
        np.testing.assert_allclose(x.std(0), X0.std(0), rtol=0.15)
    assert moved[0] < 0.3 < 0.5 < moved[1]


def test_interpolation_stays_on_the_sphere():
    one, other = np.random.default_rng(5).normal(size=(2, 4, 500)).astype(np.float32)
    slerp, smoothness = jax.jit(E.slerp), jax.jit(E.smoothness)
    path = np.stack([slerp(one, other, w) for w in np.linspace(0, 1, 9)])
    np.testing.assert_allclose(path[0], one, atol=1e-4)
    np.testing.assert_allclose(path[-1], other, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(path, axis=-1), np.sqrt(500), rtol=0.08)
    assert np.max(smoothness(path)) < 0.05
    np.testing.assert_allclose(smoothness(np.float32([[[0]], [[1]], [[3]]])), 1 / 3, rtol=1e-6)  # 1 and 2
    jump = np.concatenate([path[:4], path[:1] + 50.0, path[5:]])
    assert np.min(smoothness(jump)) > 0.5


def test_aligned_points_take_the_chains_statistics():
    images = jd.testing.gaussian(np.zeros((4, 4, 2)), np.full((4, 4, 2), 0.3)).denoiser(VP)
    exemplar = np.float32(2.0 + 0.1 * np.random.default_rng(6).normal(size=(3, 4, 4, 2)))
    keys, to_noise = jax.random.split(jax.random.key(7), 3), GRID[::-1]

    @jax.jit
    def run(keys, exemplar):
        chain = jd.sample(None, images, VP, S.ddim(), to_noise, x=exemplar, save="all")[::-1]
        aligned = E.aligned(S.ddim(), chain, until=0.1)
        return chain, jd.sample(keys, images, VP, aligned, GRID, shape=(4, 4, 2), save="all")

    chain, path = (np.asarray(v) for v in run(keys, exemplar))
    at = int(np.sum(GRID >= 0.1)) - 1
    np.testing.assert_allclose(path[at].mean((1, 2)), chain[at].mean((1, 2)), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(path[at].std((1, 2)), chain[at].std((1, 2)), rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="chain of 21 points"):
        jd.sample(keys, images, VP, E.aligned(S.ddim(), chain[1:]), GRID, shape=(4, 4, 2))


@pytest.mark.slow
def test_attention_across_images_draws_towards_the_exemplar():
    """A network of attention alone: with itself beside it nothing changes, with another image it does."""
    model = jd.models.DiT(patch=2, width=16, depth=1, heads=2, positions="rotary")
    x, other = np.random.default_rng(8).normal(size=(2, 3, 4, 4, 1)).astype(np.float32)
    params, rng = jax.jit(model.init)(jax.random.key(9), x, np.zeros(3, np.float32)), np.random.default_rng(9)
    params = jax.tree.map(lambda p: np.asarray(p) + 0.3 * rng.normal(size=p.shape).astype(np.float32), params)
    apply = jax.jit(jd.models.attending(model))
    plain = jax.jit(model.apply)(params, x, np.full(3, 0.5, np.float32))
    np.testing.assert_allclose(apply(params, x, x, 0.5), plain, atol=1e-5)
    assert np.abs(np.asarray(apply(params, x, other, 0.5)) - plain).max() > 1e-2
    np.testing.assert_allclose(apply(params, x, x, 0.5, alone=True), plain, atol=1e-5)
    moved = x.copy()
    moved[:, 2:] += 1.0  # what one patch asks of the exemplar alone does not hear of the others
    alone, heard = (
        np.abs(np.subtract(*(apply(params, image, other, 0.5, alone=alone) for image in (x, moved))))
        for alone in (True, False)
    )
    assert alone[:, :2].max() < 1e-5 < 1e-3 < heard[:, :2].max()
    with pytest.raises(ValueError, match="exemplar of the shape of x"):
        apply(params, x, other[:2], 0.5)


def test_shuffled_noise_keeps_its_channels_and_not_its_layout():
    same = np.tile(np.random.default_rng(8).normal(size=(4, 4, 2)).astype(np.float32), (3, 1, 1, 1))
    x = np.asarray(jax.jit(E.shuffled)(jax.random.key(9), same)).reshape(3, 16, 2)
    ordered = same.reshape(3, 16, 2)
    for found, given in zip(x, ordered, strict=True):
        np.testing.assert_array_equal(found[np.argsort(found[:, 0])], given[np.argsort(given[:, 0])])
    assert (x[0] != ordered[0]).any() and (x[0] != x[1]).any()


def test_a_chain_is_read_at_any_time():
    chain = np.float32(GRID[:, None] ** 2 * np.ones((1, 3)))
    at = jax.jit(lambda t: E.chain_at(chain, GRID)(t))
    for k in (0, 7, 20):
        np.testing.assert_allclose(at(np.full(3, GRID[k])), chain[k], rtol=1e-4, atol=1e-7)
    middle = (GRID[3] + GRID[4]) / 2
    np.testing.assert_allclose(at(middle), (chain[3] + chain[4]) / 2, rtol=1e-4)


def test_wrong_arguments():
    with pytest.raises(ValueError, match="one evaluation a step"):
        E.encode(jax.random.key(0), A.denoiser(VP), VP, S.ddim(), GRID, X0)
    with pytest.raises(ValueError, match="above exact data"):
        E.encode(jax.random.key(0), A.denoiser(VP), VP, S.ancestral(), jd.grids.log_snr(VP, 4), X0)
    with pytest.raises(ValueError, match="path"):
        E.encode(jax.random.key(0), A.denoiser(VP), VP, S.ancestral(), GRID, X0, "straight")
