"""Ctrl-C of the program `jaxdiff`, from before jax is imported."""

import contextlib
import os
import signal
import sys

INTERRUPTED = 128  # an interrupted program's exit code adds the signal's number


def end_at_once():
    """From here on Ctrl-C ends the process without an exception; a run that has to be saved catches it first.

    An exception is swallowed where jax calls back into Python, breaks the import of compiled modules, and has
    Python abort, or wait for minutes, as it ends beside compiled code.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as under nohup
        signal.signal(signal.SIGINT, _stop)


def of_program():
    """Whether this process is `jaxdiff` or `python -m jaxdiff`, and no other that imports the package."""
    name, words = os.path.basename(getattr(sys, "argv", [""])[0]), sys.orig_argv
    if name == "-m":  # as long as the module is looked for
        return words[words.index("-m") + 1] == "jaxdiff" if "-m" in words else False
    return name == "jaxdiff"


def _stop(number, frame):
    with contextlib.suppress(Exception):  # in the middle of a print
        sys.stdout.flush()
    os.write(2, b"jaxdiff: stopped\n")
    os._exit(INTERRUPTED + number)
