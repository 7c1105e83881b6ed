"""Figure 7 with one's own model: Grad-CAM of the same images at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from msun_fastai.analysis.batches import SizedBatch, sized_batches
from msun_fastai.analysis.gradcam import Cam, grad_cam, likeness
from msun_fastai.data.multi_view import refuse_none
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError, did_you_mean
from msun_fastai.files import finite
from msun_fastai.models.meta import evaluating
from msun_fastai.models.saving import SavedModel
from msun_fastai.sized import Sized, sized_networks

FORWARD = 32  # images in a batch; nothing depends on it
KEPT = 8  # images whose views are kept, to be drawn


@dataclass
class SizeMaps:
    """Of every image at one size: the raw maps (n, h, w), the class codes that the network answers
    and their probabilities (n,); `views` uint8 (m, 3, size, size) of the first m images. side: at
    which the network saw them."""

    size: int
    side: int
    maps: Tensor
    answers: Tensor
    probabilities: Tensor
    views: Tensor


@dataclass
class GradCam:
    """Grad-CAM of one model at several sizes.

    images: their names. codes: the class of each image's maps, the same at all sizes. alike: by two
    sizes, the correlation of their maps for each image (`likeness`). target: the class that was
    asked for; without one it is each image's answer at the largest size.
    """

    name: str
    method: str
    classes: list[str]
    images: list[str]
    codes: Tensor
    sizes: list[SizeMaps]
    alike: dict[tuple[int, int], Tensor]
    target: str | None = None
    unreadable: list[str] = field(default_factory=list)

    @property
    def likeness_of_images(self) -> Tensor:
        """The mean over pairs of sizes of each image (n,), NaN where a pair has no number."""
        if not self.alike:
            return torch.full((len(self.images),), torch.nan, dtype=torch.float64)
        return torch.stack(list(self.alike.values())).mean(0)

    def mean_likeness(self, pair: tuple[int, int] | None = None) -> tuple[float | None, int]:
        """The mean over images, of all pairs of sizes or one, and how many images have a number."""
        values = self.likeness_of_images if pair is None else self.alike[pair]
        values = values[~values.isnan()]
        return (values.mean().item() if len(values) else None), len(values)

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON takes them, the maps included."""
        mean, counted = self.mean_likeness()
        pairs = {f"{a}-{b}": self.mean_likeness((a, b)) for a, b in self.alike}
        found = {
            "name": self.name,
            "method": self.method,
            "images": len(self.images),
            "likeness": mean,
            "images_with_likeness": counted,
            "pairs": {p: {"likeness": v, "images_with_likeness": n} for p, (v, n) in pairs.items()},
            "rows": self.rows(maps=True),
            "unreadable": self.unreadable,
        }
        return finite(found)  # a damaged network's maps are no numbers

    def rows(self, maps: bool = False) -> list[dict[str, Any]]:
        """One row an image and size, for a table; maps: with the map, as a list of its rows."""
        alike = [None if value != value else value for value in self.likeness_of_images.tolist()]
        found = []
        for i, image in enumerate(self.images):
            for at in self.sizes:
                row = {
                    **{"model": self.name, "image": image, "size": at.size, "subnet": at.side},
                    "class": self.classes[int(self.codes[i])],
                    "predicted": self.classes[int(at.answers[i])],
                    "probability": at.probabilities[i].item(),
                    "likeness": alike[i],
                }
                found.append({**row, "map": at.maps[i].tolist()} if maps else row)
        return found


def size_cams(
    saved: SavedModel,
    samples: Sequence[Sample],
    sizes: Sequence[int],
    target: str | None = None,
    resize: str = "canonical",
    name: str = "",
    workers: int = 0,
    tell: Callable[[int], object] = bool,
) -> GradCam:
    """Grad-CAM of `saved` for `samples` at every one of `sizes`, and how alike the maps are.

    target: the class that the maps are of; by default the one that the model answers at the largest
    size, at all sizes. resize: see `sized_networks`; tell: `sized_batches`. Raises `UserError`.
    """
    if target is not None and target not in saved.classes:
        raise UserError(f"class: unknown class {target!r}; {did_you_mean(target, saved.classes)}")
    code = None if target is None else saved.classes.index(target)
    networks = sized_networks(saved.model, sizes, resize)
    places: list[int] = []
    batches: list[tuple[list[Cam], SizedBatch]] = []
    unreadable: list[str] = []
    with evaluating(saved.model):
        for given in sized_batches(saved, samples, sizes, FORWARD, workers, tell):
            unreadable += given.unreadable
            if len(given):
                batches.append((_cams(saved, networks, given, code), _first(given, len(places))))
                places += given.images.tolist()
    refuse_none(len(places), unreadable)
    made = [
        _joined(sized, [(cams[k], batch.views[sized.size]) for cams, batch in batches])
        for k, sized in enumerate(networks)
    ]
    alike = likeness([at.maps for at in made])
    return GradCam(
        name or saved.model.config.method,
        saved.model.config.method,
        saved.classes,
        [image_name(samples[i], i) for i in places],
        torch.cat([cams[-1].codes for cams, _ in batches]).cpu(),
        made,
        {(made[i].size, made[j].size): value for (i, j), value in alike.items()},
        target,
        unreadable,
    )


def _cams(
    saved: SavedModel, networks: Sequence[Sized], given: SizedBatch, code: int | None
) -> list[Cam]:
    """Grad-CAM of a batch at every size, the largest first: what is answered there is the class."""
    codes = None if code is None else torch.full((len(given),), code)
    cams: list[Cam] = []
    for sized in reversed(networks):
        x = sized.take(given.views[sized.size], saved.preprocessing)
        cams.append(grad_cam(sized.body, sized.head, x, codes))
        codes = cams[0].codes
    return cams[::-1]


def _first(given: SizedBatch, before: int) -> SizedBatch:
    """`given` with the views of those images alone that are to be drawn, `before` it so many."""
    left = max(0, KEPT - before)
    views = {size: views[:left].clone() for size, views in given.views.items()}
    return SizedBatch(given.images, given.codes, views, given.unreadable)


def _joined(sized: Sized, parts: Sequence[tuple[Cam, Tensor]]) -> SizeMaps:
    """What one size gave, batch by batch, as one."""
    maps, logits = (torch.cat([getattr(c, k) for c, _ in parts]).cpu() for k in ("maps", "logits"))
    best = logits.float().softmax(1).max(1)
    views = torch.cat([views for _, views in parts])
    return SizeMaps(sized.size, sized.side, maps, best.indices, best.values, views)


def image_name(sample: Sample, place: int) -> str:
    """The file's name of a sample, or its place where it has none."""
    known = isinstance(sample.image, (str, Path)) or hasattr(sample.image, "open_bytes")
    return str(sample.image) if known else f"image {place + 1}"
