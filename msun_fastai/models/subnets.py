"""Subnets: the shallow layers of a backbone made to fit one scale (Section V-B)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msun_fastai.errors import UserError
from msun_fastai.models.meta import Grid, grid_of, on_meta, runs_at
from msun_fastai.models.resample import resample_kernel

SMALLEST_KERNEL = 3


def kernel_sizes(canonical: int, scales: int) -> list[int]:
    """First-kernel sizes for a number of scales, smallest scale first.

    The canonical kernel stays, the smallest scale takes 3, those between them the odd size in the
    middle: 3, 5, 7 for ResNet's three.
    """
    smallest = min(SMALLEST_KERNEL, canonical)
    middle = (smallest + canonical) // 2
    middle += 1 - middle % 2
    return [smallest if i == 0 else middle for i in range(scales - 1)] + [canonical]


def make_subnets(
    shallow: nn.Sequential,
    reducers: Sequence[str],
    scales: Sequence[int],
    grids: Sequence[int] | None = None,
) -> nn.ModuleList:
    """One subnet f_i per scale, each a copy of the canonical `shallow` layers made to fit it.

    "We substitute the large convolutions with smaller ones and discard some maxpooling layers":
    the first kernel shrinks with the scale (resampled, so that pretrained weights keep their
    meaning), then `reducers` are dropped, in this order, as long as the subnet's grid stays at or
    below the canonical grid, or below its own of `grids` (sides, one per scale). The last subnet is
    `shallow` itself. Everything is private, batch norm included. Raises `UserError` for a grid that
    no choice of reducers gives.
    """
    canonical = scales[-1]
    largest = grid_of(shallow, canonical)
    limits = [largest] * len(scales) if grids is None else [(g, g) for g in grids]
    kernels = kernel_sizes(first_conv(shallow)[1].kernel_size[0], len(scales))
    subnets = []
    for scale, kernel, limit in zip(scales[:-1], kernels, limits):
        choices = reductions(shallow, reducers, scale, kernel)
        fitting = [dropped for dropped, grid in choices if grid <= limit]
        # a scale so large that even all reductions leave more than the limit keeps them all
        dropped = fitting[-1] if fitting else []
        if grids is not None:
            check_grid(scale, limit, {grid for _, grid in choices})
        subnets.append(shrink(shallow, dropped, kernel, scale / canonical))
    if grids is not None:
        check_grid(canonical, limits[-1], {largest})
    return nn.ModuleList([*subnets, shallow])


def reductions(
    shallow: nn.Sequential, reducers: Sequence[str], scale: int, kernel: int
) -> list[tuple[list[str], Grid]]:
    """What a subnet can drop, ever more of `reducers`, and the grid it has then."""
    found = []
    for n in range(len(reducers) + 1):
        subnet = shrink(shallow, reducers[:n], kernel)
        if runs_at(subnet, scale):
            found.append((list(reducers[:n]), grid_of(subnet, scale)))
    if not found:
        raise UserError(f"scales: {scale} pixels are too few for this network's shallow layers")
    return found


def check_grid(scale: int, wanted: Grid, possible: set[Grid]) -> None:
    """Raise `UserError` unless the subnet of `scale` can have the grid `wanted`."""
    if wanted not in possible:
        sides = ", ".join(str(height) for height, _ in sorted(possible))
        raise UserError(
            f"grids: the subnet of scale {scale} has no grid {wanted[0]}; it can have {sides}"
        )


def shrink(
    shallow: nn.Sequential, dropped: Sequence[str], kernel: int, ratio: float | None = None
) -> nn.Sequential:
    """A copy of `shallow` without the reductions `dropped`, its first kernel of side `kernel`.

    ratio: the new scale over the canonical one, for which the kernel is resampled; without it the
    copy is on the meta device, good for its shapes alone. A kernel never gets smaller than its
    stride, and one of patches stays as large as it: pixels would be left out.
    """
    conv = first_conv(shallow)[1]
    subnet = copy.deepcopy(shallow) if ratio is not None else on_meta(shallow)
    for reducer in dropped:
        drop_reduction(subnet, reducer)
    small = first_conv(subnet)[1]
    stride = small.stride[0]
    patches = conv.kernel_size == conv.stride and stride > 1
    kernel = stride if patches else min(max(kernel, stride), conv.kernel_size[0])
    resize_conv(small, kernel)
    if ratio is not None:
        with torch.no_grad():
            small.weight = nn.Parameter(resample_kernel(conv.weight, kernel, ratio))
    return subnet


def first_conv(shallow: nn.Module) -> tuple[str, nn.Conv2d]:
    """Path and module of the convolution that sees the image."""
    return next((n, m) for n, m in shallow.named_modules() if isinstance(m, nn.Conv2d))


def resize_conv(conv: nn.Conv2d, kernel: int) -> None:
    """Give `conv` a kernel of side `kernel`, and the padding that keeps its grid; no new values.

    A convolution padded by half its kernel stays so; one of patches is padded by what its kernel
    exceeds its stride.
    """
    old, stride = conv.kernel_size[0], conv.stride[0]
    if isinstance(conv.padding, tuple):
        half = conv.padding[0] == (old - 1) // 2
        side = (kernel - 1) // 2 if half else max(kernel - stride, 0) // 2
        conv.padding = (side, side)
    conv.kernel_size = (kernel, kernel)
    conv.weight = nn.Parameter(conv.weight.new_empty(*conv.weight.shape[:2], kernel, kernel))


def drop_reduction(subnet: nn.Module, path: str) -> None:
    """Halve the reduction of the module at `path`: a convolution's stride, or a pool goes."""
    module = subnet.get_submodule(path)
    if isinstance(module, nn.Conv2d):
        module.stride = (module.stride[0] // 2, module.stride[1] // 2)
    else:
        subnet.set_submodule(path, nn.Identity())


class Align(nn.Module):
    """Features resized to a fixed grid (bilinear), or passed on where they have it already."""

    def __init__(self, grid: tuple[int, int]):
        super().__init__()
        self.grid = grid

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, c, h, w); returns (n, c, *grid)."""
        if tuple(x.shape[-2:]) == self.grid:
            return x
        return nn.functional.interpolate(x, size=self.grid, mode="bilinear", align_corners=False)

    def extra_repr(self) -> str:
        return f"grid={self.grid[0]}x{self.grid[1]}"
