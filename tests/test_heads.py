"""Classifiers: found in every family, replaced for other classes, and what they see."""

from dataclasses import replace

import pytest
import torch
from test_families import ROWS
from torch import nn

from msun_fastai.errors import UserError
from msun_fastai.models import families
from msun_fastai.models.backbones import Family
from msun_fastai.models.families import FAMILIES, find_family
from msun_fastai.models.heads import classifiers, penultimate, with_classes, without_classifiers
from msun_fastai.models.meta import smallest_side
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.models.saving import Preprocessing, SavedModel, load_model_folder
from msun_fastai.models.weights import build_net

SCALES = (16, 32, 64)


def small_net(method="msun", n_classes=10, **options):
    torch.manual_seed(0)
    return build_net(NetConfig("thin_resnet10", n_classes, SCALES, method, **options)).eval()


def saved_net(net):
    names = [f"class {i}" for i in range(net.config.n_classes)]
    return SavedModel(net, names, Preprocessing())


@pytest.mark.parametrize("arch", ROWS)
def test_the_classifier_of_every_family(arch):
    """Alone on what it sees it gives the network's answer: nothing comes behind it."""
    family = find_family(arch)
    torch.manual_seed(0)
    plain = family.build(arch, 7)
    side = max(64, smallest_side(family.build_blank(arch, 7), 224))
    net = MultiScaleNet(NetConfig(arch, 7, (side,), method="vanilla"), plain)
    (layer,) = classifiers(net)
    assert layer.out_features == 7
    assert layer is [m for m in net.modules() if isinstance(m, nn.Linear)][-1]
    x = torch.randn(2, 3, side, side)
    seen = penultimate(net.train(), x, 0)  # its dropout and batch norm must be off
    assert seen.shape == (2, layer.in_features)
    assert not seen.requires_grad
    with torch.no_grad():
        expected = net.eval()(x)
    assert (layer(seen) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert not layer._forward_pre_hooks
    kept = without_classifiers(net)
    assert net.state_dict().keys() - kept.keys() == {
        f"head.0.{family.classifier}.{kind}" for kind in ("weight", "bias")
    }


@pytest.mark.parametrize(
    ("method", "options", "count"),
    [("vanilla", {}, 1), ("msun", {}, 1), ("msun", {"norm": "per_scale"}, 1), ("snet", {}, 3)],
)
def test_a_classifier_for_each_head(method, options, count):
    net = small_net(method, **options)
    assert len({id(layer) for layer in classifiers(net)}) == count == len(classifiers(net))
    for i, scale in enumerate(net.entry_scales):
        x = torch.randn(2, 3, scale, scale)
        layer = classifiers(net)[i if count > 1 else 0]
        with torch.no_grad():
            assert torch.allclose(layer(penultimate(net, x, i)), net(x), atol=1e-6)


@pytest.mark.parametrize("method", ["msun", "snet"])
def test_other_classes_keep_the_body_and_get_a_new_classifier(method):
    saved = saved_net(small_net(method))
    for parameter in saved.model.parameters():
        nn.init.normal_(parameter)
    net = with_classes(saved, list("abcd"))
    assert net.config == replace(saved.model.config, n_classes=4)
    old, new = saved.model.state_dict(), net.state_dict()
    body = without_classifiers(net)
    assert len(body) == len(old) - 2 * len(classifiers(net))
    assert all(torch.equal(new[name], old[name]) for name in body)
    for layer in classifiers(net):
        assert layer.weight.shape == (4, layer.in_features)
        assert layer.weight.abs().max() < 1  # the old one's are of a standard normal
    shared = {p.data_ptr() for p in net.parameters()} & {
        p.data_ptr() for p in saved.model.parameters()
    }
    assert not shared
    with torch.no_grad():
        assert net.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 4)


def test_the_same_classes_keep_the_classifier(saved_run):
    saved = load_model_folder(saved_run)
    net = with_classes(saved, list(saved.classes))
    old, new = saved.model.state_dict(), net.state_dict()
    assert old.keys() == new.keys()
    assert all(torch.equal(new[name], old[name]) for name in old)
    turned = with_classes(saved, saved.classes[::-1])
    (a,), (b,) = classifiers(turned), classifiers(saved.model)
    assert not torch.equal(a.weight, b.weight)


def test_a_classifier_that_is_no_linear_layer(monkeypatch):
    row = Family(
        name="squeezenet",
        archs=("squeezenet1_1",),
        blocks=("features.0:3", "features.3:6", "features.6:9", "features.9:"),
        head="classifier @flatten",
        classifier="classifier.1",
    )
    monkeypatch.setattr(families, "FAMILIES", (*FAMILIES, row))
    saved = saved_net(build_net(NetConfig("squeezenet1_1", 7, (32, 64))))
    net = with_classes(saved, list("abc")).eval()
    with torch.no_grad():
        assert net(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    with pytest.raises(UserError, match="classifier of squeezenet1_1 is a Conv2d, not a linear"):
        classifiers(net)
