"""Threads: how many XLA has on a CPU, and one beside it."""

import concurrent.futures
import contextlib
import importlib.metadata
import importlib.util
import os
import threading

from jaxdiff.core import check_count

COUNT = "NPROC"  # what XLA takes for the number of cores, when its backend starts


@contextlib.contextmanager
def at_most(count):
    """A context within which XLA's backend starts with `count` threads; 0 for one a core.

    Shared among threads, a network whose operations take microseconds is no faster and costs a
    fifth more processor time. Nothing is changed where several devices share the CPU, whose
    collectives wait for each other's threads, where an accelerator may be found, whose compiler uses
    them, where NPROC is set already, or where the backend runs.

    Raises:
      ValueError: for a negative count.
    """
    check_count("threads", least=0, threads=count)
    if not count or COUNT in os.environ or not only_cpu() or _several():
        yield
        return
    os.environ[COUNT] = str(count)
    try:
        yield
    finally:
        os.environ.pop(COUNT, None)


def meanwhile(function):
    """Calls `function` in a thread beside what follows; returns what waits for its result.

    A command that ends early waits for it: the process would abort if it ended within compiled code.
    """
    future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(function())
        except BaseException as error:  # the caller's, when it asks for the result
            future.set_exception(error)

    threading.Thread(target=run).start()
    return future.result


def only_cpu():
    """Whether jax will find no accelerator, as far as can be told before its backend starts."""
    import jax

    return jax.config.jax_platforms == "cpu" or not (
        importlib.util.find_spec("libtpu")
        or importlib.util.find_spec("jax_plugins")
        or importlib.metadata.entry_points(group="jax_plugins")
    )


def _several():
    import jax

    return "device_count" in os.environ.get("XLA_FLAGS", "") or jax.config.jax_num_cpu_devices > 1
