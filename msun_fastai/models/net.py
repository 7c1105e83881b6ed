"""`MultiScaleNet`: the one body of all methods."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msun_fastai.errors import UserError
from msun_fastai.models.backbones import cut_backbone
from msun_fastai.models.families import find_family
from msun_fastai.models.meta import grid_of, run_on_meta, runs_at, smallest_side
from msun_fastai.models.methods import ALIGNMENTS, find_method
from msun_fastai.models.sharing import NORMS, has_batch_norm, private_copies
from msun_fastai.models.subnets import Align, make_subnets
from msun_fastai.scales import (
    DEFAULT_SCALES,
    check_choice,
    check_routing,
    check_scales,
    route,
    thresholds,
)
from msun_fastai.views import resize_batch


@dataclass(frozen=True)
class NetConfig:
    """All that is needed to build the network again: what a saved model's JSON holds.

    scales: sides in pixels, ascending, the last canonical. blocks: k of Bk, how many blocks each
    subnet has after its stem. alignment: the grid on which g runs, `canonical` (the paper, and
    msun's default) or `native` (each subnet's own, and snet's default). grids: sides of the
    subnets' grids, one per scale; by default as large as they get without exceeding the canonical
    one. norm: the batch norm in g, `shared` (the paper) or `per_scale`. routing: which scale an
    image of another size goes to, see `scales.thresholds`.
    """

    arch: str
    n_classes: int
    scales: tuple[int, ...] = DEFAULT_SCALES
    method: str = "msun"
    blocks: int = 1
    alignment: str | None = None
    grids: tuple[int, ...] | None = None
    norm: str = "shared"
    routing: str = "nearest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", check_scales(self.scales))
        method, family = find_method(self.method), find_family(self.arch)
        if self.alignment is None:
            object.__setattr__(self, "alignment", method.alignment)
        check_choice("alignment", str(self.alignment), ALIGNMENTS)
        check_choice("norm", self.norm, NORMS)
        self._check_routing(method.entries(self.scales))
        for key in ("n_classes", "blocks"):
            if not isinstance(getattr(self, key), int):
                raise UserError(f"{key}: {getattr(self, key)!r} is not a whole number")
        if method.private_shallow and not family.subnets:
            raise UserError(
                f"arch: {self.arch} bears no subnets for smaller scales; "
                "it takes the methods vanilla and mst"
            )
        if not method.private_shallow and self.alignment != method.alignment:
            raise UserError(f"alignment: {self.method} has no subnets whose grids could differ")
        several = method.private_shallow and len(self.scales) > 1
        shared = several and not method.private_deep
        if self.norm == "per_scale" and not shared:
            raise UserError(
                f"norm: {self.method} shares no batch norm between scales here; leave it shared"
            )
        if self.grids is not None:
            self._check_grids(method.private_shallow)

    def _check_routing(self, entries: Sequence[int]) -> None:
        if check_routing(self.routing).startswith("calibrated") and len(entries) == 1:
            raise UserError(f"routing: {self.method} has one scale; there is nothing to route")
        thresholds(tuple(entries), self.routing)  # as many as there have to be

    def _check_grids(self, has_subnets: bool) -> None:
        if not has_subnets:
            raise UserError(
                f"grids: {self.method} has no subnets for smaller scales; leave them out"
            )
        grids = tuple(self.grids or ())
        if not all(type(grid) is int and grid > 0 for grid in grids):
            raise UserError(f"grids: {list(grids)}: a grid is a whole number of positions")
        if len(grids) != len(self.scales):
            raise UserError(f"grids: {len(grids)} given for {len(self.scales)} scales")
        object.__setattr__(self, "grids", grids)

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


class MultiScaleOutput(NamedTuple):
    """What the network gives for several views, one element per view in the views' order.

    logits: (n, classes) each. features: (n, c, h_i, w_i) each, the subnets' outputs on the grid
    where g takes them (Eq. 7 compares them).
    """

    logits: list[Tensor]
    features: list[Tensor]


class MultiScaleNet(nn.Module):
    """Subnets f_i for the scales, one unified network g = head(deep(.)) for all of them (Eq. 4).

    `network` is the plain backbone, pretrained or not, whose modules this one takes over.
    `entry_scales` are the sides at which it takes images: one for methods without subnets.
    `subnets`, `deep` and `head` hold one module for all scales or one for each, as the method says.
    """

    def __init__(self, config: NetConfig, network: nn.Module):
        super().__init__()
        method = find_method(config.method)
        cut = cut_backbone(network, find_family(config.arch), config.blocks)
        self.config = config
        self.entry_scales = method.entries(config.scales)
        check_runs(config.arch, nn.Sequential(*cut[:3]), self.entry_scales[-1])
        if config.norm == "per_scale" and not has_batch_norm(nn.Sequential(cut.deep, cut.head)):
            raise UserError(
                f"norm: {config.arch} has no batch norm in its deep layers to make private"
            )
        self.subnets = make_subnets(cut.shallow, cut.reducers, self.entry_scales, config.grids)
        count = len(self.entry_scales)
        self.deep = private_copies(cut.deep, count, config.norm, method.private_deep)
        self.head = private_copies(cut.head, count, config.norm, method.private_deep)
        own = [grid_of(f, s) for f, s in zip(self.subnets, self.entry_scales)]
        canonical = config.alignment == "canonical"
        self.grids = [own[-1] if canonical else grid for grid in own]
        self.align = nn.ModuleList(Align(grid) for grid in self.grids)
        for i, scale in enumerate(self.entry_scales):
            key = "scales" if config.grids is None else "grids"
            check_runs(config.arch, self.at_scale(i), scale, key)

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
        return MultiScaleOutput(self._unified(features, entries), features)

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
        return self.align[i](self.subnets[i](view))

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
        and CKA work on it.
        """
        parts = OrderedDict(
            subnet=self.subnets[i],
            align=self.align[i],
            deep=_of_scale(self.deep, i),
            head=_of_scale(self.head, i),
        )
        return nn.Sequential(parts)


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

    Subnets, deep layers, head: fastai's `freeze` leaves the head alone trainable.
    """
    return [list(part.parameters()) for part in (model.subnets, model.deep, model.head)]
