"""Time of a training step and of inference at each scale, beside the multiply-accumulates.

Everything is a ratio to the plain backbone at the canonical scale, measured in the same process in
turns, so that a noisy machine slows both. The plain backbone is torchvision's own network, not a
part of ours: what a user would otherwise take.

    python benchmarks/step_time.py --arch resnet50 --bs 8 --rounds 5
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from torch import nn

from msun_fastai.cli.output import print_table
from msun_fastai.flops import count_macs
from msun_fastai.memory import keep_freed_memory
from msun_fastai.models.families import find_family
from msun_fastai.models.net import MultiScaleNet, NetConfig

CLASSES = 100
Task = Callable[[], object]


def inference(network: nn.Module, *views: torch.Tensor) -> Task:
    """One forward pass in evaluation mode."""

    def task() -> None:
        network.eval()
        with torch.inference_mode():
            network(*views)

    return task


def training(network: nn.Module, *views: torch.Tensor, classes: int = CLASSES) -> Task:
    """Forward, backward and an SGD step in training mode."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    labels = torch.randint(classes, (len(views[0]),), device=views[0].device)

    def task() -> None:
        network.train()
        out = network(*views)
        logits = out.logits if hasattr(out, "logits") else [out]
        sum(nn.functional.cross_entropy(each, labels) for each in logits).backward()
        optimizer.step()
        optimizer.zero_grad()

    return task


def seconds(task: Task, times: int = 1) -> float:
    """How long `task` takes, the mean of `times` times one after the other."""
    wait()
    started = time.perf_counter()
    for _ in range(times):
        task()
    wait()
    return (time.perf_counter() - started) / times


def wait() -> None:
    """Until the GPU has done what it was given, where one is in use."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def measure(arch: str, bs: int, rounds: int, method: str) -> list[dict[str, object]]:
    """A row for each alignment, scale and kind of work: time and cost over the plain network's."""
    torch.manual_seed(0)
    family = find_family(arch)
    plain = family.build(arch, CLASSES)
    side = NetConfig(arch, CLASSES).scales[-1]
    images = {s: torch.randn(bs, 3, s, s) for s in NetConfig(arch, CLASSES).scales}
    plain_macs = count_macs(plain, side)
    tasks: list[tuple[dict[str, object], Task, str]] = []
    for alignment in ("canonical", "native"):
        config = NetConfig(arch, CLASSES, method=method, alignment=alignment)
        net = MultiScaleNet(config, family.build(arch, CLASSES))
        macs = [count_macs(net.at_scale(i), s) / plain_macs for i, s in enumerate(config.scales)]
        for i, scale in enumerate(config.scales):
            row = {"alignment": alignment, "scale": scale, "macs_ratio": macs[i]}
            one = images[scale]
            tasks.append(({**row, "work": "inference"}, inference(net, one), "inference"))
            tasks.append(({**row, "work": "training"}, training(net, one), "training"))
        row = {"alignment": alignment, "scale": "all", "macs_ratio": sum(macs)}
        views = [images[s] for s in config.scales]
        tasks.append(({**row, "work": "training"}, training(net, *views), "training"))
    plain_tasks = {
        "inference": inference(plain, images[side]),
        "training": training(plain, images[side]),
    }
    for task in [*plain_tasks.values(), *(t for _, t, _ in tasks)]:
        task()  # memory is allocated, threads are started
    ratios: list[list[float]] = [[] for _ in tasks]
    for _ in range(rounds):
        for (_, task, work), kept in zip(tasks, ratios, strict=True):
            # the plain network right before and after: what slows the machine slows both
            before, own, after = (
                seconds(plain_tasks[work]),
                seconds(task),
                seconds(plain_tasks[work]),
            )
            kept.append(2 * own / (before + after))
    return [
        {
            **row,
            "time_ratio": statistics.median(kept),
            "time_ratios": kept,
            "time_over_macs": statistics.median(kept) / float(str(row["macs_ratio"])),
        }
        for (row, _, _), kept in zip(tasks, ratios, strict=True)
    ]


def write_rows(
    file: Path, given: dict[str, object], rows: list[dict[str, object]], kept: bool
) -> None:
    """The figures, what they were asked for with, and where they were measured, as JSON."""
    environment = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "freed memory kept": kept,
    }
    file.write_text(
        json.dumps({**given, "environment": environment, "rows": rows}, indent=1) + "\n"
    )


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet50")
    parser.add_argument("--method", default="msun")
    parser.add_argument("--bs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument(
        "--default-malloc", action="store_true", help="not as the command line has it"
    )
    args = parser.parse_args()
    kept = not args.default_malloc and keep_freed_memory()
    rows = measure(args.arch, args.bs, args.rounds, args.method)
    columns = ["alignment", "scale", "work", "time", "MACs", "time / MACs", "spread"]
    shown = [
        [
            *(row["alignment"], row["scale"], row["work"]),
            *(f"{row[k]:.3f}" for k in ("time_ratio", "macs_ratio", "time_over_macs")),
            f"{min(row['time_ratios']):.3f} to {max(row['time_ratios']):.3f}",
        ]
        for row in rows
    ]
    title = f"{args.arch}, batch of {args.bs}: over the plain network at the canonical scale"
    print_table(Console(), title, columns, shown)
    if args.out:
        write_rows(args.out, {**vars(args), "out": None}, rows, kept)


if __name__ == "__main__":
    main()
