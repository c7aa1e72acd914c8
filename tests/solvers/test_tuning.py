"""Tuned solvers: what they reach, also away from what they were tuned on, and their file."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.solvers.search import walk_to_end
from jaxdiff.solvers.tuning import Fit, free_table, unrolled

S, VP = jd.solvers, jd.processes.VP()
TARGET = jd.testing.gaussian_mixture(
    np.array([[1.0, 0.0], [-1.0, 0.5]]), np.array([0.02, 0.05]), np.array([0.4, 0.6])
)
OTHER = jd.testing.gaussian_mixture(
    np.array([[0.3, -0.8], [-0.5, 0.9], [1.2, 0.4]]), np.array([0.1, 0.01, 0.04]), np.array([0.2, 0.5, 0.3])
)
BOTH = [target.denoiser(VP) for target in (TARGET, OTHER)]
STARTS = np.random.default_rng(9).normal(size=(512, 2)).astype(np.float32)


def told(x, t, label):
    one, other = (D(x, t) for D in BOTH)
    return jnp.where((label == 0)[:, None], one, other)


@functools.cache
def ends(other):
    return jd.testing.flow_map(OTHER if other else TARGET, VP, STARTS, 1.0, 0.0)


def median(solver, target=TARGET):
    exact = ends(target is OTHER)
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


@pytest.mark.slow
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


@pytest.mark.slow
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
    with pytest.warns(UserWarning, match=r"tuned for examples of shape \(2,\) and is used on \(3,\)"):
        jd.sample(None, lambda x, t: 0.5 * x, VP, back, x=jnp.ones((4, 3)))


def test_files_that_are_not_whole_are_refused(tmp_path):
    rows = S.unipc(2).plan(VP, jd.grids.log_snr(VP, 3))
    path = tmp_path / "tuned.json"
    S.Tuned(rows, "VP", (2,)).save(path)
    content = json.loads(path.read_text())
    bad = {
        "not JSON": "{", "a list": "[1]", "no rows": json.dumps({"format": 1}),
        "no times": json.dumps(content | {"rows": {k: v for k, v in content["rows"].items() if k != "t"}}),
        "a row less": json.dumps(content | {"rows": content["rows"] | {"next": content["rows"]["next"][1:]}}),
        "no number": json.dumps(content | {"rows": content["rows"] | {"t": [1.0, float("nan"), 0.1]}}),
        "text": json.dumps(content | {"rows": content["rows"] | {"t": "all"}}),
        "another version": json.dumps(content | {"format": 2}),
    }  # fmt: skip
    for text in bad.values():
        path.write_text(text)
        with pytest.raises(ValueError, match="load: expected"):
            S.load(path)
    path.write_text(json.dumps({k: v for k, v in content.items() if k != "shape"}))
    assert S.load(path).shape is None


def test_reference_paths_go_as_far_beyond_t_min_as_the_process():
    edm, ve = jd.processes.EDM(), jd.processes.VE()
    near, least = (S.tuning.fine_plan(process).t[-1] for process in (edm, ve))
    np.testing.assert_allclose([near, least], [edm.t_min * np.exp(-S.tuning.NATS), ve.t_min], rtol=1e-6)
    free, table = S.tuning.free_table(ve, S.ddim().plan(ve, jd.grids.uniform(ve, 3)))
    far = jax.jit(table)(jnp.full(free, 50.0))
    assert np.isfinite(far.next).all() and np.all(far.t > 0)


def test_paths_take_their_conditions_in_turn():
    """One network told which of two targets, against the two networks themselves."""
    x = STARTS[:6]
    rows = S.default(VP, 3)
    ends = np.where((np.arange(6) % 2 == 0)[:, None], *(walk_to_end(D, rows, x) for D in BOTH))
    fit, labels = Fit([told], 1e-4), np.arange(6) % 2
    np.testing.assert_allclose(fit.residuals(rows, x, ends[None], labels), np.zeros((6, 2)), atol=1e-5)


@pytest.mark.slow
def test_tuning_the_grid_alone_and_for_a_family():
    denoise = TARGET.denoiser(VP)
    first, only = (
        S.tune(jax.random.key(0), denoise, VP, 10, shape=(2,), proposals=32, updates=n, grid_only=True)
        for n in (0, 30)
    )
    assert median(only) < 0.5 * median(first)
    times = np.append(only.rows.t, 0.0)  # the coefficients are still those of one solver on this grid
    solvers = S.unipc(2), S.unipc(3), S.dpmpp_multistep(2), S.dpmpp_multistep(3, lower_order_final=True)
    plans = [solver.plan(VP, times) for solver in solvers]
    assert sum(np.allclose(plan.next, only.rows.next[:, : plan.next.shape[1]], atol=1e-3)
               for plan in plans if plan.next.shape[1] <= only.rows.next.shape[1]) == 1  # fmt: skip
    tune = functools.partial(S.tune, jax.random.key(0), shape=(2,), proposals=32, updates=20)
    of_a_family, of_labels = tune(BOTH, VP, 4), tune(told, VP, 4, condition=np.arange(2))
    for target in (TARGET, OTHER):
        reached = max(median(of_a_family, target), median(of_labels, target))
        assert reached < 0.5 * median(S.default(VP, 4), target)


@pytest.mark.slow
def test_tuned_on_a_mixture_in_64_dimensions_and_used_on_another():
    """A tenth of UniPC's error, by the same factor on a mixture that it has not seen."""
    rng = np.random.default_rng(7)
    seen = jd.testing.standard_targets()["mixture-64d"]
    unseen = jd.testing.gaussian_mixture(
        rng.normal(size=(10, 64)) * 0.5, 0.5 ** rng.uniform(0, 8, size=(10, 64)), np.full(10, 0.1)
    )
    tuned = S.tune(
        jax.random.key(1), seen.denoiser(VP), VP, 5, shape=(64,), proposals=64, samples=64, updates=30
    )
    x = jax.random.normal(jax.random.key(0), (32, 64))
    for target in (seen, unseen):
        exact = jd.testing.flow_map(target, VP, x, 1.0, 0.0)

        def error(solver, grid=None, target=target, exact=exact):
            out = jd.sample(None, target.denoiser(VP), VP, solver, grid, x=x)
            return np.median(np.linalg.norm(out - exact, axis=1))

        stock, fitted = error(S.unipc(2), jd.grids.quadratic(VP, 5)), error(S.default(VP, 5))
        assert error(tuned) < min(0.1 * stock, 0.25 * fitted)


def test_wrong_arguments():
    tune = functools.partial(S.tune, jax.random.key(0), shape=(2,))
    with pytest.raises(ValueError, match="nfe"):
        tune(TARGET.denoiser(VP), VP, 1)
    with pytest.raises(ValueError, match="proposals"):
        tune(TARGET.denoiser(VP), VP, 4, proposals=0)
    with pytest.raises(ValueError, match="updates to be an integer of at least 0, got -1"):
        tune(TARGET.denoiser(VP), VP, 4, updates=-1)
    with pytest.raises(ValueError, match="shape, of one example, to be a tuple, got 2"):
        tune(TARGET.denoiser(VP), VP, 4, shape=2)
    with pytest.raises(ValueError, match="between data and noise, got BrownianBridge"):
        tune(TARGET.denoiser(VP), jd.processes.BrownianBridge(), 4)
    with pytest.raises(ValueError, match="finite reference paths"):
        tune(lambda x, t: x * jnp.nan, VP, 4)
