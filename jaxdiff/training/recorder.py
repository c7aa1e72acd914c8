"""What happens beside the updates of a run: metrics, log, pictures, checkpoints, and its end."""

import contextlib
import os
import signal
from typing import NamedTuple

from jaxdiff.training import distributed, ema, runs
from jaxdiff.training.checkpoints import Checkpoints, steps
from jaxdiff.training.goodput import Goodput
from jaxdiff.training.progress import NotFinite, Progress
from jaxdiff.training.signals import Interrupted, catch_signals
from jaxdiff.training.snapshots import save_snapshot
from jaxdiff.training.tensorboard import EventFiles
from jaxdiff.training.watchdog import Watchdog, peers

MOST_RECORDS = 100  # of updates that were not finite, from one start


class Watch(NamedTuple):
    """How a run is watched; as of `fit`, and of `Progress` and `Checkpoints`."""

    checkpoint_every: int
    keep: int
    keep_every: int
    log_every: int
    picture: object
    picture_every: int
    profiles: tuple
    snapshot_every: int
    skip_limit: int
    batch_size: int
    show: bool
    tensorboard: bool
    watchdog: float
    config: dict
    edges: list | None
    capacity: float | None  # operations that the devices can do in a second
    operations: object  # `items -> ` those of one update
    offence: object  # `step -> ` dict of what `jaxdiff replay` needs


class Recorder:
    """Watches a run; a context manager around its loop. `out=None` keeps nothing on disk.

    Of several processes the first one writes; every one has to call `after`.
    """

    def __init__(self, out, start, end, layout, watch):
        self._run, self._out = out, out if distributed.first() else None  # where this process writes
        self._step, self._end, self._watch, self._fetch = start, end, watch, layout.fetch
        self._records, self._first, self._saver = 0, True, None
        try:
            with contextlib.ExitStack() as stack:  # closed again if one of them cannot be opened
                self._open(stack.enter_context, start, layout)
                self._stack = stack.pop_all()
        except OSError as error:
            raise self._cannot_write(error) from error

    def _open(self, enter, start, layout):
        out, watch = self._out, self._watch
        self._goodput = Goodput(out, start)
        events = watch.tensorboard and out is not None
        events = enter(contextlib.closing(EventFiles(out, start))) if events else None
        self._log = enter(contextlib.closing(runs.Log(out, start, events and events.write)))
        self._log.write(event="start", step=start, parallel=layout.mode, devices=layout.devices)
        self._saver = Checkpoints(
            runs.checkpoint_directory(out), watch.keep, watch.keep_every, watch.config,
            committed=lambda step: self._log.write(event="checkpoint", step=step),
        ) if out is not None else None
        self._progress = enter(Progress(
            start, self._end, layout, self._log, watch.log_every, self._goodput, watch.batch_size,
            watch.show and distributed.first(), watch.skip_limit, self._offend, watch.edges,
        ))
        self._watchdog = enter(Watchdog(
            watch.watchdog, self._progress.pulse, peers(watch.watchdog)
        )) if watch.watchdog else None
        self._stop = enter(_stops())
        if self._saver is not None:
            enter(self._saver)  # the last one, so that the others guard its end

    def before(self, items):
        """To be called before the first dispatch, with its items: counts the operations of an update."""
        if self._watch.capacity:
            self._progress.work = (self._watch.operations(items), self._watch.capacity)

    def after(self, step, state, metrics):
        """To be called after every dispatch; ends the run by an exception where it must end.

        Raises:
          FloatingPointError: if a loss or gradient was not finite, a few dispatches ago at most.
          Interrupted: after a signal, once `state` is saved.
          CannotSave: if the run's directory could not be written.
        """
        try:
            self._after(step, state, metrics)
        except OSError as error:
            raise self._cannot_write(error) from error

    def _after(self, step, state, metrics):
        previous, self._step = self._step, step
        if self._first:
            self._goodput.compiled()
            self._first = False
        self._guard(lambda: self._progress.push(metrics))
        if self._saver is not None:
            self._saver.poll()
        if self._watch.picture and self._due(self._watch.picture_every, previous):
            with self._aside("pictures"):
                self._watch.picture(step, self._fetch(state.ema[0] if state.ema else state.params))
        stopped = self._stop()
        last = step == self._end or stopped
        if last:
            self._guard(self._progress.drain)
        if self._run is not None:
            self._keep(step, state, previous, last)
        if stopped:
            raise self._interruption(stopped)

    def _keep(self, step, state, previous, last):
        if self._snapshot_due(previous):
            with self._aside("snapshots"):
                averages = self._fetch(state.ema)
                if self._out is not None:
                    save_snapshot(self._out, step, self._watch.profiles, averages)
        if last or self._due(self._watch.checkpoint_every, previous):
            with self._aside("checkpoints"):  # nothing is saved before it is known to be finite
                whole = self._fetch(state)
                if self._saver is not None:
                    self._saver.save(step, whole)

    def patience(self):
        """A context in which the watchdog allows for compilation."""
        return contextlib.nullcontext() if self._watchdog is None else self._watchdog.patience()

    @contextlib.contextmanager
    def _aside(self, name):
        """For what is no step: the updates before it are waited for, its seconds are counted as its own."""
        self._guard(self._progress.drain)
        with self._goodput.spent_on(name), self.patience():
            yield

    def _due(self, every, previous):
        return every and self._step // every > previous // every

    def _snapshot_due(self, previous):
        if not any(isinstance(profile, ema.Power) for profile in self._watch.profiles):
            return False
        return self._step == self._end or self._due(self._watch.snapshot_every, previous)

    def _offend(self, step):
        if self._out is not None and self._records < MOST_RECORDS:
            self._records += 1
            runs.write_json(self._record_path(step), self._watch.offence(step))

    def _record_path(self, step):
        return os.path.join(self._out, f"nonfinite-{step:06d}.json")

    def _guard(self, action):
        try:
            action()
        except NotFinite as error:
            if self._saver is not None:
                self._saver.wait()
            advice = "lower the learning rate"
            mine = "data_record" in self._watch.config  # of `jaxdiff train`, which can build it again
            if mine and self._out is not None and os.path.exists(self._record_path(error.step)):
                advice += f", or see `jaxdiff replay {self._record_path(error.step)}`"
            raise FloatingPointError(f"{error}; {self._kept()}; {advice}") from None

    def _kept(self):
        found = [] if self._out is None else steps(runs.checkpoint_directory(self._out))
        return f"checkpoint {found[0]} in {self._out} is kept" if found else "nothing was saved"

    def _interruption(self, number):
        name = signal.Signals(number).name
        kept = "not saved" if self._run is None else f"saved in {self._run}; the same command continues it"
        return Interrupted(f"stopped by {name} at step {self._step}, {kept}", number, self._step)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        try:
            with self.patience():  # the last checkpoint is waited for
                self._stack.__exit__(kind, error, trace)
        except OSError as failed:
            if not isinstance(error, runs.CannotSave):  # else the first fault goes on
                raise self._cannot_write(failed) from failed
        if kind is None and (stopped := self._stop()):  # it came after the last update
            raise self._interruption(stopped)

    def _cannot_write(self, error):
        return runs.CannotSave(
            f"fit: expected to write in {self._out}, got: {error}; {self._kept()}; make room there, and the "
            "same command continues it"
        )


@contextlib.contextmanager
def _stops():
    """Yields `stop()`: the signal after which the run is to end, or None."""
    if distributed.several():
        with distributed.stop_together() as stop:
            yield lambda: signal.SIGTERM if stop() else None
    else:
        with catch_signals() as caught:
            yield lambda: caught[0] if caught else None
