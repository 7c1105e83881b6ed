"""Training in several processes: gradients, batch norm and figures are those of all of them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from fastai.callback.core import Callback
from fastai.learner import AvgLoss, AvgMetric, Metric
from fastai.metrics import AccumMetric
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from msun_fastai.callbacks.consistency import ScaleInvariance
from msun_fastai.callbacks.views import MultiScaleViews, ScaleAccuracy
from msun_fastai.data.passes import PassDL
from msun_fastai.errors import UserError
from msun_fastai.processes import gathered, process_rank, world

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# what is summed over the batches, and so over the processes
SUMS = {
    AvgLoss: ("total", "count"),
    AvgMetric: ("total", "count"),
    ScaleAccuracy: ("right", "count"),
}


class DistributedTraining(Callback):
    """Train with the processes that were joined by `processes.joined_processes`.

    For loaders that are shared out (`rank`, `world`), whose batches are of one scale in all
    processes. Gradients are averaged by torch's `DistributedDataParallel`, in which the model is
    wrapped only while it computes a training batch, so that whatever else looks at `learn.model`
    (saving, validation, an error's handling) finds it bare. A batch's loss is weighted by this
    process's share of it (`PassDL.weight`): the step is that of one process with a batch of
    `world * bs` images.

    On CUDA batch norm takes its statistics from all processes (torch's `SyncBatchNorm`, put in
    for the time of `fit`). On the CPU, for which there is none, each process normalises its own
    images, and the running statistics are the first process's.

    Losses, terms of the loss and metrics are those of all processes once an epoch's part is over;
    before, within an epoch, a process shows its own. Where a loader is shared out every process has
    to validate. Does nothing where no processes are joined. Raises `UserError` for a metric that
    cannot be put together.

    fastai's own `DistributedTrainer` needs accelerate and a GPU, and its loader cuts batches of one
    scale into others.
    """

    # the loss is whole by then, and not yet rescaled by GradientAccumulation (6), MixedPrecision
    # (10); figures are put together before Recorder (50) and TermLogger (51) log them
    order = ScaleInvariance.order + 1

    ddp: DistributedDataParallel | None = None

    def before_fit(self) -> None:
        self._unwrap()
        if world() == 1:
            return
        for dl in self.dls.loaders:
            if isinstance(dl, PassDL) and dl.world not in (1, world()):
                raise UserError(f"loaders for {dl.world} processes where there are {world()}")
        for metric in self.learn.metrics:
            if not isinstance(metric, (*SUMS, AccumMetric)):
                raise UserError(
                    f"metric {metric.name}: {type(metric).__name__} cannot be put together from "
                    "several processes; measure it in one, after the training"
                )
        on_cuda = next(self.model.parameters()).is_cuda
        self.plain = sync_batch_norms(self.model) if on_cuda else []
        if any(p.requires_grad for p in self.model.parameters()):
            self.ddp = DistributedDataParallel(
                self.model,
                device_ids=[torch.cuda.current_device()] if on_cuda else None,
                find_unused_parameters=self._may_leave_unused,
            )

    @property
    def _may_leave_unused(self) -> bool:
        """Whether a batch may have no view for some of the subnets."""
        cbs = [cb for cb in self.learn.cbs if isinstance(cb, MultiScaleViews)]
        return any(len(cb.scales) > 1 and cb.views != "all" for cb in cbs)

    def before_train(self) -> None:
        dl = self.dl
        if world() == 1 or not isinstance(dl, PassDL):
            return
        share_bad(dl)  # for the plan leaves them out
        (version, numbers, gauss), *_ = gathered(dl.rng.getstate())
        dl.rng.setstate((version, numbers, gauss))

    def before_batch(self) -> None:
        if self.training and self.ddp is not None and self.ddp.module is self.learn.model:
            self.learn.model = self.ddp

    def after_pred(self) -> None:
        if self.learn.model is self.ddp:
            self.learn.model = self.ddp.module

    def after_cancel_batch(self) -> None:
        self.after_pred()

    def after_loss(self) -> None:
        weight = getattr(self.dl, "weight", 1.0)
        if self.ddp is None or not self.training or weight == 1:
            return
        self.learn.loss_grad = self.loss_grad * weight
        self.learn.loss = self.learn.loss * weight  # so that the mean over the processes is right
        terms = getattr(self.learn, "terms", {})
        self.learn.terms = {name: value * weight for name, value in terms.items()}

    def after_train(self) -> None:
        if world() == 1:
            return
        share_buffers(self.model)
        if isinstance(self.dl, PassDL):
            share_bad(self.dl, after=True)
        # the training loss is already the mean of all: fastai's AvgSmoothLoss gathers each batch's
        sums = getattr(getattr(self.learn, "term_logger", None), "sums", {})
        sums.update(zip(sums, mean_of_all(list(sums.values()))))

    def after_validate(self) -> None:
        dl = self.dl
        if world() == 1 or getattr(dl, "world", 1) == 1:
            return
        share_bad(dl, after=True)
        loss = getattr(getattr(self.learn, "recorder", None), "loss", None)
        add_up([loss, *self.learn.metrics] if loss else list(self.learn.metrics))

    def after_fit(self) -> None:
        self._unwrap()

    def _unwrap(self) -> None:
        if isinstance(self.learn.model, DistributedDataParallel):  # after an error in the model
            self.learn.model = self.learn.model.module
        for parent, name, norm in getattr(self, "plain", []):
            norm.train(getattr(parent, name).training)
            setattr(parent, name, norm)
        self.plain, self.ddp = [], None


def sync_batch_norms(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Put a `SyncBatchNorm` in the place of every batch norm, with the same weights and statistics.

    One that is frozen stays: fastai's `BnFreeze` would not know it again. Gives where each was (the
    module around it, and its name there) and which, to put them back.
    """
    plain: list[tuple[nn.Module, str, nn.Module]] = []
    for parent in list(model.modules()):
        for name, norm in list(parent.named_children()):
            frozen = not all(p.requires_grad for p in norm.parameters())
            if isinstance(norm, BATCH_NORMS) and not frozen:
                plain.append((parent, name, norm))
                setattr(parent, name, _synchronised(norm))
    return plain


def _synchronised(norm: nn.Module) -> nn.Module:
    if type(norm).__module__.startswith("timm."):  # theirs may have an activation inside
        from timm.layers import convert_sync_batchnorm

        return convert_sync_batchnorm(norm)
    return nn.SyncBatchNorm.convert_sync_batchnorm(norm)


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Let all processes have the first one's batch-norm statistics."""
    if world() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)


def mean_of_all(values: list[Tensor]) -> list[Tensor]:
    """The mean of each number over the processes."""
    if not values:
        return []
    means = torch.stack([v.detach().double().cpu() for v in values])
    dist.all_reduce(means)
    return [m.to(v) for m, v in zip(means / world(), values)]


def add_up(metrics: list[Metric]) -> None:
    """Give each metric what it has counted in all processes."""
    fields = list(_sums(metrics))
    sums = torch.tensor([float(getattr(m, name)) for m, name in fields], dtype=torch.float64)
    dist.all_reduce(sums)
    for (metric, name), value in zip(fields, sums.tolist()):
        setattr(metric, name, value)
    for metric in metrics:
        if isinstance(metric, AccumMetric):
            for name in ("preds", "targs"):
                parts = gathered(getattr(metric, name))
                setattr(metric, name, [x for part in parts for x in part])


def _sums(metrics: list[Metric]) -> Iterator[tuple[Metric, str]]:
    for metric in metrics:
        for kind, names in SUMS.items():
            if isinstance(metric, kind):
                yield from ((metric, name) for name in names)


def share_bad(dl: Any, after: bool = False) -> None:
    """Let every process know which images of a loader the others found bad.

    after: the pass is over, when those of a stream are told too, for they have no index by which
    they could be told twice.
    """
    if dl.bad.n:
        for marks in gathered(dl.bad.marks()):
            for i, reason in marks:
                dl.bad.mark(reason, i)
    elif after:
        me = process_rank()[0]
        for rank, reasons in enumerate(gathered(dl.bad.reasons())):
            for reason in reasons if rank != me else ():
                dl.bad.mark(reason)
