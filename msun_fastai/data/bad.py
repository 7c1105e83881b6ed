"""Images that cannot be decoded: skipped and counted, or the end of the run."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from msun_fastai.errors import UserError

# skip: go on without it, up to a share of all; stop: the first one is an error
ON_BAD_IMAGE = ("skip", "stop")
MAX_BAD = 0.01  # share of the training images
SAID, SHORT = 100, 300  # reasons, characters
NAMED = 5  # images that an error or a warning names


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used: the part it is in, and the reason, which names it."""

    part: str
    reason: str


class BadImages:
    """Which of a loader's `n` images could not be decoded, in memory that its workers share."""

    def __init__(self, n: int):
        self._flags = torch.zeros(n, dtype=torch.uint8).share_memory_()
        self.told = 0  # how many of them were reported

    def mark(self, i: int) -> None:
        """Image `i` could not be decoded."""
        self._flags[i] = 1

    def __contains__(self, i: int) -> bool:
        return bool(self._flags[i])

    def __len__(self) -> int:
        return int(self._flags.sum(dtype=torch.int64))

    def indices(self) -> list[int]:
        """The indices of the images that could not be decoded, ascending."""
        return self._flags.nonzero().flatten().tolist()


class StreamedBad:
    """How many images of a stream could not be decoded, and why the first could not.

    Workers share it; the main process takes what they say with `reasons`.
    """

    def __init__(self, workers: int):
        self._counts = torch.zeros(max(1, workers), dtype=torch.int64).share_memory_()
        # of a pipe, which holds 64 KiB until the main process looks: few reasons, and short ones
        self._said: Any = multiprocessing.SimpleQueue()
        self._reasons: list[str] = []
        self.told = 0

    def mark(self, worker: int, reason: str) -> None:
        """An image could not be decoded in `worker` for `reason`."""
        self._counts[worker] += 1  # of its own: two at once would lose one
        if int(self._counts[worker]) <= SAID // len(self._counts):
            self._said.put(reason[:SHORT])

    def __len__(self) -> int:
        return int(self._counts.sum())

    def reasons(self) -> list[str]:
        """Why the first of them could not be."""
        while not self._said.empty():
            self._reasons.append(self._said.get())
        return self._reasons


def too_many(bad: int, n: int, share: float = MAX_BAD) -> bool:
    """Whether `bad` of `n` training images are more than may be skipped."""
    return bad > share * n


def listed(reasons: Sequence[str], n: int) -> str:
    """The first of `n` reasons in a line."""
    more = f"; and {n - NAMED} more" if n > NAMED else ""
    return "; ".join(reasons[:NAMED]) + more


def refuse_too_many(
    reasons: Sequence[str], bad: int, n: int, share: float, part: str = "training"
) -> None:
    """Raise `UserError` that names the first of `bad` images in `n` where they are too many."""
    if bad and too_many(bad, n, share):
        raise UserError(
            f"{bad} of {n} {part} images cannot be read, more than {share:.2%}: "
            f"{listed(reasons, bad)}"
        )
