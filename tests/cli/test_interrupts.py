import os
import signal
import subprocess
import sys
import textwrap

import pytest

from jaxdiff.cli import interrupts

PRESSED = """
    import signal, sys

    class Pressed:
        def find_spec(self, name, *rest):
            if name == {name!r}:
                signal.raise_signal(signal.SIGINT)

    sys.meta_path.insert(0, Pressed())
"""

BUSY = """
    import runpy, signal
    import jax, jax.numpy as jnp
    from jaxdiff.cli import commands

    def work(given):
        far = jax.jit(lambda x: jax.lax.fori_loop(0, 10**8, lambda i, x: jnp.sin(x @ x), x))
        x = far(jnp.ones((50, 50)))  # for minutes
        signal.raise_signal(signal.SIGINT)

    commands.list_names = work
    runpy.run_module("jaxdiff", run_name="__main__")
"""


def stopped(words, environment):
    done = subprocess.run(
        [sys.executable, *words, "list"], env=environment, capture_output=True, text=True, timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "jaxdiff: stopped\n")


@pytest.mark.parametrize("name", ["jax", "jaxdiff.cli.commands"])
def test_ctrl_c_while_packages_are_imported(name, one_device, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(PRESSED.format(name=name)))
    path = os.pathsep.join([str(tmp_path), one_device["PYTHONPATH"]])
    stopped(["-m", "jaxdiff"], one_device | {"PYTHONPATH": path})


def test_ctrl_c_beside_compiled_code_does_not_wait_for_it(one_device):
    stopped(["-c", textwrap.dedent(BUSY)], one_device)


@pytest.mark.parametrize("argv, words, expected", [
    (["-m"], ["python", "-u", "-m", "jaxdiff", "list"], True),
    (["-m"], ["python", "-m", "train", "-m", "jaxdiff"], False),
    (["/venv/bin/jaxdiff", "list"], ["python", "/venv/bin/jaxdiff", "list"], True),
    (["train.py", "jaxdiff"], ["python", "train.py", "jaxdiff"], False),
])  # fmt: skip
def test_programs_that_import_the_package_are_left_alone(argv, words, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", argv)
    monkeypatch.setattr(sys, "orig_argv", words)
    assert interrupts.of_program() == expected


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupts.end_at_once()
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)
