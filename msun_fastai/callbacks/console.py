"""What a run shows and keeps while it trains: progress on a terminal, lines in a log, a CSV."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from fastai.callback.core import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from msun_fastai.callbacks.views import TermLogger
from msun_fastai.errors import BadImageWarning
from msun_fastai.files import write_rows
from msun_fastai.processes import is_main

LOSSES = 3  # decimals


def describe_epoch(row: dict[str, Any]) -> str:
    """One epoch's figures in a line: losses as they are, accuracies in per cent."""
    parts = []
    for name, value in row.items():
        if isinstance(value, float):
            is_share = name.startswith("acc")
            parts.append(f"{name} {value:.1%}" if is_share else f"{name} {value:.{LOSSES}f}")
        elif value is not None and name not in ("phase", "epoch"):
            parts.append(f"{name} {value}")
    return "  ".join(parts)


class ConsoleProgress(Callback):
    """A progress bar over the batches on a terminal, and one plain line an epoch everywhere.

    Used as a context manager around the training, so that the terminal is put back whatever
    happens in it.
    """

    order = TermLogger.order + 1

    def __init__(self, console: Console, label: str):
        self.console, self.label = console, label
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> ConsoleProgress:
        self.progress.start()
        self.task = self.progress.add_task(self.label, total=None)
        return self

    def __exit__(
        self, kind: type | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def before_train(self) -> None:
        self._restart("train")

    def before_validate(self) -> None:
        self._restart("valid")

    def _restart(self, part: str) -> None:
        text = f"{self.label} epoch {self.epoch + 1}/{self.n_epoch} {part}"
        self.progress.reset(self.task, total=len(self.dl), description=text)

    def after_batch(self) -> None:
        self.progress.advance(self.task)

    def after_epoch(self) -> None:
        row = dict(zip(self.recorder.metric_names, self.recorder.log))
        self.console.print(
            f"{self.label} epoch {self.epoch + 1}/{self.n_epoch}  {describe_epoch(row)}",
            highlight=False,
            soft_wrap=True,
        )


class History(Callback):
    """Every epoch's figures in a CSV file, rewritten whole after each epoch.

    `phase` counts the calls of `fit`: fine-tuning trains the head first, then everything. Their
    terms differ, and every row has the columns of all of them so far.
    """

    order = ConsoleProgress.order + 1

    def __init__(self, file: Path):
        self.file, self.phase = file, 0
        self.rows: list[dict[str, Any]] = []

    def before_fit(self) -> None:
        self.phase += 1

    def after_epoch(self) -> None:
        row = dict(zip(self.recorder.metric_names, self.recorder.log))
        self.rows.append({"phase": self.phase, **row})
        if is_main():
            write_rows(self.file, same_columns(self.rows))

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved with a checkpoint."""
        return {"phase": self.phase, "rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.phase, self.rows = state["phase"], [dict(row) for row in state["rows"]]


def same_columns(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """`rows` with the columns of all of them, those that the first one lacks before its last, which
    is the time; None where a row has no such value."""
    columns = list(rows[0])
    for row in rows:
        columns[-1:-1] = [name for name in row if name not in columns]
    return [{name: row.get(name) for name in columns} for row in rows]


@contextmanager
def warnings_told(console: Console) -> Iterator[None]:
    """Print what is warned of bad images to `console`, as it comes."""
    with warnings.catch_warnings():
        warnings.simplefilter("always", BadImageWarning)
        shown = warnings.showwarning

        def show(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
            if issubclass(category, BadImageWarning):
                console.print(str(message), highlight=False, soft_wrap=True, markup=False)
            else:
                shown(message, category, *where, **more)

        warnings.showwarning = show
        yield
