"""Properties of every tableau solver, on random grids: the default of each public one is found by itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxdiff as jd

S = jd.solvers


# Tables with a step of their own, for grids above exact data, or for interpolants; what loads diffrax.
NOT_OF_THIS_KIND = {"adaptive", "bdia", "edict", "interpolant_sde", "reversible_heun", "splitting", "unified"}


def defaults():
    """What every public maker that needs no argument gives, of the solvers that are tables."""
    found = {}
    for name in set(S.__all__) - NOT_OF_THIS_KIND:
        try:
            solver = getattr(S, name)()
        except TypeError:
            continue
        if isinstance(solver, S.LinearSolver):
            found[name] = solver
    return dict(sorted(found.items()))


DETERMINISTIC = {
    "dpmpp 1": S.dpmpp_multistep(1), "dpmpp 2 lagrange": S.dpmpp_multistep(2, rule="lagrange"),
    "dpmpp 3": S.dpmpp_multistep(3), "dpmpp 3 published": S.dpmpp_multistep(3, published=True),
    "dpmpp 3 low end": S.dpmpp_multistep(3, lower_order_final=True), "dpm 3": S.dpm_multistep(3),
    "dpm 3S": S.dpm_singlestep(3), "dpmpp 3S": S.dpmpp_singlestep(3),
    "dpmpp 3S lagrange": S.dpmpp_singlestep(3, "lagrange"),
    "unipc 1": S.unipc(1), "unipc 2 published": S.unipc(2, "bh1", published=True),
    "unipc 4 noise": S.unipc(4, prediction="noise"), "unipc 3P": S.unipc(3, corrector=False),
    "deis 4": S.deis(4), "deis sigma": S.deis(3, "sigma"), "deis log_snr": S.deis(3, "log_snr"),
    "lms 3": S.lms(3), "plms 2": S.plms(2), "pndm 2": S.pndm(2),
    "er_sde ode": S.er_sde(3, 0.0), "sa_solver ode": S.sa_solver(3, 4, 0.0), "churn 0": S.churn(0.0),
    "euler sigma": S.euler("sigma"), "heun sigma": S.heun("sigma"), "rk4 sigma": S.rk4("sigma"),
    "rk4 log_snr": S.rk4("log_snr"), "ab 3 sigma": S.adams_bashforth(3, "sigma"),
    "ab 4 log_snr": S.adams_bashforth(4, "log_snr"), "euler_maruyama 0": S.euler_maruyama(0.0),
}  # fmt: skip
STOCHASTIC = {
    "ddim .5": S.ddim(0.5), "dpmpp 2 tau": S.dpmpp_multistep(2, tau=1.0),
    "dpmpp 3 tau": S.dpmpp_multistep(3, tau=0.5), "dpm 2 tau": S.dpm_multistep(2, tau=1.0),
    "dpmpp 2S tau": S.dpmpp_singlestep(2, tau=1.0), "er_sde tau": S.er_sde(2, 1.0),
    "sa_solver 3": S.sa_solver(3, 3), "seeds 2 data": S.seeds(2, prediction="data"),
    "churn euler": S.churn(s_noise=1.0, method="euler"), "ancestral large": S.ancestral("large"),
}  # fmt: skip
SOLVERS = defaults() | DETERMINISTIC | STOCHASTIC
PROCESSES = {
    "VP": jd.processes.VP(), "CosineVP": jd.processes.CosineVP(), "SubVP": jd.processes.SubVP(),
    "VE": jd.processes.VE(), "EDM": jd.processes.EDM(), "RectifiedFlow": jd.processes.RectifiedFlow(),
    "zero terminal SNR": jd.processes.DiscreteVP(np.append(np.linspace(1e-4, 0.02, 99), 1.0)),
}  # fmt: skip

# On the curve of one clean sample, x = a x0 + c eps, these slopes are not constant in their coordinate.
CURVED_LOG_SNR = {"rk4 log_snr", "ab 4 log_snr"}
CURVED_TIME = {
    "euler", "midpoint", "heun", "ralston", "rk4", "adams_bashforth", "euler_maruyama",
    "euler_maruyama 0", "reverse_diffusion",
}  # fmt: skip
STRAIGHT = {"EDM", "RectifiedFlow"}  # in these, they are so in time
# Their noise is not that of the process, by definition.
OTHER_NOISE = {"churn", "ancestral large", "euler_maruyama", "reverse_diffusion"}
# In noise prediction with noise, what is taken as constant is the noise estimate.
OTHER_NOISE |= {"dpm 2 tau", "seeds"}
# They look at time itself, or at the size of x, and not at log-SNR alone.
TIED_TO_TIME = CURVED_TIME | {"deis", "deis 4", "pndm", "pndm 2", "ancestral large"}


@st.composite
def grids(draw, to_data, most=8):
    """`process -> grid`: any relative gaps, denser anywhere, from t_max, to exact data or to above it."""
    gaps = draw(st.lists(st.floats(0.02, 1.0), min_size=1, max_size=most))
    bend = draw(st.sampled_from([1.0, 2.0, 5.0]))
    u = 1 - np.append(0.0, np.cumsum(gaps)) / sum(gaps)

    def of(process):
        last = 0.0 if to_data else 0.01 * process.t_max
        t = last + (process.t_max - last) * np.clip(u, 0, 1) ** bend
        t[0], t[-1] = process.t_max, last
        return t

    return of


def examples(strategy, count):
    """Always the same: drawing them for each test would cost more than what it does with them."""
    found = []

    @settings(max_examples=count, deadline=None, derandomize=True, database=None)
    @given(strategy)
    def keep(value):
        found.append(value)

    keep()
    assert len(found) == count
    return found


GRIDS = examples(grids(to_data=True), 3) + examples(grids(to_data=False), 3)
GAPS = examples(st.lists(st.floats(0.05, 1.0), min_size=1, max_size=8), 5)


def carried(rows, a, c, walk):
    """What becomes of `a x0 + c eps` if the clean estimate is always x0: weights on x0, eps, each noise."""
    basis = np.eye(2 + rows.nfe * rows.noisy)
    noise = basis[2:] if rows.noisy else np.zeros((rows.nfe, 2))
    return walk(rows, a * basis[0] + c * basis[1], noise, lambda x, t: basis[0])


@pytest.mark.parametrize("where", PROCESSES)
@pytest.mark.parametrize("name", SOLVERS)
def test_numbers_are_finite_end_at_the_clean_estimate_and_follow_one_clean_sample_exactly(name, where, walk):
    """To `a_t x0 + c_t eps` for deterministic solvers; of stochastic ones the noise has the size c_t."""
    process, exact = PROCESSES[where], name not in OTHER_NOISE | CURVED_LOG_SNR
    exact &= name not in CURVED_TIME or where in STRAIGHT
    for number, make in enumerate(GRIDS):
        grid = make(process)
        rows = SOLVERS[name].plan(process, grid)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows))
        assert sorted(set(rows.arrives) - {0}) == list(range(1, len(grid)))
        if grid[-1] == 0:
            clean = np.eye(rows.next.shape[1])[2]
            np.testing.assert_allclose(rows.next[-1], clean, atol=1e-9)
            np.testing.assert_allclose((0.0, 1.0) if rows.plain else rows.keep[-1], (0.0, 1.0), atol=1e-12)
        if exact:
            (a_s, a_t), _, (c_s, c_t) = process.coefficients(grid[[0, -1]])
            out = carried(rows, a_s, c_s, walk)
            error = 1e-6 if name.startswith("pndm") else 1e-9  # its averages of transfers cancel
            scale = error * max(1.0, np.abs(rows.next).max(), np.abs(rows.base).max())
            np.testing.assert_allclose(out[0], a_t, atol=scale, err_msg=f"grid {number}")
            spread = np.linalg.norm(out[1:]) if rows.noisy else out[1]
            np.testing.assert_allclose(spread, c_t, atol=scale, err_msg=f"grid {number}")


def estimate(process):
    """A nonlinear clean estimate that depends on x / a and log-SNR alone."""

    def denoise(x, t):
        a, _, c = process.coefficients(t)
        z, sigma = x / a, c / a
        return (np.tanh(2 * z / np.sqrt(1 + sigma**2)) + z) / (1 + sigma**2)

    return denoise


@pytest.mark.parametrize("name", [n for n in SOLVERS if n not in TIED_TO_TIME])
def test_samples_are_the_same_for_every_process(name, walk):
    """VP = EDM = rectified flow, once time and scale are mapped: also with noise, and for every rule."""
    for gaps in GAPS:
        log_snr = -3.0 + 6.0 * np.append(0.0, np.cumsum(gaps)) / sum(gaps)
        rng = np.random.default_rng(len(gaps))
        x, noise, found = rng.normal(size=5), rng.normal(size=(64, 5)), []
        for where in ("VP", "EDM", "RectifiedFlow"):
            process = PROCESSES[where]
            grid = process.time_of_log_snr(log_snr)
            (a_s, a_t), _, _ = process.coefficients(grid[[0, -1]])
            rows = SOLVERS[name].plan(process, grid)
            found.append(walk(rows, 10 * a_s * x, noise, estimate(process)) / a_t)
        np.testing.assert_allclose(found[1], found[0], rtol=1e-7, atol=1e-9)
        np.testing.assert_allclose(found[2], found[0], rtol=1e-7, atol=1e-9)


LEARNED = [(name, "Trigonometric") for name in SOLVERS if name not in ("pndm", "pndm 2")]
LEARNED += [  # the rules reach a process through log-SNR, through sigma, or through its drift, in time
    (name, where) for where in ("VP", "RectifiedFlow")
    for name in ("dpmpp_multistep", "dpm_multistep", "churn euler", "deis", "heun", "euler_maruyama")
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name, where", LEARNED)
def test_gradients_through_the_grid_are_those_of_the_numbers(name, where, x64):
    """On a quarter turn nothing is straight, and both ends are singular: a = 0 at first, c = 0 at last."""
    process, solver = (PROCESSES | {"Trigonometric": jd.processes.Trigonometric()})[where], SOLVERS[name]
    grid = process.t_max * np.array([1.0, 0.71, 0.6, 0.45, 0.24, 0.1, 0.0])
    rng, weights = np.random.default_rng(0), {}

    def number(grid):
        rows = solver.plan(process, grid)
        if not weights:  # of the trace, which comes first
            used = ["t", "next", *([] if rows.plain else ["keep"]), *(["base"] if rows.based else [])]
            weights.update({name: rng.normal(size=getattr(rows, name).shape) for name in used})
        return sum((w * getattr(rows, name)).sum() for name, w in weights.items())

    compiled = jax.jit(jax.value_and_grad(number))
    value, slope = compiled(jnp.asarray(grid))
    assert np.isfinite(slope).all()
    stays = solver.plan(process, grid).nfe == len(weights["next"])
    of = number if stays else lambda grid: compiled(grid)[0]  # in a trace, stages without effect stay
    np.testing.assert_allclose(value, of(grid), rtol=1e-7)
    for i in range(1, 6):
        up, down = grid.copy(), grid.copy()
        up[i], down[i] = grid[i] + 1e-6, grid[i] - 1e-6
        found = (of(up) - of(down)) / 2e-6
        np.testing.assert_allclose(slope[i], found, rtol=2e-5, atol=1e-4 * np.abs(slope).max())


@pytest.mark.parametrize(
    "where", ["VP", *(pytest.param(name, marks=pytest.mark.slow) for name in ("EDM", "RectifiedFlow"))]
)
@pytest.mark.parametrize("name", SOLVERS)
def test_a_plan_of_a_thousand_steps_survives_float32(name, where, walk):
    """The numbers are worked out in float64 and rounded once, so more steps are not worse."""
    process = PROCESSES[where]
    grid = jd.grids.log_snr(process, 1000, end=process.t_min)
    wide = SOLVERS[name].plan(process, grid)
    narrow = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32).astype(np.float64), wide)
    for a, b in ((wide.next, narrow.next), (wide.base, narrow.base), (wide.keep, narrow.keep)):
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-30)
    if not wide.noisy and name not in ("pndm", "pndm 2"):
        a, _, c = process.coefficients(grid[[0, -1]])
        ends = [carried(rows, a[0], c[0], walk)[:2] for rows in (wide, narrow)]
        np.testing.assert_allclose(ends[1], ends[0], atol=1e-4)
