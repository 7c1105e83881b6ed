"""Signals that end a training between two steps, with its state saved."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from msun_fastai.errors import Stopped


class StopRequest:
    """Whether somebody asked for the end: the signal's number, 0 as long as nobody did."""

    def __init__(self) -> None:
        self.signal = 0

    def check(self) -> None:
        """Raise `Stopped` if somebody asked."""
        if self.signal:
            raise Stopped(self.signal)


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGTERM and Ctrl-C are noted for whoever asks between two steps; a second one ends at once.

    Only in the main thread, where Python delivers signals; elsewhere nothing is ever noted.
    """
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal:
            raise Stopped(number)
        request.signal = number

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
