"""The sections that show images: the highest losses, and Grad-CAM across sizes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.evaluate import Sweep
from msun_fastai.models.saving import SavedModel
from msun_fastai.report.losses import draw_losses, highest_losses, shown_sizes
from msun_fastai.report.parts import Album, Section, Shown, Tested, table

MAPPED = 4  # images of Grad-CAM
MAPPED_SIZES = 3  # columns that a phone shows
NO_IMAGES = "The images were read as a stream, which leaves none to show."
Samples = Sequence[Sample] | None


def losses_section(tested: Tested, samples: Samples, album: Album) -> Section:
    """The images with the highest loss at each scale."""
    section = Section("losses", "The highest losses")
    if samples is None:
        section.text = [NO_IMAGES]
        return section
    section.cards = highest_losses(tested.sweep, samples)
    rows = [card.row() for cards in section.cards for card in cards]
    section.text = [
        "The images with the highest cross-entropy at each size, all resized to it; wrong labels "
        "are often among them."
    ]
    alt = "The images with the highest loss, a row a size; the list has them one by one."
    album.add("losses", draw_losses(section.cards), rows, alt, "")
    return section


def gradcam_section(tested: Tested, saved: SavedModel, samples: Samples, album: Album) -> Section:
    """Where the network looks, across sizes (Eq. 9, Figure 7)."""
    from msun_fastai.analysis.plots import plot_gradcam
    from msun_fastai.analysis.size_cams import size_cams

    section = Section("gradcam", "Grad-CAM across sizes")
    if samples is None:
        section.text = [NO_IMAGES]
        return section
    chosen = [samples[place] for place in mapped_images(tested.sweep)]
    sizes = _some_sizes(shown_sizes(tested.sweep))
    try:
        result = size_cams(saved, chosen, sizes)
    except UserError as error:  # the images are gone
        section.text = [f"There is none: {error}"]
        return section
    mean, counted = result.mean_likeness()
    figure = plot_gradcam(result)
    alike = "not defined" if mean is None else f"{mean:.2f}"
    alt = f"Grad-CAM of {len(result.images)} images at {', '.join(map(str, sizes))} pixels; "
    alt += f"mean correlation of the maps across sizes {alike}, over {counted} images."
    caption = (
        "Brighter is where the answer comes from (Eq. 9 of the paper). The maps are of the class "
        "that the network answers at the largest size. Likeness is the correlation of an image's "
        "maps over its sizes, 1 where they are the same."
    )
    picture = album.add("gradcam", figure, result.as_dict(), alt, caption, wide=True)
    section.pictures = [picture]
    columns: list[Shown] = [
        ("image", "image", str),
        ("size", "size", "{:d}".format),
        ("answer", "predicted", str),
        ("probability", "probability", "{:.2f}".format),
        ("likeness", "likeness", "{:.2f}".format),
    ]
    rows = [{**row, "image": f"image {i // len(sizes) + 1}"} for i, row in enumerate(result.rows())]
    section.tables = [table("Answers and likeness", rows, columns)]
    return section


def mapped_images(sweep: Sweep, n: int = MAPPED) -> list[int]:
    """The places of `n` images, evenly spread over those that are right at the largest size, or
    over all where these are too few."""
    rows = np.flatnonzero(sweep.right[:, -1])
    rows = rows if len(rows) >= n else np.arange(len(sweep.answers.images))
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, n).round().astype(int))]
    return sweep.answers.images[chosen].tolist()


def _some_sizes(sizes: Sequence[int]) -> list[int]:
    """At most `MAPPED_SIZES` of them, with both ends."""
    if len(sizes) <= MAPPED_SIZES:
        return list(sizes)
    return [sizes[0], sizes[len(sizes) // 2], sizes[-1]]
