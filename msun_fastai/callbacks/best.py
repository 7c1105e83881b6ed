"""The best weights so far, by validation loss, and the end of a training that gets no better."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fastai.callback.core import Callback, CancelFitException

from msun_fastai.callbacks.console import History


class BestModel(Callback):
    """Call `keep` after every epoch whose validation loss is the lowest so far.

    patience: epochs without a lower one after which the training ends, None for never.
    """

    order = History.order + 1

    def __init__(self, keep: Callable[[], None], patience: int | None = None):
        self.keep, self.patience = keep, patience
        self.best, self.best_epoch, self.waited = float("inf"), -1, 0

    def after_epoch(self) -> None:
        names = list(self.recorder.metric_names)
        loss = float(self.recorder.log[names.index("valid_loss")])
        if loss < self.best:
            self.best, self.best_epoch, self.waited = loss, self.epoch, 0
            self.keep()
        else:
            self.waited += 1

    @property
    def exhausted(self) -> bool:
        """Whether there were as many epochs without a better one as were allowed."""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved with a checkpoint."""
        return {"best": self.best, "best_epoch": self.best_epoch, "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.best, self.best_epoch = state["best"], state["best_epoch"]
        self.waited = state["waited"]


class EarlyStop(Callback):
    """End the training before the next epoch where `best` has waited long enough.

    Before it, and not after the last one, so that a run that goes on from its checkpoint ends too.
    """

    order = BestModel.order + 1

    def __init__(self, best: BestModel, tell: Callable[[str], None] = print):
        self.of, self.tell = best, tell

    def before_epoch(self) -> None:
        if self.of.exhausted:
            self.tell(
                f"no lower validation loss for {self.of.waited} epochs (the lowest was epoch "
                f"{self.of.best_epoch + 1}'s): the training ends here"
            )
            raise CancelFitException
