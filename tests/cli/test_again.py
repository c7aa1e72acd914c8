"""`jaxdiff replay`, end to end."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest

from jaxdiff import data
from jaxdiff.cli import job, main


def test_replay_wants_a_record(tmp_path, capsys):
    assert main(["replay", str(tmp_path / "no.json")]) == 2
    assert "expected RUN/nonfinite-STEP.json" in capsys.readouterr().err


@pytest.mark.slow
def test_a_step_that_blew_up_is_replayed(tmp_path, capsys):
    run = tmp_path / "run"
    command = [
        "train", "--data", "moons", "--out", str(run), "--steps", "40", "--learning-rate", "1e30",
        "--clip", "0", "--warmup", "0", "--batch-size", "8", "--no-evaluate", "--model",
        "MLP-S(width=8, depth=1)",
    ]
    assert main(command) == 1
    (record,) = run.glob("nonfinite-*.json")
    told = json.loads(record.read_text())
    assert told["step"] >= 2 and len(told["indices"]) == 8 and told["nonfinite"] == "stop"
    capsys.readouterr()
    assert main(["replay", str(record)]) == 0
    shown = dict(re.findall(r"^(in the data|\S+)\s+(.*)", capsys.readouterr().out, re.M))
    assert "none" not in shown["bad_loss"] or "none" not in shown["bad_gradient"]
    assert set(json.loads(shown["in the data"])) <= set(told["indices"])
    record.write_text(json.dumps(told | {"indices": told["indices"][::-1]}))
    assert main(["replay", str(record)]) == 2
    assert "expected the run's data and seed" in capsys.readouterr().err


@pytest.mark.slow
def test_a_skipped_step_is_replayed_from_the_checkpoint_before_it(tmp_path, capsys, monkeypatch):
    """One example has no finite loss, in whatever batch it is."""
    x = np.random.default_rng(0).standard_normal((30, 2)).astype(np.float32)
    x[7] = 30
    np.savez(tmp_path / "points.npz", x=x)
    honest = job.objective

    def objective(*args):
        loss = honest(*args)

        def broken(params, batch, *rest):
            return jnp.where(batch["x"][:, 0] > 3, jnp.nan, loss(params, batch, *rest))

        return broken

    monkeypatch.setattr(job, "objective", objective)
    run = tmp_path / "run"
    command = [
        "train", "--data", f"npz:{tmp_path}/points.npz", "--out", str(run), "--steps", "20", "--batch-size",
        "8", "--no-evaluate", "--model", "MLP-S(width=8, depth=1)", "--nonfinite", "skip",
        "--checkpoint-every", "2", "--keep", "100",
    ]
    assert main(command) == 0
    records = sorted(run.glob("nonfinite-*.json"))
    assert len(records) > 2
    capsys.readouterr()
    assert main(["replay", str(records[1])]) == 0
    shown = capsys.readouterr().out
    told = json.loads(records[1].read_text())
    number = int(np.argmax(data.load(f"npz:{tmp_path}/points.npz").train["x"][:, 0]))
    row = told["indices"].index(number)
    assert re.search(rf"^bad_loss +\[{row}\]$", shown, re.M) and f"in the data   [{number}]" in shown
    saved, before = (told["step"] - 1) // 2 * 2, told["step"] - 1
    again = f"after updates {saved + 1} to {before} again" if saved < before else "at once"
    assert f"update {told['step']} an example at a time, {again}" in shown
    np.savez(tmp_path / "points.npz", x=x + 1)
    assert main(["replay", str(records[1])]) == 2
    assert "expected the data that the run was trained on" in capsys.readouterr().err
