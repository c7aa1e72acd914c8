"""Imports the modules that it is given, then runs a program in a fork of itself for every line of input.

A program spends most of its short life in a test on imports; a fork has them done. A line is JSON:
`words`, as behind `python`, and the files `out` and `error`. The answers are the fork's process number
and, once it has ended, its exit code, negative for a signal.
"""

import importlib
import json
import os
import runpy
import sys

for name in sys.argv[1:]:
    importlib.import_module(name)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        break
    os.write(1, f"{child}\n".encode())
    os.write(1, f"{os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])}\n".encode())
else:
    sys.exit()
os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
for number, name in ((1, "out"), (2, "error")):
    os.dup2(os.open(order[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
program, *sys.argv[1:] = order["words"]
if program == "-m":
    sys.path[0] = os.getcwd()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
else:
    sys.path[0], sys.argv[0] = os.path.dirname(program), program
    runpy.run_path(program, run_name="__main__")
