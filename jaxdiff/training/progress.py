"""What a run shows while it goes: a bar, log lines, and what becomes of numbers that are not finite."""

import collections
import sys
import time

import jax
import numpy as np

from jaxdiff.training.goodput import memory

IN_FLIGHT = 4  # dispatches; more than eight can deadlock several CPU devices
IN_FLIGHT_ALONE = 16  # on one device, where waiting is the only cost: a wake-up per wait


class NotFinite(FloatingPointError):
    """Raised at a loss or gradient that is not finite, where it ends the run.

    Attributes:
      step: number of the update, the first being 1.
    """

    def __init__(self, message, step):
        super().__init__(message)
        self.step = step


class Progress:
    """Follows the metrics of a run a few dispatches behind, so that the device never waits for the host.

    Waits for half of the dispatches in flight at once: one wait per dispatch costs small models 10 %.

    A context manager around the loop.

    Args:
      start: step that the run begins at.
      steps: last step.
      layout: the `Parallel` whose metrics are followed.
      log: a `Log`.
      every: steps from one log line to the next.
      goodput: a `Goodput`, told in each log line.
      batch_size: examples of an update.
      show: whether to draw a bar, or print each log line where there is no terminal.
      skip_limit: updates in a row that are not finite and end the run.
      offend: called with the number of each update that is not finite.
      edges: of the bins of log-SNR that the losses are sorted into, or None.

    Attributes:
      work: `(operations of an update, those that the devices can do in a second)`, or None.
    """

    def __init__(self, start, steps, layout, log, every, goodput, batch_size, show=True, skip_limit=1,
                 offend=lambda step: None, edges=None):
        from tqdm import tqdm

        self._fetch, self._log, self._every, self._steps = layout.fetch, log, every, steps
        self._goodput, self._batch_size, self._edges, self.work = goodput, batch_size, edges, None
        self._limit = IN_FLIGHT if layout.devices > 1 else IN_FLIGHT_ALONE
        self._pending, self._rows, self._levels = collections.deque(), [], 0
        self._skip_limit, self._offend, self._in_a_row, self._skipped = skip_limit, offend, 0, 0
        self._seen, self._mark, self._begin = start, (start, time.perf_counter()), time.perf_counter()
        self._lines = show and not sys.stderr.isatty()
        self._bar = tqdm(
            total=steps, initial=start, disable=not show or self._lines, unit="step", smoothing=0.1
        )

    def push(self, metrics):
        """Takes the metrics of the newest dispatch; waits for older ones where many are in flight."""
        self._pending.append(metrics)
        if len(self._pending) >= self._limit:
            half = [self._pending[i] for i in range(self._limit // 2)]
            jax.block_until_ready(half[-1])
            for older in half:
                self._take(older)
                self._pending.popleft()

    def drain(self):
        """Waits for every dispatch; if it returns, what was not finite up to now was left out."""
        while self._pending:
            self._take(self._pending[0])
            self._pending.popleft()

    def pulse(self):
        """The last update that is done, as far as can be told without waiting; for any thread."""
        try:
            pending = list(self._pending)
        except RuntimeError:  # it changed just now
            return self._seen
        done = sum(m["loss"].shape[-1] for m in pending if m["loss"].is_ready()) if pending else 0
        return self._seen + done

    def say(self, line):
        """Prints a line above the bar."""
        self._bar.write(line, file=sys.stderr)

    def _take(self, metrics):
        metrics = self._fetch(metrics)
        levels = metrics["levels"]
        for i, finite in enumerate(metrics["finite"]):
            self._seen += 1
            loss, norm = metrics["loss"][i], metrics["grad_norm"][i]
            if finite:
                self._in_a_row = 0
                self._rows.append((float(loss), float(norm)))
                self._levels += 0 if levels is None else levels[i].astype(np.float64)
            else:
                self._leave_out(loss, norm)
            if self._seen % self._every == 0 or self._seen == self._steps:
                self._line()
        self._bar.update(len(metrics["loss"]))

    def _leave_out(self, loss, norm):
        self._in_a_row, self._skipped = self._in_a_row + 1, self._skipped + 1
        self._log.write(event="not finite", step=self._seen)
        self._offend(self._seen)
        if self._in_a_row >= self._skip_limit:
            row = f", the last of {self._in_a_row} updates in a row" if self._skip_limit > 1 else ""
            raise NotFinite(
                f"fit: expected a finite loss and gradient, got loss {loss} and gradient norm "
                f"{norm} at step {self._seen}{row}", self._seen
            )

    def _line(self):
        now = time.perf_counter()
        step, since = self._mark
        rate = (self._seen - step) / max(now - since, 1e-9)
        loss, norm = np.mean(self._rows, axis=0).tolist() if self._rows else (None, None)
        self._log.write(
            step=self._seen, loss=loss, grad_norm=norm, steps_per_second=round(rate, 3),
            examples_per_second=round(rate * self._batch_size, 1), **self._extras(rate),
            seconds=round(now - self._begin, 3), goodput=self._goodput.seconds(), **memory(),
        )
        shown = "skipped" if loss is None else f"{loss:.4f}"
        self._bar.set_postfix(loss=shown, refresh=False)
        if self._lines:
            left = (self._steps - self._seen) / rate
            done = f"step {self._seen}/{self._steps}"
            self.say(f"{done}  loss {shown}  {rate:.1f} steps/s  {left:.0f} s left")
        self._rows, self._levels, self._skipped, self._mark = [], 0, 0, (self._seen, now)

    def _extras(self, rate):
        """Of a log line: what only some runs have."""
        extras = {"skipped": self._skipped} if self._skip_limit > 1 else {}
        if self.work is not None and self.work[0]:
            operations, capacity = self.work
            extras["model_flops_utilization"] = float(f"{rate * operations / capacity:.4g}")
        if self._edges is not None and np.ndim(self._levels):
            sums, counts = self._levels
            means = [s / c if c else None for s, c in zip(sums.tolist(), counts.tolist(), strict=True)]
            extras |= {"loss_by_log_snr": means, "log_snr_edges": self._edges}
        return extras

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._bar.close()
