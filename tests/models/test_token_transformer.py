"""The transformer for tokens: what each logit sees, its options, and a vocabulary cut over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import models, processes
from jaxdiff.core.categorical import FactoredLogits
from jaxdiff.losses import discrete
from jaxdiff.models.token_transformer import token_angles

SMALL = {"vocabulary": 16, "width": 16, "depth": 1, "heads": 2}
X = np.random.default_rng(0).integers(0, 17, (3, 6)).astype(np.int32)
T = np.float32([0.1, 0.5, 0.9])


def values(model, scale=0.2):
    """Parameters away from their zeros."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), X[:, :4] % 2, T)["params"]
    return jax.tree.map(lambda leaf: (scale * rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)


@functools.cache
def network(**fields):
    """`apply(params, x, c_noise, condition, keys=)` and parameters."""
    model = models.TokenTransformer(**SMALL, **fields)
    return jax.jit(lambda p, *args, **keys: model.apply({"params": p}, *args, **keys)), values(model)


def other(place, vocabulary=17):
    """The tokens, but for another one at this place of the first example."""
    x = X.copy()
    x[0, place] = (x[0, place] + 1) % vocabulary
    return x


def differs(first, second):
    """Which positions of the first example changed."""
    return np.abs(np.asarray(first)[0] - np.asarray(second)[0]).max(-1) > 1e-6


def test_every_logit_sees_every_token_time_and_place():
    apply, params = network()
    out = apply(params, X, T)
    assert out.shape == (3, 6, 16) and out.dtype == jnp.float32
    for place in (0, 5):
        assert differs(out, apply(params, other(place), T)).all()
    assert differs(out, apply(params, X, T + np.float32(0.05))).all()
    moved = np.asarray(apply(params, np.roll(X, 1, 1), T))
    assert differs(out, np.roll(moved, -1, 1)).all()  # places are told apart
    np.testing.assert_allclose(np.asarray(apply(params, X[::-1], T[::-1]))[::-1], out, atol=1e-5)
    np.testing.assert_array_equal(apply(params, X, 0.3), apply(params, X, np.full(3, 0.3, np.float32)))


def test_a_causal_logit_sees_only_the_tokens_before_its_own():
    apply, params = network(causal=True, time=False, tied=True)
    assert "logits" not in params and "embedding" not in params
    out = apply(params, X, None)
    for place in range(6):
        changed = apply(params, other(place, 16), None)
        np.testing.assert_array_equal(differs(out, changed), np.arange(6) > place)
    np.testing.assert_array_equal(out, apply(params, X, T))  # without time, the time is not looked at


def test_the_law_of_a_causal_network_sums_to_one():
    model = models.TokenTransformer(vocabulary=2, width=8, depth=1, heads=2, causal=True, time=False)
    params = values(model, 1.0)
    every = np.stack(np.meshgrid(*[[0, 1]] * 4), -1).reshape(16, 4)
    log_p = jax.jit(lambda params, x: jax.nn.log_softmax(model.apply({"params": params}, x)))(params, every)
    p = np.exp(np.take_along_axis(np.asarray(log_p), every[..., None], -1).sum((1, 2)))
    assert abs(p.sum() - 1) < 1e-5 and p.std() > 1e-3


def test_rotary_attention_depends_on_distance_alone():
    angles = token_angles(8, 6)
    np.testing.assert_allclose(angles[3], 3 * 10000.0 ** -np.array([0, 1 / 3, 2 / 3]), rtol=1e-6)


def test_logits_are_zero_at_initialisation():
    model = models.TokenTransformer(**SMALL)

    @jax.jit
    def work(key):
        params = model.init(key, X, T)
        return params, model.apply(params, X, T)

    init, out = work(jax.random.key(0))
    np.testing.assert_array_equal(out, np.zeros((3, 6, 16)))
    assert init["params"]["tokens"]["embedding"].shape == (16, 16)  # the mask has a vector of its own


@pytest.mark.slow
def test_options_keep_their_promises():
    apply, params = network(num_classes=4, vector_size=2, dropout=0.5)
    keys, labels = jax.random.split(jax.random.key(7), 3), jnp.array([0, 1, 2])
    none = apply(params, X, T)
    null = {"label": jnp.full(3, 4), "vector": jnp.zeros((3, 2))}
    np.testing.assert_array_equal(none, apply(params, X, T, null))
    assert differs(none, apply(params, X, T, labels)).all()
    assert differs(none, apply(params, X, T, {"vector": jnp.ones((3, 2))})).all()
    dropped = apply(params, X, T, keys=keys)
    assert differs(none, dropped).any()
    changed = apply(params, X, T, keys=keys.at[0].set(jax.random.key(8)))
    assert differs(dropped, changed).any()
    np.testing.assert_allclose(dropped[1:], changed[1:], atol=1e-5)  # each example by its own key
    remat = network(num_classes=4, vector_size=2, dropout=0.5, remat=True)[0]
    first, second = (
        jax.grad(lambda p, f=f: (f(p, X, T, keys=keys) ** 2).sum())(params) for f in (apply, remat)
    )
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
    wide, params = network()
    narrow = network(dtype=jnp.bfloat16)[0](params, X, T)
    assert narrow.dtype == jnp.bfloat16
    gap = jnp.abs(narrow - wide(params, X, T)).max() / jnp.abs(narrow).max()
    assert 1e-4 < gap < 0.1
    shapes = network(param_dtype=jnp.bfloat16)[1]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_factored_logits_give_the_loss_and_gradient_of_the_dense_ones(tied):
    process, x0 = processes.absorbing(16), np.tile(np.minimum(X, 15), (1, 30))  # more than one block
    params = network(tied=tied)[1]

    def value_and_grad(factored):
        model = models.TokenTransformer(**SMALL, tied=tied, factored=factored)

        def loss(params):
            net = lambda x, t: model.apply({"params": params}, x, t)  # noqa: E731
            return discrete.elbo(net, jax.random.key(2), x0, process=process).mean()

        return jax.jit(jax.value_and_grad(loss))(params)

    plain, blocks = value_and_grad(False), value_and_grad(True)
    for a, b in zip(jax.tree.leaves(plain), jax.tree.leaves(blocks), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_bound_with_its_head_stays_within_the_logits(dtype):
    """Vocabulary 32,768, length 256, batch 8: what the program holds beside its arguments and results."""
    process, rows = processes.absorbing(32768), (8, 256)

    def loss(features, kernel, x0):
        net = lambda x, t: FactoredLogits(features.astype(dtype), kernel)  # noqa: E731
        return discrete.elbo(net, jax.random.key(0), x0, process=process).mean()

    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((*rows, 512), (512, 32768))]
    step = jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))
    program = step.lower(*arguments, jax.ShapeDtypeStruct(rows, jnp.int32)).compile()
    held = program.memory_analysis().temp_size_in_bytes
    assert held < 1.2 * np.prod(rows) * 32768 * jnp.dtype(dtype).itemsize


def cut(tied):
    """The bound and its gradient on one device, on eight that share the vocabulary, and the program."""
    devices = jax.devices()[:8]
    mesh = jax.make_mesh((8,), ("vocabulary",), (jax.sharding.AxisType.Auto,), devices=devices)
    lies = jax.NamedSharding(mesh, jax.P(None, None, "vocabulary"))
    process, x0 = processes.absorbing(40), 2 * X
    fields = {**SMALL, "vocabulary": 40, "tied": tied}
    params = values(models.TokenTransformer(**fields))

    def value_and_grad(sharding):
        model = models.TokenTransformer(**fields, logits_sharding=sharding)

        def loss(params, key):
            net = lambda x, t: model.apply({"params": params}, x, t)  # noqa: E731
            return discrete.elbo(net, key, x0, process=process).mean()

        return jax.value_and_grad(loss)

    layout = models.vocabulary_shardings(params, mesh, "vocabulary")
    one = jax.jit(value_and_grad(None))(params, jax.random.key(2))
    step = jax.jit(value_and_grad(lies), out_shardings=(jax.NamedSharding(mesh, jax.P()), layout))
    key = jax.device_put(jax.random.key(2), jax.NamedSharding(mesh, jax.P()))
    arguments = jax.device_put(params, layout), key
    return one, step(*arguments), step.lower(*arguments).compile().as_text()


@pytest.mark.slow
@pytest.mark.parametrize("tied", [False, True])
def test_a_vocabulary_cut_over_eight_devices_gives_the_loss_and_gradient_of_one(tied):
    one, many, program = cut(tied)
    np.testing.assert_allclose(one[0], many[0], rtol=1e-5)
    for a, b in zip(jax.tree.leaves(one[1]), jax.tree.leaves(many[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    table = many[1]["tokens"]["embedding"]
    assert table.sharding.spec[0] == "vocabulary" and table.addressable_shards[0].data.shape == (5, 16)
    assert "[3,6,40]" not in program and "f32[3,6,5]" in program  # no device holds all of the logits
    assert "all-reduce" in program


def test_bad_input_is_named():
    model, key = models.TokenTransformer(**SMALL), jax.random.key(0)
    for x, c_noise, fields, message in (
        (np.where(np.arange(18).reshape(3, 6) == 0, 17, X), T, {}, "tokens in .0, 16.*got 0 to 17"),
        (X.astype(float), T, {}, "integer tokens"),
        (X[0], T, {}, "integer tokens"),
        (X, None, {}, "set time=False"),
        (X, T[:2], {}, "one value per example"),
        (X, T, {"heads": 3}, "width 16 and 3 heads"),
        (X, T, {"time": False, "num_classes": 3}, "set time=True"),
    ):
        with pytest.raises(ValueError, match=message):
            model.clone(**fields).init(key, x, c_noise)
    with pytest.raises(ValueError, match="flatten the tokens"):
        models.build("TokenTransformer-XS", sample_shape=(8, 8, 1))
    built = models.build("TokenTransformer-S", sample_shape=(64,), vocabulary=50, causal=True)
    assert (built.width, built.depth, built.vocabulary) == (384, 12, 50)
