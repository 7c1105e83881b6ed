"""What a Learner does at every size: `learn.sweep()`, `learn.routing()`, and pictures of it in the
manner of fastai's `ClassificationInterpretation`. Sizes are sides in pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from fastai.learner import Learner
from fastcore.basics import patch

from msun_fastai import evaluate, figures
from msun_fastai.analysis import plots
from msun_fastai.analysis.layer_cka import LayerCKA, layer_cka
from msun_fastai.analysis.pca import choose_classes
from msun_fastai.analysis.size_cams import GradCam, size_cams
from msun_fastai.analysis.size_pca import SizePCA, size_pca
from msun_fastai.answers import highest
from msun_fastai.data.native_dl import NativeDL
from msun_fastai.data.samples import Sample, take_evenly
from msun_fastai.errors import UserError
from msun_fastai.evaluate import Sweep
from msun_fastai.labelled import find_images
from msun_fastai.learner import saved_model
from msun_fastai.models.saving import SavedModel, load_model_folder
from msun_fastai.routed import Routed, routed_test
from msun_fastai.routing import ask_every_subnet, calibrated_rule, check_budget
from msun_fastai.scales import parse_sizes, sweep_sizes

VALID = 1  # the index of the validation part in `dls`
CKA_IMAGES = 200  # whose features the exact value keeps in memory


def samples_of(dl: Any) -> list[Sample]:
    """The labelled images behind a loader, not opened yet. Raises `UserError` where it has no list
    of them, as a stream's."""
    if not isinstance(dl, NativeDL) or len(getattr(dl.dataset, "tls", ())) < 2:
        raise UserError("this loader has no list of labelled images; name another with dl=")
    vocab, labels = [str(c) for c in dl.vocab], dl.dataset.tls[1]
    return [Sample(dl.image_source(i), vocab[int(labels[i])]) for i in range(len(dl.dataset))]


@patch
def sweep(
    self: Learner,
    sizes: Sequence[int] | str | None = None,
    ds_idx: int = VALID,
    dl: Any = None,
    every_subnet: bool = False,
    resize: str = "canonical",
) -> Sweep:
    """Accuracy and cost at every input size, 13 over the scales by default; `evaluate.sweep` has
    the options. The images are those of `dl`, or of the part `ds_idx`, without augmentation."""
    saved, dl = saved_model(self), self.dls[ds_idx] if dl is None else dl
    asked = _sizes(saved, sizes)
    return evaluate.sweep(saved, samples_of(dl), asked, every_subnet, resize, **_options(self, dl))


@patch
def routing(self: Learner, rule: str | None = None, ds_idx: int = VALID, dl: Any = None) -> Routed:
    """Images at their own sizes through the routing: accuracy, images per subnet, cost saved.

    rule: another than the network's own, to see what it would do; `calibrate_routing` and
    `set_routing` change it.
    """
    saved, dl = saved_model(self), self.dls[ds_idx] if dl is None else dl
    every = rule is not None
    found = routed_test(saved, samples_of(dl), every_subnet=every, **_options(self, dl))
    return found if rule is None else found.under(rule)


@patch
def set_routing(self: Learner, rule: str) -> Learner:
    """Route by `rule` from now on, in `predict`, `get_preds`, and what `save_learner` writes.

    Raises `UserError` for a rule that does not fit the network's scales.
    """
    model = saved_model(self).model
    model.config = replace(model.config, routing=rule)
    for dl in self.dls.loaders:
        if isinstance(dl, NativeDL):
            dl.reroute(rule)
    return self


@patch
def calibrate_routing(
    self: Learner, budget: float | None = None, ds_idx: int = VALID, dl: Any = None
) -> str:
    """Learn the routing thresholds of highest accuracy on these images, use them from now on, and
    return the rule; see `calibration.calibrate`.

    budget: the most that the mean cost may be, as a share of the canonical subnet's. Raises
    `UserError`.
    """
    check_budget(budget)
    saved, dl = saved_model(self), self.dls[ds_idx] if dl is None else dl
    asked = ask_every_subnet(saved, samples_of(dl), **_options(self, dl))
    rule = calibrated_rule(asked, budget)
    self.set_routing(rule)
    return rule


def _options(learn: Learner, dl: Any) -> dict[str, Any]:
    return {"bs": dl.bs or learn.dls.bs, "workers": dl.fake_l.num_workers}


def _sizes(saved: SavedModel, sizes: Sequence[int] | str | None) -> tuple[int, ...]:
    """`sizes`, which may be written as on the command line, or 13 over the scales."""
    scales = saved.model.config.scales
    if sizes is None:
        return sweep_sizes(scales[0], scales[-1])
    return parse_sizes(sizes) if isinstance(sizes, str) else tuple(sizes)


class MultiScaleInterpretation:
    """A trained model looked at on labelled images: what it gets right at which size, and why.

    `swept` and `routed` hold the figures; the `plot_` methods return matplotlib figures, which a
    notebook shows.

    >>> interp = MultiScaleInterpretation.from_learner(learn)         # doctest: +SKIP
    >>> interp.plot_accuracy()                                        # doctest: +SKIP
    """

    def __init__(
        self,
        saved: SavedModel,
        samples: Sequence[Sample],
        sizes: Sequence[int] | str | None = None,
        bs: int = 64,
        workers: int = 0,
    ):
        self.saved, self.samples, self.workers = saved, list(samples), workers
        options: dict[str, Any] = {"bs": bs, "workers": workers}
        asked = _sizes(saved, sizes)
        self.swept = evaluate.sweep(saved, self.samples, asked, every_subnet=True, **options)
        self.routed = routed_test(saved, self.samples, every_subnet=True, **options)

    @classmethod
    def from_learner(
        cls, learn: Learner, ds_idx: int = VALID, dl: Any = None, **options: Any
    ) -> MultiScaleInterpretation:
        """Of the images of `dl`, or of the part `ds_idx`; options are those of the class."""
        dl = learn.dls[ds_idx] if dl is None else dl
        return cls(saved_model(learn), samples_of(dl), **{**_options(learn, dl), **options})

    @classmethod
    def from_run(
        cls,
        run: Path | str,
        dataset: str | None = None,
        data: str | None = None,
        root: str | None = None,
        limit: int | None = None,
        **options: Any,
    ) -> MultiScaleInterpretation:
        """Of a run folder on the images it was measured on, or others; see `find_images`."""
        saved = load_model_folder(run)
        return cls(saved, find_images(run, saved, dataset, data, root, limit).samples, **options)

    @property
    def name(self) -> str:
        """The method, as pictures name it."""
        return self.saved.model.config.method

    def plot_accuracy(self) -> Any:
        """Accuracy against input size, with 95 % intervals (Figure 4)."""
        return figures.plot_accuracy({self.name: self.swept})

    def plot_cost(self) -> Any:
        """Accuracy against multiply-accumulates, a point an input size."""
        return figures.plot_cost({self.name: self.swept})

    def plot_subnets(self) -> Any:
        """The accuracy of every subnet at every size (Table IV, Figure 5)."""
        return figures.plot_matrix(self.swept)

    def plot_routing(self) -> Any:
        """Native sizes, and which subnet takes them."""
        return figures.plot_routing(self.routed)

    def confusion_matrix(self, size: int | None = None) -> np.ndarray:
        """Counts (classes, classes), a row a true class: at an input size, or at own sizes."""
        n, answers = len(self.saved.classes), self.swept.answers
        found = np.zeros((n, n), dtype=np.int64)
        np.add.at(found, (answers.codes, self._predicted(size)), 1)
        return found

    def plot_confusion_matrix(self, size: int | None = None) -> Any:
        """`confusion_matrix` as a picture; of many classes those that are confused most."""
        codes = self.swept.answers.codes
        return figures.plot_confusion(codes, self._predicted(size), self.saved.classes)

    def most_confused(self, size: int | None = None, n: int = 10) -> list[Any]:
        """The pairs of classes that are confused most, at an input size or at own sizes."""
        codes = self.swept.answers.codes
        return figures.most_confused(codes, self._predicted(size), self.saved.classes, n)

    def top_losses(self, k: int = 9, size: int | None = None) -> list[tuple[int, float]]:
        """The place in `samples` and the cross-entropy of the `k` images with the highest."""
        loss, images = self._loss(size), self.swept.answers.images
        return [(int(images[i]), float(loss[i])) for i in highest(loss, k)]

    def plot_top_losses(self, k: int = 9, size: int | None = None) -> Any:
        """The images of `top_losses` with class, answer and loss. Raises `UserError` below one."""
        places = {int(place): row for row, place in enumerate(self.swept.answers.images)}
        if k < 1:
            raise UserError(f"k: {k} is not a number of images; give at least 1")
        predicted, classes = self._predicted(size), self.saved.classes
        shown = [
            (self.samples[at], classes[predicted[places[at]]], loss)
            for at, loss in self.top_losses(k, size)
        ]
        return figures.plot_images(shown)

    def gradcam(self, k: int = 4, sizes: Sequence[int] | None = None, **options: Any) -> GradCam:
        """Grad-CAM (Eq. 9) of `k` images, spread over the classes, at the scales or at `sizes`."""
        chosen = take_evenly(self.samples, k, seed=42)
        return size_cams(self.saved, chosen, sizes or self.saved.model.config.scales, **options)

    def plot_gradcam(self, k: int = 4, sizes: Sequence[int] | None = None, **options: Any) -> Any:
        """`gradcam` as a picture, sizes side by side (Figure 7)."""
        return plots.plot_gradcam(self.gradcam(k, sizes, **options))

    def cka(self, sizes: Sequence[int] | None = None, **options: Any) -> LayerCKA:
        """CKA of every layer between two sizes (Eq. 1, 2), the smallest and largest scale by
        default, on at most 200 images."""
        scales, samples = self.saved.model.config.scales, take_evenly(self.samples, CKA_IMAGES, 42)
        return layer_cka(self.saved, samples, sizes or (scales[0], scales[-1]), **options)

    def plot_cka(self, sizes: Sequence[int] | None = None, **options: Any) -> Any:
        """`cka` as a picture (Figure 2)."""
        return plots.plot_cka([self.cka(sizes, **options)])

    def pca(
        self,
        classes: Sequence[str] | None = None,
        sizes: Sequence[int] | None = None,
        **options: Any,
    ) -> SizePCA:
        """Features of `classes`, the five with most images by default, at the scales or `sizes` in
        one projection."""
        names = set(choose_classes(self.samples, classes))
        samples = [s for s in self.samples if s.label in names]
        return size_pca(self.saved, samples, sizes or self.saved.model.config.scales, **options)

    def plot_pca(
        self,
        classes: Sequence[str] | None = None,
        sizes: Sequence[int] | None = None,
        **options: Any,
    ) -> Any:
        """`pca` as a picture, a panel a size (Figure 8)."""
        return plots.plot_pca([self.pca(classes, sizes, **options)])

    def _predicted(self, size: int | None) -> np.ndarray:
        return self.routed.cell.predicted if size is None else self._at(size).predicted

    def _loss(self, size: int | None) -> np.ndarray:
        return self.routed.cell.loss if size is None else self._at(size).loss

    def _at(self, size: int) -> Any:
        if size not in self.swept.sizes:
            tested = ", ".join(map(str, self.swept.sizes))
            raise UserError(f"size: {size} was not tested; {tested} were")
        return self.swept.answers.cells[size, self.saved.model.route(size)]
