"""Checkpoints of a training: everything that the next step depends on, saved and put back."""

from __future__ import annotations

import random
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from fastai.callback.core import Callback
from fastai.learner import CancelEpochException
from torch import Tensor, nn

from msun_fastai.callbacks.distributed import share_bad
from msun_fastai.callbacks.views import TermLogger
from msun_fastai.checkpoints import CheckpointFolder
from msun_fastai.errors import UserError
from msun_fastai.processes import agree, gathered, is_main, process_rank, world
from msun_fastai.stopping import StopRequest

MINUTE = 60  # seconds


class Checkpoints(Callback):
    """Write a checkpoint after every epoch, every `minutes`, and when somebody asks for the end.

    folder: where to. net: the network, without what trains it. state: what to go on from, as it was
    saved; the fits that were over before it are not done again (`starts_with`). The Learner's other
    callbacks are saved where they have `state_dict` and `load_state_dict`.

    With a state the training goes on as if it had never ended: the same batches, random numbers
    and learning rates, the sums of the epoch's figures included; on the CPU bit by bit. In several
    processes all of them stop and save at the same step, and the first one writes.
    """

    # after all others: what they set up is overwritten, and what they count has been counted
    order = 1_000

    def __init__(
        self,
        folder: CheckpointFolder,
        net: nn.Module,
        minutes: float,
        stop: StopRequest,
        state: dict[str, Any] | None = None,
    ):
        self.folder, self.net, self.minutes, self.stop = folder, net, minutes, stop
        self.state = state
        self.fit_number = state["fit"] if state else 0
        self.steps = state["steps"] if state else 0  # of all fits
        self.seconds_before = state["seconds"] if state else 0.0
        self.started = self.saved_at = time.monotonic()
        self.skipped = 0  # batches of this epoch that were trained before it went on
        self.done = 0  # batches of this epoch that are trained

    @property
    def starts_with(self) -> int:
        """The number of the fit to go on with; those before it are over."""
        return self.fit_number

    @property
    def seconds(self) -> float:
        """Seconds of training so far, those before it was stopped included."""
        return self.seconds_before + time.monotonic() - self.started

    def before_fit(self) -> None:
        if self.state is None:
            return
        s = self.state
        self.net.load_state_dict(s["model"])
        load_optimizer(self.learn.opt, s["optimizer"])
        if s["scaler"]:
            self.learn.scaler.load_state_dict(s["scaler"])
        self.learn.dls.train.resume_pass(s["train_pass"], s["batch"])
        self.learn.dls.valid.resume_pass(s["valid_pass"], 0)
        self._restore_counts()

    def after_fit(self) -> None:
        if self.state is not None:  # this fit was over already, and drew nothing
            restore_random(self._own(self.state)["random"])
        self.fit_number += 1
        self.state = None

    def epochs(self) -> None:
        """The loop over epochs, from where the training goes on; for `learn._do_fit`.

        The Learner's own starts with the first one. It has to be there before `fit` is called.
        """
        learn = self.learn
        first = self.state["epoch"] if self.state else 0
        for epoch in range(first, learn.n_epoch):
            learn.epoch = epoch
            try:
                learn._with_events(learn._do_epoch, "epoch", CancelEpochException)
            except Exception as error:
                if not self.stop.took_worker(error):
                    raise
                if world() == 1:  # else the others are on their way into the next step
                    self.save(epoch, self.done)
                self.stop.check()

    def before_train(self) -> None:
        self.skipped = self.done = 0
        if self.state is None:
            return
        restore_random(self._own(self.state)["random"])
        if self.state["batch"]:  # the others have just begun their epoch: back to where they were
            self.skipped = self.done = self.state["batch"]
            self._restore_counts()
        self.state = None

    def before_batch(self) -> None:
        if self.training:
            self.learn.iter += self.skipped

    def after_batch(self) -> None:
        if self.training:
            self.steps, self.done = self.steps + 1, self.iter + 1
        elif world() > 1:
            return  # processes need not validate equally many batches: they ask after the epoch
        due = is_main() and time.monotonic() - self.saved_at > self.minutes * MINUTE
        stop, save = agree([self.stop.signal, int(due and self.training)])
        if stop or save:
            # what validation does so far is done again: it changes nothing
            self.save(self.epoch, self.done)
        if stop:
            self.stop.signal = stop
            self.stop.check()

    def after_epoch(self) -> None:
        self.save(self.epoch + 1, 0)
        (self.stop.signal,) = agree([self.stop.signal])
        self.stop.check()

    def save(self, epoch: int, batch: int) -> None:
        """Write the state before batch `batch` of `epoch`. Raises `TrainingError`."""
        if world() > 1:
            share_bad(self.learn.dls.train)
        own = gathered(plain(self._own_state()))
        if is_main():
            self.folder.write(self.steps, {**plain(self._state(epoch, batch)), "own": own})
        agree([0])  # nobody leaves while the first process writes
        self.saved_at = time.monotonic()

    def _own_state(self) -> dict[str, Any]:
        """What each process has of its own; all else is the same in all of them."""
        terms = {cb.name: cb.state_dict() for cb in self._savable() if isinstance(cb, TermLogger)}
        return {"random": random_state(torch.device(self.learn.dls.device)), "terms": terms}

    def _state(self, epoch: int, batch: int) -> dict[str, Any]:
        """The state of the training, as far as it is the same in all processes."""
        learn = self.learn
        recorder = learn.recorder
        scaler = getattr(learn, "scaler", None)
        smooth = recorder.smooth_loss
        return {
            "fit": self.fit_number,
            "epoch": epoch,
            "batch": batch,
            "steps": self.steps,
            "seconds": self.seconds,
            "model": self.net.state_dict(),
            "optimizer": optimizer_state(learn.opt),
            "scaler": scaler.state_dict() if scaler is not None else {},
            "train_pass": learn.dls.train.pass_state(next=batch == 0),
            "valid_pass": learn.dls.valid.pass_state(next=self.training or batch == 0),
            "counts": {"train_iter": learn.train_iter, "pct_train": learn.pct_train},
            "recorder": {
                "count": smooth.count,
                "val": smooth.val,
                "lrs": [float(lr) for lr in recorder.lrs],
                "losses": torch.stack(list(recorder.losses)) if recorder.losses else [],
                "iters": list(recorder.iters),
                "values": [list(row) for row in recorder.values],
            },
            "callbacks": {
                cb.name: cb.state_dict() for cb in self._savable() if not isinstance(cb, TermLogger)
            },
        }

    def _savable(self) -> Iterable[Callback]:
        return (cb for cb in self.learn.cbs if hasattr(type(cb), "load_state_dict"))

    def _restore_counts(self) -> None:
        """The counters, the recorder's and the callbacks' figures, as they were saved."""
        s, learn = self.state, self.learn
        assert s is not None
        recorder, saved = learn.recorder, s["recorder"]
        learn.train_iter, learn.pct_train = s["counts"]["train_iter"], s["counts"]["pct_train"]
        recorder.smooth_loss.count, recorder.smooth_loss.val = saved["count"], saved["val"]
        learn.smooth_loss = recorder.smooth_loss.value if saved["count"] else None
        recorder.lrs, recorder.iters = list(saved["lrs"]), list(saved["iters"])
        recorder.losses = list(saved["losses"])
        recorder.values = [list(row) for row in saved["values"]]
        states = {**s["callbacks"], **self._own(s)["terms"]}
        for cb in self._savable():
            if cb.name in states:
                cb.load_state_dict(states[cb.name])

    def _own(self, state: dict[str, Any]) -> dict[str, Any]:
        """This process's part of a state."""
        return state["own"][process_rank()[0]]


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of Python's, NumPy's and PyTorch's generators, and of a GPU's where `device` is
    one, as plain values and tensors."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    return {
        "python": random.getstate(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random(state: dict[str, Any]) -> None:
    """Put back what `random_state` gave."""
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, words, *rest = state["numpy"]
    np.random.set_state((kind, words.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])  # of the current one, which is this process's


def optimizer_state(opt: Any) -> dict[str, Any]:
    """A fastai optimizer's state as plain values and tensors, and which parameters have gradients.

    fastai steps those that have one, be it zero: a subnet that was in use once goes on moving.
    """
    state = opt.state_dict()
    return {
        "state": list(state["state"]),
        "hypers": list(state["hypers"]),
        "with_grad": [p.grad is not None for p, *_ in opt.all_params()],
    }


def load_optimizer(opt: Any, saved: dict[str, Any]) -> None:
    """Put back what `optimizer_state` gave, on the parameters' devices."""
    params = [p for p, *_ in opt.all_params()]
    if len(params) != len(saved["state"]):
        raise UserError("checkpoint: of another network's optimizer")
    state = [
        {n: v.to(p.device) if isinstance(v, Tensor) else v for n, v in one.items()}
        for p, one in zip(params, saved["state"])
    ]
    hypers = [dict(group) for group in saved["hypers"]]
    opt.load_state_dict({"state": state, "hypers": type(opt.hypers)(hypers)})
    for p, had in zip(params, saved["with_grad"]):
        p.grad = torch.zeros_like(p) if had else None


def plain(value: Any) -> Any:
    """`value` with everything in it as a checkpoint holds it: lists, tuples and dicts of plain
    tensors and of Python's own numbers, not fastai's and NumPy's."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return tuple(map(plain, value))
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, Tensor):
        return value.detach().as_subclass(Tensor)
    return value.item() if isinstance(value, np.generic) else value
