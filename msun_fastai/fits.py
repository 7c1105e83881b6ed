"""Fits that take no steps of training: a cached linear probe, and a calibration for test sizes
(FixRes)."""

from __future__ import annotations

import copy
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from msun_fastai.data.bad import refuse_too_many
from msun_fastai.data.multi_view import EverySide, SidesOf, multi_view_batches, refuse_none
from msun_fastai.data.samples import Sample, Source
from msun_fastai.data.stream import StreamSource
from msun_fastai.errors import UserError
from msun_fastai.evaluate import sweep
from msun_fastai.files import write_json
from msun_fastai.models.moments import recalibrate
from msun_fastai.models.net import MultiScaleNet
from msun_fastai.models.saving import SavedModel, load_model_folder
from msun_fastai.models.sharing import has_batch_norm
from msun_fastai.predict import normalize
from msun_fastai.probe import linear_probe
from msun_fastai.processes import world
from msun_fastai.recipe import Recipe

HELD_OUT = 0.2  # of the training images, for a probe to choose its strength on
CALIBRATED = ("bn", "classifier+bn")  # what a calibration fits


@dataclass(frozen=True)
class Fitted:
    """What a fit gave. saved: the network. lines: what a user should be told. unreadable: a reason
    for each training image that could not be read. seconds: of the work."""

    saved: SavedModel
    seconds: float
    lines: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)


def is_fit(recipe: Recipe) -> bool:
    """Whether a run of `recipe` fits something to a network that stays as it is else."""
    cached = recipe.verb == "linear-probe" and recipe.probe.protocol == "cached"
    return cached or recipe.verb == "calibrate"


def fit(
    recipe: Recipe,
    saved: SavedModel,
    source: Source | StreamSource,
    folder: Path,
    check: Callable[[], object] = bool,
) -> Fitted:
    """Do what `recipe` says to the network of `saved`, and write the report of it to `folder`.

    check: called after every batch; it may raise to end it. Raises `UserError`.
    """
    if world() > 1:
        raise UserError(f"{recipe.verb}: is one process's work here; start it without more")
    if isinstance(source, StreamSource):
        another = ", or --protocol sgd" if recipe.verb == "linear-probe" else ""
        raise UserError(
            f"{recipe.verb}: a stream has no part to hold out and no order to draw from; take a "
            f"local copy{another}"
        )
    if recipe.verb == "calibrate":
        return calibrate(recipe, saved, source, folder, check)
    fitted, report = _classifier(recipe, saved, source, folder, check)
    write_json(folder / "probe.json", report)
    return fitted


def _classifier(
    recipe: Recipe, saved: SavedModel, source: Source, folder: Path, check: Callable[[], object]
) -> tuple[Fitted, dict[str, Any]]:
    """A classifier on features that are taken once, in place, and its report."""
    held_out = not source.test
    if held_out:  # else what is there to choose on is the test part itself
        source = source.carved(HELD_OUT, recipe.train.seed)
    saved, report = linear_probe(
        saved,
        source.train,
        source.valid,
        recipe.probe.strengths,
        recipe.train.views,
        recipe.train.bs,
        recipe.data.workers,
        folder,
        recipe.data.on_bad_image,
        recipe.data.max_bad,
        check,
        refit=held_out,
    )
    seconds, chosen_on = report["seconds"], report["images"]["valid"]
    lines = [note for head in report["heads"] for note in head["notes"]]
    part = "held out of the training part" if held_out else "of the validation part"
    lines += [
        f"strength {head['strength']:g}: the best on {chosen_on:,} images {part}"
        for head in report["heads"]
    ]
    lines.append(
        f"features of {report['images']['train']:,} images: {seconds['features']:.1f} s, "
        f"classifier: {seconds['fit']:.1f} s"
    )
    unreadable = [*report["unreadable"]["train"], *report["unreadable"]["valid"]]
    return Fitted(saved, seconds["features"] + seconds["fit"], lines, unreadable), report


def calibrate(
    recipe: Recipe,
    saved: SavedModel,
    source: Source,
    folder: Path,
    check: Callable[[], object] = bool,
) -> Fitted:
    """The network of `saved` for images of one size alone: batch norms with the exact statistics of
    the training images at that size, and, if the recipe says so, a classifier fitted on them; or
    for several sizes, each with batch norms of its own, see `calibrate_sizes`.

    FixRes (Touvron et al. 2019; SAN's Table 7) for a network of one scale; of several scales it is
    that of the nearest, with `san` by the size's own encoding (SAN's ideal inference after
    calibration, Table 2). `saved` is left as it is. `calibration.json` in `folder` has the accuracy
    on the measured images, all brought to the size: of the parent as it answers there, of the
    network kept for the size before its statistics were taken again, and after each step.
    Raises `UserError`.
    """
    options = recipe.calibration
    if options.sizes is not None:
        return calibrate_sizes(recipe, saved, source, folder, check)
    size = _size(recipe)
    bs, workers = recipe.train.bs, recipe.data.workers
    ours = SavedModel(copy.deepcopy(saved.model), saved.classes, saved.preprocessing)
    ours.model.keep_for(size)
    found: dict[str, float] = {}

    def tested(step: str, model: SavedModel) -> None:
        check()
        swept = sweep(model, source.measured, [size], bs=bs, workers=workers)
        found[step] = swept.mean_accuracy

    tested("parent", saved)
    tested("kept", ours)
    lines: list[str] = []
    unreadable: list[str] = []
    started = time.perf_counter()
    if has_batch_norm(ours.model):
        taken, unreadable = fit_statistics(ours, source.train, EverySide((size,)), recipe, check)
        images = taken[size]
        seconds = time.perf_counter() - started
        tested("bn", ours)
        lines.append(f"statistics of {images:,} training images at {size} pixels: {seconds:.1f} s")
    else:
        _check_norms(ours, options.what)
        seconds = 0.0
        lines.append("it has no batch norm: the classifier alone is fitted")
    report: dict[str, Any] = {}
    if options.what != "bn":
        fitted, report = _classifier(recipe, ours, source, folder, check)
        tested(options.what, ours)
        seconds += fitted.seconds
        lines += fitted.lines
        unreadable = unreadable or fitted.unreadable
    words = {
        "parent": f"its parent, which brings them to {saved.model.route(size)}",
        "kept": "run at the size itself",
        "bn": "then with statistics of its own",
        "classifier+bn": "then with a classifier of its own",
    }
    lines.append(f"accuracy on images of {size} pixels:")
    lines += [f"  {100 * share:.1f} % {words[step]}" for step, share in found.items()]
    about = {"parent": recipe.model.start, "size": size, "what": options.what, "accuracy": found}
    write_json(folder / "calibration.json", {**about, "unreadable": unreadable, "probe": report})
    return Fitted(ours, seconds, lines, unreadable)


def calibrate_sizes(
    recipe: Recipe,
    saved: SavedModel,
    source: Source,
    folder: Path,
    check: Callable[[], object] = bool,
) -> Fitted:
    """The network of `saved` with batch norms for every one of several input sizes, with the exact
    statistics of the training images that were brought from that size to its scale.

    How sharp an image is that was brought to a scale depends on the size that it had, and so do the
    statistics of its features; those that training leaves are of its mix. `saved` is left as it is.
    `calibration.json` in `folder` has the accuracy at each size, of the parent and of the fitted
    network. Raises `UserError`.
    """
    options: dict[str, Any] = {"bs": recipe.train.bs, "workers": recipe.data.workers}
    found: dict[str, list[float]] = {}
    started = time.perf_counter()
    wanted = recipe.calibration.sizes or ()
    ours, images, unreadable = fitted_to_sizes(saved, source.train, wanted, recipe, check)
    seconds = time.perf_counter() - started
    sizes = ours.model.entry_scales
    for step, model in (("parent", saved), ("bn", ours)):
        found[step] = sweep(model, source.measured, sizes, **options).accuracy
    none = [str(size) for size in sizes if not images[size]]
    about = {"parent": recipe.model.start, "sizes": list(sizes), "what": "bn", "accuracy": found}
    taken = {str(size): images[size] for size in sizes}
    write_json(folder / "calibration.json", {**about, "images": taken, "unreadable": unreadable})
    before, after = (100 * sum(found[step]) / len(sizes) for step in ("parent", "bn"))
    lines = [
        f"statistics of {max(images.values()):,} training images at {len(sizes)} sizes: "
        f"{seconds:.1f} s",
        *([f"no image is as large as {', '.join(none)}: these keep their scale's"] if none else []),
        f"accuracy, the mean over the sizes: {before:.1f} % its parent, {after:.1f} % then",
    ]
    return Fitted(ours, seconds, lines, unreadable)


def fitted_to_sizes(
    saved: SavedModel,
    samples: Sequence[Sample],
    sizes: Sequence[int],
    recipe: Recipe,
    check: Callable[[], object] = bool,
) -> tuple[SavedModel, Counter[int], list[str]]:
    """A copy of `saved` with batch norms for each of `sizes`, fitted to `samples`; the number of
    images at each size, and a reason for each that could not be read. Raises `UserError`."""
    ours = SavedModel(copy.deepcopy(saved.model), saved.classes, saved.preprocessing)
    ours.model.split_by_size(sizes)
    return ours, *fit_statistics(ours, samples, Reduced(ours.model), recipe, check)


def _check_norms(saved: SavedModel, what: str) -> None:
    if what == "bn" and not has_batch_norm(saved.model):
        raise UserError("calibrate: this network has no batch norm; --what classifier+bn fits more")


def _size(recipe: Recipe) -> int:
    assert recipe.calibration.size is not None  # `check_choices` has seen it
    return recipe.calibration.size


@dataclass(frozen=True)
class Reduced:
    """The entries of a network up to that of the image itself: what it can be reduced to."""

    model: MultiScaleNet

    def __call__(self, native: int) -> tuple[int, ...]:
        own = self.model.route(native)
        return tuple(side for side in self.model.entry_scales if side <= own)


def fit_statistics(
    saved: SavedModel,
    samples: Sequence[Sample],
    sides: SidesOf,
    recipe: Recipe,
    check: Callable[[], object] = bool,
) -> tuple[Counter[int], list[str]]:
    """Exact statistics of `samples` for the batch norms of `saved`, in place, each image at its
    `sides`, which are entries of the network; the number of images at each, and a reason for each
    that could not be read. Raises `UserError`."""
    # a batch of one class alone has statistics of its own: the layers behind would be given others
    samples = random.Random(recipe.train.seed).sample(samples, len(samples))
    unreadable: list[str] = []
    taken: Counter[int] = Counter()

    def batches() -> Iterator[Tensor]:
        rule, bs, workers = saved.preprocessing.resize, recipe.train.bs, recipe.data.workers
        for batch in multi_view_batches(samples, saved.classes, rule, sides, bs, workers):
            if batch.unreadable and recipe.data.on_bad_image == "stop":
                raise UserError(batch.unreadable[0])
            unreadable.extend(batch.unreadable)
            for group in batch.groups:
                taken[group.side] += len(group.images)
                yield normalize(group.views, saved.preprocessing)
            check()
        refuse_none(len(samples) - len(unreadable), unreadable)

    recalibrate(saved.model, batches())  # each view goes to the entry of its own size
    refuse_too_many(unreadable, len(unreadable), len(samples), recipe.data.max_bad)
    return taken, unreadable


def check_parent(recipe: Recipe, classes: Sequence[str]) -> None:
    """Raise `UserError` for a calibration that its parent cannot have: images of other classes, a
    size at which it cannot run, nothing to fit. Before a run folder is made for it."""
    if recipe.verb != "calibrate":
        return
    saved = load_model_folder(str(recipe.model.start))
    known = saved.classes
    if list(classes) != known:
        raise UserError(
            f"calibrate: the images have {len(classes)} classes, such as {classes[0]!r}, and not "
            f"the {len(known)} of {recipe.model.start}, such as {known[0]!r}; fine-tune for these"
        )
    if recipe.calibration.sizes is not None:
        saved.model.split_by_size(recipe.calibration.sizes)
        return
    saved.model.keep_for(_size(recipe))
    _check_norms(saved, recipe.calibration.what)
