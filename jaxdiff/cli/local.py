"""`jaxdiff launch`: several processes of one command on this machine."""

import dataclasses
import signal
import sys
from typing import Annotated

import tyro

from jaxdiff.training.launch import launch as start
from jaxdiff.training.launch import wait


@dataclasses.dataclass(frozen=True)
class Launch:
    """Run `jaxdiff train` as several processes of this machine, each with CPU devices of its own.

    What stands behind -- is the command: jaxdiff launch --processes 2 --devices 2 -- train --data moons

    Attributes:
      processes: their number.
      devices: CPU devices of each process.
      heartbeat: seconds after which a process without a sign of life counts as gone, and the others end.
    """

    processes: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 2
    devices: int = 1
    heartbeat: int = 10


def launch(words):
    """Starts the processes and waits for them.

    Returns:
      The first exit code that is not 0, or 0; 130 where Ctrl-C has stopped them. Signals are passed on to
      the processes as SIGTERM.

    Raises:
      SystemExit: where no command stands behind `--`.
    """
    cut = words.index("--") if "--" in words else len(words)
    given = tyro.cli(Launch, prog="jaxdiff launch", args=words[:cut])
    command = words[cut + 1 :]
    if command[:1] != ["train"] or given.processes < 1 or given.devices < 1:
        print(
            "jaxdiff: expected positive numbers and a command: jaxdiff launch -n 2 -- train --data moons",
            file=sys.stderr,
        )
        return 2
    running, caught = start(command, given.processes, given.devices, given.heartbeat), []

    def stop(number, frame):
        caught.append(number)
        running[0].send_signal(signal.SIGTERM)  # one notice is enough: the processes stop together

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    codes = (code if code >= 0 else 128 - code for code in wait(running))
    code = next(filter(None, codes), 0)
    return 128 + caught[0] if caught and code == 128 + signal.SIGTERM else code
