"""Time of a test at 13 input sizes beside that of one at the canonical size.

The ratio of their times is set against that of their multiply-accumulates, measured in the same
process in turns, so that a noisy machine slows both. Decoding is part of both: each image is
decoded once, however many sizes it is tested at.

    python benchmarks/sweep.py --data-root DIR --dataset caltech101 --images 32 --rounds 3
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from msun_fastai.cli.output import print_table
from msun_fastai.data.samples import Sample
from msun_fastai.data.sources import source_from_name
from msun_fastai.evaluate import sweep
from msun_fastai.memory import keep_freed_memory
from msun_fastai.models.net import NetConfig
from msun_fastai.models.saving import Preprocessing, SavedModel
from msun_fastai.models.weights import build_net
from msun_fastai.scales import sweep_sizes

NETWORKS = (("vanilla", None), ("msun", "canonical"), ("msun", "native"))


def measure(
    arch: str, samples: list[Sample], classes: list[str], bs: int, workers: int, rounds: int
) -> list[dict[str, Any]]:
    """A row a network: seconds of both tests, their ratio, that of their MACs, and one over the
    other."""
    rows = []
    for method, alignment in NETWORKS:
        torch.manual_seed(0)
        config = NetConfig(arch, len(classes), method=method, alignment=alignment)
        saved = SavedModel(build_net(config).eval(), classes, Preprocessing())
        canonical, sizes = config.scales[-1], sweep_sizes(config.scales[0], config.scales[-1])

        def seconds(
            at: tuple[int, ...], saved: SavedModel = saved
        ) -> tuple[float, tuple[int, ...]]:
            started = time.perf_counter()
            found = sweep(saved, samples, at, bs=bs, workers=workers)
            return time.perf_counter() - started, found.macs

        seconds((canonical,))  # memory is allocated, threads are started, files are read
        ratios, macs_ratio, spent = [], 0.0, 0.0
        for _ in range(rounds):
            # one size right before and after: what slows the machine slows both
            before, one = seconds((canonical,))
            spent, macs = seconds(sizes)
            after, _ = seconds((canonical,))
            ratios.append(2 * spent / (before + after))
            macs_ratio = sum(macs) / one[0]
        rows.append(
            {
                "method": method,
                "alignment": alignment,
                "images_per_second": len(samples) / spent,
                "time_ratio": statistics.median(ratios),
                "time_ratios": ratios,
                "macs_ratio": macs_ratio,
                "time_over_macs": statistics.median(ratios) / macs_ratio,
            }
        )
    return rows


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--dataset", default="caltech101")
    parser.add_argument("--data-root", type=Path)
    parser.add_argument("--images", type=int, default=96)
    parser.add_argument("--bs", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    keep_freed_memory()
    source = source_from_name(args.dataset, args.data_root).limited(args.images)
    rows = measure(args.arch, source.measured, source.classes, args.bs, args.workers, args.rounds)
    columns = ["method", "alignment", "time", "MACs", "time / MACs", "spread"]
    shown = [
        [
            *(row["method"], row["alignment"]),
            *(f"{row[k]:.3f}" for k in ("time_ratio", "macs_ratio", "time_over_macs")),
            f"{min(row['time_ratios']):.3f} to {max(row['time_ratios']):.3f}",
        ]
        for row in rows
    ]
    title = f"{args.arch}, {len(source.measured)} images of {args.dataset}: 13 sizes over one"
    print_table(Console(), title, columns, shown)
    if args.out:
        environment = {
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
        }
        given = {**vars(args), "data_root": None, "out": None}
        result = {**given, "environment": environment, "rows": rows}
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
