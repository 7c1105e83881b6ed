"""Images at several sides from one decode, batch by batch: what testing and features take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from msun_fastai.data.images import open_image
from msun_fastai.data.resize import fit_pixels, fit_whole, reduction_for
from msun_fastai.data.samples import Sample
from msun_fastai.errors import ImageError, UserError
from msun_fastai.scales import target_scale, view_scales

SidesOf = Callable[[int], Sequence[int]]  # from an image's native size to the sides wanted of it


@dataclass(frozen=True)
class EverySide:
    """The same sides of every image."""

    sides: tuple[int, ...]

    def __call__(self, native: int) -> tuple[int, ...]:
        return self.sides


@dataclass(frozen=True)
class RoutedSides:
    """The scales that the policy `views` gives to an image, through the routing."""

    scales: tuple[int, ...]
    views: str
    routing: str

    def __call__(self, native: int) -> tuple[int, ...]:
        side = target_scale(native, self.scales, self.views, self.routing)
        return view_scales(side, self.scales, self.views)


@dataclass(frozen=True)
class ViewGroup:
    """Views of one side: uint8 (n, 3, side, side); the places of their images among the samples,
    their class codes and native sizes, int64 (n,) each."""

    side: int
    images: Tensor
    codes: Tensor
    native: Tensor
    views: Tensor


@dataclass(frozen=True)
class ViewBatch:
    """The views of some images by side, ascending; `unreadable` has a reason for each image without
    views."""

    groups: list[ViewGroup]
    unreadable: list[str]


class _Views(Dataset):
    """A sample's views as (place, code, native size, {side: view}), or why it has none.

    What it is asked for is a place in `samples`, or a place with the sample of a stream.
    """

    def __init__(
        self, samples: Any, classes: Sequence[str], rule: str, sides_of: SidesOf, apart: bool
    ):
        self.apart = apart
        self.samples = samples if isinstance(samples, Sequence) else ()
        self.codes = {name: i for i, name in enumerate(classes)}
        self.rule, self.sides_of = rule, sides_of

    def __getitem__(self, key: Any) -> tuple[int, int, int, dict[int, Tensor]] | str:
        i, sample = key if isinstance(key, tuple) else (key, self.samples[key])
        if sample.label not in self.codes:
            raise UserError(f"label {sample.label!r} is not among the {len(self.codes)} classes")
        try:
            with open_image(sample.image) as image:
                size, sides = image.size, self.sides_of(image.native_size)
                # as large as the largest of the sides needs it
                first = reduction_for(size, max(sides), self.rule)
                pixels = {first: image.pixels(first)}
            for side in sides if self.apart else ():
                if (reduction := reduction_for(size, side, self.rule)) not in pixels:
                    with open_image(sample.image) as image:
                        pixels[reduction] = image.pixels(reduction)
        except ImageError as error:
            return str(error)
        views = {
            s: fit_pixels(
                pixels[reduction_for(size, s, self.rule) if self.apart else first],
                fit_whole(size, s, self.rule),
            )
            for s in sides
        }
        return i, self.codes[sample.label], min(size), views


def _collate(items: list[Any]) -> ViewBatch:
    good = [item for item in items if not isinstance(item, str)]
    groups = []
    for side in sorted({s for *_, views in good for s in views}):
        rows = [item for item in good if side in item[3]]
        images, codes, native = torch.tensor([row[:3] for row in rows]).T
        groups.append(
            ViewGroup(side, images, codes, native, torch.stack([row[3][side] for row in rows]))
        )
    return ViewBatch(groups, [item for item in items if isinstance(item, str)])


def multi_view_batches(
    samples: Iterable[Sample],
    classes: Sequence[str],
    rule: str,
    sides_of: SidesOf,
    bs: int = 64,
    workers: int = 0,
    apart: bool = False,
) -> Iterator[ViewBatch]:
    """The views of `samples`, a list or a stream of them, `bs` images at a time, in their order.

    Each image is decoded once and resized by `rule` to the sides that `sides_of` its native size
    are. apart: a JPEG is decoded for each side as for that side alone, so that each view is to the
    pixel what prediction sees there. A label that is not among `classes` is a `UserError`.
    """
    # a stream is read here, for each worker would see a share of it alone: what they are sent for
    # an index is the sample with its place
    keys: Any = range(len(samples)) if isinstance(samples, Sequence) else enumerate(samples)
    dataset = _Views(samples, classes, rule, sides_of, apart)
    return iter(DataLoader(dataset, bs, sampler=keys, num_workers=workers, collate_fn=_collate))


def refuse_none(seen: int, unreadable: Sequence[str]) -> None:
    """Raise `UserError` where no image could be read."""
    if not seen:
        why = unreadable[0] if unreadable else "there are none"
        raise UserError(f"none of {len(unreadable)} images can be read; {why}")
