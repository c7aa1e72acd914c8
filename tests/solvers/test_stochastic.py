"""Stochastic solvers: every displayed rule written out, limits, ends, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

S = jd.solvers
PROCESSES = [
    jd.processes.VP(),
    jd.processes.EDM(),
    jd.processes.RectifiedFlow(),
    jd.processes.SubVP(),
    jd.processes.VE(),
]
each = pytest.mark.parametrize("process", PROCESSES, ids=lambda p: type(p).__name__)
RNG = np.random.default_rng(0)


def bend(x, t):
    """A denoiser that is neither linear nor constant in time."""
    return np.tanh(x) + 0.3 * np.cos(x + 3 * t)


def from_minus_3_to_3(process, steps=6):
    """A grid of uneven steps in log-SNR."""
    u = np.linspace(0, 1, steps + 1)
    return process.time_of_log_snr(-3 + 6 * (u + 0.1 * np.sin(2 * np.pi * u)))


@each
def test_reverse_diffusion(process):
    grid = from_minus_3_to_3(process)
    a, _, c = process.coefficients(grid)
    ratio = a[:-1] / a[1:]
    g2 = c[:-1] ** 2 - ratio**2 * c[1:] ** 2
    for tau in (0.0, 0.7, 1.0):
        rows = S.reverse_diffusion(tau).plan(process, grid)
        k = 0.5 * (1 + tau**2)
        np.testing.assert_allclose(rows.next[:, 0], 2 - ratio - k * g2 / c[:-1] ** 2, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(rows.next[:, 2], k * g2 * a[:-1] / c[:-1] ** 2, rtol=1e-9)
        np.testing.assert_allclose(rows.next[:, 3], tau * np.sqrt(g2), rtol=1e-9)
        assert rows.noisy == (tau > 0)


def test_reverse_diffusion_on_a_beta_table_is_the_published_step():
    """`(2 - sqrt(1 - beta)) x + beta score + sqrt(beta) z` (Song et al. (2021), eq. 46 for DDPM)."""
    betas = np.linspace(1e-3, 0.1, 50)
    process = jd.processes.DiscreteVP(betas)
    a, _, c = process.coefficients(np.asarray(process.t_max) * np.array([1.0, 49 / 50]))
    rows = S.reverse_diffusion().plan(process, np.asarray(process.t_max) * np.array([1.0, 49 / 50])).next
    beta = 1 - (a[0] / a[1]) ** 2
    np.testing.assert_allclose(beta, betas[-1], rtol=1e-6)
    expected = [2 - np.sqrt(1 - beta) - beta / c[0] ** 2, 0, beta * a[0] / c[0] ** 2, np.sqrt(beta)]
    np.testing.assert_allclose(rows[0], expected, rtol=1e-9)


@each
def test_seeds_2_and_3_step_by_step(process, walk):
    grid = from_minus_3_to_3(process, 1)
    start, end = process.log_snr(grid)
    h = end - start
    x, noise = RNG.normal(size=4), RNG.normal(size=(3, 4))

    def at(r):
        t = process.time_of_log_snr(np.array([start + r * h]))[0] if r < 1 else grid[1]
        a, _, c = process.coefficients(t)
        return t, a, c

    def estimate(x, r):
        t, a, c = at(r)
        return (x - a * bend(x, t)) / c

    _, a, c = at(0.0)
    _, a_t, c_t = at(1.0)
    grow = lambda r: np.sqrt(np.expm1(2 * r * h))  # noqa: E731
    # SEEDS-2
    _, a_m, c_m = at(0.5)
    e_0 = estimate(x, 0.0)
    u = a_m / a * x - 2 * c_m * np.expm1(h / 2) * e_0 + c_m * grow(0.5) * noise[0]
    drawn = np.sqrt(np.exp(2 * h) - np.exp(h)) * noise[0] + grow(0.5) * noise[1]
    expected = a_t / a * x - 2 * c_t * np.expm1(h) * estimate(u, 0.5) + c_t * drawn
    found = walk(S.seeds(2).plan(process, grid), x, noise, bend)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)
    # SEEDS-3
    (_, a_1, c_1), (_, a_2, c_2) = at(1 / 3), at(2 / 3)
    u_1 = a_1 / a * x - 2 * c_1 * np.expm1(h / 3) * e_0 + c_1 * grow(1 / 3) * noise[0]
    e_1 = estimate(u_1, 1 / 3)
    drawn = np.sqrt(np.exp(4 * h / 3) - np.exp(2 * h / 3)) * noise[0] + grow(1 / 3) * noise[1]
    slope = 2 * (np.expm1(2 * h / 3) / (2 * h / 3) - 1) * (e_1 - e_0)
    u_2 = a_2 / a * x - 2 * c_2 * (np.expm1(2 * h / 3) * e_0 + slope) + c_2 * drawn
    slope = 1.5 * (np.expm1(h) / h - 1) * (estimate(u_2, 2 / 3) - e_0)
    drawn = np.exp(h / 3) * drawn + grow(1 / 3) * noise[2]
    expected = a_t / a * x - 2 * c_t * (np.expm1(h) * e_0 + slope) + c_t * drawn
    found = walk(S.seeds(3).plan(process, grid), x, noise, bend)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-8)


@each
def test_singlestep_in_data_prediction_with_noise(process, walk):
    """The second order, midpoint, and the law of its noise: one path of the SDE."""
    tau = 0.8
    grid = from_minus_3_to_3(process, 1)
    start, end = process.log_snr(grid)
    h, k = end - start, 1 + tau**2
    x, noise = RNG.normal(size=4), RNG.normal(size=(2, 4))
    t_m = process.time_of_log_snr(np.array([0.5 * (start + end)]))[0]
    (_, _, c), (a_m, _, c_m), (a_t, _, c_t) = (process.coefficients(t) for t in (grid[0], t_m, grid[1]))
    left, drawn = np.exp(-(tau**2) * h / 2), np.sqrt(-np.expm1(-(tau**2) * h))
    n_m = c_m * drawn * noise[0]
    u = c_m / c * left * x - a_m * np.expm1(-k * h / 2) * bend(x, grid[0]) + n_m
    n_t = c_t / c_m * left * n_m + c_t * drawn * noise[1]
    expected = c_t / c * left**2 * x - a_t * np.expm1(-k * h) * bend(u, t_m) + n_t
    found = walk(S.dpmpp_singlestep(2, tau=tau).plan(process, grid), x, noise, bend)
    np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


@pytest.mark.slow
def test_stages_lie_on_one_path_of_the_sde():
    """If the estimate is constant, three stages on a Brownian path are one exact step on it."""
    process = jd.processes.VP()
    grid = jd.grids.log_snr(process, 4)
    constant = lambda x, t: jnp.full_like(x, 0.7)  # noqa: E731
    solvers = S.ancestral(), S.seeds(3, prediction="data"), S.sa_solver(3, 3)

    @jax.jit
    def run(key):
        path = S.brownian(jax.random.split(key, 64), process, depth=12)
        return [jd.sample(path, constant, process, solver, grid[:-1], shape=(2,)) for solver in solvers]

    whole, stages, corrected = run(jax.random.key(0))
    np.testing.assert_allclose(stages, whole, atol=2e-3)
    np.testing.assert_allclose(corrected, whole, atol=1e-5)
    assert np.std(whole) > 0.01


LEVELS = {
    "dpmpp_multistep": lambda tau: S.dpmpp_multistep(3, tau=tau),
    "dpm_multistep": lambda tau: S.dpm_multistep(2, tau=tau),
    "dpmpp_singlestep": lambda tau: S.dpmpp_singlestep(2, tau=tau),
    "sa_solver": lambda tau: S.sa_solver(2, 2, tau),
    "euler_maruyama": lambda tau: S.euler_maruyama(tau),
    "reverse_diffusion": lambda tau: S.reverse_diffusion(tau),
    "ddim": lambda tau: S.ddim(tau),
}


@pytest.mark.parametrize("name", LEVELS)
def test_a_noise_level_for_every_step(name):
    """A number, an array and a function say the same; a step's own level is that of its rows."""
    process, make = jd.processes.VP(), LEVELS[name]
    grid = jd.grids.log_snr(process, 6, end=1e-3)
    middle = lambda t: np.where((t > grid[4]) & (t < grid[1]), 1.0, 0.0)  # noqa: E731
    one, by_array = make(1.0).plan(process, grid), make(np.ones(6)).plan(process, grid)
    np.testing.assert_array_equal(one.next, by_array.next)
    some = make(middle).plan(process, grid)
    same = make(middle(grid[:-1])).plan(process, grid)
    np.testing.assert_array_equal(some.next, same.next)
    drawn = [some.next[some.t == t, -1].sum() > 0 for t in grid[:-1]]
    assert drawn == [False, False, True, True, False, False] and some.noisy
    assert not make(np.zeros(6)).plan(process, grid).noisy
    for message, bad in [("each of 6 steps", np.ones(5)), ("at least 0", lambda t: t - 0.5)]:
        with pytest.raises(ValueError, match=message):
            make(bad).plan(process, grid)
    for bad in (-0.1, np.array([1.0, -1.0]), np.nan):
        with pytest.raises(ValueError, match=r"tau of at least 0|eta in \[0, 1\]"):
            make(bad)


NOISY = {
    "reverse_diffusion": S.reverse_diffusion(),
    "seeds 1": S.seeds(1),
    "seeds 2": S.seeds(2, tau=0.5),
    "seeds 3 data": S.seeds(3, prediction="data"),
    "sa 2 2": S.sa_solver(),
    "sa 3 4": S.sa_solver(3, 4, tau=lambda t: 1.0 * (t > 0.3)),
    "sa 4 0": S.sa_solver(4, 0, published=True),
    "sa 1 1": S.sa_solver(1, 1, tau=1.5),
    "sa 3 3 noise": S.sa_solver(3, 3, 0.5, "noise"),
    "er_sde": S.er_sde(),
    "er_sde ode": S.er_sde(3, 0.0),
    "er_sde 2": S.er_sde(2, 1.0),
    "churn": S.churn(),
    "churn euler": S.churn(10.0, 0.0, np.inf, 1.0, method="euler"),
    "large": S.ancestral("large"),
    "published": S.dpmpp_multistep(3, tau=1.0, rule="midpoint", published=True),
}
ENDS = [
    *PROCESSES,
    jd.processes.CosineVP(),
    jd.processes.Trigonometric(),
    jd.processes.DiscreteVP(np.append(np.linspace(1e-3, 0.2, 99), 1.0)),
]


@pytest.mark.parametrize("process", ENDS, ids=lambda p: type(p).__name__)
def test_tables_are_finite_and_end_at_the_clean_estimate(process):
    for name, solver in NOISY.items():
        for steps in (1, 2, 3, 4, 9):
            for end in (None, process.t_min):
                rows = solver.plan(process, jd.grids.log_snr(process, steps, end=end))
                where = f"{name} {steps} {end}"
                assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(rows)), where
                assert sorted(set(rows.arrives) - {0}) == list(range(1, steps + 1)), where
                assert rows.t[0] == process.t_max and (rows.t > 0).all() and (rows.t <= process.t_max).all()
                if end is None:
                    last = np.eye(rows.next.shape[1])[2]
                    np.testing.assert_allclose(rows.next[-1], last, atol=1e-9, err_msg=where)
                    np.testing.assert_allclose(rows.keep[-1], (0, 1), atol=1e-12, err_msg=where)


def test_rounding_a_thousand_steps_to_float32_moves_samples_by_less_than_1e_6(walk):
    process = jd.processes.VP()
    grid = jd.grids.log_snr(process, 1000, end=1e-3)
    x, noise = RNG.normal(size=3), RNG.normal(size=(3000, 3))
    for name, solver in NOISY.items():
        rows = solver.plan(process, grid)
        rounded = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32).astype(float), rows)
        rounded = rounded.replace(t=rows.t)  # the model's own sensitivity to time is not the plan's
        miss = walk(rounded, x, noise, bend) - walk(rows, x, noise, bend)
        assert np.abs(miss).max() < 1e-6, (name, miss)


@pytest.mark.slow
def test_noise_levels_are_differentiated_and_mapped():
    process = jd.processes.RectifiedFlow()
    grid = jd.grids.karras(process, 5)
    keys, levels = jax.random.split(jax.random.key(0), 3), np.float32([0.5, 1.0])
    makers = [lambda v: S.sa_solver(2, 2, v), lambda v: S.er_sde(3, v), lambda v: S.seeds(2, v, "data")]
    makers.append(lambda v: S.churn(v, 0.0, 50.0))
    denoise = lambda x, t: 0.6 * jnp.tanh(x) + 0.1 * t  # noqa: E731

    for make in makers:

        def value(level, make=make):
            return jnp.mean(jd.sample(keys, denoise, process, make(level), grid, shape=(2,)) ** 2)

        @jax.jit
        def run(levels, value=value):
            return jax.vmap(lambda v: jax.jvp(value, (v,), (1.0,)))(levels), value(0.5)

        (values, slopes), alone = jax.tree.map(np.asarray, run(levels))
        np.testing.assert_allclose(values[0], alone, rtol=1e-3)
        assert np.isfinite(slopes).all() and (np.abs(slopes) > 1e-6).all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "solver", [S.churn(1.0, 0.0, 60.0), S.seeds(3)], ids=lambda s: s.name
)
def test_gradients_with_respect_to_the_grid(solver, x64):
    """Of samples, where evaluations are not at grid points; of every solver's numbers: test_properties."""
    process = jd.processes.RectifiedFlow()
    grid, x = jd.grids.log_snr(process, 5), RNG.normal(size=(4, 2))
    noise = jnp.asarray(RNG.normal(size=(15, 4, 2)))
    denoise = lambda x, t: 0.6 * jnp.tanh(x) + 0.1 * t  # noqa: E731

    def loss(inner):
        rows = solver.plan(process, jnp.concatenate([grid[:1], inner, grid[-1:]]))
        return jnp.sum(jd.sample(noise[: rows.nfe], denoise, process, rows, x=jnp.asarray(x)) ** 2)

    inner = jnp.asarray(grid[1:-1])
    direction = inner * RNG.normal(size=inner.shape)
    loss, slope = jax.jit(loss), jax.jit(jax.grad(loss))(inner) @ direction
    difference = (loss(inner + 1e-5 * direction) - loss(inner - 1e-5 * direction)) / 2e-5
    np.testing.assert_allclose(slope, difference, rtol=1e-4)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: S.reverse_diffusion(-1), "tau of at least 0, got -1"),
        (lambda: S.seeds(4), "order 1, 2 or 3, got 4"),
        (lambda: S.seeds(2, prediction="v"), "unknown prediction 'v'"),
        (lambda: S.seeds(2, tau=-0.5), "tau of at least 0, got -0.5"),
        (lambda: S.dpmpp_multistep(2, published=True), "third order, got order 2"),
    ],
)
def test_wrong_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()
