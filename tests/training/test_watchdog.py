"""A process that is stuck ends by itself, with the reason."""

import concurrent.futures
import os
import subprocess
import sys
import textwrap
import time

import pytest

from jaxdiff.training import launch
from jaxdiff.training.watchdog import STUCK, Peers


def run(script, *words):
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", textwrap.dedent(script), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=100, env=environment)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """What became of each script; they wait more than they compute, so all start with the first."""
    out = tmp_path_factory.mktemp("stuck") / "run"
    scripts = {
        "call": (BLOCKED, "CDLL"), "call with the lock": (BLOCKED, "PyDLL"), "patient": (PATIENT,),
        "device": (STUCK_RUN, str(out)),
    }  # fmt: skip
    with concurrent.futures.ThreadPoolExecutor(len(scripts)) as pool:
        runs = {name: pool.submit(run, *words) for name, words in scripts.items()}
        yield lambda name: (runs[name].result(), out)


BLOCKED = """
    import ctypes, sys, time
    from jaxdiff.training.watchdog import Watchdog
    steps = iter([0, 1, 2])
    last = [0]
    def pulse():
        last[0] = next(steps, last[0])
        return last[0]
    begin = time.monotonic()
    with Watchdog(1.0, pulse):
        time.sleep(1.2)
        getattr(ctypes, sys.argv[1])(None).sleep(500)
"""


@pytest.mark.slow
def test_a_call_that_never_returns_is_ended(ended):
    done, _ = ended("call")
    assert done.returncode == STUCK
    assert "no update beyond step 2 within 1 s: this process is alive, but not stepping" in done.stderr
    assert 'line 12 in <module>' in done.stderr, "the stack tells where"


@pytest.mark.slow
def test_a_call_that_holds_pythons_lock_is_ended_too(ended):
    done, _ = ended("call with the lock")
    assert done.returncode == 1 and "Timeout" in done.stderr


PATIENT = """
    import time
    from jaxdiff.training.watchdog import Watchdog
    value, limit = [0], 2.0
    with Watchdog(limit, lambda: value[0], startup=60) as dog:
        time.sleep(1.4 * limit)  # the first step compiles
        for _ in range(6):
            value[0] += 1
            time.sleep(limit / 4)
        with dog.patience():
            time.sleep(1.4 * limit)
    print("done")
"""


@pytest.mark.slow
def test_nothing_ends_while_there_is_progress_patience_or_a_start(ended):
    done, _ = ended("patient")
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


STUCK_RUN = """
    import sys, time
    import jax, jax.numpy as jnp, numpy as np
    from jaxdiff.training import fit

    def wait(step):
        if step == 5:
            time.sleep(500)
        return np.float32(0)

    def loss(params, batch, keys, strata, step):
        return batch["x"] @ params["w"] + jax.pure_callback(wait, jax.ShapeDtypeStruct((), jnp.float32), step)

    fit({"w": np.ones(3, np.float32)}, loss, {"x": np.ones((8, 3), np.float32)}, steps=50, batch_size=4,
        out=sys.argv[1], checkpoint_every=4, log_every=1, watchdog=2)
"""


@pytest.mark.slow
def test_a_run_whose_device_is_stuck_is_ended_and_its_checkpoint_stays(ended):
    done, out = ended("device")
    assert done.returncode == STUCK, done.stderr
    assert "no update beyond step 5 within 2 s" in done.stderr and "in fit" in done.stderr
    from jaxdiff.training import restore

    assert restore(out / "checkpoints")[0] == 4


class Store(dict):
    """What the coordinator keeps."""

    def key_value_set(self, key, value, allow_overwrite=False):
        self[key] = value

    def key_value_try_get(self, key):
        return self[key]


class Lost(Store):
    def key_value_set(self, *words, **options):
        raise RuntimeError("DEADLINE_EXCEEDED")


@pytest.mark.slow
def test_peers_say_who_is_gone_and_who_is_stuck():
    store, limit = Store(), 2.0
    first, second = (Peers(store, i, 3, limit) for i in range(2))
    first.tell(5)
    second.tell(7)
    time.sleep(limit)
    assert first.say() == "process 2 of 3 is gone"
    third = Peers(store, 2, 3, limit)
    third.tell(6)
    time.sleep(limit / 2)
    stuck = "every process is alive, but they are not stepping (process 1 at step 7, process 2 at step 6)"
    assert first.say() == stuck
    alone = Peers(Lost(), 1, 2, limit)
    time.sleep(limit)
    assert "process 0, the coordinator, is gone" in alone.say()


TWO = """
    import ctypes, sys, time
    import jax
    port, index, limit = sys.argv[1], int(sys.argv[2]), 3.0
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, index, coordinator_bind_address=f"127.0.0.1:{port}")
    from jaxdiff.training.watchdog import Watchdog, peers
    value = [0]
    with Watchdog(limit, lambda: value[0], peers(limit)):
        for value[0] in range(1, 8 + index):
            time.sleep(0.1)
        print("stuck", flush=True)
        time.sleep(500)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stuck", "gone"])
def test_two_processes_know_which_it_is(kind):
    """The other one stands still in its loop, or does not run any more (SIGSTOP: its sockets stay open)."""
    import signal

    port = str(launch.free_port())
    environment = os.environ | {"XLA_FLAGS": "", "NPROC": "16", "PYTHONPATH": os.pathsep.join(sys.path)}
    both = [
        subprocess.Popen([sys.executable, "-c", textwrap.dedent(TWO), port, str(i), kind], env=environment,
                         stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for i in range(2)
    ]
    try:
        for process in both:
            assert process.stdout.readline() == "stuck\n"
        if kind == "gone":
            both[1].send_signal(signal.SIGSTOP)
        begin = time.monotonic()
        error = both[0].communicate(timeout=90)[1]
        assert both[0].returncode == STUCK and time.monotonic() - begin < 60
        if kind == "gone":
            assert "no update beyond step 7 within 3 s: process 1 of 2 is gone" in error
        else:
            assert "every process is alive, but they are not stepping (process 1 at step 8)" in error
    finally:
        for process in both:
            process.kill()
            process.wait()
