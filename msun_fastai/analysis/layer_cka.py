"""Layer-wise CKA of a model between images at two sizes (Section III-C, Figure 2)."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from msun_fastai.analysis.batches import SizedBatch, sized_batches
from msun_fastai.analysis.cka import LEAST, ExactCKA, MinibatchCKA
from msun_fastai.analysis.layers import layer_modules, layer_sizes, recording
from msun_fastai.data.multi_view import refuse_none
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.models.meta import evaluating
from msun_fastai.models.saving import SavedModel
from msun_fastai.sized import Sized, sized_networks

GIB = 2**30
LIMIT = 4 * GIB  # bytes of features that the exact value may keep
FORWARD = 32  # images in a batch where the result does not depend on it


@dataclass
class LayerCKA:
    """CKA(F_i(X_a), F_i(X_b)) for every layer F_i of one model (Eq. 2).

    values: by layer, None where CKA is not defined. sizes: a and b in pixels; sides: those at which
    the network saw them. subnet: how many of the layers, from the first on, are the subnet's.
    images: how many it is of. batch: images in a batch of the mini-batch estimate; None: exact.
    unbiased: what CKA tends to with more images, where there are batches (`MinibatchCKA`).
    """

    name: str
    method: str
    sizes: tuple[int, int]
    sides: tuple[int, int]
    subnet: int
    values: dict[str, float | None]
    images: int
    batch: int | None = None
    unbiased: dict[str, float | None] | None = None
    unreadable: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return {**vars(self), "sizes": list(self.sizes), "sides": list(self.sides)}

    def rows(self) -> list[dict[str, Any]]:
        """One row a layer, for a table."""
        about = {"model": self.name, "size_a": self.sizes[0], "size_b": self.sizes[1]}
        unbiased = self.unbiased or dict.fromkeys(self.values)
        return [
            {**about, "layer": layer, "cka": value, "unbiased": unbiased[layer]}
            for layer, value in self.values.items()
        ]


def layer_cka(
    saved: SavedModel,
    samples: Sequence[Sample],
    sizes: Sequence[int],
    batch: int | None = None,
    resize: str = "canonical",
    name: str = "",
    workers: int = 0,
    seed: int = 42,
    limit: int = LIMIT,
    tell: Callable[[int], object] = bool,
) -> LayerCKA:
    """CKA of every layer of `saved` between `samples` at two `sizes` (Eq. 2).

    batch: None for the exact value of Eq. 1, else the images in a batch of `MinibatchCKA`; the
    samples are put in a random order by `seed`, as that needs it. resize: see `sized_networks`.
    limit: bytes of features that the exact value may keep. tell: see `sized_batches`. Raises
    `UserError`.
    """
    if len(sizes) != 2:
        raise UserError(f"sizes: {len(sizes)} given; CKA compares two, such as 32,224")
    if batch is not None and batch < LEAST:
        raise UserError(f"batch: {batch}: mini-batch CKA takes {LEAST} images or more in a batch")
    a, b = sized_networks(saved.model, sizes, resize)
    modules = [layer_modules(saved.model, sized.index, sized.network) for sized in (a, b)]
    if batch is None:
        _check_memory(a, b, modules, len(samples), limit)
    layers: dict[str, ExactCKA | MinibatchCKA] = {
        layer: MinibatchCKA() if batch else ExactCKA(len(samples)) for layer in modules[0]
    }
    drawn = random.Random(seed).sample(list(samples), len(samples))
    images, unreadable = 0, list[str]()
    with torch.no_grad(), evaluating(saved.model):
        for given in sized_batches(saved, drawn, sizes, batch or FORWARD, workers, tell):
            images, unreadable = images + len(given), unreadable + given.unreadable
            if len(given):
                x, y = (_features(saved, *at, given) for at in zip((a, b), modules))
                for layer, measured in layers.items():
                    measured.add(x.pop(layer), y.pop(layer))
    refuse_none(images, unreadable)
    means = {k: m.unbiased() for k, m in layers.items() if isinstance(m, MinibatchCKA)}
    return LayerCKA(
        name or saved.model.config.method,
        saved.model.config.method,
        (a.size, b.size),
        (a.side, b.side),
        saved.model.config.blocks + 1,
        {layer: measured.value() for layer, measured in layers.items()},
        images,
        batch,
        means or None,
        unreadable,
    )


def _features(
    saved: SavedModel, sized: Sized, modules: Mapping[str, nn.Module], given: SizedBatch
) -> dict[str, Tensor]:
    with recording(modules) as seen:
        sized.body(sized.take(given.views[sized.size], saved.preprocessing))
    return seen


def _check_memory(
    a: Sized, b: Sized, modules: Sequence[Mapping[str, nn.Module]], n: int, limit: int
) -> None:
    """Raise `UserError` where the features of `n` images at both sizes take more than `limit`."""
    each = 4 * sum(  # bytes of a float32
        sum(layer_sizes(sized.body, found, sized.side).values())
        for sized, found in zip((a, b), modules)
    )
    if n * each > limit:
        raise UserError(
            f"exact CKA would keep {n * each / GIB:.1f} GiB of features of {n} images, more than "
            f"{limit / GIB:.1f}; give --batch 64 for the mini-batch estimate, or --limit "
            f"{max(1, limit // each)}"
        )
