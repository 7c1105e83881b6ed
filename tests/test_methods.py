"""The lattice: what each row of Table VI shares, and that every one of them trains."""

import pytest
import torch
from fastai.torch_core import set_seed

from msun_fastai.callbacks.views import MultiScaleViews
from msun_fastai.errors import UserError
from msun_fastai.learner import Consistency, msun_cbs, msun_learner
from msun_fastai.models.methods import METHODS, find_method
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.models.saving import (
    Preprocessing,
    SavedModel,
    load_model_folder,
    save_model_folder,
)
from msun_fastai.models.sharing import has_batch_norm, of_scale
from msun_fastai.models.weights import build_net

SCALES = (16, 32, 64)
TABLE_6 = [(method, kind) for method in ("mst", "snet", "msun") for kind in ("none", "si")]


def net(method="msun", **options):
    torch.manual_seed(0)
    return build_net(NetConfig("thin_resnet10", 10, **{"scales": SCALES, **options}, method=method))


def parameters_of(model, part, i):
    """The parameters of one part on the way of one scale, as objects."""
    return {id(p) for p in getattr(model.at_scale(i), part).parameters()}


def relation(model, part, a, b):
    """`same` where two scales have the same parameter objects in a part, `apart` for none of them,
    `mixed` in between."""
    ours, theirs = parameters_of(model, part, a), parameters_of(model, part, b)
    if ours == theirs:
        return "same"
    return "mixed" if ours & theirs else "apart"


@pytest.mark.parametrize(
    ("method", "norm", "subnet", "deep", "head"),
    [
        ("msun", "shared", "apart", "same", "same"),
        ("msun", "per_scale", "apart", "mixed", "same"),
        ("snet", "shared", "apart", "apart", "apart"),
    ],
)
def test_what_scales_share(method, norm, subnet, deep, head):
    model = net(method, norm=norm)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        assert relation(model, "subnet", a, b) == subnet
        assert relation(model, "deep", a, b) == deep
        assert relation(model, "head", a, b) == head


@pytest.mark.parametrize("method", ["mst", "vanilla"])
def test_methods_of_one_network_share_all(method):
    model = net(method)
    assert model.entry_scales == (64,)
    assert [len(part) for part in (model.subnets, model.deep, model.head)] == [1, 1, 1]


def test_snet_is_as_many_networks_as_scales():
    one = sum(p.numel() for p in net("vanilla").parameters())
    three = sum(p.numel() for p in net("snet").parameters())
    first_kernels = 3 * 32 * ((49 - 9) + (49 - 25))  # the smaller scales' are smaller
    assert three == 3 * one - first_kernels


@pytest.mark.parametrize(("method", "kind"), TABLE_6)
def test_every_row_of_table_6_trains(dls, method, kind):
    set_seed(0)
    learn = msun_learner(
        dls, "thin_resnet10", method=method, consistency=Consistency(kind), pretrained=False
    )
    learn.remove_cbs(learn._grab_cbs(type(learn.progress)))
    before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
    with learn.no_logging():
        learn.fit_one_cycle(1, 1e-2)
    assert [n for n, p in learn.model.named_parameters() if torch.equal(p, before[n])] == []
    columns = learn.recorder.metric_names
    assert ("si" in columns) == (kind == "si")
    values = dict(zip(columns[1:], learn.recorder.values[-1], strict=False))
    assert 0 < values["ce"] < 3 * 4
    if kind == "si":
        assert 0 < values["si"] < 10


def test_table_6_shares_code():
    """One body and one loop: the rows differ in fields, not in classes or callbacks."""
    assert {type(net(name)) for name in METHODS} == {MultiScaleNet}
    config = {name: NetConfig("thin_resnet10", 10, SCALES, name) for name in METHODS}
    plain = [type(cb) for cb in msun_cbs(config["msun"], consistency=Consistency("none"))]
    for name in METHODS:
        cbs = msun_cbs(config[name], consistency=Consistency("none"))
        assert [type(cb) for cb in cbs] == plain
        if name != "vanilla":
            with_si = [
                type(cb).__name__ for cb in msun_cbs(config[name], consistency=Consistency("si"))
            ]
            assert with_si == ["MultiScaleViews", "ScaleInvariance", "TermLogger"]


def test_each_method_has_its_own_consistency():
    own = {name: method.consistency(None, SCALES) for name, method in METHODS.items()}
    theirs = {"vanilla": "none", "mst": "none", "snet": "none", "rsnet": "ensemble", "san": "sd"}
    assert own == {**theirs, "msun": "si"}
    with pytest.raises(UserError, match="did you mean si"):
        find_method("msun").consistency("sii", SCALES)


@pytest.mark.parametrize(
    ("method", "scales", "views"),
    [
        ("vanilla", SCALES, "all"),
        ("msun", (64,), "all"),
        ("mst", (64,), "all"),
        ("snet", SCALES, "native"),
    ],
)
def test_where_a_step_sees_one_view_nothing_is_compared(method, scales, views):
    with pytest.raises(UserError, match=r"no two views .* it takes none"):
        find_method(method).consistency("si", scales, views)
    assert find_method(method).consistency(None, scales, views) == "none"
    assert find_method("mst").consistency("si", SCALES, "native") == "si"  # it draws its views
    assert find_method("msun").consistency(None, SCALES, "down") == "si"


def test_consistency_by_its_name(dls):
    learn = msun_learner(dls, "thin_resnet10", consistency="none", pretrained=False)
    assert "ScaleInvariance" not in str(learn.cbs)
    with pytest.raises(UserError, match="did you mean none"):
        msun_learner(dls, "thin_resnet10", consistency="nome", pretrained=False)


def test_multi_scale_training_compares_two_sizes(make_learner):
    """One size for each batch; with SI two different ones, both brought up to the canonical."""
    seen = []

    class Look(MultiScaleViews):
        order = MultiScaleViews.order + 1

        def __init__(self):
            pass

        def before_batch(self):
            seen.append([tuple(x.shape[-2:]) for x in self.xb])
            if len(self.xb) == 2:  # the coarser one first: the last stands for the model
                steps = [(x[..., 1:] - x[..., :-1]).abs().mean() for x in self.xb]
                assert steps[0] < steps[1]

        after_pred = after_loss = before_backward = before_fit = lambda self: None

    for kind, views in (("none", 1), ("si", 2)):
        seen.clear()
        learn = make_learner(method="mst", consistency=Consistency(kind), cbs=Look())
        learn.dls.train.n = 32
        learn.fit(1)
        assert seen == [[(64, 64)] * views] * len(seen)
        assert len(seen) == 2


# ---- batch norm per scale ---------------------------------------------------------------------


def test_own_batch_norm_and_nothing_else():
    given = net("vanilla").deep[0]
    other = of_scale(given, 16, "per_scale")
    ours, theirs = dict(given.named_modules()), dict(other.named_modules())
    assert ours.keys() == theirs.keys()
    shared = 0
    for name, module in ours.items():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert theirs[name] is not module
            assert theirs[name].weight is not module.weight
            assert torch.equal(theirs[name].running_var, module.running_var)
        elif not has_batch_norm(module):
            assert theirs[name] is module
            shared += isinstance(module, torch.nn.Conv2d)
    assert shared == 9


def test_parameters_beside_a_batch_norm_are_shared():
    class Scaled(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))
            self.register_buffer("offset", torch.zeros(1))
            self.norm = torch.nn.BatchNorm2d(3)

    given = Scaled()
    other = of_scale(given, 16, "per_scale")
    assert other.scale is given.scale
    assert other.offset is given.offset
    assert other.norm is not given.norm


def test_extra_batch_norms_are_counted():
    model, plain = net(norm="per_scale"), net()
    extra = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in plain.parameters())
    norms = [m for m in plain.deep.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert extra == 2 * sum(m.weight.numel() + m.bias.numel() for m in norms) > 0


def test_each_scale_trains_its_own_statistics():
    model = net(norm="per_scale").train()
    model(*(torch.randn(4, 3, s, s) for s in SCALES))
    norms = [model.at_scale(i).deep.layer2[0].bn1 for i in range(3)]
    assert [int(n.num_batches_tracked) for n in norms] == [1, 1, 1]
    assert not torch.allclose(norms[0].running_mean, norms[2].running_mean)
    model.zero_grad()
    model(torch.randn(4, 3, 16, 16)).logits[0].sum().backward()
    assert norms[0].weight.grad is not None
    assert norms[2].weight.grad is None
    convs = [model.at_scale(i).deep.layer2[0].conv1 for i in range(3)]
    assert convs[0] is convs[1] is convs[2]
    assert convs[0].weight.grad is not None


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("options", [{"norm": "per_scale"}, {"method": "snet"}])
def test_private_parts_survive_saving(options, layout, tmp_path):
    model = net(**options).eval().to(memory_format=layout)
    with torch.no_grad():
        for i, p in enumerate(model.parameters()):
            p.add_(0.001 * (i % 7))
    saved = SavedModel(model, [str(i) for i in range(10)], Preprocessing())
    again = load_model_folder(save_model_folder(tmp_path / "m", saved)).model
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, again)]
    assert counts[0] == counts[1]
    for side in SCALES:
        x = torch.randn(2, 3, side, side)
        with torch.no_grad():
            assert torch.allclose(model(x), again(x), rtol=1e-4)
    size = (tmp_path / "m" / "model.safetensors").stat().st_size
    assert size < 4 * counts[0] * 1.05 + 200_000  # shared parameters are written once


def test_private_parts_survive_a_copy_and_a_state_dict():
    import copy

    model = net(norm="per_scale")
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(1.1)
    twin = copy.deepcopy(model)
    assert twin.at_scale(0).deep.layer2[0].conv1 is twin.at_scale(2).deep.layer2[0].conv1
    other = net(norm="per_scale")
    other.load_state_dict(model.state_dict())
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(other.eval()(x), model.eval()(x))


# ---- grids ------------------------------------------------------------------------------------


def test_grids_that_the_user_names():
    model = net(alignment="native", grids=(4, 8, 16))
    assert [g[0] for g in model.grids] == [4, 8, 16]
    assert [type(f.maxpool).__name__ for f in model.subnets] == ["MaxPool2d"] * 3
    assert [g[0] for g in net(alignment="native").grids] == [16, 16, 16]
    half = net(alignment="native", grids=(8, 16, 16)).subnets[0]
    assert type(half.maxpool).__name__ == "Identity"  # the pool goes first
    assert half.conv1.stride == (2, 2)
    for grids, says in (
        ((5, 8, 16), "scale 16 has no grid 5; it can have 4, 8, 16"),
        ((4, 8, 8), "scale 64 has no grid 8; it can have 16"),
        ((4, 8), "2 given for 3 scales"),
        (("4", "8", "16"), "whole number of positions"),
        ("abc", "whole number of positions"),
        ((0, 8, 16), "whole number of positions"),
    ):
        with pytest.raises(UserError, match=says):
            net(grids=grids)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"method": "vanilla", "grids": (4, 8, 16)}, "vanilla has no subnets"),
        ({"method": "snet", "norm": "per_scale"}, "snet shares no batch norm"),
        ({"method": "mst", "norm": "per_scale"}, "mst shares no batch norm"),
        ({"norm": "per_scale", "scales": (64,)}, "msun shares no batch norm between scales here"),
        ({"method": "vanilla", "alignment": "native"}, "vanilla has no subnets whose grids"),
        ({"alignment": ""}, "alignment: unknown value"),
        ({"norm": "per-scale"}, "did you mean per_scale"),
        ({"arch": "convnext_tiny", "norm": "per_scale"}, "no batch norm in its deep layers"),
        ({"arch": "vgg11", "norm": "per_scale", "scales": (64, 224)}, "no batch norm"),
    ],
)
def test_what_cannot_be_combined(options, says):
    with pytest.raises(UserError, match=says):
        build_net(NetConfig(**{"arch": "thin_resnet10", "n_classes": 3, **options}))
