"""Views of a batch: the same images at other sides, made on the batch's own device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def resize_batch(x: Tensor, side: int) -> Tensor:
    """A batch `x` of shape (n, c, h, w) resized to (n, c, side, side), values kept in their range.

    Bilinear and antialiased, as Pillow does it, so that a view made here looks like an image that
    was decoded at that size. A batch that has the side already comes back as it is.
    """
    if tuple(x.shape[-2:]) == (side, side):
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


def make_views(x: Tensor, scales: Sequence[int]) -> list[Tensor]:
    """One view of the batch `x` per scale, in the order of `scales`."""
    x = x.as_subclass(torch.Tensor)
    return [resize_batch(x, scale) for scale in scales]


def rescale_view(x: Tensor, size: int, canonical: int) -> Tensor:
    """The batch `x` reduced to `size` and brought up to `canonical` again.

    Multi-scale training sees images this way (Section VI-C): rescaled, then upsampled to the
    model's one input size.
    """
    return resize_batch(resize_batch(x.as_subclass(torch.Tensor), size), canonical)
