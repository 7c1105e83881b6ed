"""Datasets that no disk here holds: read from shards as they come, every image once an epoch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from msun_fastai.data.catalog import CATALOG, Entry
from msun_fastai.data.mirror import encoded, find_column, parquet_rows, roles_of, split_files
from msun_fastai.data.parts import missing_images
from msun_fastai.data.samples import Sample, Source
from msun_fastai.errors import UserError

# images in memory from which the next one is drawn: about 250 MB of ImageNet in each worker
SHUFFLED = 2_000


@dataclass(frozen=True)
class SampleStream:
    """The labelled images of one split, in the order of its shards.

    table: a `datasets.IterableDataset` whose images are not decoded. n: how many there are. rows:
    in each shard, where that is known. In a loader's worker process it yields that worker's share.
    """

    table: Any
    image: str
    label: str
    classes: list[str]
    n: int
    where: str
    trim: int = 0
    rows: tuple[int, ...] = ()

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Sample]:
        for row in self.table:
            value, code = row[self.image], row[self.label]
            if code is None or not 0 <= code < len(self.classes):
                raise UserError(
                    f"{self.where}: label {code} is outside 0 to {len(self.classes) - 1}"
                )
            name = f"{self.where}, {(value or {}).get('path') or 'an image'}"
            yield Sample(StreamedImage(value, name, self.trim), self.classes[code])

    def of_rank(self, rank: int, world: int) -> SampleStream:
        """The share of process `rank` of `world`: whole shards where their number can be divided,
        else every `world`-th image.

        Its number of images is known where those of the shards are, and else about the same for
        each process.
        """
        from datasets.distributed import split_dataset_by_node

        if world == 1:
            return self
        if self.rows and len(self.rows) % world == 0:
            rows = self.rows[rank::world]
            n = sum(rows)
        else:
            rows, n = (), self.n // world + (rank < self.n % world)
        return replace(self, table=split_dataset_by_node(self.table, rank, world), n=n, rows=rows)

    def shuffled(self, seed: int, epoch: int) -> SampleStream:
        """In another order each `epoch`: of shards, and of images that are near each other."""
        table = self.table.shuffle(seed=seed, buffer_size=SHUFFLED)
        table.set_epoch(epoch)
        return replace(self, table=table)


@dataclass(frozen=True, slots=True)
class StreamedImage:
    """One encoded image, and where it comes from."""

    cell: Any  # of an image column that is not decoded
    name: str
    trim: int = 0

    def __str__(self) -> str:
        return self.name

    def open_bytes(self) -> bytes | Path:
        """The encoded image, or the path of the file that holds it."""
        return encoded(self.cell, self.name)


@dataclass(frozen=True)
class StreamSource:
    """A dataset in parts that are streams; see `Source`. There is no part but `train` and `valid`,
    which is the test split where there is no other."""

    name: str
    train: SampleStream
    valid: SampleStream
    classes: list[str]
    test: tuple[()] = ()
    notes: tuple[str, ...] = ()

    @property
    def measured(self) -> SampleStream:
        """The part that figures are reported on."""
        return self.valid

    def first(self, n: int) -> Source:
        """The first `n` images of each part, held in memory."""
        train, valid = (list(islice(part, n)) for part in (self.train, self.valid))
        return Source(self.name, train, valid, self.classes, notes=self.notes)


def stream_source(
    name: str, root: Path | str | None = None, hub_id: str = "", revision: str = ""
) -> StreamSource:
    """The dataset `name` as a stream: from Parquet shards in `root/name`, or else from the hub.

    hub_id, revision: another repository or state of it than the catalogue's. Raises `UserError`.
    """
    entry = CATALOG.get(name) or Entry.unknown(name)
    folder = Path(root) / name if root is not None else None
    local = folder is not None and any(folder.glob("*/*.parquet"))
    repository = hub_id or entry.hub_id
    if not local and not entry.splits:
        raise UserError(
            f"dataset {name!r}: not in the catalogue, so that its splits are not known, and no "
            f"Parquet files in {folder or 'a data root, of which there is none'}"
        )
    if not local and not repository:
        raise UserError(f"dataset {name!r}: no Parquet files in {folder} and no repository known")
    where = str(folder) if local else f"{repository} at {revision or entry.revision}"
    files = split_files(Path(str(folder))) if local else {}
    splits = list(files) or list(entry.splits)
    train, valid, test = roles_of(entry, splits)
    held = valid or test
    if train is None or held is None:
        missing = "train" if train is None else "validation or test"
        raise UserError(f"{where}: no split {missing}; it has {', '.join(splits)}")
    parts = {}
    for split in (train, held):
        if local:
            table, rows = _local(files[split])
        else:
            table, rows = _remote(entry, split, repository, revision), ()
        n = sum(rows) if local else entry.splits[split]
        parts[split] = replace(_stream(table, entry, n, f"{where} ({split})"), rows=rows)
    if parts[train].classes != parts[held].classes:
        raise UserError(f"{where}: {train} and {held} name different classes")
    classes = parts[train].classes
    notes = missing_images(entry, parts)
    if entry.classes and len(classes) != entry.classes:
        raise UserError(f"{where}: {len(classes)} classes; {name} has {entry.classes}")
    return StreamSource(name, parts[train], parts[held], classes, notes=notes)


def _local(files: list[str]) -> tuple[Any, tuple[int, ...]]:
    from datasets import load_dataset
    from datasets.utils.logging import set_verbosity_error

    set_verbosity_error()  # of more workers than shards, which is none
    rows = tuple(parquet_rows(file) for file in files)
    table = load_dataset("parquet", data_files={"all": files}, split="all", streaming=True)
    return table, rows


def _remote(entry: Entry, split: str, repository: str, revision: str) -> Any:
    from datasets import load_dataset

    state = revision or entry.revision
    try:
        # only this split's files: `split` alone would look at all of them
        files = {split: [f"**/{split}-*.parquet", f"**/{split}.parquet"]}
        return load_dataset(
            repository, revision=state, data_files=files, split=split, streaming=True
        )
    except Exception as error:  # of the network, of the hub or of the files, in many classes
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"dataset {entry.name!r}: {repository} at {state} cannot be streamed ({first}); "
            f"{entry.access or 'name another with --set data.hub_id=...'}, or a --data-root with "
            "a copy of it"
        ) from error


def _stream(table: Any, entry: Entry, n: int, where: str) -> SampleStream:
    from datasets import ClassLabel, Image

    image = find_column(table, entry.image, Image, where)
    label = find_column(table, entry.label, ClassLabel, where)
    classes = table.features[label].names
    table = table.select_columns([image, label]).cast_column(image, Image(decode=False))
    return SampleStream(table, image, label, classes, n, where, entry.trim)
