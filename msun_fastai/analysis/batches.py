"""Images at several sizes in batches, each image decoded once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from msun_fastai.data.multi_view import EverySide, multi_view_batches
from msun_fastai.data.samples import Sample
from msun_fastai.models.saving import SavedModel


@dataclass(frozen=True)
class SizedBatch:
    """Images at every size, in one order: `images` and `codes` int64 (n,), the place of each among
    the samples and its label's among the sorted labels; `views` uint8 (n, 3, size, size) by size.
    """

    images: Tensor
    codes: Tensor
    views: dict[int, Tensor]
    unreadable: list[str]

    def __len__(self) -> int:
        return len(self.images)


def sized_batches(
    saved: SavedModel,
    samples: Sequence[Sample],
    sizes: Sequence[int],
    bs: int,
    workers: int = 0,
    tell: Callable[[int], object] = bool,
) -> Iterator[SizedBatch]:
    """`samples` at every one of `sizes` by the model's own resize rule, `bs` images at a time.

    Their labels need not be the model's classes. tell: called with the number of images that are
    done.
    """
    labels, every = sorted_labels(samples), EverySide(tuple(sizes))
    rule = saved.preprocessing.resize
    none = torch.empty(0, dtype=torch.int64)
    for batch in multi_view_batches(samples, labels, rule, every, bs, workers):
        views = {group.side: group.views for group in batch.groups}
        images, codes = none, none
        if batch.groups:
            images, codes = batch.groups[0].images, batch.groups[0].codes
        yield SizedBatch(images, codes, views, batch.unreadable)
        tell(len(images) + len(batch.unreadable))


def sorted_labels(samples: Sequence[Sample]) -> list[str]:
    """The labels of `samples`, in order: what their codes count."""
    return sorted({sample.label for sample in samples})
