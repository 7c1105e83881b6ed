"""ScaleNet: names and depths, the paper's figures, its equations, sizes, skips, checkpoints."""

import copy
from dataclasses import replace
from math import ceil

import pytest
import torch
from torch import nn

from msun_fastai.analysis.layers import layer_names, recording
from msun_fastai.errors import UserError
from msun_fastai.flops import count_macs, count_params, zero_inserted_macs
from msun_fastai.models import scalenet as module
from msun_fastai.models.families import SCALENETS, find_family
from msun_fastai.models.meta import run_on_meta
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.models.saving import (
    Preprocessing,
    SavedModel,
    load_model_folder,
    save_model_folder,
)
from msun_fastai.models.scalenet import (
    ScaleNet,
    checkpoint_blocks,
    couples_of,
    group_counts,
    scalenet,
)
from msun_fastai.models.scalenet_blocks import DoubleCouple, SingleCouple, pack, unpack
from msun_fastai.models.scalenet_names import PAPER, Stage, parse_scalenet
from msun_fastai.models.weights import build_net
from msun_fastai.sized import sized_networks

KINDS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
TINY = "scalenet_d2d1s2_w4"
# arch: parameters in millions, multiply-accumulates in 1e9 as the paper counts them, share by which
# these may be off. Tables 1 to 3
PRINTED = {
    "scalenet32_d7": (1.0, None, None),
    "scalenet44_d10": (2.0, None, None),
    "scalenet98_d20s5": (1.7, None, None),
    "scalenet124_d30": (1.8, 0.63, 0.11),
    "scalenet103_d25": (5.1, 4.8, 0.02),
    "scalenet68_d8d8": (10.1, 4.8, 0.02),
    "scalenet38_d3d3s3": (15.0, 3.0, 0.12),
    "scalenet48_d4d4s4": (20.1, 4.0, 0.08),
    "scalenet54_d4d5s5": (25.0, 4.6, 0.09),
    "scalenet59_d4d5s6": (30.5, 5.4, 0.11),
}


def blank(arch):
    """Without values, for as many classes and images of such a side as its stem is for."""
    small = parse_scalenet(arch).stem == "cifar"
    return find_family(arch).build_blank(arch, 10 if small else 1000), 32 if small else 224


def count(network, *kinds):
    return sum(isinstance(m, kinds) for m in network.modules())


def lively(arch, n_classes=3):
    """With values, batch norms at random so that evaluation differs from doing nothing."""
    torch.manual_seed(0)
    network = scalenet(arch, n_classes)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean, std=0.1)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
            nn.init.normal_(norm.bias, std=0.1)
    return network


# ---- the paper's figures ----------------------------------------------------------------------


def test_every_printed_network_is_tested():
    assert set(PRINTED) == set(SCALENETS)
    assert {name.partition("_")[2] for name in SCALENETS} == set(PAPER) - {"d272d200s50"}


@pytest.mark.parametrize("arch", SCALENETS)
def test_depth_and_size_as_printed(arch):
    network, side = blank(arch)
    params, flops, off = PRINTED[arch]
    depth = int(arch.removeprefix("scalenet").partition("_")[0])
    assert parse_scalenet(arch).depth == depth
    assert count(network, *KINDS) == depth
    assert count_params(network) / 1e6 == pytest.approx(params, rel=0.05)
    if flops:
        assert zero_inserted_macs(network, side) / 1e9 == pytest.approx(flops, rel=off)


@pytest.mark.parametrize(
    ("arch", "ratio"), [("scalenet32_d7", (17, 14)), ("scalenet44_d10", (23, 20))]
)
def test_ratio_of_convolutions_to_deconvolutions(arch, ratio):
    """Table 3."""
    network, _ = blank(arch)
    assert (count(network, nn.Conv2d), count(network, nn.ConvTranspose2d)) == ratio


def test_the_deepest_name():
    plan = parse_scalenet("scalenet2000_d272d200s50")
    assert plan.depth == 2000
    assert [stage.count for stage in plan.stages] == [272, 200, 50]


def test_depths_that_names_of_table_2_do_not_give():
    """D4D5S6 is 56 where channels double, 59 with its authors' inner channels; D3D3S3 is 38."""
    assert parse_scalenet("scalenet_d4d5s6_w80-160-400").depth == 56
    assert parse_scalenet("scalenet_d4d5s6").depth == 59
    assert parse_scalenet("scalenet_d3d3s3").depth == 38
    assert parse_scalenet("scalenet_d3d3s3_units").depth == 43
    # with the three convolutions of the other stem, and no last unit, the text's transforms give 44
    assert parse_scalenet("scalenet_d3d3s3_cifar_units").depth == 44


def test_cost_of_the_ways_to_resample():
    """Table 4: A+B and A+D have the same parameters and FLOPs, C+D 55 to 60 % more."""
    networks = {way: blank(f"scalenet_d30_{way}")[0] for way in ("ab", "ad", "cd")}
    assert len({count_params(network) for network in networks.values()}) == 1
    assert {count(network, *KINDS) for network in networks.values()} == {124}
    paper = {way: zero_inserted_macs(network, 32) for way, network in networks.items()}
    assert paper["ab"] == paper["ad"]
    assert 1.55 < paper["cd"] / paper["ad"] < 1.60
    assert count_macs(networks["ab"], 32) < 0.5 * paper["ab"]


def test_deconvolutions_are_counted_where_zeros_are_put_in():
    """4x4 maps of 3 channels to 8x8 maps of 5: 9 weights a pair at 64 places, of which 16 are."""
    up = nn.ConvTranspose2d(3, 5, 3, stride=2, padding=1, output_padding=1)
    assert count_macs(up, 4) == 16 * 3 * 5 * 9
    assert zero_inserted_macs(up, 4) == 64 * 3 * 5 * 9
    assert not up._forward_hooks


# ---- names ------------------------------------------------------------------------------------


def test_what_a_name_says():
    plan = parse_scalenet("scalenet_d2s3_single_w8x6x4-16x12_cd_l32_k4_imagenet_ckpt")
    assert plan.stages == (Stage("d", 2, (8, 6, 4)), Stage("s", 3, (16, 12)))
    assert (plan.multipath, plan.resampling, plan.last, plan.kernel) == (False, "cd", 32, 4)
    assert (plan.stem, plan.transform, plan.checkpoint) == ("imagenet", "pooled", True)
    paper = parse_scalenet("scalenet44_d10")
    assert (paper.stem, paper.stages[0].widths, paper.last) == ("cifar", (64, 64, 64), 0)
    imagenet = parse_scalenet("scalenet_d4d5s5")
    assert (imagenet.stem, imagenet.kernel, imagenet.last) == ("imagenet", 3, 1500)
    assert parse_scalenet("scalenet_d4d5s5_w20").stages[2].widths == (80, 80)
    assert parse_scalenet("scalenet_d10_imagenet").last == 1024
    assert parse_scalenet("scalenet_d25_cifar").last == 0
    assert parse_scalenet("scalenet_d3d3_imagenet") == parse_scalenet("scalenet_d3d3")


@pytest.mark.parametrize(
    ("arch", "says"),
    [
        ("scalenet", r"no ScaleNet's name; write scalenet\[DEPTH\]_BLOCKS"),
        ("scalenet44", "no ScaleNet's name"),
        ("scalenet44_D10", "no ScaleNet's name"),
        ("scalenet_d10__single", "no ScaleNet's name"),
        ("scalenet43_d10", "give 44 layers, not 43; write scalenet44_d10"),
        ("scalenet43_d10_single", "write scalenet44_d10_single"),
        ("scalenet_d10_singel", "unknown option 'singel'; did you mean single"),
        ("scalenet_d10_w", "unknown option 'w'"),
        ("scalenet_d10_ab_cd", "'cd' is the second word for its resampling"),
        ("scalenet_s3d2", r"DoubleCouples \(d\) come before"),
        ("scalenet_d0s3", "a stage needs a block"),
        ("scalenet_d1", "a network two"),
        ("scalenet_d1d1d1d1d1", "5 stages; there can be 4"),
        ("scalenet_d99999", "more than 10000 layers"),
        ("scalenet_d2_w8-16", "widths of 2 stages for 1"),
        ("scalenet_d2_w8x4", "width 8x4: a block d has maps of 3 sizes"),
        ("scalenet_d2_w0", "width 0x0x0"),
        ("scalenet_d2s2_w8-8", "stage 2 needs 9 channels or more"),
    ],
)
def test_names_that_are_wrong(arch, says):
    with pytest.raises(UserError, match=says):
        find_family(arch)


def test_a_name_is_all_that_a_saved_model_needs(tmp_path):
    config = NetConfig("scalenet_d2s2_w4x3x2-8x6_single_cd_cifar_ckpt", 3, (16,), "vanilla")
    torch.manual_seed(0)
    saved = SavedModel(build_net(config).eval(), ["a", "b", "c"], Preprocessing())
    again = load_model_folder(save_model_folder(tmp_path, saved))
    x = torch.randn(2, 3, 16, 16)
    assert torch.equal(again.model(x), saved.model(x))
    assert [g.segment for g in again.model.modules() if isinstance(g, module.Group)] == [2] * 4


# ---- what it computes -------------------------------------------------------------------------


def linear(couple):
    """The couple without what is not linear; its convolutions as functions."""
    for part in couple.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()  # mean 0, variance 1
        for name, child in part.named_children():
            if isinstance(child, nn.ReLU):
                setattr(part, name, nn.Identity())
    scale = (1 + 1e-5) ** -0.5  # of a batch norm
    down = [lambda x, c=d.conv: c(x) * scale for d in couple.downs]
    up = [lambda x, c=u.conv: c(x) * scale for u in couple.ups]
    return (*down, *up)


@pytest.mark.parametrize("kernel", [3, 4])
def test_the_residuals_of_equations_2_to_4(kernel):
    torch.manual_seed(0)
    plan = parse_scalenet(f"scalenet_d2_w5x4x3_k{kernel}")
    x, x3, x2 = maps = torch.randn(2, 5, 12, 12), torch.randn(2, 4, 6, 6), torch.randn(2, 3, 3, 3)
    multi = DoubleCouple(plan.stages[0], plan, first=False)
    c1, c2, d3, d4 = linear(multi)
    with torch.no_grad():
        a_x, d_x = d4(d3(c2(c1(x)))), d4(c1(x))
        expected = a_x + d_x + d4(d3(c2(x3))) + d4(d3(x2)) + x
        out = multi(maps)
        assert torch.allclose(out[0], expected, atol=1e-5)
        assert torch.allclose(out[1], d3(c2(c1(x) + x3) + x2), atol=1e-5)  # x3 of this block
        assert torch.allclose(out[2], c2(c1(x) + x3), atol=1e-5)
        single = DoubleCouple(plan.stages[0], replace(plan, multipath=False), first=False)
        linear(single)
        single.load_state_dict(multi.state_dict())
        assert torch.allclose(single(maps)[0], a_x + x, atol=1e-5)


def test_a_single_couple():
    torch.manual_seed(0)
    plan = parse_scalenet("scalenet_s2_w5x4")
    x, x1 = torch.randn(2, 5, 6, 6), torch.randn(2, 4, 3, 3)
    couple = SingleCouple(plan.stages[0], plan, first=False)
    c1, d2 = linear(couple)
    with torch.no_grad():
        out = couple((x, x1))
        assert torch.allclose(out[0], d2(c1(x) + x1) + x, atol=1e-5)
        assert torch.allclose(out[1], c1(x), atol=1e-5)
        assert torch.allclose(couple((x,))[0], d2(c1(x)) + x, atol=1e-5)


@pytest.mark.parametrize("side", [*range(1, 18), 33])
def test_packed_maps_come_back(side):
    sides = [side, ceil(side / 2), ceil(side / 4)]
    maps = [torch.randn(2, c, s, s) for c, s in zip((3, 2, 4), sides)]
    packed = pack(maps)
    assert packed.shape == (2, 9, side, side)
    assert all(torch.equal(a, b) for a, b in zip(maps, unpack(packed, (3, 2, 4)), strict=True))


@pytest.mark.parametrize("way", ["ab", "ad", "cd", "ab_k4", "units", "single"])
@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
def test_output_sizes_of_every_block(way, stem):
    """The last summing node of a block has its input's size, its smallest map a quarter or a half,
    rounded up, at every side: Section III-A.2."""
    network = scalenet(f"{TINY}_{way}_{stem}", 3).eval()
    shapes = []
    for couple in couples_of(network):
        couple.register_forward_hook(lambda m, i, o: shapes.append([t.shape[1:] for t in o]))
    for side in (1, 2, 5, 16, 27, 32) if stem == "cifar" else (4, 32, 33, 50, 63):
        run_on_meta(network, side)
        across = side if stem == "cifar" else ceil(side / 4)
        for stage, found in zip("ddDss", shapes, strict=True):
            width = {"d": 4, "D": 8, "s": 16}[stage]
            at = ceil(across / {"d": 1, "D": 2, "s": 4}[stage])
            sizes = [at, ceil(at / 2), ceil(at / 4)][: 2 if stage == "s" else 3]
            assert found == [(width, s, s) for s in sizes]
        shapes.clear()


def test_the_last_features_are_of_high_resolution():
    """Section IV-G.1: 40x40 for images of 320 pixels, where ResNet has 10x10."""
    arch = "scalenet103_d25"
    with torch.device("meta"):
        net = MultiScaleNet(NetConfig(arch, 1000, (320,), "vanilla"), blank(arch)[0])
    (sized,) = sized_networks(net, [320])
    assert run_on_meta(sized.body, 320).shape == (1, 1100, 40, 40)
    assert layer_names(net) == ["stem", *(f"stage {i}" for i in (1, 2, 3, 4))]


def test_groups_never_reach_over_a_stage():
    assert group_counts([10]) == [[3, 3, 2, 2]]
    assert group_counts([20, 5]) == [[7, 7, 6], [5]]
    assert group_counts([8, 8]) == [[4, 4], [4, 4]]
    assert group_counts([1, 1, 1]) == [[1], [1], [1]]
    assert group_counts([2, 2, 2, 2]) == [[2], [2], [2], [2]]


@pytest.mark.parametrize(
    "way", ["multi", "single", "cd", "units_cifar", "single_cifar", "k4_cifar"]
)
def test_nothing_is_without_use(way):
    """Every parameter has a gradient, as training on several devices needs it."""
    network = scalenet(f"{TINY}_{way}", 3)
    network(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_skips_have_no_parameters():
    one, other = (blank(f"scalenet98_d20s5_{way}")[0] for way in ("multi", "single"))
    assert one.state_dict().keys() == other.state_dict().keys()


@pytest.mark.parametrize("arch", [f"{TINY}_cifar", f"{TINY}_cd_l8"])
@pytest.mark.parametrize("shape", [(32, 32), (45, 30)])
def test_ways_to_run(arch, shape):
    network = lively(arch).eval()
    x = torch.randn(2, 3, *shape)
    with torch.no_grad():
        plain = network(x)
        exported = torch.export.export(network, (x,)).module()
        assert torch.allclose(exported(x), plain, atol=1e-5)
        last = copy.deepcopy(network).to(memory_format=torch.channels_last)
        assert torch.allclose(last(x.to(memory_format=torch.channels_last)), plain, atol=1e-4)
        with torch.autocast("cpu", torch.bfloat16):
            half = network(x)
    assert half.dtype == torch.bfloat16
    assert torch.allclose(half.float(), plain, atol=0.1 * plain.abs().max().item())


# ---- checkpoints ------------------------------------------------------------------------------


def step(network, x, autocast=False):
    """Outputs, gradients and batch norm statistics after one training step."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = network.train()(x)
    out.float().square().sum().backward()
    grads = {n: p.grad for n, p in network.named_parameters()}
    return out, grads, dict(network.named_buffers())


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("segment", [1, 2, None])
def test_checkpoints_change_nothing(segment, autocast):
    network = lively("scalenet_d5d3s3_w4_cifar")
    other = copy.deepcopy(network)
    assert checkpoint_blocks(other, segment) == (segment or 3)  # of 11 blocks
    x = torch.randn(3, 3, 16, 16)
    calls = [0]
    for couple in couples_of(other):
        couple.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    expected, found = step(network, x, autocast), step(other, x, autocast)
    assert calls[0] == 22  # every block ran twice
    assert torch.equal(expected[0], found[0])
    for before, after in zip(expected[1:], found[1:]):
        assert before.keys() == after.keys()
        for name, value in before.items():
            assert torch.equal(value, after[name]), name
    assert {b.item() for n, b in found[2].items() if n.endswith("num_batches_tracked")} == {1}


def test_checkpoints_are_for_training_alone():
    network = lively("scalenet_d2d2_w4_ckpt").eval()
    assert torch.equal(network(torch.ones(1, 3, 32, 32)), network(torch.ones(1, 3, 32, 32)))
    calls = [0]
    couples_of(network)[0].register_forward_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    network(torch.ones(1, 3, 32, 32)).sum().backward()
    assert calls == [1]
    assert checkpoint_blocks(network, 0) == 0
    network.train()(torch.ones(2, 3, 32, 32)).sum().backward()
    assert calls == [2]


def test_checkpoints_keep_less():
    """Bytes that the forward pass keeps for the backward pass outside of what runs again."""

    def kept(network):
        held = {}

        def keep(x):
            held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            out = network.train()(torch.randn(2, 3, 16, 16))
        return sum(held.values()), out

    torch.manual_seed(0)
    network = ScaleNet(parse_scalenet("scalenet_d32_w8_cifar"), 3)
    everything, _ = kept(network)
    checkpoint_blocks(network)
    assert kept(network)[0] < 0.2 * everything


@pytest.mark.slow
def test_two_thousand_layers_take_a_step():
    """The paper's deepest, 15M parameters (Table 1)."""
    config = NetConfig("scalenet2000_d272d200s50_ckpt", 10, (32,), "vanilla")
    net = build_net(config).train()
    assert count(net, *KINDS) == 2000
    assert count_params(net) / 1e6 == pytest.approx(15.0, rel=0.05)
    (logits,) = net(torch.randn(2, 3, 32, 32)).logits
    nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_features_are_seen_at_every_block():
    network = lively("scalenet_d2s2_w4x6x8-16x12_cifar").eval()
    taps = {str(i): couple.smallest for i, couple in enumerate(couples_of(network))}
    with recording(taps) as seen, torch.no_grad():
        network(torch.randn(2, 3, 16, 16))
    assert [tuple(x.shape[1:]) for x in seen.values()] == [(8, 4, 4)] * 2 + [(12, 4, 4)] * 2
    assert all((x >= 0).all() for x in seen.values())
