"""Images in rows, with a line or three above each."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msun_fastai.data.images import REDUCTIONS, open_image
from msun_fastai.data.samples import Sample
from msun_fastai.errors import ImageError
from msun_fastai.plots import new_figure, plain

SIDE = 160  # pixels of a small picture's longer side
COLUMNS = 3
PANEL = (1.7, 2.1)  # inches of an image with its text
TITLE = 18  # characters of a name above an image
Cell = tuple[Any, str]  # a Pillow image or None, and the text above it


def thumbnail(image: Any) -> Any:
    """`image`, whatever `open_image` takes, as a Pillow image whose longer side is at most `SIDE`;
    None where it cannot be read."""
    from PIL import Image

    try:
        with open_image(image) as opened:
            longer = max(opened.size)
            reduction = next((r for r in REDUCTIONS if longer >= 2 * r * SIDE), 1)
            picture = Image.fromarray(opened.pixels(reduction))
    except ImageError:
        return None
    picture.thumbnail((SIDE, SIDE))
    return picture


def about_image(true: str, predicted: str, loss: float) -> str:
    """What stands above an image: its loss, its class, what it was taken for."""
    return f"loss {loss:.2f}\n{plain(true, TITLE)}\nas {plain(predicted, TITLE)}"


def plot_images(shown: Sequence[tuple[Sample, str, float]], columns: int = COLUMNS) -> Any:
    """Images with their class, the class that was predicted and the loss, row after row; the place
    of one that cannot be read stays empty."""
    if not shown:
        raise ValueError("there is no image to show")
    cells = [(thumbnail(s.image), about_image(s.label, guess, loss)) for s, guess, loss in shown]
    return draw_images([cells[i : i + columns] for i in range(0, len(cells), columns)])


def draw_images(rows: Sequence[Sequence[Cell]]) -> Any:
    """Rows of pictures, each with its text above it; rows may be of different lengths."""
    columns = max(map(len, rows))
    width, height = PANEL
    table: dict[str, Any] = {"nrows": len(rows), "ncols": columns, "squeeze": False}
    figure, panels = new_figure(width * columns, height * len(rows), **table)
    figure.get_layout_engine().set(h_pad=0.08)  # inches, else the texts touch the edge
    for axes in panels.flat:
        axes.set_axis_off()
    for cells, row in zip(rows, panels):
        for (picture, text), axes in zip(cells, row):
            if picture is not None:
                axes.imshow(picture)
            axes.set_title(text, fontsize=8)
    return figure
