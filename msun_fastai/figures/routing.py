"""Which images go to which subnet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msun_fastai.figures.look import WIDTH, legend_above
from msun_fastai.plots import COLOURS, new_figure
from msun_fastai.routed import Routed

HATCHES = ("", "///", "...", "xx", "\\\\\\")


def routing_rows(routed: Routed) -> list[dict[str, Any]]:
    """A row for each range of native sizes that has images: `above`, `up_to`, `images`, `accuracy`
    and how many went to the subnet of each scale, as `subnet_32`."""
    found = []
    for row in routed.by_native_size():
        subnets = row.pop("subnets")
        found.append({**row, **{f"subnet_{s}": subnets.get(str(s), 0) for s in routed.scales}})
    return found


def plot_routing(routed: Routed) -> Any:
    """How many images of which native size went to which subnet, and how many are right."""
    return draw_routing(routing_rows(routed))


def draw_routing(rows: Sequence[Mapping[str, Any]]) -> Any:
    """The picture of `routing_rows`: a bar a range of sizes, in parts by subnet."""
    figure, axes = new_figure(WIDTH, 1.6 + 0.3 * len(rows))
    subnets = [key for key in rows[0] if key.startswith("subnet_")]
    before, most = np.zeros(len(rows)), max(row["images"] for row in rows)
    for i, key in enumerate(subnets):
        counts = np.array([row[key] for row in rows])
        look = {"color": COLOURS[i % len(COLOURS)], "hatch": HATCHES[i % len(HATCHES)]}
        if counts.any():  # one that takes none has no place in the legend
            label = f"subnet {key.removeprefix('subnet_')}"
            axes.barh(range(len(rows)), counts, left=before, label=label, edgecolor="white", **look)
        before += counts
    for y, row in enumerate(rows):
        text = f" {row['images']:,}: {100 * row['accuracy']:.0f} % right"
        axes.text(row["images"], y, text, va="center", fontsize=9)
    names = [f"{row['above'] + 1} to {row['up_to']}" for row in rows]
    axes.set_yticks(range(len(rows)), names)
    axes.set(xlabel="images", ylabel="native size", xlim=(0, 1.65 * most))
    axes.xaxis.get_major_locator().set_params(integer=True, nbins=5)
    axes.invert_yaxis()
    legend_above(figure, axes, always=True)
    return figure
