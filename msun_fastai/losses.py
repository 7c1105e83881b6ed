"""The scale-invariance term (Section V-C) as pure functions on features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

from msun_fastai.scales import check_choice


def mse_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared difference over all elements of two equal shapes (n, c, h, w); a scalar."""
    return (a - b).square().mean()


def euclidean_distance(a: Tensor, b: Tensor) -> Tensor:
    """Root of each image's mean squared difference, averaged over the batch; a scalar.

    The Euclidean distance of Eq. 7 divided by the root of the number of elements, so that it does
    not grow with the grid. The tiny constant keeps the gradient finite where features are equal.
    """
    tiny = torch.finfo(a.dtype).tiny
    return ((a - b).square().flatten(1).mean(1) + tiny).sqrt().mean() - tiny**0.5


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """One minus the cosine between the channels of each position, averaged; a scalar in [0, 2]."""
    return (1 - F.cosine_similarity(a, b, dim=1)).mean()


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": mse_distance,
    "euclidean": euclidean_distance,
    "cosine": cosine_distance,
}


def pool_to_smallest(features: Sequence[Tensor]) -> list[Tensor]:
    """Features of shape (n, c, h_i, w_i) averaged down to the smallest grid among them."""
    height, width = min((f.shape[-2:] for f in features), key=lambda hw: hw[0] * hw[1])
    return [F.adaptive_avg_pool2d(f, (height, width)) for f in features]


def si_loss(features: Sequence[Tensor], distance: str = "mse") -> Tensor:
    """L_SI of Eq. 7: the distance D summed over all pairs of scales.

    `features` holds one tensor (n, c, h_i, w_i) per scale, of the same images. Computed in float32
    whatever the features' type: a squared half-precision activation overflows. The paper does not
    say how D is normalised; here it is a mean over elements, so its size does not depend on the
    grid. Features on different grids (native alignment) are compared on the smallest.
    """
    dist = DISTANCES[check_choice("distance", distance, DISTANCES)]
    pooled = pool_to_smallest([f.float() for f in features])
    pairs = [dist(a, b) for a, b in combinations(pooled, 2)]
    return torch.stack(pairs).sum() if pairs else pooled[0].new_zeros(())


def floored(loss: Tensor, floor: float = 0.0) -> Tensor:
    """max(L_SI, lambda) of Eq. 8: below the floor the term is constant and gives no gradient."""
    return loss.clamp(min=floor)
