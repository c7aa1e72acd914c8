"""Checkpoints through orbax, with a fingerprint of our own: orbax restores flipped bits silently."""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import shutil
import tempfile
import zlib

import jax
import numpy as np

from jaxdiff.training.runs import CannotSave, write_json
from jaxdiff.training.state import fingerprint, leaves_by_path

SEAL = "files.json"
MANIFEST = os.path.join("state", "manifest.ocdbt")  # the last file of a state that orbax writes
PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class Checkpoints:
    """Saves host states into `directory`, in the background.

    A context manager: leaving it waits until the last save is whole. `committed(step)` is called,
    by `poll` or at the end, once a save is whole.

    Args:
      directory: made if it is not there.
      keep: number of newest checkpoints that are kept.
      keep_every: steps that are multiples of it are kept too; 0 for none.
      config: dict that JSON can hold, kept in each checkpoint's record beside the packages' versions.
      committed: called with the step of each save that has become whole.

    Raises:
      CannotSave: from every method, once a save has failed.
    """

    def __init__(self, directory, keep=2, keep_every=0, config=None, committed=lambda step: None):
        ocp = _orbax()
        from orbax.checkpoint.checkpoint_managers import preservation_policy as preserve
        from orbax.checkpoint.checkpoint_managers import save_decision_policy

        kept = [preserve.LatestN(keep)] + ([preserve.EveryNSteps(keep_every)] if keep_every else [])
        options = ocp.CheckpointManagerOptions(
            save_decision_policy=save_decision_policy.FixedIntervalPolicy(1),  # the loop decides
            preservation_policy=preserve.AnyPreservationPolicy(kept),
            cleanup_tmp_directories=True,
            multiprocessing_options=_alone(ocp),
            create=False,
        )
        os.makedirs(directory, exist_ok=True)
        self._closing = contextlib.ExitStack()
        path = self._closing.enter_context(_plain_path(os.path.abspath(directory)))
        self._manager = ocp.CheckpointManager(path, options=options)
        self.newest = self._manager.latest_step()
        self._record = {"versions": versions(), "config": config}
        self._committed, self._under_way = committed, None

    def save(self, step, state):
        """Begins to save `state` (numpy leaves) as `step`; a step that is saved already is left as it is."""
        if any(saved is not None and step <= saved for saved in (self.newest, self._under_way)):
            return
        self.wait()
        ocp = _orbax()
        items = {
            "state": ocp.args.StandardSave(dict(vars(state))),
            "record": ocp.args.JsonSave({"sha256": fingerprint(state), **self._record}),
        }
        with self._failing(step):
            self._manager.save(step, args=ocp.args.Composite(**items))
        self._under_way = step

    def poll(self):
        """Notices, without waiting, that a save has become whole."""
        if self._under_way is not None and not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self):
        """Waits until the save that is under way is whole."""
        if self._under_way is None:
            return
        step, self._under_way = self._under_way, None
        with self._failing(step):
            self._manager.wait_until_finished()  # raises what the background thread raised
            path = os.path.join(self._manager.directory, str(step))
            if not os.path.exists(os.path.join(path, MANIFEST)):  # orbax leaves it out with a warning alone
                raise OSError(f"orbax left out {MANIFEST}")
            _seal(path)
        self.newest = step
        self._committed(step)

    @contextlib.contextmanager
    def _failing(self, step):
        try:
            yield
        except Exception as error:  # orbax and tensorstore raise several kinds for one full disk
            raise CannotSave(f"checkpoint {step} could not be written ({_first_line(error)})") from error

    def __enter__(self):
        return self

    def __exit__(self, *error):
        with self._closing:
            try:
                self.wait()
            finally:
                self._manager.close()


@contextlib.contextmanager
def _plain_path(directory):
    """A path to a directory that orbax reads as it is written.

    It takes a path for a pattern of `glob`, and `\\` in it for `/`.
    """
    if not re.search(r"[*?[\\]", directory):
        yield directory
        return
    with tempfile.TemporaryDirectory(prefix="jaxdiff-") as folder:
        link = os.path.join(folder, "checkpoints")
        os.symlink(directory, link)
        yield link


def versions():
    """The versions of the packages that a state depends on."""
    from jaxdiff import __version__

    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"jaxdiff": __version__, "python": platform.python_version(), **found}


def steps(directory):
    """Steps that have a directory in `directory`, newest first; whether they are whole is not looked at."""
    names = os.listdir(directory) if os.path.isdir(directory) else []
    return sorted((int(name) for name in names if re.fullmatch("0|[1-9][0-9]*", name)), reverse=True)


def restore(directory, report=print, until=None):
    """The newest whole checkpoint.

    Args:
      directory: where `Checkpoints` saved.
      report: called with one line for each broken checkpoint that was passed over.
      until: the newest step that is looked at; any if None.

    Returns:
      `(step, fields)`, the fields of a `TrainState` as nested dicts and lists of numpy arrays; None
      if there is no checkpoint at all.

    Raises:
      ValueError: if there are checkpoints and none is whole.
    """
    broken = {}
    for step in steps(directory):
        if until is not None and step > until:
            continue
        try:
            fields = _read(directory, step)
        except Exception as error:  # orbax raises a dozen kinds for a torn file
            broken[step] = _first_line(error)
            continue
        for lost, reason in broken.items():
            report(f"checkpoint {lost} is not whole ({reason}); falling back to checkpoint {step}")
        return step, fields
    if broken:
        detail = "; ".join(f"{step}: {reason}" for step, reason in broken.items())
        raise ValueError(
            f"restore: expected a whole checkpoint in {directory}, got none ({detail}); bring a copy "
            "back, or train again in another directory"
        )
    return None


def read_record(directory, step):
    """What a checkpoint says of itself: dict of `sha256`, `versions` and `config`."""
    ocp = _orbax()
    return _items(directory, step, record=ocp.args.JsonRestore())["record"]


def set_aside(directory, newer_than):
    """Moves checkpoints newer than a step out of the way (orbax saves no step below its newest one)."""
    for step in steps(directory):
        if step > newer_than:
            target = os.path.join(os.path.dirname(directory), f"broken-checkpoint-{step}")
            shutil.rmtree(target, ignore_errors=True)
            os.replace(os.path.join(directory, str(step)), target)


def to_state(fields, template):
    """Restored fields in the structure of `template`, a `TrainState` of arrays or shapes.

    Raises:
      ValueError: for a missing or additional array, or one of another shape or dtype.
    """
    arrays, wanted = leaves_by_path(fields), leaves_by_path(template)
    if odd := sorted(set(arrays) ^ set(wanted)):
        raise ValueError(
            f"restore: expected the arrays of this model and optimizer, got others (such as {odd[0]}); "
            "the run was made by another configuration"
        )
    for path, leaf in wanted.items():
        got = arrays[path]
        if (got.shape, got.dtype) != (leaf.shape, leaf.dtype):
            raise ValueError(
                f"restore: expected {path} of shape {leaf.shape} {leaf.dtype}, got {got.shape} "
                f"{got.dtype}; the run was made by another configuration"
            )
    ordered = [arrays[path] for path in leaves_by_path(template)]
    return jax.tree.unflatten(jax.tree.structure(template), ordered)


def _seal(path):
    """Writes down the checksum of each file, so that a damaged one is known before orbax reads it.

    Orbax prints a traceback per array of a torn file. A run that is killed before it has sealed a
    checkpoint leaves a whole one without a seal, which the fingerprint still guards.
    """
    write_json(os.path.join(path, SEAL), _checksums(path))


def _check_seal(path):
    seal = os.path.join(path, SEAL)
    if not os.path.exists(seal):
        return
    with open(seal) as file:
        sealed = json.load(file)
    found = _checksums(path)
    for name, checksum in sealed.items():
        if found.get(name) != checksum:
            raise ValueError(f"{name} is {'damaged' if name in found else 'missing'}")


def _checksums(path):
    checksums = {}
    for folder, _, names in os.walk(path):
        for name in names:
            full = os.path.join(folder, name)
            with open(full, "rb") as file:
                checksums[os.path.relpath(full, path)] = zlib.crc32(file.read())
    checksums.pop(SEAL, None)
    return checksums


def _read(directory, step):
    _check_seal(os.path.join(directory, str(step)))
    ocp = _orbax()
    items = _items(directory, step, state=ocp.args.StandardRestore(), record=ocp.args.JsonRestore())
    fields = jax.tree.map(np.asarray, items["state"])
    if fingerprint(fields) != items["record"]["sha256"] or int(fields["step"]) != step:
        raise ValueError("its contents do not match the SHA-256 that was saved with them")
    return fields


def _items(directory, step, **items):
    ocp = _orbax()
    alone = {"multiprocessing_options": _alone(ocp)}
    handler = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(**alone))
    with (
        _plain_path(os.path.abspath(directory)) as path,
        contextlib.closing(ocp.Checkpointer(handler, **alone)) as reader,
    ):
        return reader.restore(os.path.join(path, str(step)), args=ocp.args.Composite(**items))


def _first_line(error):
    line = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
    return line if len(line) <= 200 else f"{line[:100]} ... {line[-100:]}"  # the system's words come last


def _alone(ocp):
    """One process saves and reads by itself, also where there are several: states are whole numpy arrays."""
    index = jax.process_index()
    return ocp.options.MultiprocessingOptions(
        primary_host=index, active_processes={index}, barrier_sync_key_prefix="jaxdiff"
    )


def _orbax():
    """Orbax takes as long to import as jax; only runs need it. Its notes on each save are not for users."""
    import orbax.checkpoint as ocp

    logging.getLogger("absl").setLevel(logging.ERROR)
    return ocp
