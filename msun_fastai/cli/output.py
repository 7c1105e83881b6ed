"""What the verbs print: tables for people, JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

STDOUT = "-"
LOG_WIDTH = 1000  # columns where no terminal sets them: a table takes what it needs of it


def make_console(json_file: str | None) -> Console:
    """Where a verb prints: standard output, or standard error where JSON goes to the former."""
    from rich.console import Console

    console = Console(stderr=json_file == STDOUT)
    if not console.is_terminal:
        console.width = LOG_WIDTH
    return console


def check_output(option: str, file: str | None) -> None:
    """Raise `UserError` where `file` cannot be written, before the work that leads to it."""
    import os

    from msun_fastai.errors import UserError

    if file is None or file == STDOUT:
        return
    path = Path(file)
    if path.is_dir():
        raise UserError(f"{option} {file}: is a directory")
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise UserError(f"{option} {file}: {parent} cannot be written to")


def check_folder(option: str, folder: str | None) -> None:
    """`check_output` for a folder that may be there already."""
    if folder is not None:
        check_output(option, str(Path(folder) / "x"))


def write_result(value: Any, json_file: str | None) -> None:
    """`value` as JSON to `json_file`, to standard output for `-`, nowhere for None."""
    if json_file == STDOUT:
        sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")
    elif json_file is not None:
        from msun_fastai.files import write_json

        write_json(Path(json_file), value)


@contextmanager
def json_rows(json_file: str | None) -> Iterator[Callable[[Sequence[Any]], object]]:
    """`write_result` for rows that come part by part: what takes a part of the array."""
    from msun_fastai.files import replacing
    from msun_fastai.rowfiles import json_array

    if json_file is None:
        yield len
    elif json_file == STDOUT:
        with json_array(sys.stdout.write) as add:
            yield add
    else:
        with (
            replacing(json_file) as temporary,
            temporary.open("w", encoding="utf-8", errors="backslashreplace") as file,
            json_array(file.write) as add,
        ):
            yield add


def say(console: Console, text: str) -> None:
    """A line as it is: names of files and classes are no markup, and it is not folded in a log."""
    console.print(text, highlight=False, soft_wrap=True, markup=False)


def print_table(
    console: Console, title: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """A table whose numbers are aligned to the right; on a log it is plain text of full width."""
    from rich.table import Table
    from rich.text import Text

    if title:  # a table's own title is folded to the table's width
        say(console, title)
    table = Table()
    rows = [[("" if cell is None else str(cell)) for cell in row] for row in rows]
    for i, name in enumerate(columns):
        numeric = all(_is_number(row[i]) for row in rows if row[i])
        table.add_column(Text(name), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))  # file names are no markup
    console.print(table)


def _is_number(text: str) -> bool:
    parts = text.removesuffix(" %").split(" ± ")
    return all(part.lstrip("+-").replace(".", "", 1).isdigit() for part in parts)
