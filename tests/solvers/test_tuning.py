"""Tuned solvers: what they reach, also away from what they were tuned on, and their file."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.solvers.tuning import free_table, unrolled

S, VP = jd.solvers, jd.processes.VP()
TARGET = jd.testing.gaussian_mixture(
    np.array([[1.0, 0.0], [-1.0, 0.5]]), np.array([0.02, 0.05]), np.array([0.4, 0.6])
)
OTHER = jd.testing.gaussian_mixture(
    np.array([[0.3, -0.8], [-0.5, 0.9], [1.2, 0.4]]), np.array([0.1, 0.01, 0.04]), np.array([0.2, 0.5, 0.3])
)
STARTS = jax.random.normal(jax.random.key(9), (512, 2))


def median(solver, target=TARGET):
    exact = jd.testing.flow_map(target, VP, STARTS, 1.0, 0.0)
    out = jd.sample(None, target.denoiser(VP), VP, solver, x=STARTS)
    return float(np.median(np.linalg.norm(out - exact, axis=1)))


@pytest.fixture(scope="module")
def tuned():
    return S.tune(jax.random.key(0), TARGET.denoiser(VP), VP, 6, shape=(2,), proposals=96, updates=25)


@pytest.mark.slow
def test_a_tuned_solver_is_many_times_closer_on_fresh_noises(tuned):
    assert tuned.rows.nfe == 6 and dict(tuned.about)["kept"] == "tuned"
    assert median(tuned) < 0.1 * median(S.default(VP, 6))
    assert float(dict(tuned.about)["error"]) < 3 * median(tuned)


def test_it_is_no_worse_than_the_default_on_another_target(tuned):
    assert median(tuned, OTHER) < median(S.default(VP, 6), OTHER)


@pytest.mark.parametrize(
    "solver",
    [S.unipc(3), S.dpmpp_multistep(3), S.dpm_multistep(2), S.heun("sigma"), S.dpmpp_singlestep(3), S.deis(2)],
    ids=lambda solver: solver.name,
)
def test_the_general_form_is_the_same_solver(solver, walk):
    """x_(k+1) = r_k x_k + sum w_kj D_j, for multistep, singlestep and corrected methods alike."""
    rows = solver.plan(VP, jd.grids.log_snr(VP, 5))
    t, carried, weights = unrolled(rows)
    x = 2.0 * np.random.default_rng(0).normal(size=4)
    seen, found = [], x
    for k in range(rows.nfe):
        seen = [np.tanh(found + t[k]), *seen]
        found = carried[k] * found + sum(w * d for w, d in zip(weights[k], seen, strict=False))
    expected = walk(rows, x, np.zeros((rows.nfe, 4)), lambda x, t: np.tanh(x + t))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_no_change_of_the_free_numbers_is_the_start():
    start = S.unipc(2).plan(VP, jd.grids.log_snr(VP, 4))
    size, table = free_table(VP, start)
    rows = table(jnp.zeros(size))
    assert size == 3 + 4 + 10
    np.testing.assert_allclose(rows.t, start.t, rtol=1e-5)
    out = [jd.sample(None, TARGET.denoiser(VP), VP, plan, x=STARTS[:8]) for plan in (rows, start)]
    np.testing.assert_allclose(*out, atol=1e-5)


def test_the_file_is_exact_and_warns_elsewhere(tuned, tmp_path):
    tuned.save(tmp_path / "tuned.json")
    back = S.load(tmp_path / "tuned.json")
    assert back.about == tuned.about and back.process == tuned.process
    for one, other in zip(jax.tree.leaves(back), jax.tree.leaves(tuned), strict=True):
        np.testing.assert_array_equal(one, other)
    assert median(back) == median(tuned)
    with pytest.warns(UserWarning, match="tuned for VP"):
        back.plan(jd.processes.VP(beta_max=15.0))
    with pytest.raises(ValueError, match="its own"):
        back.plan(VP, jd.grids.uniform(VP, 6))
    (tmp_path / "other.json").write_text("[1]")
    with pytest.raises(ValueError, match="tuned solver"):
        S.load(tmp_path / "other.json")


@pytest.mark.slow
def test_tuning_the_grid_alone_and_for_a_family():
    denoise = TARGET.denoiser(VP)
    only = S.tune(jax.random.key(0), denoise, VP, 6, shape=(2,), proposals=96, grid_only=True)
    assert median(only) <= 1.05 * median(S.default(VP, 6))
    both = S.tune(
        jax.random.key(0), [denoise, OTHER.denoiser(VP)], VP, 4, shape=(2,), proposals=32, updates=20
    )
    for target in (TARGET, OTHER):
        assert median(both, target) < 0.5 * median(S.default(VP, 4), target)


@pytest.mark.slow
def test_tuned_on_a_mixture_in_64_dimensions_and_used_on_another():
    """A tenth of UniPC's error, by the same factor on a mixture that it has not seen."""
    rng = np.random.default_rng(7)
    seen = jd.testing.standard_targets()["mixture-64d"]
    unseen = jd.testing.gaussian_mixture(
        rng.normal(size=(10, 64)) * 0.5, 0.5 ** rng.uniform(0, 8, size=(10, 64)), np.full(10, 0.1)
    )
    tuned = S.tune(jax.random.key(1), seen.denoiser(VP), VP, 5, shape=(64,), proposals=64, updates=40)
    x = jax.random.normal(jax.random.key(0), (64, 64))
    for target in (seen, unseen):
        exact = jd.testing.flow_map(target, VP, x, 1.0, 0.0)

        def error(solver, grid=None, target=target, exact=exact):
            out = jd.sample(None, target.denoiser(VP), VP, solver, grid, x=x)
            return np.median(np.linalg.norm(out - exact, axis=1))

        assert error(tuned) < 0.1 * min(error(S.default(VP, 5)), error(S.unipc(2), jd.grids.quadratic(VP, 5)))


def test_wrong_arguments():
    with pytest.raises(ValueError, match="nfe"):
        S.tune(jax.random.key(0), TARGET.denoiser(VP), VP, 1, shape=(2,))
