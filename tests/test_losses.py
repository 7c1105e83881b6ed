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
