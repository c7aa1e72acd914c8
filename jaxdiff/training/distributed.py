"""Several processes of one run: joining, agreeing, stopping at one step, and never waiting for the dead."""

import contextlib
import itertools
import os
import signal
import sys
import traceback

import jax
import numpy as np

from jaxdiff.training.signals import Interrupted

FAILED = 1
_ASKED = itertools.count(1)  # numbers the calls of this process to `stop_together`'s `stop`


def join(coordinator, processes=None, process_id=None, heartbeat=60):
    """Makes this process one of a run's; before anything else of jax is used.

    The devices of all processes are then one machine to `fit`, which every process has to call with the same
    settings. On a GPU node and in tests, where nothing describes the cluster, all three numbers are needed.

    Args:
      coordinator: `auto` on a TPU pod, under SLURM or Open MPI; else `HOST:PORT` of process 0.
      processes: their number.
      process_id: this one's, in [0, processes).
      heartbeat: seconds after which a process that gives no sign of life counts as gone, and the others end.

    Raises:
      ValueError: for numbers that do not go together, or an address without a port.
    """
    if heartbeat < 1:
        raise ValueError(f"join: expected a heartbeat of at least 1 second, got {heartbeat}")
    limits = {"heartbeat_timeout_seconds": heartbeat, "shutdown_timeout_seconds": heartbeat}
    if coordinator == "auto":
        if processes is not None or process_id is not None:
            raise ValueError("join: expected no processes and no process_id with coordinator auto, got some")
        jax.distributed.initialize(**limits)
        return
    host, colon, port = coordinator.rpartition(":")
    if not colon or not host or not port.isdigit():
        raise ValueError(f"join: expected coordinator to be auto or HOST:PORT, got {coordinator!r}")
    if processes is None or process_id is None or not 0 <= process_id < processes:
        raise ValueError(
            f"join: expected processes and a process_id in [0, processes), got {processes} and {process_id}"
        )
    # else the coordinator would listen on every interface of the machine
    bind = {"coordinator_bind_address": coordinator} if host in ("127.0.0.1", "localhost") else {}
    jax.distributed.initialize(coordinator, processes, process_id, **bind, **limits)


def several():
    """Whether this run has more than one process."""
    return jax.process_count() > 1


def first():
    """Whether this process writes what is written once: logs, checkpoints, pictures."""
    return jax.process_index() == 0


@contextlib.contextmanager
def together(said=lambda error: None):
    """Around the work of a process of several: all end together, and an exception ends the process at once.

    Left to itself, it would wait for its peers at exit, and they for it in the next collective, for minutes.
    After a signal all have stopped at one step, and end together too.

    Args:
      said: `said(error)`, the exit code of an error that it has told, or None of one to be shown whole.
    """
    try:
        stopped = None
        try:
            yield
        except Interrupted as stop:
            stopped = stop
        if several():
            from jax.experimental import multihost_utils

            multihost_utils.sync_global_devices("end")  # one may still be writing
        if stopped is not None:
            raise stopped
    except BaseException as error:
        if not several() or isinstance(error, (SystemExit, Interrupted)):
            raise
        code = said(error)
        if code is None:
            traceback.print_exc()
        print(
            f"jaxdiff: process {jax.process_index()} of {jax.process_count()} ends "
            f"({str(error).splitlines()[0] if str(error) else type(error).__name__}); its peers end with it",
            file=sys.stderr, flush=True,
        )
        leave(FAILED if code is None else code)


def leave(code):
    """Ends this process at once, without waiting for its peers."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def broadcast(tree):
    """The first process's values of a tree of host arrays, on every process."""
    if not several():
        return tree
    from jax.experimental import multihost_utils

    def leaf(a):
        a = np.asarray(a)
        flat = np.frombuffer(a.tobytes(), np.uint8)  # a sum over processes would turn -0.0 into 0.0
        sent = multihost_utils.broadcast_one_to_all(flat)
        return np.frombuffer(np.asarray(sent).tobytes(), a.dtype).reshape(a.shape)

    return jax.tree.map(leaf, tree)  # each by itself: it goes over every device, which may not hold all


def check_same(what, words):
    """Raises ValueError unless `words` are the same on every process."""
    if not several():
        return
    import hashlib

    from jax.experimental import multihost_utils

    digest = np.frombuffer(hashlib.sha256(words.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    differing = [i for i in range(len(digests)) if not np.array_equal(digests[i], digests[0])]
    if differing:
        raise ValueError(
            f"fit: expected the same {what} on every process, got others on process {differing[0]} than on "
            "process 0; start all of them with one command line"
        )


@contextlib.contextmanager
def stop_together():
    """Yields `stop()`: whether all processes are to end now.

    SIGTERM to one of them is told to the others, and all stop at the same step, which is why `stop` has to be
    asked by every process after every dispatch: jax stops all at the call after the last one that any of them
    has made. Ctrl-C counts as SIGTERM.
    """
    from jax.experimental import multihost_utils

    def terminate(number, frame):
        os.kill(os.getpid(), signal.SIGTERM)

    previous = signal.signal(signal.SIGINT, terminate)
    try:
        yield lambda: multihost_utils.reached_preemption_sync_point(next(_ASKED))
    finally:
        signal.signal(signal.SIGINT, previous)
