"""Figure 8 with one's own model: its features of chosen classes at several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from msun_fastai.analysis.batches import sized_batches, sorted_labels
from msun_fastai.analysis.layers import recording
from msun_fastai.analysis.pca import Projection, project
from msun_fastai.data.multi_view import refuse_none
from msun_fastai.data.samples import Sample
from msun_fastai.models.heads import classifiers
from msun_fastai.models.meta import evaluating
from msun_fastai.models.saving import SavedModel
from msun_fastai.sized import sized_networks

FORWARD = 64  # images in a batch; nothing depends on it
PRIVATE = "each scale has a classifier of its own: features of different scales are not comparable"


@dataclass
class SizeFeatures:
    """Penultimate features of one model at several sizes: x float32 (n, d) by size, of the same
    images; codes (n,): the places of their labels in `labels`."""

    x: dict[int, np.ndarray]
    codes: np.ndarray
    labels: list[str]
    unreadable: list[str]


@dataclass
class SizePCA:
    """Figure 8 for one model: the projection of its features at all sizes, and what to know of it.

    sides: at which the network saw the images, by size. codes: the class of each row, a place in
    `labels`.
    """

    name: str
    method: str
    labels: list[str]
    codes: np.ndarray
    sides: dict[int, int]
    projection: Projection
    notes: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """The numbers as JSON takes them; the points are in `rows`."""
        p = self.projection
        return {
            "name": self.name,
            "method": self.method,
            "classes": self.labels,
            "images": len(self.codes),
            "explained": list(p.explained),
            "sizes": [
                {
                    **{"size": size, "subnet": side, "separation": p.separation[size]},
                    "separation_2d": p.separation_2d[size],
                }
                for size, side in self.sides.items()
            ],
            "notes": self.notes,
            "unreadable": self.unreadable,
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row a point, for a table."""
        return [
            {"model": self.name, "size": size, "class": self.labels[code], "x": x, "y": y}
            for size, points in self.projection.points.items()
            for code, (x, y) in zip(self.codes.tolist(), points.tolist())
        ]


def size_pca(
    saved: SavedModel,
    samples: Sequence[Sample],
    sizes: Sequence[int],
    resize: str = "canonical",
    name: str = "",
    workers: int = 0,
    tell: Callable[[int], object] = bool,
) -> SizePCA:
    """What the classifier of `saved` sees of `samples` at every one of `sizes`, in one projection.

    resize: see `sized_networks`; tell: `sized_batches`. Raises `UserError`.
    """
    found = size_features(saved, samples, sizes, resize, workers, tell)
    sides = {at.size: at.side for at in sized_networks(saved.model, sizes, resize)}
    private = len(classifiers(saved.model)) > 1 and len(set(sides.values())) > 1
    method = saved.model.config.method
    return SizePCA(
        name or method,
        method,
        found.labels,
        found.codes,
        sides,
        project(found.x, found.codes),
        [f"{name or method}: {PRIVATE}"] if private else [],
        found.unreadable,
    )


def size_features(
    saved: SavedModel,
    samples: Sequence[Sample],
    sizes: Sequence[int],
    resize: str = "canonical",
    workers: int = 0,
    tell: Callable[[int], object] = bool,
) -> SizeFeatures:
    """The penultimate features of `samples` at every one of `sizes`. Raises `UserError`."""
    networks = sized_networks(saved.model, sizes, resize)
    heads = classifiers(saved.model)
    x: dict[int, list[np.ndarray]] = {sized.size: [] for sized in networks}
    codes, unreadable = [], []
    with torch.no_grad(), evaluating(saved.model):
        for given in sized_batches(saved, samples, sizes, FORWARD, workers, tell):
            unreadable += given.unreadable
            codes += given.codes.tolist()
            for sized in networks if len(given) else ():
                layer = heads[sized.index if len(heads) > 1 else 0]
                with recording({"classifier": layer}, inputs=True) as seen:
                    sized.network(sized.take(given.views[sized.size], saved.preprocessing))
                x[sized.size].append(seen["classifier"].float().cpu().numpy())
    refuse_none(len(codes), unreadable)
    joined = {size: np.concatenate(parts) for size, parts in x.items()}
    return SizeFeatures(joined, np.array(codes), sorted_labels(samples), unreadable)
