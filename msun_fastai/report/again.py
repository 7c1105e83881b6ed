"""The report of a run that is over: its network is tested again, its page written again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.evaluate import Sweep, sweep
from msun_fastai.models.saving import SavedModel
from msun_fastai.report.folder import read_curves, read_metrics, recipe_sections
from msun_fastai.report.page import make_report
from msun_fastai.report.words import summary
from msun_fastai.routed import Routed, routed_test
from msun_fastai.runfolder import RECIPE


@dataclass(frozen=True)
class TestedAgain:
    """See `Tested`."""

    metrics: dict[str, Any]
    sweep: Sweep
    routed: Routed


@dataclass(frozen=True)
class Written:
    """The page's path, its summary, and what it is of."""

    page: Path
    summary: str
    tested: TestedAgain


def check_run(run: Path | str) -> dict[str, Any]:
    """The metrics of the finished run in the folder `run`. Raises `UserError` where there is
    none, or where a file that its report needs is damaged."""
    folder = Path(run)
    if not folder.is_dir():
        raise UserError(f"run folder {folder}: no such folder")
    if not (folder / RECIPE).is_file():
        raise UserError(f"run folder {folder}: holds no run; expected {folder / RECIPE}")
    read_curves(folder)  # before the work of testing, not after it
    recipe_sections(folder)
    return read_metrics(folder)


def report_again(
    run: Path | str,
    saved: SavedModel,
    samples: Iterable[Sample],
    bs: int = 64,
    workers: int = 0,
    told: Callable[[int], object] = bool,
) -> Written:
    """Test `saved` on `samples` at the sizes of the run and at their own, and write the report.

    told: called with the number of images of every batch, twice for each. Raises `UserError`.
    """
    metrics = check_run(run)
    swept = sweep(saved, samples, metrics["sizes"], bs=bs, workers=workers, told=told)
    routed = routed_test(saved, samples, bs=bs, workers=workers, told=told)
    tested = TestedAgain(metrics, swept, routed)
    page = make_report(run, saved, samples, tested)
    return Written(page, summary(tested), tested)
