"""What a newcomer runs first: the README's code, the commands that it prints, the experiments."""

import pathlib
import re
import runpy
import types

import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
IMPORTS = "jaxdiff.training", "jaxdiff.metrics", "flax.linen", "sklearn.ensemble", "matplotlib.pyplot"


def test_the_first_block_of_the_readme_runs(capsys):
    exec(re.findall(r"```python\n(.*?)```", README, re.DOTALL)[0], {})
    mean, _ = re.findall(r"\[(.*?)\]", capsys.readouterr().out)
    assert abs(float(mean.split()[0])) < 0.2  # two equal modes at -1 and 1


def test_every_name_in_the_readme_exists():
    import jaxdiff as jd

    families = "processes parameterizations times weightings grids solvers guidance".split()
    rows = [line.split("|")[1:3] for line in README.splitlines() if line.startswith("| `")]
    seen = 0
    for names, members in rows:
        found = [name for name in re.findall(r"\w+", names) if name in families]
        for part, family in zip(members.split("; "), found, strict=False):
            for name in re.findall(r"\w+", " ".join(re.findall(r"`([\w ]+)`", part))):
                assert hasattr(getattr(jd, family), name), f"{family}.{name}"
                seen += 1
    assert seen > 40


def test_ci_runs_the_readme_command():
    script = (ROOT / ".ci" / "run").read_text()
    assert "'.[test]'" in README and "'.[test]'" in script
    assert re.search(r"\.venv/bin/pytest", README) and "/bin/pytest" in script


def test_the_toys_picture_of_data_in_a_file_has_a_plain_name(tmp_path):
    draw = runpy.run_path(ROOT / "experiments" / "toy2d.py")["picture"]
    points = np.zeros((3, 2))
    data = types.SimpleNamespace(held_out={"x": points})
    assert draw(tmp_path, "npz:/a/b.npz", [points] * 3, data) == tmp_path / "npz--a-b.npz.png"
    assert (tmp_path / "npz--a-b.npz.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(path.name for path in (ROOT / "experiments").glob("*.py")))
def test_experiments_run_in_smoke_mode(script, tmp_path, forked):
    path = ROOT / "experiments" / script
    assert len(path.read_text().splitlines()) < 150
    run = forked([path, "--smoke", "--out", tmp_path / "out"], modules=IMPORTS, PYTHONPATH=str(ROOT))
    out, error = run.communicate(timeout=300)
    assert run.returncode == 0, error[-2000:]
    numbers = re.findall(r"(?<![\w.])-?\d+\.\d+", out)
    assert len(numbers) > 4 and "nan" not in out.lower(), out[-2000:]
    assert path.name in README
