"""Kernels resampled to another size, so that their response to a resized image stays alike.

A view at scale s shows the same picture with pixels that are canonical/s times as wide. The best
kernel for it is the one whose response comes closest, over natural images, to the response of the
pretrained kernel on the canonical view. With images modelled as a separable first-order Markov
field that is a least-squares problem with a closed form, the same for rows and columns. (FlexiViT
resizes patch embeddings in this spirit, for white noise and without the neighbourhood.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

# of adjacent pixels in photographs; the usual value, as in Jain, Fundamentals of Digital Image
# Processing (1989), section 2.11
NEIGHBOUR_CORRELATION = 0.95


def resample_kernel(weight: Tensor, size: int, ratio: float) -> Tensor:
    """Convolution kernels (out, in, k, k) resampled to (out, in, size, size).

    ratio: the new scale over the old one, at most 1. With the view's pixels P (antialiased bilinear
    averages of the old ones, as `resize_batch` makes them), the images' covariance C and the old
    kernel's footprint E, a row or column w of a kernel becomes A w with
    A = (P C P')^-1 P C E, the least-squares solution. What the view's blur takes from the
    response's variance is given back by a factor for each kernel, so that the batch norm behind it
    meets the magnitudes that its statistics describe.
    """
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio {ratio}: kernels are resampled towards smaller scales only")
    old = weight.shape[-1]
    if size == old and ratio == 1:
        return weight.clone()
    at, averages, footprint = _geometry(old, size, ratio)
    covariance = NEIGHBOUR_CORRELATION ** (at - at[:, None]).abs()
    seen = averages @ covariance
    matrix = torch.linalg.solve(seen @ averages.T, seen @ footprint)
    new = matrix @ weight.double() @ matrix.T
    before = _variance(weight.double(), footprint.T @ covariance @ footprint)
    after = _variance(new, seen @ averages.T)
    gain = (before / after.clamp(min=torch.finfo(after.dtype).tiny)).sqrt()
    return (new * gain[:, None, None, None]).to(weight.dtype)


def _geometry(old: int, new: int, ratio: float) -> tuple[Tensor, Tensor, Tensor]:
    """In one dimension, around the kernel's centre: positions of the old pixels that matter, the
    view's pixels as averages of them (new, positions), the old kernel's footprint (positions, old).
    """
    reach = math.ceil((new // 2 + 1) / ratio) + old // 2
    at = torch.arange(-reach, reach + 1, dtype=torch.float64)
    centres = (torch.arange(new, dtype=torch.float64) - (new - 1) / 2) / ratio
    averages = (1 - (at - centres[:, None]).abs() * ratio).clamp(min=0)
    taps = torch.arange(old, dtype=torch.float64) - (old - 1) / 2
    footprint = (1 - (at[:, None] - taps).abs()).clamp(min=0)
    return at, averages / averages.sum(1, keepdim=True), footprint


def _variance(kernels: Tensor, covariance: Tensor) -> Tensor:
    """The variance of each kernel's response (out,) to pixels of a separable `covariance`.

    Channels count as independent, which makes it relative; only ratios of it are used.
    """
    return ((covariance @ kernels @ covariance) * kernels).sum((1, 2, 3))
