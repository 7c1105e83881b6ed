"""What the pictures have in common: their width, names as text, legends, shades."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

WIDTH = 4.6  # inches; on a phone 10-point text is then 11 pixels high
NEAR = 0.05  # of an axis: what is written closer together would overlap
SHADES = "Blues"  # by lightness, which needs no colour vision
FAINT = 0.6  # exponent of a share's shade, below 1 so that small shares are seen


def apart(places: Sequence[float]) -> list[float]:
    """Those of ascending `places` whose labels do not overlap on an axis; the ends stay."""
    room, kept = NEAR * (places[-1] - places[0]), list(places[:1])
    for place in places[1:-1]:
        if place - kept[-1] > room and places[-1] - place > room:
            kept.append(place)
    return [*kept, *places[1:][-1:]]


def legend_above(figure: Any, axes: Any, always: bool = False) -> None:
    """A legend above the axes, where it covers nothing; none for a single line."""
    handles, names = axes.get_legend_handles_labels()
    if len(handles) > 1 or always:
        columns = 2 if max(map(len, names)) > 12 else 3
        place = {"loc": "outside upper center", "ncols": min(columns, len(handles))}
        figure.legend(handles, names, frameon=False, **place)


def draw_shares(
    axes: Any, shares: np.ndarray, size: float | None, span: tuple[float, float] = (0, 1)
) -> Any:
    """Shares (rows, columns) as shades over `span`, in each its per cent at font `size`, if any;
    NaN is left blank. Returns matplotlib's image."""
    from matplotlib.colors import PowerNorm

    norm = PowerNorm(FAINT, vmin=span[0], vmax=span[1])
    image = axes.imshow(shares, cmap=SHADES, norm=norm, aspect="auto")
    for (y, x), share in np.ndenumerate(shares) if size is not None else ():
        if not np.isnan(share):
            ink = "white" if norm(share) > 0.55 else "black"
            text = {"color": ink, "fontsize": size, "ha": "center", "va": "center"}
            axes.text(x, y, f"{100 * share:.0f}", **text)
    return image
