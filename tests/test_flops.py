"""Costs: parameters and multiply-accumulates, and the paper's figures."""

import pytest
import torch
from torch import nn

from msun_fastai.errors import UserError
from msun_fastai.flops import count_macs, network_cost
from msun_fastai.models.net import NetConfig
from msun_fastai.models.weights import build_net
from msun_fastai.paper import ARCHS, SIZES, compare

EVEN_MIX = (32, 128, 224)


@pytest.fixture(scope="module")
def lines():
    return {(line.network, line.figure): line for line in compare()}


def test_macs_of_layers_worked_out_by_hand():
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert count_macs(conv, 10) == 10 * 10 * 8 * 3 * 9
    grouped = nn.Conv2d(3, 6, 3, padding=1, groups=3)
    assert count_macs(grouped, 10) == 10 * 10 * 6 * 9
    linear = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(3, 7))
    assert count_macs(linear, 10) == 21


def test_counting_leaves_the_network_as_it_was():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    model[1].eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    count_macs(model, 10)
    assert model.training
    assert not model[1].training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_cost_is_that_of_the_network_that_trains():
    config = NetConfig("thin_resnet10", 10, (16, 32, 64), norm="per_scale")
    cost, net = network_cost(config, (16, 24, 64)), build_net(config)
    assert cost.params == sum(p.numel() for p in net.parameters())
    assert cost.macs_per_subnet == {
        s: count_macs(net.at_scale(i), s) for i, s in enumerate(config.scales)
    }
    assert cost.subnet_by_size == {16: 16, 24: 16, 64: 64}
    assert cost.macs_by_size[24] == cost.macs_per_subnet[16]
    by_hand = (2 * cost.macs_per_subnet[16] + cost.macs_per_subnet[64]) / 3
    assert cost.mean_macs == pytest.approx(by_hand)
    assert cost.saving == pytest.approx(1 - by_hand / cost.macs_per_subnet[64])


@pytest.mark.slow
def test_parameters_of_the_paper_to_the_printed_digit(lines):
    printed = {
        "resnet50 B0-S3": 25.6,
        "resnet50 B1-S3": 26.0,
        "resnet50 B2-S3": 28.4,
        "resnet50 B3-S3": 42.6,
        "resnet50 B1-S2": 25.8,
        "resnet50 B1-S4": 26.2,
        "resnet50 B1-S5": 26.4,
        "resnet50 SNet": 76.7,
    }
    assert {n: round(lines[n, "parameters (M)"].here, 1) for n in printed} == printed
    assert round(lines["resnet50", "parameters, MSUN (M)"].here, 1) == 26.0
    assert round(lines["densenet121", "parameters, MSUN (M)"].here, 1) == 8.7
    assert round(lines["mobilenet_v2", "parameters, Vanilla (M)"].here, 1) == 3.5


@pytest.mark.slow
@pytest.mark.parametrize("arch", list(ARCHS))
def test_flops_of_the_paper(lines, arch):
    for subnet in (1, 3):
        assert abs(lines[arch, f"FLOPs of f_{subnet} (G)"].difference) < 0.05
    if arch in ("resnet50", "vgg16"):
        assert abs(lines[arch, "FLOPs of f_2 (G)"].difference) < 0.05


def test_sizes_of_the_paper():
    assert list(SIZES) == list(range(32, 225, 16))


@pytest.mark.parametrize(
    ("arch", "grids"),
    [
        ("resnet50", (16, 32, 56)),
        pytest.param("densenet121", (8, 16, 28), marks=pytest.mark.slow),
        ("vgg16", (16, 32, 56)),
        pytest.param("mobilenet_v2", (16, 32, 56), marks=pytest.mark.slow),
    ],
)
def test_native_alignment_saves_half_on_an_even_mix(arch, grids):
    usual = network_cost(NetConfig(arch, 1000, alignment="native"), EVEN_MIX)
    assert usual.saving >= 0.45
    smaller = network_cost(NetConfig(arch, 1000, alignment="native", grids=grids), EVEN_MIX)
    assert list(smaller.grids.values()) == list(grids)
    assert smaller.saving >= 0.50
    canonical = network_cost(NetConfig(arch, 1000), EVEN_MIX)
    assert 0.05 < canonical.saving < usual.saving


def test_a_plain_network_costs_the_same_at_every_size():
    cost = network_cost(NetConfig("resnet18", 1000, method="vanilla"), EVEN_MIX)
    assert set(cost.macs_by_size.values()) == {cost.plain_macs}
    assert cost.saving == 0
    assert cost.params == cost.plain_params


def test_the_smallest_side_of_the_plain_network():
    cost = network_cost(NetConfig("alexnet", 10, (224,), "vanilla"), (224,))
    assert cost.plain_smallest == 63


def test_networks_that_cannot_be_built():
    with pytest.raises(UserError, match="between 0 and 3"):
        network_cost(NetConfig("resnet18", 10, blocks=4), EVEN_MIX)
