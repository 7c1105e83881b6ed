"""The sizes of many images: headers read in parallel, and kept for the next run."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msun_fastai.data.images import read_header
from msun_fastai.data.samples import Sample, image_of
from msun_fastai.errors import ImageError
from msun_fastai.files import cache_folder, replacing

PARALLEL = 5_000  # images; fewer are read before other processes have started
INDEXED = 20_000  # files; fewer are read in a second or two
CHUNK = 500  # images that a process reads at a time

Header = tuple[int, int] | str  # width and height in pixels, or why they cannot be told


def read_headers(images: Sequence[Any], workers: int | None = None) -> list[Header]:
    """Width and height of every image, or the reason why its header cannot be read, in order.

    images: what `open_image` takes. workers: processes to read with, as many as there are cores by
    default; few images are read in this one. The sizes of many files are kept in an index in the
    cache folder, and those that have not changed since (by length and time of change) are not
    opened again.
    """
    files = [_file(image) for image in images] if len(images) >= INDEXED else [None]
    if None in files:
        return _read(images, workers)
    return _indexed(images, [f for f in files if f is not None], workers)


def sample_headers(items: Sequence[Any], workers: int | None = None) -> list[Header]:
    """`read_headers` of samples or images; a sample that knows its size is not opened."""
    known = [item.size if isinstance(item, Sample) else None for item in items]
    unread = [i for i, size in enumerate(known) if size is None]
    read = dict(zip(unread, read_headers([image_of(items[i]) for i in unread], workers)))
    return [read[i] if size is None else size for i, size in enumerate(known)]


def _file(image: Any) -> str | None:
    """The full path of an image that is a file and no part of one."""
    return os.path.abspath(image) if isinstance(image, (str, Path)) else None


def _header(image: Any) -> Header:
    try:
        return read_header(image)
    except ImageError as error:
        return str(error)


def _read(images: Sequence[Any], workers: int | None) -> list[Header]:
    workers = (os.cpu_count() or 1) if workers is None else workers
    if len(images) < PARALLEL or workers < 2:
        return [_header(image) for image in images]
    from torch.utils.data import DataLoader

    chunks = [images[at : at + CHUNK] for at in range(0, len(images), CHUNK)]
    dataset: Any = _Headers(chunks)
    loader: Any = DataLoader(dataset, batch_size=None, num_workers=workers, collate_fn=list)
    return [header for chunk in loader for header in chunk]


class _Headers:
    """Chunks of images as chunks of headers, for a worker process."""

    def __init__(self, chunks: Sequence[Sequence[Any]]):
        self.chunks = chunks

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, i: int) -> list[Header]:
        return [_header(image) for image in self.chunks[i]]


def _indexed(images: Sequence[Any], files: Sequence[str], workers: int | None) -> list[Header]:
    index = index_file(files)
    known = {} if index is None else _load(index)
    stamps = [_stamp(file) for file in files]
    headers: list[Header | None] = [
        known[file][2:] if stamp is not None and known.get(file, ())[:2] == stamp else None
        for file, stamp in zip(files, stamps)
    ]
    new = [i for i, header in enumerate(headers) if header is None]
    if not new:
        return headers  # type: ignore[return-value]
    for i, header in zip(new, _read([images[i] for i in new], workers)):
        headers[i] = header
        stamp = stamps[i]
        if stamp is not None and not isinstance(header, str):
            known[files[i]] = (*stamp, *header)
    if index is not None:
        _store(index, known)
    return headers  # type: ignore[return-value]


def index_file(files: Sequence[str]) -> Path | None:
    """The index of the folder that all of `files` are in; None where there is no place for one."""
    try:
        folder = os.path.commonpath(files)
        caches = cache_folder()
    except (ValueError, RuntimeError):  # on several drives; a user without a home
        return None
    name = hashlib.sha256(os.fsencode(folder)).hexdigest()[:16]
    return caches / "sizes" / f"{Path(folder).name}-{name}.npz"


def _stamp(file: str) -> tuple[int, int] | None:
    """Length in bytes and time of change in nanoseconds."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _load(index: Path) -> dict[str, tuple[int, int, int, int]]:
    """Length, time of change, width and height by file; nothing where there is no such index."""
    try:
        with np.load(index, allow_pickle=False) as stored:
            names = os.fsdecode(stored["names"].tobytes()).split("\0")
            return dict(zip(names, map(tuple, stored["values"].tolist())))
    # whatever is wrong with it, it can be made again
    except Exception:
        return {}


def _store(index: Path, known: dict[str, tuple[int, int, int, int]]) -> None:
    names = np.frombuffer(os.fsencode("\0".join(known)), np.uint8)
    values = np.array(list(known.values()), np.int64)
    try:
        with replacing(index) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, names=names, values=values)
    except OSError:  # a cache that cannot be written is no reason to stop
        return
