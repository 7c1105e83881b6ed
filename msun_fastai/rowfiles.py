"""Files that grow row by row and can be cut back to where they were: CSV, JSON, JSON lines, Parquet
and NumPy arrays.

Each is readable whenever `append` has returned. What that returned, given to `go_on` in another
process, cuts the file back to then; whatever a killed process wrote after it is dropped.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np

from msun_fastai.errors import UserError
from msun_fastai.files import replacing

# of a row of predictions, with the types that Parquet gives them; `top` is a list of structs
COLUMNS = {
    "path": "string",
    "width": "int32",
    "height": "int32",
    "native_size": "int32",
    "scale": "int32",
    "label": "string",
    "probability": "double",
    "top": "",
    "error": "string",
}
TABLES = (".csv", ".json", ".jsonl", ".parquet")
ARRAYS = (".npy", ".parquet")
NPY_HEADER = 128  # bytes; room for any number of rows
GROUP = 16_384  # rows of one row group of a finished Parquet file


class RowFile(Protocol):
    """A file that rows are appended to."""

    path: Path

    def begin(self) -> int:
        """Start it, in the place of what is there; returns the mark of its beginning."""

    def go_on(self, mark: int) -> None:
        """Open it as it was at `mark`. Raises `UserError` where it has become shorter."""

    def append(self, rows: Sequence[Any]) -> int:
        """Write `rows` to the disk; returns the mark behind them."""

    def finish(self) -> None:
        """Close it: it is whole."""

    def clean(self) -> None:
        """Remove what is of no use beside the whole file."""


def table_file(path: Path | str) -> RowFile:
    """Where rows of predictions go, by the ending of `path`. Raises `UserError`."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind == ".parquet":
        return ParquetFile(path, _table_schema)
    check_ending("--out", path, TABLES)
    return TextFile(path, FORMS[kind])


def array_file(path: Path | str, width: int) -> RowFile:
    """Where rows of a `path` and an `embedding` of `width` numbers go, by the ending of `path`.
    Raises `UserError`."""
    path = Path(path)
    kind = path.suffix.lower()
    if kind == ".parquet":
        return ParquetFile(path, lambda: _array_schema(width))
    check_ending("--embeddings", path, ARRAYS)
    return NpyFile(path, width)


def check_ending(option: str, path: Path | str | None, endings: Sequence[str]) -> None:
    """Raise `UserError` where `path` has none of `endings`."""
    if path is not None and Path(path).suffix.lower() not in endings:
        listed = f"{', '.join(endings[:-1])} or {endings[-1]}"
        raise UserError(f"{option} {path}: the name must end in {listed}")


@dataclass(frozen=True)
class Form:
    """Rows as text: what stands before, between and after them, and how one is written."""

    head: str
    between: str
    tail: str
    row: Callable[[dict[str, Any]], str]

    def text(self, rows: Iterable[dict[str, Any]], first: bool) -> str:
        """`rows`; `first` where none stands before them."""
        return ("" if first else self.between) + self.between.join(map(self.row, rows))


def _csv_line(values: Iterable[Any]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue()


def _csv_row(row: dict[str, Any]) -> str:
    top = json.dumps(row["top"], ensure_ascii=False)
    return _csv_line({**row, "top": top}[name] for name in COLUMNS)


def _json(row: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(row, indent=indent, ensure_ascii=False, allow_nan=False)


def _json_item(row: dict[str, Any]) -> str:
    # no newline stands inside a JSON string: each is one of the indentation
    return "\n  " + _json(row, 2).replace("\n", "\n  ")


FORMS = {
    ".csv": Form(_csv_line(COLUMNS), "", "", _csv_row),
    ".json": Form("[", ",", "\n]\n", _json_item),
    ".jsonl": Form("", "", "", lambda row: _json(row) + "\n"),
}


@contextmanager
def json_array(write: Callable[[str], object]) -> Iterator[Callable[[Sequence[Any]], None]]:
    """What gives rows to `write` as the text of one JSON array, which ends with the block."""
    form, empty = FORMS[".json"], True

    def add(rows: Sequence[Any]) -> None:
        nonlocal empty
        if rows:
            write(form.text(rows, empty))
            empty = False

    write(form.head)
    yield add
    write(form.tail)


class _Grown:
    """A file whose end is written again by every `append`."""

    def __init__(self, path: Path):
        self.path = path
        self._file: BinaryIO | None = None

    def go_on(self, mark: int) -> None:
        try:
            self._file = self.path.open("r+b")
        except OSError as error:
            raise UserError(f"--resume: {self.path}: cannot be opened ({error.strerror})") from None
        if self._file.seek(0, os.SEEK_END) < mark:
            raise UserError(f"--resume: {self.path}: is shorter than it was; start again")
        self._file.seek(mark)
        self._file.truncate()

    @property
    def file(self) -> BinaryIO:
        if self._file is None:
            raise RuntimeError(f"{self.path}: neither begun nor gone on with")
        return self._file

    def _open(self) -> BinaryIO:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = self.path.open("w+b")
        return self._file

    def _sync(self) -> None:
        self.file.flush()
        os.fsync(self.file.fileno())

    def finish(self) -> None:
        self.file.close()

    def clean(self) -> None:
        """There is nothing beside it."""


class TextFile(_Grown):
    """Rows as text. JSON's closing bracket is written behind every part and over by the next, so
    that the file is an array whenever it is looked at between two of them."""

    def __init__(self, path: Path, form: Form):
        super().__init__(path)
        self.form = form

    def begin(self) -> int:
        self._open().write(_bytes(self.form.head))
        return self._close()

    def append(self, rows: Sequence[dict[str, Any]]) -> int:
        first = self.file.tell() == len(_bytes(self.form.head))
        if rows:
            self.file.write(_bytes(self.form.text(rows, first)))
        return self._close()

    def _close(self) -> int:
        """Write the tail; the next row goes over it."""
        mark = self.file.tell()
        self.file.write(_bytes(self.form.tail))
        self._sync()
        return self.file.seek(mark)

    def finish(self) -> None:
        self._close()
        super().finish()


class NpyFile(_Grown):
    """Embeddings as a float32 array (rows, width) that `numpy.load` reads, or maps into memory."""

    def __init__(self, path: Path, width: int):
        super().__init__(path)
        self.width = width

    def begin(self) -> int:
        self._open()
        return self.append([])

    def append(self, rows: Sequence[dict[str, Any]]) -> int:
        self.file.seek(max(NPY_HEADER, self.file.tell()))
        for row in rows:
            self.file.write(np.asarray(row["embedding"], "<f4").tobytes())
        mark = self.file.tell()
        self._sync()  # a header never counts rows that are not there
        self.file.seek(0)
        self.file.write(self._header((mark - NPY_HEADER) // (4 * self.width)))
        self._sync()
        return self.file.seek(mark)

    def _header(self, rows: int) -> bytes:
        about = {"descr": "<f4", "fortran_order": False, "shape": (rows, self.width)}
        start = np.lib.format.magic(1, 0)
        length = NPY_HEADER - len(start) - 2
        return start + struct.pack("<H", length) + repr(about).ljust(length - 1).encode() + b"\n"


class ParquetFile:
    """Rows as Parquet, whose footer comes last: until then every part is a whole file of its own in
    `FILE.parts`, a folder that can be read as one table; `finish` makes the one file of them."""

    def __init__(self, path: Path, schema: Callable[[], Any]):
        self.path, self._schema = path, schema
        self.folder = path.with_name(f"{path.name}.parts")
        self._count = 0

    def begin(self) -> int:
        self.go_on(0)
        return 0

    def go_on(self, mark: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        parts = self._parts()
        if len(parts) < mark:
            raise UserError(f"--resume: {self.folder}: parts are missing; start again")
        for part in parts[mark:]:
            part.unlink()
        self._count = mark

    def append(self, rows: Sequence[dict[str, Any]]) -> int:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table = pa.Table.from_pylist([_utf8(row) for row in rows], self._schema())
        with replacing(self.folder / f"{self._count:08d}.parquet") as temporary:
            pq.write_table(table, temporary)
        self._count += 1
        return self._count

    def finish(self) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        waiting: list[Any] = []
        with (
            replacing(self.path) as temporary,
            pq.ParquetWriter(temporary, self._schema()) as writer,
        ):
            for part in self._parts():
                waiting.append(pq.ParquetFile(part).read())
                if sum(map(len, waiting)) >= GROUP:
                    writer.write_table(pa.concat_tables(waiting))
                    waiting.clear()
            if waiting:
                writer.write_table(pa.concat_tables(waiting))

    def clean(self) -> None:
        for part in self._parts():
            part.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _parts(self) -> list[Path]:
        """Its own parts in order, and nothing else that lies there."""
        found = self.folder.iterdir()
        return sorted(p for p in found if re.fullmatch(r"\d{8}\.parquet", p.name))


def _table_schema() -> Any:
    import pyarrow as pa

    best = pa.list_(pa.struct([("label", pa.string()), ("probability", pa.float64())]))
    return pa.schema([(n, pa.type_for_alias(t) if t else best) for n, t in COLUMNS.items()])


def _array_schema(width: int) -> Any:
    import pyarrow as pa

    return pa.schema([("path", pa.string()), ("embedding", pa.list_(pa.float32(), width))])


def _bytes(text: str) -> bytes:
    # a file name that is not UTF-8 is written with its odd bytes escaped
    return text.encode("utf-8", "backslashreplace")


def _utf8(row: dict[str, Any]) -> dict[str, Any]:
    return {k: _bytes(v).decode() if isinstance(v, str) else v for k, v in row.items()}
