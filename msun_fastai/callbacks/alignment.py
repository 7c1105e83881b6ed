"""A fit without labels before the others: the subnets of the smaller scales learn to answer as the
canonical one does."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.learner import Learner
from torch import Tensor, nn

from msun_fastai.callbacks.consistency import (
    EnsembleDistillation,
    ScaleDistillation,
    ScaleInvariance,
)
from msun_fastai.callbacks.views import MultiScaleViews, TermLogger
from msun_fastai.losses import DISTANCES, alignment_loss
from msun_fastai.models.methods import find_method
from msun_fastai.models.net import MultiScaleNet, MultiScaleOutput
from msun_fastai.scales import check_choice, view_scales
from msun_fastai.views import make_views

# what trains a network by labels
BY_LABELS = (
    *(MultiScaleViews, TermLogger),
    *(ScaleInvariance, ScaleDistillation, EnsembleDistillation),
)


class FeatureNet(nn.Module):
    """`net`, of which the subnets of the smaller scales alone are trained.

    In training it gives the features of views, the canonical view's, a constant, last; all but
    those subnets stays in evaluation mode, so that its batch norms keep their statistics. In
    evaluation it answers as `net` does.
    """

    def __init__(self, net: MultiScaleNet):
        super().__init__()
        self.net = net

    @property
    def smaller(self) -> nn.ModuleList:
        """The subnets that are trained."""
        return self.net.subnets[:-1]

    def train(self, mode: bool = True) -> FeatureNet:
        """Training or evaluation, of the smaller scales' subnets."""
        self.training = mode
        self.net.eval()
        self.smaller.train(mode)
        return self

    def forward(self, *views: Tensor) -> Tensor | MultiScaleOutput | list[Tensor]:
        """Views are (n, 3, side, side), ascending, normalised; features (n, c, h_i, w_i) each."""
        if not self.training:
            return self.net(*views)
        features = [self.net.subnet_features(v, self.net.entry_of(v)) for v in views[:-1]]
        with torch.no_grad():
            features.append(self.net.subnet_features(views[-1], len(self.net.entry_scales) - 1))
        return features


class SubnetAlignment(MultiScaleViews):
    """Give the model the views of a batch that are to be aligned, the canonical one last, and log
    their distance as `align`.

    views: `all`, or `down`: a subnet sees no image that was made larger. The canonical view is made
    whatever the batch's side, as a network of one scale sees every image, and is never reduced.
    """

    def before_batch(self) -> None:
        (x,) = self.xb
        made = view_scales(x.shape[-1], self.scales, self.views)
        smaller = [scale for scale in made if scale != self.scales[-1]]
        scales, sizes = (*smaller, self.scales[-1]), (*self._sizes(smaller), self.scales[-1])
        self.learn.xb = tuple(make_views(x, scales, sizes))

    def after_pred(self) -> None: ...  # they are features, and the loss takes them as they are

    def after_loss(self) -> None:
        self.learn.loss = self.learn.terms["align"] = self.loss_grad.detach()
        self.learn.view_losses = []  # none of them is a scale's own


class AlignmentLogger(TermLogger):
    """The same where there is no cross-entropy: the column of the training loss stays empty."""

    name = "term_logger"  # by which checkpoints and other processes know it

    def after_train(self) -> None:
        self.recorder.log[-1] = None


def _batching(net: MultiScaleNet, by_labels: Iterable[Callback]) -> SubnetAlignment:
    """What makes the views, as what is in its place would: it sees no image made larger either, but
    where all views are made, and reduces as many of them."""
    batching = SubnetAlignment(net.entry_scales)
    for cb in by_labels:
        if isinstance(cb, MultiScaleViews):
            batching.views = "all" if cb.views == "all" else "down"
            batching.reduced, batching.sides = cb.reduced, cb.sides
    return batching


@contextmanager
def aligning(learn: Learner, distance: str = "mse") -> Iterator[None]:
    """Within it `learn.fit...` trains the subnets of the smaller scales alone, without labels.

    The loss is `alignment_loss` with this `distance`. The optimizer is one of its own: its moments
    are not those of another loss, and nothing that stays as it was is decayed or moved on by them.
    Validation is of the whole network, by the Learner's own loss. Whatever is changed is put back.
    Raises `UserError` for a network without such subnets.
    """
    net = learn.model
    find_method(net.config.method).check_aligns(net.entry_scales)
    check_choice("distance", distance, DISTANCES)
    model = FeatureNet(net)
    trained = list(model.smaller.parameters())
    by_labels = [cb for cb in learn.cbs if isinstance(cb, BY_LABELS)]
    usual = learn.loss_func

    def loss(pred: Tensor | list[Tensor], *targets: Any) -> Tensor:
        if isinstance(pred, list):
            return alignment_loss(pred, distance)
        return usual(pred, *targets)

    before = {name: getattr(learn, name) for name in ("model", "opt", "splitter", "loss_func")}
    needed = [(p, p.requires_grad) for p in net.parameters()]
    net.requires_grad_(False)
    model.smaller.requires_grad_(True)
    learn.model, learn.loss_func, learn.splitter = model, loss, lambda _: [trained]
    try:
        learn.create_opt()
        instead = [_batching(net, by_labels), AlignmentLogger(["align"])]
        with learn.removed_cbs(by_labels), learn.added_cbs(instead):
            yield
    finally:
        for name, value in before.items():
            setattr(learn, name, value)
        for p, was in needed:
            p.requires_grad_(was)
        for p in trained:
            p.grad = None  # fastai moves whatever has a gradient, be it zero
