import functools

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


@functools.cache
def compiled(mode, devices, **options):
    layout = parallel(mode, jax.devices()[:devices])
    dispatch, state = dispatch_of(**options)
    return layout, layout.compile(dispatch, state), state


def train(mode, devices, count, **options):
    layout, step, state = compiled(mode, devices, **options)
    state, resident, key = (layout.replicate(tree) for tree in (state, RESIDENT, KEY))
    losses = []
    for items in [*ITEMS.reshape(-1, count, BATCH)] * 2:
        state, metrics = step(state, resident, layout.shard(items), key)
        metrics = layout.fetch(metrics)
        losses.extend(metrics["loss"])
    return layout.fetch(state), np.array(losses)


@pytest.fixture(scope="module")
def single():
    """Two dispatches of two updates on one device, without shardings."""
    dispatch, state = dispatch_of()
    step, losses = jax.jit(dispatch), []
    for _ in range(2):
        state, metrics = step(state, RESIDENT, ITEMS, KEY)
        losses.extend(np.asarray(metrics["loss"]))
    return jax.device_get(state), np.array(losses)


@pytest.mark.keys_again
@pytest.mark.parametrize(
    "mode, devices, count, options",
    [("jit", 1, 1, {}), ("jit", 8, 2, {}), ("pmap", 8, 2, {}),
     pytest.param("pmap", 2, 2, {"accumulate": 4}, marks=pytest.mark.slow),
     pytest.param("jit", 4, 2, {"accumulate": 2}, marks=pytest.mark.slow)],
)
def test_updates_equal_those_of_one_device(single, mode, devices, count, options):
    """`count` updates a dispatch."""
    state, losses = train(mode, devices, count, **options)
    np.testing.assert_allclose(losses, single[1], rtol=2e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state, single[0])


def test_the_comparison_would_see_a_wrong_factor(single):
    """With gradients summed over the devices in place of averaged, the losses differ visibly."""
    optimizer = optax.chain(optax.scale(8.0), optax.sgd(0.5))
    update = make_update(loss, optimizer, (3.0,))
    state = init_state(params(), optimizer, (3.0,))
    step = jax.jit(make_dispatch(update, gather))
    state, _ = step(state, RESIDENT, ITEMS[:1], KEY)
    _, metrics = step(state, RESIDENT, ITEMS[1:], KEY)
    assert abs(np.asarray(metrics["loss"])[0] / single[1][1] - 1) > 1e-3


def test_jit_cuts_the_work_and_gathers_no_batch():
    def program(devices):
        _, step, state = compiled("jit", devices)
        return step.lower(*jax.eval_shape(lambda: (state, RESIDENT, ITEMS, KEY))).compile()

    one, eight = program(1), program(8)
    assert eight.cost_analysis()["flops"] < one.cost_analysis()["flops"] / 4
    assert "all-reduce" in eight.as_text() and "all-gather" not in eight.as_text()


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_state_is_donated_and_the_callers_arrays_live_on(mode):
    layout, step, state = compiled(mode, 8)
    placed = layout.replicate(state)
    resident, key = layout.replicate(RESIDENT), layout.replicate(KEY)
    step(placed, resident, layout.shard(ITEMS), key)
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
    out = over_devices(function)({"w": np.float32(3.0)})(x, None)
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
