"""The body: what is private, what is shared, on which grid, and where it starts from."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from msun_fastai.data.resize import as_pixels, load_fitted
from msun_fastai.errors import UserError
from msun_fastai.models.families import find_family
from msun_fastai.models.meta import grid_of
from msun_fastai.models.net import MultiScaleNet, MultiScaleOutput, NetConfig, param_groups
from msun_fastai.models.resample import resample_kernel
from msun_fastai.models.saving import Preprocessing
from msun_fastai.models.subnets import kernel_sizes
from msun_fastai.models.thin import ThinResNet
from msun_fastai.models.weights import build_net
from msun_fastai.predict import normalize

SCALES = (16, 32, 64)


def net(**options):
    torch.manual_seed(0)
    return build_net(NetConfig("thin_resnet10", 10, **{"scales": SCALES, **options}))


def test_subnets_fit_their_scales():
    model = build_net(NetConfig("resnet18", 10))
    assert [grid_of(f, s) for f, s in zip(model.subnets, model.entry_scales)] == [
        (32, 32),
        (32, 32),
        (56, 56),
    ]
    assert [f.conv1.kernel_size[0] for f in model.subnets] == [3, 5, 7]
    assert [type(f.maxpool) for f in model.subnets] == [nn.Identity, nn.MaxPool2d, nn.MaxPool2d]
    assert [f.conv1.stride[0] for f in model.subnets] == [1, 2, 2]


@pytest.mark.parametrize("scales", [(64,), (16, 64), (16, 32, 48, 64), (8, 16, 32, 48, 64)])
@pytest.mark.parametrize("alignment", ["canonical", "native"])
def test_any_number_of_scales(scales, alignment):
    model = net(scales=scales, alignment=alignment).train()
    out = model(*(torch.randn(2, 3, s, s) for s in scales))
    assert isinstance(out, MultiScaleOutput)
    assert [tuple(logits.shape) for logits in out.logits] == [(2, 10)] * len(scales)
    grids = [tuple(f.shape[-2:]) for f in out.features]
    assert grids == model.grids
    assert all(g <= (16, 16) for g in grids)
    if alignment == "canonical":
        assert set(grids) == {(16, 16)}


def test_kernel_sizes():
    assert kernel_sizes(7, 1) == [7]
    assert kernel_sizes(7, 2) == [3, 7]
    assert kernel_sizes(7, 3) == [3, 5, 7]
    assert kernel_sizes(7, 5) == [3, 5, 5, 5, 7]
    assert kernel_sizes(3, 3) == [3, 3, 3]


@pytest.mark.parametrize("blocks", [0, 1, 2, 3])
def test_what_is_private_and_what_is_shared(blocks):
    model = net(blocks=blocks)
    owners = [{id(p) for p in f.parameters()} for f in model.subnets]
    shared = {id(p) for part in (model.deep, model.head) for p in part.parameters()}
    assert len(set.union(*owners, shared)) == sum(map(len, [*owners, shared]))
    assert {id(p) for group in param_groups(model) for p in group} == {
        id(p) for p in model.parameters()
    }
    assert [n for n, _ in model.subnets[0].named_children()][4:] == [
        f"layer{i + 1}" for i in range(blocks)
    ]


def test_methods_without_subnets_have_one_entry():
    for method in ("vanilla", "mst"):
        model = net(method=method)
        assert model.entry_scales == (64,)
        assert len(model.subnets) == 1


def test_a_view_is_routed_by_its_shorter_side_and_resized():
    model = net().eval()
    x = torch.randn(2, 3, 20, 90)
    expected = F.interpolate(x, size=(16, 16), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert torch.equal(model(x), model.at_scale(0)(expected))


def test_at_scale_is_the_plain_network_with_the_same_parameters():
    model = net().eval()
    for i, scale in enumerate(SCALES):
        x = torch.randn(2, 3, scale, scale)
        plain = model.at_scale(i)
        assert torch.equal(model(x), plain(x))
        assert not any(isinstance(m, MultiScaleNet) for m in plain.modules())
        ours = {id(p) for p in model.parameters()}
        assert {id(p) for p in plain.parameters()} < ours


@pytest.mark.parametrize("alignment", ["canonical", "native"])
def test_views_together_equal_views_alone_in_evaluation(alignment):
    model = net(alignment=alignment).eval()
    views = [torch.randn(3, 3, s, s) for s in SCALES]
    with torch.no_grad():
        together = model(*views).logits
        for view, logits in zip(views, together):
            assert torch.allclose(model(view), logits, atol=1e-5)


def test_shared_batch_norm_trains_on_the_mixture_of_scales():
    """One update a step, from the statistics of all views: what evaluation will use."""
    model = net(alignment="canonical").train()
    norm = model.deep[0].layer2[0].bn1
    model(*(torch.randn(4, 3, s, s) for s in SCALES))
    assert norm.num_batches_tracked == 1
    apart = net(alignment="native", scales=(16, 32, 128)).train()
    apart(*(torch.randn(4, 3, s, s) for s in (16, 32, 128)))
    assert apart.deep[0].layer2[0].bn1.num_batches_tracked == 3


def test_configurations_that_cannot_be_built():
    for options, says in (
        ({"arch": "resnet19"}, "did you mean resnet1"),
        ({"method": "msum"}, "did you mean msun"),
        ({"alignment": "natve"}, "did you mean native"),
        ({"routing": "upp"}, "did you mean up"),
        ({"scales": (64, 32)}, "not ascending"),
        ({"blocks": 4}, "between 0 and 3"),
    ):
        with pytest.raises(UserError, match=says):
            build_net(NetConfig(**{"arch": "resnet18", "n_classes": 2, **options}))


# ---- starting weights -------------------------------------------------------------------------


def test_resampled_kernels_answer_a_flat_image_alike_and_the_canonical_is_untouched():
    torch.manual_seed(0)
    smooth = F.avg_pool2d(torch.randn(8, 3, 9, 9), 3, stride=1)
    assert torch.equal(resample_kernel(smooth, 7, 1.0), smooth)
    for size, ratio in ((5, 128 / 224), (3, 64 / 224)):
        small = resample_kernel(smooth, size, ratio)
        assert small.shape == (8, 3, size, size)
        old, new = smooth.sum((1, 2, 3)), small.sum((1, 2, 3))
        assert F.cosine_similarity(old, new, dim=0) > 0.9
    with pytest.raises(ValueError, match="smaller scales"):
        resample_kernel(smooth, 7, 2.0)


def pooled_features(model, images):
    """Each subnet's features, averaged over the grid and centred over the images."""
    out = []
    for subnet, scale in zip(model.subnets, model.entry_scales):
        pixels = torch.stack([load_fitted(image, scale) for image in images])
        with torch.no_grad():
            features = subnet.eval()(normalize(pixels, Preprocessing())).mean((2, 3))
        out.append(features - features.mean(0))
    return out


def likeness(features):
    """The mean cosine of each smaller scale's features with the canonical ones."""
    return [F.cosine_similarity(f, features[-1], dim=1).mean().item() for f in features[:-1]]


def test_subnets_start_with_features_alike(shapes):
    """Centred, so that the common positive mean of features behind a ReLU counts for nothing."""
    images = [as_pixels(load_fitted(s.image, 64)) for s in shapes.train]
    model = net()
    started = likeness(pooled_features(model, images))
    torch.manual_seed(1)
    strangers = build_net(model.config)
    torch.manual_seed(2)
    others = build_net(model.config)
    for i in (0, 1):
        strangers.subnets[i] = others.subnets[i]
    random = likeness(pooled_features(strangers, images))
    assert min(started) > 0.8
    assert max(random) < 0.4


def test_weights_file_gives_every_subnet_the_same_start(tmp_path):
    family = find_family("thin_resnet10")
    torch.manual_seed(5)
    plain = family.build("thin_resnet10", 1000)
    torch.save(
        {"model": {f"module.{k}": v for k, v in plain.state_dict().items()}}, tmp_path / "w.pth"
    )
    model = build_net(NetConfig("thin_resnet10", 3, SCALES), weights=tmp_path / "w.pth")
    for subnet in model.subnets:
        assert torch.equal(subnet.layer1[0].conv1.weight, plain.layer1[0].conv1.weight)
    assert torch.equal(model.deep[0].layer4[0].conv1.weight, plain.layer4[0].conv1.weight)
    assert model.head[0].fc.weight.shape == (3, 256)
    same = build_net(NetConfig("thin_resnet10", 1000, SCALES), weights=tmp_path / "w.pth")
    assert torch.equal(same.head[0].fc.weight, plain.fc.weight)


def test_weights_that_do_not_fit(tmp_path):
    config = NetConfig("thin_resnet10", 3, SCALES)
    file = tmp_path / "w.pth"

    def refused(says, state=None, data=None):
        if data is not None:
            file.write_bytes(data)
        else:
            torch.save(state, file)
        with pytest.raises(UserError, match=says):
            build_net(config, weights=file)

    good = ThinResNet((1, 1, 1, 1), 32).state_dict()
    refused("not a state dict", data=b"nonsense")
    refused("holds no state dict", state={"a": 1})
    refused("lacks layer4", state={k: v for k, v in good.items() if "layer4" not in k})
    refused("has the unknown extra", state={**good, "extra": torch.zeros(1)})
    refused("misshapes conv1.weight", state={**good, "conv1.weight": torch.zeros(1)})
    with pytest.raises(UserError, match="no such file"):
        build_net(config, weights=tmp_path / "absent.pth")


def test_no_cached_weights_and_no_network(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(
        "urllib.request.urlopen",
        lambda *a, **k: (_ for _ in ()).throw(ConnectionError("no network")),
    )
    with pytest.raises(UserError, match=r"--weights FILE .* --no-pretrained"):
        build_net(NetConfig("resnet18", 3), pretrained=True)
    with pytest.raises(UserError, match="no pretrained weights for it"):
        build_net(NetConfig("thin_resnet10", 3), pretrained=True)


def test_cached_torchvision_weights_are_used(tmp_path, monkeypatch):
    from torchvision.models import get_model, get_model_weights

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    choice = get_model_weights("resnet18").DEFAULT
    plain = get_model("resnet18")
    file = tmp_path / "hub" / "checkpoints" / choice.url.rpartition("/")[2]
    file.parent.mkdir(parents=True)
    torch.save(plain.state_dict(), file)
    model = build_net(NetConfig("resnet18", 3), pretrained=True)
    assert torch.equal(model.subnets[-1].conv1.weight, plain.conv1.weight)
