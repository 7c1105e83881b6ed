"""The table of backbones: every row cut, trained, saved, loaded, predicted with and exported."""

import re
import textwrap
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from fastai.learner import load_learner
from fastai.torch_core import set_seed
from PIL import Image
from torch import nn

from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.errors import UserError
from msun_fastai.learner import arch_name, msun_learner, save_learner
from msun_fastai.models import families, timm_names
from msun_fastai.models.backbones import Family, cut_backbone, stem_reducers, take_modules
from msun_fastai.models.families import FAMILIES, find_family, known_archs, register_family
from msun_fastai.models.meta import grid_of, run_on_meta, smallest_side
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.models.subnets import first_conv
from msun_fastai.models.weights import build_net
from msun_fastai.predict import Predictor

ROOT = Path(__file__).parent.parent
OF_TIMM = {"resnet": "resnet14t", "regnet": "regnetx_002", "convnext": "convnext_atto"}
SMALLEST = {
    "regnet": "regnet_y_400mf",
    "vgg": "vgg11_bn",
    "scalenet": "scalenet_d2d2_w8",
}  # elsewhere a row's first network
needs_timm = pytest.mark.skipif(not timm_names.installed(), reason="timm is not installed")


def smallest(family):
    return OF_TIMM.get(family.timm_module) or SMALLEST.get(family.name) or family.archs[0]


ROWS = [
    pytest.param(smallest(f), id=f.name, marks=[needs_timm] if f.timm_module else [])
    for f in FAMILIES
]


@cache
def smallest_side_of(arch):
    """The smallest side at which the plain network runs, looked for once for all tests."""
    return smallest_side(find_family(arch).build_blank(arch, 7), 224)


def tensors(module):
    return {id(t) for t in [*module.parameters(), *module.buffers()]}


def test_the_table():
    names = [arch for family in FAMILIES for arch in family.archs]
    assert len(names) == len(set(names)) > 50
    for kind in ("resnet", "resnext", "wide_resnet", "densenet", "vgg", "mobilenet_v2"):
        assert any(name.startswith(kind) for name in names)
    for kind in ("mobilenet_v3", "efficientnet", "convnext", "regnet", "googlenet", "alexnet"):
        assert any(name.startswith(kind) for name in names)
    assert "inception_v3" in names


# the 644M parameters of this one take ten seconds; it is built as its smaller sisters are
ARCHS = [arch for arch in known_archs() if arch != "regnet_y_128gf"]


@pytest.mark.parametrize("arch", ARCHS)
def test_a_cut_takes_every_parameter_once(arch):
    """At every block: what the parts hold together is what the network holds."""
    family = find_family(arch)
    network = family.build_blank(arch, 7)
    most = 0
    names = family.blocks(network) if callable(family.blocks) else family.blocks
    for blocks in range(9):
        try:
            cut = cut_backbone(network, family, blocks)
        except UserError:
            break
        parts = [{id(p) for p in part.parameters()} for part in cut[:3]]
        assert all(parts), "a part without parameters"
        assert set.union(*parts) == {id(p) for p in network.parameters()}
        assert sum(map(len, parts)) == len(set.union(*parts))
        assert run_on_meta(nn.Sequential(*cut[:3]), 224).shape == (1, 7)
        reducible = dict(cut.shallow.named_modules())
        assert all(path in reducible for path in cut.reducers)
        most = blocks
    assert most == len(names) - 2
    assert most == 3 or family.name in ("googlenet", "alexnet", "squeezenet")  # B0 to B3


@pytest.mark.parametrize("arch", ROWS)
def test_the_canonical_path_is_the_plain_network(arch):
    torch.manual_seed(0)
    plain = find_family(arch).build(arch, 7).eval()
    with torch.no_grad():  # GoogLeNet's random weights are so small that it would hide the rest
        plain.get_submodule(find_family(arch).classifier).bias.zero_()
    side = max(64, smallest_side_of(arch))
    model = MultiScaleNet(NetConfig(arch, 7, (side,), method="vanilla"), plain).eval()
    x = torch.randn(2, 3, side, side)
    with torch.no_grad():
        expected = plain(x)  # in the millions where Inception v3 has random weights
        assert (model(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
        given = {id(p) for p in plain.parameters()}
    assert {id(p) for p in model.parameters()} == given


@pytest.mark.parametrize("arch", ROWS)
def test_subnets_of_every_family_fit(arch):
    """No grid above the canonical one, no kernel below its stride or above the canonical one."""
    family = find_family(arch)
    if not family.subnets:
        with pytest.raises(UserError, match=r"bears no subnets .* vanilla, mst, rsnet and san"):
            NetConfig(arch, 7)
        return
    blank = family.build_blank(arch, 7)
    with torch.device("meta"):
        model = MultiScaleNet(NetConfig(arch, 7, alignment="native"), blank)
    grids = [grid[0] for grid in model.grids]
    assert max(grids) == grids[-1]
    assert min(grids) >= 15
    convs = [first_conv(f)[1] for f in model.subnets]
    kernels = [conv.kernel_size[0] for conv in convs]
    assert kernels == sorted(kernels)
    assert kernels[0] == 3
    assert all(conv.stride[0] <= conv.kernel_size[0] for conv in convs)
    assert all(grid_of(f, s)[0] == g for f, s, g in zip(model.subnets, (32, 128, 224), grids))


def do_the_main_job(arch, shapes, folder):
    """Two steps of training, save, load, predict at five sizes, export both ways."""
    family = find_family(arch)
    canonical = max(64, smallest_side_of(arch))
    set_seed(1)
    dls = NativeImageDataLoaders.from_source(
        shapes.limited(12, 0), scales=(32, canonical), bs=6, num_workers=0, device="cpu"
    )
    method = "msun" if family.subnets else "mst"
    alignment = "native" if family.subnets else None
    learn = msun_learner(dls, arch, method=method, pretrained=False, alignment=alignment)
    learn.remove_cbs(learn._grab_cbs(type(learn.progress)))
    before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
    with learn.no_logging():
        learn.fit(1, 1e-3)
    assert learn.recorder.smooth_loss == learn.recorder.smooth_loss  # not NaN
    assert [n for n, p in learn.model.named_parameters() if torch.equal(p, before[n])] == []
    images = [Image.fromarray(shapes.valid[0].image).resize((s, s)) for s in (8, 32, 50, 64, 300)]
    predictor = Predictor.from_run(save_learner(learn, folder / "model"))
    learn.export(folder / "learner.pkl")
    again = load_learner(folder / "learner.pkl")
    for image, prediction in zip(images, predictor.predict(images), strict=True):
        assert prediction.label in dls.vocab
        label, _, probabilities = again.predict(image)
        assert label == prediction.label
        assert probabilities.max().item() == pytest.approx(prediction.probability, abs=1e-4)
    scale = learn.model.entry_scales[0]
    plain = learn.model.at_scale(0).eval()
    x = torch.randn(1, 3, scale, scale)
    exported = torch.export.export(plain, (x,)).module()
    with torch.no_grad():
        assert torch.allclose(exported(x), plain(x), atol=1e-5)


@pytest.mark.parametrize("arch", ROWS)
@pytest.mark.parametrize("scales", [(32, 96, 160, 224), (112, 224), (48, 96)])
def test_no_pixel_is_left_out(arch, scales):
    """The image's last row and column reach the features of every subnet."""
    if not find_family(arch).subnets:
        return
    torch.manual_seed(0)
    network = find_family(arch).build(arch, 3)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):  # random, so that no channel is cut off by a ReLU
            nn.init.normal_(norm.bias)
    model = MultiScaleNet(NetConfig(arch, 3, scales, blocks=0), network).eval()
    for subnet, scale in zip(model.subnets, scales, strict=True):
        x = torch.randn(1, 3, scale, scale)
        for edge in ((..., -1), (..., -1, slice(None))):
            y = x.clone()
            y[edge] += 5
            with torch.no_grad():
                assert not torch.equal(subnet(x), subnet(y)), f"{scale}, {edge}"


@needs_timm
def test_a_blurred_pool_is_a_pool():
    usual, blurred = (
        stem_reducers(take_modules(find_family(a).build_blank(a, 7), ["conv1 maxpool"]))
        for a in ("resnet18.a1_in1k", "resnetblur18")
    )
    assert len(usual) == len(blurred) == 2


# seconds each on a CPU: the others show that the table works, these run in CI
LARGE = {"alexnet", "convnext", "densenet", "efficientnet_v2", "googlenet", "inception_v3"}
LARGE |= {"regnet", "timm_convnext", "vgg"}


def by_time(row):
    marks = [*row.marks, pytest.mark.slow] if row.id in LARGE else row.marks
    return pytest.param(*row.values, id=row.id, marks=marks)


@pytest.mark.parametrize("arch", map(by_time, ROWS))
def test_every_family_does_the_main_job(arch, shapes, tmp_path):
    do_the_main_job(arch, shapes, tmp_path)


def test_the_row_in_contributing_works(shapes, tmp_path, monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text()
    code = textwrap.dedent(re.search(r"```python\n(.*?)```", text, re.S).group(1))
    assert code.count("\n") < 20
    row = eval(code.strip(), {"Family": Family})
    monkeypatch.setattr(families, "FAMILIES", (*FAMILIES, row))
    do_the_main_job(row.archs[0], shapes, tmp_path)
    test_a_cut_takes_every_parameter_once(row.archs[0])
    test_the_canonical_path_is_the_plain_network(row.archs[0])
    test_subnets_of_every_family_fit(row.archs[0])


@pytest.mark.parametrize(
    ("arch", "smallest"), [("inception_v3", 75), ("alexnet", 63), ("googlenet", 15), ("vgg16", 32)]
)
def test_sizes_at_which_a_network_cannot_run(arch, smallest):
    with pytest.raises(
        UserError, match=f"{arch} cannot run at 14 .* smallest it takes is {smallest}"
    ):
        build_net(NetConfig(arch, 7, (14,), method="vanilla"))
    network = find_family(arch).build(arch, 7).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, smallest, smallest)).shape == (1, 7)
        with pytest.raises(RuntimeError):
            network(torch.randn(1, 3, smallest - 1, smallest - 1))


def test_densenet_files_of_torchvision_have_older_names(tmp_path):
    """`norm.1` and `conv.2` in the published files, `norm1` and `conv2` in the network."""
    torch.manual_seed(4)
    plain = find_family("densenet121").build("densenet121", 1000)
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", n): v
        for n, v in plain.state_dict().items()
        if not n.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet.pth")
    model = build_net(
        NetConfig("densenet121", 3, (64,), "vanilla"), weights=tmp_path / "densenet.pth"
    )
    own = model.state_dict()
    name = "features.denseblock4.denselayer16.conv2.weight"
    assert torch.equal(own[f"deep.0.{name}"], plain.state_dict()[name])


def test_auxiliary_classifiers_of_published_weights_are_left_out(tmp_path):
    torch.manual_seed(4)
    plain = find_family("googlenet").build("googlenet", 1000)
    state = {
        **plain.state_dict(),
        "aux1.fc2.weight": torch.zeros(2),
        "aux2.fc2.bias": torch.zeros(2),
    }
    torch.save(state, tmp_path / "w.pth")
    model = build_net(NetConfig("googlenet", 3, (64,), "vanilla"), weights=tmp_path / "w.pth")
    assert torch.equal(model.state_dict()["subnets.0.conv1.conv.weight"], plain.conv1.conv.weight)


# ---- timm's names -----------------------------------------------------------------------------


@needs_timm
def test_timm_names_come_through_the_same_door(dls):
    learn = msun_learner(dls, "resnet14t", pretrained=False)
    assert learn.model.subnets[0].conv1[0].kernel_size == (3, 3)  # a stem of three convolutions
    assert find_family("resnet50d").timm_module == "resnet"
    assert find_family("resnet50.a1_in1k").timm_module == "resnet"
    assert find_family("resnet50").timm_module is None  # torchvision has it, too


@needs_timm
def test_timm_statistics_normalise(dls, monkeypatch):
    monkeypatch.setattr(timm_names, "input_stats", lambda arch, usual: ([0.5] * 3, [0.25] * 3))
    learn = msun_learner(dls, "resnet14t", pretrained=False)
    norm = learn.dls.train.after_batch.fs[-1]
    assert norm.mean.flatten().tolist() == [0.5] * 3
    assert norm.std.flatten().tolist() == [0.25] * 3


@needs_timm
def test_names_that_timm_has_replaced_have_no_statistics(dls):
    learn = msun_learner(dls, "gluon_resnet18_v1b", pretrained=False)
    assert learn.dls.train.after_batch.fs[-1].mean.flatten().tolist() == pytest.approx(
        [0.485, 0.456, 0.406]
    )


@needs_timm
def test_a_builder_of_timm_is_timm_s():
    from timm.models.resnet import resnet50
    from torchvision import models

    assert find_family(arch_name(resnet50)).timm_module == "resnet"
    assert find_family(arch_name(models.resnet50)).timm_module is None


def test_a_network_instead_of_a_name(dls):
    with pytest.raises(UserError, match=r"arch: Linear is no backbone's name; give one"):
        msun_learner(dls, nn.Linear(1, 1), pretrained=False)


@needs_timm
def test_timm_weights_that_cannot_be_had(monkeypatch):
    import timm

    def fails(arch, pretrained):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(UserError, match=r"no network.*--weights FILE .* --no-pretrained"):
        timm_names.pretrained_state("resnet50d", "give --weights FILE (a file) or --no-pretrained")


@pytest.mark.parametrize(
    ("arch", "says"),
    [
        ("resnet50dd", "did you mean .*resnet50d"),
        ("vit_tiny_patch16_224", "is timm's, but of its families resnet, regnet, convnext alone"),
        ("squeezenet1_0", "is torchvision's, but no family"),
        ("RESNET50", "did you mean resnet50"),
        ("resnet50.nonexistent", "timm has no weights of the name .*did you mean resnet50\\."),
        ("nothing_like_it", "families: .*densenet.*timm_convnext; README"),
    ],
)
@needs_timm
def test_names_that_have_no_family(arch, says):
    with pytest.raises(UserError, match=says):
        find_family(arch)


def test_without_timm(monkeypatch):
    monkeypatch.setattr(timm_names, "installed", lambda: False)
    timm_names.module_of.cache_clear()
    with pytest.raises(
        UserError, match=r"did you mean resnet50.*pip install 'msun-fastai\[timm\]'"
    ):
        find_family("resnet50d")
    timm_names.module_of.cache_clear()


@pytest.fixture
def shufflenet(monkeypatch):
    """A row for a network that has none, for one test."""
    monkeypatch.setattr(families, "FAMILIES", families.FAMILIES)
    return register_family(
        Family(
            name="shufflenet",
            archs=("shufflenet_v2_x0_5",),
            blocks=("conv1 maxpool", "stage2", "stage3", "stage4 conv5"),
            head="@pool @flatten fc",
            classifier="fc",
        )
    )


@pytest.mark.parametrize("method", ["msun", "snet", "rsnet", "san", "mst", "vanilla"])
def test_a_row_of_ones_own_serves_every_method(shufflenet, method):
    scales = (16, 32, 64)
    config = NetConfig(shufflenet.archs[0], 3, scales, method=method)
    net = build_net(config, pretrained=False).eval()
    for scale in net.entry_scales:
        assert net(torch.zeros(2, 3, scale, scale)).shape == (2, 3)


def test_a_row_that_cannot_be_registered(shufflenet):
    before = families.FAMILIES
    assert register_family(replace(shufflenet)) == shufflenet  # a cell that is run twice
    with pytest.raises(UserError, match="shufflenet_v2_x0_5 is in the table already"):
        register_family(replace(shufflenet, name="again"))
    with pytest.raises(UserError, match="scalenet_mine is in the table already"):
        register_family(replace(shufflenet, archs=("scalenet_mine",)))
    with pytest.raises(UserError, match="archs is empty"):
        register_family(replace(shufflenet, archs=()))
    assert before == families.FAMILIES


@needs_timm
def test_a_row_does_not_take_a_name_of_timm(shufflenet):
    with pytest.raises(UserError, match="resnet50d is in the table already"):
        register_family(replace(shufflenet, archs=("resnet50d",)))
