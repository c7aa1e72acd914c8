"""The commands end to end, on forty labelled points and a network that compiles in a second."""

import contextlib
import functools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import types

import jax
import numpy as np
import pytest

import jaxdiff as jd
from jaxdiff.cli import commands, main
from jaxdiff.cli.config import NEEDED, NEEDED_RECORD
from jaxdiff.cli.defaults import VECTORS
from jaxdiff.interop import load_safetensors
from jaxdiff.metrics import report
from jaxdiff.solvers.tuned import describe
from jaxdiff.training import distributed, fingerprint, read_log, restore


@pytest.fixture(scope="module", autouse=True)
def thin_forests():
    """A table takes three thousand trees, at which no test here looks; the experiments grow them whole."""
    with pytest.MonkeyPatch.context() as patch:
        thin = functools.partial(report.classifier_two_sample, trees=2)
        patch.setattr(report, "classifier_two_sample", thin)
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    rng = np.random.default_rng(0)
    label = np.repeat(np.arange(2), 40)
    x = rng.standard_normal((80, 2)) * 0.1 + np.where(label[:, None] == 0, -1.0, 1.0)
    path = tmp_path_factory.mktemp("data") / "points.npz"
    np.savez(path, x=x.astype(np.float32), label=label)
    return f"npz:{path}"


def words(data, out, *more):
    base = (
        "train --data {} --out {} --steps 12 --batch-size 16 --checkpoint-every 5 --samples 24 "
        "--log-every 4 --conditional True --label-drop 0.2 --sample-steps 3 --ema 4 power:0.05 power:0.10 "
        "--snapshot-every 3 --peak-flops 1e12"
    )
    return [*base.format(data, out).split(), "--model", "MLP-S(width=16, depth=1)", *more]


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    assert main(words(data, out)) == 0
    return out


@pytest.fixture
def run(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "run")


def inspected(run, capsys):
    assert main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    return {name: re.search(rf"^{name}\s+(\S+)", out, re.M)[1] for name in ("step", "sha256", "parameters")}


def test_train_leaves_the_whole_record(finished):
    names = {path.name for path in finished.iterdir()}
    assert {"config.json", "log.jsonl", "checkpoints", "samples.npz", "samples.png", "metrics.json"} <= names
    lines = [line for line in read_log(finished) if "loss" in line]
    assert [line["step"] for line in lines] == [4, 8, 12]
    for line in lines:  # stratified times: the bins hold two examples each, every time
        assert len(line["loss_by_log_snr"]) == 8 and len(line["log_snr_edges"]) == 9
        np.testing.assert_allclose(np.mean(line["loss_by_log_snr"]), line["loss"], rtol=1e-5)
        assert 0 < line["model_flops_utilization"] < 1
    metrics = json.loads((finished / "metrics.json").read_text())
    assert all(set(score) == {"value", "floor"} for score in metrics.values())
    with np.load(finished / "samples.npz") as samples:
        assert samples["x"].shape == (24, 2) and samples["label"].shape == (24,)


@pytest.mark.slow
def test_train_prints_configuration_table_and_paths(run, data, capsys):
    assert main(words(data, run, "--samples", "20")) == 0
    out, error = capsys.readouterr()
    assert "batch_size" in out and "sliced_wasserstein" in out and "floor" in out
    assert f"{run}/samples.png" in out and "from step 12" in error


@pytest.mark.slow
def test_interrupted_and_resumed_is_bit_for_bit_the_same(finished, data, tmp_path, capsys, monkeypatch):
    whole = inspected(finished, capsys)
    from jaxdiff.training.recorder import Recorder

    original = Recorder.after

    def interrupting(self, step, *rest):
        if step == 7:
            os.kill(os.getpid(), signal.SIGINT)
        original(self, step, *rest)

    monkeypatch.setattr(Recorder, "after", interrupting)
    out = tmp_path / "run"
    assert main(words(data, out)) == 130
    assert f"stopped by SIGINT at step 7, saved in {out}" in capsys.readouterr().err
    assert inspected(out, capsys)["step"] == "7"
    monkeypatch.undo()
    assert main(words(data, out)) == 0
    capsys.readouterr()
    assert inspected(out, capsys) == whole


@pytest.mark.slow
def test_out_alone_continues_a_run_with_its_settings(finished, tmp_path, capsys):
    whole, out = inspected(finished, capsys), tmp_path / "moved" / "run"
    shutil.copytree(finished, out)
    shutil.rmtree(out / "checkpoints" / "12")  # the run as it was after step 10
    assert main(["train", "--out", str(out)]) == 0
    printed, error = capsys.readouterr()
    assert "from step 10" in error and f"table in {out}/metrics.json" in printed
    assert inspected(out, capsys) == whole
    assert main(["train", "--out", str(out), "--steps", "20"]) == 2
    assert "steps: the run has 12, now 20" in capsys.readouterr().err


@pytest.mark.slow
def test_a_moved_run_is_evaluated_where_it_is(finished, tmp_path, capsys):
    moved = shutil.copytree(finished, tmp_path / "moved")
    before = (finished / "metrics.json").stat().st_mtime_ns
    assert main(["evaluate", str(moved), "-n", "10"]) == 0
    assert f"{moved}/metrics.json" in capsys.readouterr().out
    assert (finished / "metrics.json").stat().st_mtime_ns == before
    with np.load(moved / "samples.npz") as samples:
        assert len(samples["x"]) == 10


def test_out_that_is_a_file(data, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main(words(data, tmp_path / "file")) == 2
    assert "expected a directory, or a place for one" in capsys.readouterr().err


def test_sample_writes_the_number_asked_for_and_repeats_itself(run, tmp_path, capsys):
    for name, number in (("a", "30"), ("b", "7")):
        assert main(["sample", str(run), "-n", number, "--out", str(tmp_path / name)]) == 0
    a, b = (np.load(tmp_path / f"{name}.npz") for name in "ab")
    assert a["x"].shape == (30, 2) and (tmp_path / "a.png").stat().st_size > 1000
    np.testing.assert_array_equal(a["label"], np.arange(30) % 2)
    np.testing.assert_array_equal(a["x"][:7], b["x"])
    main(["sample", str(run), "-n", "7", "--seed", "5", "--labels", "1", "--out", str(tmp_path / "c")])
    c = np.load(tmp_path / "c.npz")
    assert set(c["label"]) == {1} and not np.array_equal(c["x"], b["x"])


def test_sample_puts_its_files_into_a_folder(run, tmp_path, capsys):
    for out in (f"{tmp_path}/new/", f"{tmp_path}/new"):
        assert main(["sample", str(run), "-n", "2", "--out", out]) == 0
        assert f"{tmp_path}/new/samples.npz" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "new").iterdir()} == {"samples.npz", "samples.png"}
    assert not list(tmp_path.glob("new.*"))
    assert main(["sample", str(run), "-n", "2", "--out", f"{tmp_path}/new.npz"]) == 0  # a file is named
    assert {path.name for path in tmp_path.glob("new.*")} == {"new.npz", "new.png"}


def test_sample_takes_another_solver_grid_and_guidance(run, tmp_path, capsys):
    command = ["sample", str(run), "-n", "4", "--solver", "ddim(eta=1)", "--grid", "log_snr", "--steps", "2"]
    assert main([*command, "--guidance-scale", "2", "--out", str(tmp_path / "s.npz")]) == 0
    assert np.isfinite(np.load(tmp_path / "s.npz")["x"]).all()


def test_sample_takes_the_file_of_a_tuned_solver(run, tmp_path, capsys):
    """One that holds the numbers of DDIM gives what DDIM gives."""
    process, file = jd.processes.RectifiedFlow(), tmp_path / "tuned.json"
    rows = jd.solvers.ddim().plan(process, jd.grids.uniform(process, 3))
    jd.solvers.Tuned(rows, describe(process), (2,)).save(file)
    for name, words in (("a", [str(file)]), ("b", ["ddim", "--grid", "uniform", "--steps", "3"])):
        command = ["sample", str(run), "-n", "4", "--out", str(tmp_path / name), "--solver", *words]
        assert main(command) == 0
    np.testing.assert_array_equal(*(np.load(tmp_path / f"{name}.npz")["x"] for name in "ab"))
    assert main(["sample", str(run), "--solver", str(file), "--steps", "3"]) == 2
    assert "has its own" in capsys.readouterr().err
    assert main(["evaluate", str(run), "--solver", str(tmp_path / "none.json")]) == 2
    assert "none.json" in capsys.readouterr().err


@contextlib.contextmanager
def small_disk(size):
    """No file grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_cannot_be_written_is_said_and_what_was_there_stays(run, data, tmp_path, capsys):
    assert main(["report", str(run)]) == 0
    names = sorted(path.name for path in run.iterdir())
    before = [(run / name).read_bytes() for name in ("samples.npz", "report.html")]
    capsys.readouterr()
    with small_disk(100):
        for command in ("sample -n 30", "evaluate -n 24", "report"):
            assert main([*command.split(), str(run)]) == 74, command
            assert re.search(r"^jaxdiff: .* could not be written \(.*File too large", capsys.readouterr().err)
        assert main(words(data, tmp_path / "new")) == 74
        assert "config.json could not be written" in capsys.readouterr().err
    assert before == [(run / name).read_bytes() for name in ("samples.npz", "report.html")]
    assert sorted(path.name for path in run.iterdir()) == names


def test_a_place_that_is_none_is_said(run, tmp_path, capsys):
    (tmp_path / "file").touch()
    (tmp_path / "folder.npz").mkdir()
    places = ("file/x", "folder"), ("file/x.html", "folder.npz")
    for command, outs in (["sample", "-n", "2"], places[0]), (["report"], places[1]):
        for out in outs:
            assert main([*command, str(run), "--out", str(tmp_path / out)]) == 74
            assert f"{tmp_path / out}" in (error := capsys.readouterr().err) and "not be written" in error


def test_too_few_samples_are_said_before_they_are_drawn(run, capsys):
    before = (run / "samples.npz").read_bytes()
    assert main(["evaluate", str(run), "-n", "3"]) == 2
    assert "expected at least 6 samples, got 3" in capsys.readouterr().err
    assert (run / "samples.npz").read_bytes() == before


def test_fewer_samples_than_held_out_have_labels_of_every_class():
    """Splits may be sorted by class."""
    dataset = types.SimpleNamespace(held_out={"label": np.repeat(np.arange(4), 25)})
    job = types.SimpleNamespace(num_classes=4)
    np.testing.assert_array_equal(np.unique(commands._wanted(dataset, job, 40)), np.arange(4))
    np.testing.assert_array_equal(commands._wanted(dataset, job, 100), dataset.held_out["label"])
    assert len(commands._wanted(dataset, job, 130)) == 130


@pytest.mark.slow
def test_evaluate_needs_only_the_run(run, capsys):
    assert main(["evaluate", str(run), "-n", "16"]) == 0
    out = capsys.readouterr().out
    assert "memorisation_share" in out and "floor" in out


def test_a_truncated_checkpoint_falls_back_and_says_so(run, tmp_path, capsys):
    files = [path for path in (run / "checkpoints" / "12" / "state").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    os.truncate(largest, largest.stat().st_size // 2)
    assert main(["inspect", str(run)]) == 0
    out, error = capsys.readouterr()
    assert re.search(r"^step +10$", out, re.M) and "falling back to checkpoint 10" in error


def test_inspect_tells_what_saved_it(run, capsys):
    assert main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    assert re.search(r"saved by +jaxdiff \S+, python 3\S+, jax ", out)
    assert restore(run / "checkpoints")[0] == 12
    sha256 = fingerprint(restore(run / "checkpoints")[1])
    assert re.search(r"^sha256 +(\w+)$", out, re.M)[1] == sha256


def test_any_average_is_exported_and_sampled(run, tmp_path, capsys):
    averages, files = restore(run / "checkpoints")[1]["ema"], {}
    for name in ("4", "power:0.05", "power:0.07"):
        files[name] = str(tmp_path / f"{name}.safetensors")
        assert main(["export", str(run), "--ema", name, "--out", files[name]]) == 0
    assert f"weights of step 12, average 4, in {files['4']}" in capsys.readouterr().out
    weights = {name: load_safetensors(path)[0] for name, path in files.items()}
    config = load_safetensors(files["power:0.07"])[1]
    assert config["step"] == 12 and config["exported_ema"] == "power:0.07" and config["process"]
    between = np.concatenate([np.ravel(a) for a in jax.tree.leaves(weights["power:0.07"])])
    for number, name in ((0, "4"), (1, "power:0.05")):
        jax.tree.map(np.testing.assert_array_equal, weights[name], averages[number])
    narrow, wide = (np.concatenate([np.ravel(a) for a in jax.tree.leaves(averages[i])]) for i in (1, 2))
    away = np.linalg.norm(between - narrow), np.linalg.norm(between - wide)
    assert 0 < max(away) < np.linalg.norm(narrow - wide), "between its neighbours"
    assert main(["export", str(run), "--ema", "power:0.07", "--step", "6", "--out", files["4"]]) == 0
    assert load_safetensors(files["4"])[1]["step"] == 6
    assert main(["sample", str(run), "-n", "2", "--ema", "power:0.07", "--out", str(tmp_path / "s")]) == 0
    capsys.readouterr()
    for words_, message in ((["--ema", "77"], "one of the run's (4, power:0.05, power:0.1) or power:WIDTH"),
                            (["--ema", "4", "--step", "6"], "ema: expected power:WIDTH, of snapshots, got"),
                            (["--step", "6"], "add --ema power:WIDTH")):
        assert main(["export", str(run), *words_]) == 2
        assert message in capsys.readouterr().err


def test_report_is_one_page_of_one_run_or_two(run, tmp_path, capsys):
    assert main(["report", str(run)]) == 0
    assert f"report in {run}/report.html" in capsys.readouterr().out
    page = (run / "report.html").read_text()
    data = json.loads(re.search(r'id="data">(.*?)</script>', page, re.DOTALL)[1])
    assert [line["step"] for line in data[0]["lines"]] == [4, 8, 12]
    assert len(data[0]["lines"][0]["loss_by_log_snr"]) == 8 and data[0]["goodput"]["stepping"] > 0
    assert main(["report", str(run), str(run), "--out", str(tmp_path / "two.html")]) == 0
    assert (tmp_path / "two.html").read_text().count("power:0.05") >= 2
    assert main(["report", *[str(run)] * 3]) == 2
    assert "one run or two, got 3" in capsys.readouterr().err


BAD = {
    "unknown data set": (["--data", "digit"], "did you mean digits"),
    "unknown model": (["--model", "MLP-X"], "MLP-S"),
    "unknown process": (["--process", "rectified_flw"], "did you mean RectifiedFlow"),
    "unknown solver": (["--solver", "huen"], "did you mean heun"),
    "unknown grid": (["--grid", "unform"], "did you mean uniform"),
    "unknown mode": (["--parallel", "pmp"], "did you mean pmap"),
    "unknown decay": (["--decay", "cosin"], "did you mean cosine"),
    "unknown weighting": (["--weighting", "minsnr5"], "did you mean min_snr"),
    "batch that devices do not divide": (["--batch-size", "12"], "8 devices.*got 12; use 8 or 16"),
    "no steps": (["--steps", "0"], "steps"),
    "grid of no steps": (["--sample-steps", "0"], "steps"),
    "warm-up longer than the run": (["--warmup", "50"], "warmup"),
    "missing file": (["--data", "npz:nowhere.npz"], "nowhere.npz"),
    "half-life": (["--ema", "-1"], "half_life to be a finite number above 0"),
    "profile": (["--ema", "power:0.4"], r"width in \(0, 0.288\)"),
    "augmentation of vectors": (["--augment", "affine"], "augmentation is for images"),
    "seed": (["--seed", "-1"], "seed to be an integer of at least 0, got -1"),
    "seed beyond the keys": (["--seed", "4294967296"], r"seed to be below 2\^32, got 4294967296"),
    "what cannot be sampled": (["--parameterization", "noise"], "noise prediction has no clean estimate"),
    "labels that are not told": (["--conditional", "False"], "expected no label_drop .* got 0.2"),
    "clip": (["--clip", "-1"], "clip to be finite and at least 0, got -1"),
    "beta1": (["--beta1", "1"], r"beta1 in \[0, 1\), got 1"),
    "beta2": (["--beta2", "1"], r"beta2 in \[0, 1\), got 1"),
    "too few samples": (["--samples", "5"], "at least 6 samples for the metrics, got 5.*--no-evaluate"),
    "what is not finite": (["--nonfinite", "ignore"], "unknown nonfinite 'ignore'"),
    "interval of checkpoints": (["--keep-every", "7"], "keep_every to be a multiple of checkpoint_every"),
}


@pytest.mark.parametrize("more, message", BAD.values(), ids=BAD.keys())
def test_bad_settings_are_said_and_nothing_is_written(data, tmp_path, capsys, more, message):
    assert main(words(data, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert "Traceback" not in error and not (tmp_path / "run").exists()


def test_a_run_of_a_script_is_told_from_one_of_the_command(tmp_path, capsys):
    (tmp_path / "config.json").write_text(json.dumps({"steps": 3, "batch_size": 8, "seed": 0, "ema": []}))
    record = tmp_path / "nonfinite-000001.json"
    record.write_text(json.dumps({"step": 1, "key": [0, 0], "indices": [0], "nonfinite": "stop"}))
    for command in (["sample", tmp_path], ["evaluate", tmp_path], ["replay", record]):
        assert main([str(word) for word in command]) == 2
        assert "expected a run of `jaxdiff train`, got one of a script" in capsys.readouterr().err


@pytest.mark.parametrize("lost", ["model", "ema", "data_record.shape"])
def test_a_configuration_without_a_field_is_said(lost, tmp_path, capsys):
    config = {name: "" for name in NEEDED} | {"data_record": dict.fromkeys(NEEDED_RECORD)}
    inner = lost.removeprefix("data_record.")
    del (config if inner == lost else config["data_record"])[inner]
    (tmp_path / "config.json").write_text(json.dumps(config))
    for command in ("sample", "evaluate", *["export"] * (lost == "ema")):
        assert main([command, str(tmp_path)]) == 2
        assert lost in capsys.readouterr().err


def test_another_configuration_is_refused_by_field_and_the_run_is_kept(run, data, capsys):
    before = inspected(run, capsys)
    assert main(words(data, run, "--seed", "1", "--learning-rate", "0.5")) == 2
    error = capsys.readouterr().err
    assert "seed: the run has 0, now 1" in error
    assert f"learning_rate: the run has {VECTORS['learning_rate']}, now 0.5" in error
    assert inspected(run, capsys) == before
    assert main(["train", "--out", str(run), "--conditional", "False"]) == 2
    assert "another (conditional: the run has True, now False)" in capsys.readouterr().err


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_with_its_step_and_keeps_the_checkpoint(data, tmp_path, capsys):
    out = tmp_path / "run"
    command = words(data, out, "--checkpoint-every", "1", "--decay", "constant")
    assert main([*command, "--learning-rate", "1e25", "--clip", "0"]) == 1
    error = capsys.readouterr().err
    found = re.search(r"at step (\d+); checkpoint (\d+) in", error)
    assert found and int(found[2]) == int(found[1]) - 1, error
    assert inspected(out, capsys)["step"] == found[2]


@pytest.mark.parametrize("command", ["sample", "evaluate", "inspect"])
def test_no_run_no_checkpoint(command, run, tmp_path, capsys):
    assert main([command, str(tmp_path / "none")]) == 2
    assert "expected a run directory" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    assert main([command, str(run)]) == 2
    assert "expected a checkpoint" in capsys.readouterr().err


def test_labels_out_of_range(run, capsys):
    assert main(["sample", str(run), "--labels", "0", "2"]) == 2
    assert "labels in [0, 2), got [0, 2]" in capsys.readouterr().err


def test_list_names_what_there_is(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("RectifiedFlow", "dpmpp_multistep", "karras", "UNet-XS", "digits", "velocity"):
        assert name in out


def test_a_reader_that_goes_away_is_no_fault(monkeypatch, capsys):
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        monkeypatch.setattr(sys, "stdout", closed)
        assert main(["list"]) == 141
        monkeypatch.undo()
    assert capsys.readouterr().err == ""


def test_a_process_of_several_ends_with_the_exit_code_of_one(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(distributed, "several", lambda: True)
    monkeypatch.setattr(distributed, "leave", sys.exit)
    with pytest.raises(SystemExit) as ended:
        main(words(data, tmp_path / "run", "--seed", "-1"))
    assert ended.value.code == 2 and "Traceback" not in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended, distributed.together():
        raise ValueError("a fault")
    assert ended.value.code == 1 and "Traceback" in capsys.readouterr().err


@pytest.mark.slow
def test_python_m_jaxdiff_and_a_fault_is_no_bad_input(capsys, monkeypatch):
    result = subprocess.run(
        [sys.executable, "-m", "jaxdiff", "--help"], capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert result.returncode == 0 and "evaluate" in result.stdout
    monkeypatch.setattr(commands, "list_names", lambda given: int("no number"))
    with pytest.raises(ValueError, match="invalid literal"):
        main(["list"])


@pytest.mark.slow
def test_digits_end_to_end(tmp_path, capsys):
    out = tmp_path / "digits"
    command = f"train --steps 4 --batch-size 16 --samples 60 --picture-every 2 --out {out}".split()
    model = "UNet-XS(channels=(8,), attention_resolutions=())"
    assert main([*command, "--model", model, "--augment", "affine(shift=0.3)"]) == 0
    table = capsys.readouterr().out
    assert "frechet_distance" in table and "label_accuracy" in table
    with np.load(out / "samples.npz") as samples:
        assert samples["x"].shape == (60, 8, 8, 1) and set(np.unique(samples["x"])) <= set(range(17))
    assert (out / "samples-000002.png").is_file()
