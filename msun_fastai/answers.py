"""What a network answers to images at several sizes: one decode an image, one row an image."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from msun_fastai.data.bad import ON_BAD_IMAGE
from msun_fastai.data.multi_view import (
    EverySide,
    RoutedSides,
    SidesOf,
    multi_view_batches,
    refuse_none,
)
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.models.saving import SavedModel
from msun_fastai.scales import check_choice, check_scales
from msun_fastai.sized import Sized, sized_networks, subnet_for

MOST_BYTES = 2**30  # of the views of a batch
OWN = 0  # as a size: each image's own
NOT_ASKED = -1  # in place of a predicted class


@dataclass
class Cell:
    """The answers of one subnet to the images at one size: predicted class codes int64 (n,),
    `NOT_ASKED` for images that it did not see; cross-entropies float32 (n,), NaN for those."""

    predicted: np.ndarray
    loss: np.ndarray


@dataclass
class Answers:
    """Answers by (size, scale of the subnet); `OWN` as a size is each image's own.

    images: which sample each row is of. codes: its class. native: its native size; all int64 (n,).
    unreadable: a reason for each image that has no row. seconds: what all of it took.
    """

    images: np.ndarray
    codes: np.ndarray
    native: np.ndarray
    cells: dict[tuple[int, int], Cell]
    unreadable: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def right(self, size: int, scale: int) -> np.ndarray:
        """Which images that subnet got right at that size: bool (n,)."""
        return self.cells[size, scale].predicted == self.codes

    def routed(self, routed: np.ndarray) -> Cell:
        """At their own sizes, each image's answer from its scale in `routed` (n,)."""
        predicted = np.full(len(self.codes), NOT_ASKED)
        loss = np.full(len(self.codes), np.nan, dtype=np.float32)
        for scale in np.unique(routed):
            rows, cell = routed == scale, self.cells[OWN, int(scale)]
            predicted[rows], loss[rows] = cell.predicted[rows], cell.loss[rows]
        return Cell(predicted, loss)


Asked = tuple[tuple[int, int], Sized]  # where an answer belongs, and who gives it
Told = Callable[[int], object]  # called with the number of images of every batch


def at_sizes(
    saved: SavedModel,
    samples: Iterable[Sample],
    sizes: Sequence[int],
    every_subnet: bool = False,
    resize: str = "canonical",
    bs: int = 64,
    workers: int = 0,
    told: Told = bool,
) -> Answers:
    """The answers of `saved` to `samples`, each resized to every one of `sizes` in turn, by the
    model's own resize rule (Section VI-B). samples: a list, or a stream of them.

    A size goes to the subnet that it is routed to, which brings it to its scale, or with
    `every_subnet` to each of them (Table IV), which takes no other `resize`. resize: see
    `sized_networks`. bs: fewer where their views would take more than a GiB. Raises `UserError`.
    """
    sizes, model = check_scales(sizes, "sizes"), saved.model
    if every_subnet:
        if resize != "canonical":
            raise UserError(f"resize {resize}: every subnet brings images to its scale; choose one")
        each = {
            size: [subnet_for(model, size, scale) for scale in model.entry_scales] for size in sizes
        }
    else:
        each = {sized.size: [sized] for sized in sized_networks(model, sizes, resize)}

    def asked(side: int) -> list[Asked]:
        return [((side, model.entry_scales[sized.index]), sized) for sized in each[side]]

    most = max(1, MOST_BYTES // (3 * sum(size * size for size in sizes)))
    return _ask(saved, samples, EverySide(sizes), asked, min(bs, most), workers, "skip", told)


def at_own_sizes(
    saved: SavedModel,
    samples: Iterable[Sample],
    every_subnet: bool = False,
    bs: int = 64,
    workers: int = 0,
    on_bad: str = "skip",
    told: Told = bool,
) -> Answers:
    """The answers of `saved` to `samples` at their own sizes, as prediction gives them: each image
    is resized once, from what was decoded, to the scale that it is routed to, or with
    `every_subnet` to each of them.

    on_bad: `skip` reports what cannot be read, `stop` raises. Raises `UserError`.
    """
    config, scales = saved.model.config, saved.model.entry_scales
    sides = RoutedSides(scales, "all" if every_subnet else "native", config.routing)

    own = {scale: subnet_for(saved.model, scale, scale) for scale in scales}

    def asked(side: int) -> list[Asked]:
        return [((OWN, side), own[side])]

    return _ask(saved, samples, sides, asked, bs, workers, on_bad, told)


def highest(loss: np.ndarray, k: int) -> list[int]:
    """The rows of the `k` highest losses, highest first; one that is no number counts as such."""
    return np.argsort(-np.nan_to_num(loss, nan=np.inf), kind="stable")[:k].tolist()


def _ask(
    saved: SavedModel,
    samples: Iterable[Sample],
    sides_of: SidesOf,
    asked: Callable[[int], Iterable[Asked]],
    bs: int,
    workers: int,
    on_bad: str,
    told: Told,
) -> Answers:
    check_choice("on_bad_image", on_bad, ON_BAD_IMAGE)
    saved.model.eval()
    start, rule = perf_counter(), saved.preprocessing.resize
    parts: dict[tuple[int, int], list[tuple[Tensor, ...]]] = {}
    about: list[Tensor] = []
    unreadable: list[str] = []
    apart = isinstance(sides_of, RoutedSides)  # there each view is one that prediction sees
    for batch in multi_view_batches(samples, saved.classes, rule, sides_of, bs, workers, apart):
        if batch.unreadable and on_bad == "stop":
            raise UserError(batch.unreadable[0])
        unreadable += batch.unreadable
        for group in batch.groups:
            about.append(torch.stack([group.images, group.codes, group.native]))
            for cell, sized in asked(group.side):
                answer = _answer(saved, sized, group.views, group.codes)
                parts.setdefault(cell, []).append((group.images, *answer))
        told(len({i for g in batch.groups for i in g.images.tolist()}) + len(batch.unreadable))
    refuse_none(len(about), unreadable)
    rows = np.unique(torch.cat(about, 1).numpy(), axis=1)  # once an image, in their order
    cells = {cell: _cell(rows[0], answers) for cell, answers in sorted(parts.items())}
    images, codes, native = rows
    return Answers(images, codes, native, cells, unreadable, perf_counter() - start)


@torch.no_grad()
def _answer(saved: SavedModel, sized: Sized, views: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Predicted codes and cross-entropies for uint8 views, on the CPU."""
    logits = sized.network(sized.take(views, saved.preprocessing)).float().cpu()
    return logits.argmax(1), cross_entropy(logits, codes, reduction="none")


def _cell(images: np.ndarray, answers: list[tuple[Tensor, ...]]) -> Cell:
    """The answers to some of `images`, which ascend, in their rows."""
    cell = Cell(np.full(len(images), NOT_ASKED), np.full(len(images), np.nan, dtype=np.float32))
    for places, predicted, loss in answers:
        rows = np.searchsorted(images, places.numpy())
        cell.predicted[rows], cell.loss[rows] = predicted.numpy(), loss.numpy()
    return cell
