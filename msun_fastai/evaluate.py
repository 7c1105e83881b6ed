"""Accuracy at input sizes: the images are rescaled to each size and tested there (Section VI-B)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

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


class _Views:
    """A sample at every size, as uint8, from one decode; or the reason why it has none."""

    def __init__(self, sizes: Sequence[int], classes: list[str], rule: str):
        self.sizes, self.rule = sizes, rule
        self.codes = {name: i for i, name in enumerate(classes)}

    def __call__(self, sample: Sample) -> tuple[list[Tensor], int] | str:
        try:
            with open_image(sample.image) as image:
                pixels = image.pixels(reduction_for(image.size, max(self.sizes), self.rule))
        except ImageError as error:
            return str(error)
        views = [fit_pixels(pixels, fit_whole(image.size, s, self.rule)) for s in self.sizes]
        return views, self.codes[sample.label]


class _Listed(Dataset):
    def __init__(self, samples: Sequence[Sample], views: _Views):
        self.samples, self.views = samples, views

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[list[Tensor], int] | str:
        return self.views(self.samples[i])


class _Streamed(IterableDataset):
    def __init__(self, samples: Iterable[Sample], views: _Views):
        self.samples, self.views = samples, views

    def __iter__(self) -> Iterator[tuple[list[Tensor], int] | str]:
        return map(self.views, self.samples)


def _collate(items: list[Any]) -> tuple[list[Tensor], Tensor, list[str]]:
    """Views stacked size by size, class codes, and the reasons of the images that have none."""
    good = [item for item in items if not isinstance(item, str)]
    views = [torch.stack(same_size) for same_size in zip(*(views for views, _ in good))]
    return views, torch.tensor([c for _, c in good]), [i for i in items if isinstance(i, str)]


def accuracy_by_size(
    saved: SavedModel,
    samples: Iterable[Sample],
    sizes: Sequence[int],
    bs: int = 64,
    workers: int = 0,
) -> dict[str, list[Any]]:
    """Accuracy of `saved` on `samples`, each resized to every one of `sizes` in turn, by the
    model's own resize rule. samples: a list, or a stream of them.

    Returns `sizes`, `accuracy` (fractions), `subnet` (the scale that the size is routed to) and
    `unreadable` (the reasons of the images that cannot be read; the fractions are of the others). A
    network with one scale gets the image brought up to that scale. Raises `UserError` where no
    image can be read.
    """
    model = saved.model.eval()
    device = next(model.parameters()).device
    views_of = _Views(sizes, saved.classes, saved.preprocessing.resize)
    kind = _Listed if isinstance(samples, Sequence) else _Streamed
    dataset: Any = kind(samples, views_of)  # type: ignore[arg-type]
    loader: Any = DataLoader(dataset, bs, num_workers=workers, collate_fn=_collate)
    right, seen, unreadable = [0] * len(sizes), 0, []
    with torch.no_grad():
        for views, codes, reasons in loader:
            unreadable += reasons
            seen += len(codes)
            for k, view in enumerate(views):
                logits = model(normalize(view.to(device), saved.preprocessing))
                right[k] += int((logits.argmax(1).cpu() == codes).sum())
    if not seen:
        why = unreadable[0] if unreadable else "there are none"
        raise UserError(f"none of {len(unreadable)} images can be read; {why}")
    return {
        "sizes": list(sizes),
        "accuracy": [n / seen for n in right],
        "subnet": [model.route(s) for s in sizes],
        "unreadable": unreadable,
    }
