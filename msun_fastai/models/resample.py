"""Kernels resampled to another size, so that their response to a resized image stays alike.

A view at scale s shows the same picture with pixels that are canonical/s times as wide. The best
kernel for it is the one whose response comes closest, over natural images, to the response of the
pretrained kernel on the canonical view. With images modelled as a separable first-order Markov
field that is a least-squares problem with a closed form, the same for rows and columns, solved
once for a kernel size and a ratio of scales. (FlexiViT resizes patch embeddings in this spirit,
for white noise and without the neighbourhood.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

NEIGHBOUR_CORRELATION = 0.95  # of adjacent pixels in photographs; Jain, Fundamentals of Digital
# Image Processing (1989), section 2.11, gives 0.95 as the usual value


def resampling_matrix(old: int, new: int, ratio: float) -> Tensor:
    """The matrix A (new, old), float64, that maps a row of the old kernel to one of the new.

    ratio: new scale over old scale, at most 1. The view's pixels are antialiased bilinear averages
    of the old ones, as `resize_batch` makes them; A = (P C P')^-1 P C E with those averages P, the
    images' covariance C, and the old kernel's footprint E.
    """
    reach = math.ceil((new // 2 + 1) / ratio) + old // 2
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    centres = (torch.arange(new, dtype=torch.float64) - (new - 1) / 2) / ratio
    averages = (1 - (at - centres[:, None]).abs() * ratio).clamp(min=0)
    averages = averages / averages.sum(1, keepdim=True)
    covariance = NEIGHBOUR_CORRELATION ** (at - at[:, None]).abs()
    offset = (at[:, None] - (torch.arange(old, dtype=torch.float64) - (old - 1) / 2)).abs()
    footprint = (1 - offset).clamp(min=0)
    seen = averages @ covariance
    return torch.linalg.solve(seen @ averages.T, seen @ footprint)


def resample_kernel(weight: Tensor, size: int, ratio: float) -> Tensor:
    """Convolution kernels (out, in, k, k) resampled to (out, in, size, size) for scale `ratio`."""
    if ratio > 1:
        raise ValueError(f"ratio {ratio}: kernels are resampled towards smaller scales only")
    matrix = resampling_matrix(weight.shape[-1], size, ratio)
    return (matrix @ weight.double() @ matrix.T).to(weight.dtype)
