"""Freed memory stays with the process, without the holes that slow malloc down."""

import subprocess
import sys

import jax
import pytest

from jaxdiff.training import memory

MEMORY = """
import importlib.util
import resource

import numpy as np

spec = importlib.util.find_spec("jaxdiff")
where = spec.submodule_search_locations[0] + "/training/memory.py"
spec = importlib.util.spec_from_file_location("memory", where)
memory = importlib.util.module_from_spec(spec)
spec.loader.exec_module(memory)
"""
FAULTS = """
if {keep}:
    assert memory.keep_freed_memory()
np.full(2**24, 1.0)
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    np.full(2**24, 1.0)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
HOLES = """
import ctypes

memory.keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.free.argtypes = ctypes.c_void_p, (ctypes.c_void_p,)
sizes = range(2**14, 2**16, 2**5)
blocks = [libc.malloc(size) for size in sizes]
for block, size in list(zip(blocks, sizes))[::2]:
    ctypes.memset(block, 1, size)
    libc.free(block)
assert libc.malloc(2**15) < blocks[-1]
assert 0.45 * len(blocks) < memory.fill_holes() < len(blocks)
assert libc.malloc(2**18) < blocks[-1] + 2**25  # nothing else was taken
for size in range(9 * 2**11, 2**18, 2**11):
    assert libc.malloc(size) > blocks[-1]
assert memory.fill_holes() < 10
"""


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_what_is_freed_is_not_mapped_again():
    kept, mapped = (
        int(subprocess.check_output([sys.executable, "-c", MEMORY + FAULTS.format(keep=keep)], text=True))
        for keep in (True, False)
    )
    assert kept < 100 and mapped > 200


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_after_filling_no_block_is_sought_among_the_holes():
    subprocess.check_call([sys.executable, "-c", MEMORY + HOLES])


@pytest.mark.skipif(sys.platform != "linux", reason="settings of glibc")
def test_the_holes_of_a_long_compilation_are_filled(monkeypatch):
    calls = []
    monkeypatch.setattr(memory, "fill_holes", lambda: calls.append(1))
    memory._follow_compilations()
    memory._follow_compilations()
    events = (memory.COMPILED, 0.1, 0), ("/another", 2.0, 0), (memory.COMPILED, 2.0, 1)
    for event, seconds, expected in events:
        jax.monitoring.record_event_duration_secs(event, seconds)
        assert len(calls) == expected
