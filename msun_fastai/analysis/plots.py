"""The pictures of an analysis: the papers' figures with one's own models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from msun_fastai.analysis.depth import MAIN, DepthAccuracy
from msun_fastai.analysis.layer_cka import LayerCKA
from msun_fastai.analysis.size_cams import KEPT, GradCam, SizeMaps
from msun_fastai.analysis.size_pca import SizePCA
from msun_fastai.data.resize import as_pixels
from msun_fastai.plots import COLOURS, MARKERS, line_style, new_figure, plain

COLOURMAP = "viridis"  # equal steps look equal, and it is read without colour vision
PANEL = 1.75  # inches of a picture in a table of pictures
SHARE = 0.6  # of the map in the colour of a pixel
LONGEST = 16  # characters of a class name above a picture
LONGEST_NAME = 28  # of a model's
TICKS = 12  # blocks that an axis can name one by one


def plot_cka(results: Sequence[LayerCKA]) -> Any:
    """CKA over the layers, a line a model (Figure 2). Returns a matplotlib `Figure`."""
    figure, axes = new_figure()
    ticks = max((list(result.values) for result in results), key=len)
    for i, result in enumerate(results):
        values = [math.nan if v is None else v for v in result.values.values()]
        axes.plot(
            range(len(values)), values, label=plain(result.name, LONGEST_NAME), **line_style(i)
        )
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.35, len(ticks) - 0.65)
    lowest = min((v for r in results for v in r.values.values() if v is not None), default=0.0)
    axes.set_ylim(min(0.0, lowest), 1.02)
    small, large = results[0].sizes
    axes.set_ylabel(f"CKA of {small} and {large} pixels")
    axes.grid(alpha=0.3)
    across = 3 if all(len(r.name) <= LONGEST for r in results) else 1
    figure.legend(loc="outside upper center", ncols=across, frameon=False)
    return figure


def plot_depth(results: Sequence[DepthAccuracy]) -> Any:
    """Accuracy by depth, a line a model, ended by its own classifier (ScaleNet's Figure 6).

    Returns a matplotlib `Figure`.
    """
    figure, axes = new_figure()
    for i, result in enumerate(results):
        style = line_style(i)
        up = [100 * block.accuracy for block in result.blocks]
        name = plain(result.name, LONGEST_NAME)
        axes.plot(range(1, len(up) + 1), up, label=name, **style)
        style = {**style, "markersize": 9, "linestyle": "none", "fillstyle": "none"}
        axes.plot(len(up) + 1, 100 * result.main, label=f"{name}: {MAIN}", **style)
    named = [block.name for block in max((r.blocks for r in results), key=len)]
    if len(named) <= TICKS:
        shown = [name.removeprefix("block ") for name in named]
        axes.set_xticks(range(1, len(named) + 1), shown)
    axes.set_xlabel("block" if named[0].startswith("block") else "layer")
    axes.set_ylabel("accuracy of a linear classifier (%)")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside upper center", ncols=2, frameon=False)
    return figure


def plot_gradcam(result: GradCam) -> Any:
    """Maps laid over the images, a row an image, a column a size (Figure 7); the first images.

    Every map is scaled by its own largest value; a grey picture is one whose map is zero. Returns
    a matplotlib `Figure`.
    """
    shown, columns = min(KEPT, len(result.images)), len(result.sizes)
    width, height = PANEL * max(2, columns), (PANEL + 0.42) * shown + 0.6
    figure, table = new_figure(width, height, nrows=shown, ncols=columns, squeeze=False)
    for i, row in enumerate(table):
        for axes, at in zip(row, result.sizes):
            _overlay(axes, at, i)
            answer, share = result.classes[int(at.answers[i])], at.probabilities[i]
            entry = f"{at.size} px, subnet {at.side}"
            axes.set_title(f"{entry}\n{plain(answer, LONGEST)} {share:.0%}", fontsize=9)
    mean, counted = result.mean_likeness()
    what = plain(result.target or f"the answer at {result.sizes[-1].size} px", LONGEST_NAME)
    alike = f"likeness {_number(mean, 3)} ({counted} of {len(result.images)} images)"
    name = plain(result.name, LONGEST_NAME)
    figure.suptitle(f"{name}: {what}\n{alike}", fontsize=10)
    return figure


def _overlay(axes: Any, at: SizeMaps, i: int) -> None:
    """One picture: the image in grey, the map on it in colour."""
    grey = as_pixels(at.views[i]).mean(2)
    extent = (0, at.size, at.size, 0)  # the map on the whole image, whatever its grid
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=extent)
    one = at.maps[i].numpy()
    if one.max() > 0:
        smooth = {"interpolation": "bilinear", "extent": extent}
        axes.imshow(one, cmap=COLOURMAP, vmin=0, alpha=SHARE, **smooth)
    axes.set_axis_off()


def plot_pca(results: Sequence[SizePCA]) -> Any:
    """Classes in the plane, a row a model, a column a size; a row has one projection (Figure 8).

    Returns a matplotlib `Figure`.
    """
    rows, columns = len(results), max(len(result.sides) for result in results)
    table: dict[str, Any] = {"nrows": rows, "ncols": columns, "squeeze": False}
    width, height = 1.9 * columns + 0.5, 2.2 * rows + 0.7
    figure, panels = new_figure(width, height, sharex="row", sharey="row", **table)
    for result, row in zip(results, panels):
        for axes, (size, points) in zip(row, result.projection.points.items()):
            _scatter(axes, points, result)
            score = _number(result.projection.separation[size])
            axes.set_title(f"{size} px\nseparation {score}", fontsize=10)
        row[0].set_ylabel(plain(result.name, LONGEST_NAME), fontsize=10)
    handles, labels = panels[0][0].get_legend_handles_labels()
    place: dict[str, Any] = {"loc": "outside lower center", "ncols": max(2, columns)}
    figure.legend(handles, labels, frameon=False, fontsize=9, markerscale=1.6, **place)
    return figure


def _scatter(axes: Any, points: np.ndarray, result: SizePCA) -> None:
    """One panel: points (n, 2), a colour and a marker a class."""
    for code, label in enumerate(result.labels):
        mine = points[result.codes == code]
        style = {"color": COLOURS[code % len(COLOURS)], "marker": MARKERS[code % len(MARKERS)]}
        name = plain(label, LONGEST)
        axes.scatter(*mine.T, s=12, alpha=0.75, linewidths=0, label=name, **style)
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3)


def _number(value: float | None, places: int = 2) -> str:
    if value is None:
        return "not defined"
    return f"{round(value, places) + 0.0:.{places}f}"  # no -0.00
