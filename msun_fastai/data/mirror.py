"""A local copy of a hub dataset, read through `datasets` without a network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msun_fastai.data.catalog import CATALOG, Entry
from msun_fastai.data.folders import TRAIN_NAMES, VALID_NAMES
from msun_fastai.data.samples import Sample, Source, make_source
from msun_fastai.errors import UserError

IN_MEMORY = 2**30  # bytes of Parquet files up to which a split is kept in memory


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The encoded bytes of one image in an Arrow table, fetched when they are needed."""

    table: Any  # a datasets.Dataset whose image column is not decoded
    row: int
    column: str
    where: str  # dataset and split, for errors

    def __str__(self) -> str:
        return f"{self.where}, row {self.row}"

    def open_bytes(self) -> bytes | Path:
        """The encoded image, or the path of the file that holds it."""
        value = self.table[self.row][self.column]
        return value["bytes"] if value["bytes"] is not None else Path(value["path"])


def source_from_mirror(folder: Path | str, name: str = "") -> Source:
    """A folder laid out as a dataset repository: `data/<split>-*.parquet`.

    Split and column names are those of the catalogue where the dataset is in it; columns of other
    names are found by their type.
    """
    root = Path(folder)
    entry = CATALOG.get(name or root.name, Entry(name or root.name, "", 0))
    splits = _splits(root)
    train = _pick(splits, (entry.train, *TRAIN_NAMES), root)
    valid = _pick(splits, (entry.valid, *VALID_NAMES), root)
    parts: list[list[Sample]] = []
    names: list[list[str]] = []
    for split in (train, valid):
        samples, classes = _read(splits[split], entry, f"{root.name} ({split})")
        parts.append(samples)
        names.append(classes)
    if names[0] != names[1]:
        raise UserError(f"{root}: {train} and {valid} name different classes")
    if entry.classes and len(names[0]) != entry.classes:
        raise UserError(f"{root}: {len(names[0])} classes; {entry.name} has {entry.classes}")
    return make_source(root.name, parts[0], parts[1], names[0])


def _splits(root: Path) -> dict[str, list[str]]:
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


def _pick(splits: dict[str, list[str]], names: tuple[str, ...], root: Path) -> str:
    for name in names:
        if name in splits:
            return name
    raise UserError(
        f"{root}: no split {' or '.join(dict.fromkeys(names))}; it has {', '.join(splits)}"
    )


def _read(files: list[str], entry: Entry, where: str) -> tuple[list[Sample], list[str]]:
    from datasets import ClassLabel, Dataset, Image
    from datasets.utils.logging import disable_progress_bar

    disable_progress_bar()
    # the reader copies Parquet into a cache on disk; a small dataset needs none
    small = sum(Path(file).stat().st_size for file in files) < IN_MEMORY
    table = Dataset.from_parquet(files, keep_in_memory=small)
    image = _column(table, entry.image, Image, where)
    label = _column(table, entry.label, ClassLabel, where)
    classes = table.features[label].names
    table = table.cast_column(image, Image(decode=False))
    samples = []
    for row, code in enumerate(table[label]):
        if code is None or not 0 <= code < len(classes):
            raise UserError(f"{where}, row {row}: label {code} is outside 0 to {len(classes) - 1}")
        samples.append(Sample(StoredImage(table, row, image, where), classes[code]))
    return samples, classes


def _column(table: Any, wanted: str, kind: type, where: str) -> str:
    found = [c for c, feature in table.features.items() if isinstance(feature, kind)]
    if wanted in found:
        return wanted
    if len(found) == 1:
        return found[0]
    raise UserError(
        f"{where}: no column {wanted!r} of type {kind.__name__}; "
        f"it has {', '.join(f'{c}: {type(f).__name__}' for c, f in table.features.items())}"
    )
