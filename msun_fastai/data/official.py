"""The datasets' official archives, unpacked where torchvision expects them.

One reader for each. Nothing in them runs: CIFAR's pickles are read with an unpickler that knows
arrays alone. Each returns the samples of every split and the classes in label order.
"""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msun_fastai.data.catalog import CATALOG, Entry
from msun_fastai.data.folders import image_files
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError

Dataset = tuple[dict[str, list[Sample]], list[str]]


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


def read_official(entry: Entry, folder: Path) -> Dataset:
    """The dataset of `entry` from its official folder. Raises `UserError` naming file and row."""
    try:
        return READERS[entry.name](folder)
    except FileNotFoundError as error:
        raise UserError(
            f"{entry.name}: {error.filename} is missing; expected the official archive unpacked "
            f"in {folder}"
        ) from None


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
    if name == "imagenet":
        places = [p for p in places if (p / "train").is_dir() and (p / "val").is_dir()]
    return next((p for p in places if p.is_dir()), None)


def _labelled(images: Iterable[Any], codes: Iterable[Any], classes: Sequence[str], where: Path):
    samples = []
    for row, (image, code) in enumerate(zip(images, codes), start=1):
        if not 0 <= int(code) < len(classes):
            raise UserError(
                f"{where}, row {row}: label {code} is outside 0 to {len(classes) - 1}, the classes "
                "that the dataset names"
            )
        samples.append(Sample(image, classes[int(code)]))
    return samples


def _lines(file: Path) -> list[list[str]]:
    text = file.read_text(encoding="utf-8", errors="replace")
    return [line.split() for line in text.splitlines() if line.strip() and line[0] != "#"]


def _field(words: Sequence[str], at: int, kind: Callable[[str], Any], where: Path, row: int) -> Any:
    try:
        return kind(words[at])
    except (IndexError, ValueError):
        raise UserError(f"{where}, row {row}: cannot be read: {' '.join(words)!r}") from None


# ---- arrays -----------------------------------------------------------------------------------


class _ArraysOnly(pickle.Unpickler):
    """An unpickler for lists, dictionaries and numpy arrays; anything else is refused."""

    allowed = frozenset(
        (f"{module}.{name}")
        for module, name in (
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),  # how newer Pythons write bytes
        )
    )

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in self.allowed:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return super().find_class(module, name)


def _unpickle(file: Path) -> dict[str, Any]:
    with file.open("rb") as stream:
        try:
            return _ArraysOnly(stream, encoding="latin1").load()
        except Exception as error:  # a damaged pickle fails in many ways
            raise UserError(f"{file}: not a batch of CIFAR ({error})") from error


def _cifar(folder: Path, batches: dict[str, list[str]], labels: str, meta: str, names: str):
    classes = list(_unpickle(folder / meta)[names])
    splits: dict[str, list[Sample]] = {}
    for split, files in batches.items():
        splits[split] = []
        for name in files:
            batch = _unpickle(folder / name)
            try:
                images = np.asarray(batch["data"]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
                codes = batch[labels]
            except (KeyError, ValueError) as error:
                raise UserError(f"{folder / name}: not a batch of CIFAR ({error})") from error
            splits[split] += _labelled(images, codes, classes, folder / name)
    return splits, classes


def _cifar10(folder: Path) -> Dataset:
    batches = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return _cifar(folder, batches, "labels", "batches.meta", "label_names")


def _cifar100(folder: Path) -> Dataset:
    batches = {"train": ["train"], "test": ["test"]}
    return _cifar(folder, batches, "fine_labels", "meta", "fine_label_names")


def _stl10(folder: Path) -> Dataset:
    """Binaries of 3 x 96 x 96 bytes an image, each channel column by column, labels from 1."""
    classes = (folder / "class_names.txt").read_text().split()
    splits = {}
    for split in ("train", "test"):
        file = folder / f"{split}_X.bin"
        pixels = np.memmap(file, np.uint8, "r")
        codes = np.fromfile(folder / f"{split}_y.bin", np.uint8).astype(int) - 1
        if pixels.size != len(codes) * 3 * 96 * 96:
            raise UserError(f"{file}: {pixels.size:,} bytes do not fit {len(codes):,} labels")
        images = pixels.reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)
        splits[split] = _labelled(images, codes, classes, file)
    return splits, classes


FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def _fashion_mnist(folder: Path) -> Dataset:
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
        codes = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1)
        splits[split] = _labelled(images, codes, FASHION, folder / f"{prefix}-labels-idx1-ubyte")
    return splits, list(FASHION)


def _read_idx(file: Path, dimensions: int) -> np.ndarray:
    """An idx file of bytes: two zeros, the type 8, the number of dimensions, then their sizes."""
    packed = file.with_name(f"{file.name}.gz")
    data = file.read_bytes() if file.exists() else gzip.decompress(packed.read_bytes())
    shape = np.frombuffer(data, ">i4", dimensions, 4) if len(data) >= 4 + 4 * dimensions else ()
    values = np.frombuffer(data, np.uint8, offset=min(len(data), 4 + 4 * dimensions))
    if data[:4] != bytes((0, 0, 8, dimensions)) or values.size != np.prod(shape, dtype=np.int64):
        raise UserError(f"{file}: not an idx file of {dimensions} dimensions, or cut short")
    return values.reshape(tuple(int(n) for n in shape))


# ---- files ------------------------------------------------------------------------------------


def _flowers(folder: Path) -> Dataset:
    from scipy.io import loadmat

    classes = [str(i) for i in range(1, 103)]  # the archive has no names
    codes = _mat(loadmat, folder / "imagelabels.mat")["labels"].ravel().astype(int) - 1
    parts = _mat(loadmat, folder / "setid.mat")
    splits = {}
    for split, key in (("train", "trnid"), ("validation", "valid"), ("test", "tstid")):
        ids = parts[key].ravel().astype(int)
        files = [folder / "jpg" / f"image_{i:05d}.jpg" for i in ids]
        splits[split] = _labelled(files, codes[ids - 1], classes, folder / "imagelabels.mat")
    return splits, classes


def _mat(loadmat: Callable[..., Any], file: Path, **options: Any) -> dict[str, Any]:
    if not file.is_file():
        raise FileNotFoundError(2, "no such file", str(file))
    try:
        return loadmat(file, **options)
    except Exception as error:  # scipy's reader raises whatever the bytes lead it to
        raise UserError(f"{file}: not a .mat file that can be read ({error})") from error


def _pets(folder: Path) -> Dataset:
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


def _cars(folder: Path) -> Dataset:
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
        splits[split] = _labelled(files, [int(row["class"]) - 1 for row in rows], classes, file)
    return splits, classes


def _aircraft(folder: Path) -> Dataset:
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


def _dtd(folder: Path) -> Dataset:
    """The first of the ten splits; lines `banded/banded_0002.jpg`."""
    splits = {}
    for split, name in (("train", "train1"), ("validation", "val1"), ("test", "test1")):
        rows = _lines(folder / "labels" / f"{name}.txt")
        splits[split] = [Sample(folder / "images" / w[0], w[0].split("/")[0]) for w in rows]
    return splits, sorted({s.label for part in splits.values() for s in part})


def _caltech101(folder: Path) -> Dataset:
    classes = sorted(
        d.name for d in folder.iterdir() if d.is_dir() and d.name != "BACKGROUND_Google"
    )
    return {"train": [Sample(f, c) for c in classes for f in image_files(folder / c)]}, classes


RAF_DB = ("surprise", "fear", "disgust", "happiness", "sadness", "anger", "neutral")


def _raf_db(folder: Path) -> Dataset:
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


def _imagenet(folder: Path) -> Dataset:
    classes = sorted(d.name for d in (folder / "train").iterdir() if d.is_dir())
    splits = {
        split: [Sample(f, c) for c in classes for f in image_files(folder / part / c)]
        for split, part in (("train", "train"), ("validation", "val"))
    }
    return splits, classes


READERS: dict[str, Callable[[Path], Dataset]] = {
    "cifar10": _cifar10,
    "cifar100": _cifar100,
    "stl10": _stl10,
    "caltech101": _caltech101,
    "fashion_mnist": _fashion_mnist,
    "oxford_flowers102": _flowers,
    "oxford_pets": _pets,
    "stanford_cars": _cars,
    "fgvc_aircraft": _aircraft,
    "dtd": _dtd,
    "raf_db": _raf_db,
    "imagenet": _imagenet,
}
