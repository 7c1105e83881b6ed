"""The datasets' official archives, unpacked where torchvision expects them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from msun_fastai.data import archive_arrays as arrays
from msun_fastai.data import archive_files as files
from msun_fastai.data.archive_arrays import Dataset
from msun_fastai.data.catalog import CATALOG, Entry
from msun_fastai.errors import UserError

# where the folder's name alone says nothing: class folders might lie there as well
NEEDED = {"stanford_cars": ("devkit",), "imagenet": ("train", "val")}
READERS: dict[str, Callable[[Path], Dataset]] = {
    "cifar10": arrays.cifar10,
    "cifar100": arrays.cifar100,
    "stl10": arrays.stl10,
    "caltech101": files.caltech101,
    "fashion_mnist": arrays.fashion_mnist,
    "oxford_flowers102": files.flowers,
    "oxford_pets": files.pets,
    "stanford_cars": files.cars,
    "fgvc_aircraft": files.aircraft,
    "dtd": files.dtd,
    "raf_db": files.raf_db,
    "imagenet": files.imagenet,
}


def read_official(entry: Entry, folder: Path) -> Dataset:
    """The dataset of `entry` from its official folder. Raises `UserError` naming file and row."""
    try:
        return READERS[entry.name](folder)
    except FileNotFoundError as error:
        raise UserError(
            f"{entry.name}: {error.filename} is missing; expected the official archive unpacked "
            f"in {folder}"
        ) from None
    # what an archive lacks inside its files: a key, a row, bytes
    except (KeyError, IndexError, ValueError, EOFError, OSError) as error:
        raise UserError(
            f"{entry.name}: {folder} is not as the official archive "
            f"({type(error).__name__}: {error})"
        ) from error


def official_folder(name: str, root: Path) -> Path | None:
    """Where below `root` the official files of `name` are, in torchvision's layout; None if not.

    torchvision unpacks into `root` itself; a folder of the dataset's own in between is as good.
    """
    entry = CATALOG.get(name)
    if entry is None or not entry.official:
        return None
    places = [root / entry.official, root / name / entry.official]
    if name == "raf_db":
        places.append(root / "basic")
    needed = NEEDED.get(name, ())
    return next(
        (p for p in places if p.is_dir() and all((p / part).is_dir() for part in needed)), None
    )
