"""The images that a network gets most wrong at each scale, as small pictures."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from msun_fastai.answers import highest
from msun_fastai.data.samples import Sample
from msun_fastai.evaluate import Sweep
from msun_fastai.figures.images import about_image, draw_images, thumbnail
from msun_fastai.report.parts import data_uri

PER_SCALE = 4
MOST_SCALES = 6
QUALITY = 80  # of its JPEG
PARTS_SHOWN = 2  # of a path: the file and its folder, which often is the class


@dataclass(frozen=True)
class Card:
    """One image. rank: from 1, the highest loss. name: whole; `short`, as it is shown. native: its
    native size. uri: its small picture, empty where it cannot be read any more."""

    size: int
    rank: int
    name: str
    short: str
    true: str
    predicted: str
    loss: float
    native: int
    uri: str
    pixels: Any = None

    def row(self) -> dict[str, Any]:
        """What a table has of it."""
        names = ("size", "rank", "name", "true", "predicted", "loss", "native")
        return {name: getattr(self, name) for name in names}


def shown_sizes(sweep: Sweep) -> list[int]:
    """The sizes that are scales of the network; of a network of one scale, the ends too."""
    scales = [size for size in sweep.sizes if size in sweep.scales][-MOST_SCALES:]
    return scales if len(scales) > 1 else sorted({sweep.sizes[0], *scales, sweep.sizes[-1]})


def highest_losses(sweep: Sweep, samples: Sequence[Sample], k: int = PER_SCALE) -> list[list[Card]]:
    """The `k` images with the highest loss at each of `shown_sizes`, the highest first.

    samples: those that `sweep` is of. A loss that is not a number counts as the highest.
    """
    answers, found, small = sweep.answers, [], {}
    for size in shown_sizes(sweep):
        cell = answers.cells[size, sweep.subnet[sweep.sizes.index(size)]]
        cards = []
        for rank, row in enumerate(highest(cell.loss, k), 1):
            place = int(answers.images[row])
            if place not in small:  # the same image is often hard at every scale
                small[place] = small_picture(samples[place].image)
            name = name_of(samples[place].image, place)
            cards.append(
                Card(
                    size,
                    rank,
                    name,
                    "/".join(Path(name).parts[-PARTS_SHOWN:]),
                    sweep.classes[int(answers.codes[row])],
                    sweep.classes[int(cell.predicted[row])],
                    float(cell.loss[row]),
                    int(answers.native[row]),
                    *small[place],
                )
            )
        found.append(cards)
    return found


def name_of(image: Any, place: int) -> str:
    """The file's name, or for an image without one its place among the others."""
    known = isinstance(image, (str, Path)) or hasattr(image, "open_bytes")
    return str(image) if known else f"image {place + 1}"


def small_picture(image: Any) -> tuple[str, Any]:
    """`image` made small, as a data URI and as a Pillow image; empty and None where it cannot be
    read."""
    picture = thumbnail(image)
    if picture is None:
        return "", None
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    return data_uri(file.getvalue(), "jpeg"), picture


def draw_losses(groups: Sequence[Sequence[Card]]) -> Any:
    """All images of `highest_losses` as one figure, a row a size."""
    return draw_images(
        [
            [(c.pixels, f"{c.size} px, {about_image(c.true, c.predicted, c.loss)}") for c in cards]
            for cards in groups
        ]
    )
