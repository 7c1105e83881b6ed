"""RS-Nets: one network at several sizes, of which batch norm alone is private."""

import copy
from itertools import pairwise

import pytest
import torch
from test_san import net, norms_of, view

from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.errors import UserError
from msun_fastai.evaluate import sweep
from msun_fastai.flops import count_macs, count_params
from msun_fastai.models.backbones import cut_backbone
from msun_fastai.models.families import find_family
from msun_fastai.models.heads import classifiers, penultimate
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.models.saving import Preprocessing, SavedModel
from msun_fastai.models.weights import build_net

SCALES = (16, 32, 64)


def test_what_scales_share():
    model = net("rsnet")
    assert model.config.norm == "per_scale"
    assert model.config.alignment == "native"
    assert model.entry_scales == SCALES
    assert classifiers(model) == [model.head[0].fc]
    for a, b in pairwise(range(3)):
        ours, theirs = model.at_scale(a), model.at_scale(b)
        private = {id(p) for m in norms_of(ours) for p in m.parameters()}
        everything = {id(p) for p in ours.parameters()}
        assert everything & {id(p) for p in theirs.parameters()} == everything - private
        assert len(norms_of(ours)) == len(norms_of(theirs)) == 12


def test_shared_batch_norm_leaves_nothing_private():
    model = net("rsnet", norm="shared")
    assert [len(part) for part in (model.subnets, model.deep, model.head)] == [1, 1, 1]
    plain = build_net(NetConfig("thin_resnet10", 10, SCALES, "vanilla"))
    assert count_params(model) == count_params(plain)


@pytest.mark.parametrize(("arch", "norm"), [("resnet18", None), ("alexnet", "shared")])
def test_a_network_at_its_own_size_plus_batch_norms(arch, norm):
    """Strides and kernels are the plain network's, and so are its costs."""
    sides = (96, 128)
    plain = find_family(arch).build_blank(arch, 10)
    channels = sum(m.num_features for m in norms_of(plain))
    params, macs = count_params(plain), {s: count_macs(plain, s) for s in sides}
    with torch.device("meta"):
        model = MultiScaleNet(NetConfig(arch, 10, sides, "rsnet", norm=norm), plain)
    assert count_params(model) == params + 2 * channels
    assert {s: count_macs(model.at_scale(i), s) for i, s in enumerate(sides)} == macs


def test_without_batch_norm_nothing_would_be_private():
    with pytest.raises(UserError, match="vgg11 has no batch norm to make private; norm shared"):
        build_net(NetConfig("vgg11", 10, (64, 96), "rsnet"))


def test_it_starts_as_the_plain_network_at_every_scale():
    family = find_family("thin_resnet10")
    plain = family.build("thin_resnet10", 10).eval()
    for norm in norms_of(plain):
        torch.nn.init.uniform_(norm.running_var, 0.5, 2)
    kept = torch.nn.Sequential(*cut_backbone(copy.deepcopy(plain), family, 1)[:3])
    model = MultiScaleNet(NetConfig("thin_resnet10", 10, SCALES, "rsnet"), plain).eval()
    with torch.no_grad():
        for side in SCALES:
            assert torch.equal(model(view(side)), kept(view(side)))


def test_each_scale_trains_its_own_batch_norm_and_all_the_convolutions():
    model = net("rsnet").train()
    model(view(16, 4)).logits[0].sum().backward()
    small, large = (model.at_scale(i) for i in (0, 2))
    assert all(p.grad is not None for p in small.parameters())
    assert all(p.grad is None for m in norms_of(large) for p in m.parameters())
    assert large.deep.layer2[0].conv1.weight.grad is not None


def test_features_of_the_one_classifier():
    model = net("rsnet")
    seen = [penultimate(model, view(side), i) for i, side in enumerate(SCALES)]
    assert [tuple(x.shape) for x in seen] == [(2, 256)] * 3
    for i, x in enumerate(seen):
        assert torch.equal(model.head[0].fc(x), model(view(SCALES[i])))


def test_tested_at_sizes_as_they_are(shapes):
    saved = SavedModel(net("rsnet"), list(shapes.classes), Preprocessing())
    samples = shapes.valid[:8]
    swept = {r: sweep(saved, samples, (16, 24, 32), resize=r) for r in ("canonical", "native")}
    for at in (0, 2):
        assert swept["canonical"].macs[at] == swept["native"].macs[at]
    assert swept["native"].macs[0] < swept["native"].macs[1] < swept["native"].macs[2]
    assert list(swept["native"].subnet) == [16, 16, 32]


def test_what_cannot_be():
    for options, says in (
        ({"norm": "per_scale", "scales": (64,)}, "rsnet shares no batch norm between scales here"),
        ({"alignment": "canonical"}, "rsnet has no subnets whose grids"),
        ({"arch": "inception_v3", "scales": (32, 96)}, "the smallest it takes is 75"),
    ):
        with pytest.raises(UserError, match=says):
            net("rsnet", trained=False, **options)


def test_views_of_a_batch_are_at_their_own_size(make_learner, shapes):
    dls = NativeImageDataLoaders.from_source(
        shapes, scales=SCALES, bs=8, num_workers=0, views="down", device="cpu"
    )
    learn = make_learner(dls=dls, method="rsnet")
    learn.dls.train.n = 24
    learn.fit(1, 1e-3)
    columns = learn.recorder.metric_names
    assert [c for c in columns if c in ("ce", "ens", "ens_ce")] == ["ce", "ens", "ens_ce"]
    assert {"acc_16", "acc_32", "acc_64"} < set(columns)
