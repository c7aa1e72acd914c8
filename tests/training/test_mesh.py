import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.training import mesh as mesh_
from jaxdiff.training.state import leaves_by_path

P = jax.sharding.PartitionSpec
SHAPE, BATCH = (4, 4, 1), 16
MODEL = jd.models.DiT(patch=2, width=64, depth=1, heads=4, num_classes=3)
KEY = np.asarray(jax.random.key_data(jax.random.key(5)))
RNG = np.random.default_rng(0)
DATA = {
    "x": RNG.standard_normal((40, *SHAPE)).astype(np.float32),
    "label": RNG.integers(0, 3, 40).astype(np.int32),
}
ITEMS = RNG.integers(0, 40, (1, BATCH), dtype=np.int32)


@pytest.fixture(scope="module")
def start():
    params = training.init_params(MODEL, jax.random.key(0), SHAPE, jnp.zeros(1, jnp.int32))
    # every parameter moves: zeros would hide a wrong one
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    params = jax.tree.unflatten(tree, [
        p + 0.05 * jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)
    ])
    loss = training.denoising_objective(MODEL, jd.processes.EDM(), jd.parameterizations.edm(1.0))
    optimizer = optax.sgd(0.1, momentum=0.9)  # Adam would hide a factor
    update = training.make_update(loss, optimizer, (3.0,))
    dispatch = training.make_dispatch(
        update, lambda resident, item: jax.tree.map(lambda a: a[item], resident)
    )
    return dispatch, training.init_state(params, optimizer, (3.0,))


def one_step(start, mesh, devices):
    dispatch, state = start
    layout = training.parallel("jit", jax.devices()[:devices], mesh)
    step = layout.compile(dispatch, state)
    args = (layout.place(state), layout.replicate(DATA), layout.shard(ITEMS), layout.replicate(KEY))
    program = step.lower(*args).compile()
    placed, metrics = program(*args)
    return layout.fetch(placed), layout.fetch(metrics), program, placed


@pytest.fixture(scope="module")
def single(start):
    return one_step(start, "", 1)


@pytest.fixture(scope="module")
def sharded(start):
    return {mesh: one_step(start, mesh, 8) for mesh in ("data=8", "fsdp=8", "data=2,fsdp=2,tensor=2")}


@pytest.mark.slow
@pytest.mark.keys_again
def test_a_mesh_changes_an_update_by_rounding_alone(single, sharded):
    for mesh, (state, metrics, _, _) in sharded.items():
        np.testing.assert_allclose(metrics["loss"], single[1]["loss"], rtol=1e-5, err_msg=mesh)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), state, single[0]
        )


@pytest.mark.slow
@pytest.mark.keys_again
def test_each_device_does_and_holds_its_share(single, sharded):
    whole = single[2].cost_analysis()["flops"]
    held = single[2].memory_analysis().argument_size_in_bytes
    for mesh, (_, _, program, _) in sharded.items():
        assert program.cost_analysis()["flops"] < whole / 5, mesh
    assert sharded["fsdp=8"][2].memory_analysis().argument_size_in_bytes < held / 5
    assert sharded["data=2,fsdp=2,tensor=2"][2].memory_analysis().argument_size_in_bytes < held / 3


@pytest.mark.slow
@pytest.mark.keys_again
def test_averages_and_moments_lie_where_their_parameters_do(sharded):
    state = sharded["data=2,fsdp=2,tensor=2"][3]
    params = {path: a.sharding.spec for path, a in leaves_by_path(state.params).items()}
    assert params["block_0/mlp_in/kernel"] == P("fsdp", "tensor")
    assert params["block_0/mlp_out/kernel"] == P("tensor", "fsdp")
    assert params["block_0/attention/qkv/bias"] == P("tensor")
    for tree in (state.ema[0], state.opt_state[0].trace):
        assert {path: a.sharding.spec for path, a in leaves_by_path(tree).items()} == params


def collective_bytes(program, kind):
    """Bytes of the results of one kind of collective in a compiled program's text."""
    total = 0
    for line in program.as_text().splitlines():
        if f" {kind}(" in line or f" {kind}-start(" in line:
            result = line.split("=", 1)[1].split(kind)[0]
            for shape in result.replace("(", "").split("f32[")[1:]:
                sides = shape.split("]")[0]
                total += 4 * int(np.prod([int(s) for s in sides.split(",") if s]))
    return total


@pytest.mark.slow
@pytest.mark.keys_again
def test_data_parallel_steps_send_one_gradient(sharded):
    """The gradient once, and a few scalars; nothing is gathered."""
    state, _, program, _ = sharded["data=8"]
    gradient = 4 * training.parameter_count(state.params)
    assert gradient <= collective_bytes(program, "all-reduce") <= gradient + 256
    assert "all-gather" not in program.as_text()


@pytest.mark.slow
@pytest.mark.keys_again
def test_fsdp_gathers_parameters_and_no_activations(sharded):
    """Forward and backward pass may gather each parameter; the activations would be far more."""
    state, _, program, _ = sharded["fsdp=8"]
    parameters = 4 * training.parameter_count(state.params)
    assert 0 < collective_bytes(program, "all-gather") <= 2.2 * parameters


def test_sizes_of_a_mesh():
    assert mesh_.mesh_sizes("", 8) == {"data": 8, "fsdp": 1, "tensor": 1}
    assert mesh_.mesh_sizes("data=-1, tensor=2", 8) == {"data": 4, "fsdp": 1, "tensor": 2}
    assert mesh_.mesh_sizes({"fsdp": 8}, 8) == {"data": 1, "fsdp": 8, "tensor": 1}


@pytest.mark.parametrize("mesh, words", [
    ("data=3", "number of devices, 8"), ("model=8", "data, fsdp, tensor, got 'model'"),
    ("data", "words such as"), ("data=-1,fsdp=-1", "at most one of -1"), ("data=0", "at least 1"),
    ("fsdp=3,data=-1", "number of devices"),
])
def test_a_mesh_that_does_not_fit_is_named(mesh, words):
    with pytest.raises(ValueError, match=words):
        mesh_.mesh_sizes(mesh, 8)


def test_pmap_has_the_data_axis_alone():
    assert training.parallel("auto", jax.devices()[:8], "fsdp=8").mode == "jit"
    with pytest.raises(ValueError, match="data axis alone for pmap"):
        training.parallel("pmap", jax.devices()[:8], "fsdp=8")


def test_arrays_that_an_axis_does_not_divide_stay_whole():
    shapes = {
        "qkv/kernel": np.zeros((60, 90)), "small/kernel": np.zeros((8, 8)),
        "conv_in/kernel": np.zeros((3, 3, 64, 64)),
    }
    specs = mesh_.specs(shapes, {"data": 1, "fsdp": 8, "tensor": 4})
    assert specs["qkv/kernel"] == P(None, None) and specs["small/kernel"] == P(None, None)
    assert specs["conv_in/kernel"] == P(None, None, "fsdp", "tensor")
