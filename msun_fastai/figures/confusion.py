"""Which classes are taken for which others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from msun_fastai.figures.look import WIDTH, draw_shares
from msun_fastai.plots import new_figure, plain

SHOWN_CLASSES = 20  # rows and columns that can be told apart on a phone
NUMBERED = 10  # and with their numbers written in


def confusion_rows(codes: Any, predicted: Any, classes: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each `true` class and `predicted` class that came together, with how many `images`
    and their `share` of the true class; in the order of the classes.

    codes, predicted: class codes (n,). Answers that are no class (below 0) are left out.
    """
    codes, predicted = np.asarray(codes), np.asarray(predicted)
    pairs = np.stack([codes, predicted], 1)[predicted >= 0]
    of_class = np.bincount(pairs[:, 0], minlength=len(classes))
    found, counts = np.unique(pairs, axis=0, return_counts=True)
    return [
        {
            "true": classes[true],
            "predicted": classes[guess],
            "images": n,
            "share": float(n / of_class[true]),
        }
        for (true, guess), n in zip(found.tolist(), counts.tolist())
    ]


def confused(rows: Sequence[Mapping[str, Any]], n: int = 10) -> list[Mapping[str, Any]]:
    """The `n` of `confusion_rows` with the most images that are of another class; among equals the
    larger share of its class first."""
    wrong = [row for row in rows if row["true"] != row["predicted"]]
    return sorted(wrong, key=lambda row: (-row["images"], -row["share"]))[:n]


def most_confused(
    codes: Any, predicted: Any, classes: Sequence[str], n: int = 10
) -> list[Mapping[str, Any]]:
    """The `n` pairs of `true` and `predicted` class with the most `images`, worst first."""
    return confused(confusion_rows(codes, predicted, classes), n)


def plot_confusion(
    codes: Any, predicted: Any, classes: Sequence[str], most: int = SHOWN_CLASSES
) -> Any:
    """Shares of each true class by predicted class; with more than `most` classes those alone that
    are confused the most, see `shown_classes`."""
    rows = confusion_rows(codes, predicted, classes)
    return draw_confusion(rows, shown_classes(rows, classes, most))


def shown_classes(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], most: int = SHOWN_CLASSES
) -> list[str]:
    """All `classes` that have images or answers in `confusion_rows`, or the `most` of them that are
    in the worst pairs, in the order of `classes`."""
    kept = {name: 0 for row in rows for name in (row["true"], row["predicted"])}
    if len(kept) > most:
        worst = confused(rows, len(rows))
        kept = {name: 0 for row in worst for name in (row["true"], row["predicted"])} | kept
        kept = dict(list(kept.items())[:most])
    return [name for name in classes if name in kept]


def draw_confusion(rows: Sequence[Mapping[str, Any]], shown: Sequence[str]) -> Any:
    """The picture of `confusion_rows` for the classes `shown`; per cent are written in where there
    are few."""
    place = {name: i for i, name in enumerate(shown)}
    shares = np.zeros((len(shown), len(shown)))
    for row in rows:
        if row["true"] in place and row["predicted"] in place:
            shares[place[row["true"]], place[row["predicted"]]] = row["share"]
    few = len(shown) <= NUMBERED
    figure, axes = new_figure(WIDTH, 1.8 + (0.3 if few else 0.18) * len(shown))
    image = draw_shares(axes, shares, 8 if few else None)
    if not few:
        figure.colorbar(
            image,
            ax=axes,
            location="top",
            fraction=0.04,
            label="share of the true class",
            ticks=(0, 0.1, 0.25, 0.5, 1),
        )
    names, small = [plain(name, 16) for name in shown], {"fontsize": 9 if few else 8}
    axes.set_xticks(range(len(shown)), names, rotation=90, **small)
    axes.set_yticks(range(len(shown)), names, **small)
    axes.set(xlabel="predicted", ylabel="true class")
    if few:
        axes.set_title("per cent of the true class", fontsize=10)
    return figure
