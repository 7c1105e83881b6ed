"""Backbones: where a family of networks is cut, and the plain network by its name."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import get_model

from msun_fastai.errors import UserError
from msun_fastai.models.meta import on_meta

IMAGENET_STATS = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])  # of every torchvision classifier


class InceptionInput(nn.Module):
    """The first lines of torchvision's GoogLeNet and Inception v3, as a module.

    Images normalised by ImageNet's statistics become images normalised by 0.5 and 0.5, as their
    weights expect.
    """

    gain: Tensor
    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        self.register_buffer("gain", (std / 0.5)[:, None, None], persistent=False)
        self.register_buffer("shift", ((mean - 0.5) / 0.5)[:, None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (n, 3, h, w); returns the same shape."""
        return x * self.gain + self.shift


# steps that a network's forward takes by a function call, so that it has no module for them
STEPS: dict[str, Callable[[], nn.Module]] = {
    "@flatten": lambda: nn.Flatten(1),
    "@relu": lambda: nn.ReLU(inplace=True),
    "@pool": lambda: nn.AdaptiveAvgPool2d(1),
    "@inception_input": InceptionInput,
}

Paths = tuple[str, ...]


def torchvision_network(arch: str, n_classes: int, **options: Any) -> nn.Module:
    """torchvision's network `arch` with random weights."""
    return get_model(arch, weights=None, num_classes=n_classes, **options)


@dataclass(frozen=True)
class Family:
    """Where the blocks of a family of networks end, and how its stem is made smaller.

    blocks: modules from the image to the last feature map, one string a block: the stem (B0), then
    B1, B2, ...; module paths with spaces between them, `features.4:7` for features.4 to .6, and
    `@flatten` and the like for what the network does without a module (`STEPS`). head: pooling and
    classifier, written the same way. classifier: the last linear layer.

    reducers: what a subnet drops, in this order, as long as its grid stays at or below the
    canonical one; where it is None, the pools and strided convolutions of the stem, last first. A
    path in it halves the stride of its convolution or removes its pool. Where these differ between
    a family's networks, blocks and reducers are functions of the network.

    build: makes the plain network from a name and a number of classes. options: its further
    arguments. unused: first parts of the names of published weights that have no place here.
    subnets: False where the structure does not bear smaller subnets. timm_module: the module of
    timm that the family's names come from, instead of `archs`. check_name: where the family has a
    naming rule, of which `archs` are examples, raises a `UserError` for a name against it; every
    name that starts as the family's is then of this family.
    """

    name: str
    blocks: Paths | Callable[[nn.Module], Paths]
    head: str
    classifier: str
    archs: Paths = ()
    reducers: Paths | Callable[[nn.Module], Paths] | None = None
    build_plain: Callable[..., nn.Module] = torchvision_network
    options: dict[str, Any] = field(default_factory=dict)
    unused: Paths = ()
    subnets: bool = True
    timm_module: str | None = None
    check_name: Callable[[str], object] | None = None

    def build(self, arch: str, n_classes: int) -> nn.Module:
        """The plain network `arch` with random weights and `n_classes` outputs."""
        return self.build_plain(arch, n_classes, **self.options)

    def build_blank(self, arch: str, n_classes: int) -> nn.Module:
        """The same on the meta device: shapes without values, in no time and no memory."""
        try:
            with torch.device("meta"):
                return self.build(arch, n_classes)
        except NotImplementedError:  # RegNet computes its widths with tensors
            return on_meta(self.build(arch, n_classes))


class Cut(NamedTuple):
    """A backbone in three: shallow layers f, deep layers and head; g of Eq. 3 is the last two.

    reducers: paths in `shallow` that a smaller subnet may drop, in this order.
    """

    shallow: nn.Sequential
    deep: nn.Sequential
    head: nn.Sequential
    reducers: list[str]


def cut_backbone(network: nn.Module, family: Family, blocks: int) -> Cut:
    """`network` cut behind its stem and `blocks` blocks; the modules are its own.

    Raises `UserError` where the family has fewer blocks, or where nothing would be left to share.
    """
    names = family.blocks(network) if callable(family.blocks) else family.blocks
    most = len(names) - 2
    if not 0 <= blocks <= most:
        raise UserError(f"blocks: {blocks} is not between 0 and {most}, what {family.name} allows")
    shallow = take_modules(network, names[: blocks + 1])
    if family.reducers is None:
        reducers = stem_reducers(take_modules(network, names[:1]))
    else:
        named = family.reducers(network) if callable(family.reducers) else family.reducers
        modules = dict(shallow.named_modules())
        reducers = [path for path in named if path in modules]
    deep = take_modules(network, names[blocks + 1 :])
    return Cut(shallow, deep, take_modules(network, [family.head]), reducers)


def stem_reducers(stem: nn.Sequential) -> list[str]:
    """Paths of what makes images smaller in a stem, last first; a stride of 4 counts twice."""
    found = []
    for path, module in stem.named_modules():
        stride = getattr(module, "stride", 1)
        step = stride if isinstance(stride, int) else stride[0]
        if isinstance(module, nn.Conv2d):
            found += [path] * (step.bit_length() - 1)
        elif step > 1 and not list(module.children()):  # a pool, or what stands for one
            found.append(path)
    return found[::-1]


def take_modules(network: nn.Module, blocks: Iterable[str]) -> nn.Sequential:
    """The modules that `blocks` name, one after the other, under their own paths."""
    tree: OrderedDict[str, Any] = OrderedDict()
    for path in (path for block in blocks for path in block.split()):
        for name in expand_range(network, path):
            step = STEPS.get(name)
            *parents, leaf = name.removeprefix("@").split(".")
            level = tree
            for parent in parents:
                level = level.setdefault(parent, OrderedDict())
            level[leaf] = step() if step else network.get_submodule(name)
    return _as_sequential(tree)


def expand_range(network: nn.Module, path: str) -> list[str]:
    """`features.4:7` as features.4 to features.6, `features.14:` as all from 14 on."""
    found = re.fullmatch(r"(.+)\.(\d+):(\d*)", path)
    if found is None:
        return [path]
    parent, start, stop = found.groups()
    count = len(list(network.get_submodule(parent).children()))
    return [f"{parent}.{i}" for i in range(int(start), int(stop or count))]


def _as_sequential(tree: OrderedDict[str, Any]) -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            (name, _as_sequential(part) if isinstance(part, OrderedDict) else part)
            for name, part in tree.items()
        )
    )
