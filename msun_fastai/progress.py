"""How far files that grow row by row have come, kept beside them so that a killed run can go on."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msun_fastai.errors import UserError
from msun_fastai.files import write_json
from msun_fastai.rowfiles import RowFile

SUFFIX = ".progress.json"


def progress_file(path: Path | str) -> Path:
    """Where it stands how far `path` has come."""
    return Path(f"{path}{SUFFIX}")


def refuse_unfinished(paths: Iterable[Path | str]) -> None:
    """Raise `UserError` where one of `paths` is what a killed run left."""
    for path in paths:
        if (beside := progress_file(path)).exists():
            raise UserError(
                f"{path}: is unfinished; --resume goes on with it, or remove {beside} to start "
                "again"
            )


class Progress:
    """Files that grow together, a row of each for every image, and how far they have come.

    That stands in `FILE.progress.json` beside the first, which is written after every part and
    removed at the end: how many images are done, a checksum of their paths, where each file ends,
    `about` (what the rows depend on) and `state` (what the caller goes on with). about: values that
    JSON has. resume: go on where the file is; start where there is neither it nor an output. Raises
    `UserError` where it is of something else.
    """

    def __init__(self, files: Sequence[RowFile], about: Mapping[str, Any], resume: bool):
        self.files, self.about = list(files), dict(about)
        self.done, self.checksum, self.state = 0, "", {}  # type: int, str, dict[str, Any]
        self.beside = progress_file(self.files[0].path)
        self._marks: list[int] | None = None
        if resume and self.beside.exists():
            self._read()
        elif resume and (whole := [f.path for f in self.files if f.path.exists()]):
            raise UserError(f"--resume: {whole[0]} is not unfinished; leave it out to start again")

    def _read(self) -> None:
        try:
            found = json.loads(self.beside.read_text(encoding="utf-8"))
            about, self.state = dict(found["about"]), dict(found["state"])
            self.done, self.checksum = int(found["done"]), str(found["checksum"])
            self._marks = None if found["marks"] is None else [int(m) for m in found["marks"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"--resume: {self.beside}: cannot be read ({error})") from error
        for key in {**about, **self.about}:
            if about.get(key) != self.about.get(key):
                raise UserError(
                    f"--resume: {self.files[0].path}: was begun with another {key}; give what it "
                    f"was begun with, or remove {self.beside} to start again"
                )

    def remaining(self, paths: Iterable[Any]) -> Iterator[Any]:
        """The paths that are not done. Raises `UserError` unless those before are the ones that
        are, in their order."""
        rest = iter(paths)
        checksum, seen = "", 0
        for path in itertools.islice(rest, self.done):
            checksum, seen = _chained(checksum, path), seen + 1
        if checksum != self.checksum:
            what = f"ends after {seen}" if seen < self.done else "has others before it"
            raise UserError(
                f"--resume: {self.files[0].path}: {self.done} images are done, the list {what}; "
                f"give the same one, or remove {self.beside} to start again"
            )
        return rest

    def open(self) -> None:
        """Open the files: as they were where they go on, anew elsewhere."""
        if self._marks is not None:
            for file, mark in zip(self.files, self._marks, strict=True):
                file.go_on(mark)
            return
        self._write()  # before anything is overwritten, so that it is known to be unfinished
        self._marks = [file.begin() for file in self.files]
        self._write()

    def add(
        self, paths: Iterable[Any], rows: Sequence[Sequence[Any]], state: Mapping[str, Any]
    ) -> None:
        """Append a part: the paths of its images, and their rows for each of the files."""
        self._marks = [file.append(part) for file, part in zip(self.files, rows, strict=True)]
        for path in paths:
            self.checksum, self.done = _chained(self.checksum, path), self.done + 1
        self.state = dict(state)
        self._write()

    def finish(self) -> None:
        """The files are whole."""
        for file in self.files:
            file.finish()
        self.beside.unlink()
        for file in self.files:
            file.clean()

    def _write(self) -> None:
        kept = ("about", "done", "checksum", "state")
        write_json(self.beside, {k: getattr(self, k) for k in kept} | {"marks": self._marks})


def _chained(checksum: str, path: Any) -> str:
    """The checksum of a list that `path` follows: none of it has to be kept."""
    return hashlib.sha256(checksum.encode() + b"\0" + os.fsencode(path)).hexdigest()
