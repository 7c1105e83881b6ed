"""What a trained Learner's figures are: the numbers of a run folder's `metrics.json`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastai.learner import Learner

from msun_fastai.data.bad import BadImage
from msun_fastai.data.scan import PARTS, Scan
from msun_fastai.evaluate import Sweep, sweep, test_sizes
from msun_fastai.learner import saved_model
from msun_fastai.recipe import Recipe
from msun_fastai.routed import Routed, routed_test


@dataclass(frozen=True)
class Measured:
    """What was measured at the end of a run.

    metrics: what `metrics.json` holds (its keys are documented in `docs/run-folder.md`). bad: all
    images that could not be read, header or pixels. sweep, routed: at input sizes, and at the
    images' own sizes.
    """

    metrics: dict[str, Any]
    bad: list[BadImage]
    sweep: Sweep
    routed: Routed


def measure(recipe: Recipe, found: Scan, learn: Learner, seconds: float) -> Measured:
    """Test the network of `learn` on the part of the data that figures are reported on."""
    saved, source = saved_model(learn), found.source
    options: dict[str, Any] = {"bs": recipe.train.bs, "workers": recipe.data.workers}
    routed = routed_test(saved, source.measured, on_bad=recipe.data.on_bad_image, **options)
    fitted_to = recipe.calibration.fitted_to
    sizes = {*test_sizes(recipe.model.scales), *fitted_to}
    swept = sweep(saved, source.measured, sorted(sizes), **options)
    measured = "test" if source.test else "valid"
    unread = {"train": learn.dls.train.bad, "valid": learn.dls.valid.bad}
    reasons = {part: images.reasons() for part, images in unread.items()}
    bad_counts = {part: found.count(part) + len(unread.get(part, ())) for part in PARTS}
    reasons[measured] = swept.answers.unreadable
    bad_counts[measured] = found.count(measured) + len(reasons[measured])
    bad = [*found.bad, *(BadImage(part, reason) for part in reasons for reason in reasons[part])]
    counted = {part: len(getattr(source, part)) + found.count(part) for part in PARTS}
    metrics = {
        "data": source.name,
        "arch": recipe.model.arch,
        "method": recipe.model.method,
        "scales": list(swept.scales),
        **({"calibrated": recipe.model.start} if fitted_to else {}),
        "classes": len(source.classes),
        **{f"{part}_images": n for part, n in counted.items()},
        "measured_images": counted[measured] - bad_counts[measured],
        "bad_images": bad_counts,
        "params": swept.params,
        "train_seconds": round(seconds, 1),
        "native_accuracy": round(routed.accuracy, 6),
        "routing": {str(scale): n for scale, n in routed.counts.items()},
        "sizes": list(swept.sizes),
        "accuracy": swept.accuracy,
        "subnet": list(swept.subnet),
        "macs": list(swept.macs),
        "mean_accuracy": swept.mean_accuracy,
        "mean_macs": swept.mean_macs,
    }
    return Measured(metrics, bad, swept, routed)
