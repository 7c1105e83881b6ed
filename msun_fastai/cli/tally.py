"""What `predict` says: the first rows, how fast it goes, and which subnets the images took."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from msun_fastai.cli.output import print_table, say

if TYPE_CHECKING:
    from rich.console import Console

    from msun_fastai.predict import Prediction

SHOWN = 50  # rows of the table on screen; --out has them all


class Tally:
    """Counts while it goes, a table at the end. counts: images by scale, None for those that could
    not be read, counted by whoever gives them."""

    def __init__(self, console: Console, counts: Counter[int | None]):
        self.console, self.counts = console, counts
        self.rows: list[list[Any]] = []
        self.before, self.started = counts.total(), time.perf_counter()
        self._update: Any = bool

    @property
    def unreadable(self) -> int:
        """How many images could not be read."""
        return self.counts[None]

    @contextmanager
    def shown(self) -> Iterator[None]:
        """A line that is kept up to date on a terminal, nothing on a log."""
        from rich.progress import Progress, SpinnerColumn, TextColumn

        if not self.console.is_terminal:
            yield
            return
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
        with Progress(*columns, console=self.console, transient=True) as bar:
            task = bar.add_task("")
            self._update = lambda: bar.update(task, description=self.line())
            yield

    def add(self, chunk: Sequence[Prediction]) -> None:
        """Count a chunk of predictions that is done."""
        self.rows += [screen_row(p) for p in chunk[: SHOWN - len(self.rows)]]
        self._update()

    def line(self) -> str:
        """How many images, how fast, through which subnets."""
        total = self.counts.total()
        rate = (total - self.before) / (time.perf_counter() - self.started)
        read = total - self.unreadable
        shares = (
            f"{scale}: {n / read:.1%}".replace("%", " %")
            for scale, n in sorted((s, n) for s, n in self.counts.items() if s is not None)
        )
        before = f" ({self.before:,} of them before)" if self.before else ""
        return f"{total:,} images{before}, {rate:.1f} a second; subnets {', '.join(shares)}"

    def print(self) -> None:
        """The first rows, and what came of all."""
        columns = ("path", "size", "subnet", "label", "probability", "error")
        print_table(self.console, "", columns, self.rows)
        if (more := self.counts.total() - self.before - len(self.rows)) > 0:
            say(self.console, f"... and {more} more; --out writes them all")
        say(self.console, self.line())
        if self.unreadable:
            total = self.counts.total()
            say(self.console, f"{self.unreadable} of {total} images could not be read")


def screen_row(p: Prediction) -> list[Any]:
    """What the table on screen shows of a prediction."""
    size = f"{p.width}x{p.height}" if p.width else ""
    share = "" if p.probability is None else f"{p.probability:.1%}".replace("%", " %")
    return [p.path, size, p.scale, p.label, share, p.error]
