"""The commands: parse, call, print."""

import dataclasses
import json
import os
import sys
from typing import Annotated

import jax
import numpy as np
import tyro

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import job as job_
from jaxdiff.cli import threads
from jaxdiff.cli.config import FREE, Train, arg, check_data, read_run, resolve, saved_settings
from jaxdiff.cli.defaults import threads_for
from jaxdiff.cli.names import FAMILIES, known
from jaxdiff.interop import save_safetensors
from jaxdiff.metrics.report import check_enough
from jaxdiff.training import ema
from jaxdiff.training.runs import replacing, write_json

Run = Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN")]
OWN = "the run's own"


@dataclasses.dataclass(frozen=True)
class Sample:
    """Draw samples from a run: arrays in an npz file, and a picture.

    Attributes:
      run: directory of `jaxdiff train`.
      number: of samples.
      labels: classes to draw, repeated to the number.
      seed: of the samples.
      out: files OUT.npz and OUT.png; in a folder, samples.npz and samples.png.
      solver: such as "dpmpp_multistep(2)", or FILE.json of a tuned one.
      grid: such as karras.
      steps: of the grid.
      guidance_scale: of classifier-free guidance.
      ema: which average, as for `export`.
    """

    run: Run
    number: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 100
    labels: Annotated[tuple[int, ...] | None, arg("LABEL [...]", "every class in turn")] = None
    seed: Annotated[int | None, arg("INT", OWN)] = None
    out: Annotated[str | None, arg("PATH", "RUN/samples")] = None
    solver: Annotated[str | None, arg("NAME", OWN)] = None
    grid: Annotated[str | None, arg("NAME", OWN)] = None
    steps: Annotated[int | None, arg("N", OWN)] = None
    guidance_scale: Annotated[float | None, arg("NUMBER", OWN)] = None
    ema: Annotated[str | None, arg("N|power:WIDTH", "the first")] = None


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Draw samples from a run and compare them with the held-out split.

    Each metric stands beside its floor, the value of real data in the samples' place.

    Attributes:
      run: directory of `jaxdiff train`.
      number: of samples.
      seed: of the samples.
      solver: such as "dpmpp_multistep(2)", or FILE.json of a tuned one.
      grid: such as karras.
      steps: of the grid.
      guidance_scale: of classifier-free guidance.
      ema: which average, as for `export`.
    """

    run: Run
    number: Annotated[int | None, arg("N", OWN), tyro.conf.arg(aliases=["-n"])] = None
    seed: Annotated[int | None, arg("INT", OWN)] = None
    solver: Annotated[str | None, arg("NAME", OWN)] = None
    grid: Annotated[str | None, arg("NAME", OWN)] = None
    steps: Annotated[int | None, arg("N", OWN)] = None
    guidance_scale: Annotated[float | None, arg("NUMBER", OWN)] = None
    ema: Annotated[str | None, arg("N|power:WIDTH", "the first")] = None


@dataclasses.dataclass(frozen=True)
class Inspect:
    """Show a run's newest checkpoint: step, configuration, number of parameters, fingerprint.

    Attributes:
      run: directory of `jaxdiff train`.
    """

    run: Run


@dataclasses.dataclass(frozen=True)
class Export:
    """Write a run's averaged weights, and its configuration, into one safetensors file.

    Attributes:
      run: directory of `jaxdiff train`.
      out: the file.
      ema: one of the run's averages, such as 500, or any power:WIDTH, put together from the run's snapshots.
      step: updates after which the average is wanted, out of snapshots.
    """

    run: Run
    out: Annotated[str | None, arg("FILE", "RUN/weights.safetensors")] = None
    ema: Annotated[str | None, arg("N|power:WIDTH", "the first of the run's")] = None
    step: Annotated[int | None, arg("N", "the newest")] = None


@dataclasses.dataclass(frozen=True)
class Report:
    """Write one page of HTML on a run, or on two side by side: curves, pictures, configuration.

    Attributes:
      runs: directories of `jaxdiff train`.
      out: the page.
    """

    runs: Annotated[
        tuple[str, ...], tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN]", help_behavior_hint="(required)"),
    ]
    out: Annotated[str | None, arg("FILE", "report.html of the first run")] = None


@dataclasses.dataclass(frozen=True)
class List:
    """List the names of processes, solvers, grids, models, data sets and more."""


def threads_of(given):
    """XLA's threads for a command: those of the run that it trains or takes up again."""
    if run := getattr(given, "run", None):
        return training.read_config(run).get("threads", 0)
    if not isinstance(given, Train) or given.coordinator is not None:
        return 0
    return threads_for(given.data) if given.threads is None else given.threads


def train(given: Train):
    """Trains, samples, evaluates; prints the table and where the files are."""
    first = training.distributed.first()  # of several processes, which writes and prints
    dataset = jd.data.load(given.data)
    config = resolve(given, dataset)
    out = config["out"]
    if first and saved_settings(out):
        training.claim(out, config, FREE)  # before anything is built: says which field differs
    job = job_.build_job(config)
    loss, optimizer = job_.objective(job, config), job_.optimizer(config)
    draw = job_.make_sampler(job, config)
    say = print if first else lambda *_, **__: None
    say(f"configuration, kept in {out}/config.json:")
    say(_listing(config))
    arrays = job_.arrays(job, dataset)

    def picture(step, params):
        path = os.path.join(out, f"samples-{step:06d}")
        _draw_and_save(draw, params, job, config, 100, config["seed"], None, path, f"step {step}")

    key = jax.random.fold_in(jax.random.key(config["seed"]), 0)
    params = training.init_params(job.model, key, job.shape)
    say(f"{type(job.model).__name__} with {training.parameter_count(params):,} parameters", flush=True)
    if config["evaluate"]:
        number, wanted = config["samples"], _wanted(dataset, job, config["samples"])
        floors = threads.meanwhile(lambda: jd.metrics.floors_for(dataset, number, wanted)) if first else None
    state = training.fit(
        params, loss, arrays, optimizer=optimizer, out=out, config=config, free=FREE, picture=picture,
        **{name: config[name] for name in (
            "steps", "batch_size", "seed", "ema", "snapshot_every", "parallel", "mesh",
            "updates_per_dispatch", "accumulate", "nonfinite", "skip_limit", "checkpoint_every", "keep",
            "keep_every", "log_every", "tensorboard", "peak_flops", "watchdog", "picture_every",
        )},
    )
    say(f"trained to step {int(state.step)}; checkpoints in {out}/checkpoints")
    if config["evaluate"]:
        served = state.ema[0] if state.ema else state.params
        _evaluate(served, dataset, job, config, draw, number, floors)


def sample(given: Sample):
    """Writes samples and their picture."""
    config, params = _load(given)
    job = job_.build_job(config)
    draw = job_.make_sampler(job, config)
    labels = job_.check_labels(given.labels, given.number, job.num_classes)
    out = given.out or os.path.join(given.run, "samples")
    folder = os.path.isdir(out)
    out = out if folder else out.removesuffix(".npz").removesuffix(".png")
    if folder or not os.path.basename(out):
        out = os.path.join(out, "samples")
    seed = config["seed"] if given.seed is None else given.seed
    _draw_and_save(draw, params, job, config, given.number, seed, labels, out)
    print(f"{given.number} samples in {out}.npz, picture in {out}.png")


def evaluate(given: Evaluate):
    """Prints the table of metrics and floors."""
    config, params = _load(given)
    number = given.number or config["samples"]
    job = job_.build_job(config)
    dataset = jd.data.load(config["data"])
    check_data(dataset, config)
    check_enough("evaluate", dataset, number)
    if given.seed is not None:
        config["seed"] = given.seed
    draw = job_.make_sampler(job, config)
    _evaluate(params, dataset, job, config, draw, number)


def inspect(given: Inspect):
    """Prints what the newest whole checkpoint holds."""
    config = training.read_config(given.run)
    step, fields = _newest(given.run)
    print(f"run           {given.run}")
    print(f"step          {step}")
    print(f"parameters    {training.parameter_count(fields['params']):,}")
    print(f"sha256        {training.fingerprint(fields)}")
    record = training.read_record(training.checkpoint_directory(given.run), step)
    print(f"saved by      {', '.join(f'{name} {version}' for name, version in record['versions'].items())}")
    print("configuration")
    print(_listing(config))


def export(given: Export):
    """Writes the file; `jaxdiff.interop.load_safetensors` reads it."""
    config = training.read_config(given.run)
    step, params = _served(given.run, config, given.ema, given.step)
    out = given.out or os.path.join(given.run, "weights.safetensors")
    kept = given.ema or (config["ema"] or ["none"])[0]
    save_safetensors(out, params, config | {"step": step, "exported_ema": kept})
    print(f"weights of step {step}, average {kept}, in {out}")


def report(given: Report):
    """Writes the page."""
    if not 1 <= len(given.runs) <= 2:
        raise ValueError(f"report: expected one run or two, got {len(given.runs)}")
    out = given.out or os.path.join(given.runs[0], "report.html")
    page = training.report_page(given.runs)
    with replacing(out) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(page)
    print(f"report in {out}")


def list_names(given: List):
    """Prints every name that the command line knows."""
    families = {family: known(family) for family in FAMILIES} | {
        "model": known("model"), "augment": known("augment"), "data": jd.data.names(),
    }
    for family, names in families.items():
        print(f"{family:<17} {', '.join(names)}")


def _load(given):
    """Configuration with the command's own sampling settings, and the parameters that are served."""
    config = read_run(given.run) | {"out": given.run}  # it may have been moved
    own = {
        "solver": given.solver, "grid": given.grid, "sample_steps": given.steps,
        "guidance_scale": given.guidance_scale,
    }
    if given.number is not None and given.number < 1:
        raise ValueError(f"number: expected at least 1 sample, got {given.number}")
    config |= {name: value for name, value in own.items() if value is not None}
    if config["solver"].endswith(".json") and (given.grid is not None or given.steps is not None):
        raise ValueError(f"solver: expected no grid and steps with {config['solver']}, which has its own")
    return config, _served(given.run, config, given.ema)[1]


def _served(run, config, wanted=None, step=None):
    """`(step, parameters)`: an average that the newest checkpoint holds, or one made from snapshots."""
    if "ema" not in config:  # a script may have written down what it likes
        raise ValueError(f"export: expected the averages, ema, in {run}/config.json, got none")
    if wanted is not None and (step is not None or ema.name(wanted) not in config["ema"]):
        if not isinstance(ema.profile(wanted), ema.Power):
            kept = "" if step is not None else f"one of the run's ({', '.join(map(str, config['ema']))}) or "
            raise ValueError(f"ema: expected {kept}power:WIDTH, of snapshots, got {wanted!r}")
        return training.synthesize(run, wanted, step)
    if step is not None:
        raise ValueError("export: expected an average of snapshots with step; add --ema power:WIDTH")
    step, fields = _newest(run)
    if not config["ema"]:
        return step, fields["params"]
    return step, fields["ema"][config["ema"].index(ema.name(wanted)) if wanted is not None else 0]


def _newest(run):
    directory = training.checkpoint_directory(run)
    found = training.restore(directory, report=lambda line: print(line, file=sys.stderr))
    if found is None:
        raise ValueError(f"restore: expected a checkpoint in {run}, got none; train to the first one")
    return found


def _draw_and_save(draw, params, job, config, number, seed, labels, out, title=None):
    if labels is None:
        labels = job_.check_labels(None, number, job.num_classes)
    x = draw(params, number, seed, labels)
    if not training.distributed.first():
        return x
    with replacing(f"{out}.npz") as temporary:
        np.savez(temporary, **({"x": x} if labels is None else {"x": x, "label": labels}))
    record = config["data_record"]
    with replacing(f"{out}.png") as temporary:
        training.save_picture(temporary, x, labels, title, record["value_range"])
    return x


def _wanted(dataset, job, number):
    """The labels of samples to be evaluated: the held-out split's, so that class proportions are equal.

    Fewer samples have the labels of a fixed random part: a split may be sorted by class.
    """
    if job.num_classes is None:
        return None
    label = dataset.held_out["label"]
    if number < len(label):
        label = label[np.random.default_rng(0).permutation(len(label))[:number]]
    return job_.check_labels(label, number, job.num_classes)


def _evaluate(params, dataset, job, config, draw, number, floors=None):
    """Draws samples and prints their scores; `floors()` are waited for, where they are under way."""
    run, labels = config["out"], _wanted(dataset, job, number)
    out = os.path.join(run, "samples")
    x = _draw_and_save(draw, params, job, config, number, config["seed"], labels, out)
    if not training.distributed.first():
        return
    scores = jd.metrics.evaluate(dataset, x, labels, floors=floors and floors())
    print(jd.metrics.table(scores))
    write_json(
        os.path.join(run, "metrics.json"),
        {name: dataclasses.asdict(score) for name, score in scores.items()},
    )
    print(f"table in {run}/metrics.json")
    print(f"{number} samples in {out}.npz, picture in {out}.png")


def _listing(config):
    return "\n".join(f"  {name:<22}{json.dumps(value)}" for name, value in config.items())
