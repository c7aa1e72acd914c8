"""The settings of a run: as given, and resolved against the data set's defaults."""

import dataclasses
import hashlib
import os
import re
from typing import Annotated

import numpy as np
import tyro

from jaxdiff.cli.defaults import defaults_for
from jaxdiff.cli.names import parse
from jaxdiff.core import check_seed
from jaxdiff.data import canonical
from jaxdiff.metrics.report import check_enough
from jaxdiff.training import ema
from jaxdiff.training.runs import read_config

# what may change when a run is continued: nothing of it enters an update that is finite, beyond rounding
FREE = (
    "out", "parallel", "mesh", "nonfinite", "skip_limit", "checkpoint_every", "keep", "keep_every",
    "snapshot_every", "log_every", "tensorboard", "peak_flops", "watchdog", "picture_every", "solver", "grid",
    "sample_steps", "guidance_scale", "samples", "evaluate", "threads",
)

NEEDED = (  # to build a run's network again and to sample from it
    "data", "seed", "model", "process", "parameterization", "conditional", "label_drop", "augment",
    "augment_told", "ema", "solver", "grid", "sample_steps", "guidance_scale", "samples",
)
NEEDED_RECORD = ("shape", "num_classes", "value_range", "levels", "shift", "scale")  # of its data

CLUSTER = ("coordinator", "processes", "process_id", "heartbeat")  # of the machines, and no part of the run


def arg(metavar, default="the data set's"):
    """How a setting is shown by --help: what it takes, and what it is where it is not given."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=f"(default: {default})")


_NAME, _NAMED = tyro.conf.arg(metavar="NAME"), arg("NAME")


@dataclasses.dataclass(frozen=True)
class Train:
    """Train a model, sample from it and evaluate the samples.

    On a directory that holds a run, continues it, with its settings. Defaults go by the data set and are
    printed.
    Named things take arguments in brackets: --grid "karras(rho=5)"; `jaxdiff list` has the names.

    Attributes:
      data: digits, moons, eight_gaussians, checkerboard, spirals, swiss_roll, npz:PATH, images:FOLDER,
        array_record:PATTERN or tfds:NAME[:SPLIT]; those larger than the memory are streamed.
      out: the run's directory.
      steps: number of updates.
      batch_size: examples of an update, over all devices.
      seed: of parameters, data order, times, noise and samples.
      checkpoint_every: updates between checkpoints; the last update has one too.
      model: network, such as UNet-XS or "DiT-S/2(dtype='bfloat16', remat='dots')"; parameters are float32.
      process: forward process, such as EDM or "VP(beta_max=10)".
      parallel: auto is pmap over several devices and jit on one, or on a mesh that has more axes than data.
      threads: of XLA, where one CPU is all there is; 0 for one a core. Another number may round otherwise.
      mesh: axes of the devices, such as "data=2,fsdp=4"; also tensor. All of them data by default.
      coordinator: of several processes: auto on a TPU pod or under SLURM, else HOST:PORT of process 0.
      processes: their number, with HOST:PORT.
      process_id: number of this one, with HOST:PORT.
      heartbeat: seconds after which a process without a sign of life counts as gone, and the others end.
      parameterization: what the network's output means; edm takes the data's deviation.
      times: distribution of training times, such as "log_normal(mean=-0.8, std=1.2)".
      weighting: weight of the loss over times, or none.
      conditional: whether the network is told the labels.
      label_drop: share of labels dropped, for classifier-free guidance.
      augment: none, flip, crop, "edm(probability=0.12)", elastic, or "affine(shift=0.5, rotate=0.1)";
        background='lowest' is the range's low end.
      augment_told: whether the network is told how an image was changed.
      augment_until: share of the run after which images are left as they are, in [0, 1].
      augment_above: noise level below which images are left as they are; 0 is none.
      learning_rate: highest rate.
      warmup: updates of the rise to the highest rate.
      decay: what follows the warm-up.
      weight_decay: of AdamW.
      beta1: decay of AdamW's first moment.
      beta2: decay of its second moment.
      nesterov: whether a step takes the first moment as it will be after one more such gradient.
      clip: largest norm of the gradient; 0 for any.
      ema: averages of the parameters: half-lives in updates, and power:WIDTH, such as 500 power:0.05
        power:0.10. Samples come from the first.
      snapshot_every: updates between snapshots of the power averages, for `jaxdiff export --ema power:0.07`;
        0 for a thirty-second part of the run.
      updates_per_dispatch: updates compiled into one call; pays for small models on accelerators.
      accumulate: parts that a device's batch is cut into, to save memory.
      nonfinite: stop at a loss or gradient that is not finite, or skip such updates.
      skip_limit: updates in a row that are skipped and end the run.
      keep: number of newest checkpoints kept.
      keep_every: the checkpoint of each multiple of it is kept too; 0 for none.
      log_every: updates between log lines.
      tensorboard: whether to write TensorBoard event files too.
      peak_flops: FLOP/s of one device, for the share that is used; 0 for what is known of its kind.
      watchdog: seconds without an update after which the process ends with exit code 75; 0 for none.
      picture_every: updates between pictures of samples; 0 for none.
      solver: for sampling, such as "dpmpp_multistep(2)".
      grid: of times for sampling, such as karras.
      sample_steps: steps of that grid.
      guidance_scale: of classifier-free guidance; 1 for none.
      samples: number of samples that are drawn and evaluated at the end.
      evaluate: whether to sample and evaluate at the end.
    """

    data: Annotated[str, _NAME] = "digits"
    out: Annotated[str | None, arg("DIR", "runs/DATA")] = None
    steps: Annotated[int | None, arg("N")] = None
    batch_size: Annotated[int | None, arg("N")] = None
    seed: int = 0
    checkpoint_every: Annotated[int | None, arg("N")] = None
    model: Annotated[str | None, _NAMED] = None
    process: Annotated[str | None, _NAMED] = None
    parallel: Annotated[str, tyro.conf.arg(metavar="auto|pmap|jit")] = "auto"
    threads: Annotated[int | None, arg("N")] = None
    mesh: Annotated[str, tyro.conf.arg(metavar="AXIS=N[,...]")] = ""
    coordinator: Annotated[str | None, arg("auto|HOST:PORT", "one process alone")] = None
    processes: Annotated[int | None, arg("N", "the cluster's")] = None
    process_id: Annotated[int | None, arg("N", "the cluster's")] = None
    heartbeat: int = 60
    parameterization: Annotated[str | None, _NAMED] = None
    times: Annotated[str | None, _NAMED] = None
    weighting: Annotated[str | None, _NAMED] = None
    conditional: Annotated[bool | None, arg("True|False")] = None
    label_drop: Annotated[float | None, arg("SHARE")] = None
    augment: Annotated[str | None, _NAMED] = None
    augment_told: Annotated[bool | None, arg("True|False")] = None
    augment_until: Annotated[float | None, arg("SHARE")] = None
    augment_above: Annotated[float | None, arg("SIGMA")] = None
    learning_rate: Annotated[float | None, arg("RATE")] = None
    warmup: Annotated[int | None, arg("N")] = None
    decay: Annotated[str | None, arg("cosine|linear|constant")] = None
    weight_decay: Annotated[float | None, arg("RATE")] = None
    beta1: Annotated[float | None, arg("NUMBER")] = None
    beta2: Annotated[float | None, arg("NUMBER")] = None
    nesterov: Annotated[bool | None, arg("True|False")] = None
    clip: Annotated[float | None, arg("NORM")] = None
    ema: Annotated[tuple[str, ...] | None, arg("N|power:WIDTH [...]")] = None
    snapshot_every: int = 0
    updates_per_dispatch: int = 1
    accumulate: int = 1
    nonfinite: Annotated[str, tyro.conf.arg(metavar="stop|skip")] = "stop"
    skip_limit: int = 20
    keep: int = 2
    keep_every: int = 0
    log_every: int = 100
    tensorboard: bool = False
    peak_flops: float = 0.0
    watchdog: float = 0.0
    picture_every: Annotated[int | None, arg("N")] = None
    solver: Annotated[str | None, _NAMED] = None
    grid: Annotated[str | None, _NAMED] = None
    sample_steps: Annotated[int | None, arg("N")] = None
    guidance_scale: float = 1.0
    samples: Annotated[int | None, arg("N")] = None
    evaluate: bool = True


def read_run(run):
    """The configuration of a run of `jaxdiff train`.

    Raises:
      ValueError: if there is no run in that directory, one of a script, whose network nobody wrote down, or
        one whose configuration has lost a field.
    """
    config = read_config(run)
    if "data_record" not in config:
        raise ValueError(
            f"read_run: expected a run of `jaxdiff train`, got one of a script in {run}; go on in the script "
            "(for a step that is not finite: jd.training.replay.examine)"
        )
    record = config["data_record"] if isinstance(config["data_record"], dict) else {}
    lost = [name for name in NEEDED if name not in config]
    lost += [f"data_record.{name}" for name in NEEDED_RECORD if name not in record]
    if lost:
        raise ValueError(
            f"read_run: expected every field in {run}/config.json, got none of {', '.join(lost)}; each "
            "checkpoint's record has a copy"
        )
    return config


def saved_settings(out):
    """What the run in directory `out` was started with, as a `Train`; None where there is no run."""
    if out is None or not os.path.isfile(os.path.join(out, "config.json")):
        return None
    saved = read_config(out)
    names = [field.name for field in dataclasses.fields(Train) if field.name in saved]
    values = {name: tuple(v) if isinstance(v := saved[name], list) else v for name in names}
    return Train(**values | {"out": out})


def resolve(given, dataset):
    """The configuration of a run, without a None.

    Args:
      given: a `Train`.
      dataset: the loaded data set.

    Returns:
      dict that JSON can hold: every field of `Train`, and `data_record`, what sampling has to know
      of the data.

    Raises:
      ValueError: for fewer samples or held-out examples than the metrics need, or unknown averages.
    """
    fallback = defaults_for(dataset.name, dataset.shape)
    config = {
        name: fallback.get(name) if value is None else value
        for name, value in dataclasses.asdict(given).items() if name not in CLUSTER
    }
    if config["evaluate"]:
        check_enough("resolve", dataset, config["samples"], " for the metrics", "use more, or --no-evaluate")
    check_seed("resolve", config["seed"])
    if given.warmup is None:
        config["warmup"] = min(config["warmup"], max(config["steps"], 1) // 10)
    config["out"] = config["out"] or os.path.join("runs", re.sub(r"[^\w.%-]", "-", dataset.name))
    if parse("parameterization", config["parameterization"]) == ("edm", [], {}):
        config["parameterization"] = f"edm(sigma_data={dataset.sigma_data:.4g})"
    if given.conditional and not dataset.num_classes:
        raise ValueError(f"resolve: expected data with labels for conditional, got {dataset.name} without")
    config["conditional"] = bool(config["conditional"] and dataset.num_classes)
    if given.label_drop is None and not config["conditional"]:
        config["label_drop"] = 0.0
    config["data"] = canonical(config["data"])
    if config["solver"].endswith(".json"):
        config["solver"] = os.path.abspath(config["solver"])
    config["ema"] = [ema.name(profile) for profile in ema.profiles(config["ema"])]
    config["data_record"] = _record(dataset)
    return config


def check_data(dataset, config):
    """Raises ValueError for another data set than the run of `config` was trained on."""
    saved, found = config["data_record"], _record(dataset)
    if differing := [name for name, value in found.items() if saved.get(name) != value]:
        raise ValueError(
            f"{dataset.name}: expected the data that the run was trained on, got others (another "
            f"{', another '.join(differing)}); bring them back"
        )


def _record(dataset):
    digest = hashlib.sha256()
    for name in sorted(dataset.train):
        digest.update(np.ascontiguousarray(dataset.train[name]).tobytes())
    return {
        "shape": list(dataset.shape),
        "num_classes": int(dataset.num_classes),
        "value_range": None if dataset.value_range is None else [float(v) for v in dataset.value_range],
        "levels": dataset.levels,
        "shift": float(dataset.shift),
        "scale": float(dataset.scale),
        "sha256": digest.hexdigest(),
    }
