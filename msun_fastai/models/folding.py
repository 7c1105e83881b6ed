"""Batch norms folded into the convolutions before them: fewer layers, the same answers."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from msun_fastai.models.meta import evaluating, on_meta


def folded(network: nn.Module, side: int) -> nn.Module:
    """A copy of `network` in evaluation mode without the batch norms that a convolution can take
    over; it shares no parameters with it.

    Such a batch norm is the only one to see the convolution's output, and both run once for an
    image (3, side, side). Others stay: those behind something else, as in DenseNet, and subclasses
    that do more than to normalise, as timm's with an activation inside.
    """
    network = copy.deepcopy(network).eval()
    with torch.no_grad():
        for conv_path, norm_path in foldable(network, side):
            conv, norm = network.get_submodule(conv_path), network.get_submodule(norm_path)
            assert isinstance(conv, nn.Conv2d)
            assert isinstance(norm, nn.BatchNorm2d)
            network.set_submodule(conv_path, fuse_conv_bn_eval(conv, norm))
            network.set_submodule(norm_path, nn.Identity())
    return network.requires_grad_(False)


def foldable(network: nn.Module, side: int) -> list[tuple[str, str]]:
    """Paths of the convolutions and of the batch norms that they can take over, see `folded`.

    Found by running `network` for an image (3, side, side) on the meta device: the order in which
    modules are named says nothing of what they are given.
    """
    blank = on_meta(network)
    made: dict[int, str] = {}  # by the identity of what a convolution gave, which `kept` keeps
    kept: list[Tensor] = []
    pairs: list[tuple[str, str, int]] = []
    calls: Counter[str] = Counter()

    def watch(path: str) -> Any:
        def hook(module: nn.Module, given: tuple[Tensor, ...], gave: Tensor) -> None:
            calls[path] += 1
            if isinstance(module, nn.Conv2d):
                made[id(gave)] = path
                kept.append(gave)
            elif id(given[0]) in made:
                pairs.append((made[id(given[0])], path, id(given[0])))

        return hook

    for path, module in blank.named_modules(remove_duplicate=False):
        if type(module) is nn.BatchNorm2d or type(module) is nn.Conv2d:
            module.register_forward_hook(watch(path))
    image = torch.empty(1, 3, side, side, device="meta")
    with torch.no_grad(), evaluating(blank), _Uses() as uses:
        blank(image)
    return [
        (conv, norm)
        for conv, norm, output in pairs
        if uses.of[output] == calls[conv] == calls[norm] == 1
    ]


class _Uses(TorchDispatchMode):
    """Counts how many operations are given each tensor, by its identity."""

    def __init__(self) -> None:
        super().__init__()
        self.of: Counter[int] = Counter()
        self._kept: list[Any] = []  # so that no identity comes twice

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        self._kept += given
        self.of.update({id(x) for x in given})
        return func(*args, **(kwargs or {}))
