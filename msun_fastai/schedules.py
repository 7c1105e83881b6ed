"""Learning-rate schedules and optimizers of the paper's settings, as pure functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

from msun_fastai.errors import UserError
from msun_fastai.scales import check_choice

LOWEST = 0.01  # of the highest rate: where the warm-up starts and the cosine ends
SCHEDULES = ("one_cycle", "cosine")
OPTIMIZERS = ("adam", "sgd")


def warmup_cosine(position: float, warmup: float, lowest: float = LOWEST) -> float:
    """The share of the highest learning rate at `position`, from 0 (start) to 1 (end) of training.

    A linear rise from `lowest` over the share `warmup` of training, then half a cosine down to
    `lowest` (Section VI-B: five epochs of warm-up, 0.01 of the rate at the start and the end). The
    paper's scheduler changes the rate once an epoch, this one with every step.

    >>> [round(warmup_cosine(p, 0.1), 3) for p in (0, 0.05, 0.1, 0.55, 1)]
    [0.01, 0.505, 1.0, 0.505, 0.01]
    """
    if not 0 <= warmup < 1:
        raise UserError(f"warmup: {warmup:g} of training is no share from 0 to below 1")
    if position < warmup:
        return lowest + (1 - lowest) * position / warmup
    done = min(1.0, (position - warmup) / (1 - warmup))
    return lowest + (1 - lowest) * (1 + math.cos(math.pi * done)) / 2


def make_optimizer(name: str, momentum: float) -> Callable[..., Any]:
    """fastai's optimizer function by name: `adam`, its default, or `sgd` with `momentum`.

    SGD's weight decay is part of the gradient, as in `torch.optim.SGD`, and not decoupled from the
    learning rate as fastai's is by default.
    """
    from fastai.optimizer import SGD, Adam

    check_choice("optimizer", name, OPTIMIZERS)
    return Adam if name == "adam" else partial(SGD, mom=momentum, decouple_wd=False)
