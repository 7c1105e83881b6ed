"""Views of a batch: the same images at other sides, made on the batch's own device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def resize_batch(x: Tensor, side: int) -> Tensor:
    """A batch `x` of shape (n, c, h, w) resized to (n, c, side, side), values kept in their range.

    Bilinear and antialiased, as Pillow does it, so that a view made here looks like an image that
    was decoded at that size. A batch that has the side already comes back as it is.
    """
    if tuple(x.shape[-2:]) == (side, side):
        return x
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False, antialias=True)


class Resize(nn.Module):
    """`resize_batch` to `side` as a layer."""

    def __init__(self, side: int):
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        """Batches (n, c, h, w) to (n, c, side, side)."""
        return resize_batch(x, self.side)

    def extra_repr(self) -> str:
        return f"{self.side}"


def make_views(x: Tensor, scales: Sequence[int], sizes: Sequence[int] = ()) -> list[Tensor]:
    """One view (n, c, scale, scale) of the batch `x` (n, c, h, w) per scale, in their order.

    sizes: for each, the side to which the batch is reduced before it is brought to the scale; the
    scale itself where it is not.
    """
    x = x.as_subclass(torch.Tensor)
    return [rescale_view(x, size, scale) for size, scale in zip(sizes or scales, scales)]


def draw_side(scale: int, sides: Sequence[int], share: float) -> int:
    """With the chance `share` one of `sides`, each as likely as any other, else `scale`.

    Drawn from torch's own generator on the CPU, from which nothing is drawn where `sides` holds
    `scale` alone.
    """
    if tuple(sides) == (scale,) or float(torch.rand(())) >= share:
        return scale
    return sides[int(torch.randint(len(sides), ()))]


def rescale_view(x: Tensor, size: int, scale: int) -> Tensor:
    """The batch `x` (n, c, h, w) reduced to `size` and brought up to `scale`: (n, c, scale, scale).

    Multi-scale training sees images this way (Section VI-C): rescaled, then upsampled to the
    model's one input size.
    """
    return resize_batch(resize_batch(x.as_subclass(torch.Tensor), size), scale)
