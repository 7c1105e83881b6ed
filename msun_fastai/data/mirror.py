"""A local copy of a hub dataset, read through `datasets` without a network."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msun_fastai.data.catalog import CATALOG, Entry
from msun_fastai.data.parts import TEST_NAMES, TRAIN_NAMES, VALID_NAMES, pick, source_from_splits
from msun_fastai.data.samples import Sample, Source
from msun_fastai.errors import ImageError, UserError

IN_MEMORY = 2**30  # bytes of Parquet files up to which a split is kept in memory


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The encoded bytes of one image in an Arrow table, fetched when they are needed."""

    table: Any  # a datasets.Dataset whose image column is not decoded
    row: int
    column: str
    where: str  # dataset and split, for errors
    trim: int = 0  # pixels at the bottom that do not belong to the picture

    def __str__(self) -> str:
        return f"{self.where}, row {self.row}"

    def open_bytes(self) -> bytes | Path:
        """The encoded image, or the path of the file that holds it."""
        return encoded(self.table[self.row][self.column], str(self))


def encoded(cell: Any, name: str) -> bytes | Path:
    """What a cell of an image column holds: bytes, or the path of a file. Raises `ImageError`."""
    if not cell or (cell["bytes"] is None and not cell["path"]):
        raise ImageError(f"{name}: no image in this row")
    return cell["bytes"] if cell["bytes"] is not None else Path(cell["path"])


def source_from_mirror(folder: Path | str, name: str = "", seed: int = 42) -> Source:
    """A folder laid out as a dataset repository: `data/<split>-*.parquet`.

    Split and column names are those of the catalogue where the dataset is in it; columns of other
    names are found by their type. Splits that are no part of it are not read.
    """
    root = Path(folder)
    entry = CATALOG.get(name or root.name) or Entry.unknown(name or root.name)
    files = split_files(root)
    wanted = [split for split in roles_of(entry, files) if split]
    splits: dict[str, list[Sample]] = {}
    classes: list[str] = []
    for split in wanted or list(files)[:1]:
        splits[split], names = _read(files[split], entry, f"{root.name} ({split})")
        if classes and names != classes:
            raise UserError(f"{root}: {wanted[0]} and {split} name different classes")
        classes = names
    return source_from_splits(str(root), entry, splits, classes, seed)


def roles_of(entry: Entry, splits: Collection[str]) -> list[str | None]:
    """Which of `splits` is there to train on, to watch training on and to test on."""
    roles = ((entry.train, *TRAIN_NAMES), (entry.valid, *VALID_NAMES), (entry.test, *TEST_NAMES))
    return [pick(splits, names) for names in roles]


def split_files(root: Path) -> dict[str, list[str]]:
    """The Parquet files of each split: `train-00000-of-00002.parquet` belongs to `train`."""
    splits: dict[str, list[str]] = {}
    folders = sorted({file.parent for file in root.glob("*/*.parquet")})
    # `data`, or the one folder named after the dataset's only configuration
    folder = root / "data" if len(folders) != 1 else folders[0]
    for file in sorted(folder.glob("*.parquet")):
        splits.setdefault(file.name.split("-")[0].removesuffix(".parquet"), []).append(str(file))
    if not splits:
        raise UserError(
            f"{root}: not a dataset in the hub's layout; expected {root}/data/<split>-*.parquet"
        )
    return splits


def _read(files: list[str], entry: Entry, where: str) -> tuple[list[Sample], list[str]]:
    from datasets import ClassLabel, Dataset, Image
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    for file in files:
        parquet_rows(file)  # names a file that is none
    # the reader copies Parquet into a cache on disk; a small dataset needs none
    small = sum(Path(file).stat().st_size for file in files) < IN_MEMORY
    table = Dataset.from_parquet(files, keep_in_memory=small)
    image = find_column(table, entry.image, Image, where)
    label = find_column(table, entry.label, ClassLabel, where)
    classes = table.features[label].names
    table = table.cast_column(image, Image(decode=False))
    samples = []
    for row, code in enumerate(table[label]):
        if code is None or not 0 <= code < len(classes):
            raise UserError(f"{where}, row {row}: label {code} is outside 0 to {len(classes) - 1}")
        stored = StoredImage(table, row, image, where, entry.trim)
        samples.append(Sample(stored, classes[code]))
    return samples, classes


def parquet_rows(file: str) -> int:
    """The number of rows of a Parquet file. Raises `UserError` where it is none."""
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    try:
        return read_metadata(file).num_rows
    except (ArrowException, OSError) as error:
        first = str(error).splitlines()[0]
        raise UserError(f"{file}: not a Parquet file that can be read ({first})") from error


def find_column(table: Any, wanted: str, kind: type, where: str) -> str:
    """The column of type `kind`: the `wanted` one, or the only one. Raises `UserError`."""
    found = [c for c, feature in table.features.items() if isinstance(feature, kind)]
    if wanted in found:
        return wanted
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{where}: no column {wanted!r} of type {kind.__name__}; "
        f"it has {', '.join(f'{c}: {type(f).__name__}' for c, f in table.features.items())}"
    )
