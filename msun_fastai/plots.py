"""Pictures of a training: its losses and its accuracies, epoch by epoch."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from msun_fastai.files import replacing

SIZE = (7.0, 4.0)  # inches
OWN = "at its own size"
DPI = 160
# Okabe and Ito's colours, which differ without colour vision too; markers and dashes as well
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# lists of different lengths: their combinations do not come again for a long time
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", "-.", ":", (0, (5, 1)))
NAMED = 22  # characters of a name that a picture has room for
TERMS = {
    "si": "SI term",
    "sd": "scale distillation",
    "ens": "ensemble distillation",
    "align": "alignment of subnets",
}
LOSSES = ("train_loss", "valid_loss", *TERMS)  # `ce` is a sum over the views, on another scale
RANGE = 30  # times the smallest loss: where the largest is above, the axis is logarithmic


def read_history(file: Path | str) -> list[dict[str, str]]:
    """The rows of a run's `history.csv`."""
    with Path(file).open(newline="", encoding="utf-8") as text:
        return list(csv.DictReader(text))


def plot_history(rows: Sequence[Mapping[str, Any]], folder: Path | str) -> list[Path]:
    """Write `loss.png` and `accuracy.png` to `folder`; returns those that there was anything for.

    Epochs are counted over the whole training, the head's own first one included.
    """
    if not rows:
        return []
    losses = [name for name in rows[0] if name in LOSSES]
    accuracies = [name for name in rows[0] if name.startswith("acc")]
    made = []
    for name, columns, label in (
        ("loss", losses, "loss"),
        ("accuracy", accuracies, "accuracy (%)"),
    ):
        scale = 100 if name == "accuracy" else 1
        lines = {column: series(rows, column, scale) for column in columns}
        lines = {column: points for column, points in lines.items() if points[0]}
        if lines:
            named = {legend(column): points for column, points in lines.items()}
            wide = name == "loss" and _is_wide([v for _, up in lines.values() for v in up])
            made.append(draw(named, "epoch", label, Path(folder) / f"{name}.png", log_y=wide))
    return made


def _is_wide(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > RANGE * min(values)


def series(
    rows: Sequence[Mapping[str, Any]], column: str, scale: float = 1
) -> tuple[list[int], list[float]]:
    """Epochs, from 1, and the column's values there times `scale`; empty cells are left out."""
    points = [(i + 1, row[column]) for i, row in enumerate(rows) if row[column] not in (None, "")]
    return [epoch for epoch, _ in points], [scale * float(value) for _, value in points]


def legend(column: str) -> str:
    """What a column of the history is called in a picture."""
    names = {"accuracy": OWN, **TERMS}
    if column in names:
        return names[column]
    return column.replace("acc_", "at ").replace("_", " ")


def draw(
    lines: Mapping[str, tuple[Sequence[float], Sequence[float]]],
    x: str,
    y: str,
    file: Path,
    log_x: bool = False,
    log_y: bool = False,
    mark: float | None = None,
) -> Path:
    """Draw `lines`, their points by name, to `file`; log_x, log_y: logarithmic axes. mark: a place
    on the axis `x`."""
    # not pyplot, whose figures are the program's own and whose backend may want a display
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    for name, (across, up) in lines.items():
        # dashes let a line be seen that has another one on it
        over = name == OWN  # in dashes, over another line that it may lie on
        axes.plot(
            *(across, up, "--" if over else "-"),
            marker="o",
            markersize=3,
            label=name,
            zorder=3 if over else 2,
        )
    if mark is not None:
        axes.axvline(mark, color="black", linestyle=":", label=f"{mark:.2g}")
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    if log_y:
        axes.set_yscale("log")
    if log_x:
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        ends = [place for across, _ in lines.values() for place in across]
        axes.set_xlim(min(ends) - 0.5, max(ends) + 0.5)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return file


def new_figure(width: float = 5.0, height: float = 3.6, **grid: Any) -> tuple[Any, Any]:
    """A figure of that many inches and its axes, `grid` as `Figure.subplots` takes it.

    5 inches keep 10-point text readable on a phone.
    """
    from msun_fastai.inline import InlineFigure

    figure = InlineFigure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(**grid)


def save_figure(figure: Any, file: Path | str) -> Path:
    """Write `figure` to `file` as PNG, whole or not at all; returns the path."""
    with replacing(file) as temporary:
        figure.savefig(temporary, format="png", dpi=DPI)
    return Path(file)


def line_style(i: int) -> dict[str, Any]:
    """How the line with number `i` is drawn: told from the others by colour, marker and dashes."""
    colour, marker, dashes = (of[i % len(of)] for of in (COLOURS, MARKERS, DASHES))
    return {"color": colour, "marker": marker, "linestyle": dashes, "markersize": 5}


def plain(text: str, most: int = NAMED) -> str:
    """`text` as matplotlib draws it and nothing else: `$` is no formula, odd bytes are escaped, a
    leading `_` does not hide it from the legend; cut to `most` characters."""
    text = text.encode("utf-8", "backslashreplace").decode()
    text = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    text = text if len(text) <= most else text[: most - 1] + "…"
    return (f" {text}" if text.startswith("_") else text).replace("$", r"\$")
