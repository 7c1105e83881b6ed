"""ScaleNet: stacked convolution-deconvolution blocks (Zhang et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from msun_fastai.models.scalenet_blocks import (
    Couple,
    DoubleCouple,
    Maps,
    SingleCouple,
    Unit,
    make_transform,
    pack,
    unpack,
)
from msun_fastai.models.scalenet_names import Plan, parse_scalenet

GROUPS = 4  # what a network is cut into behind its stem, so that there are B0 to B3


class CifarStem(nn.Module):
    """The stem for images of 32 pixels: a 3x3 convolution of the image for each size of map."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.branches = nn.ModuleList(
            nn.Conv2d(3, width, 3, stride=min(2, 1 + i), padding=1, bias=False)
            for i, width in enumerate(widths)
        )
        self.pool = nn.MaxPool2d(2, ceil_mode=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, 3, h, w); returns its maps at h, h / 2 and h / 4, packed."""
        maps = [branch(x) for branch in self.branches]
        return pack([*maps[:2], *(self.pool(third) for third in maps[2:])])


class ImageNetStem(nn.Sequential):
    """The stem for images of 224 pixels, ResNet's: (n, 3, h, w) to (n, width, h / 4, w / 4)."""

    def __init__(self, width: int):
        super().__init__()
        self.conv = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.norm = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)


class Group(nn.Module):
    """Blocks of one stage, and the transform before them where they begin it.

    given: channels of the maps that it is handed, packed. wanted: how many of its last block's maps
    it hands on. segment: how many blocks share what is kept for the backward pass; 0: all is kept.
    """

    def __init__(
        self, transform: nn.Module, couples: Sequence[Couple], given: Sequence[int], wanted: int
    ):
        super().__init__()
        self.transform = transform
        self.couples = nn.ModuleList(couples)
        self.given, self.wanted, self.segment = tuple(given), wanted, 0

    def forward(self, x: Tensor) -> Tensor:
        """x: packed maps; returns packed maps, or the largest alone behind the last block."""
        maps = self.transform(unpack(x, self.given))
        again = self.segment and self.training and torch.is_grad_enabled()
        step = self.segment if again else len(self.couples)
        for start in range(0, len(self.couples), step):
            couples = list(self.couples)[start : start + step]
            maps = _run_again(couples, maps) if again else _run(couples, maps)
        return pack(maps[: self.wanted])


class ScaleNet(nn.Module):
    """The network of a plan: stem, `GROUPS` groups of blocks, last unit, batch norm, classifier."""

    def __init__(self, plan: Plan, num_classes: int = 1000):
        super().__init__()
        self.plan = plan
        widths = plan.stem_widths
        self.stem = CifarStem(widths) if plan.stem == "cifar" else ImageNetStem(widths[0])
        self.body = nn.Sequential(*_groups(plan))
        channels = plan.stages[-1].widths[0]
        self.last = Unit(channels, plan.last, 2, stride=2) if plan.last else nn.Identity()
        channels = plan.last or channels
        self.norm = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(channels, num_classes)
        for module in self.modules():  # He et al. 2015, as Section IV-B has it
            if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if plan.checkpoint:
            checkpoint_blocks(self)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, 3, h, w), any height and width; returns logits (n, classes)."""
        x = self.relu(self.norm(self.last(self.body(self.stem(x)))))
        return self.classifier(self.avgpool(x).flatten(1))


def scalenet(arch: str, num_classes: int = 1000) -> ScaleNet:
    """The ScaleNet of a name, see `parse_scalenet`."""
    return ScaleNet(parse_scalenet(arch), num_classes)


def scalenet_blocks(network: nn.Module) -> tuple[str, ...]:
    """The family's blocks: the stem, then the groups, the last with what ends the features."""
    count = len(list(network.get_submodule("body").children()))
    groups = [f"body.{i}" for i in range(count)]
    return ("stem", *groups[:-1], f"{groups[-1]} last norm relu")


def scalenet_reducers(network: nn.Module) -> tuple[str, ...]:
    """What a smaller subnet drops: the stem for 32 pixels makes nothing smaller."""
    large = isinstance(network.get_submodule("stem"), ImageNetStem)
    return ("stem.pool", "stem.conv") if large else ()


def couples_of(module: nn.Module) -> list[Couple]:
    """The blocks in `module`, from image to answer."""
    return [part for part in module.modules() if isinstance(part, Couple)]


def checkpoint_blocks(model: nn.Module, segment: int | None = None) -> int:
    """Let a training step keep the maps between every `segment` blocks alone; returns `segment`.

    What lies between is computed again in the backward pass. By default as many blocks as there are
    segments, the square root of all: of n blocks, about 2 sqrt(n) have something in memory. 0 keeps
    everything.
    """
    if segment is None:
        segment = max(1, round(math.sqrt(len(couples_of(model)))))
    for part in model.modules():
        if isinstance(part, Group):
            part.segment = segment
    return segment


def _run(couples: Sequence[nn.Module], maps: Maps) -> Maps:
    for couple in couples:
        maps = couple(maps)
    return maps


def _run_again(couples: Sequence[nn.Module], maps: Maps) -> Maps:
    """`_run`, of which only the result is kept. Batch norms do not count what they see again."""
    return checkpoint(
        lambda *given: _run(couples, given),
        *maps,
        use_reentrant=False,
        preserve_rng_state=False,  # nothing here is drawn
        context_fn=lambda: (nullcontext(), _without_statistics(couples)),
    )


@contextmanager
def _without_statistics(couples: Sequence[nn.Module]) -> Iterator[None]:
    """Batch norms normalise by the batch, as in training, but count it in copies of their running
    averages that are thrown away. (Without any they would keep other tensors than the first time,
    which torch refuses.)"""
    norms = [m for c in couples for m in c.modules() if isinstance(m, _BatchNorm)]
    own = [dict(norm.named_buffers(recurse=False)) for norm in norms]
    for norm, buffers in zip(norms, own):
        for name, value in buffers.items():
            setattr(norm, name, value.clone())
    try:
        yield
    finally:
        for norm, buffers in zip(norms, own):
            for name, value in buffers.items():
                setattr(norm, name, value)


def _groups(plan: Plan) -> Iterator[Group]:
    """The groups of a plan. None reaches over the end of a stage; in the middle of a stage they
    hand on all maps where skips cross it."""
    given: tuple[int, ...] = plan.stem_widths
    shares = group_counts([stage.count for stage in plan.stages])
    for i, (stage, parts) in enumerate(zip(plan.stages, shares)):
        kind: Any = DoubleCouple if stage.kind == "d" else SingleCouple
        for k, count in enumerate(parts):
            begins, ends = k == 0, k == len(parts) - 1
            transform: nn.Module = nn.Identity()
            if begins and i > 0:
                transform = make_transform(plan.stages[i - 1], stage, plan)
            couples = [kind(stage, plan, first=begins and j == 0) for j in range(count)]
            everything = i < len(plan.stages) - 1 if ends else plan.multipath
            wanted = len(stage.widths) if everything else 1
            yield Group(transform, couples, given, wanted)
            given = stage.widths[:wanted]


def group_counts(stages: Sequence[int]) -> list[list[int]]:
    """How many blocks each group of each stage has: `GROUPS` groups as even as can be, one or more
    a stage; fewer where there are fewer blocks.

    >>> group_counts([4, 5, 5])
    [[4], [3, 2], [5]]
    """
    shares = [1] * len(stages)
    while sum(shares) < min(GROUPS, sum(stages)):
        fullest = max(range(len(stages)), key=lambda i: stages[i] / shares[i])
        shares[fullest] += 1
    return [[n // k + (i < n % k) for i in range(k)] for n, k in zip(stages, shares)]
