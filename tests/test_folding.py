"""Batch norms folded into convolutions: which, and that the answers stay."""

import pytest
import torch
from torch import nn

from msun_fastai.models.folding import foldable, folded
from msun_fastai.models.net import NetConfig
from msun_fastai.models.weights import build_net


def shaken(network):
    """`network` with batch norms that do something."""
    torch.manual_seed(5)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
            norm.running_mean.normal_(std=0.1)
            norm.running_var.uniform_(0.5, 1.5)
    return network.eval()


def norms(network):
    return sum(isinstance(m, nn.BatchNorm2d) for m in network.modules())


@pytest.mark.parametrize(
    ("arch", "method", "left"),
    [
        ("thin_resnet10", "san", 0),
        # of each of its 58 layers the first norm follows a concatenation, as do the 3 transitions'
        # and the last one; of the second norms and the stem's none is left
        ("densenet121", "vanilla", 58 + 3 + 1),
    ],
)
@torch.no_grad()
def test_answers_stay(arch, method, left):
    scales = (16, 32) if method == "san" else (32,)
    net = shaken(build_net(NetConfig(arch, 10, scales, method=method)))
    for i, scale in enumerate(net.entry_scales):
        plain = net.at_scale(i)
        state = {name: value.clone() for name, value in plain.state_dict().items()}
        network = folded(plain, scale)
        x = torch.randn(3, 3, scale, scale)
        expected = plain(x)
        assert (network(x) - expected).abs().max() <= 1e-4 * max(1, expected.abs().max())
        assert norms(network) == left < norms(plain)
        given = plain.state_dict()
        assert all(torch.equal(given[name], value) for name, value in state.items())


class Odd(nn.Module):
    """Convolutions with batch norms that cannot be folded, and one that can, named last first."""

    def __init__(self):
        super().__init__()
        self.last = nn.BatchNorm2d(3)
        self.seen_twice = nn.BatchNorm2d(3)
        self.shared = nn.BatchNorm2d(3)
        self.behind_two_runs = nn.BatchNorm2d(3)
        self.own = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(5))

    def forward(self, x):
        x = self.shared(self.own[0](x)) + self.shared(self.own[1](x))
        y = self.own[2](x)
        x = self.seen_twice(y) + y
        x = self.behind_two_runs(self.own[4](self.own[4](x)))
        return self.last(self.own[3](x))


def test_what_cannot_be_folded_stays():
    network = shaken(Odd())
    assert foldable(network, 8) == [("own.3", "last")]
    x = torch.randn(2, 3, 8, 8)
    assert torch.allclose(folded(network, 8)(x), network(x), atol=1e-5)


class Norm(nn.BatchNorm2d):
    """A batch norm that does more than to normalise."""

    def forward(self, x):
        return super().forward(x).relu()


def test_a_norm_that_does_more_stays():
    network = shaken(nn.Sequential(nn.Conv2d(3, 4, 3), Norm(4)))
    assert foldable(network, 8) == []
