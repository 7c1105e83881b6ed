"""Trained models beside each other on the same images: curves, means, and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from msun_fastai.bootstrap import mean_interval
from msun_fastai.errors import UserError
from msun_fastai.evaluate import Interval, Sweep

MODEL = "model"  # what a run calls the folder of its model


@dataclass(frozen=True)
class Difference:
    """How much more of the same images one model gets right than another, as shares, with paired
    95 % bootstrap intervals over the images: at each size, and in the mean over the sizes."""

    name: str
    than: str
    sizes: tuple[int, ...]
    at: list[float]
    intervals: list[Interval]
    mean: float
    mean_interval: Interval

    def as_dict(self) -> dict[str, Any]:
        """The fields as JSON takes them."""
        return dict(self.__dict__)


def difference(name: str, sweep: Sweep, than: str, other: Sweep) -> Difference:
    """The accuracy of `sweep` less that of `other`, on the images that both could read.

    Raises `UserError` where they were tested at other sizes or share no image.
    """
    if sweep.sizes != other.sizes:
        raise UserError(f"compare: {name} and {than} were tested at other sizes")
    _, ours, theirs = np.intersect1d(
        sweep.answers.images, other.answers.images, return_indices=True
    )
    if not len(ours):
        raise UserError(f"compare: {name} and {than} have no image in common")
    apart = sweep.right[ours].astype(float) - other.right[theirs]
    apart = np.column_stack([apart, apart.mean(1)])
    low, high = (ends.tolist() for ends in mean_interval(apart))
    *at, mean = apart.mean(0).tolist()
    *intervals, whole = zip(low, high)
    return Difference(name, than, sweep.sizes, at, intervals, mean, whole)


def differences(sweeps: Mapping[str, Sweep]) -> list[Difference]:
    """Every model but the first against the first."""
    (first, base), *others = sweeps.items()
    return [difference(name, sweep, first, base) for name, sweep in others]


def names_of(runs: Sequence[str]) -> list[str]:
    """A short name for each run: its folder's, with as much of the path as tells them apart.

    >>> names_of(["x/a", "y/a/model", "x/b"])
    ['x/a', 'y/a', 'b']
    """
    folders = [Path(run).resolve() for run in runs]
    # of a model folder in a run the run's
    parts = [(f.parent if f.name == MODEL else f).parts for f in folders]
    if len(set(parts)) < len(parts):
        twice = next(run for run, own in zip(runs, parts) if parts.count(own) > 1)
        raise UserError(f"{twice}: is named twice")
    lengths = [1] * len(parts)
    names = [own[-1] for own in parts]
    while len(set(names)) < len(names):
        lengths = [n + (names.count(name) > 1) for n, name in zip(lengths, names)]
        names = ["/".join(own[-n:]) for own, n in zip(parts, lengths)]
    return names
