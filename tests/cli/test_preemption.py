"""Twenty kills in one run, by the command line alone: it ends with the bits of a run that nothing stopped."""

import functools
import json
import random
import re
import signal
import subprocess
import sys
import time

import pytest

from jaxdiff.training import fingerprint, restore

KILLS = (["kill", "term", "save", "kill", "term", "save", "start"] * 3)[:20]
STEPS, EVERY = 500, 10
LIMIT = 300  # seconds of one process, on the busiest of machines
COMMAND = (
    f"-m jaxdiff train --data moons --steps {STEPS} --batch-size 16 --checkpoint-every {EVERY} --log-every 1 "
    "--no-evaluate --ema 50 power:0.1 --model MLP-S(width=8,depth=1) --out"
)
IMPORTS = "jaxdiff.cli.commands", "jaxdiff.cli.again", "orbax.checkpoint"


class Life:
    """One process of the run, from its start to its end; `start(words)` makes it."""

    def __init__(self, start, out):
        self.out, self.begin, self.log = out, time.monotonic(), out / "log.jsonl"
        self.before = self.log.stat().st_mtime_ns if self.log.exists() else 0
        self.process = start([*COMMAND.split(), str(out)])

    def wait_for(self, happened):
        while self.process.poll() is None and not happened():
            if time.monotonic() - self.begin > LIMIT:
                self.process.send_signal(signal.SIGKILL)
                pytest.fail("it does not get there")
            time.sleep(0.0005)

    def newest(self):
        """The step of the last line of this life's log, None before its first one."""
        if not self.log.exists() or self.log.stat().st_mtime_ns == self.before:
            return None
        with open(self.log, "rb") as file:
            file.seek(max(0, self.log.stat().st_size - 4000))
            found = re.findall(rb'^\{"step": (\d+), "loss"', file.read(), re.M)
        return int(found[-1]) if found else None

    def steps_on(self, count):
        """Waits until this life has logged `count` steps."""
        self.wait_for(lambda: self.newest() is not None)
        first = self.newest()
        self.wait_for(lambda: self.newest() >= first + count)

    def end(self, number=None):
        if number is not None:
            self.process.send_signal(number)
        error = self.process.communicate(timeout=LIMIT)[1]
        found = re.search(r"continuing .* from step (\d+)", error)
        return self.process.returncode, int(found[1]) if found else None, error


def shot(life, kind, chance):
    """Ends a life at a random moment of its kind: what `Life.end` returns, and whether a save was cut off."""
    checkpoints = life.out / "checkpoints"
    if kind == "start":
        time.sleep(chance.uniform(0, 2))
    else:
        life.steps_on(chance.randint(1, 12))
    if kind == "save":
        life.wait_for(lambda: any(checkpoints.glob("*.orbax-checkpoint-tmp")))
        time.sleep(chance.uniform(0, 0.02))
    ended = life.end(signal.SIGTERM if kind == "term" else signal.SIGKILL)
    return ended, any(checkpoints.glob("*.orbax-checkpoint-tmp"))


@pytest.fixture
def start(forked, tmp_path):
    """Starts a life in a fork of a process that has its imports done."""
    return functools.partial(
        forked, modules=IMPORTS, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "cache"),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
    )  # fmt: skip


@pytest.mark.slow
def test_twenty_kills_change_no_bit(start, one_device, tmp_path):
    chance, torn, last = random.Random(0), 0, 0
    whole, out = tmp_path / "whole", tmp_path / "run"
    command = [sys.executable, *COMMAND.split(), str(whole)]  # no fork: it imports, and hashes, by itself
    subprocess.run(command, env=one_device, check=True, capture_output=True, timeout=LIMIT)
    for kind in KILLS:
        (code, step, error), torso = shot(Life(start, out), kind, chance)
        assert code == (143 if kind == "term" else -signal.SIGKILL), (kind, code, error)
        assert kind != "term" or "stopped by SIGTERM at step" in error
        if step is not None:  # it got as far as to say so
            assert step >= last, "a checkpoint that was whole has been lost"
            last = step
        torn += torso
    code, step, error = Life(start, out).end()
    assert code == 0 and last <= step < STEPS, error
    assert torn >= 2, "some saves were cut off in the middle"
    (step, fields), (end, expected) = (restore(run / "checkpoints") for run in (out, whole))
    assert step == end == STEPS and fingerprint(fields) == fingerprint(expected)
    logs = [
        [line for line in map(json.loads, (run / "log.jsonl").open()) if "loss" in line]
        for run in (out, whole)
    ]
    assert [(line["step"], line["loss"]) for line in logs[0]] == [
        (line["step"], line["loss"]) for line in logs[1]
    ]
