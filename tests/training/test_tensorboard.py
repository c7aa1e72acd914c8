"""Event files, read back record by record."""

import importlib.util
import struct

import numpy as np
import pytest

from jaxdiff.training import tensorboard


def events(folder):
    """The events of every file: records of a length, its checksum, the data and theirs."""
    from tensorboardX.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        content = path.read_bytes()
        while content:
            (size,) = struct.unpack("<Q", content[:8])
            yield Event.FromString(content[12 : 12 + size])
            content = content[16 + size :]


def test_numbers_become_scalars_at_their_steps(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed")
    tensorboard.check_installed()
    files = tensorboard.EventFiles(tmp_path, 40)
    files.write({"event": "start", "step": 40})
    files.write({"step": 50, "loss": 0.5, "grad_norm": None, "goodput": {"stepping": 3.0},
                 "loss_by_log_snr": [0.25, None], "log_snr_edges": [-1.0, 0.0, 1.0]})
    files.close()
    found, purged = {}, []
    for event in events(tmp_path / "tensorboard"):
        if event.HasField("session_log"):
            purged.append(event.step)
        for value in event.summary.value:
            found[value.tag] = (event.step, value.simple_value)
    assert found == {"loss": (50, 0.5), "goodput/stepping": (50, 3.0), "loss_by_log_snr/0": (50, 0.25)}
    assert purged == [41], "what an interrupted run wrote beyond step 40 is left out"


def test_a_missing_package_is_said_before_anything_is_written(tmp_path, monkeypatch):
    from jaxdiff.training import fit

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tensorboardX.*pip install 'jaxdiff\[tensorboard\]'"):
        fit({}, None, {"x": np.ones((4, 2))}, steps=1, out=tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
