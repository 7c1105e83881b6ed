"""Signals that end a training between two steps, with its state saved."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import parent_process
from types import FrameType

from msun_fastai.errors import Stopped
from msun_fastai.processes import is_main

TWICE = 2.0  # seconds in which a second signal is the first one again
WORKER = "DataLoader worker"  # how torch's error begins, between two batches
# in the middle of a batch, whose memory the worker hands over through a socket
CUT_OFF = (EOFError, ConnectionError, FileNotFoundError)


class StopRequest:
    """Whether somebody asked for the end: the signal's number, 0 as long as nobody did."""

    def __init__(self) -> None:
        self.signal, self.at = 0, 0.0

    def check(self) -> None:
        """Raise `Stopped` if somebody asked."""
        if self.signal:
            raise Stopped(self.signal)

    def took_worker(self, error: BaseException) -> bool:
        """Whether `error` comes of a loader's process that got the signal, too, and is gone."""
        gone = isinstance(error, RuntimeError) and WORKER in str(error)
        return bool(self.signal) and (gone or isinstance(error, CUT_OFF))


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """SIGTERM and Ctrl-C are noted for whoever asks between two steps; a second one ends at once,
    unless it comes within two seconds: a launcher may send the same signal twice. What a loader's
    process leaves behind that went with the first one becomes `Stopped`.

    Only in the main thread, where Python delivers signals; elsewhere nothing is ever noted.
    """
    request, owner = StopRequest(), os.getpid()

    def note(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if request.signal and now - request.at > TWICE:
            raise Stopped(number)
        if not request.signal:
            request.signal, request.at = number, now
            # the loader's processes inherit this; of side by side ones the parent speaks
            if is_main() and os.getpid() == owner and parent_process() is None:
                os.write(2, b"msun-fastai: stopping after this step\n")

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield request
    except Exception as error:
        if request.took_worker(error):
            raise Stopped(request.signal) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
