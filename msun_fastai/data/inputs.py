"""Which files the words on a command line mean."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from msun_fastai.data.folders import walk_images
from msun_fastai.errors import UserError

STDIN = "-"
READ = 1 << 16  # bytes read at once, at most


def expand_paths(words: Iterable[str]) -> list[Path]:
    """The files that `words` name, see `iter_paths`."""
    return list(iter_paths(list(words)))


def iter_paths(words: Sequence[str], null: bool = False) -> Iterator[Path]:
    """The files that `words` name, in their order: files as they are, folders and globs expanded,
    and for `-` those that standard input names, one a line or, with `null`, between zero bytes.

    A folder gives the image files below it, sorted. A file that does not exist is among them, to
    get its own row with the reason; a folder or glob that holds no image is an error, before the
    first is given. Nothing is held but the names in a folder, and what a glob matches, to be
    sorted; standard input is read as it comes.
    """
    for word in words:
        path = Path(word)
        if path.is_dir() and next(walk_images(path), None) is None:
            raise UserError(f"{word}: no image files in this folder")
        if not path.is_dir() and _is_glob(word) and next(_matching(word), None) is None:
            raise UserError(f"{word}: matches no image file")
    return (path for word in words for path in _meant(word, null))


def _is_glob(word: str) -> bool:
    return glob.has_magic(word) and not Path(word).exists()


def _meant(word: str, null: bool) -> Iterator[Path]:
    path = Path(word)
    if word == STDIN:
        yield from read_paths(sys.stdin.buffer, b"\0" if null else b"\n")
    elif path.is_dir():
        yield from walk_images(path)
    elif _is_glob(word):
        yield from _matching(word)
    else:
        yield path


def _matching(word: str) -> Iterator[Path]:
    if any(os.path.isfile(p) for p in glob.iglob(word, recursive=True)):
        matches = (Path(p) for p in sorted(glob.iglob(word, recursive=True)))
        yield from (p for p in matches if p.is_file())
        return
    # a pattern that meets folders alone means their images
    folders = (Path(p) for p in sorted(glob.iglob(word, recursive=True)))
    inside = (f for p in folders if p.is_dir() for f in walk_images(p))
    yield from dict.fromkeys(inside)


def read_paths(stream: BinaryIO, end: bytes) -> Iterator[Path]:
    """The paths in `stream`, each followed by the byte `end`, as they come; empty ones left out."""
    read = getattr(stream, "read1", stream.read)  # what is there, however little
    rest = b""
    while part := read(READ):
        *whole, rest = (rest + part).split(end)
        yield from (Path(os.fsdecode(name)) for name in whole if name)
    if rest:
        yield Path(os.fsdecode(rest))
