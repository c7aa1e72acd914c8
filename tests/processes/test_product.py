"""Product processes: joint, conditional and marginal laws of a correlated Gaussian pair from one denoiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxdiff as jd

P, S = jd.processes, jd.solvers
RHO = 0.8
COVARIANCE = np.array([[1.0, RHO], [RHO, 1.0]])
PAIR = P.Product({"u": P.VP(), "v": P.RectifiedFlow()})
KEYS = jax.random.split(jax.random.key(0), 6000)


def denoise(x, t):
    """E[u, v | u_t, v_t], exact for any two times."""
    (a, _, c), (b, _, d) = PAIR.parts["u"].coefficients(t["u"]), PAIR.parts["v"].coefficients(t["v"])
    gain, noise = (
        jnp.stack([jnp.broadcast_to(k, x["u"].shape[:1]) for k in pair], -1) for pair in ((a, b), (c, d))
    )
    (p, q), r = jnp.moveaxis(gain**2 + noise**2 + 1e-9, -1, 0), gain[:, 0] * gain[:, 1] * RHO
    z = jnp.concatenate([x["u"], x["v"]], -1)
    weights = jnp.stack([q * z[:, 0] - r * z[:, 1], p * z[:, 1] - r * z[:, 0]], -1) / (p * q - r**2)[:, None]
    clean = (gain * weights) @ COVARIANCE
    return {"u": clean[:, :1], "v": clean[:, 1:]}


def grids(steps, names=("u", "v")):
    return {name: jd.grids.log_snr(PAIR.parts[name], steps) for name in names}


@pytest.mark.parametrize("solver", [
    S.dpmpp_multistep(2),
    pytest.param(S.dpmpp_multistep(2, tau=1.0), marks=pytest.mark.slow),
    pytest.param(S.splitting(), marks=pytest.mark.slow),
])  # fmt: skip
def test_joint_conditionals_and_marginals_from_one_denoiser(solver):
    steps = 300 if solver.name == "splitting" else 80
    shape = {"u": (1,), "v": (1,)}
    x = jax.jit(lambda keys: jd.sample(keys, denoise, PAIR, S.joint(solver), grids(steps), shape=shape))(KEYS)
    both = np.concatenate([x["u"], x["v"]], -1)
    np.testing.assert_allclose(np.cov(both.T), COVARIANCE, rtol=0.05)
    for known, other in (("u", "v"), ("v", "u")):
        value = np.full((6000, 1), 1.2, np.float32)
        noise = np.random.default_rng(5).normal(size=(6000, 1)).astype(np.float32)
        conditioned = jd.processes.given(denoise, PAIR, {known: value})
        free = jd.processes.given(denoise, PAIR, {known: noise}, {known: PAIR.parts[known].t_max})

        @jax.jit
        def rest(keys, other=other, denoisers=(conditioned, free)):
            settings = PAIR.only(other), S.joint(solver), grids(steps, [other])
            return [jd.sample(keys, D, *settings, shape={other: (1,)})[other] for D in denoisers]

        of_value, of_noise = map(np.asarray, rest(KEYS))
        np.testing.assert_allclose(of_value.mean(), RHO * 1.2, rtol=0.05)
        np.testing.assert_allclose(of_value.std(), np.sqrt(1 - RHO**2), rtol=0.05)
        np.testing.assert_allclose([of_noise.mean(), of_noise.std()], [0, 1], atol=0.05)


@pytest.mark.slow
def test_joint_and_conditional_log_likelihood_within_a_hundredth_of_a_nat():
    x = jax.random.multivariate_normal(jax.random.key(1), jnp.zeros(2), COVARIANCE, (256,))
    x0, solver = {"u": x[:, :1], "v": x[:, 1:]}, S.joint(S.unipc(2))

    def log_prob(denoise, process, x0, trace="exact"):
        settings = {"solver": solver, "grid": grids(80, tuple(x0)), "trace": trace}
        run = jax.jit(lambda key, x0: jd.likelihood.log_prob(key, denoise, process, x0, **settings))
        return run(jax.random.key(2), x0)

    u, v = np.asarray(x, np.float64).T
    conditional = -0.5 * (v - RHO * u) ** 2 / (1 - RHO**2) - 0.5 * np.log(2 * np.pi * (1 - RHO**2))
    exact = conditional - 0.5 * u**2 - 0.5 * np.log(2 * np.pi)
    for trace in ("exact", "hutchinson"):  # in one dimension a part's probe is its trace
        gap = log_prob(denoise, PAIR, x0, trace) - exact
        assert abs(gap.mean()) < 0.01 and np.median(np.abs(gap)) < 0.01, (trace, gap.mean())
    given_u = jd.processes.given(denoise, PAIR, {"u": x0["u"]})
    gap = log_prob(given_u, PAIR.only("v"), {"v": x0["v"]}) - conditional
    assert abs(gap.mean()) < 0.01 and np.median(np.abs(gap)) < 0.01, gap.mean()


@pytest.mark.slow
def test_the_joint_loss_is_least_at_the_exact_denoiser():
    x = np.random.default_rng(1).multivariate_normal(np.zeros(2), COVARIANCE, 4096).astype(np.float32)
    x0 = {"u": x[:, :1], "v": x[:, 1:]}

    @jax.jit
    def losses(key):
        def loss(net, **settings):
            kind = jd.parameterizations.data()
            return jd.losses.joint(net, key, x0, process=PAIR, parameterization=kind, **settings)

        values = [
            loss(denoise), loss(lambda x, t: denoise(x, {"u": t["v"], "v": t["u"]})),
            loss(lambda x, t: denoise(x, {"u": t["u"], "v": jnp.ones_like(t["v"])})),
            loss(denoise, weights={"u": 0.0, "v": 0.0}),
        ]  # fmt: skip
        seen = []
        loss(lambda x, t: seen.append(t) or x, shared=1.0)
        loss(lambda x, t: seen.append(t) or x)
        return values, seen

    (exact, swapped, alone, none), (seen, apart) = jax.tree.map(np.asarray, losses(jax.random.key(2)))
    assert exact.shape == (4096,) and exact.mean() < min(swapped.mean(), alone.mean()) - 0.01
    np.testing.assert_allclose(seen["u"], seen["v"], atol=1e-6)
    assert abs(np.corrcoef(apart["u"], apart["v"])[0, 1]) < 0.06
    np.testing.assert_allclose(none, 0.0)


@pytest.mark.slow
def test_symmetric_noise_and_masks():
    process = P.Symmetric(P.VP(), np.float32([1, 1, 1, 0]))
    grid = jd.grids.uniform(process, 4)

    @jax.jit
    def draws(keys):
        return jd.sample(keys, lambda x, t: 0.5 * x, process, S.ancestral(), grid, shape=(4, 4))

    x = np.asarray(draws(KEYS[:8]))
    noise = np.asarray(process.noise(KEYS, np.zeros((6000, 4, 4), np.float32)))
    np.testing.assert_array_equal(noise, np.swapaxes(noise, 1, 2))
    np.testing.assert_array_equal(np.diagonal(noise, axis1=1, axis2=2), 0)
    np.testing.assert_array_equal(noise[:, 3], 0)
    np.testing.assert_allclose(noise[:, 0, 1].std(), 1, rtol=0.03)
    np.testing.assert_allclose(x, np.swapaxes(x, 1, 2), atol=1e-6)
    assert np.abs(x[:, 3]).max() == 0 and np.abs(x[:, 0, 1]).min() > 0


@pytest.mark.slow
def test_what_draws_several_times_a_step_draws_noise_of_the_process():
    process = P.Symmetric(P.VP())
    grid = jd.grids.uniform(process, 3)
    seen = np.triu(np.ones((4, 4)), 2) + np.tril(np.ones((4, 4)), -2)
    operator, y = jd.inverse.mask(seen), jnp.asarray(seen)[None] * jnp.ones((3, 1, 1))

    def reward(x):
        return x[:, 0, 1]

    solvers = [
        jd.steering.value_decoding(S.ancestral(), reward, 2), jd.steering.rollover(S.ancestral(), reward, 2),
        jd.inverse.replacement(operator, y), jd.inverse.repaint(operator, y, 1, 2),
        jd.inverse.daps(operator, y, 0.1, ode_steps=1, langevin_steps=2),
    ]  # fmt: skip

    def denoise(x, t):
        return 0.5 * x

    @jax.jit
    def samples(keys):
        walks = [jd.sample(keys, denoise, process, solver, grid, shape=(4, 4)) for solver in solvers]
        found = jd.steering.path_search(
            keys, denoise, reward, process, (4, 4), times=[0.5], starts=2, branches=2
        )
        start = {"x": process.noise(keys, jnp.zeros((3, 4, 4))), "t": jnp.full(3, grid[0])}
        home = jd.sample(keys, denoise, process, S.from_level(S.ancestral(), grid[:2], steps=2), x=start)
        chain = S.langevin_gibbs(grid[:2], lambda x: jnp.zeros((len(x), 2)), 2)
        chained = jd.sample(keys, denoise, process, chain, x=start)
        return [*walks, found.x, home["x"], chained["x"]]

    for x in samples(KEYS[:3]):
        x = np.asarray(x)
        np.testing.assert_allclose(x, np.swapaxes(x, 1, 2), atol=1e-6)
        np.testing.assert_allclose(np.diagonal(x, axis1=1, axis2=2), 0, atol=1e-6)
        assert np.abs(x[:, 0, 1]).min() > 0


def test_statistics_are_fitted_where_the_process_is():
    process, seen, diagonal = P.Symmetric(P.VP()), [], ~np.eye(3, dtype=bool)
    x0 = np.float32(np.ones((2, 3, 3)) * diagonal)

    def spied(x, t):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return jnp.tanh(x)

    S.fit_model_statistics(jax.random.key(0), spied, process, x0, 4, -1.0, 1.0, probes=1)
    jax.effects_barrier()
    points = np.stack([x for x in seen if x.shape == x0.shape])
    np.testing.assert_allclose(points, np.swapaxes(points, -1, -2), atol=1e-6)
    assert len(points) >= 5 and np.abs(points[..., diagonal] - x0[:, diagonal]).min() > 0


def test_aggregating_processes_follow_their_recursion():
    betas, weights = np.linspace(0.01, 0.2, 8), np.linspace(0.05, 0.0, 8)
    process = P.Aggregating(betas, weights)
    a, variance = 1.0, 0.0
    for n in range(8):
        a, variance = np.sqrt(1 - betas[n]) * (a + weights[n]), (1 - betas[n]) * variance + betas[n]
        got = process.coefficients((n + 1) / 8)
        np.testing.assert_allclose([got[0], got[2] ** 2], [a, variance], rtol=1e-12)
    np.testing.assert_allclose(process.coefficients(0.0), (1, 0, 0))
    t = np.linspace(0.05, 1, 11)
    np.testing.assert_allclose(process.time_of_log_snr(process.log_snr(t)), t, rtol=1e-9)
    plain = P.Aggregating(betas, 0 * betas)
    at = np.arange(1, 9) / 8
    np.testing.assert_allclose(plain.coefficients(at), P.DiscreteVP(betas).coefficients(at), rtol=1e-10)
    # one step back, by Bayes' rule on the recursion: z_8 = sqrt(1 - beta) (z_7 + w x0) + noise
    (a_s, _, c_s), root = process.coefficients(7 / 8), np.sqrt(1 - betas[7])
    precision = 1 / c_s**2 + root**2 / betas[7]
    on_z, on_x0, std = process.reverse(1.0, 7 / 8)
    np.testing.assert_allclose(std, precision**-0.5, rtol=1e-9)
    np.testing.assert_allclose(on_z, root / betas[7] / precision, rtol=1e-9)
    np.testing.assert_allclose(on_x0, (a_s / c_s**2 - root**2 * weights[7] / betas[7]) / precision, rtol=1e-9)
    with pytest.raises(ValueError, match="a / c decreases"):
        P.Aggregating(betas, np.append(np.zeros(7), 5.0))


def test_wrong_arguments():
    x = {"u": jnp.zeros((2, 1)), "w": jnp.zeros((2, 1))}
    with pytest.raises(ValueError, match="names"):
        PAIR.perturb(x, x, 0.5)
    with pytest.raises(ValueError, match="dict of processes"):
        P.Product([P.VP()])
    for part in (P.BrownianBridge(), PAIR):
        with pytest.raises(ValueError, match="without a second endpoint, got .* for 'v'"):
            P.Product({"u": P.VP(), "v": part})
    with pytest.raises(ValueError, match="equal"):
        S.joint(S.ddim()).plan(PAIR, {"u": np.array([1.0, 0.5, 0.0]), "v": np.array([1.0, 0.0])})
    with pytest.raises(ValueError, match="left to sample"):
        jd.processes.given(denoise, PAIR, {"u": x["u"], "v": x["u"]})


def test_samples_from_keys_have_one_mask():
    keys, mask = jax.random.split(jax.random.key(0), 2), np.array([[1, 1, 0], [1, 1, 1]])
    grid, solver = jd.grids.uniform(jd.processes.VP(), 2), jd.solvers.ddim()

    def run(mask, **start):
        process = jd.processes.Symmetric(jd.processes.VP(), mask)
        return jd.sample(keys, lambda x, t: 0 * x, process, solver, grid, **start)

    with pytest.raises(ValueError, match="one mask for all samples"):
        run(mask, shape=(3, 3))
    start = jnp.asarray(np.ones((2, 3, 3), np.float32))
    one, own = jax.eval_shape(lambda: (run(mask[0], shape=(3, 3)), run(mask, x=start)))
    assert one.shape == own.shape == (2, 3, 3)


# nodes of three kinds, an edge of two, and their law; edges are masked, nodes replaced by their marginal
LAW = np.array([[0.3, 0.05], [0.1, 0.25], [0.05, 0.25]])
GRAPH = P.Product({"edge": P.absorbing(2), "node": P.marginal(LAW.sum(1))})


def graph_logits(x, t):
    """Logits of p(node | x_t) and p(edge | x_t), by Bayes' rule over the six clean pairs."""
    seen = {name: part.likelihood(x[name], t[name])[:, 0] for name, part in GRAPH.parts.items()}
    p = jnp.asarray(LAW, jnp.float32)[None] * seen["node"][:, :, None] * seen["edge"][:, None, :]
    return {"node": jnp.log(p.sum(2))[:, None], "edge": jnp.log(p.sum(1))[:, None]}


def frequencies(x):
    return np.histogram2d(x["node"][:, 0], x["edge"][:, 0], bins=(3, 2), range=((0, 3), (0, 2)))[0] / 6000


LINE = jd.grids.uniform(GRAPH.parts["edge"], 60)


@pytest.mark.parametrize("solver", [
    S.joint(S.discrete.ancestral()),
    pytest.param(
        S.joint({"node": S.discrete.tau_leaping(), "edge": S.discrete.ancestral()}), marks=pytest.mark.slow
    ),
])  # fmt: skip
def test_tokens_of_two_alphabets_have_their_joint_law(solver):
    grid, shape = {"node": LINE, "edge": LINE}, {"node": (1,), "edge": (1,)}

    @jax.jit
    def draw(keys, x):
        return jd.sample(keys, graph_logits, GRAPH, solver, grid, x=x)

    start = jax.vmap(lambda key: GRAPH.prior(jax.random.fold_in(key, 0), shape))(KEYS)
    x, few = draw(KEYS, start), draw(KEYS[:8], jax.tree.map(lambda leaf: leaf[:8], start))
    assert x["node"].dtype == x["edge"].dtype == jnp.int32
    assert 0.5 * np.abs(frequencies(x) - LAW).sum() < 0.03
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[:8], b), x, few)


def test_edges_of_a_known_node_have_their_conditional_law():
    of_node = P.given(graph_logits, GRAPH, {"node": np.full((6000, 1), 2)})
    rest = GRAPH.only("edge"), S.joint(S.discrete.ancestral()), {"edge": LINE[::6]}
    edge = jax.jit(lambda keys: jd.sample(keys, of_node, *rest, shape={"edge": (1,)})["edge"])(KEYS)
    np.testing.assert_allclose(np.mean(edge), 0.25 / 0.3, atol=0.02)


def test_a_number_and_its_token_are_sampled_together():
    """A mixture of two Gaussians and its component: exact logits and clean estimates of both."""
    weights, means, deviation = jnp.array([0.3, 0.7]), jnp.array([-1.0, 1.5]), 0.4
    pair = P.Product({"kind": P.absorbing(2), "value": P.VP()})

    def both(x, t):
        a, _, c = (jnp.asarray(k).reshape(-1, 1) for k in pair.parts["value"].coefficients(t["value"]))
        spread = (a * deviation) ** 2 + c**2
        gap = x["value"] - a * means[None]
        seen = pair.parts["kind"].likelihood(x["kind"], t["kind"])[:, 0]
        logits = jnp.log(weights[None] * seen) - 0.5 * gap**2 / spread
        clean = means[None] + a * deviation**2 / spread * gap
        return {"kind": logits[:, None], "value": jnp.sum(jax.nn.softmax(logits) * clean, 1, keepdims=True)}

    solver = S.joint({"kind": S.discrete.ancestral(), "value": S.dpmpp_multistep(2, tau=1.0)})
    line = jd.grids.uniform(pair.parts["kind"], 80)
    grid = {"kind": line, "value": jd.grids.log_snr(pair.parts["value"], 80)}
    settings = {"shape": {"kind": (1,), "value": (1,)}, "save": "all"}
    path = jax.jit(lambda keys: jd.sample(keys, both, pair, solver, grid, **settings))(KEYS)
    assert path["kind"].shape == path["value"].shape == (81, 6000, 1) and (path["kind"][0] == 2).all()
    kind, value = np.asarray(path["kind"][-1])[:, 0], np.asarray(path["value"][-1])[:, 0]
    np.testing.assert_allclose(kind.mean(), 0.7, atol=0.025)
    for k in (0, 1):
        own = value[kind == k]
        np.testing.assert_allclose([own.mean(), own.std()], [means[k], deviation], atol=0.03)


def test_the_loss_of_tokens_beside_numbers_is_their_bound():
    """With the exact logits the mean over times is the entropy, for times of their own that of each part
    given the other one noisy; numbers beside them add their error."""
    rng = np.random.default_rng(0)
    pairs = np.stack(np.unravel_index(rng.choice(6, 4096, p=LAW.reshape(-1)), LAW.shape), -1)
    x0 = {"node": pairs[:, :1], "edge": pairs[:, 1:]}
    triple = P.Product({**GRAPH.parts, "size": P.VP()})
    size, kind = np.float32(pairs[:, :1] == 2), jd.parameterizations.data()

    def net(x, t):
        return {**graph_logits(x, t), "size": 0 * x["size"]}

    @jax.jit
    def losses(key):
        loss = lambda net, x0, process, kind, **settings: jd.losses.joint(  # noqa: E731
            net, key, x0, process=process, parameterization=kind, **settings
        )
        only = {"node": 0.0, "edge": 0.0}
        return (
            loss(graph_logits, x0, GRAPH, None, shared=1.0),
            loss(graph_logits, x0, GRAPH, None),
            loss(net, x0 | {"size": size}, triple, {"size": kind}, weights=only),
            loss(lambda x, t: jax.tree.map(jnp.zeros_like, graph_logits(x, t)), x0, GRAPH, None, shared=1.0),
        )

    exact, apart, of_size, blind = map(np.asarray, losses(jax.random.key(3)))
    entropy = -np.sum(LAW * np.log(LAW))
    np.testing.assert_allclose(exact.mean(), entropy, atol=0.15)
    node, edge = LAW.sum(1), LAW.sum(0)
    of_node = 0.5 * (entropy + np.sum(edge * np.log(edge)) - np.sum(node * np.log(node)))  # half seen
    t = (np.arange(200).reshape(-1, 1, 1) + 0.5) / 200
    noisy = (1 - t) * LAW[None] + t * node[:, None] * edge[None]  # node_t and edge
    of_edge = -np.mean(np.sum(noisy * np.log(noisy / noisy.sum(2, keepdims=True)), (1, 2)))
    np.testing.assert_allclose(apart.mean(), of_node + of_edge, atol=0.15)
    np.testing.assert_allclose(of_size, size[:, 0] ** 2, rtol=1e-6)
    assert blind.mean() > entropy + 0.1


def test_one_key_makes_the_noise_of_its_examples():
    triple, like = P.Product({**GRAPH.parts, "size": P.VP()}), {"node": np.zeros((3, 2), int)}
    like |= {"edge": np.zeros((3, 1), int), "size": np.zeros((3, 2), np.float32)}
    keys = jax.vmap(lambda i: jax.random.fold_in(KEYS[0], i))(np.arange(3))
    jax.tree.map(
        np.testing.assert_array_equal, triple.noise(KEYS[0], like), triple.noise(keys, like)
    )


def test_what_needs_numbers_refuses_tokens_by_name():
    line, keys = LINE[::15], KEYS[:4]
    grid, shape = {"node": line, "edge": line}, {"node": (1,), "edge": (1,)}
    solver = S.joint(S.discrete.ancestral())
    with pytest.raises(ValueError, match="got tokens for .'edge', 'node'."):
        GRAPH.coefficients(0.5)
    with pytest.raises(ValueError, match="got tokens for"):
        x0 = {"node": np.zeros((2, 1)), "edge": np.zeros((2, 1))}
        jd.likelihood.log_prob(None, graph_logits, GRAPH, x0, solver=S.joint(S.heun()), grid=grid)
    with pytest.raises(ValueError, match="product of numbers, or tokens alone, got tokens for"):
        steered = jd.steering.particles(solver, lambda x: x["node"][:, 0], 2)
        jd.sample(keys, graph_logits, GRAPH, steered, grid, shape=shape)
    with pytest.raises(ValueError, match="the solver and not its plan"):
        jd.sample(keys, graph_logits, GRAPH, solver.plan(GRAPH, grid), shape=shape)
    with pytest.raises(ValueError, match="FirstHitting, which asks at times of its own for 'edge'"):
        S.joint({"edge": S.discrete.first_hitting(4), "node": S.discrete.ancestral()}).plan(
            GRAPH, {"edge": None, "node": line}
        )
    with pytest.raises(ValueError, match="sample: expected integer tokens in"):
        start = {"node": np.full((4, 1), 3), "edge": np.zeros((4, 1), int)}
        jd.sample(keys, graph_logits, GRAPH, solver, grid, x=start)
    with pytest.raises(ValueError, match=r"marginal: expected \(K,\) probabilities, got 3"):
        P.marginal(3)
    with pytest.raises(ValueError, match="joint: expected parameterization .* got None"):
        pair = P.Product({"node": GRAPH.parts["node"], "size": P.VP()})
        x0 = {"node": np.zeros((2, 1), int), "size": np.zeros((2, 1), np.float32)}
        jd.losses.joint(graph_logits, keys[0], x0, process=pair, parameterization=None)
    with pytest.raises(ValueError, match="joint: expected clean tokens in .0, 2., got the mask token"):
        x0 = {"node": np.zeros((2, 1), int), "edge": np.full((2, 1), 2)}
        jd.losses.joint(graph_logits, keys[0], x0, process=GRAPH, parameterization=None)
