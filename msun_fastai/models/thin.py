"""A thin ResNet of our own, for small images and short trainings."""

from __future__ import annotations

from torch import nn
from torchvision.models.resnet import BasicBlock, ResNet


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
