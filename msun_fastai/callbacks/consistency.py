"""What ties the views of an image together, in the training loop."""

from __future__ import annotations

from fastai.callback.core import Callback

from msun_fastai.callbacks.views import MultiScaleViews
from msun_fastai.errors import UserError
from msun_fastai.losses import DISTANCES, ensemble_loss, floored, sd_loss, si_loss
from msun_fastai.scales import check_choice

AFTER_VIEWS = MultiScaleViews.order + 1  # the cross-entropies are summed, not yet rescaled


class ScaleInvariance(Callback):
    """Add weight * max(L_SI, floor) to the loss that is backpropagated (Eq. 7 and 8).

    The displayed loss stays the cross-entropy; the term is logged as `si`, before the floor and
    the weight. A batch with one view has nothing to compare and adds nothing. The paper has no
    weight (1 here) and gives no value for its floor lambda (0 here). detach: the larger scale's
    features are constants, see `si_loss`. Raises `UserError` for an unknown distance and for
    numbers below 0.
    """

    order = AFTER_VIEWS
    run_valid = False

    detach = False  # of those that were pickled before it was a choice

    def __init__(
        self,
        weight: float = 1.0,
        floor: float = 0.0,
        distance: str = "mse",
        detach: bool = False,
    ):
        if weight < 0 or floor < 0:
            raise UserError(f"si: weight {weight} and floor {floor} must not be negative")
        self.weight, self.floor = weight, floor
        self.distance = check_choice("distance", distance, DISTANCES)
        self.detach = detach

    def after_loss(self) -> None:
        si = si_loss(self.view_features, self.distance, self.detach)
        self.learn.terms["si"] = si.detach()
        if len(self.view_features) > 1:
            self.learn.loss_grad = self.loss_grad + self.weight * floored(si, self.floor)


class ScaleDistillation(Callback):
    """Add weight * max(L_SD, floor): every larger scale teaches every smaller one (Eq. 3 and 4 of
    SAN, where the weight is beta = 1; the floor is ours). Logged as `sd`. Raises `UserError` for
    numbers below 0."""

    order = AFTER_VIEWS
    run_valid = False

    def __init__(self, weight: float = 1.0, floor: float = 0.0):
        if weight < 0 or floor < 0:
            raise UserError(f"sd: weight {weight} and floor {floor} must not be negative")
        self.weight, self.floor = weight, floor

    def after_loss(self) -> None:
        sd = sd_loss(self.view_logits)
        self.learn.terms["sd"] = sd.detach()
        if len(self.view_logits) > 1:
            self.learn.loss_grad = self.loss_grad + self.weight * floored(sd, self.floor)


class EnsembleDistillation(Callback):
    """Add the ensemble's own cross-entropy, which trains its weights alone, and weight times the
    distillation from it and from every larger scale (RS-Nets), or `floor` where that is larger.

    The network has to have an ensemble (`NetConfig.ensemble`). Logged as `ens`, the distillation,
    and `ens_ce`. Raises `UserError` for numbers below 0.
    """

    order = AFTER_VIEWS
    run_valid = False

    def __init__(self, weight: float = 1.0, floor: float = 0.0):
        if weight < 0 or floor < 0:
            raise UserError(f"ensemble: weight {weight} and floor {floor} must not be negative")
        self.weight, self.floor = weight, floor

    def after_loss(self) -> None:
        if self.ensemble_logits is None:  # of one view
            none = self.loss_grad.detach() * 0
            self.learn.terms.update(ens=none, ens_ce=none)
            return
        own = self.loss_func(self.ensemble_logits, *self.yb)
        ens = ensemble_loss(self.view_logits, self.ensemble_logits)
        self.learn.terms.update(ens=ens.detach(), ens_ce=own.detach())
        self.learn.loss_grad = self.loss_grad + own + self.weight * floored(ens, self.floor)
