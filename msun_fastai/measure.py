"""What a trained Learner's figures are: the numbers of a run folder's `metrics.json`."""

from __future__ import annotations

from typing import Any

from fastai.learner import Learner

from msun_fastai.data.bad import BadImage
from msun_fastai.data.scan import PARTS, Scan
from msun_fastai.evaluate import accuracy_by_size, test_sizes
from msun_fastai.learner import saved_model
from msun_fastai.recipe import Recipe


def measure(
    recipe: Recipe, found: Scan, learn: Learner, seconds: float
) -> tuple[dict[str, Any], list[BadImage]]:
    """What `metrics.json` holds (its keys are documented in `docs/run-folder.md`), and all images
    that could not be read, header or pixels."""
    saved, source = saved_model(learn), found.source
    scales = saved.model.entry_scales
    dl = learn.dls.valid
    if getattr(dl, "world", 1) > 1:  # this process measures alone
        dl = dl.new(rank=0, world=1)
    if source.test:
        skipping = {"on_bad_image": recipe.data.on_bad_image}
        dl = learn.dls.test_dl(source.test, with_labels=True, **skipping)
    with learn.no_logging():
        routed = learn.validate(dl=dl)[1]
    counts = dl.scale_counts()
    by_size = accuracy_by_size(
        saved,
        source.measured,
        test_sizes(recipe.model.scales),
        recipe.train.bs,
        recipe.data.workers,
    )
    measured = "test" if source.test else "valid"
    unread = {"train": learn.dls.train.bad, "valid": learn.dls.valid.bad}
    reasons = {part: images.reasons() for part, images in unread.items()}
    bad_counts = {part: found.count(part) + len(unread.get(part, ())) for part in PARTS}
    reasons[measured] = by_size.pop("unreadable")
    bad_counts[measured] = found.count(measured) + len(reasons[measured])
    bad = [*found.bad, *(BadImage(part, reason) for part in reasons for reason in reasons[part])]
    counted = {part: len(getattr(source, part)) + found.count(part) for part in PARTS}
    metrics = {
        "data": source.name,
        "arch": recipe.model.arch,
        "method": recipe.model.method,
        "scales": list(scales),
        "classes": len(source.classes),
        **{f"{part}_images": n for part, n in counted.items()},
        "measured_images": counted[measured] - bad_counts[measured],
        "bad_images": bad_counts,
        "params": sum(p.numel() for p in saved.model.parameters()),
        "train_seconds": round(seconds, 1),
        "native_accuracy": round(routed, 6),
        "routing": {str(s): counts[s] for s in scales},
        **by_size,
    }
    return metrics, bad
