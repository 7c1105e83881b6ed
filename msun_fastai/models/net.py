"""`MultiScaleNet`: the one body of all methods."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from msun_fastai.errors import UserError
from msun_fastai.models.backbones import find_family, split_backbone
from msun_fastai.models.methods import ALIGNMENTS, find_method
from msun_fastai.models.subnets import Align, grid_of, make_subnets
from msun_fastai.scales import DEFAULT_SCALES, ROUTING, check_choice, check_scales, route
from msun_fastai.views import resize_batch


@dataclass(frozen=True)
class NetConfig:
    """All that is needed to build the network again: what a saved model's JSON holds.

    scales: sides in pixels, ascending, the last canonical. blocks: k of Bk, how many blocks each
    subnet has after its stem. alignment: the grid on which g runs, `canonical` (the paper) or
    `native` (each subnet's own). routing: which scale an image of another size goes to.
    """

    arch: str
    n_classes: int
    scales: tuple[int, ...] = DEFAULT_SCALES
    method: str = "msun"
    blocks: int = 1
    alignment: str = "canonical"
    routing: str = "nearest"

    def __post_init__(self) -> None:
        object.__setattr__(self, "scales", check_scales(self.scales))
        find_family(self.arch)
        find_method(self.method)
        check_choice("alignment", self.alignment, ALIGNMENTS)
        check_choice("routing", self.routing, ROUTING)
        for key in ("n_classes", "blocks"):
            if not isinstance(getattr(self, key), int):
                raise UserError(f"{key}: {getattr(self, key)!r} is not a whole number")

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return {**asdict(self), "scales": list(self.scales)}


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
    """

    def __init__(self, config: NetConfig, network: nn.Module):
        super().__init__()
        family = find_family(config.arch)
        method = find_method(config.method)
        self.config = config
        self.entry_scales = method.entries(config.scales)
        shallow, self.deep, self.head = split_backbone(network, family, config.blocks)
        self.subnets = make_subnets(shallow, family, self.entry_scales)
        own = [grid_of(f, s) for f, s in zip(self.subnets, self.entry_scales)]
        canonical = config.alignment == "canonical"
        self.grids = [own[-1] if canonical else grid for grid in own]
        self.align = nn.ModuleList(Align(grid) for grid in self.grids)

    def forward(self, *views: Tensor) -> Tensor | MultiScaleOutput:
        """One view in evaluation gives logits (n, classes); otherwise a `MultiScaleOutput`.

        Views are (n, 3, side, side), already normalised. A view whose side is a scale enters
        through that scale's subnet; any other is routed by its shorter side (Eq. 6) and resized.
        """
        if not views:
            raise ValueError("MultiScaleNet needs at least one view")
        features = [self.subnet_features(view) for view in views]
        if len(views) == 1 and not self.training:
            return self.classify(features[0])
        return MultiScaleOutput(self._unified(features), features)

    def subnet_features(self, view: Tensor) -> Tensor:
        """f_i of the view's scale, on the grid where g takes it: (n, c, h_i, w_i)."""
        view = view.as_subclass(torch.Tensor)
        scale = self.route(min(view.shape[-2:]))
        i = self.entry_scales.index(scale)
        return self.align[i](self.subnets[i](resize_batch(view, scale)))

    def route(self, size: int) -> int:
        """The scale at which an image whose shorter side is `size` pixels enters."""
        return route(size, self.entry_scales, self.config.routing)

    def classify(self, features: Tensor) -> Tensor:
        """g: logits (n, classes) from features (n, c, h, w)."""
        return self.head(self.deep(features))

    def _unified(self, features: list[Tensor]) -> list[Tensor]:
        """g on the features of every view.

        On one grid they go through as one batch: the shared batch norm then trains on the mixture
        of scales that its running statistics describe later, where view by view each would be
        normalised by itself in training and by the average of all in evaluation.
        """
        if len({f.shape[1:] for f in features}) > 1:
            return [self.classify(f) for f in features]
        sizes = [len(f) for f in features]
        return list(self.classify(torch.cat(features)).split(sizes))

    def at_scale(self, i: int) -> nn.Sequential:
        """The plain network of the scale with index `i`: g(f_i(.)) for images of that side.

        It shares this network's parameters and knows nothing of scales: costs, export, Grad-CAM
        and CKA work on it.
        """
        parts = OrderedDict(
            subnet=self.subnets[i], align=self.align[i], deep=self.deep, head=self.head
        )
        return nn.Sequential(parts)


def param_groups(model: MultiScaleNet) -> list[list[nn.Parameter]]:
    """Parameters from image to answer, for freezing and discriminative learning rates.

    Subnets, deep layers, head: fastai's `freeze` leaves the head alone trainable.
    """
    return [list(part.parameters()) for part in (model.subnets, model.deep, model.head)]
