import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxdiff as jd
from jaxdiff.cli import main
from jaxdiff.cli.config import CLUSTER, FREE, Train, check_data, resolve
from jaxdiff.cli.job import build_job, check_labels, make_sampler, objective, optimizer, weighting


@pytest.fixture(scope="module")
def digits():
    return jd.data.load("digits")


def test_defaults_go_by_data_and_given_settings_win(digits):
    config = resolve(Train(batch_size=16, seed=3), digits)
    assert config["batch_size"] == 16 and config["seed"] == 3
    assert config["model"].startswith("UNet") and config["conditional"] is True
    toy = resolve(Train(data="moons"), jd.data.load("moons"))
    assert toy["model"].startswith("MLP") and toy["process"] == "RectifiedFlow"
    assert toy["out"] == "runs/moons" and toy["ema"] == ["400"]
    assert (config["checkpoint_every"], toy["checkpoint_every"]) == (1000, 2000)
    assert resolve(Train(data="moons", checkpoint_every=7), jd.data.load("moons"))["checkpoint_every"] == 7


def test_the_default_directory_has_a_plain_name(digits):
    named = dataclasses.replace(digits, name="tfds:/a b/mnist:train[:90%]")
    assert resolve(Train(model="DiT-XS/2"), named)["out"] == "runs/tfds--a-b-mnist-train--90%-"


def test_processes_without_a_coordinator_do_not_train_alone(capsys):
    for words in (["--processes", "2"], ["--process-id", "1"]):
        assert main(["train", *words]) == 2
        assert "expected --coordinator with --processes and --process-id" in capsys.readouterr().err


def test_a_guidance_scale_that_is_no_number(digits):
    config = resolve(Train(label_drop=0.1, guidance_scale=float("nan")), digits)
    with pytest.raises(ValueError, match="expected a finite guidance_scale, got nan"):
        make_sampler(build_job(config), config)


@pytest.mark.parametrize("command", ["train", "sample", "evaluate", "export", "report"])
def test_help_says_what_holds_where_a_setting_is_not_given(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "None" not in text and "-h, --help" in text
    wanted = {"train": "(default: one process alone)", "export": "(default: RUN/weights.safetensors)"}
    assert wanted.get(command, "(default: ") in text


def test_nothing_is_left_open_and_json_holds_it(digits):
    config = resolve(Train(), digits)
    assert None not in config.values()
    fields = {field.name for field in dataclasses.fields(Train)}
    assert set(config) == fields - set(CLUSTER) | {"data_record"}
    again = json.loads(json.dumps(config))
    assert json.dumps(again) == json.dumps(config)
    assert set(FREE) < set(config)


def test_files_hold_in_another_working_directory(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve(Train(solver="five.json"), digits)["solver"] == f"{tmp_path}/five.json"
    assert resolve(Train(solver="heun"), digits)["solver"] == "heun"


def test_the_record_tells_other_data(digits):
    changed = dataclasses.replace(digits, train=digits.train | {"x": digits.train["x"] + 1})
    first, second = (resolve(Train(), d)["data_record"] for d in (digits, changed))
    assert first["sha256"] != second["sha256"]
    assert first["shape"] == [8, 8, 1] and first["levels"] == 17
    config = json.loads(json.dumps(resolve(Train(), digits)))
    check_data(digits, config)
    with pytest.raises(ValueError, match=r"digits: expected the data that .* got others \(another sha256\)"):
        check_data(changed, config)


def test_bare_edm_takes_the_deviation_of_the_data(digits):
    assert resolve(Train(parameterization="edm"), digits)["parameterization"] == "edm(sigma_data=0.5)"


def test_names_mean_the_same_however_they_are_written():
    moons = jd.data.load("moons")
    for name in ("edm", "EDM", "edm()"):
        config = resolve(Train(data="moons", parameterization=name), moons)
        assert config["parameterization"] == f"edm(sigma_data={moons.sigma_data:.4g})"
    process, names = jd.processes.RectifiedFlow(), ("likelihood", "Likelihood", "likelihood()")
    rules = [weighting({"weighting": name, "times": "logit_normal"}) for name in names]
    rules.append(jd.weightings.likelihood())
    *weights, other = jax.jit(lambda t: [rule(process, t) for rule in rules])(np.float32([0.2, 0.6]))
    np.testing.assert_array_equal(weights[1:], weights[:1] * 2)
    assert not np.allclose(weights[0], other)


def test_labels_are_told_only_where_there_are_some(digits):
    bare = jd.data.Dataset(name="bare", train={"x": digits.train["x"]}, held_out={"x": digits.held_out["x"]})
    with pytest.raises(ValueError, match="expected data with labels for conditional, got bare without"):
        resolve(Train(conditional=True), bare)


def test_what_goes_by_the_data_is_no_field_of_the_model(digits):
    config = resolve(Train(), digits)
    with pytest.raises(ValueError, match="UNet: expected channels of at least one level, got none"):
        build_job(config | {"model": "UNet-XS(channels=())"})
    for name in ("num_classes", "vector_size", "sample_shape", "name"):
        with pytest.raises(ValueError, match=f"expected a model without {name}, which goes by the data"):
            build_job(config | {"model": f"UNet-XS({name}=3)"})


def test_elastic_is_for_images_of_its_grey_levels(digits):
    config = resolve(Train(augment="elastic(block=3)"), digits)
    with pytest.raises(ValueError, match=r"images of 10 grey levels \(block\^2 \+ 1\) for elastic, got 17"):
        objective(build_job(config), config)


def test_the_default_job_is_built_with_its_augmentation(digits):
    config = resolve(Train(), digits)
    job = build_job(config)
    assert callable(objective(job, config)) and job.vector_size == jd.data.Elastic.vector_size
    config["augment"] = "affine(background='low')"
    with pytest.raises(ValueError, match="a number or 'lowest' as background, got 'low'"):
        objective(job, config)


@pytest.mark.parametrize(
    "augment, size",
    [("crop(pad=1, background='lowest')", 3), ("flip", 3), ("edm(probability=0.15)", 9), ("elastic", 18)],
)
def test_every_augmentation_by_name(digits, augment, size):
    config = resolve(Train(augment=augment), digits)
    job = build_job(config)
    assert callable(objective(job, config)) and job.vector_size == size


def test_the_optimizer_is_made_of_the_settings(digits):
    common = {"learning_rate": 0.1, "steps": 10, "warmup": 0, "decay": "constant"}
    common |= {"beta1": 0.5, "beta2": 0.75, "nesterov": False, "weight_decay": 0.0, "clip": 0.0}
    given = np.float32([1.0, -2.0]), np.float32([[0.5, 4.0], [1.0, -3.0]])

    def trained(rule, params, gradients):
        state = rule.init(params)
        for gradient in gradients:
            updates, state = rule.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
        return params

    changes = {"beta1": 0.25}, {"beta2": 0.5}, {"nesterov": True}, {"weight_decay": 0.5}, {"clip": 1.0}
    rules = [optimizer(resolve(Train(**common | change), digits)) for change in ({}, *changes)]
    rules.append(optax.adam(0.1, b1=0.5, b2=0.75))
    train = jax.jit(lambda *given: jnp.stack([trained(rule, *given) for rule in rules]))
    plain, *others, adam = np.asarray(train(*given))
    np.testing.assert_allclose(plain, adam, rtol=1e-6)
    for change, other in zip(changes, others, strict=True):
        assert np.abs(other - plain).max() > 1e-3, change


def test_short_runs_warm_up_briefly(digits):
    assert resolve(Train(steps=20), digits)["warmup"] == 2
    assert resolve(Train(steps=20, warmup=7), digits)["warmup"] == 7


def test_labels_are_repeated_and_checked():
    np.testing.assert_array_equal(check_labels(None, 5, 3), [0, 1, 2, 0, 1])
    np.testing.assert_array_equal(check_labels((2,), 3, 3), [2, 2, 2])
    assert check_labels(None, 5, None) is None
    for bad in ((3,), (-1, 0), ()):
        with pytest.raises(ValueError, match=r"labels in \[0, 3\)"):
            check_labels(bad, 5, 3)
    with pytest.raises(ValueError, match="without classes"):
        check_labels((1,), 5, None)
