"""From a name or a path to a `Source`, whatever lies behind it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from msun_fastai.data.catalog import CATALOG, EMBEDDED, known_datasets
from msun_fastai.data.folders import source_from_csv, source_from_folder
from msun_fastai.data.official import official_folder, read_official
from msun_fastai.data.parts import source_from_splits
from msun_fastai.data.samples import Source
from msun_fastai.errors import UserError, did_you_mean

ROOT_VARIABLE = "MSUN_DATA_ROOT"


def source_from_path(
    path: Path | str,
    valid_fraction: float = 0.2,
    seed: int = 42,
    columns: Mapping[str, str] = MappingProxyType({}),
) -> Source:
    """A folder of class folders, or a CSV file of paths and labels in its `columns`.

    columns: `path_column`, `label_column`, `split_column`, see `source_from_table`.
    """
    if Path(path).suffix.lower() == ".csv":
        return source_from_csv(path, valid_fraction=valid_fraction, seed=seed, **columns)
    named = [f"{name} {value!r}" for name, value in columns.items() if value]
    if named:
        raise UserError(f"{path}: {named[0]}: not a CSV file, which alone has columns")
    return source_from_folder(path, valid_fraction, seed)


def source_from_name(name: str, root: Path | str | None = None, seed: int = 42) -> Source:
    """The dataset `name`: embedded, or below `root` (or `MSUN_DATA_ROOT`).

    Below the root it is looked for as `root/name` in the hub's layout, as the official archive
    unpacked where torchvision expects it, and as class folders in `root/name`. `seed` draws the
    embedded dataset and the parts that a dataset does not have. A folder in the hub's layout needs
    no entry in the catalogue. Raises `UserError` that says where it was looked for.
    """
    if name in EMBEDDED:
        return _embedded(name, seed)
    root = data_root(root)
    layout = find_layout(name, root)
    if layout is not None:
        return read_layout(name, *layout, seed)
    if name not in CATALOG:
        raise UserError(f"dataset {name!r} is unknown; {did_you_mean(name, _names(root))}")
    raise UserError(f"dataset {name!r}: {_how_to_get(name, root)}")


def data_root(root: Path | str | None) -> Path | None:
    """`root`, or else the one that the environment names. Raises `UserError` if it is not there."""
    given = root or os.environ.get(ROOT_VARIABLE)
    if given and not Path(given).is_dir():
        raise UserError(f"data root {given}: no such folder")
    return Path(given) if given else None


def _embedded(name: str, seed: int) -> Source:
    if name == "digits":
        from msun_fastai.data.digits import digits_source

        return digits_source(seed)
    from msun_fastai.data.shapes import shapes_source

    return shapes_source(seed=seed)


def find_layout(name: str, root: Path | str | None) -> tuple[str, Path] | None:
    """How and where the dataset `name` lies below `root`: `hub`, `official` or `folders`."""
    if root is None or not name or Path(name).name != name:
        return None
    folder = Path(root) / name
    if any(folder.glob("*/*.parquet")):
        return "hub", folder
    official = official_folder(name, Path(root))
    if official is not None:
        return "official", official
    return ("folders", folder) if folder.is_dir() else None


def read_layout(name: str, layout: str, folder: Path, seed: int = 42) -> Source:
    """The dataset `name` from a folder in the layout that `find_layout` found."""
    if layout == "hub":
        from msun_fastai.data.mirror import source_from_mirror

        return source_from_mirror(folder, name, seed)
    if layout == "folders":
        return source_from_folder(folder, seed=seed)
    entry = CATALOG[name]
    splits, classes = read_official(entry, folder)
    return source_from_splits(str(folder), entry, splits, classes, seed)


def _how_to_get(name: str, root: Path | str | None) -> str:
    """What to do to have the dataset `name`, and where it was looked for."""
    entry = CATALOG[name]
    if root is None:
        where = f"no data root: give --data-root DIR or set {ROOT_VARIABLE}"
    else:
        where = f"neither in {Path(root) / name} nor in {Path(root) / entry.official}"
    ways = f"its official archive unpacked in DIR/{entry.official}"
    if entry.hub_id:
        ways = f"a copy of {entry.hub_id} in DIR/{name} (data/<split>-*.parquet), or {ways}"
    if entry.hub_id:
        ways += f"; `msun-fastai datasets prepare {name}` fetches it"
    return f"{where}; expected {ways}" + (f"; {entry.access}" if entry.access else "")


def _names(root: Path | str | None) -> list[str]:
    local = (
        [d.name for d in Path(root).iterdir() if d.is_dir()] if root and Path(root).is_dir() else []
    )
    return sorted({*known_datasets(), *local})
