"""What ties the views of an image together, as pure functions: the scale-invariance term on
features (Section V-C), and distillation between scales on logits (SAN, RS-Nets)."""

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


def si_loss(features: Sequence[Tensor], distance: str = "mse", detach: bool = False) -> Tensor:
    """L_SI of Eq. 7: the distance D summed over all pairs of scales.

    `features` holds one tensor (n, c, h_i, w_i) per scale, of the same images, the smallest scale
    first. Computed in float32 whatever their type: a squared half-precision activation overflows.
    The paper does not say how D is normalised; here it is a mean over elements, so its size does
    not depend on the grid. Features on different grids (native alignment) are compared on the
    smallest. detach (ours): of each pair the larger scale's features are a constant, as its
    prediction is in `sd_loss`; the value is the same, the gradient reaches the smaller's alone.
    A scalar. Raises `UserError` for an unknown distance.
    """
    dist = DISTANCES[check_choice("distance", distance, DISTANCES)]
    pooled = pool_to_smallest([f.float() for f in features])
    pairs = [
        dist(smaller, larger.detach() if detach else larger)
        for smaller, larger in combinations(pooled, 2)
    ]
    return torch.stack(pairs).sum() if pairs else pooled[0].new_zeros(())


def alignment_loss(features: Sequence[Tensor], distance: str = "mse") -> Tensor:
    """The distance D of each smaller scale's features from the canonical ones, summed.

    features: (n, c, h_i, w_i) each, as `si_loss` takes them, the canonical scale's last, a constant
    here. Where two grids differ both are averaged down to the smaller one. A scalar. Ours; the
    papers train by labels throughout. Raises `UserError` for an unknown distance.
    """
    dist = DISTANCES[check_choice("distance", distance, DISTANCES)]
    *smaller, canonical = [f.float() for f in features]
    pairs = [pool_to_smallest([f, canonical.detach()]) for f in smaller]
    return torch.stack([dist(own, target) for own, target in pairs]).sum()


def floored(loss: Tensor, floor: float = 0.0) -> Tensor:
    """max(L_SI, lambda) of Eq. 8, a scalar: below the floor it is constant and has no gradient."""
    return loss.clamp(min=floor)


def kl_to(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(p_teacher || p_student) of two scales' logits (n, classes), averaged over the images.

    The teacher is a constant: no gradient reaches it. Computed in float32.
    """
    p, q = teacher.detach().float().log_softmax(1), student.float().log_softmax(1)
    return F.kl_div(q, p, reduction="batchmean", log_target=True)


def sd_loss(logits: Sequence[Tensor]) -> Tensor:
    """Scale distillation (Eq. 3 of SAN): the sum over all pairs of scales of the KL divergence from
    the larger scale's prediction, a constant, to the smaller one's.

    logits: (n, classes) each, of the same images, the smallest scale first.
    """
    pairs = [kl_to(larger, smaller) for smaller, larger in combinations(logits, 2)]
    return torch.stack(pairs).sum() if pairs else logits[0].new_zeros((), dtype=torch.float32)


def ensemble_logits(logits: Sequence[Tensor], weights: Tensor) -> Tensor:
    """z_m = sum over scales of alpha_s z_s, alpha = softmax(weights): (n, classes), in float32.

    logits: (n, classes) each, constants here, so that what is done with z_m trains the `weights`
    (scales,) alone.
    """
    stacked = torch.stack([z.detach().float() for z in logits])
    return (weights.float().softmax(0)[:, None, None] * stacked).sum(0)


def ensemble_loss(logits: Sequence[Tensor], ensemble: Tensor) -> Tensor:
    """Multi-resolution ensemble distillation, top-down (RS-Nets): 2 / (S (S + 1)) times the sum of
    KL(p_k || p_i) over teachers k in (ensemble, scales from the largest down) and scales i after.

    Their number is S (S + 1) / 2: it is the mean. logits: as in `sd_loss`; ensemble: (n, classes).
    """
    ranked = [ensemble, *reversed(logits)]
    return torch.stack([kl_to(k, i) for k, i in combinations(ranked, 2)]).mean()
