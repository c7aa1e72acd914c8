"""The training loop."""

import contextlib
import json
import sys

import jax
import numpy as np

from jaxdiff.core import check_count, check_seed, on_host
from jaxdiff.training import checkpoints, distributed, flops, replay, runs
from jaxdiff.training import ema as ema_
from jaxdiff.training import tensorboard as tensorboard_
from jaxdiff.training.feed import make_feed
from jaxdiff.training.optimizers import Elementwise, adamw, learning_rates
from jaxdiff.training.parallel import check_batch_size, make_dispatch, packed
from jaxdiff.training.parallel import parallel as make_parallel
from jaxdiff.training.recorder import Recorder, Watch
from jaxdiff.training.snapshots import COUNT
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
    ema=(500,),
    snapshot_every=0,
    out=None,
    parallel="auto",
    mesh="",
    updates_per_dispatch=1,
    accumulate=1,
    nonfinite="stop",
    skip_limit=20,
    checkpoint_every=500,
    keep=2,
    keep_every=0,
    log_every=50,
    tensorboard=False,
    peak_flops=0,
    watchdog=0,
    picture=None,
    picture_every=0,
    config=None,
    free=(),
    progress=True,
):
    """Trains, and continues an interrupted run bit for bit; over several processes, every one calls it.

    The batch of a step is a function of `(seed, step)`, and the key of an example of
    `(seed, step, its index in the batch)`: with the same `out`, the same settings and the same
    devices, a run that was stopped anywhere ends with the same bits as one that was not. (GPUs add up in any
    order, except under `XLA_FLAGS=--xla_gpu_deterministic_ops=true`.)

    Args:
      params: initial parameters; they are copied.
      loss: `loss(params, batch, keys, strata, step) -> (batch,)`, such as `denoising_objective` makes. Labels
        must be below its `num_classes`, where it has such an attribute.
      data: dict of arrays `(size, ...)`, such as `x` and `label`, or `Examples` of `jaxdiff.data`; `batch`
        holds rows of them.
      steps: number of updates.
      batch_size: examples of an update, over all devices.
      seed: seed of data order, times, noise and dropout.
      optimizer: an optax transformation; AdamW at 1e-3 with a cosine decay by default. With `adamw`, small
        networks' parameters, averages and moments lie on the devices in one vector each; others see the
        arrays.
      ema: profiles of the averages of the parameters: half-lives in updates, or words such as "power:0.05"
        (`ema.profiles`). The first one is served.
      snapshot_every: updates between snapshots of the averages of power profiles, out of which `synthesize`
        makes any other profile; 0 for a thirty-second part of the run.
      out: run directory for configuration, log and checkpoints, of the first process; None keeps nothing.
      parallel: `auto`, `pmap` or `jit`.
      mesh: sizes of the axes of the devices' mesh, such as "data=2,fsdp=4", "" for `data` alone: examples are
        cut over `data` and `fsdp`, the state over `fsdp` and, within blocks, over `tensor`.
      updates_per_dispatch: updates compiled into one call; pays for small models on accelerators.
      accumulate: parts that a device's batch is cut into, to save memory.
      nonfinite: `stop` ends the run at the first loss or gradient that is not finite; `skip` leaves such an
        update out, on the device, and counts it in the log. Both write RUN/nonfinite-STEP.json, which
        `jaxdiff replay` runs again for runs of `jaxdiff train`, and `replay.examine` for others.
      skip_limit: updates in a row that are skipped and end the run.
      checkpoint_every: updates between checkpoints; the last update has one too.
      keep: number of newest checkpoints that are kept.
      keep_every: the checkpoint of every multiple of it is kept too; 0 for none.
      log_every: updates between log lines.
      tensorboard: whether to write the log as TensorBoard event files too.
      peak_flops: FLOP/s of one device, for the share of them that is used; 0 for what is known of its kind,
        and for no such number in the log where nothing is.
      watchdog: seconds without an update after which the process ends by itself with exit code 75 and the
        stack of every thread; compiling has half an hour more. 0 for none.
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
      FloatingPointError: at the first loss or gradient that is not finite, or the last of `skip_limit`; the
        last checkpoint stays.
      Interrupted: a KeyboardInterrupt, after Ctrl-C or SIGTERM, once the run is saved.
      CannotSave: an OSError, if the run directory cannot be written; the last checkpoint stays.
    """
    profiles = ema_.profiles(ema)
    _check(
        steps=steps, updates_per_dispatch=updates_per_dispatch, accumulate=accumulate, seed=seed,
        checkpoint_every=checkpoint_every, keep=keep, keep_every=keep_every, log_every=log_every,
        picture_every=picture_every, snapshot_every=snapshot_every, skip_limit=skip_limit,
        watchdog=watchdog, peak_flops=peak_flops,
    )
    if tensorboard:
        tensorboard_.check_installed()
    layout = make_parallel(parallel, mesh=mesh)
    check_batch_size(batch_size, layout.batch_devices, accumulate)
    feed = make_feed(data, batch_size, seed, getattr(loss, "num_classes", None), *layout.part)
    optimizer = optimizer or adamw(learning_rates(1e-3, steps))
    update = make_update(loss, optimizer, profiles, accumulate, nonfinite)
    with on_host():  # a mesh cuts what one device may not hold
        state = init_state(jax.device_get(params), optimizer, profiles)
    if isinstance(optimizer, Elementwise):
        layout = packed(layout, state.params)
    config = config or {
        "steps": int(steps), "batch_size": int(batch_size), "seed": int(seed), "accumulate": int(accumulate),
        "ema": [ema_.name(profile) for profile in profiles],
    }
    distributed.check_same("settings", json.dumps(config, sort_keys=True))
    if out is not None and distributed.first():
        state = _resume(out, state, config, free, layout)
    state = jax.device_get(state)  # or a device would hold it beside the one that is trained
    state = distributed.broadcast(state)  # so the other processes need not see the directory
    dispatch = layout.compile(make_dispatch(update, feed.gather), state)
    peak = peak_flops or flops.peak_flops(jax.devices()[0].device_kind)
    plain = make_update(loss, optimizer, profiles)
    watch = Watch(
        checkpoint_every, keep, keep_every, log_every, picture, picture_every, profiles,
        snapshot_every or max(1, steps // COUNT), skip_limit if nonfinite == "skip" else 1, batch_size,
        progress, tensorboard, watchdog, config,
        edges=None if (levels := getattr(loss, "noise_levels", None)) is None else levels.edges.tolist(),
        capacity=peak and peak * layout.devices,
        operations=lambda items: flops.update_flops(plain, feed, state, items, batch_size),
        offence=replay.offence(data, batch_size, seed, nonfinite),
    )
    span = (int(state.step), steps, updates_per_dispatch)
    with contextlib.closing(feed), Recorder(out, span[0], steps, layout, watch) as recorder:
        return _loop(state, dispatch, feed, layout, seed, span, recorder)


def _check(*, seed, checkpoint_every, keep_every, updates_per_dispatch, watchdog, peak_flops, **counts):
    at_least_0 = {name: counts.pop(name) for name in ("picture_every", "snapshot_every")}
    check_seed("fit", seed)
    check_count(
        "fit", checkpoint_every=checkpoint_every, updates_per_dispatch=updates_per_dispatch, **counts
    )
    check_count("fit", least=0, keep_every=keep_every, **at_least_0)
    if keep_every % checkpoint_every or keep_every % updates_per_dispatch:
        raise ValueError(
            "fit: expected keep_every to be a multiple of checkpoint_every and of updates_per_dispatch, "
            f"got {keep_every} for {checkpoint_every} and {updates_per_dispatch}"
        )
    for name, value in (("watchdog", watchdog), ("peak_flops", peak_flops)):
        if not 0 <= value < float("inf"):
            raise ValueError(f"fit: expected {name} to be finite and at least 0, got {value}")


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


def _loop(state, dispatch, feed, layout, seed, span, recorder):
    """Dispatches updates until the last step, under the recorder's eyes."""
    step, steps, per_dispatch = span
    key = np.asarray(jax.random.key_data(jax.random.key(seed)))
    state, resident, key = layout.place(state), layout.replicate(feed.resident), layout.replicate(key)
    compiled = set()
    while step < steps:
        count = min(per_dispatch - step % per_dispatch, steps - step)
        items = feed.items(step, count)
        if step == span[0]:
            recorder.before(items)
        again = compiled and count not in compiled
        with recorder.patience() if again else contextlib.nullcontext():
            state, metrics = dispatch(state, resident, layout.shard(items), key)
        compiled.add(count)
        step += count
        recorder.after(step, state, metrics)
    return layout.fetch(state)


def _report(line):
    print(line, file=sys.stderr)
