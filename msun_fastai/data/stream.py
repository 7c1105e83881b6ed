"""Datasets that no disk here holds: read from shards as they come, every image once an epoch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from msun_fastai.data.catalog import CATALOG, Entry
from msun_fastai.data.mirror import find_column, roles_of, split_files
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError

SHUFFLED = 2_000  # images in memory from which the next one is drawn, about 250 MB of ImageNet


@dataclass(frozen=True)
class SampleStream:
    """The labelled images of one split, in the order of its shards.

    table: a `datasets.IterableDataset` whose images are not decoded. n: how many there are. In a
    loader's worker process it yields that worker's share.
    """

    table: Any
    image: str
    label: str
    classes: list[str]
    n: int
    where: str
    trim: int = 0

    def __len__(self) -> int:
        return self.n

    def __iter__(self) -> Iterator[Sample]:
        for row in self.table:
            value, code = row[self.image], row[self.label]
            if code is None or not 0 <= code < len(self.classes):
                raise UserError(
                    f"{self.where}: label {code} is outside 0 to {len(self.classes) - 1}"
                )
            path = value.get("path") or "an image"
            name = f"{self.where}, {path}"
            yield Sample(StreamedImage(value["bytes"], name, self.trim), self.classes[code])

    def of_rank(self, rank: int, world: int) -> SampleStream:
        """The share of process `rank` of `world`: whole shards where they come out even."""
        from datasets.distributed import split_dataset_by_node

        if world == 1:
            return self
        n = self.n // world + (rank < self.n % world)
        return replace(self, table=split_dataset_by_node(self.table, rank, world), n=n)

    def shuffled(self, seed: int, epoch: int) -> SampleStream:
        """In another order each `epoch`: of shards, and of images that are near each other."""
        table = self.table.shuffle(seed=seed, buffer_size=SHUFFLED)
        table.set_epoch(epoch)
        return replace(self, table=table)

    def limited(self, n: int | None) -> SampleStream:
        """The first `n` images."""
        return self if n is None else replace(self, table=self.table.take(n), n=min(n, self.n))


@dataclass(frozen=True, slots=True)
class StreamedImage:
    """The encoded bytes of one image, and where they come from."""

    data: bytes
    name: str
    trim: int = 0

    def __str__(self) -> str:
        return self.name

    def open_bytes(self) -> bytes:
        """The encoded image."""
        return self.data


@dataclass(frozen=True)
class StreamSource:
    """A dataset in parts that are streams; see `Source`. There is no part but `train` and `valid`,
    which is the test split where there is no other."""

    name: str
    train: SampleStream
    valid: SampleStream
    classes: list[str]
    test: tuple[()] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def measured(self) -> SampleStream:
        """The part that figures are reported on."""
        return self.valid

    def limited(self, n: int | None) -> StreamSource:
        """The first `n` images of each part."""
        return replace(self, train=self.train.limited(n), valid=self.valid.limited(n))


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
            table, n = _local(files[split])
        else:
            table, n = _remote(entry, split, repository, revision), entry.splits[split]
        parts[split] = _stream(table, entry, n, f"{where} ({split})")
    if parts[train].classes != parts[held].classes:
        raise UserError(f"{where}: {train} and {held} name different classes")
    classes = parts[train].classes
    if entry.classes and len(classes) != entry.classes:
        raise UserError(f"{where}: {len(classes)} classes; {name} has {entry.classes}")
    return StreamSource(name, parts[train], parts[held], classes)


def _local(files: list[str]) -> tuple[Any, int]:
    from datasets import load_dataset
    from pyarrow.parquet import read_metadata

    table = load_dataset("parquet", data_files={"all": files}, split="all", streaming=True)
    return table, sum(read_metadata(file).num_rows for file in files)


def _remote(entry: Entry, split: str, repository: str, revision: str) -> Any:
    from datasets import load_dataset

    state = revision or entry.revision
    try:
        # only this split's files: `split` alone would look at all of them
        files = {split: [f"**/{split}-*.parquet"]}
        return load_dataset(
            repository, revision=state, data_files=files, split=split, streaming=True
        )
    except Exception as error:  # of the network, of the hub or of the files, in many classes
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"dataset {entry.name!r}: {repository} at {state} cannot be streamed ({first}); "
            f"{entry.access or 'name another with --set data.hub_id=...'}"
        ) from error


def _stream(table: Any, entry: Entry, n: int, where: str) -> SampleStream:
    from datasets import ClassLabel, Image

    image = find_column(table, entry.image, Image, where)
    label = find_column(table, entry.label, ClassLabel, where)
    classes = table.features[label].names
    table = table.select_columns([image, label]).cast_column(image, Image(decode=False))
    return SampleStream(table, image, label, classes, n, where, entry.trim)


def process_rank() -> tuple[int, int]:
    """This process's number and how many there are, as `torchrun` tells them."""
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
