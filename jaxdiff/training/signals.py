"""Ctrl-C and SIGTERM end a run between two steps."""

import contextlib
import signal
import threading


class Interrupted(KeyboardInterrupt):
    """Raised after a signal, once the run is saved.

    Attributes:
      number: the signal's number.
      step: the step that was saved.
    """

    def __init__(self, message, number, step):
        super().__init__(message)
        self.number, self.step = number, step


@contextlib.contextmanager
def catch_signals():
    """Yields a list that holds the number of the first SIGINT or SIGTERM once one has come.

    A second one acts as if nothing had been caught. Outside the main thread, where Python allows no
    handlers, signals are left alone.
    """
    caught = []
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.getsignal(number) for number in numbers}

    def restore():
        for number, handler in previous.items():
            signal.signal(number, handler)

    def catch(number, frame):
        caught.append(number)
        restore()

    for number in numbers:
        signal.signal(number, catch)
    try:
        yield caught
    finally:
        restore()
