"""Datasets from the Hugging Face hub: the files of the splits that are needed, and no others."""

from __future__ import annotations

from pathlib import Path

from msun_fastai.data.catalog import Entry
from msun_fastai.errors import UserError


def split_patterns(entry: Entry) -> list[str]:
    """Which files of the repository to fetch: the catalogued splits' Parquet files."""
    names = [f"{split}{end}" for split in entry.splits for end in ("-*.parquet", ".parquet")]
    return [*(f"*/{name}" for name in names), "README.md"]


def download(entry: Entry, root: Path, hub_id: str = "", revision: str = "") -> Path:
    """Fetch the dataset of `entry` into `root/NAME`, in the hub's own layout; returns that folder.

    hub_id, revision: another repository or state of it than the catalogue's. Files that are there
    already are not fetched again. Raises `UserError` that says what was tried.
    """
    from huggingface_hub import snapshot_download

    repository, state = hub_id or entry.hub_id, revision or entry.revision
    if not repository:
        raise UserError(f"dataset {entry.name!r}: on no hub; {entry.access}")
    folder = root / entry.name
    try:
        snapshot_download(
            repository,
            repo_type="dataset",
            revision=state,
            allow_patterns=split_patterns(entry),
            local_dir=folder,
        )
    except Exception as error:  # of the network, of the hub or of the disk, in many classes
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        advice = entry.access or "name another with --hub-id and --revision, or copy it there"
        raise UserError(
            f"dataset {entry.name!r}: {repository} at {state} could not be fetched into {folder} "
            f"({first}); {advice}"
        ) from error
    if not any(folder.glob("*/*.parquet")):
        raise UserError(
            f"dataset {entry.name!r}: {repository} at {state} has no Parquet files of "
            f"{', '.join(entry.splits)}; name another with --hub-id and --revision"
        )
    return folder
