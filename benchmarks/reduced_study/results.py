"""What the trainings of a study come to, as JSON, and the figures that are read from it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from trials import SIZES, TESTED, Training

BY_SIZE = " by size"  # after a trial's name: its sweep with batch norms for every size
DIGITS = 4  # of a share: there are at most 5,000 images


def collected(waves: Sequence[Sequence[Training]], size: str) -> dict[str, Any]:
    """Everything that the run folders hold, by trial and seed."""
    trials: dict[str, Any] = {}
    for training in (t for wave in waves for t in wave):
        trial = training.trial
        about = {"method": trial.method, "values": trial.values, "runs": []}
        found = json.loads((training.folder / TESTED).read_text(encoding="utf-8"))
        of = trials.setdefault(trial.name, about)
        of["runs"].append({"seed": training.seed, **_short(found)})
    return {"size": size, "sizes": list(SIZES), "trials": trials}


def _short(found: dict[str, Any]) -> dict[str, Any]:
    """Without what can be worked out again, shares rounded."""
    left_out = ("metrics", "interval", "mean_interval", "images_per_second", "unreadable", "sizes")
    metrics = found["metrics"]
    own = {"own_accuracy": metrics["native_accuracy"], "own_routing": metrics["routing"]}

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: cut(v) for k, v in value.items() if k not in left_out}
        if isinstance(value, list):
            return [cut(v) for v in value]
        return round(value, DIGITS) if isinstance(value, float) else value

    return {**cut(found), **own, "train_images": metrics["train_images"]}


@dataclass(frozen=True)
class Figure:
    """A number over the seeds. each: shares or costs (seeds,)."""

    each: np.ndarray

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(self.each.mean())

    @property
    def deviation(self) -> float | None:
        """The deviation of a sample; None of a single seed."""
        return float(self.each.std(ddof=1)) if len(self.each) > 1 else None

    def percent(self, sign: str = "") -> str:
        """In per cent, or points, with its deviation."""
        text = f"{100 * self.mean:{sign}.1f}"
        return text if self.deviation is None else f"{text} ± {100 * self.deviation:.1f}"

    def __str__(self) -> str:
        return self.percent()

    def __sub__(self, other: Figure) -> Figure:
        """The difference seed by seed, of the seeds that both have."""
        n = min(len(self.each), len(other.each))
        return Figure(self.each[:n] - other.each[:n])


class Way:
    """A trial's figures. What an index gives is the accuracy at that size, in pixels.

    test: which of its sweeps they are of, see `trials.tested`.
    """

    def __init__(self, name: str, found: dict[str, Any], part: str, test: str = "routed"):
        self.name, self.found, self.part, self.test = name, found, part, test

    @cached_property
    def each(self) -> np.ndarray:
        """Accuracies, float (seeds, sizes)."""
        return np.array([run[self.part][self.test]["accuracy"] for run in self.found["runs"]])

    def __getitem__(self, size: int) -> Figure:
        return Figure(self.each[:, SIZES.index(size)])

    @property
    def mean(self) -> Figure:
        """The mean over the sizes."""
        return Figure(self.each.mean(1))

    @property
    def routed(self) -> dict[str, Any]:
        """The sweep of the first seed, for what does not depend on it."""
        return self.found["runs"][0][self.part][self.test]

    @property
    def macs(self) -> float:
        """Multiply-accumulates of an image, the mean over the sizes."""
        return float(np.mean(self.routed["macs"]))

    def macs_at(self, sizes: Sequence[int]) -> float:
        """Multiply-accumulates of an image, the mean over some of the sizes."""
        return float(np.mean([self.routed["macs"][SIZES.index(size)] for size in sizes]))

    @property
    def own(self) -> Figure:
        """The accuracy on another dataset's images at their own sizes."""
        return Figure(np.array([run["own_accuracy"] for run in self.found["runs"]]))

    @property
    def seconds(self) -> float:
        """Of training, the middle one of the seeds': other work makes some of them longer."""
        return float(np.median([run["seconds"] for run in self.found["runs"]]))

    def rule(self, name: str) -> tuple[Figure, float]:
        """Mean accuracy over the sizes and mean cost under a routing rule."""
        found = [run[self.part]["rules"][name] for run in self.found["runs"]]
        accuracy = Figure(np.array([one["mean_accuracy"] for one in found]))
        return accuracy, float(np.mean([one["mean_macs"] for one in found]))

    def at_own_size(self, how: str) -> tuple[Figure, float]:
        """Mean accuracy and cost where images of every size go through at that size."""
        found = [run[self.part][how] for run in self.found["runs"]]
        accuracy = Figure(np.array([np.mean(one["accuracy"]) for one in found]))
        return accuracy, float(np.mean([np.mean(one["macs"]) for one in found]))


class Results:
    """A study's figures by trial: `results["mst"].mean`, `results["mst"][64]`; with batch norms for
    every input size `results["mst by size"]`."""

    def __init__(self, found: dict[str, Any], part: str = "test"):
        self.found, self.part = found, part

    def __getitem__(self, name: str) -> Way:
        trial = name.removesuffix(BY_SIZE)
        test = "routed" if trial == name else "by_size"
        return Way(name, self.found["trials"][trial], self.part, test)

    def __contains__(self, name: str) -> bool:
        trial = name.removesuffix(BY_SIZE)
        runs = self.found["trials"].get(trial, {"runs": []})["runs"]
        return bool(runs) and (trial == name or "by_size" in runs[0].get(self.part, {}))
