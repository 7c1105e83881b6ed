"""Images per second of our loader and of fastai's own, on the same photographs.

The photographs of a dataset in the hub's layout are written out as files, for both to read. Both
loaders make batches of 64 at one side, with the same number of workers and without batch
transforms, which are the same for both and run on the device. fastai's is
`ImageDataLoaders.from_folder(item_tfms=Resize(side))`. Everything is measured in turns in one
process, so that a noisy machine slows both; figures are medians over rounds.

    python benchmarks/loader.py --data-root ../shared/data --rounds 5
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import PIL
from fastai.data.core import DataLoaders
from fastai.vision.augment import Resize
from fastai.vision.data import ImageDataLoaders
from fasttransform import Pipeline
from rich.console import Console

from msun_fastai.cli.output import print_table
from msun_fastai.data.headers import read_headers
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.data.sources import source_from_name
from msun_fastai.memory import keep_freed_memory

EPOCHS = 5  # what `finetune` trains for by default
LOADERS = ("fastai", "first epoch", "first epoch, light", "later epochs", f"{EPOCHS} epochs")


def write_photos(name: str, root: str, folder: Path) -> list[Path]:
    """The images of the dataset `name` as files in class folders."""
    source = source_from_name(name, root)
    files = []
    for i, sample in enumerate([*source.train, *source.valid]):
        file = folder / sample.label.replace("/", "-") / f"{i:05d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(sample.image.open_bytes())
        files.append(file)
    return files


def ours(folder: Path, side: int, workers: int, **options: Any) -> DataLoaders:
    """Our loaders with everything in the training part, as far as that goes."""
    return NativeImageDataLoaders.from_folder(
        folder, valid_pct=0.01, scales=(side,), bs=64, num_workers=workers, device="cpu", **options
    )


def fastais(folder: Path, side: int, workers: int) -> DataLoaders:
    """fastai's own loaders on the same files."""
    return ImageDataLoaders.from_folder(
        folder, valid_pct=0.01, item_tfms=Resize(side), bs=64, num_workers=workers, device="cpu"
    )


def rate(dls: DataLoaders, epochs: int = 1) -> float:
    """Training images a second."""
    dls.train.after_batch = Pipeline([])
    count, started = 0, time.perf_counter()
    for _ in range(epochs):
        count += sum(len(x) for x, _ in dls.train)
    return count / (time.perf_counter() - started)


def one_round(folder: Path, side: int, workers: int) -> dict[str, float]:
    """Images a second of each loader, in turns."""
    kept = ours(folder, side, workers, augment="light")
    rates = {
        "fastai": rate(fastais(folder, side, workers)),
        "first epoch": rate(ours(folder, side, workers, augment="none", cache=0)),
        "first epoch, light": rate(kept),
        "later epochs": rate(kept),
    }
    whole = rate(ours(folder, side, workers, augment="light"), EPOCHS)
    return {**rates, f"{EPOCHS} epochs": whole}


def measure(folder: Path, sides: list[int], workers: int, rounds: int) -> list[dict[str, Any]]:
    """Medians over rounds: images a second, and times fastai's of the same round."""
    rows = []
    for side in sides:
        found = [one_round(folder, side, workers) for _ in range(rounds)]
        row: dict[str, Any] = {"side": side}
        for name in LOADERS:
            row[name] = round(statistics.median(r[name] for r in found))
            row[f"{name} / fastai"] = round(
                statistics.median(r[name] / r["fastai"] for r in found), 2
            )
        rows.append(row)
    return rows


def header_rate(files: list[Path], rounds: int) -> float:
    """Headers read a second on one core, of files that the system has in memory."""
    rates = []
    for _ in range(rounds):
        started = time.perf_counter()
        read_headers(files, workers=0)
        rates.append(len(files) / (time.perf_counter() - started))
    return statistics.median(rates)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-root", required=True)
    parser.add_argument("--datasets", nargs="+", default=["caltech101", "stanford_cars"])
    parser.add_argument("--sides", nargs="+", type=int, default=[32, 128, 224])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    keep_freed_memory()
    console, found = Console(), {}
    for name in args.datasets:
        with tempfile.TemporaryDirectory() as folder:
            files = write_photos(name, args.data_root, Path(folder))
            header_rate(files, 1)  # brings the files into memory
            headers = round(header_rate(files, args.rounds))
            rows = measure(Path(folder), args.sides, args.workers, args.rounds)
        found[name] = {"images": len(files), "headers a second a core": headers, "loader": rows}
        cells = [
            [r["side"], *(f"{r[n]} ({r[f'{n} / fastai']:.2f})" for n in LOADERS)] for r in rows
        ]
        title = f"{name}: {len(files)} photographs, images a second (times fastai's)"
        print_table(console, title, ["side", *LOADERS], cells)
        console.print(f"headers: {headers} a second on one core")
    where = {"workers": args.workers, "rounds": args.rounds, "pillow": PIL.__version__}
    if args.json:
        result = {"machine": platform.processor() or platform.machine(), **where, **found}
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
