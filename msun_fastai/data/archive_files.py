"""Official archives of image files with lists or .mat annotations: all but the array datasets.

Each reader returns the samples of every split and the classes in label order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msun_fastai.data.archive_arrays import Dataset, labelled
from msun_fastai.data.catalog import CATALOG
from msun_fastai.data.folders import image_files
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError


@dataclass(frozen=True, slots=True)
class TrimmedFile:
    """An image file of which `trim` pixels at the bottom do not belong to the picture."""

    path: Path
    trim: int

    def __str__(self) -> str:
        return str(self.path)

    def open_bytes(self) -> Path:
        """The file itself."""
        return self.path


def _lines(file: Path) -> list[list[str]]:
    text = file.read_text(encoding="utf-8", errors="replace")
    return [line.split() for line in text.splitlines() if line.strip() and line[0] != "#"]


def _field(words: Sequence[str], at: int, kind: Callable[[str], Any], where: Path, row: int) -> Any:
    try:
        return kind(words[at])
    except (IndexError, ValueError):
        raise UserError(f"{where}, row {row}: cannot be read: {' '.join(words)!r}") from None


def flowers(folder: Path) -> Dataset:
    """102 Flowers: numbers in .mat files; the archive has no names for its classes."""
    from scipy.io import loadmat

    classes = [str(i) for i in range(1, 103)]
    codes = _mat(loadmat, folder / "imagelabels.mat")["labels"].ravel().astype(int) - 1
    parts = _mat(loadmat, folder / "setid.mat")
    splits = {}
    for split, key in (("train", "trnid"), ("validation", "valid"), ("test", "tstid")):
        ids = parts[key].ravel().astype(int)
        files = [folder / "jpg" / f"image_{i:05d}.jpg" for i in ids]
        splits[split] = labelled(files, codes[ids - 1], classes, folder / "imagelabels.mat")
    return splits, classes


def _mat(loadmat: Callable[..., Any], file: Path, **options: Any) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(2, "no such file", str(file))
    try:
        return loadmat(file, **options)
    except Exception as error:  # scipy's reader raises whatever the bytes lead it to
        raise UserError(f"{file}: not a .mat file that can be read ({error})") from error


def pets(folder: Path) -> Dataset:
    """Lines `Abyssinian_100 1 1 1`: file, class from 1, species, breed."""
    rows = {
        split: [
            (words[0], _field(words, 1, int, file, row))
            for row, words in enumerate(_lines(file), start=1)
        ]
        for split, file in (
            ("train", folder / "annotations" / "trainval.txt"),
            ("test", folder / "annotations" / "test.txt"),
        )
    }
    names = {code: stem.rpartition("_")[0] for part in rows.values() for stem, code in part}
    classes = [names[code] for code in sorted(names)]
    splits = {
        split: [Sample(folder / "images" / f"{stem}.jpg", names[code]) for stem, code in part]
        for split, part in rows.items()
    }
    return splits, classes


def cars(folder: Path) -> Dataset:
    """Stanford Cars: annotations in .mat files, classes counted from 1."""
    from scipy.io import loadmat

    kit = folder / "devkit"
    classes = [
        str(name) for name in _mat(loadmat, kit / "cars_meta.mat", squeeze_me=True)["class_names"]
    ]
    with_labels = "cars_test_annos_withlabels.mat"
    test = folder / with_labels if (folder / with_labels).exists() else kit / with_labels
    splits = {}
    for split, file in (("train", kit / "cars_train_annos.mat"), ("test", test)):
        rows = np.atleast_1d(_mat(loadmat, file, squeeze_me=True)["annotations"])
        files = [folder / f"cars_{split}" / str(row["fname"]) for row in rows]
        splits[split] = labelled(files, [int(row["class"]) - 1 for row in rows], classes, file)
    return splits, classes


def aircraft(folder: Path) -> Dataset:
    """FGVC Aircraft by variant; lines `1025794 707-320`."""
    data, trim = folder / "data", CATALOG["fgvc_aircraft"].trim
    classes = [" ".join(words) for words in _lines(data / "variants.txt")]
    splits: dict[str, list[Sample]] = {}
    for split in ("train", "val", "test"):
        file = data / f"images_variant_{split}.txt"
        splits[split] = []
        for row, (stem, *variant) in enumerate(_lines(file), start=1):
            if " ".join(variant) not in classes:
                raise UserError(f"{file}, row {row}: unknown variant {' '.join(variant)!r}")
            image = TrimmedFile(data / "images" / f"{stem}.jpg", trim)
            splits[split].append(Sample(image, " ".join(variant)))
    return splits, classes


def dtd(folder: Path) -> Dataset:
    """The first of the ten splits; lines `banded/banded_0002.jpg`."""
    splits = {}
    for split, name in (("train", "train1"), ("validation", "val1"), ("test", "test1")):
        rows = _lines(folder / "labels" / f"{name}.txt")
        splits[split] = [Sample(folder / "images" / w[0], w[0].split("/")[0]) for w in rows]
    return splits, sorted({s.label for part in splits.values() for s in part})


def caltech101(folder: Path) -> Dataset:
    """Caltech-101: one split of class folders, without the background class."""
    classes = sorted(
        d.name for d in folder.iterdir() if d.is_dir() and d.name != "BACKGROUND_Google"
    )
    return {"train": [Sample(f, c) for c in classes for f in image_files(folder / c)]}, classes


RAF_DB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")


def raf_db(folder: Path) -> Dataset:
    """Lines `train_00001.jpg 5`; the label counts from 1, the aligned file is named after it."""
    file = folder / "EmoLabel" / "list_patition_label.txt"  # spelt so
    splits: dict[str, list[Sample]] = {"train": [], "test": []}
    for row, words in enumerate(_lines(file), start=1):
        code = _field(words, 1, int, file, row) - 1
        split = words[0].split("_")[0]
        if split not in splits or not 0 <= code < len(RAF_DB):
            raise UserError(f"{file}, row {row}: neither train nor test, or no label from 1 to 7")
        image = folder / "Image" / "aligned" / words[0].replace(".jpg", "_aligned.jpg")
        splits[split].append(Sample(image, RAF_DB[code]))
    return splits, list(RAF_DB)


def imagenet(folder: Path) -> Dataset:
    """ImageNet: class folders named by their WordNet ids."""
    classes = sorted(d.name for d in (folder / "train").iterdir() if d.is_dir())
    splits = {
        split: [Sample(f, c) for c in classes for f in image_files(folder / part / c)]
        for split, part in (("train", "train"), ("validation", "val"))
    }
    return splits, classes
