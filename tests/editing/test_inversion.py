"""Round trips between data and noise, to each method's promise."""

import jax
import numpy as np
import pytest

import jaxdiff as jd

E, S = jd.editing, jd.solvers
VP = jd.processes.VP()
MEANS, VARIANCES, WEIGHTS = np.array([[1.0, 0.0], [-1.0, 0.5]]), np.array([0.05, 0.1]), np.array([0.4, 0.6])
TARGET = jd.testing.gaussian_mixture(MEANS, VARIANCES, WEIGHTS)
DENOISE = TARGET.denoiser(VP)
GRID = jd.grids.log_snr(VP, 16, end=VP.t_min)
RNG = np.random.default_rng(0)
KIND = RNG.choice(2, 64, p=WEIGHTS)
X0 = (MEANS[KIND] + np.sqrt(VARIANCES[KIND])[:, None] * RNG.normal(size=(64, 2))).astype(np.float32)


def error(x):
    return np.abs(x - X0).max(axis=1).mean()


@pytest.mark.slow
def test_explicit_inversion_improves_with_steps_and_fixed_points_are_exact():
    def round_trip(grid, solver, process=VP):
        denoise = TARGET.denoiser(process)

        @jax.jit
        def back(x0):
            x_T = jd.sample(None, denoise, process, solver, grid[::-1], x=x0)
            return jd.sample(None, denoise, process, solver, grid, x=x_T)

        return error(back(X0))

    short, grid = (jd.grids.log_snr(VP, steps, end=VP.t_min) for steps in (16, 64))
    ddim = [round_trip(times, S.ddim()) for times in (short, grid)]
    assert ddim[1] < 0.5 * ddim[0] and round_trip(grid, S.dpmpp_multistep(2)) < 0.3 * ddim[1]

    @jax.jit
    def from_fixed_points(x0):
        starts = (E.fixed_point(DENOISE, VP, grid, x0, iterations) for iterations in (1, 3, 30))
        return [jd.sample(None, DENOISE, VP, S.ddim(), grid, x=x_T) for x_T in starts]

    errors = [error(x) for x in from_fixed_points(X0)]
    assert errors[1] < errors[0] and errors[2] < 1e-4, errors
    flow = jd.processes.RectifiedFlow()
    assert round_trip(jd.grids.uniform(flow, 200, end=flow.t_min), S.heun(), flow) < 0.02


@pytest.mark.parametrize(
    "solver", [S.edict(), S.edict(1.0), S.bdia(), S.bdia(1.0)], ids=lambda s: f"{s.name}{s.numbers}"
)
def test_exact_inversion(solver):
    other = jd.testing.gaussian_mixture(np.array([[3.0, 0.0]]), np.array([0.1]), np.array([1.0])).denoiser(VP)

    @jax.jit
    def run(x0):
        latents = E.invert(DENOISE, VP, solver, GRID, x0)
        return latents.x, *(jd.sample(None, d, VP, E.resume(latents), x=latents.x) for d in (DENOISE, other))

    noise, back, edited = (np.asarray(v) for v in run(X0))
    np.testing.assert_allclose(back, X0, atol=1e-5)
    if solver.name == "bdia":
        assert 0.8 < noise.std() < 1.2  # noise, not a blow-up
    assert np.abs(edited - X0).mean() > 0.5


def test_the_path_from_what_bdia_inverts():
    """Its first row is not walked again: as many points as rows are left, and one."""
    latents = E.invert(DENOISE, VP, S.bdia(), jd.grids.log_snr(VP, 4, end=VP.t_min), X0)
    path = np.asarray(jd.sample(None, DENOISE, VP, E.resume(latents), x=latents.x, save="all"))
    assert path.shape == (4, *X0.shape) and latents.rows.steps == 3
    np.testing.assert_array_equal(path[0], latents.x)
    np.testing.assert_allclose(path[-1], X0, atol=1e-5)
    assert (np.abs(path).max((1, 2)) > 0).all()


@pytest.mark.slow
def test_a_reversible_solver_goes_up_and_is_rewound():
    rows = S.reversible_heun().plan(VP, jd.grids.log_snr(VP, 240, end=VP.t_min)[::-1])
    x_T, state = jd.sample(None, DENOISE, VP, rows, x=X0, save="state")
    assert 0.8 < float(x_T.std()) < 1.2  # noise
    np.testing.assert_allclose(S.rewind(DENOISE, rows, state).x, X0, atol=1e-5)
    other = jd.testing.gaussian_mixture(np.array([[3.0, 0.0]]), np.array([0.1]), np.array([1.0])).denoiser(VP)
    assert float(S.rewind(other, rows, state).x[:, 0].mean()) > 2.0


@pytest.mark.parametrize("solver", [S.edict(), S.bdia()], ids=lambda s: s.name)
def test_coupled_solvers_sample_the_flow(solver):
    """Their samples tend to the probability flow's as steps do."""
    x = np.random.default_rng(1).normal(size=(64, 2)).astype(np.float32)
    exact = jd.testing.flow_map(TARGET, VP, x, 1.0, VP.t_min)
    fine = [jd.grids.log_snr(VP, n, end=VP.t_min) for n in (50, 200)]
    run = jax.jit(lambda x: [jd.sample(None, DENOISE, VP, solver, grid, x=x) for grid in fine])
    errors = [np.median(np.abs(out - exact).max(axis=1)) for out in run(x)]
    assert errors[1] < 0.4 * errors[0] and errors[1] < 0.1, errors


def test_wrong_arguments():
    with pytest.raises(ValueError, match="ends above exact data"):
        E.invert(DENOISE, VP, S.edict(), jd.grids.log_snr(VP, 4), X0)
    with pytest.raises(ValueError, match="invertible solver, .* got ddim; other solvers"):
        E.invert(DENOISE, VP, S.ddim(), GRID, X0)
    with pytest.raises(ValueError, match="iteration"):
        E.fixed_point(DENOISE, VP, GRID, X0, 0)
    with pytest.raises(ValueError, match="mixing"):
        S.edict(0.0)
    with pytest.raises(ValueError, match="gamma"):
        S.bdia(1.5)
