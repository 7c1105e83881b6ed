"""Images a second through `predict` and through fastai's `get_preds`, on the same files.

The files are reduced copies of a dataset's photographs, an even mix of three native sizes around
the scales, each within a tenth of one. fastai has a plain `Learner` with the same backbone and
brings every image to the canonical size, as it does. Both read and decode the files; the files are
cut into `--parts`, on which they take turns in one process, so that a noisy machine slows both, and
the ratio of their speeds is set against what multiply-accumulates promise. The peak memory is that
of the command line in processes of their own, on as many links to the files as `--memory` says.

    python benchmarks/predict.py --data-root DIR --arch resnet50 --images 5000
"""

from __future__ import annotations

import argparse
import json
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from fastai.vision.all import (
    CategoryBlock,
    DataBlock,
    ImageBlock,
    Learner,
    Normalize,
    Resize,
    imagenet_stats,
)
from rich.console import Console

from msun_fastai.cli.output import print_table
from msun_fastai.data.images import open_image
from msun_fastai.data.resize import fit_pixels, fit_whole
from msun_fastai.data.sources import source_from_name
from msun_fastai.flops import network_cost
from msun_fastai.memory import keep_freed_memory
from msun_fastai.models.families import find_family
from msun_fastai.models.net import NetConfig
from msun_fastai.models.saving import Preprocessing, SavedModel, save_model_folder
from msun_fastai.models.weights import build_net
from msun_fastai.predict import Prediction, Predictor
from msun_fastai.scales import DEFAULT_SCALES, parse_scales

CLASSES = [f"class {i}" for i in range(100)]
AROUND = 0.1  # how far a native size may be from its scale, as a share of it
QUALITY = 90  # of the JPEG files
# the command line, and then its peak in kB. Not by `getrusage`: that counts what the process which
# started it held
WATCHED = """
import re, sys
from pathlib import Path
from msun_fastai.cli import main
try:
    main(sys.argv[1:])
finally:
    status = Path("/proc/self/status").read_text()
    print(re.search(r"VmHWM:\\s*(\\d+)", status)[1], file=sys.stderr)
"""


def write_copies(name: str, root: Path, folder: Path, n: int) -> list[Path]:
    """`n` square JPEG files of an even mix of sizes around the default scales, in random order."""
    from PIL import Image

    rng = random.Random(0)
    samples = source_from_name(name, root).measured
    files = []
    for i, sample in enumerate(islice(cycle(samples), n)):
        side = round(DEFAULT_SCALES[i % 3] * rng.uniform(1 - AROUND, 1 + AROUND))
        with open_image(sample.image) as image:
            pixels = fit_pixels(image.pixels(), fit_whole(image.size, side))
        files.append(folder / f"{i:06d}.jpg")
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(files[-1], quality=QUALITY)
    rng.shuffle(files)
    return files


def fastais(arch: str, files: list[Path], bs: int, workers: int) -> Learner:
    """A plain Learner of the backbone that brings every image to the canonical size."""
    block = DataBlock(
        blocks=(ImageBlock, CategoryBlock(vocab=CLASSES)),
        get_y=lambda _: CLASSES[0],
        item_tfms=Resize(DEFAULT_SCALES[-1]),
        batch_tfms=Normalize.from_stats(*imagenet_stats),
    )
    dls = block.dataloaders(files[:10], bs=bs, num_workers=workers)
    # with its own head, whose cost is what is counted
    return Learner(dls, find_family(arch).build(arch, len(CLASSES)))


def seconds_of(task: Any) -> float:
    """Seconds that `task` takes."""
    started = time.perf_counter()
    task()
    return time.perf_counter() - started


def peak_memory(model: Path, files: list[Path], folder: Path, n: int, bs: int | None) -> float:
    """MB that the command line holds at most for `n` images."""
    links = folder / f"links{n}"
    links.mkdir()
    for i, file in enumerate(islice(cycle(files), n)):
        (links / f"{i:06d}.jpg").symlink_to(file)
    out = folder / f"{n}.csv"
    words = ["predict", str(links), "--model", str(model), "--out", str(out)]
    words += [] if bs is None else ["--bs", str(bs)]
    run = subprocess.run([sys.executable, "-c", WATCHED, *words], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"predict: {run.stderr}")
    return int(run.stderr.split()[-1]) / 1024


def measure(args: argparse.Namespace, files: list[Path], folder: Path) -> dict[str, Any]:
    """Speeds of both, their ratio by part of the files, and what multiply-accumulates promise."""
    grids = None if args.grids is None else parse_scales(args.grids)
    config = NetConfig(args.arch, len(CLASSES), alignment=args.alignment, grids=grids)
    torch.manual_seed(0)
    saved = SavedModel(build_net(config).eval(), CLASSES, Preprocessing())
    model = save_model_folder(folder / "model", saved)
    predictor = Predictor.from_run(model, bs=args.bs)
    learn = fastais(args.arch, files, args.fastai_bs, args.workers)
    cost = network_cost(config, config.scales)
    bound = cost.plain_macs / cost.mean_macs

    def ours(files: list[Path]) -> float:
        found: list[Prediction] = []
        seconds = seconds_of(lambda: found.extend(predictor.predict(files)))
        assert not [p for p in found if p.error]
        return seconds

    def theirs(files: list[Path]) -> float:
        test = learn.dls.test_dl(files, num_workers=args.workers)
        with learn.no_bar(), learn.no_logging():
            return seconds_of(lambda: learn.get_preds(dl=test))

    first = files[: 2 * args.fastai_bs]  # memory is allocated, threads are started
    ours(first), theirs(first)
    parts = [files[k :: args.parts] for k in range(args.parts)]
    rounds = [(ours(part), theirs(part)) for part in parts]
    ratios = [theirs / ours for ours, theirs in rounds]
    return {
        "images_per_second": len(files) / sum(ours for ours, _ in rounds),
        "fastai_images_per_second": len(files) / sum(theirs for _, theirs in rounds),
        "times_as_fast": statistics.median(ratios),
        "times_as_fast_by_part": ratios,
        "bound": bound,
        "share_of_bound": statistics.median(ratios) / bound,
        "peak_mb": {n: peak_memory(model, files, folder, n, args.bs) for n in args.memory},
    }


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--dataset", default="caltech101")
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--alignment", default="native", choices=("native", "canonical"))
    parser.add_argument("--grids", help="such as 16,32,56")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--bs", type=int, help="predict's own choice by default")
    parser.add_argument("--fastai-bs", type=int, default=64, help="fastai's own by default")
    parser.add_argument("--workers", type=int, default=2, help="fastai's processes")
    parser.add_argument("--parts", type=int, default=25)
    parser.add_argument("--memory", type=int, nargs="*", default=[500, 5000])
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    keep_freed_memory()
    with tempfile.TemporaryDirectory() as folder:
        files = write_copies(args.dataset, args.data_root, Path(folder), args.images)
        found = measure(args, files, Path(folder))
    columns = ["images/s", "fastai", "times as fast", "MACs promise", "share of it", "peak MB"]
    keys = ("images_per_second", "fastai_images_per_second", "times_as_fast", "bound")
    peaks = ", ".join(f"{n}: {mb:.0f}" for n, mb in found["peak_mb"].items())
    shown = [*(f"{found[k]:.2f}" for k in keys), f"{found['share_of_bound']:.2f}", peaks]
    title = f"{args.arch}, {args.alignment}, {args.images} images of {args.dataset}"
    print_table(Console(width=120), title, columns, [shown])
    if args.out:
        environment = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
        }
        given = {**vars(args), "data_root": None, "out": None}
        result = {**given, "environment": environment, **found}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
