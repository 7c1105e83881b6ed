"""How this process keeps its memory."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of glibc's malloc.h
NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let this process keep the memory that tensors free instead of giving it back each time.

    glibc maps every tensor above 32 MiB anew, and the pages of a training step are faulted in
    again and again: with ResNet-50 and three views of 8 images a step took 1.2 to 1.5 times as
    long so, for 0.87 times the memory (`benchmarks/step_time.py`, 2 cores). Meant for a process
    that is ours alone, as the command line's. Returns whether it was done: not on other C
    libraries, nor where the environment already says how malloc shall behave.
    """
    if any(name.startswith(("MALLOC_", "GLIBC_TUNABLES")) for name in os.environ):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, NEVER))
