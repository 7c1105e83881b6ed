"""One projection of features at several sizes, and how well classes part in them (Figure 8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError, did_you_mean

CLASSES = 5  # as many as are told apart by marker and colour at once


@dataclass
class Projection:
    """Features of one model in the plane.

    points: (n, 2) by size. explained: the share of the variance of each axis. separation: the mean
    silhouette of the classes by size, in the full feature space; separation_2d: in the plane.
    Between -1 and 1, larger is better; None where it is not defined.
    """

    points: dict[int, np.ndarray]
    explained: tuple[float, float]
    separation: dict[int, float | None]
    separation_2d: dict[int, float | None]


def project(features: Mapping[int, np.ndarray], codes: np.ndarray) -> Projection:
    """One PCA of the features (n, d) at all sizes together, the classes of whose rows are `codes`.

    Raises `UserError` where they are too few, or do not vary.
    """
    from sklearn.decomposition import PCA

    sizes = list(features)
    rows = np.concatenate([features[size] for size in sizes]).astype(np.float64)
    if (
        len(rows) < 3
        or rows.shape[1] < 2
        or not np.isfinite(rows).all()
        or not np.ptp(rows, 0).any()
    ):
        raise UserError(
            f"features of {len(rows)} views: too few, all the same or not finite; "
            "there is nothing to project"
        )
    fitted = PCA(2, svd_solver="full").fit(rows)  # the one solver without random numbers
    points = {size: fitted.transform(features[size].astype(np.float64)) for size in sizes}
    first, second = (float(share) for share in fitted.explained_variance_ratio_)
    return Projection(
        points,
        (first, second),
        {size: separation(features[size], codes) for size in sizes},
        {size: separation(points[size], codes) for size in sizes},
    )


def separation(x: np.ndarray, codes: np.ndarray) -> float | None:
    """The mean silhouette (Rousseeuw 1987) of rows x (n, d) in the classes `codes`.

    Of each row (b - a) / max(a, b): a its mean distance to its own class, b that to the nearest
    other. None for fewer than two classes, or no more rows than classes.
    """
    from sklearn.metrics import silhouette_score

    count = len(np.unique(codes))
    if not 2 <= count <= len(x) - 1:
        return None
    return float(silhouette_score(x.astype(np.float64), codes))


def choose_classes(samples: Sequence[Sample], names: Sequence[str] | None = None) -> list[str]:
    """The classes called `names`, or the 5 with most images; of as many, those first in order.

    Raises `UserError` for a name that no sample has, or fewer than two of them.
    """
    counts = Counter(sample.label for sample in samples)
    if names is None:
        ordered = sorted(counts, key=lambda label: (-counts[label], label))
        names = sorted(ordered[:CLASSES])
    unknown = [name for name in names if name not in counts]
    if unknown:
        raise UserError(
            f"classes: no image of {unknown[0]!r}; {did_you_mean(unknown[0], list(counts))}"
        )
    chosen = list(dict.fromkeys(names))
    if len(chosen) < 2:
        raise UserError(f"classes: {len(chosen)}; two or more can be told apart")
    return chosen
