"""A run's directory: its configuration, its log, its checkpoints.

    RUN/config.json     what the run was started with
    RUN/log.jsonl       one JSON object per line
    RUN/checkpoints/    one folder per step
    RUN/snapshots/      averages of power profiles, one file per step
"""

import contextlib
import json
import os

LOG = "log.jsonl"


class CannotSave(OSError):
    """Raised where a file or a checkpoint could not be written, such as on a full disk."""


def checkpoint_directory(run):
    """Where the checkpoints of a run are."""
    return os.path.join(run, "checkpoints")


@contextlib.contextmanager
def replacing(path):
    """Yields a path, of the same ending, whose file takes the place of `path` at the end.

    A reader sees the old file or the new one, never half of one. Folders are made.

    Raises:
      CannotSave: if that file cannot be written; the old one stays.
    """
    temporary = "{}.tmp{}".format(*os.path.splitext(path))
    try:
        os.makedirs(os.path.dirname(os.path.abspath(path)), exist_ok=True)
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise CannotSave(f"{path} could not be written ({error})") from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def write_json(path, content):
    """Writes JSON, as `replacing` does."""
    with replacing(path) as temporary, open(temporary, "w") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def read_config(run):
    """The configuration that a run was started with.

    Raises:
      ValueError: if there is no run in that directory, or its configuration is no JSON object.
    """
    path = os.path.join(run, "config.json")
    if not os.path.isfile(path):
        raise ValueError(
            f"read_config: expected a run directory with a config.json, got {run}; "
            "pass the directory that `jaxdiff train --out` wrote"
        )
    try:
        with open(path, encoding="utf-8") as file:
            config = json.load(file)
        if not isinstance(config, dict):
            raise ValueError(f"no object but a {type(config).__name__}")
    except ValueError as error:  # json's own, and those of text that is no text, among them
        raise ValueError(f"read_config: expected JSON in {path}, got a broken file ({error})") from None
    return config


def claim(run, config, free=()):
    """Makes `run` the directory of `config`, or checks that it is already.

    Args:
      run: directory; made if it is not there.
      config: dict that JSON can hold.
      free: names of fields that may differ from those the run was started with.

    Raises:
      ValueError: naming each field that differs; or if no directory can be made there.
      CannotSave: if the configuration cannot be written.
    """
    config = json.loads(json.dumps(config))
    try:
        os.makedirs(run, exist_ok=True)
    except OSError as error:
        raise ValueError(f"claim: expected a directory, or a place for one, got {run} ({error})") from None
    if not os.path.exists(os.path.join(run, "config.json")):
        if os.path.isdir(checkpoint_directory(run)):
            raise ValueError(
                f"claim: expected {run} to hold config.json beside its checkpoints, got none; "
                "bring it back, or use another directory"
            )
        write_json(os.path.join(run, "config.json"), config)
        return
    saved, config = _flat(read_config(run), free), _flat(config, free)
    absent = "(absent)"
    differing = [
        f"{name}: the run has {saved.get(name, absent)!r}, now {config.get(name, absent)!r}"
        for name in sorted(set(saved) | set(config))
        if saved.get(name, absent) != config.get(name, absent)
    ]
    if differing:
        raise ValueError(
            f"claim: expected the configuration that {run} was started with, got another "
            f"({'; '.join(differing)}); use the same settings to continue it, or another --out"
        )


def _flat(config, free):
    """The fields that are not free, those of dicts among them by names such as `data_record.shape`."""
    flat = {}
    for name, value in config.items():
        if name not in free:
            named = {f"{name}.{inner}": v for inner, v in value.items()} if isinstance(value, dict) else None
            flat |= named or {name: value}
    return flat


class Log:
    """JSON lines appended to a file; `run=None` keeps none."""

    def __init__(self, run, step=0, also=None):
        """Opens the log of `run` and drops lines of later steps than `step`: they come again.

        Args:
          run: directory, or None.
          step: number of updates that the run goes on from.
          also: called with each entry too.
        """
        self._file, self._also = None, also
        if run is not None:
            path = os.path.join(run, LOG)
            kept = [line for line in read_log(run) if line.get("step", 0) <= step]
            with replacing(path) as temporary, open(temporary, "w") as file:
                file.writelines(json.dumps(line) + "\n" for line in kept)
            self._file = open(path, "a", buffering=1)

    def write(self, **entry):
        """Appends one line."""
        if self._file is not None:
            self._file.write(json.dumps(entry) + "\n")
        if self._also is not None:
            self._also(entry)

    def close(self):
        """Closes the file."""
        if self._file is not None:
            self._file.close()


def read_log(run):
    """The entries of a run's log, without damaged lines; no entries if there is no file."""
    path, entries = os.path.join(run, LOG), []
    if os.path.isfile(path):
        with open(path, errors="replace") as file:
            for line in file:
                with contextlib.suppress(json.JSONDecodeError):
                    entries.append(json.loads(line))
    return [entry for entry in entries if isinstance(entry, dict)]
