import pytest

import jaxdiff as jd
from jaxdiff.cli.names import FAMILIES, known, lookup, parse


def test_every_listed_name_exists():
    for family, (room, names) in FAMILIES.items():
        assert names and all(callable(getattr(room, name)) for name in names), family


@pytest.mark.parametrize("text", ["CosineVP", "cosine_vp", "cosine-vp", "COSINEVP(offset=0.02)"])
def test_case_and_separators_do_not_matter(text):
    process = lookup("process", text)
    assert isinstance(process, jd.processes.CosineVP)
    assert process.offset == (0.02 if "(" in text else 0.008)


def test_arguments_by_place_and_by_name():
    assert parse("solver", "dpmpp_multistep(2, lower_order_final=True)") == (
        "dpmpp_multistep", [2], {"lower_order_final": True}
    )
    assert parse("model", "unet-xs(channels=(8, 16))") == ("UNet-XS", [], {"channels": (8, 16)})
    grid = lookup("grid", "karras(rho=5)", jd.processes.VP(), 4)
    assert grid.tolist() == jd.grids.karras(jd.processes.VP(), 4, rho=5).tolist()


@pytest.mark.parametrize(
    "family, text, message",
    [
        ("process", "EDN", "did you mean EDM"),
        ("solver", "dpmp_multistep", "did you mean dpmpp_multistep"),
        ("grid", "karass", "did you mean karras"),
        ("model", "UNet-XSS", "did you mean UNet-XS"),
        ("grid", "karras(rho=open('x'))", "NAME or NAME"),
        ("grid", "karras(rho=5", "NAME or NAME"),
        ("process", "VP(beta=3)", "unexpected keyword argument 'beta'"),
        ("process", "VP(beta_max=None)", "process VP: expected beta_max to be a number, got None"),
        ("process", "VP(0.1, True)", "expected beta_max to be a number, got True"),
        ("times", "log_normal(mean='a')", "times log_normal: expected mean to be a number, got 'a'"),
        ("solver", "unified((2, 'a'))", r"solver unified: expected orders to be an integer, got \(2, 'a'\)"),
        ("solver", "dpmpp_multistep(lower_order_final=1)", "to be True or False, got 1"),
        ("augment", "crop(pad=1.5)", "expected pad to be an integer, got 1.5"),
    ],
)
def test_what_cannot_be_named(family, text, message):
    with pytest.raises(ValueError, match=message):
        lookup(family, text) if family != "model" else parse(family, text)


def test_what_stands_for_each_step_may_be_several():
    options = dict(lookup("solver", "unified(orders=(1, 2), correctors=(False, True))").options)
    assert (options["orders"], options["correctors"]) == ((1, 2), (False, True))
    affine = lookup("augment", "affine(shift=1, background='lowest')")
    assert (affine.shift, affine.background) == (1, "lowest")


def test_models_and_data_are_listed():
    assert known("model") == jd.models.names()


def test_only_what_a_run_can_use_is_listed():
    assert {"VP", "EDM", "RectifiedFlow", "DiscreteVP"} <= set(known("process"))
    assert not {"LinearProcess", "BrownianBridge"} & set(known("process"))
    assert {"heun", "ddim"} <= set(known("solver"))
    assert not {"Tableau", "LinearSolver", "table", "brownian", "Brownian"} & set(known("solver"))
