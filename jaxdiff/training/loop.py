"""The training loop."""

import json
import sys

import jax
import numpy as np

from jaxdiff.core import check_count, check_positive
from jaxdiff.training import checkpoints, distributed, runs
from jaxdiff.training.feed import make_feed
from jaxdiff.training.optimizers import adamw, learning_rates
from jaxdiff.training.parallel import check_batch_size, make_dispatch
from jaxdiff.training.parallel import parallel as make_parallel
from jaxdiff.training.recorder import Recorder
from jaxdiff.training.state import init_state
from jaxdiff.training.update import make_update


def fit(
    params,
    loss,
    data,
    *,
    steps,
    batch_size=64,
    seed=0,
    optimizer=None,
    ema_half_lives=(500,),
    out=None,
    parallel="auto",
    mesh="",
    updates_per_dispatch=1,
    accumulate=1,
    checkpoint_every=500,
    keep=2,
    log_every=50,
    picture=None,
    picture_every=0,
    config=None,
    free=(),
    progress=True,
):
    """Trains, and continues an interrupted run bit for bit; over several processes, every one calls it.

    The batch of a step is a function of `(seed, step)`, and the key of an example of
    `(seed, step, its index in the batch)`: with the same `out`, the same settings and the same
    devices, a run that was stopped anywhere ends with the same bits as one that was not.

    Args:
      params: initial parameters; they are copied.
      loss: `loss(params, batch, keys, strata, step) -> (batch,)`, such as `denoising_objective` makes. Labels
        must be below its `num_classes`, where it has such an attribute.
      data: dict of arrays `(size, ...)`, such as `x` and `label`; `batch` holds rows of them.
      steps: number of updates.
      batch_size: examples of an update, over all devices.
      seed: seed of data order, times, noise and dropout.
      optimizer: an optax transformation; AdamW at 1e-3 with a cosine decay by default.
      ema_half_lives: half-lives of the averages of the parameters, in updates.
      out: run directory for configuration, log and checkpoints, of the first process; None keeps nothing.
      parallel: `auto`, `pmap` or `jit`.
      mesh: sizes of the axes of the devices' mesh, such as "data=2,fsdp=4", "" for `data` alone: examples are
        cut over `data` and `fsdp`, the state over `fsdp` and, within blocks, over `tensor`.
      updates_per_dispatch: updates compiled into one call; pays for small models on accelerators.
      accumulate: parts that a device's batch is cut into, to save memory.
      checkpoint_every: updates between checkpoints; the last update has one too.
      keep: number of checkpoints that are kept.
      log_every: updates between log lines.
      picture: `picture(step, params)`, called with the first average every `picture_every` updates, by every
        process.
      picture_every: updates between pictures; 0 for none.
      config: dict saved with the run, which a continued run must equal; these settings by default.
      free: names of entries of `config` that may change when a run is continued.
      progress: whether to show progress on stderr.

    Returns:
      The final `TrainState`, of numpy arrays.

    Raises:
      ValueError: for settings or labels out of range, data of unequal sizes or that are not finite, a run
        of another configuration, or a run whose checkpoints are all broken.
      FloatingPointError: at the first loss or gradient that is not finite; the last checkpoint stays.
      Interrupted: a KeyboardInterrupt, after Ctrl-C or SIGTERM, once the run is saved.
    """
    check_count(
        "fit", steps=steps, updates_per_dispatch=updates_per_dispatch, accumulate=accumulate,
        checkpoint_every=checkpoint_every, keep=keep, log_every=log_every,
    )
    check_count("fit", least=0, seed=seed, picture_every=picture_every)
    for half_life in ema_half_lives:
        check_positive("fit", ema_half_lives=half_life)
    layout = make_parallel(parallel, mesh=mesh)
    check_batch_size(batch_size, layout.batch_devices, accumulate)
    feed = make_feed(data, batch_size, seed, getattr(loss, "num_classes", None), *layout.part)
    optimizer = optimizer or adamw(learning_rates(1e-3, steps))
    state = init_state(params, optimizer, ema_half_lives)
    config = config or {
        "steps": steps, "batch_size": batch_size, "seed": seed, "accumulate": accumulate,
        "ema_half_lives": list(ema_half_lives),
    }
    distributed.check_same("settings", json.dumps(config, sort_keys=True))
    if out is not None and distributed.first():
        state = _resume(out, state, config, free, layout)
    state = distributed.broadcast(state)  # so the other processes need not see the directory
    update = make_update(loss, optimizer, ema_half_lives, accumulate)
    dispatch = layout.compile(make_dispatch(update, feed.gather), state)
    span = (int(state.step), steps, updates_per_dispatch)
    with Recorder(
        out, span[0], steps, layout, checkpoint_every=checkpoint_every, keep=keep,
        log_every=log_every, picture=picture, picture_every=picture_every,
        batch_size=batch_size, show=progress,
    ) as recorder:
        return _loop(state, dispatch, feed, layout, seed, span, recorder.after)


def _resume(out, state, config, free, layout):
    """The state that `out` holds, or `state` where it is a new run."""
    runs.claim(out, config, free)
    directory = runs.checkpoint_directory(out)
    found = checkpoints.restore(directory, report=_report)
    if found is None:
        saved = [line["step"] for line in runs.read_log(out) if line.get("event") == "checkpoint"]
        if saved:
            raise ValueError(
                f"fit: expected a checkpoint in {directory} (the log tells of step {saved[-1]}), got "
                "none; bring them back, or train again in another directory"
            )
        return state
    step, fields = found
    checkpoints.set_aside(directory, newer_than=step)
    _report(f"continuing {out} from step {step}")
    now = (layout.mode, layout.devices)
    for line in runs.read_log(out):
        if line.get("event") == "start" and (line["parallel"], line["devices"]) != now:
            _report(
                f"it was trained by {line['parallel']} on {line['devices']} devices and continues by "
                f"{now[0]} on {now[1]}: the same to rounding, no longer bit for bit"
            )
            break
    return checkpoints.to_state(fields, state)


def _loop(state, dispatch, feed, layout, seed, span, after):
    """Dispatches updates until the last step; `after(step, state, metrics)` watches."""
    step, steps, per_dispatch = span
    key = np.asarray(jax.random.key_data(jax.random.key(seed)))
    state, resident, key = layout.place(state), layout.replicate(feed.resident), layout.replicate(key)
    while step < steps:
        count = min(per_dispatch, steps - step)
        items = layout.shard(feed.items(step, count))
        state, metrics = dispatch(state, resident, items, key)
        step += count
        after(step, state, metrics)
    return layout.fetch(state)


def _report(line):
    print(line, file=sys.stderr)
