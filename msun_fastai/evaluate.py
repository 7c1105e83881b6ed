"""Accuracy at input sizes: the images are rescaled to each size and tested there (Section VI-B)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from msun_fastai.data.images import load_image
from msun_fastai.data.resize import resize_image
from msun_fastai.data.samples import Sample
from msun_fastai.models.saving import SavedModel
from msun_fastai.predict import image_tensor, normalize


def test_sizes(scales: Sequence[int]) -> tuple[int, ...]:
    """The scales and the sizes halfway between them, ascending: what a network does on its scales
    and where it has none."""
    between = [(a + b) // 2 for a, b in pairwise(scales)]
    return tuple(sorted({*scales, *between}))


class _AtSizes(Dataset):
    """Each image at every size, as uint8, from one decode."""

    def __init__(
        self, samples: Sequence[Sample], sizes: Sequence[int], classes: list[str], rule: str
    ):
        self.samples, self.sizes, self.rule = samples, sizes, rule
        self.codes = {name: i for i, name in enumerate(classes)}

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[list[torch.Tensor], int]:
        image = load_image(self.samples[i].image)
        views = [image_tensor(resize_image(image, size, self.rule)) for size in self.sizes]
        return views, self.codes[self.samples[i].label]


def accuracy_by_size(
    saved: SavedModel,
    samples: Sequence[Sample],
    sizes: Sequence[int],
    bs: int = 64,
    workers: int = 0,
) -> dict[str, list[Any]]:
    """Accuracy of `saved` on `samples`, each resized to every one of `sizes` in turn, by the
    model's own resize rule.

    Returns `sizes`, `accuracy` (fractions) and `subnet` (the scale that the size is routed to). A
    network with one scale gets the image brought up to that scale.
    """
    model = saved.model.eval()
    device = next(model.parameters()).device
    loader = DataLoader(
        _AtSizes(samples, sizes, saved.classes, saved.preprocessing.resize), bs, num_workers=workers
    )
    right = [0] * len(sizes)
    with torch.no_grad():
        for views, codes in loader:
            for k, view in enumerate(views):
                logits = model(normalize(view.to(device), saved.preprocessing))
                right[k] += int((logits.argmax(1).cpu() == codes).sum())
    return {
        "sizes": list(sizes),
        "accuracy": [n / len(samples) for n in right],
        "subnet": [model.route(s) for s in sizes],
    }
