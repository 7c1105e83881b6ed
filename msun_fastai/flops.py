"""Cost: parameters and multiply-accumulates of a network at every input size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from msun_fastai.models.families import find_family
from msun_fastai.models.meta import run_on_meta, smallest_side
from msun_fastai.models.net import MultiScaleNet, NetConfig

PER_MAC = 2  # torch's counter counts a multiplication and an addition
PAPER_PER_MAC = 8  # the FLOPs columns of the paper are 8 x multiply-accumulates


@dataclass(frozen=True)
class Cost:
    """What a network costs on one image; `macs` are multiply-accumulates.

    params: all parameters, shared ones once. grids: side of the features that each subnet hands to
    g. macs_per_subnet: by scale. subnet_by_size: the scale that an input size is routed to.
    macs_by_size: by input size, through the routing. plain_params,
    plain_macs: of the plain backbone, the latter at the canonical scale, where every other image
    size costs it the same. plain_smallest: the smallest side at which it runs at all.
    """

    params: int
    grids: dict[int, int]
    macs_per_subnet: dict[int, int]
    subnet_by_size: dict[int, int]
    macs_by_size: dict[int, int]
    plain_params: int
    plain_macs: int
    plain_smallest: int

    @property
    def mean_macs(self) -> float:
        """The mean over the input sizes."""
        return sum(self.macs_by_size.values()) / len(self.macs_by_size)

    @property
    def saving(self) -> float:
        """The share of the plain backbone's cost that the network saves on these sizes."""
        return 1 - self.mean_macs / self.plain_macs

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON takes them."""
        return {**self.__dict__, "mean_macs": self.mean_macs, "saving": self.saving}


def count_macs(module: nn.Module, side: int) -> int:
    """Multiply-accumulates of `module` on one image (3, side, side); nothing is computed.

    Convolutions and matrix products, as torch's own counter has them: normalisation, activations,
    pooling and the resizing of features count nothing.
    """
    with FlopCounterMode(display=False) as counter:
        run_on_meta(module, side)
    return counter.get_total_flops() // PER_MAC


def zero_inserted_macs(module: nn.Module, side: int) -> int:
    """`count_macs` with a deconvolution as the convolution of stride 1 that it is of an input with
    zeros put in: what ScaleNet's paper counts (its FLOPs of D25 and D10 are these).

    Of a stride of 2 that is 4 times the multiply-accumulates that are done.
    """
    more = 0

    def add(layer: nn.ConvTranspose2d, given: tuple[torch.Tensor, ...], made: torch.Tensor) -> None:
        nonlocal more
        zeros = made.shape[2:].numel() - given[0].shape[2:].numel()
        more += layer.weight.numel() * zeros

    layers = [m for m in module.modules() if isinstance(m, nn.ConvTranspose2d)]
    hooks = [layer.register_forward_hook(add) for layer in layers]
    try:
        return count_macs(module, side) + more
    finally:
        for hook in hooks:
            hook.remove()


def count_params(module: nn.Module) -> int:
    """Parameters of `module`, those that its parts share once."""
    return sum(p.numel() for p in module.parameters())


def network_cost(config: NetConfig, sizes: Sequence[int]) -> Cost:
    """The cost of the network of `config` on images of `sizes`. Raises `UserError`.

    It is built without values, on the meta device, so that large ones take no memory.
    """
    family = find_family(config.arch)
    plain = family.build_blank(config.arch, config.n_classes)
    plain_params = count_params(plain)
    with torch.device("meta"):
        net = MultiScaleNet(config, plain)
    scales = net.entry_scales
    per_subnet = {scale: count_macs(net.at_scale(i), scale) for i, scale in enumerate(scales)}
    taken = {size: net.route(size) for size in sizes}
    return Cost(
        params=count_params(net),
        grids={scale: net.grids[i][0] for i, scale in enumerate(scales)},
        macs_per_subnet=per_subnet,
        subnet_by_size=taken,
        macs_by_size={size: per_subnet[scale] for size, scale in taken.items()},
        plain_params=plain_params,
        plain_macs=per_subnet[scales[-1]],
        plain_smallest=smallest_side(plain, config.scales[-1]),
    )
