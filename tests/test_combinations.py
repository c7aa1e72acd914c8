"""Pieces that meet: right together, or refused with the name of what does not fit."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff as jd
from jaxdiff import editing as E
from jaxdiff import grids, guidance, inverse, likelihood, models
from jaxdiff import processes as P
from jaxdiff import solvers as S
from jaxdiff import steering as ST
from jaxdiff import testing as T
from jaxdiff.core import floating
from jaxdiff.diagnostics import hallucination
from jaxdiff.training.state import init_state
from jaxdiff.training.update import make_update

VP, MEAN_REVERTING = P.VP(), P.MeanReverting()
SYMMETRIC, HEAVY = P.Symmetric(VP), P.HeavyTailed(VP, 3.0)
BOTH = P.Product({"a": VP, "b": P.EDM()})
GRID = grids.uniform(VP, 4)
KEYS = jax.random.split(jax.random.key(0), 4)
X, M = jnp.ones((4, 3)), jnp.zeros((4, 3, 3))
MASK = inverse.mask(np.array([1.0, 0.0, 1.0]))
CHAIN = np.zeros((5, 4, 3))
PRIOR = inverse.MixturePrior(np.zeros((1, 3)), np.eye(3)[None], np.ones(1), (3,))


def half(x, t):
    return jax.tree.map(lambda x: 0.5 * x, x)


def first(x):
    return x.reshape(len(x), -1)[:, 0]


def walk(process, solver, x, keys=KEYS, grid=GRID, denoise=half, **settings):
    return jd.sample(keys, denoise, process, solver, grid, x=x, **settings)


def joint_loss(net=half, keys=KEYS, **settings):
    data = {"a": jnp.ones((len(keys), 2)), "b": jnp.ones((len(keys), 2))}
    kind = jd.parameterizations.data()
    return jd.losses.joint(net, keys, data, process=BOTH, parameterization=kind, **settings)


def statistics_of(process):
    return S.fit_model_statistics(jax.random.key(0), half, process, X, 4, -1.0, 1.0, probes=1)


def fokker_planck(process):
    return jd.losses.regularizers.fokker_planck(lambda x, t: -first(x), process, KEYS, X, jnp.full(4, 0.5))


REFUSED = {
    "a target under a process that repeats entries": (
        lambda: T.gaussian(np.zeros((3, 3)), 1.0).denoiser(SYMMETRIC),
        "denoiser: expected a process with noise that repeats no entries, got Symmetric",
    ),
    "a likelihood of no noise": (
        lambda: inverse.dps(half, VP, MASK, X, np.float32(0)), "dps: expected noise_level above 0, or scale="
    ),
    "a likelihood of no noise in one value": (
        lambda: inverse.dps(half, VP, MASK, X, jnp.array([0.1, 0, 0.1])), "dps: expected noise_level above 0"
    ),
    "a likelihood of no noise, of a model": (
        lambda: inverse.dps(half, VP, MASK, X, inverse.noise.gaussian(0.0)), "dps: expected noise_level above"
    ),
    "a division by no noise": (
        lambda: inverse.red_diff(MASK, X, inverse.noise.gaussian(0.0)), "red_diff: .*above 0, got 0.0"
    ),
    "a blur of no width": (lambda: inverse.gaussian_blur(0.0), "gaussian_blur: expected width to be"),
    "a row without noise": (
        lambda: E.encode(KEYS, half, VP, S.dpmpp_multistep(1, tau=np.array([1.0, 0, 1])), GRID[:-1], X),
        r"encode: expected .* with noise in every step.* got dpmpp_multistep\(1\)",
    ),
    "more directions than there are": (
        lambda: E.jacobian_directions(lambda x: x[:2], jnp.zeros(3), 4, jax.random.key(0)),
        "count of at most 3, at's size, got 4",
    ),
    "heavy tails around symmetric noise": (lambda: P.HeavyTailed(SYMMETRIC, 5.0), "wrap the other way round"),
    "heavy tails twice": (lambda: P.HeavyTailed(P.PoissonFlow(3.0), 50.0), "normal noise, got PoissonFlow"),
    "a bridge of symmetric noise": (lambda: P.DiffusionBridge(SYMMETRIC), "got Symmetric; wrap the bridge"),
    "a bridge of heavy tails": (lambda: P.DiffusionBridge(HEAVY), "got HeavyTailed; wrap the bridge"),
    "a bridge of a bridge": (lambda: P.DiffusionBridge(MEAN_REVERTING), "second endpoint, got MeanReverting"),
    "a bound under symmetric noise": (
        lambda: likelihood.variational_bound(jax.random.key(0), half, SYMMETRIC, M), "repeats no entries"
    ),
    "information under symmetric noise": (
        lambda: jd.diagnostics.mutual_information(jax.random.key(0), half, half, SYMMETRIC, M), "repeats no"
    ),
    "information under heavy tails": (
        lambda: jd.diagnostics.mutual_information(jax.random.key(0), half, half, HEAVY, X), "normal noise"
    ),
    "information between two ends": (
        lambda: jd.diagnostics.mutual_information(jax.random.key(0), half, half, MEAN_REVERTING, X), "has y"
    ),
    "the density along a plan of another grid": (
        lambda: likelihood.log_prob(
            None, half, VP, X, solver=S.heun().plan(VP, np.array([0.1, 0.5])), grid=GRID
        ),
        r"expected a plan on the grid, from 0.001 to 1, got one from 0.1 to 0.5",
    ),
    "a classifier under heavy tails": (
        lambda: guidance.classifier(half, HEAVY, lambda x, t: first(x)), "classifier: .* normal noise"
    ),
    "a loss to guide by under symmetric noise": (
        lambda: guidance.energy(half, SYMMETRIC, first), "energy: .* noise that repeats no entries"
    ),
    "a loss to guide by under heavy tails": (
        lambda: guidance.energy(half, HEAVY, first), "energy: .* normal noise"
    ),
    "a flow for the mean and covariance under symmetric noise": (
        lambda: S.teleport(M, SYMMETRIC, None, 0.5), "teleport: .* repeats no entries"
    ),
    "a Gaussian start of symmetric noise": (
        lambda: S.gaussian_start(KEYS, SYMMETRIC, None), "gaussian_start: .* repeats no entries"
    ),
    "a Gaussian start of heavy tails": (
        lambda: S.gaussian_start(KEYS, HEAVY, None), "gaussian_start: .* normal noise"
    ),
    "a Gaussian start between two ends": (
        lambda: S.gaussian_start(KEYS, MEAN_REVERTING, None), "gaussian_start: .* MeanReverting, which has y"
    ),
    "levels of a path without noise": (
        lambda: grids.karras(P.Residual(scale=0.0), 4), "with noise at t_min, got Residual .* uniform"
    ),
    "levels of a bridge whose end is its base's": (
        lambda: S.from_level(S.ddim(), np.array([0.5, 0.2]), 3).plan(P.DiffusionBridge(VP)),
        "from_level: .* t_max of its own, got DiffusionBridge",
    ),
    "a growing noise that does not grow": (
        lambda: P.OrnsteinUhlenbeckVE(sigma_min=0.5, sigma_max=0.05), "sigma_min < sigma_max, got 0.5 and"
    ),
    "a fitted velocity between two ends": (
        lambda: guidance.zero_star(half, half, 2.0, MEAN_REVERTING), "zero_star: .* got MeanReverting"
    ),
    "projected guidance of a pytree": (
        lambda: walk(BOTH, S.joint(S.ddim()), {"a": X, "b": X}, grid={"a": GRID, "b": GRID},
                     denoise=guidance.projected(half, half, 2.0)),
        "projected: expected estimates that are one array",
    ),
    "momentum of a pytree": (
        lambda: walk(VP, guidance.momentum(S.ddim(), 2.0), {"a": X}, denoise=lambda x, t: (half(x, t), x)),
        "momentum: expected estimates that are one array",
    ),
    "a tractable prior between two ends": (
        lambda: inverse.tractable(half, MEAN_REVERTING, MASK, X, 0.1, PRIOR), "tractable: .* second endpoint"
    ),
    "a covariance under heavy tails": (lambda: inverse.mmps(half, HEAVY, MASK, X, 0.1), "normal noise alone"),
    "symmetric twisted particles": (
        lambda: walk(SYMMETRIC, ST.twisted(S.ancestral(), first, 2), M), "twisted: .* repeats no entries"
    ),
    "heavy twisted particles": (
        lambda: walk(HEAVY, ST.twisted(S.ancestral(), first, 2), X), "twisted: expected .* normal noise"
    ),
    "a chain to align with between two ends": (
        lambda: walk(MEAN_REVERTING, E.aligned(S.ddim(), CHAIN), X, y=X), "aligned: .* has y"
    ),
    "a reversible solver that something moves": (
        lambda: walk(VP, E.aligned(S.reversible_heun(), CHAIN), X, gradient="reversible"),
        "by itself",
    ),
    "a path whose parts are taken twice": (
        lambda: walk(
            P.EDM(), S.churn(s_churn=1e9, s_min=0.0, s_max=1e9, s_noise=1.0), X,
            S.brownian(KEYS, P.EDM(), depth=4), grids.karras(P.EDM(), 60),
        ),
        "take parts that others take",
    ),
    "a path of a product": (
        lambda: walk(BOTH, S.joint(S.ancestral()), {"a": X, "b": X}, S.brownian(KEYS, VP, depth=4),
                     {"a": GRID, "b": grids.karras(P.EDM(), 4)}),
        r"expected \(batch,\) keys for Product, got a Brownian path",
    ),
    "heavy tails of a pytree": (lambda: walk(HEAVY, S.ancestral(), {"a": X}), "expected one array as x"),
    "a plan where its solver is asked for": (
        lambda: E.invert(half, VP, S.edict().plan(VP, GRID[:-1]), GRID[:-1], X), "not its plan"
    ),
    "maps of a corrector": (
        lambda: E.encode(KEYS, half, VP, S.predictor_corrector(), GRID[:-1], X), "encode: expected a linear"
    ),
    "maps of a plan that remembers": (
        lambda: E.encode(KEYS, half, VP, S.heun().plan(VP, GRID[:-1]), GRID[:-1], X), "without .* got a plan"
    ),
    "wandering on a traced grid": (
        lambda: jax.jit(lambda g: hallucination(KEYS, half, VP, S.ddim(), g, window=(0.2, 0.8), x=X))(GRID),
        "hallucination: expected a known grid",
    ),
    "an array where guidance has a pair": (
        lambda: walk(VP, guidance.momentum(S.ddim(), 2.0), X[:2], KEYS[:2]), r"pair \(D_c, D_u\).* \(2, 3\)"
    ),
    "an array where guidance asks one function for both": (
        lambda: guidance.classifier_free(half, None, 2.0)(X, 0.5), r"pair \(D_c, D_u\).* \(4, 3\)"
    ),
    "adaptive steps guided with memory": (
        lambda: walk(VP, guidance.momentum(S.adaptive(), 2.0), X), "remembering: .* got one that plans Legs"
    ),
    "particles of adaptive steps": (
        lambda: walk(VP, ST.particles(S.adaptive(tau=1.0), first, 2), X), "particles: .* one evaluation a row"
    ),
    "proposals of adaptive steps": (
        lambda: walk(VP, ST.value_decoding(S.adaptive(tau=1.0), first, 2), X), "value_decoding: .* a row"
    ),
    "second thoughts of adaptive steps": (
        lambda: walk(VP, ST.rollover(S.adaptive(tau=1.0), first, 2), X), "rollover: .* one evaluation a row"
    ),
    "a class as a grid's process": (lambda: grids.karras(P.VP, 4), "karras: expected process to be"),
    "a name as a grid's process": (lambda: grids.uniform("vp", 4), "uniform: expected process .* got 'vp'"),
    "a density of process and denoiser exchanged": (
        lambda: likelihood.log_prob(None, VP, half, X, solver=HEUN, grid=GRID), "log_prob: expected process"
    ),
    "a denoiser of process and parameterization exchanged": (
        lambda: jd.denoiser(half, jd.parameterizations.v(), VP), "denoiser: expected process to be"
    ),
    "a bridge of a name": (lambda: P.DiffusionBridge("vp"), "DiffusionBridge: expected process .* got 'vp'"),
    "a matrix as an operator": (
        lambda: inverse.posterior(half, VP, np.eye(3), X, noise_level=0.1), "posterior: expected operator"
    ),
    "an order of the other name": (lambda: S.ipndm(9), "ipndm: expected order 1, 2, 3 or 4, got 9"),
    "a prior of a number": (lambda: VP.prior(KEYS[0], 3), "prior: expected shape to be a tuple, .* got 3"),
    "a prior of a batch": (
        lambda: MEAN_REVERTING.prior(KEYS[0], (3,), X), r"prior: .* got \(3,\) and a y of shape \(4, 3\)"
    ),
    "inversion between two ends": (
        lambda: E.invert(half, MEAN_REVERTING, S.edict(), GRID[:-1], X), "invert: .* second endpoint"
    ),
    "fixed points between two ends": (
        lambda: E.fixed_point(half, MEAN_REVERTING, GRID[:-1], X), "fixed_point: .* second endpoint"
    ),
    "noise maps between two ends": (
        lambda: E.encode(KEYS, half, MEAN_REVERTING, S.ancestral(), GRID[:-1], X), "encode: .* has y"
    ),
    "a coupling of pytrees": (
        lambda: jd.losses.flow_matching(
            half, KEYS, {"a": X}, coupling=jd.couplings.optimal_transport("exact")
        ),
        "flow_matching: expected x0 that is one array",
    ),
    "noise paired with what goes with y": (
        lambda: jd.losses.flow_matching(
            half, KEYS, X, process=MEAN_REVERTING, y=X, coupling=jd.couplings.optimal_transport("exact")
        ),
        "flow_matching: expected no coupling with y",
    ),
    "labels as columns": (
        lambda: jd.couplings.optimal_transport()(KEYS[0], X, X, np.zeros((4, 1), int)),
        r"optimal_transport: expected label of shape \(4,\), one class per example, got \(4, 1\)",
    ),
    "a Fokker-Planck equation with y": (lambda: fokker_planck(MEAN_REVERTING), "MeanReverting, which"),
    "a Fokker-Planck equation of heavy tails": (lambda: fokker_planck(HEAVY), "normal noise, got Heavy"),
    "particles of which a part is left noisy": (
        lambda: walk(
            BOTH, ST.particles(S.joint(S.ancestral()), lambda x: x["a"][:, 0], 2), {"a": X, "b": X},
            grid={"a": GRID, "b": grids.karras(P.EDM(), 4, end=0.1)},
        ),
        "particles: expected a grid that ends at exact data, t = 0, got 0.1",
    ),
    "annealing to a measurement without noise": (
        lambda: inverse.daps(MASK, X, inverse.noise.gaussian(0.0)), "daps: .*above 0"
    ),
    "a weight of no part": (lambda: joint_loss(weights={"A": 0.0}), r"\['a', 'b'\], got \['A'\]"),
    "a part without a head": (
        lambda: joint_loss(net=lambda x, c: {"a": x["a"]}), r"network's output .* none for \['b'\]"
    ),
    "a stack of joint plans": (
        lambda: S.stack(2 * [S.joint(S.ddim()).plan(BOTH, {"a": GRID, "b": GRID})]), "tables, got JointRows"
    ),
    "a stack of tables of two shapes": (
        lambda: S.stack([S.dc_solver(np.ones(4), order).plan(VP, GRID) for order in (2, 3)]), "equal shapes"
    ),
    "a traced bridge": (
        lambda: jax.jit(lambda process: walk(process, S.ddim(), X, y=X))(P.DiffusionBridge(VP)),
        "got a traced process; make the process outside of jit",
    ),
    "statistics of another schedule": (
        lambda: statistics_of(P.HeavyTailed(P.SubVP(), 5.0)).check(P.HeavyTailed(VP, 5.0), np.zeros(1)),
        "expected the process that the statistics were fitted for",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("call", "match"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused_by_name(call, match):
    with pytest.raises(ValueError, match=match):
        call()


BYTES = jnp.ones((4, 3), jnp.uint8)


@pytest.mark.parametrize("call", [
    lambda: likelihood.log_prob(None, half, VP, BYTES, solver=HEUN, grid=GRID),
    lambda: likelihood.variational_bound(KEYS, half, VP, BYTES),
    lambda: E.sdedit(KEYS, half, VP, S.ddim(), GRID[1:], BYTES),
    lambda: E.encode(KEYS, half, VP, S.ancestral(), GRID[:-1], BYTES),
    lambda: E.fixed_point(half, VP, GRID[:-1], BYTES),
    lambda: E.invert(half, VP, S.edict(), GRID[:-1], BYTES),
    lambda: jd.diagnostics.mutual_information(KEYS, half, half, VP, BYTES),
    lambda: S.fit_model_statistics(KEYS, half, VP, BYTES),
    lambda: jd.losses.mean_flow(lambda x, t, r: x, KEYS, BYTES),
])  # fmt: skip
def test_data_that_is_not_scaled_to_floats_is_refused(call):
    with pytest.raises(ValueError, match="to be a floating array .* got uint8 .* scale integer images"):
        call()


def test_clean_data_in_float64_of_numpy_is_taken_without_a_warning():
    x = np.ones((4, 3))
    with warnings.catch_warnings(action="error"):
        assert floating("here", x).dtype == jnp.float32
        assert floating("here", x.astype(jnp.bfloat16)).dtype == jnp.float32


def test_float32_stays_so_beside_wider_numbers(x64):
    x, y, seen = np.float32(np.ones((4, 2))), np.ones((4, 2)), []

    def net(x, *times):
        seen.extend(jax.tree.leaves((x, times)))
        return x

    jd.losses.mean_flow(net, KEYS, x)
    inverse.forward_model(net, KEYS, x, process=VP, operator=inverse.mask(np.ones(2)))
    data = jd.parameterizations.data()
    jd.losses.joint(net, KEYS, {"a": x, "b": x}, process=BOTH, parameterization=data)
    steps = grids.uniform(MEAN_REVERTING, 2)
    for save in ("final", "all"):
        path = lambda save=save: walk(MEAN_REVERTING, S.ddim(), x, grid=steps, denoise=net, y=y, save=save)  # noqa: E731
        seen.append(jax.eval_shape(path))
    table = P.DiscreteVP(np.linspace(1e-3, 0.2, 20))
    steps = grids.uniform(table, 2)
    for solver in (S.adaptive(coordinate="time"), S.adaptive(tau=1.0), S.dpm_adaptive(2)):
        seen.append(jax.eval_shape(lambda solver=solver: walk(table, solver, x, grid=steps, denoise=net)))
    assert {leaf.dtype for leaf in seen} == {np.dtype("float32")}


def test_statistics_tell_processes_apart_and_know_their_own():
    constant, cosine = P.StochasticInterpolant(gamma=np.cos), P.StochasticInterpolant(gamma=np.sin)
    others = [VP, P.SubVP(), P.VP(beta_max=19.0), HEAVY, P.HeavyTailed(P.SubVP(), 3.0), SYMMETRIC]
    others += [P.Symmetric(HEAVY), constant, cosine, MEAN_REVERTING, P.MeanReverting(schedule="constant")]
    others.append(BOTH)
    names = [S.statistics.signature(process) for process in others]
    assert len(set(names)) == len(names)
    same = P.VP(beta_max=jnp.float32(20.0)), P.HeavyTailed(P.VP(), 3)
    assert [S.statistics.signature(process) for process in same] == [names[0], names[3]]


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_a_sample_depends_on_its_own_key_whatever_the_generator(kind):
    keys, others = (jax.random.split(jax.random.key(seed, impl=kind), 3) for seed in (0, 5))
    run = jax.jit(lambda keys: jd.sample(keys, half, VP, S.ancestral(), GRID, shape=(2,)))
    together = np.asarray(run(keys))
    np.testing.assert_array_equal(run(jnp.concatenate([keys[:1], others[1:]]))[0], together[0])
    assert np.abs(np.asarray(run(others)) - together).min() > 1e-3
    raw = jax.random.wrap_key_data(jax.random.key_data(keys)[:, :2], impl="threefry2x32")
    np.testing.assert_array_equal(run(raw), together)
    with jax.default_prng_impl(kind):
        loss = joint_loss(keys=keys)
    np.testing.assert_array_equal(loss, joint_loss(keys=raw))


def test_what_is_drawn_for_an_example_depends_on_its_own_key_whatever_the_generator():
    keys, others = (jax.random.split(jax.random.key(seed, impl="unsafe_rbg"), 3) for seed in (0, 5))
    images, verify, start = jnp.arange(192.0).reshape(3, 8, 8, 1) % 17, first, jnp.zeros((3, 2))
    given = {"shape": (2,), "ode": S.ddim(), "sde": S.ddim(), "distance": lambda x, y: x}

    @jax.jit
    def drawn(keys):
        kinds = jd.data.Affine(), jd.data.EDMAugment(), jd.data.Crop(), jd.data.Elastic()
        return [
            *(augment(keys, images)[1] for augment in kinds),
            ST.best_of_n(keys, lambda x: x, verify, (2,), 3).x,
            ST.zero_order(keys, lambda x: x, verify, start, 2, 2).x,
            ST.path_search(keys, lambda x, t: x, verify, VP, (2,), times=[0.5], starts=2, branches=2).x,
            guidance.plug_and_play(keys, half, start, 0.5, first, steps=2),
            jd.diagnostics.ode_sde_gap(keys, half, VP, GRID, **given),
            jd.times.uniform().draw(keys, VP)[:, None],
            VP.noise(keys, start),
            models.layers.dropout(jnp.ones((3, 64)), 0.5, keys),
        ]

    one, other = drawn(keys), drawn(jnp.concatenate([others[:1], keys[1:]]))
    for a, b in zip(one, other, strict=True):
        np.testing.assert_array_equal(a[1:], b[1:])
        assert not np.array_equal(a[0], b[0])


@pytest.mark.parametrize("kind", ["rbg", "unsafe_rbg"])
def test_a_step_does_not_depend_on_the_cut_of_its_batch_whatever_the_generator(kind):
    def loss(params, batch, keys, strata, step):
        drop = jax.vmap(jax.random.bernoulli)(keys)
        return params["w"] * jnp.where(drop, batch["x"], 0.0)

    state = init_state({"w": jnp.ones(())}, optax.sgd(0.1), ())
    updates = [make_update(loss, optax.sgd(0.1), (), parts) for parts in (1, 4)]
    run = jax.jit(lambda key: [update(state, {"x": jnp.arange(8.0)}, key)[1]["loss"] for update in updates])
    for seed in range(3):
        np.testing.assert_allclose(*run(jax.random.key(seed, impl=kind)), rtol=1e-6)


@pytest.mark.parametrize("search", [
    lambda key: ST.best_of_n(key, None, first, (2,), 4),
    lambda key: ST.path_search(key, None, first, VP, (2,), times=[0.5]),
    lambda key: jd.diagnostics.ode_sde_gap(
        key, half, VP, GRID, shape=(2,), ode=S.ddim(), sde=S.ddim(), distance=None
    ),
    lambda key: S.gaussian_start(key, VP, None),
])  # fmt: skip
def test_one_key_is_refused_where_keys_say_how_many_samples(search):
    with pytest.raises(ValueError, match=r": expected \(batch,\) keys, one per sample.* got shape \(\)"):
        search(jax.random.key(0))


def test_searches_keep_the_dtype_of_their_start():
    start = jnp.zeros((4, 3), jnp.bfloat16)
    found = jax.eval_shape(lambda keys: ST.zero_order(keys, lambda x: x, first, start, 2, 2), KEYS)
    assert found.x.dtype == found.start.dtype == jnp.bfloat16


def test_particles_on_a_product_ask_each_part_at_its_own_time():
    """A reward of nothing leaves the law as it is."""
    edm = P.EDM()
    targets = {"a": T.gaussian(np.zeros(1), 1.0), "b": T.gaussian(np.ones(1), 1.0)}
    exact = {name: targets[name].denoiser(BOTH.parts[name]) for name in targets}
    denoise = lambda x, t: {name: exact[name](x[name], t[name]) for name in x}  # noqa: E731
    steps = {"a": grids.log_snr(VP, 24), "b": grids.karras(edm, 24)}
    plain, shape = S.joint(S.ancestral()), {"a": (1,), "b": (1,)}
    steered = ST.particles(plain, lambda x: 0 * x["a"][:, 0], 2)

    @jax.jit
    def both(keys):
        return [jd.sample(keys, denoise, BOTH, solver, steps, shape=shape) for solver in (plain, steered)]

    alone, out = both(jax.random.split(jax.random.key(1), 2000))
    for name, mean in (("a", 0.0), ("b", 1.0)):
        every, wanted = np.asarray(out[name])[::2], np.asarray(alone[name])  # a pair is alike at the end
        assert abs(every.mean() - mean) < 0.1 and abs(every.std() / wanted.std() - 1) < 0.08, name


def test_orders_a_step_count_the_draw_from_a_pinned_end():
    bridge, grid = P.BrownianBridge(), grids.uniform(P.BrownianBridge(), 5)
    varied = S.unified(orders=(1, 2, 3, 3, 2)).plan(bridge, grid)
    rest = S.unified(orders=(2, 3, 3, 2)).plan(bridge, grid[1:])
    np.testing.assert_array_equal(varied.next[1:, : rest.next.shape[1]], rest.next)


def test_edits_take_a_second_endpoint_and_traced_times():
    out = E.sdedit(KEYS, half, MEAN_REVERTING, S.ddim(), GRID[1:], X, y=2 * X)
    noise = MEAN_REVERTING.noise(jd.core.fold_in(KEYS, 0), X)
    start = MEAN_REVERTING.perturb(X, noise, GRID[1], 2 * X)
    np.testing.assert_allclose(out, walk(MEAN_REVERTING, S.ddim(), start, grid=GRID[1:], y=2 * X), rtol=1e-6)
    edit = lambda grid: E.sdedit(KEYS, half, VP, S.ancestral(), grid, X)  # noqa: E731
    np.testing.assert_allclose(jax.jit(edit)(GRID[1:]), edit(GRID[1:]), rtol=1e-4, atol=1e-5)
    for path in ("independent", "chain"):
        make = lambda grid, path=path: E.encode(KEYS, half, VP, S.ancestral(), grid, X, path)  # noqa: E731
        one, other = make(GRID[:-1]), jax.jit(make)(GRID[:-1])
        np.testing.assert_allclose(one.noise, other.noise, rtol=1e-3, atol=1e-4)


def test_pairs_of_pytrees_are_guided_part_by_part_at_their_times():
    cond = lambda x, t: {"a": x["a"] + 1, "b": x["b"] * 2}  # noqa: E731
    guided = guidance.classifier_free(cond, half, 3.0, interval=(0.5, 2.0))
    x = {"a": X, "b": 2 * X}
    out = guided(x, {"a": 0.1, "b": 1.0})
    np.testing.assert_allclose(out["a"], 2.0)  # outside of the interval
    np.testing.assert_allclose(out["b"], 1.0 + 3 * (4.0 - 1.0))
    shifted = lambda x, t, c: jax.tree.map(lambda x: x + c[:, None], x)  # noqa: E731
    pair = guidance.in_one_call(shifted, jnp.ones(4), jnp.zeros(4))
    out = guidance.classifier_free(pair, None, 3.0)(x, {"a": jnp.ones(4), "b": jnp.ones(4)})
    np.testing.assert_allclose(out["b"], 5.0)


def test_levels_are_learned_and_left_under_wrapped_processes():
    process, times = P.Symmetric(P.HeavyTailed(VP, 5.0)), np.array([0.6, 0.2])
    seen = []
    S.level_loss(lambda x: seen.append(x) or jnp.zeros((4, 2)), jax.random.key(0), M, process, times)
    np.testing.assert_allclose(seen[0], np.swapaxes(seen[0], -1, -2), atol=1e-6)
    start = {"x": M, "t": jnp.full(4, 0.6)}
    out = jd.sample(None, half, process, S.from_level(S.ddim(), times, steps=2), x=start)
    assert np.isfinite(out["x"]).all()


def test_couplings_take_numpy_within_jit():
    x0, x1 = np.float32([[0.0], [1.0], [2.0]]), np.float32([[2.1], [0.1], [1.1]])
    match = jd.couplings.optimal_transport("exact")
    np.testing.assert_allclose(jax.jit(lambda key: match(key, x0, x1))(KEYS[0]), x0 + 0.1, rtol=1e-5)


@pytest.mark.parametrize("solver", [S.adaptive(1e-5, 1e-5), S.dpm_adaptive(3, 1e-5, 1e-5)], ids=["rk", "dpm"])
def test_adaptive_steps_take_a_second_endpoint_sample_by_sample(solver):
    """Of as many samples as values: each has its own time, and its y the weight of that time."""
    y = np.tile(np.arange(3, dtype=np.float32), (3, 1))
    x = np.float32([[0.1, 2.0, -1.0], [3.0, 0.0, 1.0], [-2.0, 1.0, 0.5]])
    target, grid = T.gaussian(np.ones(3), 0.5), grids.uniform(MEAN_REVERTING, 2)
    denoise = target.denoiser(MEAN_REVERTING, y)
    found = jax.jit(lambda x: walk(MEAN_REVERTING, solver, x, None, grid, denoise, y=y))(x)
    np.testing.assert_allclose(found, T.flow_map(target, MEAN_REVERTING, x, 1.0, 0.0, y), atol=2e-3)


def test_half_precision_data_are_perturbed_at_the_times_asked_for():
    x, noise = jnp.full((4, 3), 0.75, jnp.bfloat16), np.random.default_rng(0).normal(size=(4, 3))
    flow = P.RectifiedFlow()
    found = flow.perturb(x, np.float32(noise), 0.003)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, 0.997 * 0.75 + 0.003 * noise, rtol=1e-5)
    assert flow.perturb(x, noise.astype(jnp.bfloat16), 0.003).dtype == jnp.bfloat16
    for one in (jnp.bfloat16, jnp.float16, jnp.float32):
        same = E.slerp(X.astype(one), X.astype(one), 0.5)
        assert same.dtype == one
        np.testing.assert_allclose(np.float32(same), 1.0, atol=1e-2)
    assert np.isfinite(E.slerp(0 * X, X, 0.5)).all()


def test_targets_of_a_joint_loss_are_not_rounded_with_the_data():
    kind, data = jd.parameterizations.velocity(), {"a": X, "b": 0.5 * X}

    @jax.jit
    def loss(data):
        return jd.losses.joint(half, KEYS, data, process=BOTH, parameterization=kind)

    np.testing.assert_array_equal(loss(jax.tree.map(lambda x: x.astype(jnp.bfloat16), data)), loss(data))


def test_the_noise_of_a_product_does_not_depend_on_the_order_of_its_parts():
    turned, shape = P.Product({"b": P.EDM(), "a": VP}), {"b": (2,), "a": (2,)}
    for process in (turned, turned.only("b", "a")):
        found, wanted = (jax.vmap(lambda k, p=p: p.prior(k, shape))(KEYS) for p in (process, BOTH))
        jax.tree.map(np.testing.assert_array_equal, found, wanted)


def test_confidence_counts_tokens_of_every_axis():
    process, grid = P.absorbing(3), np.linspace(1, 0, 9)
    net = lambda x, t: jnp.zeros((*x.shape, 3))  # noqa: E731
    solver = S.discrete.confidence()
    for shape in ((8,), (1, 8), (2, 4)):
        run = jax.jit(lambda keys, s=shape: jd.sample(keys, net, process, solver, grid, shape=s, save="all"))
        left = np.sum(np.asarray(run(KEYS)).reshape(9, 4, 8) == 3, axis=2)
        np.testing.assert_array_equal(left, np.tile(np.arange(8, -1, -1)[:, None], (1, 4)))


def test_flow_matching_of_pytrees_is_that_of_their_parts():
    net = lambda x, c: jax.tree.map(lambda x: 0.3 * x, x)  # noqa: E731
    noise = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    both = {"a": noise, "b": noise}
    whole = jd.losses.flow_matching(net, KEYS, {"a": X, "b": 2 * X}, noise=both)
    parts = [jd.losses.flow_matching(net, KEYS, x, noise=noise) for x in (X, 2 * X)]
    assert whole.shape == (4,)
    ratio = np.asarray(whole) / (np.asarray(parts[0]) + np.asarray(parts[1]))
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-5)


def test_densities_within_shard_map_as_jax_has_it():
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",))
    spec = jax.sharding.PartitionSpec("d")
    fn = lambda x: likelihood.log_prob(None, half, VP, x, solver=S.ddim(), grid=GRID)  # noqa: E731
    spread = jax.jit(jax.shard_map(fn, mesh=mesh, in_specs=spec, out_specs=spec))(X)
    np.testing.assert_allclose(spread, jax.jit(fn)(X), rtol=1e-5)


def test_brownian_paths_within_shard_map_as_jax_has_it():
    mesh, spec = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("d",)), jax.P("d")
    path = lambda keys: S.brownian(keys, VP, depth=3).noise(0.7, 0.4, X[: len(keys)])  # noqa: E731
    spread = jax.jit(jax.shard_map(path, mesh=mesh, in_specs=spec, out_specs=spec))(KEYS)
    np.testing.assert_allclose(spread, path(KEYS), rtol=1e-5)


def test_dropout_within_shard_map_as_jax_has_it():
    drop = lambda keys: models.layers.dropout(jnp.ones((len(keys), 3)), 0.5, keys)  # noqa: E731
    for count in (1, 2):
        mesh, spec = jax.sharding.Mesh(np.array(jax.devices()[:count]), ("d",)), jax.P("d")
        spread = jax.jit(jax.shard_map(drop, mesh=mesh, in_specs=spec, out_specs=spec))(KEYS)
        np.testing.assert_array_equal(spread, jax.jit(drop)(KEYS))


def test_the_measurement_may_be_integers_and_the_numbers_of_an_operator_stay_as_they_are():
    rng = np.random.default_rng(0)
    images, kept = rng.integers(0, 255, (2, 4, 4, 1)), rng.integers(0, 2, (4, 4))
    made = [
        inverse.gaussian_blur(1.0, 3), inverse.downsample(2), inverse.fourier(kept), inverse.mask(kept),
        inverse.radon(4, [0.0, 0.5]), inverse.dense(0.3 * rng.normal(size=(5, 16)), (4, 4, 1)),
        inverse.dense(0.3 * rng.normal(size=(5, 16)), (4, 4, 1), decompose=False),
    ]  # fmt: skip

    def all_of(operator, x):
        y = operator.forward(x)
        e = y.astype(x.dtype)
        return y, operator.adjoint(e), operator.pinv(e), operator.singular(x)

    work = jax.jit(lambda x: [all_of(operator, x) for operator in made])
    for dtype in (jnp.int32, jnp.bfloat16):
        found = work(images.astype(dtype))
        for y, back, inverted, values in found:
            assert y.dtype == back.dtype == inverted.dtype == jnp.float32
            assert values is None or values.dtype == jnp.float32
    y, back, inverted, _ = work(images.astype(jnp.int32))[-1]
    matrix, flat = np.asarray(made[-1].matrix), images.reshape(2, 16)
    np.testing.assert_allclose(y, flat @ matrix.T, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(back.reshape(2, 16), np.trunc(y) @ matrix, rtol=1e-4, atol=1e-3)
    solved = np.trunc(y) @ np.linalg.pinv(matrix).T
    np.testing.assert_allclose(inverted.reshape(2, 16), solved, rtol=1e-3, atol=1e-1)


def test_walks_take_integer_measurements_for_the_numbers_they_are():
    operator, y = inverse.dense(np.float32([[1.2, 0.3, 0.0], [0.1, 0.8, -0.4]])), np.array([[1, -3]] * 4)

    @jax.jit
    def both(keys):
        walks = [
            lambda y: inverse.ddrm(operator, y, 0.1), lambda y: inverse.red_diff(operator, y, 0.1),
            lambda y: inverse.volume(S.ddim(), operator, y), lambda y: inverse.flow_chef(operator, y),
        ]  # fmt: skip
        made = [jd.sample(keys, half, VP, make(v), GRID, x=X) for make in walks for v in (y, np.float32(y))]
        for name in ("mmps", "tmpd", "pigdm", "jacobian_free", "diffpir"):
            made += [inverse.posterior(half, VP, operator, v, name, 0.1)(X, 0.5) for v in (y, np.float32(y))]
        return made

    out = both(KEYS)
    for whole, real in zip(out[::2], out[1::2], strict=True):
        np.testing.assert_allclose(whole, real, rtol=1e-5, atol=1e-6)


def test_at_exact_data_the_clean_estimate_is_kept():
    for method in (inverse.jacobian_free, inverse.diffpir):
        for level, expected in ((0.1, X), (0.0, jnp.where(MASK.kept[None] == 1, 5.0, X))):
            found = method(lambda x, t: x, VP, MASK, 5 * MASK.forward(X), level)(X, 0.0)
            np.testing.assert_allclose(found, expected, rtol=1e-5)


BAD = np.where(np.arange(24).reshape(12, 2) == 5, np.nan, 1.0 * np.arange(24).reshape(12, 2))


@pytest.mark.parametrize("call, match", [
    (lambda x: jd.metrics.density_coverage(x, BAD), "finite vectors, got another in row 2 of the second"),
    (lambda x: jd.metrics.frechet_distance(BAD, x), "finite vectors, got another in row 2 of the first"),
    (lambda x: jd.metrics.mmd(x, BAD), "finite vectors"),
    (lambda x: jd.metrics.classifier_two_sample(x, BAD), "finite vectors"),
    (lambda x: jd.metrics.memorisation_share(x, x, BAD), "finite vectors"),
    (lambda x: jd.metrics.density_coverage(x, x, k=0), "k to be an integer of at least 1, got 0"),
    (lambda x: jd.metrics.precision_recall(x, x, k=2.5), "k to be an integer of at least 1, got 2.5"),
    (lambda x: jd.metrics.precision_recall(x, x[:, :1]), "of one dimension"),
    (lambda x: jd.metrics.memorisation_share(x, x, x, draws=0), "draws to be an integer"),
    (lambda x: jd.metrics.sliced_wasserstein(x, x, projections=0), "projections to be an integer"),
    (lambda x: jd.metrics.sliced_wasserstein(x, x, order=0), "order to be a finite number above 0"),
])  # fmt: skip
def test_metrics_name_what_they_cannot_measure(call, match):
    with pytest.raises(ValueError, match=match):
        call(np.random.default_rng(0).normal(size=(12, 2)))


WALKS = {
    "replacement": inverse.replacement(MASK, X),
    "repaint": inverse.repaint(MASK, X, jump=2, cycles=2),
    "ddrm": inverse.ddrm(MASK, X, 0.1),
    "flow_chef": inverse.flow_chef(MASK, X),
    "daps": inverse.daps(MASK, X, 0.1, ode_steps=2, langevin_steps=2),
    "red_diff": inverse.red_diff(MASK, X, 0.1),
}
HEUN, LATE = S.heun("log_snr"), grids.uniform(VP, 4, end=0.1)
OF_A_PROCESS = {
    "perturb": lambda process: process.perturb(X, 2 * X, 0.5),
    "prior": lambda process: process.prior(KEYS[0], (3,)),
    "log_snr": lambda process: jnp.asarray(grids.log_snr(process, 4)),
    "edm": lambda process: jd.denoiser(half, process, jd.parameterizations.edm(jnp.float32(0.5)))(X, 0.5),
    "sdedit": lambda process: E.sdedit(KEYS, half, process, S.ancestral(), LATE, X),
    "log_prob": lambda process: likelihood.log_prob(None, half, process, X, solver=HEUN, grid=GRID),
    "variational_bound": lambda process: likelihood.variational_bound(KEYS, half, process, X),
    "change_process": lambda process: ST.change_process(half, process, VP)(X, 0.5),
    "path_search": lambda process: ST.path_search(KEYS, half, first, process, (3,), times=[0.5]).x,
    "latent": lambda process: inverse.latent(half, process, S.ddim(), GRID, MASK, X, X, updates=1)[0],
    "dps": lambda process: inverse.dps(half, process, MASK, X, 0.1)(X, 0.5),
    "target": lambda process: T.gaussian(np.zeros(3), 1.0).denoiser(process)(X, 0.5),
    **{
        name: lambda process, solver=solver: jd.sample(KEYS, half, process, solver, GRID, shape=(3,))
        for name, solver in {**WALKS, "twisted": ST.twisted(S.ancestral(), first, 2), "heun": HEUN}.items()
    },
}


@pytest.mark.parametrize("call", OF_A_PROCESS.values(), ids=OF_A_PROCESS)
def test_a_trained_process_is_one_of_known_numbers_within_jit_and_may_be_traced(call):
    trained = jax.tree.map(jnp.float32, P.LearnedVP(np.array([0.1, -0.2, 0.3, 0.0])))
    known = P.LearnedVP(*(np.float64(leaf) for leaf in jax.tree.leaves(trained)))
    got, expected = (jax.make_jaxpr(lambda p=p: call(p))() for p in (trained, known))
    assert str(got) == str(expected)
    for one, other in zip(got.consts, expected.consts, strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            np.testing.assert_array_equal(one, other)
    jax.eval_shape(call, trained)


def test_walks_take_traced_processes_and_grids():
    def plans(process, grid):
        return {name: solver.plan(process, grid) for name, solver in WALKS.items()}

    jax.tree.map(
        lambda traced, known: np.testing.assert_allclose(traced, known, rtol=1e-4, atol=1e-6),
        jax.jit(plans)(VP, GRID),
        plans(VP, GRID),
    )


def test_log_prob_takes_traced_processes():
    bridge = P.BrownianBridge()

    def of(process, paired):
        first = likelihood.log_prob(None, half, process, X, solver=S.heun(), grid=GRID)
        return first, likelihood.log_prob(None, half, paired, X, solver=S.ddim(), grid=LATE, y=2 * X)

    traced, known = jax.jit(lambda *processes: (of(*processes), of(VP, bridge)))(VP, bridge)
    np.testing.assert_allclose(traced, known, rtol=1e-5)
