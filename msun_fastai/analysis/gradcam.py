"""Grad-CAM: where a network looks for a class, and how alike that is across sizes (Figure 7)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate


class Cam(NamedTuple):
    """Grad-CAM of a batch: maps (n, h, w) on the grid of the last features, the `codes` (n,) of the
    classes that they are of, and what the network answers: its `logits` (n, classes)."""

    maps: Tensor
    codes: Tensor
    logits: Tensor


def grad_cam(
    body: Callable[[Tensor], Tensor],
    head: Callable[[Tensor], Tensor],
    x: Tensor,
    codes: Tensor | None = None,
) -> Cam:
    """L^c = ReLU(sum_k alpha_k^c A^k), alpha_k^c the mean of dy^c / dA^k over the grid (Eq. 9).

    body: from x (n, 3, h, w) to the features A (n, k, h', w'); head: from these to logits y, which
    must treat every image alone, as it does in evaluation mode. codes: the class c of each image,
    or None for the network's own answer. The maps are raw, not scaled to [0, 1]. No parameter needs
    a gradient, none gets one.
    """
    with torch.inference_mode(False):  # whose tensors know no gradients
        with torch.no_grad():
            features = body(x).detach().clone()
        with torch.enable_grad():
            logits = head(features.requires_grad_())
            chosen = logits.detach().argmax(1) if codes is None else codes.to(logits.device)
            score = logits.gather(1, chosen[:, None]).sum()
            (gradients,) = torch.autograd.grad(score, features)
    maps = class_activation(features.detach(), gradients)
    return Cam(maps, chosen, logits.detach())


def class_activation(features: Tensor, gradients: Tensor) -> Tensor:
    """Maps (n, h, w) from features A and gradients dy / dA, both (n, k, h, w) (Eq. 9)."""
    alpha = gradients.mean((2, 3), keepdim=True)
    return (alpha * features).sum(1).relu()


def likeness(maps: Sequence[Tensor]) -> dict[tuple[int, int], Tensor]:
    """Pearson's correlation over positions of the maps (n, h_i, w_i) of every two sizes, (n,) each.

    By the places of the two in `maps`. Maps of different grids are brought to the larger one
    (bilinear). NaN where one of the two is the same everywhere, as one that is zero: it says
    nothing of where.
    """
    grid = max(m.shape[-2] for m in maps), max(m.shape[-1] for m in maps)
    brought = [standardized(m, grid) for m in maps]
    return {(i, j): (brought[i] * brought[j]).sum(1) for i, j in combinations(range(len(maps)), 2)}


def standardized(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """Maps (n, h, w) brought to `grid`, less their mean, of length 1: float64 (n, positions).

    NaN where a map is the same everywhere.
    """
    flat = maps.flatten(1)
    same = flat.amax(1) == flat.amin(1)  # before rounding makes it differ
    rows = interpolate(maps[:, None].double(), grid, mode="bilinear", align_corners=False)
    rows = rows.flatten(1) - rows.flatten(1).mean(1, keepdim=True)
    rows = rows / rows.norm(dim=1, keepdim=True)
    rows[same] = torch.nan
    return rows
