"""Accuracy against input size, against cost, and of every subnet at every size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msun_fastai.evaluate import Sweep
from msun_fastai.figures.look import NEAR, WIDTH, apart, draw_shares, legend_above
from msun_fastai.plots import COLOURS, line_style, new_figure, plain

Row = Mapping[str, Any]


def accuracy_rows(sweeps: Mapping[str, Sweep]) -> list[dict[str, Any]]:
    """A row a model and size: `accuracy` with its 95 % interval from `low` to `high`, and `macs`,
    multiply-accumulates of an image in the `subnet` that the size is routed to."""
    rows = []
    for name, sweep in sweeps.items():
        each, _ = sweep.intervals()
        columns = zip(sweep.sizes, sweep.subnet, sweep.accuracy, each, sweep.macs)
        for size, subnet, accuracy, (low, high), macs in columns:
            about = {"model": name, "size": size, "subnet": subnet, "accuracy": accuracy}
            rows.append({**about, "low": low, "high": high, "macs": macs})
    return rows


def by_model(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by their `model`, in their order."""
    return {name: [r for r in rows if r["model"] == name] for name in {r["model"]: 0 for r in rows}}


def plot_accuracy(sweeps: Mapping[str, Sweep]) -> Any:
    """Accuracy against input size, a line a model, in its band the 95 % interval."""
    return draw_accuracy(accuracy_rows(sweeps))


def draw_accuracy(rows: Sequence[Row]) -> Any:
    """The picture of `accuracy_rows`. A filled marker: the size is the scale of its own subnet.
    Rows without `low` get no band."""
    figure, axes = new_figure(WIDTH, 3.4)
    for i, (name, of) in enumerate(by_model(rows).items()):
        style, sizes = line_style(i), [r["size"] for r in of]
        up = [100 * r["accuracy"] for r in of]
        axes.plot(sizes, up, label=plain(name), **style)
        between = [(x, y) for x, y, r in zip(sizes, up, of) if x != r["subnet"]]
        hollow = {**style, "linestyle": "", "markerfacecolor": "white"}
        axes.plot(*zip(*between), **hollow) if between else None
        if all(r.get("low") is not None for r in of):
            band = ([100 * r[end] for r in of] for end in ("low", "high"))
            axes.fill_between(sizes, *band, color=style["color"], alpha=0.18, linewidth=0)
    ticks = apart(sorted({r["size"] for r in rows}))
    axes.set(xlabel="input size (pixels)", ylabel="accuracy (%)", xticks=ticks)
    axes.grid(alpha=0.3)
    legend_above(figure, axes)
    return figure


def plot_cost(sweeps: Mapping[str, Sweep]) -> Any:
    """Accuracy against cost: a point a size, a star at a model's mean over the sizes."""
    return draw_cost(accuracy_rows(sweeps))


def cost_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """`macs` and `accuracy` of `accuracy_rows`, and after a model's sizes a row with their `mean`
    (Table II)."""
    found: list[dict[str, Any]] = []
    for name, of in by_model(rows).items():
        found += [{key: r[key] for key in ("model", "size", "macs", "accuracy")} for r in of]
        means = {key: float(np.mean([r[key] for r in of])) for key in ("macs", "accuracy")}
        found.append({"model": name, "size": "mean", **means})
    return found


def draw_cost(rows: Sequence[Row]) -> Any:
    """The picture of `accuracy_rows` as cost; with one or two models the sizes are written in."""
    figure, axes = new_figure(WIDTH, 3.4)
    models, most = by_model(rows), max(r["macs"] for r in rows)
    unit, named_unit = (1e9, "billions") if most >= 1e9 else (1e6, "millions")
    values = [100 * r["accuracy"] for r in rows]
    room = NEAR * most / unit, NEAR * (max(values) - min(values))
    for i, (name, of) in enumerate(models.items()):
        style, across = line_style(i), [r["macs"] / unit for r in of]
        up = [100 * r["accuracy"] for r in of]
        axes.plot(across, up, label=plain(name), **style)
        star = {"color": style["color"], "marker": "*", "markeredgecolor": "black"}
        axes.plot(np.mean(across), np.mean(up), markersize=14, linestyle="", **star)
        if len(models) <= 2:
            points = list(zip(across, up, [r["size"] for r in of]))
            _write_sizes(axes, points, room, left=i == 0)
    blank = {"marker": "*", "markeredgecolor": "black", "color": "white"}  # of no model's colour
    axes.plot([], [], markersize=14, linestyle="", label="mean over sizes", **blank)
    axes.set(xlabel=f"multiply-accumulates of an image ({named_unit})", ylabel="accuracy (%)")
    axes.set_xlim(0, 1.25 * most / unit)  # room for what is written beside the last points
    axes.grid(alpha=0.3)
    legend_above(figure, axes)
    return figure


def draw_means(rows: Sequence[Row]) -> Any:
    """Mean accuracy against mean cost: a marker a row (`model`, `macs`, `accuracy`), a bar from its
    `low` to its `high`."""
    # the legend's lines are not to take the height of the axes
    figure, axes = new_figure(WIDTH, 3.4 + 0.24 * max(0, len(rows) // 2 - 2))
    most = max(r["macs"] for r in rows)
    unit, named_unit = (1e9, "billions") if most >= 1e9 else (1e6, "millions")
    for i, row in enumerate(rows):
        style = {**line_style(i), "linestyle": ""}
        across, up = row["macs"] / unit, 100 * row["accuracy"]
        bar = [[up - 100 * row["low"]], [100 * row["high"] - up]]
        axes.plot(across, up, label=plain(row["model"]), **style)
        axes.errorbar(across, up, bar, capsize=4, ecolor=style["color"], fmt="none")
    axes.set(xlabel=f"multiply-accumulates of an image ({named_unit})", ylabel="accuracy (%)")
    axes.set_xlim(0, 1.1 * most / unit)
    axes.set_title("means over the sizes", fontsize=10)
    axes.grid(alpha=0.3)
    legend_above(figure, axes)
    return figure


def _write_sizes(
    axes: Any, points: Sequence[tuple[float, float, int]], room: tuple[float, float], left: bool
) -> None:
    """Beside each of `points` (x, y, size) its size; those less than `room` (x, y) apart in one."""
    groups: list[list[tuple[float, float, int]]] = []
    for point in sorted(points):
        last = groups[-1][-1] if groups else None
        if last and all(abs(point[k] - last[k]) <= room[k] for k in (0, 1)):
            groups[-1].append(point)
        else:
            groups.append([point])
    for group in groups:
        names = [str(size) for size in sorted(size for *_, size in group)]
        text = ", ".join(names) if len(names) <= 3 else f"{names[0]} to {names[-1]}"
        at = min(x for x, *_ in group), float(np.mean([y for _, y, _ in group]))
        outside = left and at[0] > 6 * room[0]  # of its line, where the axis leaves room for it
        side = {"xytext": (-10, 0), "ha": "right"} if outside else {"xytext": (10, 0), "ha": "left"}
        axes.annotate(text, at, textcoords="offset points", va="center", fontsize=9, **side)


def matrix_rows(sweep: Sweep) -> list[dict[str, Any]]:
    """A row a subnet and size with its `accuracy`, and whether the size is `routed` there; empty
    where each size went to its own subnet alone."""
    matrix = sweep.matrix()
    if matrix is None:
        return []
    return [
        {"subnet": scale, "size": size, "accuracy": float(matrix[k, i]), "routed": scale == to}
        for i, scale in enumerate(sweep.scales)
        for k, (size, to) in enumerate(zip(sweep.sizes, sweep.subnet))
    ]


def plot_matrix(sweep: Sweep) -> Any:
    """The accuracy of every subnet at every size (Table IV, Figure 5), in per cent; the subnet that
    a size is routed to is framed. Raises `ValueError` where only that one was asked."""
    rows = matrix_rows(sweep)
    if not rows:
        raise ValueError("the matrix needs the answers of every subnet (every_subnet=True)")
    return draw_matrix(rows)


def draw_matrix(rows: Sequence[Row]) -> Any:
    """The picture of `matrix_rows`."""
    from matplotlib.patches import Rectangle

    subnets, sizes = (sorted({r[key] for r in rows}) for key in ("subnet", "size"))
    shares = np.full((len(subnets), len(sizes)), np.nan)
    width = max(WIDTH, 1 + 0.4 * len(sizes))
    figure, axes = new_figure(width, 1.2 + 0.4 * len(subnets))
    for row in rows:
        y, x = subnets.index(row["subnet"]), sizes.index(row["size"])
        shares[y, x] = row["accuracy"]
        if row["routed"]:
            corner, side = (x - 0.46, y - 0.46), 0.92  # inside the cell
            axes.add_patch(Rectangle(corner, side, side, fill=False, ec=COLOURS[1], lw=2.5))
    low = float(np.nanmin(shares))
    draw_shares(axes, shares, 10, (low, max(low + 0.01, float(np.nanmax(shares)))))
    axes.set_xticks(range(len(sizes)), sizes)
    axes.set_yticks(range(len(subnets)), subnets)
    axes.set(xlabel="input size (pixels)", ylabel="subnet")
    axes.set_title("accuracy (%); framed: the subnet that takes the size", fontsize=10)
    return figure
