"""How losses and accuracies went, epoch by epoch, on a figure that a phone shows well."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from msun_fastai.figures.look import WIDTH, legend_above
from msun_fastai.plots import LOSSES, RANGE, legend, line_style, new_figure, plain, series

KINDS = ("loss", "accuracy")


def training_rows(history: Sequence[Mapping[str, Any]], kind: str) -> list[dict[str, Any]]:
    """A row an epoch, counted over the whole training: those columns of a `history.csv` that are of
    `kind`, a loss or an accuracy; empty where there are none. Cells that are empty are None.

    Raises `ValueError` and `KeyError` where a cell is no number or is missing.
    """
    if not history:
        return []
    wanted = [
        name for name in history[0]
        if (name in LOSSES if kind == "loss" else name.startswith("acc"))
    ]  # fmt: skip
    columns = {name: dict(zip(*series(history, name))) for name in wanted}
    columns = {name: points for name, points in columns.items() if points}
    if not columns:
        return []
    epochs = range(1, len(history) + 1)
    return [{"epoch": e, **{name: of.get(e) for name, of in columns.items()}} for e in epochs]


def draw_training(rows: Sequence[Mapping[str, Any]], kind: str) -> Any:
    """The picture of `training_rows`, a line a column."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = new_figure(WIDTH, 3.4)
    times = 100 if kind == "accuracy" else 1
    for i, name in enumerate(key for key in rows[0] if key != "epoch"):
        points = [(r["epoch"], times * r[name]) for r in rows if r[name] is not None]
        axes.plot(*zip(*points), label=plain(legend(name)), **line_style(i))
    values = [v for r in rows for k, v in r.items() if k != "epoch" and v is not None]
    values = [v for v in values if math.isfinite(v)]
    if kind == "loss" and values and min(values) > 0 and max(values) > RANGE * min(values):
        axes.set_yscale("log")
    axes.set(xlabel="epoch", ylabel="accuracy (%)" if kind == "accuracy" else kind)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, len(rows) + 0.5)
    axes.grid(alpha=0.3)
    legend_above(figure, axes, always=True)
    return figure
