"""A run in words: the summary of its report, and what its pictures show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msun_fastai.figures.sizes import by_model
from msun_fastai.report.parts import Tested

MOST_POINTS = 8  # of a line, that are told in words


def percent(share: float) -> str:
    """A share with one digit.

    >>> percent(0.763)
    '76.3 %'
    """
    return f"{100 * share:.1f} %"


def listed(values: Sequence[Any]) -> str:
    """Values in a row of words.

    >>> listed([32, 128, 224])
    '32, 128 and 224'
    """
    words = [str(value) for value in values]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def millions(macs: float) -> str:
    """Multiply-accumulates as a table has them, in millions."""
    return f"{macs / 1e6:,.1f}"


def summary(tested: Tested) -> str:
    """What was measured, in a sentence, and in another how the baseline does, if there is one."""
    sweep, metrics = tested.sweep, tested.metrics
    _, (low, high) = sweep.intervals()
    scales = "scale" if len(sweep.scales) == 1 else "scales"
    network = f"The {metrics['method']} network ({metrics['arch']}, {scales} "
    told = f"{network}{listed(sweep.scales)}) gets {percent(sweep.mean_accuracy)} "
    told += f"of the images right (95 % interval {100 * low:.1f} to {100 * high:.1f}) "
    if len(sweep.sizes) == 1:
        told += f"at {sweep.sizes[0]} pixels"
    else:
        told += f"in the mean over {len(sweep.sizes)} sizes from {sweep.sizes[0]} to "
        told += f"{sweep.sizes[-1]} pixels, {percent(sweep.accuracy[0])} at the smallest and "
        told += f"{percent(sweep.accuracy[-1])} at the largest"
    told += f", and at the images' own sizes {percent(tested.routed.accuracy)}{_saved(tested)}."
    baseline = metrics.get("baseline")
    return f"{told} {_compared(tested, baseline, (low, high))}" if baseline else told


def _saved(tested: Tested) -> str:
    """What the routing costs, for networks that have one."""
    routed = tested.routed
    if len(routed.scales) == 1:
        return "; it has one scale, so that small images cost as much as large ones"
    share, against = 100 * routed.saving, f"with all of them at {routed.scales[-1]}"
    if round(abs(share), 1) == 0:
        return f" at the same cost as {against}"
    return f" for {abs(share):.1f} % {'less' if share > 0 else 'more'} computation than {against}"


def _compared(tested: Tested, baseline: Mapping[str, Any], ends: tuple[float, float]) -> str:
    """The baseline against the method, whichever is better; only over the same sizes."""
    sweep, method, other = tested.sweep, tested.metrics["method"], baseline["method"]
    if list(baseline["sizes"]) != list(sweep.sizes):
        return f"The baseline, {other}, was tested at other sizes."
    accuracy = baseline["accuracy"]
    mean = sum(accuracy) / len(accuracy)
    points = 100 * (mean - sweep.mean_accuracy)
    told = f"The baseline, {other}, gets {percent(mean)} in the mean: "
    if round(abs(points), 1) == 0:
        told += f"as much as {method}"
    else:
        told += f"{abs(points):.1f} points {'more' if points > 0 else 'less'} than {method}"
        if ends[0] <= mean <= ends[1]:
            told += f", which is within the 95 % interval of {method}"
    if baseline.get("macs") and baseline["macs"] != list(sweep.macs):
        cost = sum(baseline["macs"]) / len(accuracy) / sweep.mean_macs - 1
        if round(abs(100 * cost), 1):
            told += f"; it takes {100 * abs(cost):.1f} % {'more' if cost > 0 else 'less'}"
            told += " computation, in the mean over these sizes"
    return f"{told}."


def accuracy_alt(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the picture of accuracy against size shows."""
    lines = []
    for name, of in by_model(rows).items():
        points = [f"{percent(r['accuracy'])} at {r['size']}" for r in _some(of)]
        lines.append(f"{name}: {', '.join(points)}")
    return f"Accuracy against input size in pixels. {'; '.join(lines)}."


def cost_alt(rows: Sequence[Mapping[str, Any]]) -> str:
    """What the picture of accuracy against cost shows, from `cost_rows`."""
    means = [row for row in rows if row["size"] == "mean"]
    lines = [
        f"{row['model']}: {percent(row['accuracy'])} at {millions(row['macs'])} million"
        for row in means
    ]
    return f"Accuracy against multiply-accumulates of an image, in the mean. {'; '.join(lines)}."


def routing_alt(tested: Tested) -> str:
    """What the histogram of native sizes shows."""
    counts = [f"subnet {scale} takes {n:,} images" for scale, n in tested.routed.counts.items()]
    return f"Images by native size and by the subnet that takes them: {', '.join(counts)}."


def training_alt(rows: Sequence[Mapping[str, Any]], kind: str) -> str:
    """What a training curve shows: where each line begins and ends."""
    told = []
    for name in (key for key in rows[0] if key != "epoch"):
        values = [row[name] for row in rows if row[name] is not None]
        told.append(f"{name.replace('_', ' ')} from {values[0]:.3g} to {values[-1]:.3g}")
    return f"{kind} over {len(rows)} epochs: {', '.join(told)}.".capitalize()


def _some(rows: Sequence[Any]) -> list[Any]:
    """At most `MOST_POINTS` of `rows`, evenly spread, with both ends."""
    if len(rows) <= MOST_POINTS:
        return list(rows)
    step = (len(rows) - 1) / (MOST_POINTS - 1)
    return [rows[round(i * step)] for i in range(MOST_POINTS)]
