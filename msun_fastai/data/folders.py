"""Sources on disk that need no library: image folders and tables of paths and labels."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from msun_fastai.data.images import SUFFIXES
from msun_fastai.data.parts import TEST_NAMES, TRAIN_NAMES, VALID_NAMES
from msun_fastai.data.samples import Sample, Source, make_source, stratified_split
from msun_fastai.errors import UserError, did_you_mean

PATH_COLUMNS = ("path", "image", "file", "filename", "name")
LABEL_COLUMNS = ("label", "class", "labels", "target")
SPLIT_COLUMNS = ("split", "is_valid")


def image_files(folder: Path) -> list[Path]:
    """The image files below `folder`, see `walk_images`."""
    return list(walk_images(folder))


def walk_images(folder: Path) -> Iterator[Path]:
    """The image files below `folder`, at any depth, sorted; hidden ones left out.

    A name that looks like an image but leads nowhere, as a broken link, is among them: whoever
    opens it is told. Links to folders are not followed. The names of one folder at a time are held.
    """
    try:
        with os.scandir(folder) as entries:
            found = sorted((e.name, _is_folder(e), e.is_symlink()) for e in entries)
    except OSError:  # a folder that is not ours to read
        return
    for name, is_folder, is_link in found:
        if name.startswith("."):
            continue
        if is_folder and not is_link:
            yield from walk_images(folder / name)
        elif not is_folder and Path(name).suffix.lower() in SUFFIXES:
            yield folder / name


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def source_from_folder(
    path: Path | str,
    valid_fraction: float = 0.2,
    seed: int = 42,
    train: str = "",
    valid: str = "",
    test: str = "",
) -> Source:
    """Images in class folders: `path/train/CLASS/**` and `path/valid/CLASS/**`, perhaps
    `path/test/CLASS/**` too; or `path/CLASS/**`.

    Without a training folder every class is split by `seed`; so is the training folder where there
    is no other. Training is watched on `valid`, or on `test` where there is no `valid`. `train`,
    `valid` and `test` name folders that are not called as usual. Raises `UserError`.
    """
    root = Path(path)
    name = root.resolve().name
    if not root.is_dir():
        raise UserError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    train_dir = _part(root, (train,) if train else TRAIN_NAMES, required=bool(train))
    valid_dir = _part(root, (valid,) if valid else VALID_NAMES, required=bool(valid))
    test_dir = _part(root, (test,) if test else TEST_NAMES, required=bool(test))
    held = [d.name for d in (valid_dir, test_dir) if d is not None]
    if train_dir is None and held:
        raise UserError(
            f"{root}: {' and '.join(held)}, but no folder train beside it; call a class otherwise"
        )
    if train_dir is None:
        samples = _class_folders(root)
        return make_source(name, *stratified_split(samples, valid_fraction, seed))
    folders = {"train": train_dir, "valid": valid_dir, "test": test_dir}
    parts = {part: _class_folders(d) if d else [] for part, d in folders.items()}
    unused = [d.name for d in _subfolders(root) if d not in folders.values()]
    source = held_out_source(name, **parts, valid_fraction=valid_fraction, seed=seed)
    if not unused:
        return source
    note = f"{root}: not used: {', '.join(unused)}; parts are called train, valid and test"
    return replace(source, notes=(*source.notes, note))


def undivided(path: Path | str) -> list[Sample] | None:
    """All images in the class folders or the CSV file `path`; None where it says which of them are
    to train on. Raises `UserError`."""
    root = Path(path)
    if root.suffix.lower() == ".csv":
        table = read_csv(root)
        if any(column in table.columns for column in SPLIT_COLUMNS):
            return None
        return table_samples(table, root.parent, name=str(root))
    if not root.is_dir():
        raise UserError(f"{root}: {'not a folder' if root.exists() else 'no such folder'}")
    parts = (TRAIN_NAMES, VALID_NAMES, TEST_NAMES)
    if any(_part(root, names, required=False) for names in parts):
        return None
    return _class_folders(root)


def held_out_source(
    name: str,
    train: list[Sample],
    valid: list[Sample],
    test: list[Sample],
    valid_fraction: float,
    seed: int,
) -> Source:
    """A source of what was held out: `test` takes the place of an empty `valid`, a share of `train`
    that of both."""
    if not valid and not test:
        train, valid = stratified_split(train, valid_fraction, seed)
    return make_source(name, train, valid or test, test=test if valid else ())


def _part(root: Path, names: Iterable[str], required: bool) -> Path | None:
    by_name = {d.name.lower(): d for d in _subfolders(root)} | {
        d.name: d for d in _subfolders(root)
    }
    for name in names:
        if name in by_name and any(d.is_dir() for d in by_name[name].iterdir()):
            return by_name[name]
    if required:
        raise UserError(f"{root}: no folder {' or '.join(names)} in it")
    return None


def _subfolders(folder: Path) -> list[Path]:
    """The folders in `folder`, without hidden ones and what packing on a Mac leaves."""
    folders = (d for d in folder.iterdir() if d.is_dir())
    return sorted(d for d in folders if not d.name.startswith((".", "__MACOSX")))


def _class_folders(folder: Path) -> list[Sample]:
    classes = _subfolders(folder)
    if not classes:
        what = "images, but no class folders" if image_files(folder) else "no class folders"
        raise UserError(f"{folder}: {what}; put the images of each class in a folder of its name")
    samples = []
    for class_dir in classes:
        files = image_files(class_dir)
        if not files:
            others = sorted({p.suffix or p.name for p in class_dir.rglob("*") if p.is_file()})
            found = f" (but files of {', '.join(others[:5])})" if others else ""
            raise UserError(
                f"{class_dir}: class {class_dir.name!r} has no images{found}; add some or remove it"
            )
        samples += [Sample(file, class_dir.name) for file in files]
    return samples


def source_from_table(
    table: Any,
    root: Path | str = ".",
    path_column: str | int = "",
    label_column: str | int = "",
    split_column: str | int = "",
    valid_fraction: float = 0.2,
    seed: int = 42,
    name: str = "table",
) -> Source:
    """A pandas DataFrame with a column of paths (relative to `root`) and one of labels.

    A column `split` (train, valid, test) or `is_valid` (true, false) says which part a row belongs
    to; without it every class is split by `seed`. Column names left empty are looked for among the
    usual ones. Raises `UserError` naming the row.
    """
    samples = table_samples(table, root, path_column, label_column, name)
    usual = next((c for c in SPLIT_COLUMNS if c in table.columns), "")
    split = usual if split_column == "" else split_column
    if split == "":
        return make_source(Path(name).stem, *stratified_split(samples, valid_fraction, seed))
    split = _column(table, split, (), name, "parts")
    parts: dict[str, list[Sample]] = {"train": [], "valid": [], "test": []}
    for row, (sample, value) in enumerate(zip(samples, table[split]), start=1):
        parts[_part_of(value, name, row)].append(sample)
    return held_out_source(Path(name).stem, **parts, valid_fraction=valid_fraction, seed=seed)


def table_samples(
    table: Any,
    root: Path | str = ".",
    path_column: str | int = "",
    label_column: str | int = "",
    name: str = "table",
) -> list[Sample]:
    """The rows of a DataFrame as samples; see `source_from_table`."""
    paths = _column(table, path_column, PATH_COLUMNS, name, "paths")
    labels = _column(table, label_column, LABEL_COLUMNS, name, "labels")
    if len(table) == 0:
        raise UserError(f"{name}: no rows")
    samples, there = [], False
    for row, (path, label) in enumerate(zip(table[paths], table[labels]), start=1):
        file = Path(root) / str(path)
        if str(path).strip() == "":
            raise UserError(f"{name}, row {row}: no path")
        there = there or file.is_file()
        if label is None or label != label or str(label).strip() == "":
            raise UserError(f"{name}, row {row}: no label for {path}")
        samples.append(Sample(file, str(label)))
    if not there:  # some that are missing are bad images; all of them are another folder's
        raise UserError(f"{name}, row 1: {samples[0].image}: no such file, nor is any other there")
    return samples


def table_paths(table: Any, root: Path | str = ".", path_column: str | int = "") -> list[Path]:
    """The paths of a DataFrame's rows, whether it has labels or not."""
    column = _column(table, path_column, PATH_COLUMNS, "table", "paths")
    return [Path(root) / str(path) for path in table[column]]


def _column(table: Any, wanted: str | int, usual: Iterable[str], name: str, what: str) -> str:
    columns = [str(c) for c in table.columns]
    if isinstance(wanted, int) and wanted not in table.columns:
        if not 0 <= wanted < len(columns):
            raise UserError(f"{name}: no column {wanted}; it has {len(columns)}")
        return table.columns[wanted]
    if wanted != "":
        if wanted not in columns:
            raise UserError(f"{name}: no column {wanted!r}; {did_you_mean(str(wanted), columns)}")
        return wanted
    for column in usual:
        if column in columns:
            return column
    raise UserError(
        f"{name}: which column holds the {what}? It has {', '.join(map(repr, columns))}; "
        f"call it {next(iter(usual))!r}, or name it (path_column, label_column, split_column)"
    )


def _part_of(value: Any, name: str, row: int) -> str:
    text = str(value).strip().lower()
    if text in ("1", "1.0", "true", *VALID_NAMES):
        return "valid"
    if text in ("0", "0.0", "false", *TRAIN_NAMES):
        return "train"
    if text in TEST_NAMES:
        return "test"
    raise UserError(f"{name}, row {row}: split {value!r} is none of train, valid and test")


def source_from_csv(path: Path | str, **options: Any) -> Source:
    """`source_from_table` on a CSV file; its paths are relative to the file's own folder."""
    file, table = Path(path), read_csv(path)
    return source_from_table(table, **{"root": file.parent, "name": str(file), **options})


def read_csv(path: Path | str) -> Any:
    """A CSV file as a DataFrame of text. Raises `UserError`."""
    import pandas as pd

    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    try:
        return pd.read_csv(file, dtype=str, keep_default_na=False)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise UserError(f"{file}: not a CSV file that can be read ({error})") from error
