"""Multi-scale batching: the views of a training batch, and the sum of their losses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.learner import Metric, Recorder
from torch import Tensor

from msun_fastai.scales import VIEWS, check_choice, view_scales
from msun_fastai.views import draw_side, make_views, rescale_view, resize_batch


class MultiScaleViews(Callback):
    """Give the model one view of the training batch per scale, and sum their losses (Eq. 8).

    scales: those at which the model takes images. views: which of them a batch gives, by its own
    side (see `view_scales`). random_sizes: multi-scale training instead, which reduces the batch
    to `draws` of these sides, drawn for each batch, and brings it up to the canonical scale again.
    ce_weight: what the sum is multiplied by, 1 in all papers (alpha in Eq. 4 of SAN). reduced: the
    share of the views that are reduced first, to one of the `sides` of their scale (see
    `scales.sides_between`) drawn for each batch and view, and brought up to the scale again.

    The views are made on the batch's device. The loss that is backpropagated is the sum over the
    views; the one that is shown is their mean, which compares with the validation loss. Mixed
    images stay mixed the same way in every view, and targets are compared by the Learner's own
    loss function, so MixUp, label smoothing and the like work as they do without views. Raises
    `UserError` for an unknown policy.
    """

    order = MixUp.order + 1  # views of the mixed image; and before GradientAccumulation (6) and
    # MixedPrecision (10) rescale the loss and leave autocast in after_loss
    run_valid = False

    # of those that were pickled before they were choices
    ce_weight, reduced = 1.0, 0.0

    def __init__(
        self,
        scales: Sequence[int],
        views: str = "all",
        random_sizes: Sequence[int] = (),
        draws: int = 1,
        ce_weight: float = 1.0,
        reduced: float = 0.0,
        sides: Sequence[Sequence[int]] = (),
    ):
        self.scales, self.views = tuple(scales), check_choice("views", views, VIEWS)
        self.random_sizes, self.draws = tuple(random_sizes), draws
        self.ce_weight = ce_weight
        self.reduced, self.sides = reduced, dict(zip(self.scales, sides))

    def before_fit(self) -> None:
        self.learn.terms = {}

    def before_batch(self) -> None:
        (x,) = self.xb
        if self.random_sizes:
            drawn = torch.randperm(len(self.random_sizes))[: self.draws].sort().values
            sizes = [self.random_sizes[i] for i in drawn.tolist()]
            self.learn.xb = tuple(rescale_view(x, size, self.scales[-1]) for size in sizes)
        else:
            scales = view_scales(x.shape[-1], self.scales, self.views)
            self.learn.xb = tuple(make_views(x, scales, self._sizes(scales)))

    def _sizes(self, scales: Sequence[int]) -> Sequence[int]:
        """The sides to which views at `scales` are reduced first."""
        if not self.reduced:  # nothing is drawn either
            return scales
        return [draw_side(scale, self.sides[scale], self.reduced) for scale in scales]

    def after_pred(self) -> None:
        self.learn.view_features = self.pred.features
        self.learn.view_logits = self.pred.logits
        self.learn.ensemble_logits = self.pred.ensemble
        self.learn.pred = self.pred.logits[-1]  # the largest view's, as a single-scale model gives

    def after_loss(self) -> None:
        losses = [self.loss_func(logits.float(), *self.yb) for logits in self.view_logits[:-1]]
        losses.append(self.loss_grad)
        # detached: for whoever has to say at which scale something went wrong
        self.learn.view_losses = [loss.detach() for loss in losses]
        total = torch.stack(losses).sum(0)
        self.learn.loss_grad = self.ce_weight * total
        self.learn.loss = total.detach() / len(losses)
        self.learn.terms["ce"] = total.detach()

    def before_backward(self) -> None:
        # they hold the graph of the whole step, and would keep it when the step fails
        self.learn.view_logits, self.learn.view_features = [], []
        self.learn.ensemble_logits = None


class TermLogger(Callback):
    """Log the mean of each term of the loss over the epoch, as columns before the time.

    Terms are what other callbacks leave in `learn.terms` on a training batch.
    """

    order = Recorder.order + 1

    def __init__(self, names: Sequence[str]):
        self.names = tuple(names)

    def before_fit(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count, self.trained = 0, False
        if not hasattr(self.learn, "recorder"):
            return
        names = self.recorder.metric_names
        at = len(names) - int(self.recorder.add_time)
        for name in reversed(self.names):
            names.insert(at, name)

    def before_train(self) -> None:
        self.sums, self.count, self.trained = {}, 0, True

    def after_batch(self) -> None:
        if not self.training or not self.terms:
            return
        self.count += 1
        for name, value in self.terms.items():
            self.sums[name] = self.sums.get(name, 0) + value.float()

    def after_validate(self) -> None:
        # learn.validate() alone has trained nothing to log
        if getattr(self, "trained", False) and hasattr(self.learn, "recorder"):
            means = {name: float(total) / self.count for name, total in self.sums.items()}
            self.recorder.log += [means.get(name) for name in self.names]
        self.trained = False

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved with a checkpoint: the sums of this epoch so far."""
        return {"sums": self.sums, "count": self.count, "trained": self.trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.sums, self.count, self.trained = dict(state["sums"]), state["count"], state["trained"]


class ScaleAccuracy(Metric):
    """Accuracy on all validation images brought to one scale, for a look while training.

    The batches come at their routed scales and are resized from there, so an image that is routed
    to a small scale has lost its detail at the large ones; `evaluate.sweep` resizes the
    image itself. While predictions are gathered nothing is computed: they need no further views.
    """

    def __init__(self, scale: int):
        self.scale = scale
        self.reset()

    def reset(self) -> None:
        self.right, self.count = 0, 0

    def accumulate(self, learn) -> None:
        if learn.training or hasattr(learn, "gather_preds"):
            return
        (x,), (y,) = learn.xb, learn.yb
        if x.shape[-1] == self.scale:
            logits = learn.pred
        else:
            with torch.no_grad():
                logits = learn.model(resize_batch(x.as_subclass(Tensor), self.scale))
        self.right += int((logits.argmax(-1) == y).sum())
        self.count += len(y)

    @property
    def value(self) -> float | None:
        return self.right / self.count if self.count else None

    @property
    def name(self) -> str:
        return f"acc_{self.scale}"
