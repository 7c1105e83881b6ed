"""What a dataset is and what of it is here: catalogue, parts, native sizes, routing."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from msun_fastai.data.catalog import CATALOG, EMBEDDED
from msun_fastai.data.headers import sample_headers
from msun_fastai.data.hub import download
from msun_fastai.data.samples import Source
from msun_fastai.data.scan import find_bad
from msun_fastai.data.sources import (
    ROOT_VARIABLE,
    data_root,
    find_layout,
    read_layout,
    source_from_name,
    source_from_path,
)
from msun_fastai.errors import UserError, did_you_mean
from msun_fastai.scales import EDGES, route

NAMED = 20  # unreadable images that are listed


def list_datasets(root: Path | str | None) -> list[dict[str, Any]]:
    """A row for every dataset of the catalogue: name, size, and where a copy of it is."""
    rows, root = [], data_root(root)
    for entry in CATALOG.values():
        found = find_layout(entry.name, root)
        rows.append(
            {
                "name": entry.name,
                "title": entry.title,
                "classes": entry.classes,
                "images": entry.size,
                "sides": entry.sides,
                "licence": entry.licence,
                "here": str(found[1]) if found else "",
            }
        )
    return rows


def describe(
    name: str, root: Path | str | None, scales: Sequence[int], routing: str
) -> dict[str, Any]:
    """All that is known of the dataset `name`; `here` is None where there is no copy of it.

    `native_sizes` counts images by shorter side, keyed by the upper edge of each bin; `routed` by
    the scale that they would go to. Headers alone are read. Raises `UserError` for an unknown name.
    """
    entry, root = CATALOG.get(name), data_root(root)
    known = {**entry.__dict__, "splits": dict(entry.splits)} if entry else {}
    try:
        source = source_from_name(name, root)
    except UserError:
        if entry is None or (root is not None and find_layout(name, root)):
            raise
        return {**known, "here": None}
    layout, folder = ("embedded", "") if name in EMBEDDED else find_layout(name, root) or ("", "")
    headers = sample_headers(source.samples)
    sizes = [min(h) for h in headers if not isinstance(h, str)]
    unreadable = [h for h in headers if isinstance(h, str)]
    return {
        **(known or {"name": name, "classes": len(source.classes)}),
        "here": {
            "layout": layout,
            "folder": str(folder),
            "parts": parts_of(source),
            "notes": list(source.notes),
            "native_sizes": histogram(sizes),
            "routed": dict(sorted(Counter(route(s, scales, routing) for s in sizes).items())),
            "unreadable": unreadable[:NAMED],
            "unreadable_count": len(unreadable),
        },
    }


def prepare(
    name: str, root: Path | str | None, strict: bool, hub_id: str = "", revision: str = ""
) -> dict[str, Any]:
    """Have the dataset `name` below `root`, fetched where it is not, and check what is there.

    Returns its folder, layout, parts, number of classes and notes. strict: fewer images than the
    catalogue says are an error. Raises `UserError`.
    """
    if name not in CATALOG:
        raise UserError(f"dataset {name!r} is unknown; {did_you_mean(name, CATALOG)}")
    root = root or os.environ.get(ROOT_VARIABLE)
    if root is None:
        raise UserError(f"no data root: give --data-root DIR or set {ROOT_VARIABLE}")
    if find_layout(name, root) is None:
        download(CATALOG[name], Path(root), hub_id, revision)
    layout, folder = find_layout(name, root) or ("", Path(root))
    source = read_layout(name, layout, folder)
    if strict and source.notes:
        raise UserError(f"{folder}: {'; '.join(source.notes)}")
    return {
        "name": name,
        "layout": layout,
        "folder": str(folder),
        "parts": parts_of(source),
        "classes": len(source.classes),
        "notes": list(source.notes),
    }


def scan_data(
    name: str | None,
    path: str | None,
    root: Path | str | None,
    decode: bool,
    columns: Mapping[str, str],
) -> dict[str, Any]:
    """Look at every image of the dataset `name`, or of the data at `path`, and say which are bad.

    decode: decode them too. columns: see `source_from_path`. Returns the name, the number of images
    in each part and the bad ones, a row each with its part and its reason. Raises `UserError`.
    """
    if (name is None) == (path is None):
        raise UserError("name the data: either --dataset NAME or --data PATH")
    if name is not None:
        source = source_from_name(name, root)
    else:
        source = source_from_path(str(path), columns=columns)
    bad = find_bad(source, decode=decode).bad
    return {
        "name": source.name,
        "parts": parts_of(source),
        "bad": [asdict(image) for image in bad],
        "notes": list(source.notes),
    }


def parts_of(source: Source) -> dict[str, int]:
    """Number of images in each part that is used."""
    counts = {"train": len(source.train), "valid": len(source.valid), "test": len(source.test)}
    return {part: n for part, n in counts.items() if n}


def histogram(sizes: Sequence[int]) -> dict[int, int]:
    """How many sizes are at most each edge and above the one before; the last edge as needed."""
    edges = [*EDGES, max([*sizes, EDGES[-1]])]
    counts = Counter(next(edge for edge in edges if size <= edge) for size in sizes)
    return dict(sorted(counts.items()))
