"""The command line: `train`, `sample`, `evaluate`, `inspect`, `export`, `replay`, `report`,
`list`, and `launch` for several processes of one machine."""

import os
import signal
import sys
import traceback

from jaxdiff.cli import interrupts
from jaxdiff.cli.interrupts import INTERRUPTED

CANNOT_SAVE, BAD_INPUT, NOT_FINITE = 74, 2, 1


def command():
    """The program `jaxdiff`: ends with the code of `main`; at Ctrl-C at once where no run has to be saved."""
    interrupts.end_at_once()
    sys.exit(main())


def main(args=None):
    """Runs one command.

    Args:
      args: words of the command line; `sys.argv` without the program by default.

    Returns:
      The exit code: 0; 1 for a loss that is not finite; 2 for bad input; 74 where the run's directory, or
      a command's file, cannot be written; 75 from the watchdog, for a run that is stuck; 130 after Ctrl-C
      and 143 after SIGTERM, once the run is saved; 141 where nobody reads what it prints any more.
    """
    from jaxdiff.cli import again, commands, local, threads
    from jaxdiff.training import distributed, keep_freed_memory

    if threads.only_cpu():  # an accelerator has its own
        keep_freed_memory()
    args = sys.argv[1:] if args is None else list(args)
    if args[:1] == ["launch"]:  # all words behind it belong to another command
        return local.launch(args[1:])

    table = {
        "train": (commands.Train, commands.train),
        "sample": (commands.Sample, commands.sample),
        "evaluate": (commands.Evaluate, commands.evaluate),
        "inspect": (commands.Inspect, commands.inspect),
        "export": (commands.Export, commands.export),
        "replay": (again.Replay, again.replay),
        "report": (commands.Report, commands.report),
        "list": (commands.List, commands.list_names),
    }
    kinds = {name: kind for name, (kind, _) in table.items()}
    given = _parse(args, kinds)
    run = next(function for kind, function in table.values() if isinstance(given, kind))
    _enable_compilation_cache()
    try:
        if isinstance(given, commands.Train) and (saved := commands.saved_settings(given.out)):
            given = _parse(args, kinds, train=saved)  # what is not said again is as the run has it
        if getattr(given, "coordinator", None) is not None:
            distributed.join(given.coordinator, given.processes, given.process_id, given.heartbeat)
        elif getattr(given, "processes", None) is not None or getattr(given, "process_id", None) is not None:
            raise ValueError("train: expected --coordinator with --processes and --process-id, got none")
        with threads.at_most(commands.threads_of(given)), distributed.together(_ended):
            run(given)
        sys.stdout.flush()  # here a closed pipe can still be told
    except BaseException as error:
        if (code := _ended(error)) is None:
            raise
        return code
    return 0


def _parse(args, kinds, **defaults):
    """The settings of one command, those not given out of `defaults`."""
    import functools
    import operator
    from typing import Annotated

    import tyro

    def command(name, kind):
        given = {"default": defaults[name]} if name in defaults else {}
        return Annotated[kind, tyro.conf.subcommand(name, **given)]

    union = functools.reduce(operator.or_, (command(*item) for item in kinds.items()))
    return tyro.cli(union, prog="jaxdiff", args=args, description=__doc__)


def _ended(error):
    """The exit code of an error that ends a command, once it is said; None of a fault of this package."""
    from jaxdiff.training import CannotSave, Interrupted

    if isinstance(error, ValueError) and _raised_here(error):
        return _say(error, BAD_INPUT)
    if isinstance(error, FloatingPointError):
        return _say(error, NOT_FINITE)
    if isinstance(error, CannotSave):
        return _say(error, CANNOT_SAVE)
    if isinstance(error, Interrupted):
        return _say(error, INTERRUPTED + error.number)
    if isinstance(error, BrokenPipeError) and _raised_here(error):  # of `jaxdiff ... | head`, a print of ours
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return INTERRUPTED + signal.SIGPIPE
    if isinstance(error, KeyboardInterrupt):
        return _say("stopped", INTERRUPTED + signal.SIGINT)
    return None


def _say(error, code):
    print(f"jaxdiff: {error}", file=sys.stderr)
    return code


def _raised_here(error):
    """Whether an error is one of this package's own messages, and not a fault that needs a traceback."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__))) in os.path.abspath(frame.filename)


def _enable_compilation_cache():
    """Keeps compiled programs in the user's cache folder, unless jax was told another."""
    import jax

    from jaxdiff.metrics.classifier import cache_folder

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "compilation"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

