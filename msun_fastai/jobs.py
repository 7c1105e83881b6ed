"""Work in processes beside each other: what they say, how they fail, and that none outlives this
one."""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import (
    get_context,
    get_start_method,
    parent_process,
    resource_tracker,
    set_start_method,
)
from multiprocessing.connection import Connection, wait
from typing import Any, cast

from msun_fastai.errors import OneLine, Stopped, TrainingError
from msun_fastai.stopping import StopRequest, stop_on_signals

POLL = 0.5  # seconds between two looks at whether somebody asked for the end
INTERRUPT = {signal.SIGINT}


@dataclass(frozen=True)
class Job:
    """`work(said, *given)` in a process of its own. said: a text file that the work prints to.

    work has to be a module's function, and `given` what pickle takes.
    """

    name: str
    work: Callable[..., object]
    given: tuple[Any, ...] = ()


class _Told(Exception):
    """The traceback of another process, as a cause."""


def side_by_side(jobs: Sequence[Job], at_once: int, said: Callable[[str, str], object]) -> None:
    """Do all `jobs`, in their order, `at_once` of them beside each other, each in a new process.

    said: called with a job's name and each line that it prints. The first error of a job ends the
    others and is raised here; a process that was killed is a `TrainingError`. A signal that asks
    this process to stop asks all of them, and raises `Stopped` when they have; a second one kills
    them. They end, too, when this process is killed.
    """
    todo, failure = deque(jobs), None
    running: dict[Connection, tuple[Job, Any]] = {}
    with stop_on_signals() as stop:
        asked = False
        try:
            while running or (todo and not asked):
                while todo and len(running) < at_once and not asked:
                    job = todo.popleft()
                    pipe, process = _start(job)
                    running[pipe] = job, process
                for pipe in cast(list[Connection], wait(list(running), POLL)):
                    job, process = running[pipe]
                    ended, error = _heard(pipe, job, process, said)
                    if ended:
                        del running[pipe]
                    if error is not None and failure is None and not _was_asked(error, asked):
                        failure = error
                if not asked and (failure is not None or stop.signal):
                    asked = True
                    for _, process in running.values():
                        process.terminate()
        finally:  # after a second signal
            for _, process in running.values():
                process.kill()
                process.join()
        _raise(failure, stop)


def _raise(failure: Exception | None, stop: StopRequest) -> None:
    if failure is not None:
        raise failure
    stop.check()


def _was_asked(error: Exception, asked: bool) -> bool:
    """Whether a job did no more than what this process told it to."""
    return asked and isinstance(error, Stopped)


def _start(job: Job) -> tuple[Connection, Any]:
    spawning = get_context("spawn")
    pipe, theirs = spawning.Pipe(duplex=False)
    # the work is found there when the terminal's signals no longer are
    given = (theirs, pickle.dumps(job), list(warnings.filters), get_start_method())
    process = spawning.Process(target=_child, args=given, name=job.name)
    resource_tracker.ensure_running()  # else by `start`, which would let the signals in again
    with _no_interrupt():
        process.start()
    theirs.close()  # so that its end is seen
    return pipe, process


@contextmanager
def _no_interrupt() -> Iterator[None]:
    """Ctrl-C waits, here and in a process that is started, which says itself when it may come."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPT)


def _heard(
    pipe: Connection, job: Job, process: Any, said: Callable[[str, str], object]
) -> tuple[bool, Exception | None]:
    """Take what a job has sent: whether it has ended, and its error."""
    try:
        what, *more = pipe.recv()
    except (EOFError, OSError):  # killed, perhaps while it was sending
        process.join()
        return True, _death(process.exitcode)
    if what == "line":
        said(job.name, more[0])
        return False, None
    process.join()
    if what == "done":
        return True, None
    error, trace = more
    error.__cause__ = _Told(f"\n{trace}")
    return True, error


def _death(code: int) -> Exception:
    if code == -signal.SIGTERM:
        return Stopped(signal.SIGTERM)
    how = f"ended by signal {-code}" if code < 0 else f"gone with code {code}"
    more = "; memory may have been short" if code == -9 else ""
    return TrainingError(f"its process was {how}{more}")


class _Lines(io.TextIOBase):
    """A text file that sends each line."""

    def __init__(self, pipe: Connection):
        self.pipe, self.begun = pipe, ""

    def write(self, text: str) -> int:
        *lines, self.begun = (self.begun + text).split("\n")
        for line in lines:
            with suppress(OSError):  # nobody listens any more: `_end_with` sees to that
                self.pipe.send(("line", line))
        return len(text)


def _child(pipe: Connection, pickled: bytes, filters: list[Any], method: str) -> None:
    """A process that does a job; it hears nothing but what its parent tells it.

    filters: of warnings; what the parent does not show is not shown here. method: how processes
    are started, of a loader, say: as the parent does it, not as this one was.
    """
    warnings.filters[:] = filters  # type: ignore[index]
    set_start_method(method, force=True)
    if hasattr(os, "setsid"):
        os.setsid()  # Ctrl-C on the terminal goes to the parent alone
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, INTERRUPT)
    threading.Thread(target=_end_with, args=(parent_process(),), daemon=True).start()
    message: tuple[Any, ...] = ("done",)
    try:
        job = pickle.loads(pickled)
        job.work(_Lines(pipe), *job.given)
    except OneLine as error:
        message = ("failed", _plain(error), traceback.format_exc())
    except Exception as error:
        text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        message = ("failed", TrainingError(text), traceback.format_exc())
    with suppress(OSError):
        pipe.send(message)


def _plain(error: Exception) -> Exception:
    """The error without what pickle may not take."""
    error.__cause__ = error.__context__ = None
    return error.with_traceback(None)


def _end_with(parent: Any) -> None:
    """Ask this process to stop when its parent is gone."""
    parent.join()
    os.kill(os.getpid(), signal.SIGTERM)
