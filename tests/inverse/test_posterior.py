"""Every method against posteriors that are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

inverse, S = jd.inverse, jd.solvers
VP, N, SIGMA = jd.processes.VP(), 3000, 0.3
RNG = np.random.default_rng(0)
FACTOR = RNG.normal(size=(4, 4))
COVARIANCE, MEAN, A = FACTOR @ FACTOR.T / 4 + 0.1 * np.eye(4), RNG.normal(size=4), RNG.normal(size=(2, 4))
Y = A @ RNG.multivariate_normal(MEAN, COVARIANCE) + SIGMA * RNG.normal(size=2)
GAIN = COVARIANCE @ A.T @ np.linalg.inv(A @ COVARIANCE @ A.T + SIGMA**2 * np.eye(2))
EXACT = MEAN + GAIN @ (Y - A @ MEAN), COVARIANCE - GAIN @ A @ COVARIANCE
GAUSSIAN = jd.testing.gaussian(MEAN, COVARIANCE)
ONE = inverse.MixturePrior(
    MEAN[None].astype(np.float32), COVARIANCE[None].astype(np.float32), np.ones(1), (4,)
)
KEYS = jax.random.split(jax.random.key(0), N)
TAU = S.dpmpp_multistep(2, tau=1.0)
slow = pytest.mark.slow


def draw(
    target, operator, y, method, noise_level=0.0, process=VP, steps=60, solver=TAU, grid=None, **options
):  # fmt: skip
    """Samples of `target` given one measurement, by a method of either kind."""
    denoise = target.denoiser(process)
    grid = jd.grids.log_snr(process, steps) if grid is None else grid
    n = 1000 if method == "daps" else N  # a hundred steps of Langevin in each
    y = np.tile(np.asarray(y, np.float32)[None], (n, 1))
    made = inverse.posterior(denoise, process, operator, y, method, noise_level, **options)
    kind = method in inverse.TRANSFORMS
    denoise, solver = (made, solver) if kind else (denoise, made)
    walk = lambda keys: jd.sample(keys[:n], denoise, process, solver, grid, shape=target.event)  # noqa: E731
    long = method == "daps" or options.get("cycles", 1) > 1  # here the loop is what costs
    options = {"xla_backend_optimization_level": 1} if long else None
    return np.asarray(jax.jit(walk, compiler_options=options)(KEYS))


def off(x, exact=EXACT):
    """Largest error of the mean in posterior deviations, and of the covariance over its largest entry."""
    mean, covariance = exact
    spread = np.sqrt(np.diag(covariance)).max()
    return (
        np.abs(x.mean(0) - mean).max() / spread,
        np.abs(np.cov(x.T) - covariance).max() / np.abs(covariance).max(),
    )


# what each is off by, with a margin: the exact ones by the sampling error alone, the others by their bias
@pytest.mark.parametrize("method, options, mean, covariance", [
    ("mmps", {}, 0.06, 0.08),
    pytest.param("tractable", {"prior": ONE}, 0.06, 0.08, marks=slow),
    pytest.param("pigdm", {}, 0.08, 0.1, marks=slow),
    pytest.param("tmpd", {}, 0.12, 0.15, marks=slow),
    pytest.param("dps", {}, 0.15, 0.25, marks=slow),
    ("jacobian_free", {}, 0.25, 0.35),
    pytest.param("diffpir", {}, 0.45, 1.3, marks=slow),
    ("ddrm", {}, 0.1, 0.4),
    pytest.param("daps", {"step_size": 0.03}, 0.2, 0.7, marks=slow),
    pytest.param("red_diff", {}, 0.6, 1.0, marks=slow),
])  # fmt: skip
def test_the_posterior_of_a_gaussian(method, options, mean, covariance):
    far = np.abs(MEAN - EXACT[0]).max() / np.sqrt(np.diag(EXACT[1])).max()
    assert far > 1.4  # what the prior alone would be off by
    steps = 30 if method == "daps" else 100 if method in ("dps", "red_diff") else 60
    found = off(draw(GAUSSIAN, inverse.dense(A), Y, method, SIGMA, steps=steps, **options))
    assert found[0] < mean and found[1] < covariance, found


@slow
@pytest.mark.parametrize("process", [jd.processes.RectifiedFlow(), jd.processes.EDM()], ids=["flow", "EDM"])
@pytest.mark.parametrize("method", ["mmps", "pigdm", "ddrm"])
def test_any_process(method, process):
    found = off(draw(GAUSSIAN, inverse.dense(A), Y, method, SIGMA, process, 100))
    assert found[0] < 0.12 and found[1] < (0.4 if method == "ddrm" else 0.1), found


LEVELS = np.array([-2.0, 0.0, 1.5, 3.0])
KINDS = VP, jd.processes.RectifiedFlow()


@slow
@pytest.mark.parametrize("method", [*inverse.TRANSFORMS, "replacement", "ddrm", "flow_chef", "red_diff"])
def test_every_process_goes_the_same_way(method):
    """At equal log-SNR processes differ by scale alone, and so do what methods make of them: the same clean
    estimates at times of each example's own, and the same samples of the same noise."""
    y, start = np.tile(np.float32(Y), (4, 1)), np.random.default_rng(1).normal(size=(4, 4)).astype(np.float32)
    options = {"tractable": {"prior": ONE}}.get(method, {})
    level = 0.0 if method in ("ddnm", "replacement", "flow_chef") else SIGMA
    found = []
    for process in KINDS:
        t = process.time_of_log_snr(LEVELS)
        a, _, c = process.coefficients(t)
        denoise = GAUSSIAN.denoiser(process)
        made, one = (
            inverse.posterior(denoise, process, inverse.dense(A), given, method, level, **options)
            for given in (y, y[:1])
        )
        if method in inverse.TRANSFORMS:
            x, t = np.float32(np.hypot(a, c))[:, None] * start, np.float32(t)
            found.append(np.asarray(jax.jit(made)(x, t)))
            if process is VP:
                alone = jax.jit(one)(x[1:2], t[1])
                np.testing.assert_allclose(found[0][1:2], alone, rtol=1e-3, atol=1e-3)
        else:
            walk = jax.jit(lambda keys, x, d=denoise, m=made, p=process, t=t: jd.sample(
                keys[:4], d, p, m, np.append(t, 0.0), x=x))  # fmt: skip
            found.append(walk(KEYS, np.hypot(a[0], c[0]).astype(np.float32) * start))
    np.testing.assert_allclose(found[1], found[0], rtol=5e-3, atol=5e-3)


@slow
def test_an_operator_without_a_basis_or_known_only_as_a_function_gives_the_same():
    rows = jnp.asarray(A, jnp.float32)
    function = inverse.nonlinear(lambda x: x @ rows.T)
    for method in ("pigdm", "mmps", "jacobian_free"):
        plain, free, local = (
            draw(GAUSSIAN, operator, Y, method, SIGMA, steps=10)
            for operator in (inverse.dense(A), inverse.dense(A, decompose=False), function)
        )
        np.testing.assert_allclose(free, plain, atol=2e-3)
        np.testing.assert_allclose(local, plain, atol=2e-3)


MODES = np.array([[1.0, 1.0], [-1.0, -0.5]]), np.array([[0.1, 0.05], [0.05, 0.2]]), np.array([0.4, 0.6])


def mixture_posterior(row, y, sigma):
    """Weight of the first mode, and means, given `row x + sigma noise = y`."""
    means, variances, weights = MODES
    v, e = (row**2 * variances).sum(1) + sigma**2, y - means @ row
    odds = np.log(weights) - 0.5 * (np.log(v) + e**2 / v)
    p = np.exp(odds - odds.max())
    return (p / p.sum())[0], means + variances * row * (e / v)[:, None]


@slow
@pytest.mark.parametrize("method, weight, mean", [
    ("tractable", 0.03, 0.03), ("pigdm", 0.03, 0.08), ("mmps", 0.08, 0.08), ("tmpd", 0.08, 0.08),
    ("jacobian_free", 0.12, 0.15), ("dps", 0.2, 0.25), ("daps", 0.1, 0.25), ("ddrm", 0.1, 0.4),
])  # fmt: skip
def test_the_posterior_of_a_mixture(method, weight, mean):
    target, row = jd.testing.gaussian_mixture(*MODES), np.array([1.0, 0.5])
    exact, means = mixture_posterior(row, 0.3, 0.8)
    assert abs(exact - 0.4) > 0.15  # which the prior would say
    covariances = np.stack([np.diag(v) for v in MODES[1]]).astype(np.float32)
    options = {"prior": inverse.MixturePrior(MODES[0].astype(np.float32), covariances, MODES[2], (2,))}
    options = options if method == "tractable" else {"step_size": 0.05} if method == "daps" else {}
    steps = 30 if method == "daps" else 60
    x = draw(target, inverse.dense(row[None]), np.array([0.3]), method, 0.8, steps=steps, **options)
    first = x @ np.array([2.0, 1.5]) > 0.1
    assert abs(first.mean() - exact) < weight
    np.testing.assert_allclose([x[first].mean(0), x[~first].mean(0)], means, atol=mean)


PAIR = jd.testing.gaussian(np.zeros(2), [[1.0, 0.8], [0.8, 1.0]])
SEEN = np.array([1.2, 0.0])  # so that the other has mean 0.96 and variance 0.36


def rest(method, **options):
    x = draw(PAIR, inverse.mask([1, 0]), SEEN, method, **options)
    np.testing.assert_allclose(x[:, 0], 1.2, atol=1e-2)
    return x[:, 1].mean(), x[:, 1].var()


@pytest.mark.slow
def test_replacement_copies_and_its_cycles_bring_the_rest_into_harmony():
    plain, cycled = rest("replacement"), rest("repaint", cycles=10)
    assert plain[0] < 0.7 and abs(cycled[0] - 0.96) < 0.1 and abs(cycled[1] - 0.36) < 0.08, (plain, cycled)


@slow
def test_the_hidden_half_of_a_pair():
    for method, mean, variance in (("mmps", 0.03, 0.04), ("pigdm", 0.08, 0.05), ("ddrm", 0.3, 0.1)):
        found = rest(method)
        assert abs(found[0] - 0.96) < mean and abs(found[1] - 0.36) < variance, (method, found)
    flow = jd.processes.RectifiedFlow()
    found = rest("flow_chef", process=flow, grid=jd.grids.uniform(flow, 60))
    assert abs(found[0] - 0.96) < 0.05 and abs(found[1] - 0.36) < 0.04, found
    for method in ("ddnm", "mcg"):  # the hidden value sees the measurement through the network alone
        found = rest(method)
        assert 0.4 < found[0] < 0.8 and 0.4 < found[1] < 0.65, (method, found)
    for cycles in (1, 20):
        assert 0.4 < rest("cyclic_one_way", cycles=cycles)[0] < 0.8


@pytest.mark.slow
def test_methods_that_promise_it_do_not_differentiate_the_network():
    exact = GAUSSIAN.denoiser(VP)

    @jax.custom_vjp
    def network(x):
        return exact(x, 0.5)

    network.defvjp(lambda x: (network(x), None), lambda *_: pytest.fail("the network was differentiated"))
    y = jnp.tile(jnp.asarray(Y, jnp.float32)[None], (4, 1))
    grid, keys = jd.grids.log_snr(VP, 2), KEYS[:4]
    for method in ("jacobian_free", "diffpir", "ddnm", "replacement", "repaint", "ddrm", "flow_chef", "daps",
                   "red_diff"):  # fmt: skip
        level = {} if method in ("ddnm", "replacement", "repaint", "flow_chef") else {"noise_level": SIGMA}
        level |= {"langevin_steps": 1} if method == "daps" else {}
        calls = []

        def counted(x, t, calls=calls):
            calls.append(1)
            return network(x)

        made = inverse.posterior(counted, VP, inverse.dense(A), y, method, **level)
        denoise, solver = (made, S.ddim()) if method in inverse.TRANSFORMS else (counted, made)
        with jax.disable_jit():
            rows = solver.plan(VP, grid)
            jd.sample(keys, denoise, VP, rows if hasattr(rows, "step") else solver, grid, shape=(4,))
        assert len(calls) == rows.nfe, method


def test_cycles_walk_where_they_should():
    grid = jd.grids.uniform(VP, 6)
    rows = inverse.repaint(inverse.mask([1, 0]), jnp.zeros((1, 2)), jump=2, cycles=3).plan(VP, grid)
    points = [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 4, 5]  # the last stretch ends at data, once
    np.testing.assert_allclose(rows.t, grid[points])
    assert rows.arrives.tolist() == [0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 3, 4, 5, 6]
    back = np.flatnonzero(np.asarray(rows.renoise)[:, 1] > 0)
    np.testing.assert_array_equal(back, [1, 3, 7, 9])
    a, _, c = VP.coefficients(grid)
    gain, noise = rows.renoise[1]
    np.testing.assert_allclose([gain * a[2], gain**2 * c[2] ** 2 + noise**2], [a[0], c[0] ** 2], rtol=1e-9)
    grid = jd.grids.uniform(VP, 10)
    once = inverse.cyclic_one_way(inverse.mask([1, 0]), jnp.zeros((1, 2)), 0.7, 0.3, 2).plan(VP, grid)
    np.testing.assert_allclose(once.t, grid[[*range(7), *range(3, 10)]])


@slow
def test_a_sample_depends_on_its_key_alone():
    """Of a transform, whose inner iterations might see the batch, and of solvers with draws of their own."""
    y = jnp.asarray(np.tile(Y, (8, 1)), jnp.float32)
    grid = jd.grids.log_snr(VP, 4)

    def run(keys, y, method="mmps"):
        denoise = GAUSSIAN.denoiser(VP)
        level = {} if method == "repaint" else {"noise_level": 1.0}
        made = inverse.posterior(denoise, VP, inverse.dense(A), y, method, **level)
        denoise, solver = (made, TAU) if method in inverse.TRANSFORMS else (denoise, made)
        return jd.sample(keys, denoise, VP, solver, grid, shape=(4,))

    jd.testing.invariance(run, KEYS[:8], y, rtol=1e-3)
    for method in ("ddrm", "repaint"):
        together = run(KEYS[:8], y, method)
        np.testing.assert_allclose(run(KEYS[3:4], y[:1], method), together[3:4], rtol=1e-3, atol=1e-4)
        jd.testing.key_reuse(lambda keys, m=method: run(keys, y, m), KEYS[8:16])


def test_wrong_settings():
    denoise, y = GAUSSIAN.denoiser(VP), np.zeros((2, 2), np.float32)
    call = lambda *a, **k: inverse.posterior(denoise, VP, inverse.dense(A), y, *a, **k)  # noqa: E731
    apply = lambda made, n: jax.eval_shape(made, np.zeros((n, 4), np.float32), 0.5)  # noqa: E731
    with pytest.raises(ValueError, match="did you mean mmps"):
        call("mmp")
    with pytest.raises(ValueError, match="noise_level of at least 0, got -1"):
        call("pigdm", -1.0)
    with pytest.raises(ValueError, match=r"y of shape \(3, 2\).* samples \(3, 4\), got \(2, 2\)"):
        apply(call("mmps", 0.1), 3)
    with pytest.raises(ValueError, match="without noise, got noise_level=0.1"):
        call("ddnm", 0.1)
    with pytest.raises(ValueError, match="noise_level above 0, or scale="):
        call("dps")
    with pytest.raises(ValueError, match=r"one measurement's shape, \(2,\), got \(3,\)"):
        apply(call("pigdm", np.ones(3)), 2)
    with pytest.raises(ValueError, match=r"means of 3 values for the event \(3,\), got shape \(1, 4\)"):
        call("tractable", 0.1, prior=ONE.replace(event=(3,)))
    with pytest.raises(ValueError, match="eta in"):
        call("ddrm", 0.1, eta=2.0)
    with pytest.raises(ValueError, match="low < high"):
        inverse.cyclic_one_way(inverse.mask([1, 0]), y, 0.2, 0.5)
    with pytest.raises(ValueError, match="a step between high=0.52 and low=0.48 .* got 4 steps"):
        inverse.cyclic_one_way(inverse.mask([1, 0]), y, 0.52, 0.48).plan(VP, jd.grids.uniform(VP, 4))
    for method in ("replacement", "repaint", "cyclic_one_way", "flow_chef", "ddnm"):
        for level in (0.1, np.full(2, 0.1), inverse.noise.poisson(10.0)):
            with pytest.raises(ValueError, match=f"{method}: expected a measurement without noise"):
                call(method, level)
        call(method, inverse.noise.gaussian(0.0))
    for method in ("daps", "red_diff"):
        with pytest.raises(ValueError, match="noise_level .*above 0"):
            call(method, 0.0)
    with pytest.raises(ValueError, match="finite measurement"):
        apply(inverse.posterior(denoise, VP, inverse.dense(A), y + np.float32(np.nan), "mmps"), 2)
    free = inverse.posterior(denoise, VP, inverse.dense(A, decompose=False), y, "ddrm", 0.1)
    with pytest.raises(ValueError, match="singular vectors"):
        grid = jd.grids.log_snr(VP, 2)
        jax.eval_shape(lambda keys: jd.sample(keys[:2], denoise, VP, free, grid, shape=(4,)), KEYS)
