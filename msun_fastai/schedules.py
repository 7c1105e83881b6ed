"""Learning-rate schedules and optimizers of the papers' settings, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

from msun_fastai.errors import UserError
from msun_fastai.scales import check_choice

LOWEST = 0.01  # of the highest rate: where the warm-up starts and the cosine ends
DECAY = 0.1  # what a milestone multiplies the rate with
SCHEDULES = ("one_cycle", "cosine", "step")
WITH_WARMUP = ("cosine", "step")  # those of this module; the other is fastai's
OPTIMIZERS = ("adam", "sgd")


def warmup_cosine(position: float, warmup: float, lowest: float = LOWEST) -> float:
    """The share of the highest learning rate at `position`, from 0 (start) to 1 (end) of training.

    A linear rise from `lowest` over the share `warmup` of training, then half a cosine down to
    `lowest` (Section VI-B: five epochs of warm-up, 0.01 of the rate at the start and the end). The
    paper's scheduler changes the rate once an epoch, this one with every step.

    >>> [round(warmup_cosine(p, 0.1), 3) for p in (0, 0.05, 0.1, 0.55, 1)]
    [0.01, 0.505, 1.0, 0.505, 0.01]
    """
    if _rises(position, warmup):
        return lowest + (1 - lowest) * position / warmup
    done = min(1.0, (position - warmup) / (1 - warmup))
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * done)) / 2


def warmup_step(
    position: float, warmup: float, milestones: Sequence[float], lowest: float = LOWEST
) -> float:
    """The share of the highest learning rate at `position`, from 0 (start) to 1 (end) of training.

    A linear rise from `lowest` over the share `warmup` of training, then the whole rate, divided by
    ten at each of `milestones`, which are shares of training as well (ScaleNet, Section IV-B).

    >>> [round(warmup_step(p, 0.1, (0.5, 0.75)), 3) for p in (0, 0.05, 0.1, 0.49, 0.5, 0.75, 1)]
    [0.01, 0.505, 1.0, 1.0, 0.1, 0.01, 0.01]
    """
    if _rises(position, warmup):
        return lowest + (1 - lowest) * position / warmup
    passed = sum(milestone <= position for milestone in milestones)
    return DECAY**passed


def _rises(position: float, warmup: float) -> bool:
    """Whether training is in its warm-up at `position`."""
    if not 0 <= warmup < 1:
        raise UserError(f"warmup: {warmup:g} of training is no share from 0 to below 1")
    return position < warmup


def check_milestones(
    schedule: str, milestones: Sequence[float], warmup: float, epochs: int
) -> None:
    """Raise `UserError` unless `milestones`, in epochs, are what the `schedule` takes in a training
    of `epochs`, of which the first `warmup` are warm-up."""
    if schedule != "step":
        if milestones:
            raise UserError(
                f"train.milestones: the schedule {schedule} has none; give "
                "--set train.milestones=[], or --set train.schedule=step"
            )
        return
    if not milestones:
        raise UserError(
            "train.milestones: the schedule step needs epochs at which the rate is divided by ten; "
            f"give --set train.milestones=[{epochs / 2:g}] or the like"
        )
    bounds = (warmup, *milestones, epochs)
    if not all(a < b for a, b in pairwise(bounds)):  # so that nan is refused, too
        named = ", ".join(f"{milestone:g}" for milestone in milestones)
        raise UserError(
            f"train.milestones: {named}: not ascending epochs between the end of the warm-up, "
            f"{warmup:g}, and that of training, {epochs}; change them or train.warmup"
        )


def milestones_within(milestones: Sequence[float], epochs: int, wanted: int) -> list[float]:
    """Milestones of a training of `epochs` for one of `wanted`: the same shares of it.

    >>> milestones_within([30, 60, 90], 100, 10)
    [3.0, 6.0, 9.0]
    """
    return [epoch * wanted / epochs for epoch in milestones]


def make_optimizer(name: str, momentum: float) -> Callable[..., Any]:
    """fastai's optimizer function by name: `adam`, its default, or `sgd` with `momentum`.

    SGD's weight decay is part of the gradient, as in `torch.optim.SGD`, and not decoupled from the
    learning rate as fastai's is by default.
    """
    from fastai.optimizer import SGD, Adam

    check_choice("optimizer", name, OPTIMIZERS)
    return Adam if name == "adam" else partial(SGD, mom=momentum, decouple_wd=False)
