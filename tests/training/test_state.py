import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff import models
from jaxdiff.training import TrainState, fingerprint, init_params, init_state, parameter_count


@pytest.fixture
def state():
    params = {"dense": {"kernel": jnp.ones((2, 3)), "bias": jnp.zeros(3)}}
    return jax.device_get(init_state(params, optax.adam(1e-3), (10.0, 100.0)))


def test_no_two_leaves_share_a_buffer_and_none_is_the_callers():
    params = {"w": jnp.ones((2, 3))}
    state = init_state(params, optax.adam(1e-3), (10.0, 100.0))
    pointers = [leaf.unsafe_buffer_pointer() for leaf in jax.tree.leaves((params, state))]
    assert len(set(pointers)) == len(pointers)


def test_fingerprint_does_not_depend_on_containers(state):
    fields = {
        "params": state.params,
        "ema": list(state.ema),
        "opt_state": [{"count": state.opt_state[0].count, "mu": state.opt_state[0].mu,
                       "nu": state.opt_state[0].nu}, None],
    }
    assert fingerprint(fields) == fingerprint(state)


@pytest.mark.parametrize("field", ["params", "ema", "opt_state"])
def test_fingerprint_sees_one_bit_of_each_part(state, field):
    changed = jax.tree.map(np.array, state)
    leaf = max(jax.tree.leaves(getattr(changed, field)), key=np.size)
    leaf.reshape(-1).view(np.uint32)[0] ^= 1
    assert fingerprint(changed) != fingerprint(state)


def test_fingerprint_sees_dtype_and_shape():
    def state(leaf):
        return TrainState({"w": leaf}, (), (), np.zeros((), np.int32))

    zeros = np.zeros((2, 2), np.float32)
    prints = {fingerprint(state(a)) for a in (zeros, zeros.reshape(4), zeros.view(np.int32))}
    assert len(prints) == 3


def test_networks_of_tokens_have_initial_parameters():
    model = models.TokenTransformer(vocabulary=5, width=8, depth=0, heads=2, time=False)
    params = init_params(model, jax.random.key(0), (6,))
    assert params["tokens"]["embedding"].shape == (5, 8)


def test_parameter_count(state):
    assert parameter_count(state.params) == 9
