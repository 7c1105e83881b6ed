"""Routing rules tried on a trained model, and thresholds calibrated for it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from msun_fastai.answers import OWN, Answers, Cell, Told, at_sizes
from msun_fastai.bootstrap import mean_interval
from msun_fastai.calibration import calibrate
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.evaluate import Interval, scale_macs
from msun_fastai.models.saving import SavedModel
from msun_fastai.routed import Routed, by_image, routed_test

FIXED = ("nearest", "up")


@dataclass(frozen=True)
class Gain:
    """How many more of the images a rule gets right than the better fixed one, `than`, as a share
    with its paired 95 % interval; None where the budget leaves neither."""

    rule: str
    than: str | None
    difference: float | None
    interval: Interval | None

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return dict(self.__dict__)


def ask_every_subnet(
    saved: SavedModel,
    samples: Iterable[Sample],
    sizes: Sequence[int] | None = None,
    bs: int = 64,
    workers: int = 0,
    told: Told = bool,
) -> Routed:
    """What every subnet answers to `samples` at their own sizes, so that rules can be tried on it.

    sizes: instead each image brought to every one of these first, and counted once at each. Raises
    `UserError`.
    """
    if sizes is None:
        return routed_test(saved, samples, True, bs, workers, told=told)
    answers = at_sizes(saved, samples, sizes, True, bs=bs, workers=workers, told=told)
    macs = scale_macs(saved.model)
    as_own = _as_own(answers, sizes, tuple(macs))
    return Routed(saved.model.config.routing, macs, as_own, saved.classes)


def _as_own(answers: Answers, sizes: Sequence[int], scales: Sequence[int]) -> Answers:
    """Images at `sizes` as so many images of that native size, one row each."""
    n, cells = len(sizes), {}
    for scale in scales:
        each = [answers.cells[size, scale] for size in sizes]
        joined = (
            np.concatenate([getattr(c, name) for c in each]) for name in ("predicted", "loss")
        )
        cells[OWN, scale] = Cell(*joined)
    return Answers(
        np.tile(answers.images, n),
        np.tile(answers.codes, n),
        np.repeat(np.asarray(sizes), len(answers.codes)),
        cells,
        answers.unreadable,
        answers.seconds,
    )


def calibrated_rule(routed: Routed, budget: float | None = None) -> str:
    """The rule of highest accuracy on the images of `routed`, see `calibration.calibrate`."""
    answers, scales = routed.answers, routed.scales
    right = np.stack([answers.right(OWN, scale) for scale in scales], 1)
    return calibrate(answers.native, right, list(routed.macs.values()), scales, budget)


def rule_rows(routed: Routed, rules: Iterable[str]) -> list[dict[str, Any]]:
    """What each rule does to these images: accuracy with its interval, cost, images per subnet."""
    rows = []
    for rule in dict.fromkeys(rules):
        under = routed.under(rule)
        rows.append(
            {
                "rule": rule,
                "accuracy": under.accuracy,
                "interval": list(under.interval()),
                "mean_macs": under.mean_macs,
                "saving": under.saving,
                "images": {str(scale): n for scale, n in under.counts.items()},
            }
        )
    return rows


def gain(routed: Routed, rule: str, budget: float | None = None) -> Gain:
    """`rule` against the better of the fixed rules whose mean cost is within `budget`."""
    most = np.inf if budget is None else budget * routed.macs[routed.scales[-1]] * (1 + 1e-9)
    fixed = [under for name in FIXED if (under := routed.under(name)).mean_macs <= most]
    if not fixed:
        return Gain(rule, None, None, None)
    best = max(fixed, key=lambda under: under.accuracy)
    apart = routed.under(rule).right.astype(float) - best.right
    low, high = mean_interval(by_image(apart, routed.answers.images)[:, None])
    return Gain(rule, best.rule, float(apart.mean()), (float(low[0]), float(high[0])))


def check_budget(budget: float | None) -> None:
    """Raise `UserError` where `budget` is no share of the canonical cost."""
    if budget is not None and not 0 < budget <= 1:
        raise UserError(f"budget: {budget:g} is not a share of the canonical cost, above 0 to 1")
