"""Averages of power profiles saved during a run, out of which any profile is put together after it."""

import os
import re
import zipfile
import zlib

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxdiff.training import ema as ema_
from jaxdiff.training.state import leaves_by_path

COUNT = 32  # snapshots of a run, unless another interval is asked for


def snapshot_directory(run):
    """Where the snapshots of a run are."""
    return os.path.join(run, "snapshots")


def save_snapshot(run, step, profiles, averages):
    """Writes the averages of power profiles at a step into RUN/snapshots/STEP.npz; others are left out.

    Args:
      run: directory.
      step: number of updates.
      profiles: of the averages.
      averages: pytrees of numpy arrays, one a profile.
    """
    powers = [(p.gamma, e) for p, e in zip(profiles, averages, strict=True) if isinstance(p, ema_.Power)]
    arrays = {f"{i}/{path}": a for i, (_, e) in enumerate(powers) for path, a in leaves_by_path(e).items()}
    directory = snapshot_directory(run)
    os.makedirs(directory, exist_ok=True)
    path = os.path.join(directory, f"{step:08d}.npz")
    with open(f"{path}.tmp", "wb") as file:
        np.savez(file, gammas=np.array([gamma for gamma, _ in powers]), **arrays)
    os.replace(f"{path}.tmp", path)


def synthesize(run, profile, step=None):
    """The average of any power profile, from a run's directory.

    Args:
      run: directory that `fit` wrote, with at least one power profile among its averages; two of them, such
        as power:0.05 and power:0.10, carry to widths between and around them (`ema.synthesize`).
      profile: such as "power:0.07".
      step: updates after which the average is wanted; those of the last snapshot if None.

    Returns:
      `(step, params)`, nested dicts of arrays.

    Raises:
      ValueError: for a profile of another kind, a run without snapshots, a step beyond the last of them,
        or a damaged snapshot.
    """
    wanted = ema_.profile(profile)
    if not isinstance(wanted, ema_.Power):
        raise ValueError(f"synthesize: expected a profile power:WIDTH, got {profile!r}")
    steps, gammas, files = _index(run)
    step = max(steps, default=0) if step is None else step
    weights = ema_.synthesis_weights(steps, gammas, step, wanted)
    total = None
    for file, own in files.items():
        for number, average in enumerate(_read(file)):
            part = {path: weights[own + number] * array.astype(np.float64) for path, array in average.items()}
            total = part if total is None else {path: total[path] + part[path] for path in total}
    return step, unflatten_dict({path: a.astype(np.float32) for path, a in total.items()}, sep="/")


def _index(run):
    """Steps and gammas of every saved average, and `{file: number of its first one}`."""
    directory, steps, gammas, files = snapshot_directory(run), [], [], {}
    names = sorted(os.listdir(directory)) if os.path.isdir(directory) else []
    found = [name for name in names if re.fullmatch(r"\d+\.npz", name)]
    if not found:
        raise ValueError(
            f"synthesize: expected snapshots in {directory}, got none; train with a power profile, such as "
            "--ema 500 power:0.05 power:0.10"
        )
    for name in found:
        path = os.path.join(directory, name)
        with _opened(path) as file:
            own = file["gammas"].tolist()
        files[path] = len(steps)
        steps += [int(name.removesuffix(".npz"))] * len(own)
        gammas += own
    return steps, gammas, files


def _read(path):
    """The averages of a file, as dicts of arrays by path; zip's checksums guard them."""
    with _opened(path) as file:
        averages = [{} for _ in file["gammas"]]
        for name in file.files:
            if name != "gammas":
                number, _, leaf = name.partition("/")
                averages[int(number)][leaf] = file[name]
    return averages


class _opened:
    """`np.load` of a snapshot, whose errors name the file."""

    def __init__(self, path):
        self._path = path

    def __enter__(self):
        try:
            self._file = np.load(self._path)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise self._broken(error) from None
        return self._file

    def __exit__(self, kind, error, trace):
        self._file.close()
        if isinstance(error, (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error)):
            raise self._broken(error) from None

    def _broken(self, error):
        return ValueError(
            f"synthesize: expected a whole snapshot, got a damaged {self._path} ({error}); remove it: the "
            "others give nearly the same"
        )
