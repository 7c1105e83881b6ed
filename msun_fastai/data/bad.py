"""Images that cannot be decoded: skipped and counted, or the end of the run."""

from __future__ import annotations

import mmap
import multiprocessing
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from msun_fastai.errors import UserError

# skip: go on without it, up to a share of all; stop: the first one is an error
ON_BAD_IMAGE = ("skip", "stop")
MAX_BAD = 0.01  # share of the training images
KEPT, SHORT = 4096, 400  # reasons that are kept, and bytes of each
NAMED = 5  # images that an error or a warning names


@dataclass(frozen=True)
class BadImage:
    """An image that cannot be used: the part it is in, and the reason, which names it."""

    part: str
    reason: str


class BadImages:
    """Which images of a loader could not be decoded, and why, in memory that its workers share.

    n: number of images, of which each counts once; 0 for a stream, whose images have no index. A
    copy, and one in a process that is not forked from this one, starts anew.
    """

    def __init__(self, n: int = 0):
        self.n = n
        self._flags = shared_bytes(n)
        self._count = multiprocessing.Value("q", 0)
        self._texts: np.ndarray | None = None
        self._which: np.ndarray | None = None  # of the images a reason is of
        self.told = 0  # how many of them were reported

    def __getstate__(self) -> dict[str, int]:
        return {"n": self.n}

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["n"])  # type: ignore[misc]

    def share(self) -> None:
        """Make room for what the workers will have to say, before they start."""
        if self._texts is None:
            self._which = shared_bytes(KEPT * 8).view(np.int64)
            self._texts = shared_bytes(KEPT * SHORT).reshape(KEPT, SHORT)

    def mark(self, reason: str, i: int | None = None) -> None:
        """An image, the `i`-th, could not be decoded for `reason`."""
        self.share()
        with self._count.get_lock():  # two workers at once would lose one
            if i is not None and self._flags[i]:
                return
            row = self._count.value
            self._count.value += 1
            if i is not None:
                self._flags[i] = 1
            # with the lock held: whoever sees the count finds the reason
            if row < KEPT and self._texts is not None and self._which is not None:
                self._which[row] = -1 if i is None else i
                text = reason.encode("utf-8", "backslashreplace")[:SHORT]
                self._texts[row, : len(text)] = np.frombuffer(text, np.uint8)

    def clear(self) -> None:
        """Forget them, before a stream comes again."""
        self._count.value, self.told = 0, 0
        self._flags[:] = 0
        if self._texts is not None:
            self._texts[:] = 0

    def __contains__(self, i: int) -> bool:
        return bool(self.n and self._flags[i])

    def __len__(self) -> int:
        return self._count.value

    def indices(self) -> list[int]:
        """The indices of the images that could not be decoded, ascending."""
        return self._flags.nonzero()[0].tolist()

    def marks(self) -> list[tuple[int, str]]:
        """The index of each and its reason, as they were found; empty where it was not kept.

        None of a stream, whose images have no index.
        """
        with self._count.get_lock():
            reasons, flagged = self.reasons(), self.indices()
            which = [] if self._which is None else self._which[: len(reasons)].tolist()
        if not self.n:
            return []
        return [*zip(which, reasons), *((i, "") for i in sorted(set(flagged) - set(which)))]

    def reasons(self, n: int = KEPT) -> list[str]:
        """Why the first `n` of them could not be, a line each that names the image."""
        if self._texts is None:
            return []
        with self._count.get_lock():
            rows = self._texts[: min(n, self._count.value)].copy()
        return [row.tobytes().rstrip(b"\0").decode("utf-8", "replace") for row in rows]


def shared_bytes(n: int) -> np.ndarray:
    """`n` zeros (uint8) in memory that forked processes share."""
    return np.frombuffer(mmap.mmap(-1, max(n, 1)), np.uint8)[:n]


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
            f"{bad} of {n} {part} images cannot be read, more than {share:.2%} (max_bad, with "
            f"--set data.max_bad=...; `msun-fastai datasets scan --decode` names them all): "
            f"{listed(reasons, bad)}"
        )


def bad_lines(bad: Sequence[BadImage]) -> list[str]:
    """What to tell a user of images that are left out: the first ones, and how many more."""
    lines = [f"left out: {image.reason}" for image in bad[:NAMED]]
    return lines + [f"left out: {len(bad) - NAMED} more"] * (len(bad) > NAMED)
