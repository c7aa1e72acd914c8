"""Memory of the host between the steps of a training run."""

import ctypes
import functools
import resource
import sys

ARENA_MAX, MMAP_MAX, TRIM_THRESHOLD = -8, -4, -1  # of glibc's malloc.h
NEVER = -1
COMPILED = "/jax/core/compile/backend_compile_duration"  # the event of a program compiled, or loaded
LARGE, SMALL = 2**28, 2**14  # bytes of a block that fits no hole, and of the least hole that is filled


def keep_freed_memory() -> bool:
    """Lets malloc keep what is freed, because a step on the CPU wants it back at once.

    XLA allocates the temporary values of a step anew in each call. glibc takes blocks of that
    size from the kernel and returns them, and to map and zero their pages again costs up to a
    quarter of the step of a U-Net. The threads that jax starts then share one heap, which
    grows to what the largest step needs and is kept; the holes that a compilation leaves in it
    are filled (`fill_holes`). A setting of the whole process, which the command line makes;
    call it before the first computation.

    Returns:
        Whether the C library took the settings; without glibc nothing is done.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    settings = {ARENA_MAX: 1, MMAP_MAX: 0, TRIM_THRESHOLD: NEVER}
    if mallopt is None or not all(mallopt(*item) for item in settings.items()):
        return False
    _follow_compilations()
    return True


@functools.cache  # once
def _follow_compilations():
    import jax

    jax.monitoring.register_event_duration_secs_listener(_after_event)


def _after_event(event, seconds, **_):
    if event == COMPILED and seconds > 0.5:
        fill_holes()


def fill_holes() -> int:
    """Takes the holes of the heap out of malloc's way, whose search among them is linear in their number.

    A compilation of seconds leaves tens of thousands. Their pages go back to the system first; only
    addresses, and a page of each hole, stay in use, until the process ends. Blocks are allocated from
    large to small, each size until one comes from behind the last hole. Takes a tenth of a second.

    Returns:
        The number of blocks that fill them.
    """
    libc = ctypes.CDLL(None)
    malloc, free = libc.malloc, libc.free
    malloc.restype, malloc.argtypes, free.argtypes = ctypes.c_void_p, (ctypes.c_size_t,), (ctypes.c_void_p,)
    libc.malloc_trim(ctypes.c_size_t(0))
    behind = malloc(LARGE) or 0
    free(behind)
    size, filled = LARGE // 4, 0
    left = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # holes were resident once
    while size >= SMALL and left > 0:
        block = malloc(size)
        if block is not None and block < behind:
            filled, left = filled + 1, left - size
        else:
            free(block)
            size = size * 15 // 16
    return filled
