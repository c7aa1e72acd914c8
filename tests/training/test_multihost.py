"""Several processes on one machine, over loopback."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.experimental import multihost_utils

import jaxdiff
from jaxdiff.cli import main
from jaxdiff.training import Interrupted, distributed, launch, restore, runs
from jaxdiff.training.mesh import make_mesh, mesh_sizes

pytestmark = pytest.mark.slow
JOB = str(pathlib.Path(__file__).with_name("job.py"))
SIZE, STEPS, BATCH = 50, 25, 16
LIMIT = 150
PATH = {"PYTHONPATH": str(pathlib.Path(jaxdiff.__file__).parents[1])}


class Run:
    """A run directory that one group of processes after another works on."""

    def __init__(self, folder):
        self.out, self.ids, self.folder = folder / "run", folder / "ids", folder

    def start(self, processes, devices, *options):
        self.words = [open(self.folder / f"words-{i}.log", "w+") for i in range(processes)]
        environment = {"JAX_COMPILATION_CACHE_DIR": str(self.folder.parent / "cache"), **PATH}
        return launch.launch(
            ["--out", str(self.out), "--ids", str(self.ids), *options], processes, devices, heartbeat=10,
            environment=environment, output=self.words, program=(JOB,),
        )

    def said(self):
        return [pathlib.Path(file.name).read_text() for file in self.words]

    def losses(self):
        return {line["step"]: line["loss"] for line in runs.read_log(self.out) if "loss" in line}

    def until(self, step):
        """Waits until the log tells of a step."""
        begin = time.monotonic()
        while max(self.losses(), default=0) < step:
            assert time.monotonic() - begin < LIMIT, self.said()
            time.sleep(0.05)

    def seen(self, layout):
        """`{step: ids}` that the processes of a layout, by their number, supplied."""
        ids = {}
        for process in range(layout):
            for line in open(f"{self.ids}-{layout}-{process}"):
                step, part = json.loads(line)
                ids.setdefault(step, {})[process] = part
        return {step: sum((parts[i] for i in sorted(parts)), []) for step, parts in ids.items()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    run = Run(tmp_path_factory.mktemp("processes") / "whole")
    run.folder.mkdir()
    assert launch.wait(run.start(1, 8), limit=LIMIT) == [0], run.said()
    return run


@pytest.fixture(scope="module")
def moved(whole):
    """A run on two processes that loses one, goes on as one, is told to stop, and ends on four."""
    run = Run(whole.folder.parent / "moved")
    run.folder.mkdir()
    running = run.start(2, 4, "--mesh", "data=4,fsdp=2", "--pause", "0.1")
    run.until(8)
    running[1].kill()
    begin = time.monotonic()
    codes = launch.wait(running, grace=60, limit=LIMIT)
    run.lost = codes, time.monotonic() - begin, run.said()[0]
    running = run.start(1, 8, "--pause", "0.2")
    run.until(14)
    running[0].send_signal(signal.SIGTERM)
    run.stopped = launch.wait(running, limit=LIMIT), run.said()[0]
    run.ended = launch.wait(run.start(4, 2, "--parallel", "pmap"), limit=LIMIT), run.said()
    return run


def test_a_process_whose_peer_is_gone_ends_in_time_with_a_message(moved):
    codes, seconds, words = moved.lost
    assert codes[1] == -signal.SIGKILL and codes[0] not in (0, -signal.SIGKILL)
    assert seconds < 40  # a heartbeat of ten seconds, on a machine that may be busy
    # by the error of a collective, or else by the heartbeat, where the runtime ends the process itself
    assert "its peers end with it" in words or "another task died" in words


def test_sigterm_saves_at_that_step(moved):
    codes, words = moved.stopped
    assert codes == [128 + signal.SIGTERM]
    assert int(words.split("interrupted at ")[1].split()[0]) in range(14, STEPS)


def test_sigterm_to_one_of_several_ends_all_at_one_step_of_several_updates(whole):
    run = Run(whole.folder.parent / "several")
    run.folder.mkdir()
    running = run.start(2, 1, "--pause", "0.5", "--updates-per-dispatch", "2")
    run.until(4)
    running[1].send_signal(signal.SIGTERM)
    codes = launch.wait(running, grace=60, limit=LIMIT)
    words = run.said()
    assert codes == [128 + signal.SIGTERM] * 2, words
    steps = {int(said.split("interrupted at ")[1].split()[0]) for said in words}
    assert len(steps) == 1 and min(steps) in range(4, STEPS, 2), words
    assert restore(run.out / "checkpoints")[0] in steps


def test_losses_do_not_depend_on_the_processes(whole, moved):
    codes, words = moved.ended
    assert codes == [0] * 4, words
    expected, got = whole.losses(), moved.losses()
    assert sorted(got) == sorted(expected) == list(range(1, STEPS + 1))
    np.testing.assert_allclose(
        [got[step] for step in sorted(got)], [expected[step] for step in sorted(expected)], rtol=2e-5
    )


def test_a_mesh_may_lead_from_process_to_process(whole):
    run = Run(whole.folder.parent / "woven")
    run.folder.mkdir()
    codes = launch.wait(run.start(2, 4, "--mesh", "data=2,fsdp=4", "--woven"), limit=LIMIT)
    assert codes == [0, 0], run.said()
    expected, got = whole.losses(), run.losses()
    np.testing.assert_allclose([got[step] for step in expected], list(expected.values()), rtol=2e-5)
    for step, ids in run.seen(2).items():
        first, second = np.split(np.array(ids).reshape(-1, 2), 2)  # parts of two rows
        assert np.stack([first, second], axis=1).ravel().tolist() == whole.seen(1)[step]


def test_every_example_of_an_epoch_is_seen_once(whole, moved):
    """Whatever processes supplied a step, they supplied the same batch, and epochs are permutations."""
    expected = whole.seen(1)
    order = sum((expected[step] for step in range(STEPS)), [])
    for epoch in range(len(order) // SIZE):
        assert sorted(order[epoch * SIZE : (epoch + 1) * SIZE]) == list(range(SIZE))
    for layout in (1, 2, 4):
        seen = moved.seen(layout)
        complete = [step for step, ids in seen.items() if len(ids) == BATCH]
        assert len(complete) >= 5
        for step, ids in seen.items():
            if step <= max(complete):
                assert ids == expected[step]
            else:  # a process runs some steps ahead of one that was killed
                assert layout == 2 and set(ids) < set(expected[step])


def test_an_exception_on_one_process_ends_all(whole):
    run = Run(whole.folder.parent / "failing")
    run.folder.mkdir()
    begin = time.monotonic()
    running = run.start(2, 1, "--fail-at", "3")
    codes = launch.wait(running, grace=60, limit=LIMIT)
    words = run.said()
    assert codes[1] == distributed.FAILED and codes[0] not in (0, -signal.SIGKILL), (codes, words)
    assert "a fault on purpose" in words[1] and "process 1 of 2 ends" in words[1]
    assert time.monotonic() - begin < LIMIT


@pytest.mark.parametrize("given, words", [
    (("nowhere",), "auto or HOST:PORT"), (("127.0.0.1:1", 2, 2), "process_id in"),
    (("auto", 2), "no processes"), (("127.0.0.1:1", 2, 0, 0), "heartbeat of at least 1"),
])
def test_numbers_that_do_not_go_together(given, words):
    with pytest.raises(ValueError, match=words):
        distributed.join(*given)


def test_alone_nothing_is_sent():
    assert distributed.first() and not distributed.several()
    tree = {"x": np.array([-0.0, np.nan], np.float32)}
    assert distributed.broadcast(tree) is tree
    with distributed.together():
        distributed.check_same("settings", os.getcwd())
    assert make_mesh(mesh_sizes("data=4,fsdp=2", 8), jax.devices()).shape["fsdp"] == 2


def test_every_process_asks_by_the_number_of_the_call(monkeypatch):
    """Steps will not do: jax stops at the greatest number and one, which is no multiple of two."""
    asked = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", asked.append)
    for _ in range(2):  # two runs of one process: it counts on
        with distributed.stop_together() as stop:
            stop()
            stop()
    assert asked == list(range(asked[0], asked[0] + 4))


def test_processes_that_were_stopped_wait_for_the_one_that_still_writes(monkeypatch):
    names = []
    monkeypatch.setattr(multihost_utils, "sync_global_devices", names.append)
    monkeypatch.setattr(distributed, "several", lambda: True)
    with pytest.raises(Interrupted, match="at step 3"), distributed.together():
        raise Interrupted("at step 3", signal.SIGTERM, 3)
    assert names == ["end"]


def test_one_command_line_trains_and_samples_over_processes(whole):
    """Samples of two processes are those that one process draws from the same checkpoint."""
    run = whole.folder.parent / "cli"
    words = ["launch", "-n", "2", "--", "train", "--data", "moons", "--steps", "20", "--batch-size", "64"]
    words += ["--samples", "100", "--sample-steps", "3", "--model", "MLP-S(width=16, depth=1)"]
    words += ["--out", str(run)]
    environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(whole.folder.parent / "cache")} | PATH
    done = subprocess.run(
        [sys.executable, "-m", "jaxdiff", *words], env=environment, capture_output=True, text=True,
        timeout=LIMIT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("trained to step 20") == 1 and (run / "metrics.json").exists()
    drawn = np.load(run / "samples.npz")["x"]
    assert main(["sample", str(run), "-n", "100", "--out", str(run / "alone")]) == 0
    np.testing.assert_allclose(np.load(run / "alone.npz")["x"], drawn, atol=1e-4)


@pytest.mark.parametrize("words", [["-n", "2"], ["-n", "2", "--", "sample", "x"], ["-n", "0", "--", "train"]])
def test_launch_wants_processes_and_a_run_to_train(words, capsys):
    assert main(["launch", *words]) == 2
    assert "command: jaxdiff launch -n 2 -- train" in capsys.readouterr().err
