"""XLA's threads on a CPU."""

import contextlib
import os
import subprocess
import sys
import textwrap
import threading

import jax
import pytest

from jaxdiff.cli import main, threads
from jaxdiff.cli.again import Replay
from jaxdiff.cli.commands import Evaluate, threads_of
from jaxdiff.cli.config import Train

SEEN = """
import os
from jaxdiff.cli import threads
with threads.at_most({count}):
    import jax
    jax.devices()
assert "NPROC" not in os.environ
names = [open(f"/proc/self/task/{{task}}/comm").read() for task in os.listdir("/proc/self/task")]
print(sum(name.startswith("tf_XLA") for name in names))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="threads are counted there")
def test_the_backend_starts_with_so_many_threads(one_device):
    alone = {name: value for name, value in one_device.items() if name != "NPROC"}
    one, three = (
        int(subprocess.check_output([sys.executable, "-c", SEEN.format(count=count)], env=alone, text=True))
        for count in (1, 3)
    )
    assert 0 < one < three


def test_several_devices_and_a_count_of_the_users_are_left_alone(monkeypatch):
    monkeypatch.delenv("NPROC")
    with threads.at_most(1):  # XLA_FLAGS ask for eight devices
        assert "NPROC" not in os.environ
    monkeypatch.setenv("XLA_FLAGS", "")
    monkeypatch.setattr(threads.importlib.metadata, "entry_points", lambda group: ["an accelerator"])
    with jax_platforms(None), threads.at_most(1):
        assert "NPROC" not in os.environ
    with jax_platforms("cpu"), threads.at_most(1):
        assert os.environ["NPROC"] == "1"
    assert "NPROC" not in os.environ
    monkeypatch.setenv("NPROC", "5")
    with jax_platforms("cpu"), threads.at_most(1):
        assert os.environ["NPROC"] == "5"
    assert os.environ["NPROC"] == "5"


@contextlib.contextmanager
def jax_platforms(value):
    old = jax.config.jax_platforms
    jax.config.update("jax_platforms", value)
    yield
    jax.config.update("jax_platforms", old)


def test_whose_threads_they_are(tmp_path):
    assert threads_of(Train()) == 1 and threads_of(Train(threads=0)) == 0
    assert threads_of(Train(data="moons")) == 1 and threads_of(Train(data="npz:vectors.npz")) == 0
    assert threads_of(Train(coordinator="auto")) == 0
    (tmp_path / "config.json").write_text('{"threads": 3}')
    assert threads_of(Evaluate(str(tmp_path))) == 3
    record = tmp_path / "nonfinite-000001.json"
    assert threads_of(Replay(str(record))) == 0
    record.touch()
    assert threads_of(Replay(str(record))) == 3


def test_a_negative_count(capsys):
    assert main(["train", "--threads", "-1"]) == 2
    assert "expected threads to be an integer of at least 0, got -1" in capsys.readouterr().err


def test_a_thread_beside_gives_its_result_or_its_error_when_asked():
    begun, go_on = threading.Event(), threading.Event()

    def work():
        begun.set()
        go_on.wait(10)
        return 5

    result = threads.meanwhile(work)
    assert begun.wait(10)  # it runs while this goes on
    go_on.set()
    assert result() == 5

    def fail():
        raise ValueError("its own")

    with pytest.raises(ValueError, match="its own"):
        threads.meanwhile(fail)()


def test_a_command_that_ends_early_ends_with_its_own_exit_code():
    """A thread that the interpreter kills within compiled code aborts the process."""
    script = """
        import sys, time
        from jaxdiff.cli import threads
        threads.meanwhile(lambda: (time.sleep(0.5), print("made")))
        sys.exit(3)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "made\n"), done.stderr
