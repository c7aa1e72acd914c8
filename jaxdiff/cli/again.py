"""`jaxdiff replay`: the step of a run that was not finite, again and alone."""

import dataclasses
import json
import os
import sys
from typing import Annotated

import jax
import tyro

import jaxdiff as jd
from jaxdiff import training
from jaxdiff.cli import job as job_
from jaxdiff.cli.config import check_data, read_run
from jaxdiff.training import replay as replay_
from jaxdiff.training.feed import make_feed


@dataclasses.dataclass(frozen=True)
class Replay:
    """Run a step that was not finite again, from the last checkpoint before: whose fault it was.

    Attributes:
      record: RUN/nonfinite-STEP.json.
    """

    record: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN/nonfinite-STEP.json")]

    @property
    def run(self):
        """The run's directory, None where there is no such file."""
        return os.path.dirname(os.path.abspath(self.record)) if os.path.isfile(self.record) else None


def replay(given: Replay):
    """Prints the examples and parameters that are not finite."""
    record = _read(given.record)
    last = record["step"] - 1
    config = read_run(given.run) | {"out": given.run}
    job, dataset = job_.build_job(config), jd.data.load(config["data"])
    check_data(dataset, config)
    loss, optimizer = job_.objective(job, config), job_.optimizer(config)
    data, size, seed = job_.arrays(job, dataset), config["batch_size"], config["seed"]
    if replay_.offence(data, size, seed, record["nonfinite"])(record["step"]) != record:
        raise ValueError(f"replay: expected the run's data and seed, got other batches than {given.record}")
    feed, key = make_feed(data, size, seed, job.num_classes), jax.random.key(seed)
    state = _state(given.run, config, job, optimizer, last)
    missing = f"after updates {int(state.step) + 1} to {last} again" if state.step < last else "at once"
    print(f"update {last + 1} an example at a time, {missing}")
    update = training.make_update(loss, optimizer, config["ema"], config["accumulate"], record["nonfinite"])
    state = replay_.advance(state, update, feed, key, last)
    item = jax.tree.map(lambda a: a[0], feed.items(last, 1))
    found = replay_.examine(loss, state.params, feed.gather(feed.resident, item), key, last)
    feed.close()
    for name in ("bad_loss", "bad_gradient", "leaves", "params"):
        print(f"{name:<14}{getattr(found, name) or 'none'}")
    bad = [record["indices"][i] for i in found.bad_loss + found.bad_gradient]
    print(f"{'in the data':<14}{bad or 'none'}")


def _read(path):
    wanted = ("step", "key", "indices", "nonfinite")
    try:
        with open(path) as file:
            content = json.load(file)
        return {name: content[name] for name in wanted}
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"replay: expected RUN/nonfinite-STEP.json, got {path} ({error!r})") from None


def _state(run, config, job, optimizer, last):
    """The newest checkpoint before the step, or the state before the first update where there is none."""
    directory = training.checkpoint_directory(run)
    found = training.restore(directory, report=lambda line: print(line, file=sys.stderr), until=last)
    params = training.init_params(
        job.model, jax.random.fold_in(jax.random.key(config["seed"]), 0), job.shape
    )
    state = training.init_state(params, optimizer, config["ema"])
    return state if found is None else training.to_state(found[1], state)
