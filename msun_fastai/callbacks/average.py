"""A running average of the weights, which is what is validated and kept."""

from __future__ import annotations

from typing import Any

from fastai.callback.core import Callback
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from msun_fastai.callbacks.distributed import share_buffers
from msun_fastai.callbacks.step import TrainingStep


class WeightAverage(Callback):
    """After every step, average <- decay * average + (1 - decay) * weights.

    Batch-norm statistics are averaged with them. Validation is of the average, and after the
    training the network has it.
    """

    order = TrainingStep.order + 5  # after the processes' callback has put the bare network there

    def __init__(self, decay: float):
        self.decay = decay
        self.average: AveragedModel | None = None
        self.trained: nn.Module | None = None

    def before_fit(self) -> None:
        if self.average is None:
            self.average = AveragedModel(
                self.learn.model,
                multi_avg_fn=get_ema_multi_avg_fn(self.decay),
                use_buffers=True,
            )

    @property
    def network(self) -> nn.Module:
        """The network that has the average; only while something is fitted."""
        assert self.average is not None
        return self.average.module

    def after_step(self) -> None:
        assert self.average is not None
        self.average.update_parameters(self.learn.model)

    def before_validate(self) -> None:
        if self.average is not None:  # else somebody validates outside of a fit
            self.trained, self.learn.model = self.learn.model, self.network
            self.learn.model.eval()
            share_buffers(self.learn.model)  # each process has averaged its own

    def after_validate(self) -> None:
        if self.trained is not None:
            self.learn.model = self.trained
        self.trained = None

    def after_fit(self) -> None:
        self.learn.model.load_state_dict(self.network.state_dict())
        self.average = None

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved with a checkpoint."""
        return self.average.state_dict() if self.average is not None else {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        if state and self.average is not None:
            self.average.load_state_dict(state)
