"""Networks for images of any size: proxy and ideal inference.

Equations and tables of Li, Yao, Chen: Learning to Learn Parameterized Classification Networks for
Scalable Input Images, ECCV 2020. All of it works on any network of ours. Sizes are sides in pixels.
"""

from __future__ import annotations

import copy
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from msun_fastai.models.metalearners import MetaConv2d
from msun_fastai.models.methods import find_method
from msun_fastai.models.rebuild import rebuilt
from msun_fastai.scales import route

if TYPE_CHECKING:
    from msun_fastai.models.net import MultiScaleNet


def proxy_network(net: MultiScaleNet, size: int) -> nn.Sequential:
    """The plain network of the scale nearest to `size`, for images of `size` as they are (Eq. 6).

    Its kernels and batch norms are that scale's; it shares its parameters with `net`.
    """
    return _for_any_size(net, net.at_scale(nearest_scale(net, size)))


def ideal_network(net: MultiScaleNet, size: int, interpolate: bool = True) -> nn.Sequential:
    """A plain network for images of `size` (Eq. 5), generated kernels by its own encoding.

    interpolate: batch norms that are private per scale are mixed, parameters and statistics, of
    those of the two scales around the size, in proportion to the distances (the data-free form);
    beyond the scales, and without it, they are those of the nearest, for
    `moments.recalibrate`. At a scale
    of `net` all is that scale's own. The batch norms are copies, all other parameters are those of
    `net`. In evaluation mode, into which the layers that it shares are put.
    """
    private = find_method(net.config.method).switched and net.config.norm == "per_scale"
    below, above, share = _around(net.entry_scales, size)
    if not (private and interpolate):
        below = above = nearest_scale(net, size)
        share = 0.0
    parts = [net.scale_parts(i) for i in (below, above)]
    pairs = zip(*([m for m in part.modules() if isinstance(m, _BatchNorm)] for part in parts))
    norms = {id(a): interpolated(a, b, share) for a, b in pairs}

    def instead(module: nn.Module) -> nn.Module | None:
        if isinstance(module, MetaConv2d):
            return module.plain(module.kernel_for(size))
        return norms.get(id(module))

    network = nn.Sequential(OrderedDict(rebuilt(parts[0], instead).named_children()))
    return _for_any_size(net, network).eval()


def interpolated(a: _BatchNorm, b: _BatchNorm, share: float) -> _BatchNorm:
    """A batch norm between two: a + share * (b - a) of parameters and statistics."""
    norm = copy.deepcopy(a)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            value, other = getattr(norm, name), getattr(b, name)
            if value is not None:
                value.add_(share * (other - value))
    return norm


def nearest_scale(net: MultiScaleNet, size: int) -> int:
    """The index of the scale nearest to `size`, whatever the network's routing; S(T) of Eq. 6."""
    return net.entry_scales.index(route(size, net.entry_scales))


def _around(scales: Sequence[int], size: int) -> tuple[int, int, float]:
    """Indices of the scales below and above `size`, and how far it is from the one to the other;
    beyond the ends the same one twice."""
    above = min(bisect_left(scales, size), len(scales) - 1)
    below = max(above - 1, 0) if scales[above] > size else above
    if below == above:
        return above, above, 0.0
    return below, above, (size - scales[below]) / (scales[above] - scales[below])


def _for_any_size(net: MultiScaleNet, network: nn.Sequential) -> nn.Sequential:
    """`network` without the alignment, which would bring every grid to its scale's, but for one
    whose deep layers are shared by several scales on the canonical grid."""
    config = net.config
    several = len(find_method(config.method).entries(config.scales)) > 1
    if config.alignment == "canonical" and several:
        return network
    parts = [(name, part) for name, part in network.named_children() if name != "align"]
    return nn.Sequential(OrderedDict(parts))
