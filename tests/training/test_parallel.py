import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from jaxdiff.training import init_state, make_dispatch, make_update, over_devices, parallel
from jaxdiff.training.parallel import check_batch_size

SIZE, BATCH, WIDTH = 40, 16, 64
RESIDENT = {"x": np.random.default_rng(0).standard_normal((SIZE, 3)).astype(np.float32)}
ITEMS = np.random.default_rng(1).integers(0, SIZE, (2, BATCH), dtype=np.int32)
KEY = np.asarray(jax.random.key_data(jax.random.key(5)))


def params():
    rng = np.random.default_rng(2)
    shapes = {"a": (3, WIDTH), "b": (WIDTH, WIDTH), "c": (WIDTH, 3)}
    return {name: rng.standard_normal(s).astype(np.float32) / 8 for name, s in shapes.items()}


def loss(p, batch, keys, strata, step):
    index, total = strata
    x = batch["x"]
    noise = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(keys)
    time = ((index + 0.5) / total)[:, None]
    h = jnp.tanh((x + time * noise) @ p["a"]) @ p["b"]
    return jnp.mean((jnp.tanh(h) @ p["c"] - noise) ** 2, axis=-1)


def gather(resident, item):
    return {"x": resident["x"][item]}


def dispatch_of(**options):
    # plain SGD: Adam would hide a wrong factor on the gradient
    optimizer = optax.sgd(0.5)
    update = make_update(loss, optimizer, (3.0,), **options)
    return make_dispatch(update, gather), init_state(params(), optimizer, (3.0,))


def train(mode, devices, count=2, **options):
    layout = parallel(mode, jax.devices()[:devices])
    dispatch, state = dispatch_of(**options)
    step = layout.compile(dispatch, state)
    state, resident, key = (layout.replicate(tree) for tree in (state, RESIDENT, KEY))
    losses = []
    for _ in range(2):
        state, metrics = step(state, resident, layout.shard(ITEMS[:count]), key)
        metrics = layout.fetch(metrics)
        losses.extend(metrics["loss"])
    return layout.fetch(state), np.array(losses)


@pytest.fixture(scope="module")
def single():
    """Two dispatches of two updates on one device, without shardings."""
    dispatch, state = dispatch_of()
    losses = []
    for _ in range(2):
        state, metrics = jax.jit(dispatch)(state, RESIDENT, ITEMS, KEY)
        losses.extend(np.asarray(metrics["loss"]))
    return jax.device_get(state), np.array(losses)


@pytest.mark.keys_again
@pytest.mark.parametrize(
    "mode, devices, options",
    [("jit", 1, {}), ("jit", 8, {}), ("pmap", 8, {}), ("pmap", 2, {"accumulate": 4}),
     ("jit", 4, {"accumulate": 2})],
)
def test_updates_equal_those_of_one_device(single, mode, devices, options):
    state, losses = train(mode, devices, **options)
    np.testing.assert_allclose(losses, single[1], rtol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state, single[0])


def test_the_comparison_would_see_a_wrong_factor(single):
    """With gradients summed over the devices in place of averaged, the losses differ visibly."""
    optimizer = optax.chain(optax.scale(8.0), optax.sgd(0.5))
    update = make_update(loss, optimizer, (3.0,))
    state = init_state(params(), optimizer, (3.0,))
    dispatch = make_dispatch(update, gather)
    _, metrics = jax.jit(dispatch)(state, RESIDENT, ITEMS, KEY)
    assert abs(metrics["loss"][1] / single[1][1] - 1) > 1e-3


def test_jit_cuts_the_work_and_gathers_no_batch():
    def compiled(devices):
        layout = parallel("jit", jax.devices()[:devices])
        dispatch, state = dispatch_of()
        shapes = jax.eval_shape(lambda: (state, RESIDENT, ITEMS[:1], KEY))
        return layout.compile(dispatch, state).lower(*shapes).compile()

    one, eight = compiled(1), compiled(8)
    assert eight.cost_analysis()["flops"] < one.cost_analysis()["flops"] / 4
    assert "all-reduce" in eight.as_text() and "all-gather" not in eight.as_text()


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_state_is_donated_and_the_callers_arrays_live_on(mode):
    layout = parallel(mode, jax.devices()[:2])
    dispatch, state = dispatch_of()
    placed = layout.replicate(state)
    resident, key = layout.replicate(RESIDENT), layout.replicate(KEY)
    layout.compile(dispatch, state)(placed, resident, layout.shard(ITEMS[:1]), key)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(placed.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((state, resident)))


def test_replicate_and_fetch_are_inverse():
    for mode in ("jit", "pmap"):
        layout = parallel(mode, jax.devices()[:4])
        placed = layout.replicate({"x": np.arange(6.0).reshape(2, 3), "step": np.int32(3)})
        assert all(isinstance(leaf.sharding, NamedSharding) for leaf in jax.tree.leaves(placed))
        back = layout.fetch(placed)
        np.testing.assert_array_equal(back["x"], np.arange(6.0).reshape(2, 3))
        assert back["step"].shape == () and back["step"] == 3


def test_examples_are_cut_over_the_devices_and_come_back_whole():
    seen = []

    def function(shared, x, labels):
        seen.append(labels)
        return {"y": shared["w"] * x, "index": jnp.arange(len(x))}

    x = np.arange(16.0, dtype=np.float32)
    out = over_devices(function)({"w": np.float32(3.0)}, x, None)
    np.testing.assert_array_equal(out["y"], 3 * x)
    np.testing.assert_array_equal(out["index"], np.arange(16))
    assert seen == [None] and isinstance(out["y"], np.ndarray)


def test_auto_is_pmap_over_several_devices_and_jit_on_one():
    assert parallel("auto", jax.devices()[:8]).mode == "pmap"
    assert parallel("auto", jax.devices()[:1]).mode == "jit"


def test_unknown_mode_names_the_near_one():
    with pytest.raises(ValueError, match="did you mean pmap"):
        parallel("pmapp")


@pytest.mark.parametrize("batch, near", [(60, "56 or 64"), (3, "8"), (0, "8"), (-8, "8")])
def test_a_batch_that_devices_do_not_divide_names_the_near_ones(batch, near):
    with pytest.raises(ValueError, match=f"8 devices.*got {batch}; use {near}$"):
        check_batch_size(batch, 8)
    check_batch_size(64, 8)


def test_accumulation_must_divide_the_batch_too():
    with pytest.raises(ValueError, match="accumulate=3"):
        check_batch_size(64, 8, 3)
