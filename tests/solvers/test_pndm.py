"""Pseudo numerical methods against their algorithm, and against DDIM at many more steps."""

import jax
import numpy as np
import pytest

import jaxdiff as jd

S = jd.solvers
PROCESSES = [jd.processes.VP(), jd.processes.EDM(), jd.processes.RectifiedFlow()]
PLMS = ([1.0], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24])


def denoise(x, t):
    return np.tanh(x) + 0.3 * np.cos(x + t)


def published(process, grid, x, order, start):
    """S-PNDM, F-PNDM and iPNDM as in the paper's algorithms."""

    def noise_of(x, t):
        a, _, c = process.coefficients(t)
        return (x - a * denoise(x, t)) / c

    def transfer(x, e, s, t):
        (a_s, _, c_s), (a_t, _, c_t) = process.coefficients(s), process.coefficients(t)
        return a_t / a_s * x + (c_t - a_t * c_s / a_s) * e

    past = []
    for s, t in zip(grid[:-1], grid[1:], strict=True):
        e = noise_of(x, s)
        past = [e, *past][:order]
        if start == "runge_kutta" and len(past) < order:
            if order == 2:
                e = (e + noise_of(transfer(x, e, s, t), t)) / 2
            else:
                m = (s + t) / 2
                e_2 = noise_of(transfer(x, e, s, m), m)
                e_3 = noise_of(transfer(x, e_2, s, m), m)
                e_4 = noise_of(transfer(x, e_3, s, t), t)
                e = (e + 2 * e_2 + 2 * e_3 + e_4) / 6
        else:
            e = sum(w * p for w, p in zip(PLMS[len(past) - 1], past, strict=True))
        x = transfer(x, e, s, t)
    return x


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
@pytest.mark.parametrize("order", [2, 4])
def test_algorithms(process, order, walk):
    grid = np.linspace(0.9 * process.t_max, process.t_min, 8)
    x = 2.0 * np.random.default_rng(0).normal(size=4)
    for solver, start, extra in [
        (S.pndm(order), "runge_kutta", {2: 1, 4: 9}[order]),
        (S.ipndm(order), "", 0),
    ]:
        rows = solver.plan(process, grid)
        assert rows.nfe == 7 + extra and not rows.noisy
        found = walk(rows, x, np.zeros((rows.nfe, 4)), denoise)
        np.testing.assert_allclose(found, published(process, grid, x, order, start), rtol=1e-9)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_ends(process):
    for steps in (1, 2, 3, 4, 6):
        for end in (None, process.t_min):
            for solver in (S.pndm(2), S.pndm(4), S.ipndm(4)):
                rows = solver.plan(process, jd.grids.uniform(process, steps, end=end))
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))
                assert sorted(set(rows.arrives) - {0}) == list(range(1, steps + 1))
                if end is None:
                    np.testing.assert_allclose(rows.next[-1], np.eye(rows.next.shape[1])[2], atol=1e-9)


def test_f_pndm_at_50_steps_beats_ddim_at_1000(x64):
    process = jd.processes.VP()
    means = np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]])
    target = jd.testing.gaussian_mixture(means, np.array([0.05, 0.1, 0.08]), np.array([0.3, 0.4, 0.3]))
    x = np.random.default_rng(0).normal(size=(256, 2))
    exact = jd.testing.flow_map(target, process, x, 1.0, 1e-3)

    def walk(solver, steps):
        grid = jd.grids.uniform(process, steps, end=1e-3)
        return jd.sample(None, target.denoiser(process), process, solver, grid, x=x)

    ends = jax.jit(lambda: (walk(S.ddim(), 1000), walk(S.pndm(), 50), walk(S.pndm(2), 250)))()
    ddim, four, two = (np.median(np.abs(out - exact).max(axis=1)) for out in ends)
    assert four < ddim
    assert two < ddim


def test_wrong_settings():
    with pytest.raises(ValueError, match="order 2 or 4, got 3"):
        S.pndm(3)
    with pytest.raises(ValueError, match="order 1, 2, 3 or 4, got 5"):
        S.ipndm(5)
