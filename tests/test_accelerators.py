"""What no machine without an accelerator runs: programs are lowered for GPU and TPU, and looked at."""

import ast
import pathlib
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.experimental import multihost_utils

import jaxdiff as jd
from jaxdiff import (
    cli,
    core,
    couplings,
    data,
    diagnostics,
    editing,
    guidance,
    inverse,
    likelihood,
    losses,
    training,
)
from jaxdiff import processes as P
from jaxdiff import solvers as S
from jaxdiff import steering as ST
from jaxdiff import testing as T
from jaxdiff.cli import job as cli_job
from jaxdiff.cli import threads
from jaxdiff.processes import linear
from jaxdiff.solvers import discrete as D
from jaxdiff.training import distributed
from jaxdiff.training.feed import make_feed
from jaxdiff.training.flops import update_flops
from jaxdiff.training.parallel import held_parts

PLATFORMS = ("tpu", "cuda")
VP, ABSORBING = P.VP(), P.absorbing(3)
GRID, TOKEN_GRID = jd.grids.karras(VP, 3), jd.grids.uniform(ABSORBING, 3)
KEY = jax.random.key(0)
SHAPE = (4, 4, 1)
X = np.linspace(-1, 1, 4 * 16, dtype=np.float32).reshape(4, *SHAPE)
T4 = np.linspace(0.2, 0.8, 4, dtype=np.float32)
MATRIX = np.random.default_rng(0).normal(size=(5, 16))
MIXTURE = T.gaussian_mixture(np.eye(2, 16), np.stack([np.eye(16), 2 * np.eye(16)]))


def shrink(x, t):
    """A denoiser without matrix products: whatever product is in a program then is the library's."""
    return jnp.tanh(x) / (1 + jnp.mean(t))


def flat(x, t):
    return jnp.zeros((*x.shape, 3)) + 0.1 * jnp.arange(3).reshape(*[1] * x.ndim, 3)


def walk(solver, denoise=shrink, process=VP, grid=GRID, shape=SHAPE, **settings):
    def run(keys):
        start = {} if "x" in settings else {"shape": shape}
        return jd.sample(keys, denoise, process, solver, grid, **start, **settings)

    return run


def tokens(solver, grid=TOKEN_GRID):
    return walk(solver, flat, ABSORBING, grid, (4,))


def solved(method, operator, noise_level=0.1, **options):
    """A walk down to what a linear operator has seen."""
    y = operator.forward(jnp.asarray(X))
    return walk(S.ddim(), inverse.posterior(shrink, VP, operator, y, method, noise_level, **options))


def seen(operator):
    return lambda keys: operator.pinv(operator.forward(jnp.asarray(X)) + 0 * jax.random.normal(keys[0]))


PLAIN = [
    "adams_bashforth", "ancestral", "bdia", "churn", "ddim", "deis", "dpm_adaptive", "dpm_multistep",
    "dpm_singlestep", "dpmpp_multistep", "dpmpp_singlestep", "edict", "er_sde", "euler", "euler_maruyama",
    "heun", "interpolant_sde", "ipndm", "lms", "midpoint", "plms", "pndm", "predictor_corrector", "ralston",
    "reverse_diffusion", "reversible_heun", "rk4", "sa_solver", "seeds", "splitting", "unified", "unipc",
]
CALLS = {
    "affine": lambda keys: data.Affine()(keys, X),
    "edm": lambda keys: data.EDMAugment()(keys, X),
    "elastic": lambda keys: data.Elastic()(keys, X),
    "crop": lambda keys: data.Crop()(keys, X),
    "costs": lambda keys: couplings.costs(jnp.asarray(X), jnp.asarray(X)),
    "vendi": walk(S.ddim(), guidance.energy(shrink, VP, guidance.vendi_loss())),
    "gaussian vendi": lambda keys: guidance.vendi_score(jnp.asarray(X), guidance.vendi.gaussian(1.0)),
    "classifier-free": walk(S.ddim(), guidance.classifier_free(shrink, lambda x, t: x, 2.0)),
    "frequency decoupled": walk(S.ddim(), guidance.frequency_decoupled(shrink, shrink, (1.0, 2.0))),
    "threshold": walk(S.ddim(), guidance.threshold(shrink, quantile=0.9)),
    "exact": lambda keys: MIXTURE.denoiser(VP)(X.reshape(4, 16), T4),
    "empirical": lambda keys: T.empirical(X.reshape(4, 16)).denoiser(VP)(X.reshape(4, 16), T4),
    "density": lambda keys: likelihood.log_prob(
        keys[0], shrink, VP, X, solver=S.heun(), grid=GRID, trace="hutch++", probes=4
    ),
    "principal": lambda keys: editing.principal_directions(jnp.asarray(X), 2),
    "jacobian": lambda keys: editing.jacobian_directions(jnp.tanh, jnp.asarray(X[0]), 2, keys[0], 2),
    "project out": lambda keys: editing.project_out(jnp.asarray(X[0]), jnp.asarray(X[1:])),
    "mixing": lambda keys: editing.mixing_step(jnp.stack([X, X]), np.array([0, 1, 0, 1])),
    "contrast": lambda keys: editing.contrastive_loss(jnp.stack([X, X + 1])),
    "similarity": lambda keys: losses.regularizers.pairwise_similarity(jnp.asarray(X), X + 1.0),
    "dimension": lambda keys: diagnostics.intrinsic_dimension(shrink, VP, X, 0.5),
    "subspaces": lambda keys: diagnostics.subspace_denoiser(jnp.asarray(MATRIX.T[None]), VP)(X, 0.5),
    "dense": seen(inverse.dense(MATRIX, SHAPE)),
    "downsample": seen(inverse.downsample(2)),
    "blur": seen(inverse.gaussian_blur(1.0, 3)),
    "radon": seen(inverse.radon(4, [0.0, 1.0])),
    "pigdm": solved("pigdm", inverse.dense(MATRIX, SHAPE)),
    "mmps": solved("mmps", inverse.downsample(2)),
    "tractable": solved("tractable", inverse.dense(MATRIX, SHAPE), prior=inverse.MixturePrior(
        jnp.zeros((1, 16)), jnp.eye(16)[None], jnp.ones(1), SHAPE
    )),
    "repaint": walk(inverse.repaint(inverse.mask(np.eye(4)[..., None]), np.eye(4)[None, ..., None] * X)),
    "particles": walk(ST.particles(S.ancestral(), lambda x: x[:, 0, 0, 0], 2)),
    "shard_map": jax.shard_map(
        walk(S.ancestral()), mesh=jax.sharding.Mesh(np.array(jax.devices()[:4]), ("d",)),
        in_specs=jax.P("d"), out_specs=jax.P("d"),
    ),
    "gradient": jax.grad(lambda x: jnp.sum(walk(S.heun(), gradient="checkpointed", x=x)(None))),
    "group norm": lambda keys: jd.models.layers.group_norm(jnp.asarray(X), jnp.ones(1), jnp.zeros(1), 1),
    "ancestral tokens": tokens(D.ancestral()),
    "tau leaping": tokens(D.tau_leaping()),
    "first hitting": tokens(D.first_hitting(4), None),
    "confidence": tokens(D.confidence()),
    "remasking": tokens(D.remasking()),
    "elbo": lambda keys: losses.discrete.elbo(flat, keys, jnp.zeros((4, 4), int), process=ABSORBING),
}  # fmt: skip
QUICKEST = set(CALLS) - {"first hitting", "gradient", "elastic", "particles", "confidence"}
CALLS |= {name: walk(getattr(S, name)()) for name in PLAIN}
QUICKEST |= {"ddim", "predictor_corrector", "reversible_heun"}
CASES = [pytest.param(name, marks=() if name in QUICKEST else pytest.mark.slow) for name in sorted(CALLS)]


def traced(name):
    """The program as it is traced; keys enter as words, which every platform can be lowered for."""
    if name == "gradient":
        return jax.jit(CALLS[name]).trace(X)
    words = jax.random.key_data(jax.random.split(KEY, 4))
    return jax.jit(lambda words: CALLS[name](jax.random.wrap_key_data(words))).trace(words)


def rounded_products(jaxpr):
    """Products of floats that accelerators may round to fewer bits."""
    for equation in jaxpr.eqns:
        if equation.primitive.name in ("dot_general", "conv_general_dilated"):
            precision = equation.params["precision"]
            full = precision is not None and set(precision) == {jax.lax.Precision.HIGHEST}
            if jnp.issubdtype(equation.outvars[0].aval.dtype, jnp.inexact) and not full:
                yield str(equation)
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda v: hasattr(v, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from rounded_products(inner)


@pytest.mark.parametrize("name", CASES)
def test_it_lowers_for_every_platform_in_float32_and_its_products_keep_all_bits(name):
    program = traced(name)
    assert list(rounded_products(program.jaxpr.jaxpr)) == []
    text = program.lower(lowering_platforms=PLATFORMS).as_text()
    assert not re.search("f64|callback", text)


SMALL = dict(width=16, depth=1, heads=2)
NETWORKS_OF = {
    "no products": ((4, 4, 1), types.SimpleNamespace(
        init=lambda *_: {"params": {"w": jnp.ones(())}},
        apply=lambda variables, x, c_noise, condition, keys: variables["params"]["w"] * x,
    )),
    "MLP": ((2,), jd.models.MLP(width=16, depth=1, dropout=0.1)),
    "UNet": ((8, 8, 1), jd.models.UNet(channels=(16, 64), dropout=0.1, num_classes=3)),
    "DiT": ((8, 8, 1), jd.models.DiT(**SMALL, positions="rotary", qk_norm=True, remat="dots")),
    "tokens": ((4,), jd.models.TokenTransformer(3, **SMALL, factored=True)),
}  # fmt: skip


@pytest.mark.parametrize("name", [
    "no products", "MLP", *(pytest.param(name, marks=pytest.mark.slow) for name in ("UNet", "DiT", "tokens"))
])  # fmt: skip
def test_updates_lower_for_every_platform(name, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")  # of which networks and loops ask
    shape, model = NETWORKS_OF[name]
    if name == "tokens":
        def loss(params, batch, keys, strata, step):
            def net(x, t):
                return model.apply({"params": params}, x, t, keys=keys)

            return losses.discrete.elbo(net, keys, batch["x"], process=ABSORBING, strata=strata)
    else:
        augment = data.EDMAugment() if name == "no products" else None
        loss = training.denoising_objective(
            model, VP, jd.parameterizations.edm(), label_drop=0.1 * (name == "UNet"), null_label=3,
            augment=augment and (lambda keys, x: (augment(keys, x)[0], None)),
        )  # fmt: skip
    optimizer = training.adamw(1e-3)
    params = jax.eval_shape(lambda: training.init_params(model, KEY, shape))
    state = jax.eval_shape(lambda: training.init_state(
        jax.tree.map(lambda p: jnp.zeros(p.shape), params), optimizer, (500,)
    ))  # fmt: skip
    resident = {"x": np.zeros((8, *shape), int if name == "tokens" else np.float32)}
    if name == "UNet":
        resident["label"] = np.zeros(8, int)
    dispatch = training.make_dispatch(
        training.make_update(loss, optimizer, (500,), accumulate=2, nonfinite="skip"),
        lambda resident, item: jax.tree.map(lambda a: a[item], resident),
    )
    items, words = np.zeros((2, 4), np.int32), np.asarray(jax.random.key_data(KEY))
    program = jax.jit(dispatch).trace(state, resident, items, words)
    if name == "no products":
        assert list(rounded_products(program.jaxpr.jaxpr)) == []
    assert not re.search("f64|callback", program.lower(lowering_platforms=PLATFORMS).as_text())


NUMPY = {  # where products are of numpy arrays
    "metrics/classifier", "metrics/distances", "processes/fitted", "solvers/compensation", "solvers/search",
    "solvers/tuning",
}
NETWORKS = {"core/categorical", "models/convolution"}


def test_products_outside_networks_are_those_of_core():
    root, found = pathlib.Path(jd.__file__).parent, set()
    names = r"\b(jnp|lax)\.(matmul|dot|dot_general|einsum|tensordot|vdot|inner|conv_\w*)\("
    for path in root.rglob("*.py"):
        text = path.read_text()
        nodes = ast.walk(ast.parse(text)) if " @ " in text else ()
        if re.search(names, text) or any(isinstance(getattr(n, "op", None), ast.MatMult) for n in nodes):
            found.add(path.relative_to(root).with_suffix("").as_posix())
    assert found == NUMPY | NETWORKS | {"core/arrays"}


@pytest.fixture
def beside_accelerator(monkeypatch):
    """The fourth device stands for an accelerator, beside which jax has the CPU."""
    monkeypatch.setattr(jax, "default_backend", lambda: "cuda")
    linear._compiled_slopes.cache_clear()
    with jax.default_device(jax.devices()[3]):
        yield jax.devices("cpu")[0]
    linear._compiled_slopes.cache_clear()


def loss(params, batch, keys, strata, step):
    return jnp.sum(batch["x"] * params["w"][None], axis=-1)


def test_what_is_of_the_host_is_computed_there(beside_accelerator):
    places = []

    def here(*_):
        places.append(jax.config.jax_default_device)
        return optax.EmptyState()

    linear._forward_mode(lambda process, t: (here(), t**2)[1], np.linspace(0, 1, 5), VP)
    optimizer = optax.GradientTransformation(here, lambda updates, state, params: (updates, state))
    params, examples = {"w": np.ones(3, np.float32)}, {"x": np.ones((8, 3), np.float32)}
    training.fit(params, loss, examples, steps=1, batch_size=8, optimizer=optimizer, progress=False)
    assert places == [beside_accelerator] * 2

    update = training.make_update(lambda *a: (here(), loss(*a))[1], optax.sgd(0.1))
    state, feed = training.init_state(params, optax.sgd(0.1), ()), make_feed(examples, 4, 0)
    assert update_flops(update, feed, state, feed.items(0, 1), 4) > 0
    assert set(places) == {beside_accelerator}


def test_little_optimisation_is_asked_of_the_cpu_alone(beside_accelerator, monkeypatch):
    options, jit = [], jax.jit

    def recorded(function, **given):
        options.append(given.get("compiler_options"))
        return jit(function, **given)

    monkeypatch.setattr(jax, "jit", recorded)
    model = types.SimpleNamespace(init=lambda key, x, c_noise, condition: {"params": x})
    params = training.init_params(model, KEY, (2,))
    training.init_state(params, optax.sgd(0.1), ())
    VP.derivatives(np.linspace(0.1, 1, 3))
    assert len(training.objectives.NoiseLevels(jd.times.stratified(), VP, None).edges) == 9
    assert len(options) >= 4 and set(options) == {None}
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    training.init_state(params, optax.sgd(0.1), ())
    assert options[-1] == core.quick()["compiler_options"]


# the processes of a mesh's devices on slices of TPU v5e, 4 x 4 and 2 x 4 chips, as jax lays them out
RING = [0, 0, 1, 1, 1, 1, 0, 2, 3, 3, 3, 3, 2, 2, 2, 0]
SQUARES = [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]


@pytest.mark.parametrize("owners, tensor, expected", [
    (RING, 1, {0: [0, 1, 6, 15], 1: [2, 3, 4, 5], 3: [8, 9, 10, 11]}),
    (SQUARES, 4, {0: [0, 1], 1: [0, 1], 3: [2, 3]}),
    ([0] * 4 + [1] * 4, 2, {0: [0, 1], 1: [2, 3]}),
])  # fmt: skip
def test_processes_supply_the_rows_of_their_devices_wherever_those_lie(owners, tensor, expected):
    devices = np.array([types.SimpleNamespace(process_index=owner) for owner in owners])
    devices = devices.reshape(1, -1, tensor)
    whole = {"x": np.arange(1000)[:, None]}
    batch = make_feed(whole, 32, 5).items(2, 1).reshape(devices.size // tensor, -1)
    for process, numbers in expected.items():
        part, parts = held_parts(devices, process)
        assert (part, parts) == (numbers, devices.size // tensor)
        own = make_feed(whole, 32, 5, None, part, parts).items(2, 1)
        np.testing.assert_array_equal(own, batch[numbers].reshape(1, -1))


def test_a_state_goes_over_the_devices_an_array_at_a_time(monkeypatch):
    sent = []
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(multihost_utils, "broadcast_one_to_all", lambda tree: (sent.append(tree), tree)[1])
    state = {"a": np.arange(3, dtype=np.int32), "b": [np.float32(-0.0), np.ones((2, 2))]}
    got = distributed.broadcast(state)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b, strict=True), got, state)
    assert np.signbit(got["b"][0]) and [len(bytes_) for bytes_ in sent] == [12, 4, 32]


def test_operations_are_not_told_of_a_network_that_no_cpu_can_run():
    update = training.make_update(loss, optax.sgd(0.1))

    def elsewhere(*arguments):
        raise NotImplementedError("no lowering for cpu")

    examples, params = {"x": np.ones((8, 3), np.float32)}, {"w": np.ones(3, np.float32)}
    state, feed = training.init_state(params, optax.sgd(0.1), ()), make_feed(examples, 4, 0)
    assert update_flops(update, feed, state, feed.items(0, 1), 4) > 0
    assert update_flops(elsewhere, feed, state, feed.items(0, 1), 4) is None


def test_parts_that_processes_share_by_halves_are_refused():
    devices = np.array([types.SimpleNamespace(process_index=owner) for owner in (0, 0, 0, 1, 1, 1)])
    with pytest.raises(ValueError, match="mesh: expected the parts of a batch that two processes hold"):
        held_parts(devices.reshape(3, 1, 2), 0)
    with pytest.raises(ValueError, match="got none of process 2"):
        held_parts(devices.reshape(3, 1, 2), 2)
    with pytest.raises(ValueError, match="part to be in .0, 2., got 2"):
        make_feed({"x": np.ones((8, 3))}, 4, 0, None, 2, 2)


def test_the_heap_of_a_host_with_an_accelerator_is_left_alone(monkeypatch, capsys):
    called = []
    monkeypatch.setattr(training, "keep_freed_memory", lambda: called.append(True))
    for alone in (False, True):
        monkeypatch.setattr(threads, "only_cpu", lambda alone=alone: alone)
        assert cli.main(["list"]) == 0
        assert called == [True] * alone


@pytest.mark.parametrize("platform, n, sizes", [
    ("cpu", 100, [104]), ("cpu", 250, [104] * 3), ("tpu", 100, [104]), ("tpu", 900, [800] * 2),
])  # fmt: skip
def test_samples_of_a_call_are_as_many_as_the_accelerators_take_and_parameters_are_sent_once(
    platform, n, sizes, monkeypatch
):
    sent, calls = [], []

    def place(shared):
        sent.append(shared)
        return lambda number, labels: (calls.append(len(number)), np.zeros((len(number), *SHAPE)))[1]

    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(training, "over_devices", lambda function: place)
    config = {
        "solver": "ddim", "grid": "karras", "guidance_scale": 1, "label_drop": 0, "sample_steps": 3,
        "data": "images", "data_record": {
            "shape": SHAPE, "num_classes": None, "value_range": None, "levels": None,
            "shift": 0.0, "scale": 1.0,
        },
    }  # fmt: skip
    job = cli_job.Job(None, VP, jd.parameterizations.edm(), SHAPE, None, None)
    assert cli_job.make_sampler(job, config)({}, n, 0).shape == (n, *SHAPE)
    assert (len(sent), calls) == (1, sizes)
