"""Backbones: one row a family that says where to cut it and how its stem shrinks.

Another family is another row: the paths of its modules in order, block by block.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn
from torchvision.models import get_model
from torchvision.models.resnet import BasicBlock, ResNet

from msun_fastai.errors import UserError, did_you_mean

FLATTEN = "flatten"  # torchvision's forward flattens by a function call, not a module


@dataclass(frozen=True)
class Family:
    """Where the blocks of a family of networks end, and how its stem is made smaller.

    blocks: module paths from the image to the last feature map; the first tuple is the stem (B0),
    each further one a block (B1, B2, ...). head: pooling and classifier. first_conv: the
    convolution whose kernel shrinks with the scale. reducers: what a subnet drops, in this order,
    as long as its grid stays at or below the canonical one: pools first, then strides. classifier:
    the last linear layer. builders: networks that torchvision does not have.
    """

    name: str
    archs: tuple[str, ...]
    blocks: tuple[tuple[str, ...], ...]
    head: tuple[str, ...]
    first_conv: str
    reducers: tuple[str, ...]
    classifier: str
    builders: dict[str, Callable[..., nn.Module]] = field(default_factory=dict)

    def build(self, arch: str, n_classes: int) -> nn.Module:
        """The plain network `arch` with random weights and `n_classes` outputs."""
        if arch in self.builders:
            return self.builders[arch](num_classes=n_classes)
        return get_model(arch, weights=None, num_classes=n_classes)


class ThinResNet(ResNet):
    """A ResNet of basic blocks whose stages have `width`, 2, 4 and 8 times `width` channels.

    torchvision's own constructor fixes the first stage at 64 channels; this one is for small
    images, short studies and machines without an accelerator.
    """

    def __init__(self, layers: tuple[int, int, int, int], width: int, num_classes: int = 1000):
        super().__init__(BasicBlock, list(layers), num_classes=num_classes)
        self.inplanes = width
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for i, depth in enumerate(layers):
            stage = self._make_layer(BasicBlock, width * 2**i, depth, stride=1 if i == 0 else 2)
            setattr(self, f"layer{i + 1}", stage)
        self.fc = nn.Linear(width * 8, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def thin_resnet10(num_classes: int = 1000) -> ThinResNet:
    """ResNet-10 with 32 channels in its first stage: 1.2M parameters."""
    return ThinResNet((1, 1, 1, 1), 32, num_classes)


FAMILIES = (
    Family(
        name="resnet",
        archs=(
            *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
            *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
            *("wide_resnet50_2", "wide_resnet101_2"),
            "thin_resnet10",
        ),
        blocks=(
            ("conv1", "bn1", "relu", "maxpool"),
            ("layer1",),
            ("layer2",),
            ("layer3",),
            ("layer4",),
        ),
        head=("avgpool", FLATTEN, "fc"),
        first_conv="conv1",
        reducers=("maxpool", "conv1"),
        classifier="fc",
        builders={"thin_resnet10": thin_resnet10},
    ),
)


def known_archs() -> list[str]:
    """The name of every backbone that can be built."""
    return sorted(arch for family in FAMILIES for arch in family.archs)


def find_family(arch: str) -> Family:
    """The family of `arch`, or a `UserError` that names what is near."""
    for family in FAMILIES:
        if arch in family.archs:
            return family
    raise UserError(f"arch: unknown backbone {arch!r}; {did_you_mean(arch, known_archs())}")


def submodule_key(path: str) -> str:
    """A module path as one key of a `Sequential`: a dot would look like nesting."""
    return path.replace(".", "_")


def take_modules(network: nn.Module, paths: tuple[str, ...]) -> nn.Sequential:
    """The modules at `paths` one after the other, under their own names."""
    parts = OrderedDict(
        (submodule_key(p), nn.Flatten(1) if p == FLATTEN else network.get_submodule(p))
        for p in paths
    )
    return nn.Sequential(parts)


def split_backbone(
    network: nn.Module, family: Family, blocks: int
) -> tuple[nn.Sequential, nn.Sequential, nn.Sequential]:
    """`network` as shallow layers f (stem and `blocks` blocks), deep layers and head.

    g of Eq. 3 is deep layers and head together. Raises `UserError` where the family has fewer
    blocks, or where nothing would be left to share.
    """
    most = len(family.blocks) - 2
    if not 0 <= blocks <= most:
        raise UserError(f"blocks: {blocks} is not between 0 and {most}, what {family.name} allows")
    shallow = tuple(p for block in family.blocks[: blocks + 1] for p in block)
    deep = tuple(p for block in family.blocks[blocks + 1 :] for p in block)
    return (
        take_modules(network, shallow),
        take_modules(network, deep),
        take_modules(network, family.head),
    )
