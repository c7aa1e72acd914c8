"""The default: what it promises on targets that it was not fitted to, on every process."""

import jax
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.solvers.fitted import FITTED
from jaxdiff.solvers.presets import from_levels

S, G = jd.solvers, jd.grids
VP = jd.processes.VP()


def rings():
    angles = 2 * np.pi * np.arange(6) / 6
    means = 1.1 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return jd.testing.gaussian_mixture(means, np.full(6, 0.06**2))


def mixture():
    rng = np.random.default_rng(5)
    means = 0.6 * rng.normal(size=(5, 24))
    return jd.testing.gaussian_mixture(means, 0.5 ** rng.uniform(0, 7, size=(5, 24)))


def medians(target, process, plans, x):
    """Median distances from a path of 200 evaluations, of plans of equal length."""
    denoise = target.denoiser(process)
    fine = S.unipc(3).plan(process, S.on_levels(process, np.linspace(-5, 8, 200)))
    rows = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), S.stack(plans))
    walk = lambda rows: jd.sample(None, denoise, process, rows, x=x)  # noqa: E731
    found, ends = (np.asarray(v) for v in jax.jit(lambda rows: (jax.vmap(walk)(rows), walk(fine)))(rows))
    return np.median(np.linalg.norm(found - ends, axis=-1), axis=1)


@pytest.mark.parametrize("target", [rings(), mixture()], ids=["rings", "mixture"])
def test_the_default_is_far_nearer_than_stock_solvers_on_stock_grids(target, longer):
    x = jax.random.normal(jax.random.key(0), (128, *target.event))
    solvers = (S.unipc(2), S.unipc(3), S.dpmpp_multistep(2), S.plms(), S.adams_bashforth(2))

    def plans(nfe):
        stock = [s.plan(VP, grid(VP, nfe)) for s in solvers for grid in (G.log_snr, G.quadratic)]
        return [longer(plan, 8) for plan in (S.default(VP, nfe), *stock)]

    found = medians(target, VP, plans(5) + plans(8), x).reshape(2, -1)
    for nfe, most, (own, *rest) in zip((5, 8), (1.0, 0.4), found, strict=True):
        assert own < most * min(rest), (nfe, own, min(rest))


def test_the_default_is_the_same_walk_on_every_process():
    for process in (jd.processes.EDM(), jd.processes.RectifiedFlow(), jd.processes.CosineVP()):
        for nfe in (5, 8):
            rows, vp = S.default(process, nfe), S.default(VP, nfe)
            np.testing.assert_allclose(process.log_snr(rows.t[1:]), VP.log_snr(vp.t[1:]), rtol=1e-6)
            np.testing.assert_allclose(rows.next[-1], vp.next[-1], rtol=1e-6)  # to data, where a = 1
            a, _, c = process.coefficients(np.append(rows.t, 0.0))
            one = rows.next[:, 0] * a[:-1] + rows.next[:, 2:].sum(1)  # data at 1, without noise, stays at 1
            np.testing.assert_allclose(one, a[1:], atol=1e-12)


def test_levels_without_slopes_are_ddim():
    levels = np.array([-1.0, 0.5, 2.0])
    rows = from_levels(VP, levels, np.zeros((4, 3)))
    ddim = S.ddim().plan(VP, S.on_levels(VP, np.append(-5.0, levels)))
    np.testing.assert_allclose(rows.t, ddim.t, rtol=1e-12)
    np.testing.assert_allclose(rows.next[:, [0, 2]], ddim.next[:, [0, 2]], atol=1e-12)
    assert not rows.next[:, 3:].any()


def test_slopes_extrapolate_along_the_last_estimates():
    slopes = np.zeros((4, 3))
    slopes[-1] = 2.0, 3.0, 5.0  # D + 2 (D - E) + 3 (E - F) + 5 (F - G)
    rows = from_levels(VP, np.array([-1.0, 0.5, 2.0]), slopes)
    np.testing.assert_allclose(rows.next[-1, 2:6], [3.0, 1.0, 2.0, -5.0])


def test_there_is_a_fit_for_3_to_20_evaluations_and_it_is_taken():
    for (end, nfe), (levels, slopes) in FITTED.items():
        assert len(levels) == nfe - 1 and len(slopes) == 3 * nfe - 6
        assert np.all(np.diff(levels) > 0) and levels[-1] <= end
    for nfe in range(3, 21):
        for process in (VP, jd.processes.EDM(), jd.processes.VE()):
            rows = S.default(process, nfe)
            assert not rows.based and rows.memory == 4 and rows.t[-1] >= process.t_min


def test_the_default_is_for_every_process_and_any_number_of_evaluations():
    p = jd.processes
    for process in (
        p.EDM(),
        p.VE(),
        p.RectifiedFlow(),
        p.CosineVP(),
        p.SubVP(),
        p.OrnsteinUhlenbeckVE(),
        p.MeanReverting(),
    ):
        for nfe in (1, 2, 3, 7, 40):
            rows = S.default(process, nfe)
            assert rows.nfe == nfe and np.isfinite(rows.next).all() and rows.t[0] == process.t_max
    with pytest.raises(ValueError, match="nfe"):
        S.default(VP, 0)
