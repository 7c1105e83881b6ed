"""The scale-invariance term: what it is zero for, what it is not, and where its gradient goes."""

import pytest
import torch

from msun_fastai.errors import UserError
from msun_fastai.losses import DISTANCES, floored, pool_to_smallest, si_loss


@pytest.fixture
def features():
    torch.manual_seed(0)
    return [torch.randn(4, 6, 5, 5) for _ in range(3)]


@pytest.mark.parametrize("distance", DISTANCES)
def test_zero_for_equal_features_and_positive_otherwise(features, distance):
    same = [features[0]] * 3
    assert si_loss(same, distance).item() == pytest.approx(0, abs=1e-6)
    assert si_loss(features, distance).item() > 0.5


def test_sums_over_all_pairs(features):
    a, b, c = features
    pairs = sum((x - y).square().mean() for x, y in ((a, b), (a, c), (b, c)))
    assert si_loss(features) == pytest.approx(pairs.item())
    assert si_loss(features[:1]) == 0


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradient_reaches_every_scale(features, distance):
    leaves = [f.requires_grad_() for f in features]
    si_loss(leaves, distance).backward()
    assert all(f.grad.abs().sum() > 0 for f in leaves)


@pytest.mark.parametrize("distance", DISTANCES)
def test_detached_larger_scales_teach(features, distance):
    """The value of the whole term; each scale's gradient is that of the pairs in which it is the
    smaller one."""
    leaves = [f.requires_grad_() for f in features]
    loss = si_loss(leaves, distance, detach=True)
    assert loss.item() == si_loss(leaves, distance).item()
    loss.backward()
    small, middle, large = (f.detach().requires_grad_() for f in features)
    for smaller, larger in ((small, middle), (small, large), (middle, large)):
        DISTANCES[distance](smaller, larger.detach()).backward()
    assert torch.allclose(leaves[0].grad, small.grad)
    assert torch.allclose(leaves[1].grad, middle.grad)
    assert middle.grad.abs().sum() > 0
    assert leaves[2].grad is None


def test_detached_by_hand():
    a, b, c = (torch.full((1, 1, 1, 1), v, requires_grad=True) for v in (1.0, 2.0, 4.0))
    si_loss([a, b, c], detach=True).backward()
    # the derivative of (a - b)^2 + (a - c)^2 by a, and of (b - c)^2 by b
    assert (a.grad.item(), b.grad.item(), c.grad) == (2 * (1 - 2) + 2 * (1 - 4), 2 * (2 - 4), None)


def test_detached_on_the_smallest_grid():
    small, large = torch.zeros(1, 1, 1, 1), torch.tensor([[[[1.0, 3.0], [5.0, 7.0]]]])
    leaves = [small.requires_grad_(), large.requires_grad_()]
    loss = si_loss(leaves, detach=True)
    loss.backward()
    assert (loss.item(), small.grad.item(), large.grad) == (16, -8, None)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradient_is_finite_for_equal_features(distance):
    leaves = [torch.ones(2, 3, 4, 4, requires_grad=True) for _ in range(2)]
    si_loss(leaves, distance).backward()
    assert all(torch.isfinite(f.grad).all() for f in leaves)


def test_does_not_grow_with_the_grid(features):
    big = [f.repeat_interleave(2, -1).repeat_interleave(2, -2) for f in features]
    for distance in DISTANCES:
        assert si_loss(big, distance) == pytest.approx(si_loss(features, distance).item(), rel=1e-5)


def test_native_grids_are_compared_on_the_smallest():
    a, b = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 4, 4)
    assert [tuple(f.shape[-2:]) for f in pool_to_smallest([a, b])] == [(4, 4), (4, 4)]
    block_means = a.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    assert si_loss([a, b]) == pytest.approx((block_means - b).square().mean().item(), rel=1e-5)


def test_half_precision_features_do_not_overflow():
    a, b = (torch.full((1, 1, 2, 2), v, dtype=torch.float16) for v in (400.0, -400.0))
    assert si_loss([a, b]).item() == 640_000


def test_floor_stops_the_gradient():
    x = torch.tensor(0.3, requires_grad=True)
    floored(x, 0.5).backward()
    assert floored(x, 0.5).item() == 0.5
    assert x.grad == 0
    x.grad = None
    floored(x, 0.2).backward()
    assert x.grad == 1


def test_unknown_distance():
    with pytest.raises(UserError, match="did you mean cosine"):
        si_loss([torch.ones(1, 1, 1, 1)], "cosin")
