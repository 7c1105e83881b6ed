"""Inference and a training step of every method at every scale: time and memory beside the MACs.

Times are ratios to torchvision's own network at the canonical scale, measured in the same process
right before and after, so that a noisy machine slows both. Its own rows say how much noise is left,
and how its time follows its multiply-accumulates: at a small side on a CPU it does not, for weights
have to be read and updated whatever the size of the image, and what `rsnet` and `san` take there is
to be compared with that.
Inference is the network that answers for images of a size, as `evaluate` takes it: one at
each scale's own side, `vanilla` and `mst` at the canonical one, to which they bring every image.
A training step is the one that a run does (`plan.training_step`): all views of the method, its own
consistency term, the way back, the optimizer; and of one scale alone, as `--views native` trains,
where a method has more than one. What it is measured against is a plain loop with torch's SGD.

Memory is the peak above what the process held before there was a network: weights, activations and
what the libraries take for themselves, in training gradients and the optimizer's state, too. Each
figure is from a fresh process, for memory that was freed is kept and taken again. On a GPU it is
what torch allocated there, elsewhere the resident memory, which Linux alone tells. `kept` is the
part of it that autograd keeps for the way back, as `--dry-run` counts it: no allocator is in it.

    python benchmarks/methods.py --arch resnet18 --bs 8 --rounds 5 --out FILE
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import multiprocessing
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from step_time import Task, inference, seconds, training, write_rows
from torch import nn

from msun_fastai.cli.output import make_console, print_table
from msun_fastai.data.shapes import CLASSES
from msun_fastai.flops import count_macs
from msun_fastai.memory import keep_freed_memory
from msun_fastai.models.families import find_family
from msun_fastai.models.methods import find_method
from msun_fastai.models.net import NetConfig
from msun_fastai.models.weights import build_net
from msun_fastai.plan import FORWARD_AND_BACKWARD, kept_for_backward, step_macs, training_step
from msun_fastai.recipe import Recipe
from msun_fastai.run import prepare
from msun_fastai.sized import sized_networks

PLAIN = "plain"
NETWORKS: dict[str, tuple[str, str | None]] = {  # method and alignment
    "vanilla": ("vanilla", None),
    "mst": ("mst", None),
    "msun canonical": ("msun", "canonical"),
    "msun native": ("msun", "native"),
    "snet": ("snet", None),
    "rsnet": ("rsnet", None),
    "san": ("san", None),
}
IMAGES = 16  # of the embedded dataset, for a Learner to be made on
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # see proc(5)
TIMES = 10  # at most, that a work is done in a row
MIB = 2**20


@dataclass(frozen=True)
class Given:
    """What everything is measured with."""

    arch: str
    scales: tuple[int, ...]
    bs: int
    device: str


@dataclass(frozen=True)
class Work:
    """What a network is asked to do: `inference` or `training` with a batch of images of `scale`,
    None for a training step with all views of the method."""

    network: str
    kind: str
    scale: int | None


class Ready(NamedTuple):
    """A work that can be done again and again. macs: of one time. consistency: its term."""

    task: Task
    macs: int
    network: nn.Module
    consistency: str


def works(network: str, scales: Sequence[int]) -> list[Work]:
    """What `network` is measured at."""
    if network == PLAIN:
        return [
            Work(network, kind, scale) for kind in ("inference", "training") for scale in scales
        ]
    found = [Work(network, "inference", scale) for scale in scales]
    entries = find_method(NETWORKS[network][0]).entries(scales)
    alone = entries if len(entries) > 1 else ()
    return found + [Work(network, "training", scale) for scale in (*alone, None)]


@contextmanager
def opened(work: Work, given: Given) -> Iterator[Ready]:
    """The network of `work`, with random weights, and its work on random images."""
    torch.manual_seed(0)
    if work.network == PLAIN:
        yield plain(work.kind, work.scale or given.scales[-1], given)
        return
    method, alignment = NETWORKS[work.network]
    if work.kind == "inference":
        assert work.scale is not None
        config = NetConfig(given.arch, len(CLASSES), given.scales, method, alignment=alignment)
        net = build_net(config).to(given.device).eval()
        (sized,) = sized_networks(net, [work.scale])
        images = torch.randn(given.bs, 3, sized.side, sized.side, device=given.device)
        macs = given.bs * count_macs(sized.network, sized.side)
        yield Ready(inference(sized.network, images), macs, net, "none")
        return
    values = {
        "data.dataset": "shapes",
        "data.limit": IMAGES,
        "data.workers": 0,
        "model.arch": given.arch,
        "model.method": method,
        "model.scales": list(given.scales),
        "model.alignment": alignment,
        "model.pretrained": False,
        "train.bs": given.bs,
        "train.optimizer": "sgd",  # as the plain network's
        "train.views": "all" if work.scale is None else "native",
        "train.device": given.device,
    }
    ready = prepare(Recipe().with_values(values, "benchmark"), Console(quiet=True))
    net, side = ready.learn.model, work.scale or given.scales[-1]
    per_image = {s: count_macs(net.at_scale(i), s) for i, s in enumerate(net.entry_scales)}
    macs = step_macs(per_image, side, ready.recipe, given.bs, cached=False)
    with training_step(ready, side, given.bs) as step:
        yield Ready(step, macs, net, str(ready.recipe.consistency.kind))


def plain(kind: str, side: int, given: Given) -> Ready:
    """torchvision's own network on images of `side`, in a plain loop."""
    net = find_family(given.arch).build(given.arch, len(CLASSES)).to(given.device)
    images = torch.randn(given.bs, 3, side, side, device=given.device)
    macs = given.bs * count_macs(net, side)
    if kind == "inference":
        return Ready(inference(net, images), macs, net, "none")
    task = training(net, images, classes=len(CLASSES))
    return Ready(task, FORWARD_AND_BACKWARD * macs, net, "none")


def time_of(work: Work, unit: Ready, given: Given, rounds: int) -> dict[str, Any]:
    """The row of `work`: its time and its multiply-accumulates over those of the plain network."""
    with opened(work, given) as ready:
        share = ready.macs / unit.macs
        # a few milliseconds are no measure of anything: the shorter it should be, the more often
        times = min(TIMES, max(1, round(1 / share)))
        ready.task()  # memory is allocated, threads are started
        ratios = []
        before = seconds(unit.task)
        for _ in range(rounds):
            own, after = seconds(ready.task, times), seconds(unit.task)
            ratios.append(2 * own / (before + after))
            before = after
        row = {
            "network": work.network,
            "work": work.kind,
            "scale": "all" if work.scale is None else work.scale,
            "consistency": ready.consistency,
            "macs_ratio": share,
        }
    ratio = statistics.median(ratios)
    return {**row, "time_ratio": ratio, "time_ratios": ratios, "time_over_macs": ratio / share}


def memory_of(work: Work, given: Given) -> dict[str, float | None]:
    """MiB at the peak of `work` above what this process held before, and MiB kept for the way back.

    Done twice, for the optimizer's state is there the second time. None: the system does not say.
    """
    small = replace(given, arch="thin_resnet10", scales=(16, 24, 32), bs=2)
    with opened(Work(work.network, work.kind, None if work.scale is None else 32), small) as ready:
        ready.task()  # what libraries load and start when they are first used is not the work's
    del ready
    gc.collect()
    give_back_freed()  # what the first work had would be taken again, unseen
    keep_freed_memory()
    before = held_memory(given.device, "VmRSS")
    with opened(work, given) as ready:
        reset_peak(given.device)
        with kept_for_backward(ready.network) as kept:
            ready.task()
        ready.task()
        peak = held_memory(given.device, "VmHWM")
    return {
        "memory_mib": None if peak is None or before is None else (peak - before) / MIB,
        "kept_mib": kept() / MIB if work.kind == "training" else None,
    }


def held_memory(device: str, line: str) -> int | None:
    """Bytes that this process holds (`VmRSS`) or has held since `reset_peak` (`VmHWM`)."""
    if torch.device(device).type == "cuda":
        now = line == "VmRSS"
        return torch.cuda.memory_allocated() if now else torch.cuda.max_memory_allocated()
    if not STATUS.exists():
        return None
    found = next(text for text in STATUS.read_text().splitlines() if text.startswith(line))
    return 1024 * int(found.split()[1])


def give_back_freed() -> None:
    """Hand the memory that was freed back to the system, where the C library (glibc) can."""
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def reset_peak(device: str) -> None:
    """Forget the peak so far."""
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        CLEAR.write_text(RESET_PEAK)


def measure(given: Given, networks: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each work of `networks`, the plain network's first."""
    torch.manual_seed(0)
    todo = [work for name in (PLAIN, *networks) for work in works(name, given.scales)]
    context = multiprocessing.get_context("forkserver")  # which imports once, and runs no thread
    context.set_forkserver_preload(["msun_fastai.plan"])
    with context.Pool(1, maxtasksperchild=1) as fresh:
        memory = fresh.starmap(memory_of, [(work, given) for work in todo], chunksize=1)
    units = {kind: plain(kind, given.scales[-1], given) for kind in ("inference", "training")}
    for unit in units.values():
        unit.task()
    rows = [time_of(work, units[work.kind], given, rounds) for work in todo]
    return [{**row, **found} for row, found in zip(rows, memory)]


def show(rows: list[dict[str, Any]], title: str) -> None:
    """A table for inference, one for training."""
    columns = ["network", "term", "scale", "time", "MACs", "time / MACs", "spread", "MiB", "kept"]
    for kind in ("inference", "training"):
        shown = [
            [
                *(row["network"], row["consistency"], row["scale"]),
                *(f"{row[k]:.3f}" for k in ("time_ratio", "macs_ratio", "time_over_macs")),
                f"{min(row['time_ratios']):.3f} to {max(row['time_ratios']):.3f}",
                *("" if row[k] is None else f"{row[k]:.0f}" for k in ("memory_mib", "kept_mib")),
            ]
            for row in rows
            if row["work"] == kind
        ]
        print_table(make_console(None), f"{kind}, {title}", columns, shown)


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--scales", default="32,128,224")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--bs", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    args = parser.parse_args()
    kept = keep_freed_memory()
    scales = tuple(int(side) for side in args.scales.split(","))
    given = Given(args.arch, scales, args.bs, args.device)
    rows = measure(given, args.networks, args.rounds)
    title = f"{args.arch}, batch of {args.bs}: over the plain network at {scales[-1]}"
    show(rows, title)
    if args.out:
        write_rows(args.out, {**vars(args), "out": None}, rows, kept)


if __name__ == "__main__":
    main()
