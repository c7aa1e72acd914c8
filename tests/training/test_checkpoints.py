import os
import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdiff.training import (
    CannotSave,
    Checkpoints,
    fingerprint,
    fit,
    init_state,
    read_record,
    restore,
    to_state,
)
from jaxdiff.training import checkpoints as checkpoints_
from jaxdiff.training.checkpoints import steps


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


def test_every_file_is_guarded_against_truncation_a_flipped_byte_and_loss(saved, states):
    whole, damaged = shutil.copytree(saved / "20", saved.parent / "whole"), saved / "20"
    names = [path.relative_to(whole) for path in whole.rglob("*") if path.is_file()]
    assert len(names) > 8
    for name in names:
        content = (whole / name).read_bytes()
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :] if content else None
        for change in (content[:middle] if content else None, flipped, None):
            if change is None and name.name == "files.json":
                continue  # a checkpoint without its seal is read, by its fingerprint
            (damaged / name).unlink() if change is None else (damaged / name).write_bytes(change)
            lines = []
            assert restore(saved, lines.append)[0] == 10, (name, change)
            assert "checkpoint 20 is not whole" in lines[0] and "back to checkpoint 10" in lines[0]
            (damaged / name).write_bytes(content)
    assert restore(saved)[0] == 20


def test_some_are_kept_by_interval(tmp_path, states):
    with Checkpoints(tmp_path, keep=1, keep_every=6) as checkpoints:
        for step in (2, 4, 6, 8, 10):
            checkpoints.save(step, states[0])
    assert steps(tmp_path) == [10, 6]


@pytest.mark.parametrize("name", ["[x]", "a\\b"])
def test_a_path_that_is_a_pattern_is_taken_as_it_is_written(name, tmp_path, states):
    with Checkpoints(tmp_path / name) as checkpoints:
        checkpoints.save(10, states[0])
    assert os.listdir(tmp_path) == [name] and os.listdir(tmp_path / name) == ["10"]
    assert fingerprint(restore(tmp_path / name)[1]) == fingerprint(states[0])


def test_a_save_that_is_not_whole_is_not_sealed(tmp_path, states, monkeypatch):
    monkeypatch.setattr(checkpoints_, "MANIFEST", "state/none")
    with pytest.raises(CannotSave, match="checkpoint 10 could not be written .orbax left out state/none"):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save(10, states[0])
    assert not (tmp_path / "10" / "files.json").exists()


def test_folders_of_other_names_are_no_steps(tmp_path):
    for name in ("7", "10", "²", "٣", "007", "x"):
        (tmp_path / name).mkdir()
    assert steps(tmp_path) == [10, 7]


def test_the_record_holds_configuration_and_versions(tmp_path, states):
    with Checkpoints(tmp_path, config={"steps": 3, "ema": ["500"]}) as checkpoints:
        checkpoints.save(10, states[0])
    record = read_record(tmp_path, 10)
    assert record["config"] == {"steps": 3, "ema": ["500"]} and record["sha256"] == fingerprint(states[0])
    assert record["versions"]["jax"] == jax.__version__
    assert set(record["versions"]) == {"jaxdiff", "python", "jax", "jaxlib", "flax", "optax",
                                       "orbax-checkpoint", "numpy"}


def test_restore_looks_no_further_than_it_is_told(saved):
    assert restore(saved, until=19)[0] == 10 and restore(saved, until=9) is None


@pytest.fixture
def disk(tmp_path):
    """A disk of one megabyte, and the function that mounts it again with other options."""
    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no small disk can be mounted here: {done.stderr.strip()}")

    if shutil.which("mount") is None:
        pytest.skip("there is no mount here")
    mount("size=1m")
    yield tmp_path, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def grown(steps, out, **options):
    """Trains so that a checkpoint holds 0.6 MB that cannot be compressed."""
    noise = np.random.default_rng(0).standard_normal(50_000).astype(np.float32)

    def loss(params, batch, keys, strata, step):
        return jnp.sum(batch["x"] * params["noise"][0], axis=-1)

    return fit({"noise": noise}, loss, {"x": np.ones((8, 2), np.float32)}, steps=steps, batch_size=8, out=out,
               optimizer=optax.sgd(0.1), ema=(5, 50), checkpoint_every=2, progress=False, **options)


@pytest.mark.slow
def test_a_full_disk_is_said_and_the_run_goes_on_once_there_is_room(disk):
    path, remount = disk
    with pytest.raises(CannotSave, match="(?s)No space left.*checkpoint 2 in .* is kept; make room"):
        grown(8, path / "run")
    assert restore(path / "run" / "checkpoints")[0] == 2
    remount("size=16m")
    assert fingerprint(grown(8, path / "run")) == fingerprint(grown(8, None))
    assert restore(path / "run" / "checkpoints")[0] == 8


@pytest.mark.slow
def test_a_read_only_disk_is_said(disk):
    path, remount = disk
    grown(2, path / "run")
    remount("ro")
    with pytest.raises(CannotSave, match="Read-only file system.*checkpoint 2 in .* is kept"):
        grown(2, path / "run")
    with pytest.raises(ValueError, match="a place for one.*Read-only file system"):
        grown(2, path / "other")
    assert restore(path / "run" / "checkpoints")[0] == 2
    remount("rw")


@pytest.mark.slow
def test_a_disk_that_fills_up_in_a_save_leaves_the_one_before(disk, states):
    path, remount = disk
    with Checkpoints(path / "c") as checkpoints:
        checkpoints.save(10, states[0])
        checkpoints.wait()
        (path / "ballast").write_bytes(bytes(shutil.disk_usage(path).free - 8192))
        with pytest.raises(CannotSave, match="checkpoint 20 could not be written"):
            checkpoints.save(20, states[1])
            checkpoints.wait()
    assert checkpoints.newest == 10 and restore(path / "c", lambda line: None)[0] == 10
