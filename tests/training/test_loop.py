"""Resume, interruption, numbers that are not finite: on a small network that compiles in no time."""

import json
import os
import shutil
import signal
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff.training as training
from jaxdiff.data.arrays import batch_indices
from jaxdiff.training import Interrupted, checkpoints, fingerprint, fit, loop, read_log
from jaxdiff.training.parallel import parallel
from jaxdiff.training.progress import Progress
from jaxdiff.training.recorder import Recorder

X = np.random.default_rng(0).standard_normal((50, 3)).astype(np.float32)
STEPS = 30


def loss(params, batch, keys, strata, step):
    index, total = strata
    noise = jax.vmap(lambda k: jax.random.normal(k, (3,)))(keys)
    scale = ((index + 0.5) / total)[:, None]
    return jnp.mean((jnp.tanh(batch["x"] + scale * noise) @ params["w"] - noise) ** 2, axis=-1)


def train(out=None, loss=loss, **options):
    params = {"w": np.eye(3, dtype=np.float32)}
    settings = {
        "steps": STEPS, "batch_size": 16, "optimizer": training.adamw(0.01), "checkpoint_every": 10,
        "log_every": 5, "progress": False, "ema": (4.0, 40.0),
    }
    return fit(params, loss, {"x": X}, out=out, **settings | options)


def stop_at(step, number=signal.SIGINT):
    """A picture hook that sends this process a signal after `step`."""
    return {"picture_every": 1,
            "picture": lambda at, params: at == step and os.kill(os.getpid(), number)}


@pytest.fixture(scope="module")
def straight():
    return fingerprint(train())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("finished") / "run"
    train(out)
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


@pytest.mark.parametrize("mode", ["jit", "pmap"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_ends_with_the_bits_of_one_that_was_not(tmp_path, mode, number):
    whole = train(parallel=mode)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=f"{number.name} at step 15, saved in") as caught:
        train(tmp_path / "run", parallel=mode, **stop_at(15, number))
    assert (caught.value.number, caught.value.step) == (number, 15)
    assert signal.getsignal(number) is before
    assert training.restore(tmp_path / "run" / "checkpoints")[0] == 15
    resumed = train(tmp_path / "run", parallel=mode)
    assert fingerprint(resumed) == fingerprint(whole) and resumed.step == STEPS
    steps = [line["step"] for line in read_log(tmp_path / "run") if "loss" in line]
    assert steps == [5, 10, 15, 20, 25, 30]


@pytest.mark.slow
def test_steps_to_keep_are_met_after_a_stop_between_dispatches(tmp_path, straight, monkeypatch):
    """And the watchdog allows for the second program, which the start of the run does not cover."""
    events, patience, after = [], Recorder.patience, Recorder.after

    def followed(self, step, *rest):
        events.append(step)
        after(self, step, *rest)
        events.append(step)

    kept = {"keep": 1, "checkpoint_every": 5, "keep_every": 10}
    with pytest.raises(Interrupted, match="at step 7"):
        train(tmp_path, **kept, **stop_at(7))
    monkeypatch.setattr(Recorder, "patience", lambda self: events.append("patience") or patience(self))
    monkeypatch.setattr(Recorder, "after", followed)
    assert fingerprint(train(tmp_path, **kept, updates_per_dispatch=5)) == straight
    assert checkpoints.steps(tmp_path / "checkpoints") == [30, 20, 10]
    at = [index for index, event in enumerate(events) if event in (10, 15, 20)]
    assert events[at[1] : at[2] + 1] == [10, "patience", 15] and events[at[3] : at[4] + 1] == [15, 20]


@pytest.mark.slow
def test_other_devices_continue_to_rounding_and_it_is_said(tmp_path, capsys):
    whole = train(parallel="pmap")
    with pytest.raises(Interrupted):
        train(tmp_path / "run", parallel="pmap", **stop_at(15))
    capsys.readouterr()
    resumed = train(tmp_path / "run", parallel="jit")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), resumed, whole)
    assert "trained by pmap on 8 devices and continues by jit on 8" in capsys.readouterr().err


def test_a_finished_run_is_not_trained_further(run, straight, capsys):
    assert not (run / "snapshots").exists(), "half-lives alone need none"
    assert fingerprint(train(run)) == straight
    assert "from step 30" in capsys.readouterr().err


@pytest.mark.slow
def test_updates_per_dispatch_see_the_same_batches_and_keys(straight):
    state = train(updates_per_dispatch=4)  # the last dispatch has two
    single = train()
    assert fingerprint(single) == straight
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), state, single)


def test_a_damaged_checkpoint_is_made_again(run, straight, capsys):
    shutil.rmtree(run / "checkpoints" / "30" / "state")
    assert fingerprint(train(run)) == straight
    error = capsys.readouterr().err
    assert "checkpoint 30 is not whole" in error and "from step 20" in error
    assert training.restore(run / "checkpoints")[0] == 30
    assert (run / "broken-checkpoint-30").is_dir()


def test_lost_checkpoints_are_no_fresh_start(run):
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(ValueError, match="the log tells of step 30.*got none"):
        train(run)


def test_another_configuration_is_refused_by_name(run):
    with pytest.raises(ValueError, match="batch_size: the run has 16, now 32; seed: the run has 0, now 1"):
        train(run, batch_size=32, seed=1)
    train(run, checkpoint_every=7, log_every=3)  # these change nothing that is trained


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tmp_path):
    def breaks_at_25(params, batch, keys, strata, step):
        return loss(params, batch, keys, strata, step) / (params["count"] > -24.5)

    params = {"w": np.eye(3, dtype=np.float32), "count": np.zeros((), np.float32)}
    count_down = optax.multi_transform(
        {"w": optax.sgd(0.01), "count": optax.stateless(lambda g, p: jax.tree.map(
            lambda a: None if a is None else -jnp.ones_like(a), g))},
        {"w": "w", "count": "count"},
    )
    with pytest.raises(FloatingPointError, match="loss inf .* at step 26; checkpoint 20 in"):
        fit(params, breaks_at_25, {"x": X}, steps=STEPS, batch_size=16, optimizer=count_down,
            out=tmp_path, checkpoint_every=10, progress=False)
    step, fields = training.restore(tmp_path / "checkpoints")
    assert step == 20 and fields["params"]["count"] == -20
    assert {"event": "not finite", "step": 26} in read_log(tmp_path)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"steps": 2.5}, "steps to be an integer of at least 1, got 2.5"),
        ({"log_every": 0}, "log_every to be an integer of at least 1, got 0"),
        ({"seed": -1}, "seed to be an integer of at least 0, got -1"),
        ({"picture_every": -1}, "picture_every to be an integer of at least 0"),
        ({"batch_size": 16.0}, "batch_size to be an integer, got 16.0"),
        ({"parallel": "ddp"}, "unknown mode 'ddp'"),
        ({"nonfinite": "ignore"}, "unknown nonfinite 'ignore'"),
        ({"ema": ("power:1",)}, "width in"),
        ({"checkpoint_every": 4, "keep_every": 10}, "keep_every to be a multiple of checkpoint_every"),
        ({"watchdog": -1}, "watchdog to be finite and at least 0, got -1"),
    ],
)
def test_settings_out_of_range_are_named_and_nothing_is_written(options, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_labels_are_checked_against_the_networks_classes():
    def labelled(params, batch, keys, strata, step):
        return loss(params, batch, keys, strata, step)

    labelled.num_classes = 3
    data = {"x": X, "label": np.arange(50) % 4}
    with pytest.raises(ValueError, match="below the network's 3 classes, got int64 from 0 to 3"):
        fit({"w": np.eye(3, dtype=np.float32)}, labelled, data, steps=3, batch_size=8, progress=False)


def test_the_log_holds_the_mean_loss_since_the_line_before(tmp_path):
    train(tmp_path / "fine", log_every=1)
    seen = {line["step"]: line["loss"] for line in read_log(tmp_path / "fine") if "loss" in line}
    train(tmp_path / "coarse", log_every=10)
    for line in read_log(tmp_path / "coarse"):
        if "loss" in line:
            mean = np.mean([seen[line["step"] - i] for i in range(10)])
            np.testing.assert_allclose(line["loss"], mean, rtol=1e-5)
            assert line["steps_per_second"] > 0


def test_pictures_get_the_served_average_at_their_steps():
    seen = {}
    state = train(picture=lambda step, params: seen.update({step: params}), picture_every=12)
    assert sorted(seen) == [12, 24]
    assert not np.array_equal(seen[12]["w"], seen[24]["w"])
    again = train(picture=lambda step, params: seen.update({step: params}), picture_every=30)
    np.testing.assert_array_equal(seen[30]["w"], again.ema[0]["w"])
    assert fingerprint(again) == fingerprint(state)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 12, "parallel": "pmap"}, "8 devices"),
        ({"steps": 0}, "steps"),
        ({"parallel": "pmup"}, "pmap"),
    ],
)
def test_bad_settings_leave_no_directory(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


SCRIPT = """
import importlib.util, json, sys, time
spec = importlib.util.spec_from_file_location("t", sys.argv[1])
t = importlib.util.module_from_spec(spec); spec.loader.exec_module(t)
def picture(step, params):
    print(step, flush=True)
    time.sleep(500 * (step == int(sys.argv[3])))  # until it is killed
state = t.train(sys.argv[2], parallel="jit", picture=picture, picture_every=1)
print(json.dumps(t.fingerprint(state)))
"""


@pytest.fixture
def start(forked, tmp_path):
    """Starts a run in a process of its own, which prints its steps and, at the end, its fingerprint."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    modules = "pytest", "jaxdiff.training", "orbax.checkpoint"
    return lambda out, last=0: forked([script, __file__, out, last], modules)


@pytest.mark.slow
def test_kill_9_loses_nothing_but_the_steps_since_the_checkpoint(start, tmp_path):
    whole = start(tmp_path / "whole").communicate(timeout=120)[0].splitlines()[-1]
    for last, saved in ((13, "10"), (25, "20")):
        process = start(tmp_path / "killed", last)
        process.until(str(last))
        until = time.time() + 60
        while not (tmp_path / "killed" / "checkpoints" / saved).is_dir() and time.time() < until:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert process.returncode == -signal.SIGKILL
        time.sleep(0.1)
    resumed = start(tmp_path / "killed").communicate(timeout=120)[0].splitlines()
    assert resumed[0] == "21" and json.loads(resumed[-1]) == json.loads(whole)


def breaks(*bad):
    """The loss, not a number at the updates of these numbers."""
    def broken(params, batch, keys, strata, step):
        at = jnp.any(step + 1 == jnp.array(bad)[:, None], axis=0)
        return jnp.where(at, jnp.nan, loss(params, batch, keys, strata, step))

    return broken


@pytest.mark.slow
def test_skipped_steps_are_counted_told_and_resumed(tmp_path):
    options = {"loss": breaks(7, 8, 13), "nonfinite": "skip", "parallel": "pmap", "log_every": 2}
    whole = train(tmp_path / "whole", **options)
    assert whole.step == STEPS and np.isfinite(whole.params["w"]).all()
    log = read_log(tmp_path / "whole")
    assert [line["step"] for line in log if line.get("event") == "not finite"] == [7, 8, 13]
    lines = {line["step"]: line for line in log if "loss" in line}
    assert [lines[step]["skipped"] for step in range(2, 17, 2)] == [0, 0, 0, 2, 0, 0, 1, 0]
    assert lines[8]["loss"] is None and np.isfinite(lines[14]["loss"])
    record = json.loads((tmp_path / "whole" / "nonfinite-000013.json").read_text())
    assert record["indices"] == batch_indices(50, 16, 0, 12).tolist() and record["nonfinite"] == "skip"
    np.testing.assert_array_equal(record["key"], jax.random.key_data(jax.random.key(0)))
    with pytest.raises(Interrupted):
        train(tmp_path / "run", **options, **stop_at(13))
    assert fingerprint(train(tmp_path / "run", **options)) == fingerprint(whole)


def test_data_that_cannot_be_read_are_no_directory_that_cannot_be_written(tmp_path, monkeypatch):
    def read(step, count):
        raise OSError("the disk of the data")

    make_feed = loop.make_feed
    monkeypatch.setattr(loop, "make_feed", lambda *arguments: make_feed(*arguments)._replace(items=read))
    with pytest.raises(OSError, match="the disk of the data") as caught:
        train(tmp_path)
    assert not isinstance(caught.value, training.CannotSave)


def test_too_many_skips_in_a_row_end_the_run(tmp_path):
    with pytest.raises(FloatingPointError, match="at step 17, the last of 3 updates in a row; checkpoint 10"):
        train(tmp_path, loss=breaks(12, 13, 15, 16, 17, 18), nonfinite="skip", skip_limit=3)
    assert training.restore(tmp_path / "checkpoints")[0] == 10


def test_operations_are_told_where_the_peak_is_known(tmp_path, finished):
    train(tmp_path, peak_flops=1e6, parallel="pmap", log_every=STEPS)
    line = next(line for line in read_log(tmp_path) if "loss" in line)
    operations = line["model_flops_utilization"] * 8 * 1e6 / line["steps_per_second"]
    assert 16 * 2 * 2 * 9 < operations < 16 * 2 * 9 * 40  # two products of 16 rows, and what is beside them
    assert not any("model_flops_utilization" in line for line in read_log(finished))


def test_numbers_of_numpy_and_data_that_are_no_arrays(tmp_path):
    train(tmp_path / "run", steps=np.int64(2), seed=np.int64(3), checkpoint_every=5)
    assert read_log(tmp_path / "run")[-1]["step"] == 2
    with pytest.raises(ValueError, match=r"arrays or Examples, such as dataset.examples\(\), got list"):
        fit({"w": X}, loss, [X], steps=1)
    with pytest.raises(ValueError, match="seed to be below 2\\^32, got 4294967296"):
        train(seed=2**32)


def test_narrow_numbers_are_looked_at_and_logged_whole(tmp_path):
    def ones(params, batch, keys, strata, step):
        return jnp.ones(len(batch["x"]), jnp.bfloat16) + 0 * params["w"].sum()

    x, params = X.astype(jnp.bfloat16), {"w": np.ones(3, jnp.bfloat16)}
    settings = {"steps": 600, "batch_size": 8, "log_every": 600, "checkpoint_every": 600, "progress": False}
    fit(params, ones, {"x": jnp.asarray(x)}, out=tmp_path / "run", **settings)
    assert [line["loss"] for line in read_log(tmp_path / "run") if "loss" in line] == [1.0]
    x[7, 1] = np.nan
    with pytest.raises(ValueError, match=r"expected finite data, got nan in x at index \(7, 1\)"):
        fit(params, ones, {"x": jnp.array(x)}, **settings)


def test_a_signal_after_the_last_update_is_obeyed_and_the_watchdog_guards_the_last_checkpoint(
    tmp_path, monkeypatch
):
    threads, leave = [], training.Checkpoints.__exit__

    def leaving(*arguments):
        threads.extend(thread.name for thread in threading.enumerate())
        os.kill(os.getpid(), signal.SIGTERM)
        leave(*arguments)

    monkeypatch.setattr(training.Checkpoints, "__exit__", leaving)
    with pytest.raises(Interrupted, match="SIGTERM at step 30, saved in"):
        train(tmp_path, watchdog=100)
    assert "watchdog" in threads
    assert training.restore(tmp_path / "checkpoints")[0] == STEPS


@pytest.mark.parametrize("mode", ["jit", "pmap"])
def test_the_pulse_counts_updates(mode):
    layout = parallel(mode)
    progress = Progress(5, STEPS, layout, None, 50, None, 16, show=False)
    losses = np.ones(3) if mode == "jit" else np.ones((8, 3))
    progress.push({"loss": jax.block_until_ready(jnp.array(losses))})
    assert progress.pulse() == 8


def test_no_second_state_is_held_on_the_first_device(monkeypatch):
    seen = []
    monkeypatch.setattr(loop, "_loop", lambda state, *rest: seen.append(state))
    train()
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(seen))
