"""The cost figures that the paper prints, and ours beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from msun_fastai.flops import PAPER_PER_MAC, Cost, network_cost
from msun_fastai.models.net import NetConfig
from msun_fastai.scales import DEFAULT_SCALES, SCALE_SETS, sweep_sizes

CLASSES = 1000
SIZES = sweep_sizes(DEFAULT_SCALES[0], DEFAULT_SCALES[-1])

# arch: parameters of Vanilla and of MSUN in millions (Table II), the mean FLOPs of both over the
# 13 sizes (Table II), the FLOPs of f_1, f_2 and f_3 (Table IV) in 1e9, all as printed
ARCHS: dict[str, tuple[float, float, float, float, tuple[float, float, float]]] = {
    "resnet50": (25.6, 26.0, 32.8, 30.5, (28.4, 29.2, 32.8)),
    "densenet121": (8.0, 8.7, 22.8, 19.9, (16.0, 18.9, 22.8)),
    "vgg16": (138.0, 141.0, 124.0, 104.0, (86.8, 98.3, 124.0)),
    "mobilenet_v2": (3.5, 3.9, 2.46, 2.28, (2.02, 2.21, 2.46)),
}
# ResNet-50's configurations: blocks, subnets, parameters in millions (Table V)
CONFIGURATIONS = (
    (0, "S3", 25.6),
    (1, "S3", 26.0),
    (2, "S3", 28.4),
    (3, "S3", 42.6),
    (1, "S2", 25.8),
    (1, "S4", 26.2),
    (1, "S5", 26.4),
)
SNET_PARAMS = 76.7  # Table VI

NOTES = (
    "FLOPs are the paper's: 8 x multiply-accumulates. Means are over 32, 48, ..., 224, each routed "
    "to the nearest scale (4, 6 and 3 of them to f_1, f_2, f_3). However many go to each, the "
    "paper's own f_1, f_2 and f_3 never give more than two of its four means.",
    "DenseNet-121 and MobileNetV2, f_2: the paper's lie between a subnet on the grid here and one "
    "on twice that, which is above the canonical grid.",
    "VGG-16: the paper's 3.0M more would be two more copies of 1.5M, between blocks 1-2 (0.26M) "
    "and blocks 1-3 (1.74M); its f_1 and f_2 fit blocks 1-2, the cut here. Vanilla is 138.36M.",
    "MobileNetV2: 0.4M more would be two copies of 0.2M, far behind the grid of 56 that its FLOPs "
    "fit; the cut here, features[0:4], has 0.014M.",
)


@dataclass(frozen=True)
class Line:
    """One figure: of which network, which, from which table, the paper's value and ours."""

    network: str
    figure: str
    table: str
    paper: float
    here: float

    @property
    def difference(self) -> float:
        """How much larger ours is, as a fraction of the paper's."""
        return self.here / self.paper - 1

    def as_dict(self) -> dict[str, Any]:
        """The fields and the difference as JSON takes them."""
        return {**self.__dict__, "difference": self.difference}


def compare() -> list[Line]:
    """Every cost figure of the paper beside ours: parameters in 1e6, FLOPs (its way) in 1e9."""
    lines = []
    for arch, (plain, params, plain_mean, mean, per_subnet) in ARCHS.items():
        cost = network_cost(NetConfig(arch, CLASSES), SIZES)
        lines += [
            Line(arch, "parameters, Vanilla (M)", "II", plain, cost.plain_params / 1e6),
            Line(arch, "parameters, MSUN (M)", "II", params, cost.params / 1e6),
            *_flops(arch, cost, per_subnet),
            Line(arch, "mean FLOPs, Vanilla (G)", "II", plain_mean, as_printed(cost.plain_macs)),
            Line(arch, "mean FLOPs, MSUN (G)", "II", mean, as_printed(cost.mean_macs)),
        ]
    for blocks, subnets, printed in CONFIGURATIONS:
        config = NetConfig("resnet50", CLASSES, SCALE_SETS[subnets], blocks=blocks)
        params = network_cost(config, SIZES).params / 1e6
        lines.append(Line(f"resnet50 B{blocks}-{subnets}", "parameters (M)", "V", printed, params))
    snet = network_cost(NetConfig("resnet50", CLASSES, method="snet"), SIZES).params / 1e6
    return [*lines, Line("resnet50 SNet", "parameters (M)", "VI", SNET_PARAMS, snet)]


def as_printed(macs: float) -> float:
    """Multiply-accumulates as the paper's FLOPs columns have them, in 1e9."""
    return PAPER_PER_MAC * macs / 1e9


def _flops(arch: str, cost: Cost, printed: tuple[float, ...]) -> list[Line]:
    counted = cost.macs_per_subnet.values()
    return [
        Line(arch, f"FLOPs of f_{i} (G)", "IV", figure, as_printed(macs))
        for i, (figure, macs) in enumerate(zip(printed, counted), 1)
    ]
