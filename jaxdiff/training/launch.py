"""Several processes of one run on this machine, over loopback: for tests and laptops."""

import os
import socket
import subprocess
import sys
import time

JAXDIFF = ("-m", "jaxdiff")
GRACE = 5.0  # seconds between the end of one process and the end of those that do not follow


def free_port():
    """A port of the loopback interface that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def launch(arguments, processes, devices=1, heartbeat=10, environment=None, output=None, program=JAXDIFF):
    """Starts `python PROGRAM ARGUMENTS` as several processes with CPU devices of their own.

    Args:
      arguments: words of the command line, such as `["train", "--data", "moons"]`.
      processes: their number.
      devices: CPU devices of each.
      heartbeat: seconds after which a process that gives no sign of life counts as gone.
      environment: variables beside those of this process.
      program: words of the program, which takes `--coordinator` and the like as `jaxdiff train` does.
      output: where the processes print, a file or a list of one for each; this process's own by default.

    Returns:
      The `subprocess.Popen`s, which have all to run until they end: see `wait`.
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    cpu = {
        "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(),
        "NPROC": str(max(16, 4 * devices)),  # a smaller thread pool deadlocks CPU collectives
    }
    address = f"127.0.0.1:{free_port()}"
    outputs = output if isinstance(output, list) else [output] * processes
    return [
        subprocess.Popen(
            [
                sys.executable, *program, *arguments, "--coordinator", address, "--processes",
                str(processes), "--process-id", str(i), "--heartbeat", str(heartbeat),
            ],
            env=os.environ | cpu | (environment or {}), stdout=outputs[i], stderr=outputs[i],
        )
        for i in range(processes)
    ]


def wait(running, grace=GRACE, limit=None):
    """Waits until all processes have ended.

    Once one has failed, kills those that are still there after `grace` seconds, and all after `limit`.
    SIGTERM would not do: jax takes it for a notice to save.

    Returns:
      Exit codes, in the order of `running`.
    """
    begin, failed = time.monotonic(), None
    while any(process.poll() is None for process in running):
        now = time.monotonic()
        if failed is None and any(process.returncode not in (None, 0) for process in running):
            failed = now
        late = failed is not None and now - failed > grace
        if late or (limit is not None and now - begin > limit):
            for process in running:
                if process.poll() is None:
                    process.kill()
        time.sleep(0.05)
    return [process.returncode for process in running]
