import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.training import Checkpoints, fingerprint, init_state, restore, to_state


@pytest.fixture(scope="module")
def states():
    """Two host states of an AdamW chain (nested named tuples, empty ones among them)."""
    params = {"net": {"w": jnp.arange(6.0).reshape(2, 3), "b": jnp.ones(3, jnp.bfloat16)}}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(0.1)))
    first = init_state(params, optimizer, (10.0,)).replace(step=jnp.int32(10))
    second = jax.tree.map(lambda a: a + 1, first).replace(step=jnp.int32(20))
    return jax.device_get(first), jax.device_get(second)


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory, states):
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    with Checkpoints(directory) as checkpoints:
        for step, state in zip((10, 20), states, strict=True):
            checkpoints.save(step, state)
    return directory


@pytest.fixture
def saved(saved_once, tmp_path):
    return shutil.copytree(saved_once, tmp_path / "checkpoints")


def largest_file(directory):
    files = [os.path.join(d, name) for d, _, names in os.walk(directory) for name in names]
    return max((f for f in files if "/state/" in f), key=os.path.getsize)


def test_the_newest_comes_back_bit_for_bit_in_its_structure(saved, states):
    step, fields = restore(saved)
    state = to_state(fields, jax.eval_shape(lambda: jax.tree.map(jnp.asarray, states[0])))
    assert step == 20 and jax.tree.structure(state) == jax.tree.structure(states[1])
    assert fingerprint(state) == fingerprint(fields) == fingerprint(states[1])
    jax.tree.map(np.testing.assert_array_equal, state, states[1])


def flip(directory):
    path = largest_file(directory)
    content = bytearray(open(path, "rb").read())
    content[len(content) // 2] ^= 1
    open(path, "wb").write(content)


def flip_without_seal(directory):
    (directory / "files.json").unlink()
    flip(directory)


def truncate(directory):
    path = largest_file(directory)
    os.truncate(path, os.path.getsize(path) // 2)


def empty(directory):
    shutil.rmtree(directory)
    os.makedirs(directory)


@pytest.mark.parametrize("damage", [flip, flip_without_seal, truncate, empty])
def test_a_damaged_checkpoint_is_passed_over_and_said(saved, states, damage):
    damage(saved / "20")
    lines = []
    step, fields = restore(saved, lines.append)
    assert step == 10 and fingerprint(fields) == fingerprint(states[0])
    assert len(lines) == 1 and "checkpoint 20 is not whole" in lines[0]
    assert "falling back to checkpoint 10" in lines[0]


def test_a_torn_checkpoint_makes_no_noise(saved, capfd):
    truncate(saved / "20")
    restore(saved, lambda line: None)
    assert capfd.readouterr() == ("", "")


def test_a_checkpoint_without_a_seal_is_read(saved):
    (saved / "20" / "files.json").unlink()
    assert restore(saved)[0] == 20


def test_a_checkpoint_under_another_steps_name_is_not_whole(saved):
    (saved / "20").rename(saved / "30")
    assert restore(saved, lambda line: None)[0] == 10


def test_no_whole_checkpoint_is_an_error_and_none_at_all_is_none(saved, tmp_path):
    truncate(saved / "20")
    shutil.rmtree(saved / "10" / "record")
    with pytest.raises(ValueError, match="expected a whole checkpoint.*20: .*10: "):
        restore(saved)
    assert restore(tmp_path / "nothing") is None


def test_only_the_newest_are_kept(tmp_path, states):
    told = []
    with Checkpoints(tmp_path / "c", keep=2, committed=told.append) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, states[0])
        checkpoints.save(3, states[1])  # saved already: left as it is
    assert sorted(p.name for p in (tmp_path / "c").iterdir()) == ["2", "3"]
    assert told == [1, 2, 3]


def test_another_model_is_named(saved, states):
    _, fields = restore(saved)
    wider = jax.tree.map(lambda a: a, states[0])
    wider.params["net"]["w"] = np.zeros((2, 4), np.float32)
    with pytest.raises(ValueError, match=r"params/net/w of shape \(2, 4\).*got \(2, 3\)"):
        to_state(fields, wider)
    more = jax.tree.map(lambda a: a, states[0])
    more.params["net"]["gate"] = np.zeros(3, np.float32)
    with pytest.raises(ValueError, match="params/net/gate"):
        to_state(fields, more)
