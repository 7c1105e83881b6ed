"""How a Learner is trained as a recipe says: its fits, its callbacks, and where it goes on."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import fastai.callback.schedule  # noqa: F401  gives learners fit_one_cycle
from fastai.callback.channelslast import ChannelsLast
from fastai.callback.core import Callback
from fastai.callback.schedule import ParamScheduler
from fastai.callback.training import BnFreeze, GradientClip
from fastai.learner import Learner
from rich.console import Console

from msun_fastai.callbacks.alignment import aligning
from msun_fastai.callbacks.average import WeightAverage
from msun_fastai.callbacks.best import BestModel, EarlyStop
from msun_fastai.callbacks.checkpoint import Checkpoints
from msun_fastai.callbacks.console import ConsoleProgress, History, warnings_told
from msun_fastai.callbacks.distributed import DistributedTraining
from msun_fastai.callbacks.step import TrainingStep
from msun_fastai.checkpoints import CheckpointFolder
from msun_fastai.errors import UserError
from msun_fastai.learner import saved_model
from msun_fastai.models.net import MultiScaleNet
from msun_fastai.models.saving import load_model_folder, save_model_folder
from msun_fastai.processes import barrier, gathered, is_main, world
from msun_fastai.recipe import Recipe, TrainSection
from msun_fastai.scales import check_choice
from msun_fastai.schedules import WITH_WARMUP, warmup_cosine, warmup_step
from msun_fastai.stopping import StopRequest

KEEPS = ("last", "best")
LOGS = ("tensorboard", "wandb")
HEAD_EPOCHS = 1  # of fastai's `fine_tune`: the head alone, before everything
ALIGN, HEAD, WHOLE = "align", "head", ""  # of what a fit is


class Fit(NamedTuple):
    """One call of the Learner's `fit`. part: what of the network it trains. run: takes the
    callbacks that it is watched by."""

    part: str
    epochs: int
    run: Callable[[list[Callback]], None]


def fits(recipe: Recipe, learn: Learner) -> list[Fit]:
    """What is trained, one fit after another; the last one is of everything that is trained.

    `cosine` or `step`, and a linear probe, is one fit. `one_cycle` is fastai's `fine_tune` where
    the network starts from trained weights, else its `fit_one_cycle`. With `train.align` the
    subnets are aligned before that.
    """
    train = recipe.train
    found = [Fit(ALIGN, train.align, partial(_align, learn, recipe))] if train.align else []
    if train.schedule in WITH_WARMUP:
        return [*found, Fit(WHOLE, train.epochs, partial(_scheduled, learn, recipe))]
    if recipe.verb == "linear-probe" or not recipe.model.is_trained:
        return [*found, Fit(WHOLE, train.epochs, partial(_one_cycle, learn, recipe))]
    found.append(Fit(HEAD, HEAD_EPOCHS, partial(_head, learn, train)))
    return [*found, Fit(WHOLE, train.epochs, partial(_everything, learn, train))]


def _align(learn: Learner, recipe: Recipe, cbs: list[Callback]) -> None:
    """The subnets of the smaller scales alone, see `aligning`."""
    with aligning(learn, recipe.consistency.distance):
        learn.fit_one_cycle(recipe.train.align, recipe.train.lr, cbs=cbs)


def _scheduled(learn: Learner, recipe: Recipe, cbs: list[Callback]) -> None:
    train = recipe.train
    if recipe.verb != "linear-probe":
        learn.unfreeze()
    rate = rate_over(train)
    scheduler = ParamScheduler({"lr": lambda position: train.lr * rate(position)})
    learn.fit(train.epochs, train.lr, cbs=[scheduler, *cbs])


def rate_over(train: TrainSection) -> Callable[[float], float]:
    """The share of the highest rate over training, from 0 to 1, by a schedule with a warm-up."""
    warmup = train.warmup / train.epochs
    if train.schedule == "cosine":
        return partial(warmup_cosine, warmup=warmup, lowest=train.lowest)
    milestones = [epoch / train.epochs for epoch in train.milestones]
    return partial(warmup_step, warmup=warmup, milestones=milestones, lowest=train.lowest)


def _one_cycle(learn: Learner, recipe: Recipe, cbs: list[Callback]) -> None:
    learn.fit_one_cycle(recipe.train.epochs, recipe.train.lr, cbs=cbs)


def _head(learn: Learner, train: TrainSection, cbs: list[Callback]) -> None:
    """The first half of fastai's `fine_tune`, apart so that a training can go on in either."""
    learn.freeze()
    learn.fit_one_cycle(HEAD_EPOCHS, slice(train.lr), pct_start=0.99, cbs=cbs)


def _everything(learn: Learner, train: TrainSection, cbs: list[Callback]) -> None:
    """The second half of fastai's `fine_tune`, with its numbers."""
    learn.unfreeze()
    rates = slice(train.lr / 2 / 100, train.lr / 2)
    learn.fit_one_cycle(train.epochs, rates, pct_start=0.3, div=5.0, cbs=cbs)


def train(
    recipe: Recipe, learn: Learner, folder: Path, console: Console, stop: StopRequest
) -> float:
    """Train `learn`, from its last checkpoint in `folder` if there is one; returns the seconds.

    Raises `Stopped` where `stop` was asked for, with a checkpoint of the last step written, and
    `TrainingError`.
    """
    train, net = recipe.train, learn.model

    def tell(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True, markup=False)

    checkpoints = CheckpointFolder(folder / "checkpoints")
    if not is_main():
        barrier()  # the first process tidies up before the others look
    state, damaged = checkpoints.newest(tidy=is_main())
    if is_main():
        barrier()
    for text in damaged:
        tell(text)
    steps = state["steps"] if state else 0
    if len(set(gathered(steps))) > 1:
        raise UserError(
            f"checkpoints in {checkpoints.path}: not all processes see the same ones; the run "
            "folder has to be one that all of them share"
        )
    if steps:
        tell(f"going on after {steps} steps of training")
    saver = Checkpoints(checkpoints, net, train.save_minutes, stop, state)
    del state  # the saver drops it once it is used
    with ExitStack() as stack:
        stack.enter_context(warnings_told(console))
        cbs = [saver, History(folder / "history.csv"), TrainingStep(train.precision, tell)]
        progress = stack.enter_context(ConsoleProgress(console, recipe.model.method))
        cbs.append(progress)
        if is_main() and train.log is not None:
            cbs.append(_logger(recipe, learn, folder, stack))
        if train.compile:
            tell("compiling the network: the first steps of training and validation take minutes")
        cbs += _options(recipe, learn)
        todo = fits(recipe, learn)
        average = WeightAverage(train.ema) if train.ema is not None else None
        best = BestModel(partial(_keep, learn, average, folder), train.patience)
        learn._do_fit = saver.epochs
        try:
            for number, fit in enumerate(todo):
                if number < saver.starts_with:
                    continue
                progress.label = f"{recipe.model.method} {fit.part}".rstrip()
                # the average and the best are of the fit of everything, not of those before it
                watched = [average, best, EarlyStop(best, tell)] if fit.part == WHOLE else []
                fit.run([*cbs, *(cb for cb in watched if cb is not None)])
        finally:
            del learn._do_fit  # the class's own again
    kept = folder / "checkpoints" / "best"
    if train.keep == "best" and is_main() and kept.is_dir():
        net.load_state_dict(load_model_folder(kept).model.state_dict())
        tell(f"kept: the weights of epoch {best.best_epoch + 1}, whose validation loss is lowest")
    return saver.seconds


def _keep(learn: Learner, average: WeightAverage | None, folder: Path) -> None:
    """Save the network as it was validated, for it is the best so far."""
    if is_main():
        saved = saved_model(learn)
        if average is not None and average.average is not None:
            saved.model = cast(MultiScaleNet, average.network)
        save_model_folder(folder / "checkpoints" / "best", saved)


def _options(recipe: Recipe, learn: Learner) -> list[Callback]:
    train = recipe.train
    cbs: list[Callback] = []
    if world() > 1:
        cbs.append(DistributedTraining())
    if train.clip is not None:
        cbs.append(GradientClip(train.clip))
    mixed_on_cuda = learn.dls.device.type == "cuda" and train.precision != "full"
    if train.channels_last or (train.channels_last is None and mixed_on_cuda):
        cbs.append(ChannelsLast())
    if recipe.verb == "linear-probe":
        cbs.append(BnFreeze())  # the features are to stay what they are
    if train.compile:
        learn.model.compile()
    return cbs


def check_log(name: str) -> None:
    """Raise `UserError` where `name` is no logger, or one that is not installed."""
    check_choice("log", name, LOGS)
    if importlib.util.find_spec(name) is None:
        raise UserError(f"log {name}: {name} is not installed; pip install {name}")


def _logger(recipe: Recipe, learn: Learner, folder: Path, stack: ExitStack) -> Callback:
    """fastai's own callback for TensorBoard or W&B."""
    if recipe.train.log == "tensorboard":
        from fastai.callback.tensorboard import TensorBoardCallback

        return TensorBoardCallback(folder / "tensorboard", trace_model=False, log_preds=False)
    import wandb
    from fastai.callback.wandb import WandbCallback

    config = recipe.model_dump()
    stack.enter_context(wandb.init(project="msun-fastai", config=config, dir=str(folder)))
    # what fastai would tell it of the Learner: it trips over the samples, and draws a batch
    learn.gather_args = dict
    stack.callback(learn.__dict__.pop, "gather_args")
    return WandbCallback(log=None, log_preds=False, log_model=False)
