"""SAN: kernels from the scale, what is private, what it costs, and inference at any size."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from fastai.learner import load_learner
from test_families import ROWS, smallest_side_of
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from msun_fastai.errors import UserError
from msun_fastai.flops import count_macs, count_params
from msun_fastai.learner import msun_learner
from msun_fastai.models.backbones import cut_backbone
from msun_fastai.models.families import find_family
from msun_fastai.models.ideal import ideal_network, proxy_network
from msun_fastai.models.metalearners import (
    HiddenLearner,
    LinearLearner,
    MetaConv2d,
    encode,
    with_learners,
)
from msun_fastai.models.moments import recalibrate
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.models.saving import Preprocessing, SavedModel
from msun_fastai.models.weights import build_net
from msun_fastai.sized import sized_networks

SCALES = (16, 32, 64)
PAPER_SCALES = (96, 128, 160, 192, 224)


def net(method="san", trained=True, arch="thin_resnet10", **options):
    """A thin network whose scales differ, as after a training."""
    torch.manual_seed(0)
    given = {"scales": SCALES, **options}
    model = build_net(NetConfig(arch, 10, method=method, **given)).eval()
    if trained:
        with torch.no_grad():
            for name, p in model.named_parameters():
                if name.endswith("slope"):
                    p.normal_(std=0.02)
            for norm in norms_of(model):
                norm.running_mean.normal_(std=0.1)
                norm.running_var.uniform_(0.5, 2)
                norm.weight.uniform_(0.5, 1.5)
    return model


def norms_of(module):
    return [m for m in module.modules() if isinstance(m, _BatchNorm)]


def metas(module):
    return [m for m in module.modules() if isinstance(m, MetaConv2d)]


def learners(model):
    return {id(m.learner): m.learner for m in metas(model)}.values()


def view(side, n=2, seed=1):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


# ---- generated kernels ------------------------------------------------------------------------


def test_the_encoding_of_the_papers_scales():
    assert [encode(s) for s in PAPER_SCALES] == pytest.approx([0.3, 0.4, 0.5, 0.6, 0.7])


CONVOLUTIONS = {
    "ordinary": {},
    "stride": {"stride": 2, "padding": 1},
    "grouped": {"groups": 4},
    "depthwise": {"groups": 8},
    "bias": {"bias": True, "padding": 1},
    "reflected": {"padding": 2, "padding_mode": "reflect"},
    "dilated": {"dilation": 2, "padding": "same"},
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_every_kind_of_convolution(kind):
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 8, 1)
    conv = nn.Conv2d(8, 16, 3, **{"bias": False, **CONVOLUTIONS[kind]})
    made = with_learners([nn.Sequential(stem, conv)], 64)[0]
    meta = made[1]
    assert made[0] is stem
    x = torch.randn(2, 8, 9, 9)
    assert torch.equal(meta(x), conv(x))
    nn.init.normal_(meta.learner.slope)
    other = copy.deepcopy(conv)
    other.weight = nn.Parameter(encode(64) * meta.learner.slope + meta.learner.base)
    assert torch.equal(meta(x), other(x))
    assert not torch.equal(meta(x), conv(x))
    assert torch.equal(meta.plain(meta.constant())(x), other(x))


def test_generated_weights_are_e_w_plus_b_to_the_bit():
    model = net()
    for i, scale in enumerate(SCALES):
        e = 0.1 * scale / 32
        plain = dict(model.at_scale(i).named_modules())
        theirs = {
            n: m for n, m in model.scale_parts(i).named_modules() if isinstance(m, MetaConv2d)
        }
        assert len(theirs) == 11  # of 12 convolutions
        for name, meta in theirs.items():
            expected = e * meta.learner.slope + meta.learner.base
            assert type(plain[name]) is nn.Conv2d
            assert torch.equal(plain[name].weight, expected), name
            assert torch.equal(meta.learner(encode(meta.scale)), expected), name
    assert not torch.equal(*(model.at_scale(i).deep.layer4[0].conv1.weight for i in (0, 2)))


def test_hidden_units():
    for units in (8, 16):
        model = net(meta_hidden=units)
        meta = model.scale_parts(0).deep.layer2[0].conv1
        given = meta.learner
        assert isinstance(given, HiddenLearner)
        inside = F.relu(given.hidden.weight[:, 0] * encode(16) + given.hidden.bias)
        expected = torch.einsum("nu,u->n", given.slope, inside).view_as(given.base) + given.base
        assert torch.allclose(meta.constant(), expected, atol=1e-6)
        linear, kernels = net(), sum(m.base.numel() for m in learners(model))
        more = count_params(model) - count_params(linear)
        assert more == (units - 1) * kernels + len(list(learners(model))) * 2 * units
        model.train()(*(view(s, 4) for s in SCALES)).logits[0].sum().backward()
        assert all(m.slope.grad.abs().sum() > 0 for m in learners(model))


# ---- what it is made of, and what it costs ----------------------------------------------------


def resnet_convolutions(block, depths):
    """Sizes of the convolutions behind the stem and channels of all batch norms, by the table of
    the ResNet paper: `block` gives those of one block."""
    convolutions, channels, before = 0, 64, 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        for i in range(depth):
            sizes, norms, after = block(before, width)
            convolutions += sum(sizes)
            channels += sum(norms)
            if i == 0 and (stage > 0 or before != after):  # the shortcut's
                convolutions += before * after
                channels += after
            before = after
    return convolutions, channels, before


def basic(before, width):
    return [9 * before * width, 9 * width * width], [width, width], width


def bottleneck(before, width):
    sizes = [before * width, 9 * width * width, 4 * width * width]
    return sizes, [width, width, 4 * width], 4 * width


def mobilenet_v2():
    convolutions, channels, before = 0, 32, 32
    settings = [
        (1, 16, 1),
        (6, 24, 2),
        (6, 32, 3),
        (6, 64, 4),
        (6, 96, 3),
        (6, 160, 3),
        (6, 320, 1),
    ]
    for expansion, after, repeats in settings:
        for _ in range(repeats):
            wide = before * expansion
            convolutions += (before * wide if expansion > 1 else 0) + 9 * wide + wide * after
            channels += (wide if expansion > 1 else 0) + wide + after
            before = after
    return convolutions + 320 * 1280, channels + 1280, 1280


ON_PAPER = {
    "resnet18": (*resnet_convolutions(basic, (2, 2, 2, 2)), 3 * 64 * 49, 22_885_416),
    "resnet50": (*resnet_convolutions(bottleneck, (3, 4, 6, 3)), 3 * 64 * 49, 49_215_016),
    "mobilenet_v2": (*mobilenet_v2(), 3 * 32 * 9, 5_830_216),
}


@pytest.mark.parametrize("arch", ON_PAPER)
def test_parameters_as_on_paper_and_cost_of_the_plain_backbone(arch):
    """Two numbers a generated weight, five batch norms for one, all else once."""
    generated, channels, features, stem, expected = ON_PAPER[arch]
    derived = stem + 2 * generated + 5 * 2 * channels + 1000 * (features + 1)
    plain = find_family(arch).build_blank(arch, 1000)
    assert count_params(plain) == stem + generated + 2 * channels + 1000 * (features + 1)
    sides = PAPER_SCALES if arch == "resnet18" else PAPER_SCALES[::4]  # seconds for each
    macs = {side: count_macs(plain, side) for side in sides}
    with torch.device("meta"):
        model = MultiScaleNet(NetConfig(arch, 1000, PAPER_SCALES, "san"), plain)
    assert count_params(model) == derived == expected
    assert macs == {s: count_macs(model.at_scale(PAPER_SCALES.index(s)), s) for s in sides}


def test_what_scales_share():
    model = net()
    for a, b in ((0, 1), (0, 2), (1, 2)):
        ours, theirs = model.scale_parts(a), model.scale_parts(b)
        assert ours.subnet.conv1 is theirs.subnet.conv1  # the stem's, an ordinary one
        assert type(ours.subnet.conv1) is nn.Conv2d
        assert ours.head is theirs.head
        private = {id(p) for m in norms_of(ours) for p in m.parameters()}
        both = {id(p) for p in ours.parameters()} & {id(p) for p in theirs.parameters()}
        assert both == {id(p) for p in ours.parameters()} - private
        for one, other in zip(norms_of(ours), norms_of(theirs), strict=True):
            assert one.running_mean is not other.running_mean


def starts_as_the_plain_network(arch):
    """To the bit, in evaluation; and only its first convolution is not generated."""
    family, side = find_family(arch), smallest_side_of(arch)
    plain = family.build(arch, 3).eval()
    for norm in norms_of(plain):
        nn.init.normal_(norm.running_mean, std=0.1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    kept = nn.Sequential(*cut_backbone(copy.deepcopy(plain), family, 0)[:3])
    scales = (side, side + 16)
    model = MultiScaleNet(NetConfig(arch, 3, scales, "san", blocks=0), plain).eval()
    convolutions = [m for m in kept.modules() if isinstance(m, nn.Conv2d)]
    assert len(list(learners(model))) == len(convolutions) - 1 > 3
    with torch.no_grad():
        for scale in scales:
            assert torch.equal(model(view(scale)), kept(view(scale)))


@pytest.mark.parametrize("arch", ["regnet_y_400mf", "googlenet"])
def test_a_family_starts_as_the_plain_network(arch):
    starts_as_the_plain_network(arch)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ROWS)
def test_every_family_starts_as_the_plain_network(arch):
    starts_as_the_plain_network(arch)


def test_pretrained_weights_are_where_it_starts(tmp_path):
    plain = find_family("thin_resnet10").build("thin_resnet10", 10).eval()
    for norm in norms_of(plain):
        nn.init.uniform_(norm.running_var, 0.5, 2)
    torch.save(plain.state_dict(), tmp_path / "w.pth")
    config = NetConfig("thin_resnet10", 10, SCALES, "san")
    model = build_net(config, weights=tmp_path / "w.pth").eval()
    assert all(not learner.slope.any() for learner in learners(model))
    for side in SCALES:
        assert torch.equal(model(view(side)), plain(view(side)))


def test_gradients_reach_every_learner_from_every_scale():
    """Of W_l the encoding times those of b_l: dW / dW_l = e, dW / db_l = 1."""
    model = net().train()
    for side in SCALES:
        model.zero_grad()
        model(view(side, 4)).logits[0].square().sum().backward()
        for learner in learners(model):
            assert learner.base.grad.abs().sum() > 0
            assert torch.allclose(learner.slope.grad, encode(side) * learner.base.grad, rtol=1e-4)


def test_learners_are_decayed_as_weights_are(make_learner):
    """fastai leaves what is called a bias out of the weight decay; a pretrained kernel is none."""
    learn = make_learner(method="san")
    learn.create_opt()
    for learner in learners(learn.model):
        for p in (learner.slope, learner.base):
            assert learn.opt.state[p].get("do_wd", True)
    for norm in norms_of(learn.model):
        assert learn.opt.state[norm.weight]["do_wd"] is False


# ---- generated once ---------------------------------------------------------------------------


@pytest.fixture
def generated(monkeypatch):
    """How often a kernel was generated."""
    count = []
    real = LinearLearner.forward

    def forward(self, encoding):
        count.append(encoding)
        return real(self, encoding)

    monkeypatch.setattr(LinearLearner, "forward", forward)
    return count


def test_kernels_are_generated_once_for_inference(generated):
    model = net()
    generated.clear()
    with torch.no_grad():
        for _ in range(3):
            model.eval()
            model(view(32))
            model.at_scale(1)(view(32))
        assert generated == [encode(32)] * 11
        model(view(16))
    assert len(generated) == 22
    model(view(32))  # with gradients: they have to reach the learners
    assert len(generated) == 33


CHANGES = {
    "in place": lambda model: [p.mul_(1.5) for p in model.parameters()],
    "loaded": lambda model: model.load_state_dict(
        {k: v * 1.5 if v.is_floating_point() else v for k, v in model.state_dict().items()}
    ),
    "of another type": lambda model: model.double(),
}


@pytest.mark.parametrize("change", CHANGES)
def test_and_again_when_a_parameter_has_changed(change):
    model = net()
    with torch.no_grad():
        model(view(32))
        CHANGES[change](model)
        fresh = copy.deepcopy(model)
        x = view(32).to(next(model.parameters()).dtype)
        assert torch.equal(model(x), fresh(x))
        assert torch.equal(model.at_scale(1)(x), fresh(x))


def test_a_training_that_steps_past_versions_is_seen():
    """fastai's optimizers write to `p.data`."""
    model = net()
    with torch.no_grad():
        before = model(view(32))
        model.train()
        for p in model.parameters():
            p.data.mul_(1.5)
        plain = model.at_scale(1)  # in the middle of it
        for p in model.parameters():
            p.data.mul_(1.5)
        assert model.at_scale(1) is plain
        learner = model.scale_parts(1).deep.layer2[0].conv1.learner
        assert torch.equal(
            plain.deep.layer2[0].conv1.weight, encode(32) * learner.slope + learner.base
        )
        for p in model.parameters():
            p.data.mul_(1.5)
        after = model.eval()(view(32))
        assert not torch.allclose(before, after)
        assert torch.equal(after, copy.deepcopy(model)(view(32)))


def test_the_plain_network_is_one_object_that_hooks_stay_on():
    model = net()
    seen = []
    model.at_scale(1).deep.layer3.register_forward_hook(lambda *_: seen.append(1))
    with torch.no_grad():
        model.at_scale(1)(view(32))
    assert seen == [1]
    assert metas(model.at_scale(1)) == []
    assert model.at_scale(1).deep.layer2[0].bn1 is model.scale_parts(1).deep.layer2[0].bn1


def test_export_and_load(make_learner, shapes, tmp_path):
    learn = make_learner(method="san")
    learn.path = tmp_path
    learn.dls.train.n = 16
    learn.fit(1, 1e-2)
    expected = [learn.predict(s.image)[2] for s in shapes.valid[:3]]
    learn.export("l.pkl")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fastai's own warning that this is a pickle
        loaded = load_learner(tmp_path / "l.pkl")
    for sample, probabilities in zip(shapes.valid, expected):
        assert torch.allclose(loaded.predict(sample.image)[2], probabilities, atol=1e-6)


# ---- any size ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["san", "rsnet"])
def test_ideal_is_proxy_at_the_training_sizes(method):
    model = net(method)
    with torch.no_grad():
        for i, size in enumerate(SCALES):
            x = view(size)
            expected = model(x)
            assert torch.equal(proxy_network(model, size)(x), expected)
            for interpolate in (True, False):
                assert torch.equal(ideal_network(model, size, interpolate)(x), expected)
            assert torch.equal(model.at_scale(i)(x), expected)


def test_ideal_between_two_scales():
    model = net()
    ideal, parts = ideal_network(model, 40), [model.scale_parts(i) for i in (1, 2)]
    kernel = ideal.deep.layer2[0].conv1.weight
    learner = parts[0].deep.layer2[0].conv1.learner
    assert torch.equal(kernel, 0.1 * 40 / 32 * learner.slope + learner.base)
    for name in ("weight", "bias", "running_mean", "running_var"):
        at, a, b = (getattr(p.deep.layer2[0].bn1, name) for p in (ideal, *parts))
        assert torch.allclose(at, 0.75 * a + 0.25 * b)
        assert name == "bias" or not torch.allclose(a, b)
    assert ideal.head is model.head[0]
    beyond = ideal_network(model, 96)
    assert torch.equal(
        beyond.deep.layer2[0].bn1.running_var, parts[1].deep.layer2[0].bn1.running_var
    )
    assert beyond.deep.layer2[0].conv1.weight.equal(0.3 * learner.slope + learner.base)
    uncalibrated = ideal_network(model, 40, interpolate=False)
    assert uncalibrated.deep.layer2[0].bn1.running_var.equal(
        parts[0].deep.layer2[0].bn1.running_var
    )
    x = view(40)
    with torch.no_grad():
        given = [n(x) for n in (ideal, uncalibrated, proxy_network(model, 40))]
    assert [tuple(z.shape) for z in given] == [(2, 10)] * 3
    assert not torch.allclose(given[0], given[1])
    assert not torch.allclose(given[1], given[2])


def test_sizes_as_they_are(monkeypatch):
    model = net()
    with torch.no_grad():
        for resize, make in (("native", proxy_network), ("ideal", ideal_network)):
            found = sized_networks(model, (16, 24, 40, 80), resize)
            assert [(s.size, s.side, s.index) for s in found] == [
                *((16, 16, 0), (24, 24, 0), (40, 40, 1), (80, 80, 2))
            ]
            x = view(40)
            assert torch.equal(found[2].network(x), make(model, 40)(x))
    with pytest.raises(UserError, match="one scale, and for rsnet and san; msun has 3"):
        sized_networks(net("msun", trained=False), (16,), "ideal")


# ---- exact statistics -------------------------------------------------------------------------

METHODS = ("vanilla", "msun", "rsnet", "san")


def entering(network, batches):
    """All that each batch norm is given, in evaluation."""
    seen = {norm: [] for norm in norms_of(network)}
    hooks = [n.register_forward_pre_hook(lambda n, x: seen[n].append(x[0])) for n in seen]
    with torch.no_grad():
        for batch in batches:
            network.eval()(batch)
    for hook in hooks:
        hook.remove()
    return {norm: torch.cat(given).double() for norm, given in seen.items()}


def assert_exact(norm, given):
    mean, variance = given.mean((0, 2, 3)), given.var((0, 2, 3), correction=0)
    assert torch.allclose(norm.running_mean.double(), mean, rtol=1e-4, atol=1e-5)
    assert torch.allclose(norm.running_var.double(), variance, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_recalibrated_statistics_are_the_exact_averages(method):
    """With all images in one batch, or with as many passes as there are layers, of every layer;
    after one pass in any batches of the first."""
    model = net(method, trained=method in ("rsnet", "san"))
    whole = [view(40, 12)]
    parts = list(whole[0].split(5))
    before = [n.running_mean.clone() for n in norms_of(model)]
    first, once = ideal_network(model, 40), ideal_network(model, 40)
    assert recalibrate(first, whole) == 12
    assert recalibrate(once, parts) == 12
    for norm, given in entering(first, whole).items():
        assert_exact(norm, given)
    norm, given = next(iter(entering(once, whole).items()))
    assert_exact(norm, given)
    passes = ideal_network(model, 40)
    recalibrate(passes, parts, passes=len(norms_of(passes)))
    for norm, given in entering(passes, parts).items():
        assert_exact(norm, given)
    for old, norm in zip(before, norms_of(model)):  # those of the model itself stay
        assert torch.equal(old, norm.running_mean)


def test_nothing_changes_where_it_fails():
    network = ideal_network(net(), 40)
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(UserError, match="no images"):
        recalibrate(network, [])
    with pytest.raises(RuntimeError):
        recalibrate(network, [view(40), torch.zeros(1, 4, 40, 40)])
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert not any(n._forward_pre_hooks for n in norms_of(network))
    vgg = build_net(NetConfig("vgg11", 2, (32,), "vanilla"))
    with pytest.raises(UserError, match="no batch norm"):
        recalibrate(ideal_network(vgg, 32), [view(32)])


# ---- shared batch norm, and what cannot be ----------------------------------------------------


def test_shared_batch_norm_mixes_what_training_keeps_apart():
    """The collapse of Table 3: training normalises each scale by itself, evaluation by a mixture of
    all of them."""
    scales = (16, 64)
    model = net(norm="shared", trained=False, scales=scales).train()
    private = net(trained=False, scales=scales).train()
    norms = [model.scale_parts(i).deep.layer2[0].bn1 for i in (0, 1)]
    assert norms[0] is norms[1]
    views = [view(side, 32) for side in scales]
    for norm in (*norms_of(model), *norms_of(private)):
        norm.momentum = 0.5
    with torch.no_grad():
        for _ in range(12):
            trained, apart = model(*views).logits, private(*views).logits
        for a, b in zip(trained, apart):
            assert torch.allclose(a, b, atol=1e-4)  # the same in training, and later:
        lost = [(model.eval()(x) - a).norm() / a.norm() for x, a in zip(views, trained)]
        kept = [(private.eval()(x) - a).norm() / a.norm() for x, a in zip(views, apart)]
    assert norms[0].num_batches_tracked == 24
    assert max(kept) < 0.15 < 0.5 < min(lost)


def test_without_batch_norm_nothing_is_private():
    model = build_net(NetConfig("convnext_tiny", 2, (32, 64), "san"))
    assert len(model.head) == 1
    a, b = model.scale_parts(0), model.scale_parts(1)
    assert {id(p) for p in a.parameters()} == {id(p) for p in b.parameters()}
    assert a.deep is not b.deep


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alignment": "canonical"}, "san has no subnets whose grids"),
        ({"grids": (4, 8, 16)}, "san has no subnets"),
        ({"norm": "per_scale", "scales": (64,)}, "san shares no batch norm between scales here"),
        ({"meta_hidden": -1}, "san takes 0"),
        ({"method": "rsnet", "meta_hidden": 8}, "rsnet has no such meta learners"),
    ],
)
def test_what_cannot_be(options, says):
    given = {"arch": "thin_resnet10", "n_classes": 3, "scales": SCALES, "method": "san"}
    with pytest.raises(UserError, match=says):
        build_net(NetConfig(**{**given, **options}))


def test_a_network_without_convolutions_behind_its_stem():
    with pytest.raises(UserError, match="no convolutions behind the stem"):
        with_learners([nn.Sequential(nn.Conv2d(3, 8, 1)), nn.Linear(8, 2)], 32)

    class Own(nn.Conv2d):
        def forward(self, x):
            return -super().forward(x)

    with pytest.raises(UserError, match="no kernels are generated for Own"):
        with_learners([nn.Sequential(nn.Conv2d(3, 8, 1), Own(8, 8, 1))], 32)


def test_one_scale_is_allowed():
    model = build_net(NetConfig("thin_resnet10", 3, (32,), "san")).eval()
    assert model.config.norm == "shared"
    assert model(view(32)).shape == (2, 3)


def test_start_from_another_san(dls, tmp_path):
    saved = SavedModel(net(meta_hidden=8), [str(i) for i in range(10)], Preprocessing())
    learn = msun_learner(dls, start=saved)
    assert learn.model.config.meta_hidden == 8
    assert type(learn.model) is MultiScaleNet
    with torch.no_grad():
        for layer in (saved.model, learn.model.eval()):
            assert layer.at_scale(1).deep(torch.ones(1, 32, 8, 8)).shape == (1, 256, 1, 1)
        a, b = (m.scale_parts(1).deep(torch.ones(1, 32, 8, 8)) for m in (saved.model, learn.model))
    assert torch.equal(a, b)


def test_a_copy_of_a_compiled_network_is_a_network_of_its_own():
    """torch leaves what it compiled out of copies; averaged weights are such a copy."""
    network = net("msun", trained=False).eval()
    network.compile(backend="eager")
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        before = network(x)
        other = copy.deepcopy(network)
        for parameter in other.parameters():
            parameter.zero_()
        assert not other(x).any()
        assert torch.equal(network(x), before)


def test_networks_pickled_before_there_were_generated_kernels():
    network = net("msun", trained=False)
    state = network.__getstate__()
    del state["_generated"]
    state.pop("ensemble", None)
    old = object.__new__(type(network))
    old.__setstate__(state)
    assert old.train().eval().ensemble is None
