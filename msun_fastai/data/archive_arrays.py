"""Official archives that are arrays: CIFAR, STL-10, Fashion-MNIST.

Nothing in them runs: CIFAR's pickles are read with an unpickler that knows arrays alone. Each
reader returns the samples of every split and the classes in label order.
"""

from __future__ import annotations

import gzip
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError

Dataset = tuple[dict[str, list[Sample]], list[str]]


def labelled(
    images: Iterable[Any], codes: Iterable[Any], classes: Sequence[str], where: Path
) -> list[Sample]:
    """Samples of `images` with their label codes; one outside the classes is named by its row."""
    samples = []
    for row, (image, code) in enumerate(zip(images, codes), start=1):
        if not 0 <= int(code) < len(classes):
            raise UserError(
                f"{where}, row {row}: label {code} is outside 0 to {len(classes) - 1}, the classes "
                "that the dataset names"
            )
        samples.append(Sample(image, classes[int(code)]))
    return samples


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
            splits[split] += labelled(images, codes, classes, folder / name)
    return splits, classes


def cifar10(folder: Path) -> Dataset:
    """CIFAR-10: five batches to train on and one to test on."""
    batches = {"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]}
    return _cifar(folder, batches, "labels", "batches.meta", "label_names")


def cifar100(folder: Path) -> Dataset:
    """CIFAR-100, with its fine labels."""
    batches = {"train": ["train"], "test": ["test"]}
    return _cifar(folder, batches, "fine_labels", "meta", "fine_label_names")


def stl10(folder: Path) -> Dataset:
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
        splits[split] = labelled(images, codes, classes, file)
    return splits, classes


FASHION = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)


def fashion_mnist(folder: Path) -> Dataset:
    """Fashion-MNIST: idx files, packed or not."""
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images = _read_idx(folder / f"{prefix}-images-idx3-ubyte", 3)
        codes = _read_idx(folder / f"{prefix}-labels-idx1-ubyte", 1)
        splits[split] = labelled(images, codes, FASHION, folder / f"{prefix}-labels-idx1-ubyte")
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
