"""What a report is made of, before it is a page: sections of text, pictures and tables."""

from __future__ import annotations

import base64
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from msun_fastai.evaluate import Sweep
from msun_fastai.files import write_json, write_rows
from msun_fastai.plots import save_figure
from msun_fastai.routed import Routed

FOLDER = "report"  # in the run folder: the pictures and their numbers


class Tested(Protocol):
    """What a report is of: `metrics` as in `metrics.json`, the network tested at input sizes and on
    images at their own sizes. `measure.Measured` is one."""

    @property
    def metrics(self) -> dict[str, Any]:
        """What `metrics.json` holds."""

    @property
    def sweep(self) -> Sweep:
        """At input sizes."""

    @property
    def routed(self) -> Routed:
        """At the images' own sizes."""


@dataclass(frozen=True)
class Table:
    """Rows of text under named columns; `numeric` says which are aligned as numbers. folded: behind
    a line to touch, at first."""

    caption: str
    columns: list[str]
    rows: list[list[str]]
    numeric: list[bool]
    folded: bool = True


@dataclass(frozen=True)
class Picture:
    """A PNG as a data URI, what it shows in words (`alt`), what it means (`caption`), its size in
    pixels, and the name of the file with its numbers. wide: takes the whole width of the page."""

    uri: str
    alt: str
    caption: str
    numbers: str
    size: tuple[int, int]
    wide: bool = False


@dataclass
class Section:
    """A heading with what is below it. cards: groups of images, see `losses`."""

    id: str
    title: str
    text: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    cards: list[Any] = field(default_factory=list)
    code: str = ""


class Album:
    """Writes pictures and their numbers to `folder/report`, and gives them back for the page."""

    def __init__(self, folder: Path | str):
        self.folder = Path(folder) / FOLDER
        self.files: list[Path] = []

    def add(
        self, name: str, figure: Any, numbers: Any, alt: str, caption: str, wide: bool = False
    ) -> Picture:
        """Write `figure` as `name.png`, its `numbers` as `name.csv` (rows) or `name.json`."""
        with warnings.catch_warnings():  # a script without letters here; the tables have the names
            warnings.filterwarnings("ignore", message="Glyph .* missing")
            png = save_figure(figure, self.folder / f"{name}.png")
        rows = isinstance(numbers, list)
        beside = self.folder / f"{name}.{'csv' if rows else 'json'}"
        write_rows(beside, numbers) if rows else write_json(beside, numbers)
        self.files += [png, beside]
        data = png.read_bytes()
        return Picture(
            data_uri(data, "png"), alt, caption, f"{FOLDER}/{beside.name}", _png_size(data), wide
        )


def _png_size(data: bytes) -> tuple[int, int]:
    """Width and height of a PNG, from its header."""
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def data_uri(data: bytes, kind: str) -> str:
    """An image file as what an `src` takes."""
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


Shown = tuple[str, str, Callable[[Any], str]]  # a column's name, the row's key, how it is written


def table(
    caption: str, rows: Iterable[Mapping[str, Any]], shown: Sequence[Shown], folded: bool = True
) -> Table:
    """A `Table` of the keys of `rows` that are `shown`; None is left empty. Columns that are not
    written by `str` hold numbers."""
    cells = [
        ["" if row.get(key) is None else write(row[key]) for _, key, write in shown] for row in rows
    ]
    return Table(caption, [s[0] for s in shown], cells, [s[2] is not str for s in shown], folded)
