"""A network tested on images at their own sizes, each through the subnet that it is routed to."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from msun_fastai.answers import OWN, Answers, Cell, Told, at_own_sizes
from msun_fastai.bootstrap import mean_interval
from msun_fastai.data.samples import Sample
from msun_fastai.evaluate import Interval, scale_macs
from msun_fastai.models.saving import SavedModel
from msun_fastai.scales import EDGES, route


@dataclass(frozen=True, repr=False)
class Routed:
    """What a network answered to images at their own sizes under the routing `rule`.

    macs: multiply-accumulates of an image in the subnet of each scale, ascending. answers: row by
    row; where every subnet was asked, other rules can be tried (`under`). classes: their names, in
    the order of the codes.
    """

    rule: str
    macs: dict[int, int]
    answers: Answers
    classes: list[str]

    def __repr__(self) -> str:
        return (
            f"Routed({len(self.answers.codes):,} images by {self.rule}; subnets took "
            f"{self.counts}; accuracy {100 * self.accuracy:.1f} %)"
        )

    @property
    def scales(self) -> tuple[int, ...]:
        """The sides at which the network takes images."""
        return tuple(self.macs)

    @cached_property
    def scale(self) -> np.ndarray:
        """The scale that each image goes to, int64 (n,)."""
        native = self.answers.native.tolist()
        return np.array([route(size, self.scales, self.rule) for size in native], dtype=np.int64)

    @cached_property
    def cell(self) -> Cell:
        """Each image's answer, from the subnet that it goes to."""
        return self.answers.routed(self.scale)

    @property
    def right(self) -> np.ndarray:
        """Which images are right, bool (n,)."""
        return self.cell.predicted == self.answers.codes

    @property
    def accuracy(self) -> float:
        """The share of images that are right."""
        return float(self.right.mean())

    def interval(self) -> Interval:
        """95 % bootstrap interval of the accuracy, over the images."""
        low, high = mean_interval(by_image(self.right, self.answers.images)[:, None])
        return float(low[0]), float(high[0])

    @property
    def counts(self) -> dict[int, int]:
        """How many images each subnet takes, by scale."""
        return {scale: int((self.scale == scale).sum()) for scale in self.scales}

    @property
    def mean_macs(self) -> float:
        """Multiply-accumulates of an image in the mean."""
        return float(np.mean([self.macs[s] for s in self.scale.tolist()]))

    @property
    def saving(self) -> float:
        """The share of the cost that is saved against sending every image to the canonical
        scale."""
        return 1 - self.mean_macs / self.macs[self.scales[-1]]

    def under(self, rule: str) -> Routed:
        """The same answers under another rule; every subnet has to have been asked."""
        missing = [s for s in self.scales if (OWN, s) not in self.answers.cells]
        asked = (self.answers.cells[OWN, s].predicted for s in self.scales if s not in missing)
        if missing or any((predicted < 0).any() for predicted in asked):
            raise ValueError("other rules need the answers of every subnet (every_subnet=True)")
        return replace(self, rule=rule)

    def by_subnet(self) -> list[dict[str, Any]]:
        """A row a scale: its images, their accuracy (None of none), what each of them costs."""
        return [
            {"subnet": scale, **self._of_rows(self.scale == scale), "macs": macs}
            for scale, macs in self.macs.items()
        ]

    def by_native_size(self) -> list[dict[str, Any]]:
        """A row for each range of native sizes that has images: `above`, `up_to`, their number,
        accuracy, and how many went to each subnet."""
        rows, native = [], self.answers.native
        edges = (0, *EDGES, int(max(EDGES[-1] + 1, native.max())))
        for above, up_to in pairwise(edges):
            chosen = (native > above) & (native <= up_to)
            if chosen.any():
                subnets = {s: int((self.scale[chosen] == s).sum()) for s in self.scales}
                row = {"above": above, "up_to": up_to, **self._of_rows(chosen)}
                rows.append({**row, "subnets": {str(s): n for s, n in subnets.items() if n}})
        return rows

    def _of_rows(self, chosen: np.ndarray) -> dict[str, Any]:
        n = int(chosen.sum())
        return {"images": n, "accuracy": float(self.right[chosen].mean()) if n else None}

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON takes them."""
        return {
            "routing": self.rule,
            "accuracy": self.accuracy,
            "interval": list(self.interval()),
            "images": len(self.answers.codes),
            "unreadable": len(self.answers.unreadable),
            "mean_macs": self.mean_macs,
            "saving": self.saving,
            "by_subnet": self.by_subnet(),
            "by_native_size": self.by_native_size(),
        }


def by_image(values: np.ndarray, images: np.ndarray) -> np.ndarray:
    """The mean value of each image's rows: what a bootstrap draws again is the image."""
    _, inverse, counts = np.unique(images, return_inverse=True, return_counts=True)
    return np.bincount(inverse, values) / counts


def routed_test(
    saved: SavedModel,
    samples: Iterable[Sample],
    every_subnet: bool = False,
    bs: int = 64,
    workers: int = 0,
    on_bad: str = "skip",
    told: Told = bool,
) -> Routed:
    """Test `saved` on `samples` at their own sizes, as prediction takes them.

    every_subnet: ask all of them, so that other rules can be tried. on_bad: `skip`, or `stop` at an
    image that cannot be read. told: called with the number of images of every batch. Raises
    `UserError`.
    """
    model = saved.model
    answers = at_own_sizes(saved, samples, every_subnet, bs, workers, on_bad, told)
    return Routed(model.config.routing, scale_macs(model), answers, saved.classes)
