"""Accuracy at input sizes: the images are rescaled to each size and tested there (Section VI-B)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from msun_fastai.data.images import open_image
from msun_fastai.data.resize import fit_pixels, fit_whole, reduction_for
from msun_fastai.data.samples import Sample
from msun_fastai.errors import ImageError, UserError
from msun_fastai.models.saving import SavedModel
from msun_fastai.predict import normalize


def test_sizes(scales: Sequence[int]) -> tuple[int, ...]:
    """The scales and the sizes halfway between them, ascending: what a network does on its scales
    and where it has none."""
    between = [(a + b) // 2 for a, b in pairwise(scales)]
    return tuple(sorted({*scales, *between}))


class _AtSizes(Dataset):
    """Each image at every size, as uint8, from one decode; or the reason why it has none."""

    def __init__(
        self, samples: Sequence[Sample], sizes: Sequence[int], classes: list[str], rule: str
    ):
        self.samples, self.sizes, self.rule = samples, sizes, rule
        self.codes = {name: i for i, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int] | str:
        rule, code = self.rule, self.codes[self.samples[i].label]
        try:
            with open_image(self.samples[i].image) as image:
                pixels = image.pixels(reduction_for(image.size, max(self.sizes), rule))
        except ImageError as error:
            return str(error)
        return [fit_pixels(pixels, fit_whole(image.size, s, rule)) for s in self.sizes], code


def _collate(items: list[Any]) -> tuple[list[Tensor], Tensor, list[str]]:
    """Views stacked size by size, class codes, and the reasons of the images that have none."""
    good = [item for item in items if not isinstance(item, str)]
    views = [torch.stack(same_size) for same_size in zip(*(views for views, _ in good))]
    return views, torch.tensor([c for _, c in good]), [i for i in items if isinstance(i, str)]


def accuracy_by_size(
    saved: SavedModel,
    samples: Sequence[Sample],
    sizes: Sequence[int],
    bs: int = 64,
    workers: int = 0,
) -> dict[str, list[Any]]:
    """Accuracy of `saved` on `samples`, each resized to every one of `sizes` in turn, by the
    model's own resize rule.

    Returns `sizes`, `accuracy` (fractions), `subnet` (the scale that the size is routed to) and
    `unreadable` (the reasons of the images that cannot be read; the fractions are of the others). A
    network with one scale gets the image brought up to that scale. Raises `UserError` where no
    image can be read.
    """
    model = saved.model.eval()
    device = next(model.parameters()).device
    dataset = _AtSizes(samples, sizes, saved.classes, saved.preprocessing.resize)
    loader = DataLoader(dataset, bs, num_workers=workers, collate_fn=_collate)
    right, unreadable = [0] * len(sizes), []
    with torch.no_grad():
        for views, codes, reasons in loader:
            unreadable += reasons
            for k, view in enumerate(views):
                logits = model(normalize(view.to(device), saved.preprocessing))
                right[k] += int((logits.argmax(1).cpu() == codes).sum())
    seen = len(samples) - len(unreadable)
    if not seen:
        raise UserError(f"none of {len(samples)} images can be read; {unreadable[0]}")
    return {
        "sizes": list(sizes),
        "accuracy": [n / seen for n in right],
        "subnet": [model.route(s) for s in sizes],
        "unreadable": unreadable,
    }
