"""`jaxdiff launch`; tests/training/test_multihost.py has it whole."""

import signal

import pytest

from jaxdiff.cli import local, main


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_is_passed_on_as_sigterm_and_told_by_its_own_code(number, monkeypatch):
    sent, before = [], {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}

    class Process:
        send_signal = sent.append

    def wait(running):
        signal.raise_signal(number)
        return [0, 143, -9]

    monkeypatch.setattr(local, "start", lambda *rest: [Process, Process])
    monkeypatch.setattr(local, "wait", wait)
    try:
        assert main(["launch", "--", "train"]) == 128 + number and sent == [signal.SIGTERM]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
