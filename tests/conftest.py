"""Settings that every test runs under; they have to stand before jax starts its backend."""

import gc
import importlib.metadata
import json
import os
import pathlib
import select
import signal
import subprocess
import sys
import tempfile
import threading
import time

# Eight CPU devices deadlock on two cores unless XLA's thread pool is larger than they are many.
os.environ["NPROC"] = "32"
os.environ["JAX_PLATFORMS"] = "cpu"
_FLAGS = [
    os.environ.get("XLA_FLAGS", ""),
    "--xla_force_host_platform_device_count=8",
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=20",
    "--xla_cpu_collective_call_terminate_timeout_seconds=60",
    # wrong sums in some loops over thousands of rows (jax 0.10 and 0.12): the tests hold the mathematics
    "--xla_cpu_experimental_ynn_fusion_type=",
    # tests compile more than they compute; in jax 0.10 it miscompiles now and then (test_fitted has a case)
    "--xla_backend_optimization_level=0",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if importlib.metadata.version("jaxlib") < "0.11":
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # a third of the compilation; gone since
os.environ["XLA_FLAGS"] = " ".join(_FLAGS).strip()

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src.interpreters import mlir  # noqa: E402

# one for each worker of pytest-xdist: they must not read what another is writing
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
_CACHE = os.path.join(tempfile.gettempdir(), f"jaxdiff-compilation-cache-{os.getuid()}{_WORKER}")

jax.config.update("jax_compilation_cache_dir", _CACHE)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")

# thousands of small programs are compiled: each would fill a context of MLIR anew, a tenth of all tests' time
_new_context, _contexts = mlir.make_ir_context, threading.local()


def _context():
    if not hasattr(_contexts, "one"):  # of a thread
        _contexts.one = _new_context()
    return _contexts.one


mlir.make_ir_context = _context
gc.freeze()  # what is imported by now stays
gc.set_threshold(100_000, 50, 100)


class Fork:
    """A program that runs in a fork of `warm.py`; the methods are those of a `subprocess.Popen`."""

    def __init__(self, server, words, folder):
        self._server, self._out, self._error = server, folder / "out", folder / "error"
        order = {"words": [str(word) for word in words], "out": str(self._out), "error": str(self._error)}
        self._out.touch()
        self._error.touch()
        server.stdin.write(json.dumps(order).encode() + b"\n")
        self.pid, self.returncode = int(server.stdout.readline()), None

    def poll(self, timeout=0):
        if self.returncode is None and select.select([self._server.stdout], [], [], timeout)[0]:
            self.returncode = int(self._server.stdout.readline())
        return self.returncode

    def send_signal(self, number):
        if self.poll() is None:
            os.kill(self.pid, number)

    def until(self, line, timeout=120):
        """Waits until it has printed a line."""
        end = time.monotonic() + timeout
        running = True  # before it was looked at last: the line may be the last one of all
        while line not in self._out.read_text().splitlines():
            assert running and time.monotonic() < end, self._error.read_text()
            time.sleep(0.01)
            running = self.poll() is None

    def communicate(self, timeout):
        """What it has printed on both streams, once it has ended; killed after `timeout` seconds."""
        if self.poll(timeout) is None:
            self.end()
            pytest.fail(f"not ended after {timeout} s: {self._error.read_text()[-2000:]}")
        return self._out.read_text(), self._error.read_text()

    def end(self):
        """Kills it where it runs still: the server has one fork at a time."""
        self.send_signal(signal.SIGKILL)
        self.poll(60)


@pytest.fixture(scope="session")
def one_device():
    """The environment of a process that sees one device, as users' processes do."""
    flags = " ".join(flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag)
    return os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": os.pathsep.join(sys.path)}


@pytest.fixture(scope="module")
def forked(one_device, tmp_path_factory):
    """`start(words)`: a program as behind `python`, one after the other, whose imports are done.

    The first call says which they are, and what the environment of all has beside that of `one_device`.
    """
    servers, forks = [], []

    def end():
        for fork in forks[-1:]:
            fork.end()

    def start(words, modules=(), **environment):
        if not servers:
            command = [sys.executable, str(pathlib.Path(__file__).with_name("warm.py")), *modules]
            alone = {"OPENBLAS_NUM_THREADS": "1"}  # a fork has no other threads
            servers.append(subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                env=one_device | alone | environment,
            ))  # fmt: skip
        end()
        forks.append(Fork(servers[0], words, tmp_path_factory.mktemp("fork")))
        return forks[-1]

    yield start
    end()
    for server in servers:
        server.stdin.close()
        server.wait(60)


@pytest.fixture
def x64():
    """The test runs in float64."""
    with jax.enable_x64(True):
        yield


KEYS_ARE_FOLLOWED = {
    "core", "data", "guidance", "losses", "metrics", "training", "test_likelihood.py", "test_times.py",
}


@pytest.fixture(autouse=True)
def debug_key_reuse(request):
    """In the rooms that draw, a variable that holds a key may be used once.

    Not under `@pytest.mark.keys_again`: where a test replays keys on purpose, or cuts an array of keys
    into parts, which jax's checker takes for a use of the whole.
    """
    room = request.path.relative_to(pathlib.Path(__file__).parent).parts[0]
    follow = room in KEYS_ARE_FOLLOWED and not request.node.get_closest_marker("keys_again")
    with jax.debug_key_reuse(follow):
        yield
