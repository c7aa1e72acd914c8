import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.training import adamw, fingerprint, fit, init_state, make_dispatch, make_update, parallel
from jaxdiff.training.optimizers import Elementwise
from jaxdiff.training.packed import MOST, Packed, form_of, pack, unpack
from jaxdiff.training.parallel import packed
from jaxdiff.training.state import leaves_by_path

RNG = np.random.default_rng(0)
PARAMS = {
    "in": {"kernel": RNG.standard_normal((3, 4)).astype(np.float32), "bias": np.zeros(4, np.float32)},
    "out": RNG.standard_normal((4, 3)).astype(np.float32), "scale": np.ones((), np.float32),
}
DATA = {"x": RNG.standard_normal((24, 3)).astype(np.float32)}
# clipped at first and not later, so that both of its branches are seen; decayed; averages of two kinds
OPTIMIZER, AVERAGES = adamw(0.05, nesterov=True, weight_decay=0.1, clip=2.0), (2.0, "power:0.1")
ITEMS, KEY = np.arange(24, dtype=np.int32).reshape(2, 12), np.array([0, 3], np.uint32)
DISPATCHES = 9


def loss(params, batch, keys, strata, step):
    noise = jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)
    h = jnp.tanh((batch["x"] + noise) @ params["in"]["kernel"] + params["in"]["bias"][None])
    return ((params["scale"] * h @ params["out"] - noise) ** 2).sum(-1)


def state_of(params=PARAMS):
    return jax.device_get(init_state(params, OPTIMIZER, AVERAGES))


def dispatch_of(**options):
    update = make_update(loss, OPTIMIZER, AVERAGES, **options)
    return make_dispatch(update, lambda resident, item: {"x": resident["x"][item]})


@pytest.fixture(scope="module")
def of_arrays():
    """The last state, and the metrics of each dispatch, where nothing is packed."""
    step, state, metrics = jax.jit(dispatch_of()), state_of(), []
    for _ in range(DISPATCHES):
        state, seen = step(state, DATA, ITEMS, KEY)
        metrics.append(jax.device_get(seen))
    return jax.device_get(state), metrics


def test_a_packed_state_comes_back_as_it_was():
    state = state_of()
    state = state.replace(ema=(jax.tree.map(lambda a: a + 1, state.params), state.ema[1]))
    small = pack(state, form_of(PARAMS))
    assert len(jax.tree.leaves(state)) == 22
    # parameters, two averages, two moments, and the counters of steps and moments
    assert sorted(np.shape(leaf) for leaf in jax.tree.leaves(small)) == [(), (), *[(29,)] * 5]
    assert isinstance(small.params, Packed) and small.params.vector.dtype == np.float32
    again = unpack(small)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, again, state)
    assert fingerprint(again) == fingerprint(state)
    assert all(np.shares_memory(leaf, small.params.vector) for leaf in jax.tree.leaves(again.params))


@pytest.mark.parametrize(
    "params, why",
    [({"a": np.zeros(3, np.float32)}, "one array"),
     ({"a": np.zeros(3, np.float32), "b": np.zeros(3, np.float16)}, "two dtypes"),
     ({"a": np.zeros(MOST, np.float32), "b": np.zeros(1, np.float32)}, "large")],
)  # fmt: skip
def test_few_large_or_mixed_arrays_stay_as_they_are(params, why):
    layout = parallel("jit", jax.devices()[:1])
    assert packed(layout, params) is layout, why


def test_a_state_that_is_cut_over_devices_stays_as_it_is():
    layout = parallel("jit", mesh="data=4,fsdp=2")
    assert packed(layout, PARAMS) is layout


@pytest.mark.keys_again
@pytest.mark.parametrize(
    "mode, devices, nonfinite", [("jit", 1, "skip"), ("jit", 4, "stop"), ("pmap", 4, "stop")]
)
def test_updates_of_packed_states_are_those_of_arrays(of_arrays, mode, devices, nonfinite):
    (state, all_metrics), norms = of_arrays, []
    layout = packed(parallel(mode, jax.devices()[:devices]), PARAMS)
    step = layout.compile(dispatch_of(nonfinite=nonfinite), state_of())
    small, resident, key = layout.place(state_of()), layout.replicate(DATA), layout.replicate(KEY)
    assert len(jax.tree.leaves(small)) == 7
    for wanted in all_metrics:
        small, metrics = step(small, resident, layout.shard(ITEMS), key)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), layout.fetch(metrics), wanted)
        norms.extend(wanted["grad_norm"])
    assert min(norms) < 2 < max(norms)
    got = layout.fetch(small)
    assert jax.tree.structure(got) == jax.tree.structure(state)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got, state)


@pytest.mark.slow
def test_a_run_keeps_its_arrays_by_name(tmp_path):
    """What is returned, saved, restored and handed to pictures are the network's own arrays."""
    seen = []
    settings = dict(
        batch_size=8, optimizer=OPTIMIZER, ema=AVERAGES, checkpoint_every=2, picture_every=2, out=tmp_path,
        picture=lambda step, params: seen.append(params), parallel="jit", config={"job": 1}, progress=False,
    )
    fit(PARAMS, loss, DATA, steps=2, **settings)
    state = fit(PARAMS, loss, DATA, steps=4, **settings)
    whole = fit(PARAMS, loss, DATA, steps=4, **settings | {"out": None})
    assert leaves_by_path(state).keys() == leaves_by_path(state_of()).keys()
    assert fingerprint(state) == fingerprint(whole)
    assert jax.tree.map(np.shape, seen[-1]) == jax.tree.map(np.shape, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, seen[-1], state.ema[0])


@pytest.mark.slow
def test_an_optimizer_of_ones_own_sees_the_arrays_and_an_elementwise_one_a_vector():
    """One's own may treat each array by itself, as those with a trust ratio do."""
    shapes = []

    def update(grads, state, params):
        shapes.append([leaf.shape for leaf in jax.tree.leaves(grads)])
        return jax.tree.map(jnp.zeros_like, grads), state

    own = optax.GradientTransformation(lambda params: (), update)
    for optimizer in (own, Elementwise(*own)):
        fit(PARAMS, loss, DATA, steps=1, batch_size=8, optimizer=optimizer, parallel="jit", progress=False)
    arrays, vector = [leaf.shape for leaf in jax.tree.leaves(PARAMS)], [(29,)]
    assert [shape for k, shape in enumerate(shapes) if shape not in shapes[:k]] == [arrays, vector]
    assert isinstance(OPTIMIZER, Elementwise)
