"""`MultiScaleNet`: the one body of all methods."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msun_fastai.errors import UserError
from msun_fastai.models.backbones import cut_backbone
from msun_fastai.models.config import MOST_SCALES, NetConfig
from msun_fastai.models.ensemble import Ensemble
from msun_fastai.models.families import find_family
from msun_fastai.models.ideal import ideal_network
from msun_fastai.models.meta import grid_of, run_on_meta, runs_at, smallest_side
from msun_fastai.models.metalearners import GeneratedNetwork, with_learners
from msun_fastai.models.methods import find_method
from msun_fastai.models.sharing import has_batch_norm, own_norms, private_copies
from msun_fastai.models.subnets import Align, make_subnets
from msun_fastai.scales import calibrated, check_scales, route, thresholds
from msun_fastai.views import Resize, resize_batch


class MultiScaleOutput(NamedTuple):
    """What the network gives for several views, one element per view in the views' order.

    logits: (n, classes) each. features: (n, c, h_i, w_i) each, the subnets' outputs on the grid
    where g takes them (Eq. 7 compares them). ensemble: the learnt mean of the logits (n, classes),
    of a network that has one, where there are several views.
    """

    logits: list[Tensor]
    features: list[Tensor]
    ensemble: Tensor | None = None


class MultiScaleNet(nn.Module):
    """Subnets f_i for the scales, one unified network g = head(deep(.)) for all of them (Eq. 4).

    `network` is the plain backbone, pretrained or not, whose modules this one takes over.
    `entry_scales` are the sides at which it takes images: one for methods without subnets.
    `subnets`, `deep` and `head` hold one module for all scales or one for each, as the method says.
    Raises `UserError` where the backbone cannot be that network.
    """

    def __init__(self, config: NetConfig, network: nn.Module):
        super().__init__()
        method = find_method(config.method)
        cut = cut_backbone(network, find_family(config.arch), config.blocks)
        self.config = config
        self.entry_scales = scales = method.entries(config.scales)
        check_runs(config.arch, nn.Sequential(*cut[:3]), scales[-1])
        norm = str(config.norm)
        shared = cut[:3] if method.switched else (cut.deep, cut.head)
        has_norm = has_batch_norm(nn.Sequential(*shared))
        if norm == "per_scale" and not has_norm and not method.generated:
            where = "" if method.switched else " in its deep layers"
            raise UserError(
                f"norm: {config.arch} has no batch norm{where} to make private; norm shared leaves "
                f"{config.method} without"
            )
        body: list[nn.Module] = [cut.shallow, cut.deep]
        if method.generated:
            body = with_learners(body, scales[-1], config.meta_hidden)
        if method.switched:
            self.subnets = private_copies(body[0], scales, norm)
        else:
            self.subnets = make_subnets(cut.shallow, cut.reducers, scales, config.grids)
        self.deep = private_copies(body[1], scales, norm, method.private_deep)
        self.head = private_copies(cut.head, scales, norm, method.private_deep)
        self.ensemble = Ensemble(len(scales)) if config.ensemble else None
        own = [grid_of(_of_scale(self.subnets, i), s) for i, s in enumerate(scales)]
        canonical = config.alignment == "canonical"
        self.grids = [own[-1] if canonical else grid for grid in own]
        self.align = nn.ModuleList(Align(grid) for grid in self.grids)
        self._generated: dict[int, GeneratedNetwork] = {}
        for i, scale in enumerate(scales):
            key = "scales" if config.grids is None else "grids"
            parts = self.scale_parts(i)
            if method.switched:  # no alignment then, which would give any image its grid
                del parts.align
            check_runs(config.arch, parts, scale, key)
        if config.test_size is not None:
            self.keep_for(config.test_size)
        if config.test_sizes is not None and config.test_scales is not None:
            self._split(config.test_sizes, config.test_scales)

    def forward(self, *views: Tensor) -> Tensor | MultiScaleOutput:
        """One view in evaluation gives logits (n, classes); otherwise a `MultiScaleOutput`.

        Views are (n, 3, side, side), already normalised. A view whose side is a scale enters
        through that scale's subnet; any other is routed by its shorter side (Eq. 6) and resized.
        """
        if not views:
            raise ValueError("MultiScaleNet needs at least one view")
        entries = [self.entry_of(view) for view in views]
        features = [self.subnet_features(view, i) for view, i in zip(views, entries)]
        if len(views) == 1 and not self.training:
            return self.classify(features[0], entries[0])
        logits = self._unified(features, entries)
        if self.ensemble is None or len(views) == 1:
            return MultiScaleOutput(logits, features)
        return MultiScaleOutput(logits, features, self.ensemble(logits, entries))

    def entry_of(self, view: Tensor) -> int:
        """The index of the scale at which a view (n, 3, h, w) enters: its own where it has the side
        of one, for then it was routed before it was resized; learnt thresholds could send that side
        elsewhere."""
        side = min(view.shape[-2:])
        scales = self.entry_scales
        return scales.index(side if side in scales else self.route(side))

    def subnet_features(self, view: Tensor, i: int) -> Tensor:
        """f_i of a view, on the grid where g takes it: (n, c, h_i, w_i)."""
        view = resize_batch(view.as_subclass(torch.Tensor), self.entry_scales[i])
        return self.align[i](_of_scale(self.subnets, i)(view))

    def route(self, size: int) -> int:
        """The scale at which an image whose shorter side is `size` pixels enters."""
        return route(size, self.entry_scales, self.config.routing)

    def classify(self, features: Tensor, i: int) -> Tensor:
        """g for the scale with index `i`: logits (n, classes) from features (n, c, h, w)."""
        return _of_scale(self.head, i)(_of_scale(self.deep, i)(features))

    def _unified(self, features: list[Tensor], entries: Sequence[int]) -> list[Tensor]:
        """g on the features of every view.

        Where all is shared and on one grid they go through as one batch: the shared batch norm then
        trains on the mixture of scales that its running statistics describe later, where view by
        view each would be normalised by itself in training and by the average of all in evaluation.
        """
        shared = len(self.deep) == len(self.head) == 1
        if not shared or len({f.shape[1:] for f in features}) > 1:
            return [self.classify(f, i) for f, i in zip(features, entries)]
        sizes = [len(f) for f in features]
        return list(self.classify(torch.cat(features), 0).split(sizes))

    def at_scale(self, i: int) -> nn.Sequential:
        """The plain network of the scale with index `i`: g(f_i(.)) for images of that side.

        It shares this network's parameters and knows nothing of scales: costs, export, Grad-CAM
        and CKA work on it. Generated kernels (san) are constants in it, made once in evaluation;
        it is the same object every time until the network is trained again.
        """
        if not find_method(self.config.method).generated:
            return self.scale_parts(i)
        if i not in self._generated:
            self._generated[i] = GeneratedNetwork(self.scale_parts(i))
        return self._generated[i].up_to_date()

    def scale_parts(self, i: int) -> nn.Sequential:
        """What a view of the scale with index `i` goes through, meta learners and all."""
        parts = OrderedDict(
            subnet=_of_scale(self.subnets, i),
            align=self.align[i],
            deep=_of_scale(self.deep, i),
            head=_of_scale(self.head, i),
        )
        return nn.Sequential(parts)

    def keep_for(self, size: int) -> None:
        """Become the network for images of `size` alone, to be fitted to it after training (FixRes;
        SAN's ideal inference).

        Of everything that is private the part of the scale nearest to it is kept, and made its
        own; generated kernels (san) become constants, by the encoding of `size`. Raises
        `UserError`.
        """
        network = ideal_network(self, size, interpolate=False)
        parts = dict(network.named_children())
        check_runs(self.config.arch, network, size, "size")
        self.config = replace(self.config, test_size=size, routing="nearest", ensemble=False)
        self.entry_scales = self.config.entries
        self.subnets = nn.ModuleList([parts["subnet"]])
        self.align = nn.ModuleList([parts.get("align", nn.Identity())])
        self.deep, self.head = nn.ModuleList([parts["deep"]]), nn.ModuleList([parts["head"]])
        self.ensemble = None
        self.grids = [grid_of(nn.Sequential(self.subnets[0], self.align[0]), size)]
        self._generated.clear()
        self.train(self.training)

    def split_by_size(self, sizes: Sequence[int]) -> None:
        """Give images of each of `sizes` batch norms of their own, to be fitted after training.

        What an image brought to a scale looks like depends on the size that it had: a size's batch
        norms are copies of those of the scale that the routing gives to it, and all else is that
        scale's. An image then goes to the nearest of the sizes that the routing gives to the same
        scale as itself, is brought to it, and from there to the scale. Raises `UserError`, for
        sizes, too, of which the largest is below the canonical scale: larger images would lose what
        is above it.
        """
        if self.config.test_size is not None or self.config.test_sizes is not None:
            raise UserError("sizes: the network is fitted to sizes already; take its parent")
        sizes, canonical = check_scales(sizes, "sizes"), self.entry_scales[-1]
        if len(sizes) > MOST_SCALES:
            raise UserError(f"sizes: {len(sizes)}, {MOST_SCALES} at most; take larger steps")
        if sizes[-1] < canonical:
            raise UserError(
                f"sizes: {sizes[-1]} is the largest; larger images would be reduced to it; end "
                f"with {canonical} or more"
            )
        fitted = replace(
            self.config,
            test_sizes=sizes,
            test_scales=tuple(self.route(size) for size in sizes),
            routing=self._routing_between(sizes),
            ensemble=False,
        )
        self._split(sizes, fitted.test_scales or ())
        self.config = fitted

    def _routing_between(self, sizes: Sequence[int]) -> str:
        """The rule that sends an image to the nearest of `sizes` at the scale that takes it."""
        if len(sizes) == 1:
            return "nearest"
        edges = thresholds(self.entry_scales, self.config.routing)
        found = []
        for below, above in pairwise(sizes):
            scale = self.route(below)
            same = self.route(above) == scale
            edge = (below + above) / 2 if same else edges[self.entry_scales.index(scale)]
            found.append(math.floor(edge))
        return calibrated(found)

    def _split(self, sizes: Sequence[int], scales: Sequence[int]) -> None:
        indices = [self.entry_scales.index(scale) for scale in scales]
        parts = [dict(own_norms(self.scale_parts(i)).named_children()) for i in indices]
        if not has_batch_norm(nn.ModuleList(parts[0].values())):
            raise UserError(f"sizes: {self.config.arch} has no batch norm with statistics")
        for size, scale, part in zip(sizes, scales, parts):
            if size != scale:
                part["subnet"] = nn.Sequential(Resize(scale), part["subnet"])
        self.entry_scales = tuple(sizes)
        self.subnets, self.deep, self.head = (
            nn.ModuleList(part[name] for part in parts) for name in ("subnet", "deep", "head")
        )
        self.grids = [self.grids[i] for i in indices]
        self.align = nn.ModuleList(Align(grid) for grid in self.grids)
        self.ensemble = None
        self._generated.clear()
        self.train(self.training)

    def train(self, mode: bool = True) -> MultiScaleNet:
        """Training or evaluation; generated kernels take no memory while it trains."""
        if mode or self.training:
            self._generated.clear()
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_generated": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_generated", {})  # what was pickled before has neither
        if "ensemble" not in self._modules:
            self.__dict__.setdefault("ensemble", None)


def _of_scale(parts: nn.ModuleList, i: int) -> nn.Module:
    return parts[i] if len(parts) > 1 else parts[0]


def check_runs(arch: str, network: nn.Module, side: int, key: str = "scales") -> None:
    """Raise `UserError` where `network` cannot take images of `side`, with the side it needs.

    key: what the user has to change, as the error says it.
    """
    try:
        run_on_meta(network, side)
    except RuntimeError as error:
        least = next((s for s in (2 * side, 512) if runs_at(network, s)), None)
        why = f"the smallest it takes is {smallest_side(network, least)}" if least else str(error)
        raise UserError(f"{key}: {arch} cannot run at {side} pixels: {why}") from error


def param_groups(model: MultiScaleNet) -> list[list[nn.Parameter]]:
    """Parameters from image to answer, for freezing and discriminative learning rates.

    Subnets, deep layers, head: fastai's `freeze` leaves the head alone trainable, and the
    ensemble's weights with it.
    """
    ensemble = [] if model.ensemble is None else list(model.ensemble.parameters())
    body = [list(part.parameters()) for part in (model.subnets, model.deep)]
    return [*body, [*model.head.parameters(), *ensemble]]
