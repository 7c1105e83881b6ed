"""Accuracy and cost at input sizes: the images are rescaled to each and tested there (Section VI-B,
Tables I, II and IV). Sizes are sides in pixels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from msun_fastai.answers import Answers, Told, at_sizes
from msun_fastai.bootstrap import mean_interval
from msun_fastai.data.samples import Sample
from msun_fastai.flops import count_macs, count_params
from msun_fastai.models.net import MultiScaleNet
from msun_fastai.models.saving import SavedModel
from msun_fastai.sized import sized_networks

Interval = tuple[float, float]


def test_sizes(scales: Sequence[int]) -> tuple[int, ...]:
    """The scales and the sizes halfway between them, ascending: what a network does on its scales
    and where it has none."""
    between = [(a + b) // 2 for a, b in pairwise(scales)]
    return tuple(sorted({*scales, *between}))


@dataclass(frozen=True, repr=False)
class Sweep:
    """A network tested at input sizes; figures in the order of `sizes`.

    scales: sides at which it takes images. subnet: the scale that each size is routed to. macs:
    multiply-accumulates of an image of each size. answers: row by row what it answered.
    classes: their names, in the order of the codes. resize: `canonical`, or `native` or
    `ideal` where the network ran at the sizes themselves.
    """

    sizes: tuple[int, ...]
    scales: tuple[int, ...]
    subnet: tuple[int, ...]
    macs: tuple[int, ...]
    params: int
    answers: Answers
    classes: list[str]
    resize: str = "canonical"

    def __repr__(self) -> str:
        return (
            f"Sweep({len(self.answers.codes):,} images at sizes {', '.join(map(str, self.sizes))}; "
            f"mean accuracy {100 * self.mean_accuracy:.1f} %)"
        )

    @property
    def right(self) -> np.ndarray:
        """Which images are right at which size, bool (n, sizes)."""
        at = zip(self.sizes, self.subnet)
        return np.stack([self.answers.right(size, scale) for size, scale in at], 1)

    @property
    def loss(self) -> np.ndarray:
        """Cross-entropies, float32 (n, sizes)."""
        return np.stack([self.answers.cells[at].loss for at in zip(self.sizes, self.subnet)], 1)

    @property
    def accuracy(self) -> list[float]:
        """The share of images that are right at each size."""
        return self.right.mean(0).tolist()

    @property
    def mean_accuracy(self) -> float:
        """The mean over the sizes (Table II)."""
        return float(self.right.mean())

    @property
    def mean_macs(self) -> float:
        """The mean over the sizes (Table II)."""
        return float(np.mean(self.macs))

    def intervals(self) -> tuple[list[Interval], Interval]:
        """95 % bootstrap intervals over the images: of each accuracy, and of their mean."""
        return self._intervals

    @cached_property
    def _intervals(self) -> tuple[list[Interval], Interval]:  # seconds for 50,000 images
        right = self.right.astype(float)
        low, high = mean_interval(np.column_stack([right, right.mean(1)]))
        ends = list(zip(low.tolist(), high.tolist()))
        return ends[:-1], ends[-1]

    def matrix(self) -> np.ndarray | None:
        """The accuracy of every subnet at every size (Table IV), float (sizes, scales); None where
        each size went to its own subnet alone."""
        cells = [[(size, scale) for scale in self.scales] for size in self.sizes]
        if any(cell not in self.answers.cells for row in cells for cell in row):
            return None
        return np.array([[self.answers.right(*cell).mean() for cell in row] for row in cells])

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON takes them; `matrix` by scale, where there is one."""
        each, mean = self.intervals()
        seconds, seen = self.answers.seconds, len(self.answers.codes)
        found: dict[str, Any] = {
            "sizes": list(self.sizes),
            "accuracy": self.accuracy,
            "interval": [list(ends) for ends in each],
            "subnet": list(self.subnet),
            "macs": list(self.macs),
            "mean_accuracy": self.mean_accuracy,
            "mean_interval": list(mean),
            "mean_macs": self.mean_macs,
            "params": self.params,
            "scales": list(self.scales),
            "resize": self.resize,
            "images": seen,
            "unreadable": len(self.answers.unreadable),
            "images_per_second": seen / seconds if seconds else None,
        }
        matrix = self.matrix()
        if matrix is not None and len(self.scales) > 1:
            found["matrix"] = {str(s): matrix[:, i].tolist() for i, s in enumerate(self.scales)}
        return found


def sweep(
    saved: SavedModel,
    samples: Iterable[Sample],
    sizes: Sequence[int],
    every_subnet: bool = False,
    resize: str = "canonical",
    bs: int = 64,
    workers: int = 0,
    told: Told = bool,
) -> Sweep:
    """Test `saved` on `samples`, each resized to every one of `sizes` in turn, from one decode.

    every_subnet: at each size ask all subnets, not only the one that it is routed to. resize:
    `canonical` brings an image of another size to the scale of its subnet; `native` and `ideal` run
    a network at the size itself, see `sized_networks`. told: called with the number of images of
    every batch. Raises `UserError`.
    """
    networks = sized_networks(saved.model, sizes, resize)
    answers = at_sizes(saved, samples, sizes, every_subnet, resize, bs, workers, told)
    model, sizes = saved.model, tuple(sizes)
    subnet = tuple(model.entry_scales[sized.index] for sized in networks)
    counted = {(s.side, s.index): count_macs(s.network, s.side) for s in networks}
    macs = tuple(counted[s.side, s.index] for s in networks)
    scales, params = model.entry_scales, count_params(model)
    return Sweep(sizes, scales, subnet, macs, params, answers, saved.classes, resize)


def scale_macs(model: MultiScaleNet) -> dict[int, int]:
    """Multiply-accumulates of an image in the subnet of each scale, g included."""
    return {s: count_macs(model.at_scale(i), s) for i, s in enumerate(model.entry_scales)}
