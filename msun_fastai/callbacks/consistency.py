"""The scale-invariance term in the training loop."""

from __future__ import annotations

from fastai.callback.core import Callback

from msun_fastai.callbacks.views import MultiScaleViews
from msun_fastai.errors import UserError
from msun_fastai.losses import DISTANCES, floored, si_loss
from msun_fastai.scales import check_choice


class ScaleInvariance(Callback):
    """Add weight * max(L_SI, floor) to the loss that is backpropagated (Eq. 7 and 8).

    The displayed loss stays the cross-entropy; the term is logged as `si`, before the floor and
    the weight. A batch with one view has nothing to compare and adds nothing. The paper has no
    weight (1 here) and gives no value for its floor lambda (0 here).
    """

    order = MultiScaleViews.order + 1  # after the cross-entropies are summed, before the rescaling
    run_valid = False

    def __init__(self, weight: float = 1.0, floor: float = 0.0, distance: str = "mse"):
        if weight < 0 or floor < 0:
            raise UserError(f"si: weight {weight} and floor {floor} must not be negative")
        self.weight, self.floor = weight, floor
        self.distance = check_choice("distance", distance, DISTANCES)

    def after_loss(self) -> None:
        si = si_loss(self.view_features, self.distance)
        self.learn.terms["si"] = si.detach()
        if len(self.view_features) > 1:
            self.learn.loss_grad = self.loss_grad + self.weight * floored(si, self.floor)
