"""From a name or a path to a `Source`, whatever lies behind it."""

from __future__ import annotations

import os
from pathlib import Path

from msun_fastai.data.catalog import CATALOG, EMBEDDED, known_datasets
from msun_fastai.data.folders import source_from_csv, source_from_folder
from msun_fastai.data.samples import Source
from msun_fastai.errors import UserError, did_you_mean

ROOT_VARIABLE = "MSUN_DATA_ROOT"


def source_from_path(path: Path | str, valid_fraction: float = 0.2, seed: int = 42) -> Source:
    """A folder of class folders, or a CSV file of paths and labels."""
    if Path(path).suffix.lower() == ".csv":
        return source_from_csv(path, valid_fraction=valid_fraction, seed=seed)
    return source_from_folder(path, valid_fraction, seed)


def source_from_name(name: str, root: Path | str | None = None, seed: int = 42) -> Source:
    """The dataset `name`: embedded, or below `root` (or `MSUN_DATA_ROOT`) in the hub's layout.

    `seed` draws the embedded dataset. A folder below `root` needs no entry in the catalogue.
    """
    if name in EMBEDDED:
        from msun_fastai.data.shapes import shapes_source

        return shapes_source(seed=seed)
    root = root or os.environ.get(ROOT_VARIABLE)
    folder = Path(root) / name if root else None
    if folder is not None and folder.is_dir() and name == folder.name:
        from msun_fastai.data.mirror import source_from_mirror

        return source_from_mirror(folder, name)
    if name not in CATALOG:
        raise UserError(f"dataset {name!r} is unknown; {did_you_mean(name, _names(root))}")
    if folder is None:
        raise UserError(
            f"dataset {name!r}: no local copy named; copy {CATALOG[name].hub_id} into DIR/{name} "
            f"and give --data-root DIR or set {ROOT_VARIABLE}"
        )
    if not Path(root or "").is_dir():
        raise UserError(f"data root {root}: no such folder")
    raise UserError(
        f"dataset {name!r}: {folder} does not exist; expected a copy of {CATALOG[name].hub_id} "
        f"with {folder}/data/<split>-*.parquet"
    )


def _names(root: Path | str | None) -> list[str]:
    local = (
        [d.name for d in Path(root).iterdir() if d.is_dir()] if root and Path(root).is_dir() else []
    )
    return sorted({*known_datasets(), *local})
