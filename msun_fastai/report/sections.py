"""The sections about what a network answered: accuracy, cost, routing, confusions."""

from __future__ import annotations

from typing import Any

from msun_fastai import figures
from msun_fastai.report.parts import Album, Section, Shown, Tested, table
from msun_fastai.report.words import (
    accuracy_alt,
    cost_alt,
    millions,
    percent,
    routing_alt,
)

WORST_PAIRS = 10
BAND = "The band is the 95 % bootstrap interval over the images."


def all_rows(tested: Tested) -> list[dict[str, Any]]:
    """`accuracy_rows` of the network, and of its baseline as far as `metrics` have them."""
    method, baseline = tested.metrics["method"], tested.metrics.get("baseline")
    rows = figures.accuracy_rows({method: tested.sweep})
    if baseline is None:
        return rows
    name, n = baseline["method"], len(baseline["sizes"])
    columns = zip(
        *(baseline[key] for key in ("sizes", "subnet", "accuracy")),
        baseline.get("macs") or [None] * n,
    )
    name = name if name != method else f"{name} (baseline)"
    return rows + [
        {
            **{"model": name, "size": size, "subnet": subnet, "accuracy": accuracy},
            **{"low": None, "high": None, "macs": macs},
        }
        for size, subnet, accuracy, macs in columns
    ]


def accuracy_section(tested: Tested, rows: list[dict[str, Any]], album: Album) -> Section:
    """Accuracy against input size."""
    caption = f"Every image is resized to each size. {BAND}"
    if set(tested.sweep.sizes) - set(tested.sweep.scales):
        caption += (
            " Where a marker is hollow images of the size are resized once more, to the scale that "
            "they are routed to."
        )
    if tested.metrics.get("baseline"):
        caption += " The baseline's own report has its intervals."
    shown = [{**row, "interval": _interval(row)} for row in rows]
    columns: list[Shown] = [
        *_model_column(rows),
        ("size", "size", "{:d}".format),
        ("subnet", "subnet", "{:d}".format),
        ("accuracy", "accuracy", percent),
        ("95 % interval", "interval", "{}".format),
    ]
    picture = album.add("accuracy", figures.draw_accuracy(rows), rows, accuracy_alt(rows), caption)
    numbers = table("Accuracy at each input size", shown, columns, folded=False)
    return Section("accuracy", "Accuracy against size", [], [picture], [numbers])


def _model_column(rows: list[dict[str, Any]]) -> list[Shown]:
    """The column that tells models from each other, where there are several."""
    return [("model", "model", str)] if len({row["model"] for row in rows}) > 1 else []


def _interval(row: dict[str, Any]) -> str | None:
    if row["low"] is None:
        return None
    return f"{100 * row['low']:.1f} to {100 * row['high']:.1f}"


def cost_section(rows: list[dict[str, Any]], album: Album) -> Section:
    """Accuracy against cost; rows without a cost, of an older run, are left out."""
    rows = [row for row in rows if row["macs"] is not None]
    numbers = figures.cost_rows(rows)
    caption = (
        "What an image costs in the subnet that its size is routed to. The numbers at the points "
        "are input sizes; the star is the mean over them."
    )
    columns: list[Shown] = [
        *_model_column(rows),
        ("size", "size", "{}".format),
        ("million multiply-accumulates", "macs", millions),
        ("accuracy", "accuracy", percent),
    ]
    picture = album.add("cost", figures.draw_cost(rows), numbers, cost_alt(numbers), caption)
    section = Section("cost", "Accuracy against cost", [], [picture])
    section.tables = [table("Accuracy and cost at each input size", numbers, columns)]
    return section


def routing_section(tested: Tested, album: Album) -> Section:
    """Which images went to which subnet."""
    routed = tested.routed
    rows, numeric = figures.routing_rows(routed), "{:,}".format
    text = f"Images at their own sizes, routing rule {routed.rule}. "
    if len(routed.scales) == 1:
        text = "The network has one scale: every image goes to it, and nothing is routed. "
    text += "The native size is the shorter side of an image."
    caption = "Each bar is a range of native sizes; its parts are the subnets that took the images."
    picture = album.add("routing", figures.draw_routing(rows), rows, routing_alt(tested), caption)
    columns: list[Shown] = [
        ("subnet", "subnet", numeric),
        ("images", "images", numeric),
        ("accuracy", "accuracy", percent),
        ("million multiply-accumulates", "macs", millions),
    ]
    ranges = [{**row, "range": f"{row['above'] + 1} to {row['up_to']}"} for row in rows]
    by_range: list[Shown] = [
        ("native size", "range", "{}".format),
        ("images", "images", numeric),
        ("accuracy", "accuracy", percent),
        *((f"to {scale}", f"subnet_{scale}", numeric) for scale in routed.scales),
    ]
    tables = [
        table("By subnet", routed.by_subnet(), columns, folded=False),
        table("By native size", ranges, by_range),
    ]
    return Section("routing", "Routing", [text], [picture], tables)


def confusion_section(tested: Tested, album: Album) -> Section:
    """Which classes are taken for which, on images at their own sizes."""
    routed = tested.routed
    rows = figures.confusion_rows(routed.answers.codes, routed.cell.predicted, routed.classes)
    shown = figures.shown_classes(rows, routed.classes)
    worst = figures.confused(rows, WORST_PAIRS)
    caption = "Rows are true classes, columns what the network said, images at their own sizes."
    if len(shown) < len(routed.classes):
        caption += f" Shown: the {len(shown)} most confused of {len(routed.classes):,} classes."
    pairs = [f"{r['true']} as {r['predicted']} ({r['images']})" for r in worst[:3]]
    alt = f"Confusion matrix of {len(shown)} classes, {percent(routed.accuracy)} right. "
    alt += f"Most often confused: {'; '.join(pairs)}." if pairs else "Nothing is confused."
    picture = album.add("confusion", figures.draw_confusion(rows, shown), rows, alt, caption)
    columns: list[Shown] = [
        ("true class", "true", str),
        ("predicted", "predicted", str),
        ("images", "images", "{:,}".format),
        ("of its class", "share", percent),
    ]
    section = Section("confusion", "Confusion matrix", [], [picture])
    if worst:
        section.tables = [table("The most confused pairs", worst, columns, folded=False)]
    return section
