"""What a ScaleNet is made of: units, couples, transforms (Zhang et al. 2019, Section III)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad

from msun_fastai.models.scalenet_names import Plan, Stage, pooled_widths, takes_units, unit_widths

# the maps that one block hands to the next, largest first; each is half as large as the one before,
# rounded up
Maps = tuple[Tensor, ...]


def crop(x: Tensor, like: Tensor) -> Tensor:
    """The first rows and columns of `x` (n, c, h, w), as many as `like` has."""
    height, width = like.shape[-2:]
    return x if x.shape[-2:] == like.shape[-2:] else x[..., :height, :width]


class Unit(nn.Module):
    """BatchNorm-ReLU-Conv.

    Halving with a kernel of 2, which has no padding, an odd map gets a row and a column of zeros:
    no pixel is left out, and the result is as large as that of a padded kernel of 3.
    """

    def __init__(self, given: int, made: int, kernel: int, stride: int = 1):
        super().__init__()
        self.norm = nn.BatchNorm2d(given)
        self.relu = nn.ReLU(inplace=True)
        side = (kernel - 1) // 2
        self.conv = nn.Conv2d(given, made, kernel, stride=stride, padding=side, bias=False)
        self.whole = kernel == stride == 2

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, given, h, w); returns (n, made, ceil(h / stride), ceil(w / stride))."""
        x = self.relu(self.norm(x))
        if self.whole:
            x = pad(x, (0, x.shape[-1] % 2, 0, x.shape[-2] % 2))
        return self.conv(x)


class Down(Unit):
    """Half the size: a convolution of stride 2 (A), or one of stride 1 and a max pool (C)."""

    def __init__(self, given: int, made: int, plan: Plan):
        pooled = plan.resampling[0] == "c"
        super().__init__(given, made, 3, stride=1 if pooled else 2)
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if pooled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, given, h, w); returns (n, made, ceil(h / 2), ceil(w / 2))."""
        return self.pool(super().forward(x))


class Up(nn.Module):
    """Twice the size: a deconvolution of stride 2 (B), or interpolation and a convolution (D).

    The paper's kernel of 3 with its output padding of 1 doubles a map, and so does a kernel of 4
    without; what comes of an odd map is cropped to it.
    """

    def __init__(self, given: int, made: int, plan: Plan):
        super().__init__()
        self.norm = nn.BatchNorm2d(given)
        self.relu = nn.ReLU(inplace=True)
        self.deconv = plan.resampling[1] == "b"
        if self.deconv:
            more = 4 - plan.kernel
            self.conv: nn.Module = nn.ConvTranspose2d(
                given, made, plan.kernel, stride=2, padding=1, output_padding=more, bias=False
            )
        else:
            self.conv = nn.Conv2d(given, made, 3, padding=1, bias=False)

    def forward(self, x: Tensor, like: Tensor) -> Tensor:
        """x: (n, given, ceil(h / 2), ceil(w / 2)); returns (n, made, h, w), as `like` has it."""
        x = self.relu(self.norm(x))
        if self.deconv:
            return crop(self.conv(x), like)
        return self.conv(crop(interpolate(x, scale_factor=2.0, mode="nearest"), like))


class Couple(nn.Module):
    """A block: maps are made smaller, then as large as before, with as many channels.

    first: of its stage. It takes the stage's smaller maps with any residual, so that none of what
    makes them is without use.
    """

    def __init__(self, stage: Stage, plan: Plan, first: bool):
        super().__init__()
        self.inner = plan.multipath  # the green skips inside the outermost
        self.crossing = plan.multipath or first  # the blue ones, from the block before
        self.downs = nn.ModuleList(Down(a, b, plan) for a, b in pairwise(stage.widths))
        widths = stage.widths[::-1]
        self.ups = nn.ModuleList(Up(a, b, plan) for a, b in pairwise(widths))

    @property
    def smallest(self) -> nn.Module:
        """The module that gives the block's smallest map, normalised and rectified (Figure 6)."""
        return self.ups[0].get_submodule("relu")

    def _plus(self, x: Tensor, before: Maps, i: int) -> Tensor:
        return x + before[i] if self.crossing and i < len(before) else x


class DoubleCouple(Couple):
    """Conv-Conv-DeConv-DeConv: X + D4(D3(C2(C1 X + x3) + x2) + C1 X) of the block before's outputs
    X, x3, x2 (Eq. 2; the sums are nested so that they give its A, B, C and D)."""

    def forward(self, maps: Maps) -> Maps:
        """maps: X (n, c1, h, w) and, if there are any, x3 at half and x2 at a quarter of that size.

        Returns the block's own X, x3 and x2.
        """
        x = maps[0]
        half = self.downs[0](x)
        mixed = self._plus(half, maps, 1)
        quarter = self.downs[1](mixed)
        up = self.ups[0](self._plus(quarter, maps, 2), half)
        out = self.ups[1](up + half if self.inner else up, x)
        return out + x, up, quarter


class SingleCouple(Couple):
    """Conv-DeConv: X + D2(C1 X + x1) of the block before's outputs X and x1."""

    def forward(self, maps: Maps) -> Maps:
        """maps: X (n, c1, h, w) and, if there is one, x1 at half that size; returns the block's."""
        x = maps[0]
        half = self.downs[0](x)
        return self.ups[0](self._plus(half, maps, 1), x) + x, half


class UnitsTransform(nn.Module):
    """The transform of Section III-A.3: a unit a map, two convolutions (3x3, then 2x2 of stride 2),
    each result concatenated with the map before it that has its size, where there is one."""

    def __init__(self, before: Stage, after: Stage):
        super().__init__()
        made = unit_widths(before, after)
        self.units = nn.ModuleList(
            nn.Sequential(Unit(a, b, 3), Unit(b, b, 2, stride=2))
            for a, b in zip(before.widths, made)
        )

    def forward(self, maps: Maps) -> Maps:
        """Maps of a stage as the next one takes them, half as large."""
        halves = [unit(x) for unit, x in zip(self.units, maps)]
        beside = maps[1 : len(halves) + 1]
        joined = [torch.cat(pair, 1) for pair in zip(halves, beside)]
        return (*joined, *halves[len(joined) :])


class PooledTransform(nn.Module):
    """The transform of the depths that are printed: one convolution where channels double.

    As the authors' code has it: each map is max-pooled and concatenated with the smaller one, the
    smallest with a convolution (2x2, stride 2) and a max pool of the largest's half. A 1x1
    convolution follows where that gives other channels than the next stage's.
    """

    def __init__(self, before: Stage, after: Stage):
        super().__init__()
        largest = before.widths[0]
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.quarter = nn.Conv2d(largest, largest, 2, stride=2, bias=False)
        self.fits = nn.ModuleList(
            nn.Identity() if a == b else nn.Conv2d(a, b, 1, bias=False)
            for a, b in zip(pooled_widths(before.widths), after.widths)
        )

    def forward(self, maps: Maps) -> Maps:
        """Maps of a stage as the next one takes them, half as large."""
        halves = [self.pool(x) for x in maps]
        largest = halves[0]
        even = pad(largest, (0, largest.shape[-1] % 2, 0, largest.shape[-2] % 2))
        beside = (*maps[1:], self.pool(self.quarter(even)))
        joined = [torch.cat(pair, 1) for pair in zip(halves, beside)]
        return tuple(fit(x) for fit, x in zip(self.fits, joined))


def make_transform(before: Stage, after: Stage, plan: Plan) -> nn.Module:
    """What stands between two stages."""
    kind = UnitsTransform if takes_units(plan.transform, after) else PooledTransform
    return kind(before, after)


def pack(maps: Sequence[Tensor]) -> Tensor:
    """Maps (n, c_i, ceil(h / 2^i), ceil(w / 2^i)) as one tensor (n, sum of c_i, h, w), each pixel
    of a smaller one repeated: what a network that is cut hands on."""
    large = [
        crop(interpolate(x, scale_factor=2.0**i, mode="nearest"), maps[0])
        for i, x in enumerate(maps[1:], 1)
    ]
    return torch.cat([maps[0], *large], 1) if large else maps[0]


def unpack(x: Tensor, widths: Sequence[int]) -> Maps:
    """The maps that `pack` was given, exactly, by their channels."""
    parts = x.split(list(widths), 1)
    return tuple(part[..., :: 2**i, :: 2**i] for i, part in enumerate(parts))
