"""What several trainings of several methods come to: means and deviations over the seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

Interval = tuple[float, float]


@dataclass(frozen=True)
class Trained:
    """One trained network. tested: `Sweep.as_dict()` of it. seconds: of its training."""

    seed: int
    folder: Path
    tested: dict[str, Any]
    seconds: float


@dataclass(frozen=True)
class Standing:
    """One way to train, over its seeds. Accuracies are shares; deviations are those of a sample
    (n - 1), None for a single training."""

    name: str
    runs: tuple[Trained, ...]

    @property
    def sizes(self) -> list[int]:
        """The sizes at which all of them were tested."""
        return self.runs[0].tested["sizes"]

    @property
    def each(self) -> np.ndarray:
        """The accuracy of each training at each size, float (seeds, sizes)."""
        return np.array([run.tested["accuracy"] for run in self.runs])

    @property
    def accuracy(self) -> list[float]:
        """The mean over the trainings at each size."""
        return self.each.mean(0).tolist()

    @property
    def deviation(self) -> list[float] | None:
        """The deviation of the trainings at each size."""
        return self.each.std(0, ddof=1).tolist() if len(self.runs) > 1 else None

    def deviation_at(self, i: int) -> float | None:
        """The deviation at the size with number `i`."""
        return None if self.deviation is None else self.deviation[i]

    @property
    def mean_accuracy(self) -> float:
        """The mean over sizes and trainings."""
        return float(self.each.mean())

    @property
    def mean_deviation(self) -> float | None:
        """The deviation of the trainings' means over the sizes."""
        return float(self.each.mean(1).std(ddof=1)) if len(self.runs) > 1 else None

    @property
    def mean_macs(self) -> float:
        """Multiply-accumulates of an image, the mean over the sizes."""
        return self.runs[0].tested["mean_macs"]

    @property
    def params(self) -> int:
        """Parameters of the network."""
        return self.runs[0].tested["params"]

    @property
    def seconds(self) -> float:
        """Seconds of a training in the mean."""
        return float(np.mean([run.seconds for run in self.runs]))

    def ends(self) -> tuple[list[Interval], Interval]:
        """What an accuracy may as well be, at each size and in the mean over them: the mean less
        and plus a deviation, or, of a single training, its 95 % interval over the images."""
        if self.deviation is None or self.mean_deviation is None:
            tested = self.runs[0].tested
            return [(low, high) for low, high in tested["interval"]], tuple(tested["mean_interval"])
        both = zip([*self.accuracy, self.mean_accuracy], [*self.deviation, self.mean_deviation])
        *each, mean = [(centre - apart, centre + apart) for centre, apart in both]
        return each, mean

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON takes them, those of each training by its seed."""
        each, mean = self.ends()
        return {
            "accuracy": self.accuracy,
            "deviation": self.deviation,
            "ends": [list(pair) for pair in each],
            "mean_accuracy": self.mean_accuracy,
            "mean_deviation": self.mean_deviation,
            "mean_ends": list(mean),
            "mean_macs": self.mean_macs,
            "params": self.params,
            "train_seconds": self.seconds,
            "seeds": {
                str(run.seed): {
                    "run": str(run.folder),
                    "train_seconds": run.seconds,
                    **run.tested,
                }
                for run in self.runs
            },
        }


@dataclass(frozen=True)
class Standings:
    """Several ways to train, on the same data. data, part, images: what they were tested on."""

    data: str
    part: str
    images: int
    ways: tuple[Standing, ...]

    @property
    def sizes(self) -> list[int]:
        """The sizes at which all were tested."""
        return self.ways[0].sizes

    @property
    def seeds(self) -> list[int]:
        """The seeds with which each was trained."""
        return [run.seed for run in self.ways[0].runs]

    def as_dict(self) -> dict[str, Any]:
        """Everything as JSON takes it."""
        return {
            "data": self.data,
            "part": self.part,
            "images": self.images,
            "sizes": self.sizes,
            "seeds": self.seeds,
            "entries": {way.name: way.as_dict() for way in self.ways},
        }

    def rows(self) -> list[dict[str, Any]]:
        """A row an entry and size, for `figures.draw_accuracy`; `low` and `high` as in `ends`, and
        the accuracy of each training."""
        return [row for way in self.ways for row in size_rows(way)]

    def mean_rows(self) -> list[dict[str, Any]]:
        """A row an entry with its means over the sizes, for `figures.draw_means`."""
        rows = []
        for way in self.ways:
            low, high = way.ends()[1]
            about = {"model": way.name, "macs": way.mean_macs, "accuracy": way.mean_accuracy}
            rows.append({**about, "low": low, "high": high})
        return rows


def size_rows(way: Standing) -> list[dict[str, Any]]:
    """The rows of one entry, see `Standings.rows`."""
    first, (each, _) = way.runs[0].tested, way.ends()
    deviations: Sequence[float | None] = way.deviation or [None] * len(way.sizes)
    columns: tuple[Sequence[Any], ...] = (
        *(way.sizes, first["subnet"], first["macs"], way.accuracy),
        *(deviations, each, way.each.T.tolist()),
    )
    rows = []
    for size, subnet, macs, accuracy, deviation, (low, high), shares in zip(*columns):
        about = {"model": way.name, "size": size, "subnet": subnet, "macs": macs}
        figures = {"accuracy": accuracy, "deviation": deviation, "low": low, "high": high}
        seeds = {f"seed-{run.seed}": share for run, share in zip(way.runs, shares)}
        rows.append({**about, **figures, **seeds})
    return rows
