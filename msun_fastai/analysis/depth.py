"""Accuracy by depth: a linear classifier on the features of every block (ScaleNet's Figure 6)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from msun_fastai.analysis.layers import layer_modules, recording
from msun_fastai.data.multi_view import EverySide, multi_view_batches, refuse_none
from msun_fastai.data.samples import Sample, stratified_split
from msun_fastai.features import Features
from msun_fastai.models.meta import evaluating
from msun_fastai.models.net import MultiScaleNet
from msun_fastai.models.saving import SavedModel
from msun_fastai.models.scalenet import couples_of
from msun_fastai.probe import STRENGTHS, fit_probe
from msun_fastai.sized import sized_networks

FORWARD = 64  # images in a batch; nothing depends on it
HELD_OUT = 0.2  # of the training images, on which the strength of the penalty is chosen
MAIN = "network"  # the name of the network's own classifier, after all others


@dataclass
class BlockAccuracy:
    """One auxiliary classifier. layer: counted from 1. features: how many numbers it sees of an
    image. accuracy: the share right of the images to test on. strength: see `probe.Probe`."""

    layer: int
    name: str
    features: int
    accuracy: float
    strength: float


@dataclass
class DepthAccuracy:
    """Accuracies by depth of one model at one size, and that of its own classifier (`main`).

    images: how many to fit on and to test on. notes: what a user should be told.
    """

    name: str
    method: str
    size: int
    side: int
    blocks: list[BlockAccuracy]
    main: float
    images: tuple[int, int]
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        blocks = [vars(block) for block in self.blocks]
        return {**vars(self), "blocks": blocks, "images": list(self.images)}

    def rows(self) -> list[dict[str, Any]]:
        """One row a block, for a table, and one for the network itself."""
        about = {"model": self.name, "size": self.size}
        main = BlockAccuracy(len(self.blocks) + 1, MAIN, 0, self.main, 0.0)
        return [
            {**about, "layer": b.layer, "name": b.name, "accuracy": b.accuracy}
            for b in (*self.blocks, main)
        ]


def depth_accuracy(
    saved: SavedModel,
    train: Sequence[Sample],
    test: Sequence[Sample],
    size: int,
    name: str = "",
    workers: int = 0,
    seed: int = 42,
    strengths: Sequence[float] = STRENGTHS,
    tell: Callable[[int], object] = bool,
) -> DepthAccuracy:
    """A linear classifier on every block of `saved`, fitted on `train`, tested on `test`.

    What it sees is `block_modules`, averaged over the grid. Unlike the paper's, which are trained
    by gradient descent, it is `probe.fit_probe`'s logistic regression, its strength chosen on a
    fifth of `train`. size: of the images, which go to its subnet. tell: called with the images that
    are done. Raises `UserError`.
    """
    (sized,) = sized_networks(saved.model, [size])
    modules = block_modules(saved.model, sized.index)
    fitted, chosen = stratified_split(train, HELD_OUT, seed)
    parts = [
        pooled_features(saved, modules, part, size, workers, tell)
        for part in (fitted, chosen, test)
    ]
    seen, notes = [], []
    for i, block in enumerate(modules, 1):
        on, check, tested = (part.features(block) for part in parts)
        probe = fit_probe(on, check, len(saved.classes), strengths)
        notes += [f"{block}: {note}" for note in probe.notes]
        right = _share(probe.logits(tested.x), tested.codes)
        seen.append(BlockAccuracy(i, block, on.x.shape[1], right, probe.strength))
    last = parts[2]
    method = saved.model.config.method
    return DepthAccuracy(
        *(name or method, method, sized.size, sized.side, seen),
        main=_share(last.logits, last.codes),
        images=(len(parts[0].codes) + len(parts[1].codes), len(last.codes)),
        notes=notes,
        unreadable=[reason for part in parts for reason in part.unreadable],
    )


def block_modules(net: MultiScaleNet, i: int) -> dict[str, nn.Module]:
    """What is looked at for the scale with index `i`, from image to answer.

    Of a ScaleNet each block's smallest map, after the batch norm and ReLU through which its
    deconvolution takes it; of other networks the output of the stem and of each stage.
    """
    couples = couples_of(net.at_scale(i))
    if couples:
        return {f"block {k}": couple.smallest for k, couple in enumerate(couples, 1)}
    return layer_modules(net, i)


@dataclass
class Pooled:
    """Features of images by block, float32 (n, c), the network's own logits, and their classes."""

    x: Mapping[str, Tensor]
    logits: Tensor
    codes: Tensor
    unreadable: list[str]

    def features(self, block: str) -> Features:
        """Those of one block, as a probe takes them."""
        images = torch.arange(len(self.codes))
        return Features(self.x[block], self.codes, images, torch.zeros_like(images))


def pooled_features(
    saved: SavedModel,
    modules: Mapping[str, nn.Module],
    samples: Sequence[Sample],
    size: int,
    workers: int = 0,
    tell: Callable[[int], object] = bool,
) -> Pooled:
    """What `modules` of `saved` give for `samples` at `size`, each the mean over its grid."""
    (sized,) = sized_networks(saved.model, [size])
    x: dict[str, list[Tensor]] = {block: [] for block in modules}
    logits, codes, unreadable = list[Tensor](), list[Tensor](), list[str]()
    rule, every = saved.preprocessing.resize, EverySide((size,))
    with torch.no_grad(), evaluating(saved.model):
        for batch in multi_view_batches(samples, saved.classes, rule, every, FORWARD, workers):
            unreadable += batch.unreadable
            for group in batch.groups:
                with recording(modules) as seen:
                    made = sized.network(sized.take(group.views, saved.preprocessing))
                for block, found in seen.items():
                    x[block].append(found.float().flatten(2).mean(2).cpu())
                logits.append(made.float().cpu())
                codes.append(group.codes)
            tell(sum(len(g.codes) for g in batch.groups) + len(batch.unreadable))
    refuse_none(len(codes), unreadable)
    joined = {block: torch.cat(parts) for block, parts in x.items()}
    return Pooled(joined, torch.cat(logits), torch.cat(codes), unreadable)


def _share(logits: Tensor, codes: Tensor) -> float:
    return (logits.argmax(1) == codes).double().mean().item()
