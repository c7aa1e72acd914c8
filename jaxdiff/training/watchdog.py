"""Ends a process whose steps have stopped, which would otherwise wait for ever."""

import contextlib
import faulthandler
import os
import sys
import threading
import time

import jax

STUCK = 75  # exit code: EX_TEMPFAIL of sysexits.h, "try again"
STARTUP = 1800.0  # seconds beyond the limit for what compiles: the first step, pictures, the last checkpoint
_TICK = 1.0


class Watchdog:
    """Ends the process by `os._exit(STUCK)` when its step has not advanced for `limit` seconds.

    It prints the stack of every thread and a message that says whether a peer is gone or alive and stuck.
    A thread of its own watches, so that it acts while the main thread waits in a collective or in a
    compiled program; and where a call holds Python's lock, faulthandler's thread ends the process (with
    exit code 1) half a limit later.

    A context manager.

    Args:
      limit: seconds.
      pulse: `() -> value`, another one whenever the run has advanced; it must not wait.
      peers: a `Peers` in a run of several processes.
      startup: seconds beyond the limit before the first advance, which waits for compilation.
    """

    def __init__(self, limit, pulse, peers=None, startup=STARTUP):
        self._limit, self._pulse, self._peers, self._startup = limit, pulse, peers, startup
        self._patient, self._ended = False, threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    @contextlib.contextmanager
    def patience(self):
        """Allows the time for compilation within: for what is no step."""
        self._patient = True
        try:
            yield
        finally:
            self._patient, self._since = False, time.monotonic()

    def _watch(self):
        tick, first = min(_TICK, self._limit / 4), self._pulse()
        last = first
        while not self._ended.wait(tick):
            value, now = self._pulse(), time.monotonic()
            if value != last:
                last, self._since = value, now
            allowed = self._limit + (self._startup if self._patient or last == first else 0)
            faulthandler.dump_traceback_later(1.5 * allowed, exit=True)
            if self._peers is not None:
                self._peers.tell(value)
            if now - self._since > allowed:
                self._end(last, allowed)

    def _end(self, value, allowed):
        said = self._peers.say() if self._peers is not None else "this process is alive, but not stepping"
        out = sys.__stderr__
        print(
            f"jaxdiff: watchdog: no update beyond step {value} within {allowed:g} s: {said}; the same "
            "command continues from the last checkpoint; the stack of every thread:",
            file=out, flush=True,
        )
        faulthandler.dump_traceback(out, all_threads=True)
        os._exit(STUCK)

    def __enter__(self):
        self._since = time.monotonic()
        faulthandler.dump_traceback_later(1.5 * (self._limit + self._startup), exit=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()


class Peers:
    """What the processes of a run tell each other over jax.distributed, while their steps go on.

    Messages travel in a thread of their own: a lost coordinator must not hold up the watchdog.

    Args:
      client: of jax.distributed: `key_value_set`, `key_value_try_get`.
      index, count: of this process and of all.
      limit: seconds of silence after which a process is called gone.
    """

    def __init__(self, client, index, count, limit):
        self._client, self._index, self._count, self._limit = client, index, count, limit
        self._value, self._beats = None, 0
        self._heard = {i: (None, time.monotonic()) for i in range(count) if i != index}
        self._reached = time.monotonic()  # when the coordinator last answered
        threading.Thread(target=self._talk, name="watchdog-peers", daemon=True).start()

    def tell(self, value):
        """Lets the others know how far this process is."""
        self._value = value

    def say(self):
        """One sentence on who is gone and who is stuck."""
        now = time.monotonic()
        if now - self._reached > self._limit / 2:
            return f"process 0, the coordinator, is gone: no answer for {now - self._reached:.0f} s"
        gone = [f"{i}" for i, (_, heard) in self._heard.items() if now - heard > self._limit / 2]
        if gone:
            return f"process {', '.join(gone)} of {self._count} is gone"
        steps = ", ".join(f"process {i} at step {_step(said)}" for i, (said, _) in self._heard.items())
        return f"every process is alive, but they are not stepping ({steps})"

    def _talk(self):
        pause = min(_TICK, self._limit / 8)
        while True:
            with contextlib.suppress(Exception):  # of a coordinator that is gone: `say` tells
                self._beats += 1
                self._client.key_value_set(
                    f"jaxdiff/pulse/{self._index}", f"{self._beats} {self._value}", allow_overwrite=True
                )
                self._reached = time.monotonic()
                for i, (before, _) in self._heard.items():
                    with contextlib.suppress(Exception):  # it has not said anything yet
                        said = self._client.key_value_try_get(f"jaxdiff/pulse/{i}")
                        if said != before:
                            self._heard[i] = said, time.monotonic()
            time.sleep(pause)


def peers(limit):
    """`Peers` of a run of several processes; None of one alone."""
    if jax.process_count() == 1:
        return None
    from jax._src import distributed  # jax has no public door to the coordinator's store of words

    client = distributed.global_state.client
    return Peers(client, jax.process_index(), jax.process_count(), limit)


def _step(said):
    return "unknown" if said is None else said.partition(" ")[2]
