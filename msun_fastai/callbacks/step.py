"""The training step: mixed precision, batches cut smaller when memory runs out, finite losses."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
from fastai.callback.fp16 import MixedPrecision
from fastai.callback.mixup import MixHandler
from fastai.learner import CancelBackwardException, CancelStepException
from torch import Tensor
from torch.amp import GradScaler, autocast

from msun_fastai.devices import DTYPES, PRECISIONS, check_precision, out_of_memory
from msun_fastai.errors import TrainingError
from msun_fastai.scales import check_choice

ADVICE = "try a lower --lr"


class TrainingStep(MixedPrecision):
    """One step of training, in place of the Learner's own.

    precision: `full`, `bf16` or `fp16` (with a scaled loss), on any device that has it; fastai's
    own callback is for CUDA alone.

    Where memory runs out on the way to the gradients, the batch is done again in micro-batches of
    half the size, whose gradients are added up, and so are later batches of that side: the same
    effective batch, but for batch norm, whose statistics are each micro-batch's own. `tell` is
    called with what happened. Not with MixUp, whose weights belong to the batch, and not in several
    processes, which would wait for each other: there it is a `TrainingError`.

    A loss that is not finite is a `TrainingError` that names the step and the scale, before it
    reaches the weights.
    """

    def __init__(self, precision: str = "full", tell: Callable[[str], None] = print):
        self.precision, self.tell = check_choice("precision", precision, PRECISIONS), tell
        self.sizes: dict[int, int] = {}  # images in a micro-batch, by the side of the largest view

    def before_fit(self) -> None:
        self.device = torch.device(self.dls.device)
        check_precision(self.precision, self.device)
        self.learn.scaler = GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.learn._do_one_batch = self.do_one_batch

    def after_fit(self) -> None:
        self.learn.scaler = None
        # the class's own again; gone already where a fit ended in an error before
        self.learn.__dict__.pop("_do_one_batch", None)

    # the forward pass below enters and leaves autocast by itself, once for every micro-batch
    def before_batch(self) -> None: ...
    def after_loss(self) -> None: ...

    def state_dict(self) -> dict[str, Any]:
        """What has to be saved with a checkpoint."""
        return {"sizes": dict(self.sizes)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.sizes = dict(state["sizes"])

    def before_step(self) -> None:
        self.skipped = True
        self.scaler.step(self)  # this callback stands in for the optimizer; see `step`
        if self.skipped:
            raise CancelStepException

    def _autocast(self) -> Any:
        if self.precision == "full":
            return nullcontext()
        return autocast(self.device.type, dtype=DTYPES[self.precision])

    def do_one_batch(self) -> None:
        """Forward, loss and, in training, backward and the optimizer's step."""
        learn = self.learn
        if not learn.training or not len(learn.yb):
            self._forward()
            return
        xb, yb = learn.xb, learn.yb
        side = xb[-1].shape[-1]
        while True:
            size = min(self.sizes.get(side, len(yb[0])), len(yb[0]))
            try:
                self._gradients(xb, yb, size)
                break
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                reason = str(error).splitlines()[0]
            self._shrink(side, size, reason)  # after the error, which holds the step's tensors
        learn._with_events(learn._step, "step", CancelStepException)
        learn.opt.zero_grad()

    def _forward(self) -> None:
        learn = self.learn
        with self._autocast():
            learn.pred = learn.model(*learn.xb)
            learn("after_pred")
            if len(learn.yb):
                learn.loss_grad = learn.loss_func(learn.pred, *learn.yb)
                learn.loss = learn.loss_grad.clone()
            learn("after_loss")
        if learn.training and not torch.isfinite(learn.loss_grad):
            raise TrainingError(self._what_is_not_finite())

    def _gradients(self, xb: tuple[Tensor, ...], yb: tuple[Any, ...], size: int) -> None:
        """The gradients of a batch, in micro-batches of at most `size` images."""
        learn, n = self.learn, len(yb[0])
        losses: list[Tensor] = []
        terms: dict[str, Tensor] = {}
        for at in range(0, n, size):
            part = slice(at, at + size)
            learn.xb, learn.yb = tuple(x[part] for x in xb), tuple(y[part] for y in yb)
            share = len(learn.yb[0]) / n
            self._forward()
            if share < 1:
                learn.loss_grad = learn.loss_grad * share
            losses.append(learn.loss * share)
            for name, value in getattr(learn, "terms", {}).items():
                terms[name] = terms.get(name, 0) + value * share
            learn._with_events(learn._backward, "backward", CancelBackwardException)
        learn.xb, learn.yb = xb, yb
        if len(losses) > 1:
            learn.loss = torch.stack(losses).sum()
            learn.terms.update(terms)

    def _shrink(self, side: int, size: int, reason: str) -> None:
        learn = self.learn
        several = torch.distributed.is_initialized() and torch.distributed.get_world_size() > 1
        if size < 2 or several or any(isinstance(cb, MixHandler) for cb in learn.cbs):
            raise TrainingError(
                f"out of memory with {size} images of {side} pixels in a step ({reason}); give a "
                "smaller --bs"
            )
        learn.pred = learn.loss_grad = learn.loss = None
        learn.view_features, learn.view_logits, learn.ensemble_logits = [], [], None
        learn.opt.zero_grad()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        self.sizes[side] = (size + 1) // 2
        self.tell(
            f"out of memory with {size} images of {side} pixels: from here on "
            f"{self.sizes[side]} at a time, the same batch in several parts"
        )

    def _what_is_not_finite(self) -> str:
        learn = self.learn
        sides = [x.shape[-1] for x in learn.xb]
        views = getattr(learn, "view_losses", [learn.loss_grad.detach()])
        wrong = [str(s) for s, loss in zip(sides, views) if not torch.isfinite(loss)]
        where = f"scale {', '.join(wrong)}" if wrong else "the term that compares the scales"
        return (
            f"the loss is not finite any more: step {learn.train_iter + 1} (epoch "
            f"{learn.epoch + 1}, batch {learn.iter + 1}), {where}; {ADVICE}"
        )
