"""Orders, limits and ends of the solver families, on exact targets in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

S = jd.solvers
TARGET = jd.testing.gaussian_mixture(
    np.array([[1.0, 0.0], [-1.0, 0.5], [0.0, -1.2]]), np.array([0.05, 0.1, 0.08]), np.array([0.3, 0.4, 0.3])
)
STEPS = (96, 192, 384)
ORDERS = [
    (S.midpoint(), 2), (S.midpoint("log_snr"), 2), (S.heun("sigma"), 2), (S.ralston("sigma"), 2),
    (S.rk4(), 4), (S.rk4("sigma"), 4), (S.rk4("log_snr"), 4),
    (S.dpm_multistep(1), 1), (S.dpm_multistep(2), 2), (S.dpm_multistep(3), 3),
    (S.dpm_singlestep(2), 2), (S.dpm_singlestep(2, "lagrange"), 2), (S.dpm_singlestep(3), 3),
    (S.dpm_singlestep(3, "lagrange"), 3), (S.dpmpp_singlestep(2), 2), (S.dpmpp_singlestep(3), 3),
    (S.dpmpp_singlestep(3, "lagrange"), 3),
    (S.unipc(1), 2), (S.unipc(1, published=True), 2),
    (S.unipc(2, lower_order_final=False), 3), (S.unipc(3, lower_order_final=False), 4),
    (S.unipc(2, "bh1", published=True, lower_order_final=False), 3),
    (S.unipc(3, prediction="noise", lower_order_final=False), 4),
    (S.unipc(3, corrector=False, lower_order_final=False), 3),
    (S.deis(2), 2), (S.deis(3), 3), (S.lms(3), 3), (S.lms(4), 4),
    (S.adams_bashforth(2), 2), (S.adams_bashforth(3), 3), (S.adams_bashforth(3, "sigma"), 3),
    (S.dpmpp_multistep(3, published=True), 2), (S.er_sde(2, 0.0), 2), (S.er_sde(3, 0.0), 3),
    (S.er_sde(3, 0.0, published=True), 2), (S.sa_solver(2, 3, 0.0, lower_order_final=False), 3),
    (S.sa_solver(3, 0, 0.0, lower_order_final=False, published=True), 3), (S.churn(0.0), 2),
]  # fmt: skip


def label(case):
    return f"{case.name}{dict(case.options).get('coordinate', '')}" if hasattr(case, "name") else str(case)


@pytest.fixture(scope="module")
def problem():
    """VP from log-SNR -4.5 to 4: starts, exact ends, and one compiled sampler for every plan."""
    process = jd.processes.VP()
    with jax.enable_x64(True):
        first, last = (float(process.time_of_log_snr(v)) for v in (-4.5, 4.0))
        x = jax.random.normal(jax.random.key(0), (64, 2), jnp.float64)
        exact = jd.testing.flow_map(TARGET, process, x, first, last)
        run = jax.jit(lambda rows: jd.sample(None, TARGET.denoiser(process), process, rows, x=x))
        yield process, run, exact


@pytest.mark.slow
@pytest.mark.parametrize("solver, order", ORDERS, ids=label)
def test_measured_order(solver, order, problem, x64):
    process, run, exact = problem
    errors = []
    for steps in STEPS:
        grid = process.time_of_log_snr(np.linspace(-4.5, 4.0, steps + 1))
        error = jnp.abs(run(solver.plan(process, grid)) - exact).max(axis=1)
        errors.append(float(jnp.median(error)))
    slope = np.log2(errors[-2] / errors[-1])
    assert abs(slope - order) < 0.2, (slope, errors)


SOLVERS = [case for case, _ in ORDERS]
SOLVERS += [S.plms(), S.pndm(), S.pndm(2), S.deis(4), S.unipc(4), S.rk4("log_snr")]
PROCESSES = [  # every process, on other grids: test_properties
    jd.processes.VP(), jd.processes.RectifiedFlow(),
    jd.processes.DiscreteVP(np.append(np.linspace(1e-4, 0.02, 99), 1.0)),
]  # fmt: skip


@pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
def test_tables_are_finite_and_end_at_the_clean_estimate(process):
    for solver in SOLVERS:
        for steps in (1, 2, 3, 6):
            for end in (None, process.t_min):
                rows = solver.plan(process, jd.grids.log_snr(process, steps, end=end))
                where = f"{solver.name} {dict(solver.options)} {steps} {end}"
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows)), where
                assert sorted(set(rows.arrives) - {0}) == list(range(1, steps + 1)), where
                if end is None:
                    keep = (0.0, 1.0) if rows.plain else rows.keep[-1]
                    np.testing.assert_allclose(
                        rows.next[-1], np.eye(rows.next.shape[1])[2], atol=1e-9, err_msg=where
                    )
                    np.testing.assert_allclose(keep, (0.0, 1.0), atol=1e-12, err_msg=where)


def test_limits_between_families():
    process = jd.processes.RectifiedFlow()
    grid = jd.grids.karras(process, 7)[1:-1]
    ddim = S.ddim().plan(process, grid).next

    def effective(rows):
        """Weights on the point and on the clean estimate, whatever is remembered."""
        keep = rows.keep if not rows.plain else np.tile([0.0, 1.0], (rows.nfe, 1))
        return rows.next[:, 0] + rows.next[:, 2] * keep[:, 0], rows.next[:, 2] * keep[:, 1]

    for one in (
        S.dpm_multistep(1), S.dpmpp_multistep(1), S.dpm_singlestep(1), S.dpmpp_singlestep(1), S.deis(1),
        S.lms(1), S.plms(1), S.euler("sigma"), S.euler(), S.unipc(1, corrector=False),
        S.adams_bashforth(1, "sigma"),
    ):  # fmt: skip
        x, clean = effective(one.plan(process, grid))
        np.testing.assert_allclose(x, ddim[:, 0], rtol=1e-8, err_msg=one.name)
        np.testing.assert_allclose(clean, ddim[:, 2], rtol=1e-7, atol=1e-12, err_msg=one.name)
    same = [
        (S.deis(3, coordinate="log_snr"), S.dpm_multistep(3)),
        (S.lms(3), S.deis(3, coordinate="sigma")),
        (S.lms(3), S.adams_bashforth(3, "sigma")),
        (S.unipc(3, corrector=False, lower_order_final=False), S.dpmpp_multistep(3)),
        (S.unipc(3, "bh1"), S.unipc(3, "bh2")),
    ]
    for one, other in same:
        a, b = one.plan(process, grid), other.plan(process, grid)
        np.testing.assert_allclose(a.next, b.next, rtol=1e-7, atol=1e-10, err_msg=one.name)


def test_published_halves_differ_where_the_paper_says():
    process = jd.processes.VP()
    grid = jd.grids.log_snr(process, 6, end=1e-3)
    h = np.diff(process.log_snr(grid))
    a, _, c = process.coefficients(grid)
    for variant, half in (("bh1", h / 2), ("bh2", -np.expm1(-h) / 2)):
        rows = S.unipc(1, variant, published=True).plan(process, grid)
        corrected = a[1:-1] * half[:-1]  # at the time of the row; the base point is taken along from there
        np.testing.assert_allclose(rows.base[1:, 2], c[2:] / c[1:-1] * corrected, rtol=1e-9)


@pytest.mark.slow
def test_pndm_at_50_steps_beats_ddim_at_250(x64):
    process = jd.processes.VP()
    x = jax.random.normal(jax.random.key(0), (256, 2), jnp.float64)
    exact = jd.testing.flow_map(TARGET, process, x, 1.0, 1e-3)
    denoise = TARGET.denoiser(process)

    def error(solver, steps):
        grid = jd.grids.uniform(process, steps, end=1e-3)
        rows = solver.plan(process, grid)
        out = jd.sample(None, denoise, process, rows, x=x)
        return rows.nfe, float(jnp.median(jnp.abs(out - exact).max(axis=1)))

    (nfe, pseudo), (_, first) = error(S.pndm(), 50), error(S.ddim(), 250)
    assert nfe == 59 and pseudo < 0.5 * first
    assert error(S.plms(), 50)[1] < 0.5 * first


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: S.unipc(5), "order 1, 2, 3 or 4, got 5"),
        (lambda: S.unipc(2, variant="bh3"), "unknown variant 'bh3'"),
        (lambda: S.deis(0), "got 0"),
        (lambda: S.heun("lambda"), "unknown coordinate 'lambda'"),
        (lambda: S.dpm_singlestep(4), "order 1, 2 or 3"),
        (lambda: S.dpmpp_singlestep(2, rule="taylor"), "'midpoint' or 'lagrange', got 'taylor'"),
        (lambda: S.plms(7), "got 7"),
        (lambda: S.unipc(2.0), "order 1, 2, 3 or 4, got 2.0"),
        (lambda: S.dpmpp_multistep(True), "order 1, 2 or 3, got True"),
        (lambda: S.unipc(2, corrector=3), "unknown corrector 3"),
        (lambda: S.sa_solver(2, True), "corrector 0, 1, 2, 3, 4 or 5, got True"),
        (lambda: S.seeds("2"), "seeds: expected order 1, 2 or 3, got '2'"),
        (lambda: S.ddim("0.5"), r"eta in \[0, 1\], got 0.5"),
        (lambda: S.dpmpp_multistep(2, tau=None), "tau of at least 0, got None"),
        (lambda: S.churn(np.float32(-1)), "s_churn of at least 0"),
        (lambda: S.dc_solver([1.0, np.nan]), "finite ratios"),
        (
            lambda: S.predictor_corrector(S.dpm_adaptive()).plan(PROCESSES[0], [0.9, 0.5]),
            "a linear solver, .* Legs",
        ),
        (
            lambda: S.from_level(S.dpm_adaptive(), [0.9, 0.5], 3).plan(PROCESSES[0]),
            "a linear solver, .* Legs",
        ),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_order_of_numpy_shapes_the_table_as_python_s_does():
    for make in (S.unipc, S.deis, S.dpm_singlestep, S.er_sde, S.pndm):
        assert make(np.int64(2)) == make(2)
