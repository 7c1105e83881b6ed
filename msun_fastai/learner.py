"""`msun_learner` and `msun_cbs`: a fastai Learner around a multi-scale network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import fastai.callback.schedule
import fastai.vision.learner  # noqa: F401  registers how images, results and top losses are shown
import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.transforms import Normalize, get_c
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fastai.torch_core import TensorImage
from fastcore.foundation import L
from torch import nn
from torchvision.models import WeightsEnum

from msun_fastai.callbacks.consistency import (
    EnsembleDistillation,
    ScaleDistillation,
    ScaleInvariance,
)
from msun_fastai.callbacks.views import MultiScaleViews, ScaleAccuracy, TermLogger
from msun_fastai.data.loaders import NativeImageDataLoaders, with_scales
from msun_fastai.data.native_dl import NativeDL
from msun_fastai.data.samples import Sample, Source
from msun_fastai.errors import UserError
from msun_fastai.models import timm_names
from msun_fastai.models.heads import classifiers, with_classes
from msun_fastai.models.methods import CONSISTENCIES, find_method
from msun_fastai.models.net import MultiScaleNet, NetConfig, param_groups
from msun_fastai.models.saving import (
    Preprocessing,
    SavedModel,
    load_model_folder,
    save_model_folder,
)
from msun_fastai.models.weights import build_net, input_stats
from msun_fastai.scales import VIEWS, check_choice, sweep_sizes

OWN_WEIGHTS = {"si": 0.1}  # of a term that is not told its weight, where it is not 1
PAIR = 2  # views that multi-scale training draws where they are compared


@dataclass(frozen=True)
class Consistency:
    """What ties the views of one image together: see `callbacks.consistency`.

    kind: `si` (features alike), `sd` (larger scales teach smaller ones), `ensemble` (so does the
    mean of all), `none`, or None for the method's own. weight: of that term; by default 1, and of
    `si` 0.1, for more cost accuracy in the study (`benchmarks/RESULTS.md`). floor: the least that
    it counts for. distance: of `si`. ce_weight: of the sum of the cross-entropies. detach: of `si`,
    the larger scale of each pair teaches: its features are constants. Raises `UserError` with
    another kind.
    """

    kind: str | None = None
    weight: float | None = None
    floor: float = 0.0
    distance: str = "mse"
    ce_weight: float = 1.0
    detach: bool = False

    def __post_init__(self) -> None:
        if self.kind is not None:
            check_choice("consistency", self.kind, CONSISTENCIES)
        if self.ce_weight < 0:
            raise UserError(f"consistency: ce_weight {self.ce_weight} must not be negative")
        if self.detach and self.kind not in (None, "si"):
            why = "compares no features" if self.kind == "none" else "has constant teachers already"
            raise UserError(f"consistency: detach is of si; {self.kind} {why}, leave it out")

    def callbacks(self) -> list[Callback]:
        """The callback of this kind, if it has one."""
        own = OWN_WEIGHTS.get(str(self.kind), 1.0)
        numbers = (own if self.weight is None else self.weight, self.floor)
        if self.kind == "si":
            return [ScaleInvariance(*numbers, self.distance, self.detach)]
        if self.kind == "sd":
            return [ScaleDistillation(*numbers)]
        return [EnsembleDistillation(*numbers)] if self.kind == "ensemble" else []


TERMS = {"si": ["si"], "sd": ["sd"], "ensemble": ["ens", "ens_ce"], "none": []}  # that it logs


def msun_cbs(
    config: NetConfig,
    views: str = "all",
    consistency: Consistency | str = Consistency(),
    reduced: float = 0.0,
) -> list[Callback]:
    """The callbacks that train a network of `config`: views, consistency, and their log.

    reduced: the share of the views that are reduced first, see `MultiScaleViews`. Raises
    `UserError`.
    """
    if not 0 <= reduced <= 1:
        raise UserError(f"reduced: {reduced} is not a share, from 0 to 1")
    if isinstance(consistency, str):
        consistency = Consistency(consistency)
    method = find_method(config.method)
    entries = method.entries(config.scales)
    sizes = sweep_sizes(config.scales[0], config.scales[-1]) if method.random_sizes else ()
    kind = method.consistency(consistency.kind, config.scales, views)
    draws = 1 if kind == "none" else PAIR
    sides = method.reductions(config.scales, config.routing) if reduced else ()
    weight = consistency.ce_weight
    batching = MultiScaleViews(entries, views, sizes, draws, weight, reduced, sides)
    term = replace(consistency, kind=kind).callbacks()
    return [batching, *term, TermLogger(["ce", *TERMS[kind]])]


def msun_learner(
    dls: DataLoaders,
    arch: str | Callable[..., Any] = "resnet50",
    *,
    method: str = "msun",
    blocks: int = 1,
    alignment: str | None = None,
    grids: Sequence[int] | None = None,
    norm: str | None = None,
    meta_hidden: int = 0,
    views: str | None = None,
    consistency: Consistency | str = Consistency(),
    reduced: float = 0.0,
    pretrained: bool = True,
    weights: Path | str | WeightsEnum | None = None,
    start: SavedModel | Path | str | None = None,
    n_out: int | None = None,
    scale_metrics: bool = True,
    metrics: Any = None,
    cbs: Any = None,
    splitter: Callable[..., Any] = param_groups,
    **learner_options: Any,
) -> Learner:
    """A fastai Learner on `dls` (from `NativeImageDataLoaders`), pretrained like `vision_learner`.

    arch: a torchvision builder or its name, or a name of timm's. method: `msun`, `snet`, `rsnet`,
    `san`, `mst` or `vanilla`; the scales and the routing are those of `dls`, of which `mst` and
    `vanilla` use the canonical scale alone. blocks, alignment, grids, norm, meta_hidden: see
    `NetConfig`. views: policy `all`, `native` or `down`, that of `dls` by default. consistency:
    `si`, `sd`, `ensemble`, `none`, or a `Consistency` with its numbers; the method's own by
    default. reduced: the share of the training views that are first reduced to a size between the
    scales. weights: a state-dict file, one of torchvision's enum instead of its default, or the run
    folder of a network of one scale with this backbone, whose normalisation comes along, and
    its classifier where the classes are the same. start: a trained model, or the run folder of one,
    whose network is taken with its own backbone, method, scales, routing and normalisation, and a
    new classifier unless the classes are the same; the options of the network are not used then.
    n_out: number of classes, from `dls` by default. scale_metrics: show the accuracy at each scale
    while training. `learner_options` go to `Learner`. A pretrained model comes frozen up to its
    head, as fastai's learners do. Raises `UserError`.
    """
    if not isinstance(dls.train, NativeDL):
        raise UserError(
            "msun_learner: dls hold no images of mixed sizes; make them with NativeImageDataLoaders"
        )
    if isinstance(consistency, str):
        consistency = Consistency(consistency)
    policy = check_choice("views", views or dls.train.views, VIEWS)
    if start is not None:
        saved = start if isinstance(start, SavedModel) else load_model_folder(start)
        old = saved.model.config
        ensemble = has_ensemble(old.method, old.scales, consistency, policy)
        model = with_classes(saved, [str(c) for c in dls.vocab], ensemble)
        config = model.config
        stats = (saved.preprocessing.mean, saved.preprocessing.std)
    else:
        config = NetConfig(
            arch=arch_name(arch),
            n_classes=n_out or get_c(dls),
            scales=dls.train.scales,
            method=method,
            blocks=blocks,
            alignment=alignment,
            grids=None if grids is None else tuple(grids),
            norm=norm,
            routing=dls.train.routing,
            meta_hidden=meta_hidden,
            ensemble=has_ensemble(method, dls.train.scales, consistency, policy),
        )
        model = build_net(config, pretrained, weights, [str(c) for c in dls.vocab])
        stats = input_stats(config.arch, weights)
    entries = model.entry_scales
    views = policy if len(entries) > 1 else "all"
    dls = with_scales(dls, entries, views, routing=config.routing)
    add_normalization(dls, *stats)
    refuse_resizing(dls.valid)
    scale_accuracies = (
        [ScaleAccuracy(s) for s in entries] if scale_metrics and len(entries) > 1 else []
    )
    learn = Learner(
        dls,
        model,
        metrics=[*L(metrics), *scale_accuracies],
        cbs=[*msun_cbs(config, views, consistency, reduced), *L(cbs)],
        splitter=splitter,
        **learner_options,
    )
    if pretrained or weights is not None or start is not None:
        learn.freeze()
    return learn


def has_ensemble(method: str, scales: Sequence[int], consistency: Consistency, views: str) -> bool:
    """Whether what ties the views together needs a network with an ensemble. Raises `UserError`."""
    row = find_method(method)
    several = len(row.entries(scales)) > 1
    return row.consistency(consistency.kind, scales, views if several else "all") == "ensemble"


def arch_name(arch: str | Callable[..., Any]) -> str:
    """The name of a backbone given by name or as torchvision's or timm's builder."""
    if isinstance(arch, str):
        return arch
    name = getattr(arch, "__name__", "")
    if not name.isidentifier():
        raise UserError(
            f"arch: {type(arch).__name__} is no backbone's name; give one, such as 'resnet50', or "
            "torchvision's or timm's function of that name"
        )
    is_timm = getattr(arch, "__module__", "").startswith("timm.")
    return timm_names.tagged_name(name) if is_timm else name


def add_normalization(dls: DataLoaders, mean: list[float], std: list[float]) -> None:
    """Normalise batches by `mean` and `std` per channel, unless `dls` do already."""
    if not any(isinstance(t, Normalize) for t in dls.train.after_batch.fs):
        # made on the CPU and moved to the loaders' device, which may not be fastai's default one
        dls.add_tfms([Normalize.from_stats(mean, std, cuda=False)], "after_batch")
        dls.to(dls.device)


def refuse_resizing(dl: NativeDL) -> None:
    """Raise `UserError` where a batch transform gives images another side than their scale's.

    They would all be routed to one subnet, and prediction from a saved model would not do the same.
    """
    dl.before_iter()  # tells the transforms which part they are in
    side = dl.scales[0]
    batch = dl.after_batch((TensorImage(torch.zeros(1, 3, side, side, device=dl.device)),))
    if tuple(batch[0].shape[-2:]) != (side, side):
        raise UserError(
            f"batch_tfms resize images of the scale {side} to {batch[0].shape[-1]}: the loader "
            "resizes by itself; take the resizing out of batch_tfms"
        )


def probe_groups(model: MultiScaleNet) -> list[list[nn.Parameter]]:
    """A splitter for linear probes: all but the classifiers, and the classifiers (one for each
    head), which alone stay trainable when the Learner is frozen."""
    last = [p for layer in classifiers(model) for p in layer.parameters()]
    inside = {id(p) for p in last}
    return [[p for p in model.parameters() if id(p) not in inside], last]


def prediction_learner(saved: SavedModel) -> Learner:
    """A Learner that answers as the saved model does, for `learn.predict` and `learn.export`.

    It needs no data: its loaders hold a grey square of each class, which `learn.export` leaves out.
    It has none of the callbacks that train several scales; `msun_learner(dls, start=...)` has.
    """
    model, rule = saved.model, saved.preprocessing.resize
    square = np.full((8, 8, 3), 128, np.uint8)
    squares = [Sample(square, label) for label in saved.classes]
    dls = NativeImageDataLoaders.from_source(
        Source("saved model", squares, squares, saved.classes),
        scales=model.entry_scales,
        routing=model.config.routing,
        resize=rule,
        bs=1,
        num_workers=0,
        device=next(model.parameters()).device,
    )
    add_normalization(dls, saved.preprocessing.mean, saved.preprocessing.std)
    return Learner(dls, model, loss_func=CrossEntropyLossFlat(), splitter=param_groups)


def saved_model(learn: Learner) -> SavedModel:
    """The Learner's network with its classes and preprocessing, ready to be saved."""
    norm = next((t for t in learn.dls.train.after_batch.fs if isinstance(t, Normalize)), None)
    stats = {}
    if norm is not None:
        stats = {"mean": norm.mean.flatten().tolist(), "std": norm.std.flatten().tolist()}
    model: MultiScaleNet = getattr(learn.model, "_orig_mod", learn.model)
    return SavedModel(
        model, [str(c) for c in learn.dls.vocab], Preprocessing(learn.dls.valid.resize, **stats)
    )


def save_learner(learn: Learner, folder: Path | str) -> Path:
    """Save the Learner's model to `folder` as safetensors and JSON, for `predict` and sharing."""
    return save_model_folder(folder, saved_model(learn))
