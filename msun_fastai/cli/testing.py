"""What the verbs that look at a trained model have in common: the model, its images, the folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from msun_fastai.answers import Answers
    from msun_fastai.labelled import Labelled
    from msun_fastai.models.saving import SavedModel


def open_run(run: str, device: str | None = None) -> SavedModel:
    """The trained model of a run folder, on `device` or the best there is. Raises `UserError`."""
    from msun_fastai.devices import pick_device
    from msun_fastai.errors import UserError
    from msun_fastai.memory import keep_freed_memory
    from msun_fastai.models.saving import load_model_folder

    keep_freed_memory()
    folder = Path(run)
    begun, over = (folder / "recipe.toml").is_file(), (folder / "metrics.json").is_file()
    if begun and not over and not (folder / "model").is_dir():
        raise UserError(f"{run}: its run is not over; --resume {run} goes on with it")
    return load_model_folder(run, pick_device(device))


def images_of(run: str, saved: SavedModel, console: Console, **choice: Any) -> Labelled:
    """The images that `choice` says, see `find_images`; bad ones and notes are told."""
    from msun_fastai.cli.output import say
    from msun_fastai.data.bad import bad_lines
    from msun_fastai.labelled import find_images

    found = find_images(run, saved, **choice)
    for line in [*found.source.notes, *bad_lines(found.bad)]:
        say(console, line)
    return found


def tested_title(found: Labelled, answers: Answers) -> str:
    """What was tested, above a table: images that could not be read are none of them."""
    n, left_out = len(set(answers.images.tolist())), len(answers.unreadable)
    part = "images" if found.part == "all" else f"{found.part} images"
    more = f" ({left_out:,} more could not be read: {answers.unreadable[0]})" if left_out else ""
    return f"{found.name}: {n:,} {part}{more}"


@contextmanager
def progress(console: Console, what: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar on a terminal, nothing on a log; what it gives is called with the images that are
    done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    if not console.is_terminal:
        yield bool
        return
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=total)
        yield lambda n: bar.advance(task, n)


def percent(share: float | None) -> str:
    """A share as a table has it."""
    return "" if share is None else f"{100 * share:.1f} %"


def between(ends: Sequence[float]) -> str:
    """An interval of shares as a table has it."""
    low, high = ends
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def points(share: float, ends: Sequence[float]) -> str:
    """A difference of shares in percentage points, with its interval."""
    low, high = ends
    return f"{100 * share:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def billions(macs: float) -> str:
    """Multiply-accumulates in 1e9, with the digits that small networks need."""
    return f"{macs / 1e9:.3f}" if macs >= 1e8 else f"{macs / 1e9:.4f}"
