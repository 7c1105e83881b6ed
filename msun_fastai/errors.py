"""Errors that a user can mend, and the words that say how."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

INTERRUPT = 2  # the number of the signal that Ctrl-C sends


class OneLine(Exception):
    """An error whose text is one line for whoever runs the program, and stays what it is: fastai
    writes the callback's name into the errors that come out of one."""

    def __init__(self, message: str):
        self.message = " ".join(message.splitlines())
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message


class UserError(OneLine):
    """Bad input. Its text is one line: what is wrong, where (file, row, key), what to do.

    The command line prints that line and exits with 2.
    """

    def __init__(self, message: str):
        if re.match(r"Caught \w+ in DataLoader worker process", message):
            # torch raises a worker process's error again with its traceback for a message; the
            # last line is what the worker said
            message = message.rstrip().splitlines()[-1].partition(": ")[2]
        super().__init__(message)


class TrainingError(OneLine):
    """Training that failed for a reason worth a line of its own; exit code 1."""


class Stopped(OneLine):
    """Training that a signal ended between two steps; exit code 128 and the signal's number."""

    def __init__(self, signal: int):
        self.signal = signal
        super().__init__("interrupted" if signal == INTERRUPT else "terminated")


class ImageError(UserError):
    """One image that cannot be used: unreadable, truncated, empty, too large, or no image."""


class BadImageWarning(UserWarning):
    """Images that cannot be read and are left out."""


def did_you_mean(word: str, known: Iterable[str], n: int = 3) -> str:
    """The part of an error that names what is near `word`, or else everything there is.

    >>> did_you_mean("resnet19", ["resnet18", "vgg16"])
    'did you mean resnet18?'
    """
    known = sorted(set(known))
    near = difflib.get_close_matches(word, known, n=n, cutoff=0.6)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return f"known: {', '.join(known)}"
