"""Decoded pixels kept in memory that all loader processes share."""

from __future__ import annotations

import math
import mmap
import multiprocessing
from pathlib import Path

import numpy as np

SHARE = 4  # a quarter of what is free
MOST = 4 * 2**30  # bytes
UNKNOWN = 2**30  # bytes, where the system does not say what is free
FIELDS = 4  # of a row: where an array starts, and its three dimensions


def free_memory() -> int | None:
    """Bytes of memory that this process may still take, or None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable"))
    except (OSError, StopIteration, ValueError):
        return None
    group = Path("/sys/fs/cgroup")  # a container has its own limit
    try:
        limit = int((group / "memory.max").read_text())
        taken = int((group / "memory.current").read_text())
        stats = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # files that were read count as taken, and are given up where the room is needed
        return min(free, max(0, limit - taken + int(stats.get("inactive_file", 0))))
    except (OSError, ValueError):
        return free


def default_budget() -> int:
    """Bytes of decoded pixels to keep where nobody says how many."""
    free = free_memory()
    return UNKNOWN if free is None else min(MOST, free // SHARE)


class PixelCache:
    """uint8 arrays of three dimensions by index, in memory that forked processes share.

    n: number of arrays. budget: bytes; what does not fit is not kept. Pages are taken as they are
    filled. A process that is not forked from this one (and a pickled cache) has none: it keeps
    nothing and finds nothing.
    """

    def __init__(self, n: int, budget: int):
        self.budget = budget if n else 0
        try:
            self._pixels = mmap.mmap(-1, self.budget) if self.budget else None
            table = mmap.mmap(-1, n * FIELDS * 8) if self.budget else bytearray()
        except (OSError, OverflowError, ValueError):  # so much cannot be had
            self.budget, self._pixels, table = 0, None, bytearray()
        self._table = np.frombuffer(table, np.int64).reshape(-1, FIELDS)
        self._used = multiprocessing.Value("q", 0) if self.budget else None

    def __getstate__(self) -> dict[str, int]:
        return {}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(0, 0)  # type: ignore[misc]

    def __len__(self) -> int:
        """How many arrays are kept."""
        return int((self._table[:, 1] > 0).sum())

    def get(self, i: int) -> np.ndarray | None:
        """Array `i`, not to be written to; None where it is not kept."""
        if self._pixels is None or not self._table[i, 1]:
            return None
        offset, *shape = self._table[i].tolist()
        return np.frombuffer(self._pixels, np.uint8, math.prod(shape), offset).reshape(shape)

    def put(self, i: int, pixels: np.ndarray) -> None:
        """Keep `pixels` as array `i` while there is room."""
        if self._pixels is None or self._used is None or self._table[i, 1]:
            return
        with self._used.get_lock():
            offset = self._used.value
            if offset + pixels.nbytes > self.budget:
                return
            self._used.value = offset + pixels.nbytes
        np.frombuffer(self._pixels, np.uint8, pixels.nbytes, offset)[:] = pixels.ravel()
        self._table[i, 0], self._table[i, 2:] = offset, pixels.shape[1:]
        self._table[i, 1] = pixels.shape[0]  # last: it says that the others are there
