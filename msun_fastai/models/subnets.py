"""Subnets: the shallow layers of a backbone made to fit one scale (Section V-B)."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from msun_fastai.models.backbones import Family, submodule_key
from msun_fastai.models.resample import resample_kernel

SMALLEST_KERNEL = 3


def grid_of(module: nn.Module, side: int) -> tuple[int, int]:
    """Height and width of the features of `module` for images of `side`; nothing is computed."""
    on_meta = copy.deepcopy(module).to("meta").eval()
    with torch.no_grad():
        out = on_meta(torch.empty(1, 3, side, side, device="meta"))
    return out.shape[-2], out.shape[-1]


def kernel_sizes(canonical: int, scales: int) -> list[int]:
    """First-kernel sizes for a number of scales, smallest scale first.

    The canonical kernel stays, the smallest scale takes 3, those between them the odd size in the
    middle: 3, 5, 7 for ResNet's three.
    """
    smallest = min(SMALLEST_KERNEL, canonical)
    middle = (smallest + canonical) // 2
    middle += 1 - middle % 2
    return [smallest if i == 0 else middle for i in range(scales - 1)] + [canonical]


def make_subnets(shallow: nn.Sequential, family: Family, scales: Sequence[int]) -> nn.ModuleList:
    """One subnet f_i per scale, each a copy of the canonical `shallow` layers made to fit it.

    "We substitute the large convolutions with smaller ones and discard some maxpooling layers":
    the first kernel shrinks with the scale (resampled, so that pretrained weights keep their
    meaning), then pools and after them strides are dropped as long as the subnet's grid stays at
    or below the canonical grid. The last subnet is `shallow` itself. Everything is private, batch
    norm included.
    """
    canonical = scales[-1]
    limit = grid_of(shallow, canonical)
    first = get_conv(shallow, submodule_key(family.first_conv))
    sizes = kernel_sizes(first.kernel_size[0], len(scales))
    subnets = [
        fit_subnet(shallow, family, scale, scale / canonical, size, limit)
        for scale, size in zip(scales[:-1], sizes)
    ]
    return nn.ModuleList([*subnets, shallow])


def fit_subnet(
    shallow: nn.Sequential,
    family: Family,
    scale: int,
    ratio: float,
    kernel: int,
    limit: tuple[int, int],
) -> nn.Sequential:
    """A copy of `shallow` for images of `scale` whose grid is at most `limit`."""
    subnet = copy.deepcopy(shallow)
    key = submodule_key(family.first_conv)
    subnet.set_submodule(key, shrink_conv(get_conv(subnet, key), kernel, ratio))
    for path in family.reducers:
        trial = copy.deepcopy(subnet)
        drop_reduction(trial, submodule_key(path))
        if grid_of(trial, scale) <= limit:
            subnet = trial
    return subnet


def get_conv(shallow: nn.Sequential, key: str) -> nn.Conv2d:
    """The convolution at `key`; a family whose row names something else is a mistake in the row."""
    conv = shallow.get_submodule(key)
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"first_conv {key!r} is a {type(conv).__name__}, not a convolution")
    return conv


def shrink_conv(conv: nn.Conv2d, kernel: int, ratio: float) -> nn.Conv2d:
    """`conv` with a kernel of side `kernel` for views `ratio` times as large, and equal padding."""
    small = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        kernel,
        stride=(conv.stride[0], conv.stride[1]),
        padding=int(conv.padding[0]) - (conv.kernel_size[0] - kernel) // 2,
        groups=conv.groups,
        bias=conv.bias is not None,
    )
    with torch.no_grad():
        small.weight.copy_(resample_kernel(conv.weight, kernel, ratio))
        if conv.bias is not None and small.bias is not None:
            small.bias.copy_(conv.bias)
    return small


def drop_reduction(subnet: nn.Sequential, key: str) -> None:
    """Make the module `key` keep its input's resolution: a pool goes, a convolution steps by 1."""
    module = subnet.get_submodule(key)
    if isinstance(module, nn.Conv2d):
        module.stride = (1, 1)
    else:
        subnet.set_submodule(key, nn.Identity())


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
