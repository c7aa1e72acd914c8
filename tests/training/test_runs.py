import json

import pytest

from jaxdiff.training import read_config, read_log
from jaxdiff.training.runs import CannotSave, Log, claim


def test_a_run_is_claimed_again_by_its_own_configuration_alone(tmp_path):
    run = tmp_path / "run"
    config = {"steps": 10, "seed": 0, "half_lives": (1.0, 2.0), "every": 5}
    claim(run, config)
    claim(run, config)
    claim(run, config | {"every": 7}, free=("every",))
    assert read_config(run) == config | {"half_lives": [1.0, 2.0]}
    with pytest.raises(ValueError, match=r"seed: the run has 0, now 3; steps: the run has 10, now 20"):
        claim(run, config | {"seed": 3, "steps": 20})
    with pytest.raises(ValueError, match=r"width: the run has '\(absent\)', now 8"):
        claim(run, config | {"width": 8})


def test_fields_within_fields_are_named(tmp_path):
    record = {"shape": [2], "sha256": "ab"}
    claim(tmp_path, {"steps": 1, "data": record, "paths": record}, free=("paths",))
    other = record | {"sha256": "cd"}
    with pytest.raises(ValueError, match=r"another \(data.sha256: the run has 'ab', now 'cd'\)"):
        claim(tmp_path, {"steps": 1, "data": other, "paths": other}, free=("paths",))


def test_checkpoints_without_their_configuration_are_not_overwritten(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(ValueError, match="config.json"):
        claim(tmp_path, {})


def test_no_run_or_a_broken_configuration_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="expected a run directory"):
        read_config(tmp_path)
    for content in (b"{", b"[1]", b"\xff\xfe\x80{}"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match="expected JSON in .* got a broken file"):
            read_config(tmp_path)


def test_a_resumed_log_drops_steps_that_come_again_and_damaged_lines(tmp_path):
    log = Log(tmp_path)
    for step in (5, 10, 15):
        log.write(step=step)
    log.close()
    with open(tmp_path / "log.jsonl", "ab") as file:
        file.write(b'null\n5\n\xff\xfe\x00x\n{"step": 2')
    log = Log(tmp_path, step=10)
    log.write(step=12)
    log.close()
    lines = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [5, 10, 12]
    assert read_log(tmp_path)[-1] == {"step": 12}


def test_a_folder_in_the_place_of_a_log_is_named(tmp_path):
    (tmp_path / "log.jsonl").mkdir()
    assert read_log(tmp_path) == []
    with pytest.raises(CannotSave, match="log.jsonl could not be written"):
        Log(tmp_path)
