"""The sections that come from a run folder's own files: training, recipe, environment."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msun_fastai import figures
from msun_fastai.errors import UserError
from msun_fastai.plots import read_history
from msun_fastai.report.parts import Album, Section, Shown, table
from msun_fastai.report.words import percent, training_alt
from msun_fastai.runfolder import ENVIRONMENT, FINISHED, RECIPE
from msun_fastai.scales import check_scales

HISTORY, PROBE = "history.csv", "probe.json"
MOST_EPOCHS = 20  # rows of a table
DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError, csv.Error)
NEEDED = {"data": str, "arch": str, "method": str, "accuracy": list, "subnet": list}
TITLES = {"loss": "Loss", "accuracy": "Accuracy"}


def read_metrics(folder: Path | str) -> dict[str, Any]:
    """What a finished run's `metrics.json` holds, checked as far as a report needs it.

    Raises `UserError` where there is none, and where it is damaged.
    """
    file = Path(folder) / FINISHED
    if not file.is_file():
        raise UserError(f"run {folder}: is not over; --resume {folder} goes on with it")
    try:
        metrics = json.loads(file.read_text(encoding="utf-8"))
        for measured in (metrics, metrics.get("baseline")):
            if measured is not None:
                _check(measured)
    except (*DAMAGED, UserError) as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error})") from error
    return metrics


def _check(metrics: Mapping[str, Any]) -> None:
    n = len(check_scales(metrics["sizes"], "sizes"))
    for key, kind in NEEDED.items():
        if not isinstance(metrics[key], kind):
            raise ValueError(f"{key} = {metrics[key]!r}")
    for key in ("train_images", "test_images", "measured_images", "train_seconds"):
        if not isinstance(metrics.get(key, 0), (int, float)):
            raise ValueError(f"{key} = {metrics[key]!r}")
    if not all(isinstance(n, int) for n in (metrics.get("bad_images") or {}).values()):
        raise ValueError(f"bad_images = {metrics['bad_images']!r}")
    for key in ("accuracy", "subnet", "macs"):
        values = metrics.get(key, [0] * n)  # runs of before have no macs
        if len(values) != n or not all(isinstance(v, (int, float)) for v in values):
            raise ValueError(f"{key}: {values!r} for {n} sizes")


def training_section(folder: Path, album: Album) -> Section | None:
    """Losses and accuracies by epoch, or the strengths that a probe tried; None of neither."""
    section = Section("training", "Training curves")
    if (folder / HISTORY).is_file():
        for kind, rows in read_curves(folder).items():
            if rows:
                _add_curve(section, kind, rows, album)
    elif (folder / PROBE).is_file():
        _add_strengths(section, folder / PROBE)
    return section if section.pictures or section.tables else None


def read_curves(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """`training_rows` of a run's history by kind; empty where it has none. Raises `UserError` where
    it is damaged."""
    file = folder / HISTORY
    try:
        history = read_history(file) if file.is_file() else []
        return {kind: figures.training_rows(history, kind) for kind in TITLES}
    except DAMAGED as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error})") from error


def _add_curve(section: Section, kind: str, rows: list[dict[str, Any]], album: Album) -> None:
    figure, alt = figures.draw_training(rows, kind), training_alt(rows, kind)
    caption = f"{TITLES[kind]} by epoch, the head's own first one included."
    section.pictures.append(album.add(f"training_{kind}", figure, rows, alt, caption))
    names = [name for name in rows[0] if name != "epoch"]
    write: Callable[[Any], str] = percent if kind == "accuracy" else "{:.4g}".format
    columns: list[Shown] = [("epoch", "epoch", "{:d}".format)]
    columns += [(name.replace("_", " "), name, write) for name in names]
    shown = _spread(rows)
    title = f"{TITLES[kind]} by epoch"
    if len(shown) < len(rows):
        title += f", {len(shown)} of {len(rows)} epochs; {HISTORY} has all"
    section.tables.append(table(title, shown, columns))


def _spread(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `MOST_EPOCHS` of them, evenly, with both ends."""
    if len(rows) <= MOST_EPOCHS:
        return list(rows)
    step = (len(rows) - 1) / (MOST_EPOCHS - 1)
    return [rows[round(i * step)] for i in range(MOST_EPOCHS)]


def _add_strengths(section: Section, file: Path) -> None:
    """What a linear probe tried, which has no epochs."""
    section.title = "Strengths of the probe"
    try:
        heads = json.loads(file.read_text(encoding="utf-8"))["heads"]
        rows = [
            {"scales": ", ".join(map(str, head["scales"])), **tried}
            for head in heads
            for tried in head["table"]
        ]
        columns: list[Shown] = [
            ("scales", "scales", str),
            ("strength", "strength", "{:g}".format),
            ("accuracy on held-out images", "accuracy", percent),
        ]
        title = "Each strength of the linear classifier that was tried"
        section.tables = [table(title, rows, columns, folded=False)]
    except DAMAGED as error:
        raise UserError(f"{file}: damaged ({type(error).__name__}: {error})") from error


def recipe_sections(folder: Path) -> list[Section]:
    """The recipe as it is in the folder, and the environment as a table; those that are there."""
    found = []
    if (folder / RECIPE).is_file():
        code = (folder / RECIPE).read_text(encoding="utf-8", errors="backslashreplace")
        text = f"What was run; the file {RECIPE} beside this page runs it again."
        found.append(Section("recipe", "Recipe", [text], code=code.strip()))
    if (folder / ENVIRONMENT).is_file():
        try:
            values = json.loads((folder / ENVIRONMENT).read_text(encoding="utf-8"))
            rows = [{"key": key, "value": value} for key, value in _flat(values)]
        except DAMAGED as error:
            message = f"{folder / ENVIRONMENT}: damaged ({type(error).__name__}: {error})"
            raise UserError(message) from error
        columns: list[Shown] = [("what", "key", str), ("value", "value", str)]
        tables = [table("Versions, device and times", rows, columns)]
        found.append(Section("environment", "Environment", tables=tables))
    return found


def _flat(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Keys and values as text; a mapping's own keys after its name, a list in one line."""
    found: list[tuple[str, str]] = []
    for key, value in values.items():
        if isinstance(value, dict):
            found += [(f"{key} {inner}", text) for inner, text in _flat(value)]
        elif isinstance(value, list):
            found.append((key, " ".join(map(str, value))))
        elif value is not None:
            found.append((key, str(value)))
    return found
