"""Images that cannot be decoded: skipped and counted, or the end of the run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from msun_fastai.errors import UserError

# skip: go on without it, up to a share of all; stop: the first one is an error
ON_BAD_IMAGE = ("skip", "stop")
MAX_BAD = 0.01  # share of the training images
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


def too_many(bad: int, n: int, share: float = MAX_BAD) -> bool:
    """Whether `bad` of `n` training images are more than may be skipped."""
    return bad > share * n


def refuse_too_many(reasons: Iterable[str], bad: int, n: int, share: float) -> None:
    """Raise `UserError` that names the first of `bad` images in `n` where they are too many."""
    if bad and too_many(bad, n, share):
        raise UserError(
            f"{bad} of {n} training images cannot be read, more than {share:.2%}: "
            f"{'; '.join(list(reasons)[:NAMED])}{'; ...' if bad > NAMED else ''}"
        )
