"""Grad-CAM against examples by hand, its likeness across sizes, and that it leaves no trace."""

import math

import numpy as np
import pytest
import torch
from test_heads import SCALES, saved_net, small_net
from torch import nn

from msun_fastai.analysis.gradcam import class_activation, grad_cam, likeness
from msun_fastai.analysis.plots import plot_gradcam
from msun_fastai.analysis.size_cams import KEPT, size_cams
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.predict import normalize
from msun_fastai.views import resize_batch

# two channels on a grid of 2 x 2
A = torch.tensor([[[[1.0, 2], [3, 4]], [[4.0, 3], [0, 0]]]])


def linear_head(weights):
    """Logits y = W vec(A) for W (classes, channels x positions)."""
    layer = nn.Linear(8, len(weights), bias=False)
    layer.weight = nn.Parameter(torch.tensor(weights), requires_grad=False)
    return nn.Sequential(nn.Flatten(1), layer)


def test_by_hand_on_a_linear_network():
    """dy^c/dA is a row of W, alpha its mean over the four positions of each channel."""
    head = linear_head([[4.0, 0, 0, 0, -1, -1, -1, -1], [0.0, 0, 2, 2, 3, 1, 0, 0]])
    # y = (4 - 7, 2 (3 + 4) + 3 * 4 + 3) = (-3, 29): the answer is class 1
    cam = grad_cam(nn.Identity(), head, A)
    assert cam.logits.tolist() == [[-3, 29]]
    assert cam.codes.tolist() == [1]
    # alpha = (1, 1): A^1 + A^2
    assert cam.maps.tolist() == [[[5, 5], [3, 4]]]
    # class 0 has alpha = (1, -1): ReLU(A^1 - A^2)
    cam = grad_cam(nn.Identity(), head, A, torch.tensor([0]))
    assert cam.maps.tolist() == [[[0, 0], [3, 4]]]


def test_by_hand_behind_global_pooling():
    """y = W mean(A): alpha is W over the number of positions (CAM, up to that factor)."""
    layer = nn.Linear(2, 2, bias=False)
    layer.weight = nn.Parameter(torch.tensor([[8.0, -4.0], [0.0, 0.0]]))
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), layer)
    cam = grad_cam(nn.Identity(), head, torch.cat([A, 2 * A]), torch.tensor([0, 0]))
    one = [[0, 1], [6, 8]]  # ReLU(2 A^1 - A^2)
    assert cam.maps.tolist() == [one, (2 * np.array(one)).tolist()]
    assert layer.weight.grad is None


def test_the_gradient_is_of_the_features_alone():
    """Behind a body that is not the identity the maps are the same."""
    torch.manual_seed(0)
    body = nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU())
    head = nn.Sequential(nn.Flatten(1), nn.Linear(8, 3), nn.ReLU(inplace=True), nn.Linear(3, 3))
    x = torch.randn(5, 3, 4, 4)
    cam = grad_cam(body, head, x, torch.arange(5) % 3)
    features = body(x).detach()
    for i in range(5):
        one = features[i : i + 1].clone().requires_grad_()
        head(one)[0, i % 3].backward()
        expected = class_activation(one.detach(), one.grad)
        assert torch.allclose(cam.maps[i : i + 1], expected, atol=1e-6)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_frozen_networks_and_every_mode(mode):
    net = small_net().requires_grad_(False)
    network = net.at_scale(0)
    with mode():
        x = torch.randn(2, 3, 16, 16)
        cam = grad_cam(network[:-1], network[-1], x)
    expected = grad_cam(network[:-1], network[-1], x.clone())
    assert torch.equal(cam.maps, expected.maps)
    assert cam.maps.max() > 0
    assert not cam.maps.requires_grad


# ---- how alike maps are -----------------------------------------------------------------------


def test_likeness_by_hand():
    a = torch.tensor([[[0.0, 1], [2, 3]]] * 5)
    b = a.clone()
    b[0] = 2 * a[0] + 7
    b[1] = 3 - a[1]
    b[2] = torch.tensor([[1.0, 0], [3, 2]])
    b[3], b[4] = 0, 0.1
    (values,) = likeness([a, b]).values()
    # the third: deviations (-3, -1, 1, 3) / 2 and (-1, -3, 3, 1) / 2; 12 / 20
    assert values[:3].tolist() == pytest.approx([1, -1, 0.6])
    assert values[3:].isnan().all()


def test_likeness_on_other_grids():
    fine = torch.rand(3, 8, 8)
    coarse = resize_batch(fine[:, None], 4)[:, 0]
    values = likeness([coarse, fine, torch.rand(3, 1, 1)])
    assert list(values) == [(0, 1), (0, 2), (1, 2)]
    brought = nn.functional.interpolate(coarse[:, None], (8, 8), mode="bilinear")
    expected = [np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(fine, brought.numpy())]
    assert values[0, 1].tolist() == pytest.approx(expected, abs=1e-6)
    assert values[0, 2].isnan().all()  # one position says nothing of where
    # a map that is the same everywhere stays so when it is brought to another grid
    assert likeness([torch.full((1, 3, 3), 0.1), fine[:1, :7, :7]])[0, 1].isnan().all()


# ---- a model at several sizes -----------------------------------------------------------------


@pytest.fixture(scope="module")
def saved():
    saved = saved_net(small_net())
    nn.init.normal_(saved.model.head[0].fc.weight)  # answers that differ
    return saved


@pytest.fixture(scope="module")
def samples(shapes):
    return [Sample(s.image, s.label) for s in shapes.train[:11]]


def test_the_class_is_the_answer_at_the_largest_size(saved, samples):
    saved.model.train()
    found = size_cams(saved, samples, (16, 40, 64), name="ours")
    assert saved.model.training
    saved.model.eval()
    assert all(p.grad is None and p.requires_grad for p in saved.model.parameters())
    assert not any(m._forward_hooks for m in saved.model.modules())
    assert [(at.size, at.side) for at in found.sizes] == [(16, 16), (40, 32), (64, 64)]
    assert torch.equal(found.codes, found.sizes[-1].answers)
    assert not torch.equal(found.codes, found.sizes[0].answers)
    assert list(found.alike) == [(16, 40), (16, 64), (40, 64)]
    assert [len(at.views) for at in found.sizes] == [KEPT] * 3
    x = found.sizes[0].views[:3]
    network = saved.model.at_scale(0)
    again = grad_cam(network[:-1], network[-1], normalize(x, saved.preprocessing), found.codes[:3])
    assert torch.allclose(found.sizes[0].maps[:3], again.maps, atol=1e-6)


def test_a_chosen_class(saved, samples):
    found = size_cams(saved, samples, (16, 64), target="class 3")
    assert found.codes.tolist() == [3] * 11
    other = size_cams(saved, samples, (16, 64), target="class 4")
    assert not torch.equal(found.sizes[0].maps, other.sizes[0].maps)
    assert torch.equal(found.sizes[0].answers, other.sizes[0].answers)
    with pytest.raises(UserError, match=r"class: unknown class 'clas 3'; did you mean class 3"):
        size_cams(saved, samples, (16, 64), target="clas 3")


def test_the_number_and_how_many_have_one(saved, samples):
    found = size_cams(saved, samples, (16, 32, 64))
    found.alike = {
        (16, 32): torch.tensor([0.5, math.nan, 0.3]),
        (16, 64): torch.tensor([1.0, 1, 0]),
    }
    found.images = found.images[:3]
    assert found.mean_likeness() == (pytest.approx(0.45), 2)
    assert found.mean_likeness((16, 64)) == (pytest.approx(2 / 3), 3)
    alike = [row["likeness"] for row in found.rows()[::3]]
    assert alike == [pytest.approx(0.75), None, pytest.approx(0.15)]
    assert found.as_dict()["images_with_likeness"] == 2
    assert size_cams(saved, samples, (16,)).mean_likeness() == (None, 0)


def test_equal_views_are_alike():
    """Where one network sees an image at two sizes as the same pixels, the maps are the same."""
    saved = saved_net(small_net("vanilla"))
    flat = [Sample(np.full((64, 64, 3), c, np.uint8), "x") for c in (10, 200)]
    found = size_cams(saved, flat, SCALES)
    for at in found.sizes:
        assert torch.allclose(at.maps, found.sizes[0].maps, atol=1e-5)


def test_the_picture(saved, samples):
    found = size_cams(saved, samples, SCALES, name="ours")
    found.sizes[0].maps[0] = 0
    figure = plot_gradcam(found)
    assert len(figure.axes) == 3 * KEPT
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[0].startswith("16 px, subnet 16\nclass ")
    assert [len(axes.images) for axes in figure.axes[:3]] == [1, 2, 2]  # none for an empty map
    mean, counted = found.mean_likeness()
    assert f"likeness {mean:.3f} ({counted} of 11 images)" in figure.get_suptitle()
