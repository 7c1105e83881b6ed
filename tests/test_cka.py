"""CKA against an independent formulation, its invariances, its estimate from batches, layers."""

from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from test_families import ROWS
from test_heads import SCALES, saved_net, small_net
from torch import nn

from msun_fastai.analysis.cka import (
    ExactCKA,
    MinibatchCKA,
    centred_gram,
    hsic1,
    linear_cka,
)
from msun_fastai.analysis.layer_cka import layer_cka
from msun_fastai.analysis.layers import (
    end_modules,
    layer_modules,
    layer_names,
    layer_sizes,
    recording,
)
from msun_fastai.analysis.plots import plot_cka
from msun_fastai.data.images import open_image
from msun_fastai.data.resize import fitted
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.models.backbones import cut_backbone
from msun_fastai.models.families import find_family
from msun_fastai.models.meta import run_on_meta
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.models.weights import build_net
from msun_fastai.predict import normalize
from msun_fastai.sized import sized_networks


def random_features(n=40, d=30, e=17, seed=0):
    """Two sets of features of the same images that have something in common."""
    rng = torch.Generator().manual_seed(seed)
    common = torch.randn(n, 5, generator=rng)
    x = common @ torch.randn(5, d, generator=rng) + torch.randn(n, d, generator=rng) + 3
    y = common @ torch.randn(5, e, generator=rng) + 2 * torch.randn(n, e, generator=rng) - 7
    return x, y


def by_covariance(x, y):
    """|Y'X|^2 / (|X'X| |Y'Y|) of centred features: no Gram matrix (Kornblith et al. 2019)."""
    x, y = (a.flatten(1).double().numpy() for a in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    return np.sum((y.T @ x) ** 2) / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))


def in_batches(x, y, size):
    measured = MinibatchCKA()
    for a, b in zip(x.split(size), y.split(size)):
        measured.add(a, b)
    return measured


# ---- the value --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_against_the_formulation_by_covariances(seed):
    x, y = random_features(seed=seed)
    assert 0.1 < linear_cka(x, y) < 0.9
    assert linear_cka(x, y) == pytest.approx(by_covariance(x, y), abs=1e-12)
    assert linear_cka(y, x) == pytest.approx(linear_cka(x, y), abs=1e-12)


def test_by_hand():
    """X~ = (-1, 0, 1), Y~ = (-1, 2, -1): orthogonal, CKA 0; with Z~ = (-1, -1, 2) it is
    (X.Z)^2 / (X.X Z.Z) = 9 / (2 6)."""
    x, y, z = (torch.tensor(v)[:, None] for v in ([0.0, 1, 2], [0.0, 3, 0], [1.0, 1, 4]))
    assert linear_cka(x, y) == pytest.approx(0, abs=1e-15)
    assert linear_cka(x, z) == pytest.approx(9 / 12)


def test_what_it_does_not_see():
    x, y = random_features()
    turn = torch.linalg.qr(torch.randn(30, 30, dtype=torch.float64)).Q
    value = linear_cka(x, y)
    assert linear_cka(x, x) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, -0.01 * x + 5) == pytest.approx(1, abs=1e-6)
    for same in (x.double() @ turn, 1e4 * x, x + 100, x.reshape(40, 5, 2, 3)):
        assert linear_cka(same, y) == pytest.approx(value, abs=1e-6)
    stretched = x * torch.linspace(0.1, 10, 30)  # of what is no rotation it takes note
    assert abs(linear_cka(stretched, y) - value) > 0.01
    order = torch.randperm(40)
    assert abs(linear_cka(x[order], y) - value) > 0.01


def test_many_columns_come_in_parts(monkeypatch):
    x, y = random_features()
    whole = linear_cka(x, y)
    monkeypatch.setattr("msun_fastai.analysis.cka.COLUMNS", 7)
    assert linear_cka(x, y) == pytest.approx(whole, abs=1e-12)


def test_undefined_values():
    x, _ = random_features()
    for bad in (torch.full((40, 9), 0.1), torch.zeros(40, 3), torch.full((40, 2), torch.nan)):
        assert linear_cka(x, bad) is None
        assert in_batches(x, bad, 8).value() is None
        assert in_batches(x, bad, 8).unbiased() is None
    assert ExactCKA(5).value() is MinibatchCKA().value() is None
    assert in_batches(x, x, 3).value() is None  # too few in each for HSIC_1
    with pytest.raises(ValueError, match="of 40 and of 39 images"):
        linear_cka(x, x[1:])


# ---- from batches -----------------------------------------------------------------------------


def test_hsic1_is_the_mean_over_quadruples():
    """Its definition: a U-statistic of degree four, here over all quadruples of 6 images."""
    x, y = (a[:6].double() for a in random_features())
    k, l = x @ x.T, y @ y.T  # noqa: E741
    terms = [
        k[i, j] * (l[i, j] + l[q, r] - 2 * l[i, q]) for i, j, q, r in permutations(range(6), 4)
    ]
    expected = float(torch.stack(terms).mean())
    assert hsic1(k, l) == pytest.approx(expected, rel=1e-9)
    assert hsic1(centred_gram(x), centred_gram(y)) == pytest.approx(expected, rel=1e-9)


def test_one_batch_is_exact():
    x, y = random_features()
    assert in_batches(x, y, 40).value() == pytest.approx(linear_cka(x, y), abs=1e-12)
    # and HSIC_1 alone is not: 40 images in 30 dimensions look alike by themselves
    assert in_batches(x, y, 40).unbiased() < linear_cka(x, y) - 0.02


@pytest.mark.parametrize("d", [20, 400])
def test_batches_are_within_a_hundredth_of_exact(d):
    x, y = random_features(600, d, d + 9)
    exact = ExactCKA(700)
    for a, b in zip(x.split(100), y.split(100)):
        exact.add(a, b)
    assert exact.value() == pytest.approx(linear_cka(x, y), abs=1e-12)
    for size in (50, 64):  # the last batch of 64 is smaller
        assert in_batches(x, y, size).value() == pytest.approx(exact.value(), abs=0.01)


def test_batches_tend_to_the_value_of_many_images():
    x, y = random_features(20_000, 60, 60)
    many = by_covariance(x, y)
    few = in_batches(x[:2000], y[:2000], 50)
    assert few.unbiased() == pytest.approx(many, abs=0.01)
    assert few.value() == pytest.approx(by_covariance(x[:2000], y[:2000]), abs=0.01)


def test_too_small_a_batch_is_left_out():
    x, y = random_features(43)
    assert in_batches(x, y, 40).seen == 40
    assert in_batches(x, y, 40).value() == pytest.approx(linear_cka(x[:40], y[:40]), abs=1e-12)


# ---- layers -----------------------------------------------------------------------------------


@pytest.mark.parametrize("arch", ROWS)
def test_the_layers_of_every_family(arch):
    """Their shapes alone, on the meta device: each runs once, in order, the last gives the last
    feature map and that of the subnet what it hands on."""
    family = find_family(arch)
    blank = family.build_blank(arch, 2)
    blocks = family.blocks(blank) if callable(family.blocks) else family.blocks
    shallow, deep, *_ = cut_backbone(blank, family, 1)
    ends = end_modules(arch, 1, shallow, deep)
    with recording({str(k): end for k, end in enumerate(ends)}) as seen:
        last = run_on_meta(nn.Sequential(shallow, deep), 128)
    assert list(seen) == [str(k) for k in range(len(blocks))]
    assert seen[str(len(blocks) - 1)].shape == last.shape
    assert seen["1"].shape == run_on_meta(shallow, 128).shape


@pytest.mark.parametrize("blocks", [0, 2])
@pytest.mark.parametrize("method", ["msun", "snet"])
def test_the_layers_of_a_scale(method, blocks):
    net = small_net(method, blocks=blocks)
    for i, scale in enumerate(SCALES):
        modules, (sized,) = layer_modules(net, i), sized_networks(net, [scale])
        x = torch.randn(2, 3, scale, scale)
        with recording(modules) as seen, torch.no_grad():
            last = sized.body(x)
            handed = net.subnets[i](x)
        assert torch.equal(seen["stage 4"], last)
        sizes = layer_sizes(sized.body, modules, scale)
        assert sizes == {name: f[0].numel() for name, f in seen.items()}
        assert torch.equal(list(seen.values())[blocks], handed)


def test_hooks_go_whatever_happens():
    layer = nn.ReLU(inplace=True)
    with recording({"first": (conv := nn.Conv2d(3, 4, 1))}) as seen:
        made = conv(torch.randn(2, 3, 5, 5))
        before = made.detach().clone()
        layer(made)
    assert torch.equal(seen["first"], before)  # and not what the ReLU made of it
    with pytest.raises(RuntimeError), recording({"first": conv}, inputs=True):
        conv(torch.randn(1))
    assert not conv._forward_hooks


# ---- a model at two sizes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved():
    return saved_net(small_net())


@pytest.fixture(scope="module")
def samples(shapes):
    return [Sample(s.image, s.label) for s in shapes.train[:40]]


def test_layer_cka_is_that_of_the_features(saved, samples):
    saved.model.train()
    found = layer_cka(saved, samples, (20, 64), name="ours")
    assert saved.model.training
    saved.model.eval()
    assert not any(m._forward_hooks for m in saved.model.modules())
    assert (found.sizes, found.sides, found.images) == ((20, 64), (16, 64), 40)
    assert found.subnet == 2
    assert list(found.values) == ["stem", "stage 1", "stage 2", "stage 3", "stage 4"]
    features = []
    for size, i in ((20, 0), (64, 2)):
        views = []
        for sample in samples:
            with open_image(sample.image) as image:
                views.append(fitted(image, size))
        x = normalize(torch.stack(views), saved.preprocessing)
        with torch.no_grad():  # the network's own way from an image of that size
            features.append(saved.model.deep[0](saved.model.subnet_features(x, i)))
    assert found.values["stage 4"] == pytest.approx(by_covariance(*features), abs=1e-6)
    assert set(found.rows()[0]) == {"model", "size_a", "size_b", "layer", "cka", "unbiased"}
    assert all(row["model"] == "ours" for row in found.rows())


def test_batches_of_a_model(saved, samples):
    exact = layer_cka(saved, samples, (16, 64))
    whole = layer_cka(saved, samples, (16, 64), batch=40)
    parts = layer_cka(saved, samples, (16, 64), batch=20)
    for layer, value in exact.values.items():
        assert whole.values[layer] == pytest.approx(value, abs=1e-6)
        assert parts.values[layer] == pytest.approx(value, abs=0.05)
    assert exact.unbiased is None
    assert parts.as_dict()["unbiased"].keys() == exact.values.keys()
    # batches are random draws, whatever the order of the samples
    ordered = sorted(samples, key=lambda s: s.label)
    again = layer_cka(saved, ordered, (16, 64), batch=20)
    assert again.values["stage 4"] == pytest.approx(exact.values["stage 4"], abs=0.05)


def test_what_cannot_be_compared(saved, samples):
    each = 4 * sum(
        sum(layer_sizes(at.body, layer_modules(saved.model, at.index), at.side).values())
        for at in sized_networks(saved.model, (16, 64))
    )
    with pytest.raises(UserError, match=r"keep \S+ GiB .* --batch 64 .*, or --limit 13$"):
        layer_cka(saved, samples, (16, 64), limit=13 * each)
    layer_cka(saved, samples[:13], (16, 64), limit=13 * each)
    with pytest.raises(UserError, match="sizes: 3 given; CKA compares two"):
        layer_cka(saved, samples, (16, 32, 64))
    with pytest.raises(UserError, match="batch: 3: mini-batch CKA takes 4 images"):
        layer_cka(saved, samples, (16, 64), batch=3)
    with pytest.raises(UserError, match="native is for networks of one scale"):
        layer_cka(saved, samples, (16, 64), resize="native")


def test_a_network_of_one_scale_at_the_size_itself(samples):
    saved = saved_net(small_net("vanilla"))
    resized = layer_cka(saved, samples, (32, 64))
    native = layer_cka(saved, samples, (32, 64), resize="native")
    assert (resized.sides, native.sides) == ((64, 64), (32, 64))
    assert resized.values != native.values
    (small, large) = sized_networks(saved.model, (32, 64), "native")
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():  # no alignment brings its grid to the canonical one
        assert small.body(x).shape[-2:] == (1, 1)
        assert torch.equal(large.network(x.repeat(1, 1, 2, 2)), saved.model(x.repeat(1, 1, 2, 2)))
    with pytest.raises(UserError, match="resize: unknown value"):
        sized_networks(saved.model, (32, 64), "natve")
    alex = small_alexnet()
    with pytest.raises(UserError, match=r"sizes: 20: alexnet takes \d+ pixels or more"):
        sized_networks(alex, (20, 224), "native")


def small_alexnet():
    family = find_family("alexnet")
    return MultiScaleNet(NetConfig("alexnet", 3, (224,), "vanilla"), family.build("alexnet", 3))


def test_images_that_cannot_be_read_are_told(saved, samples, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    found = layer_cka(saved, [*samples[:9], Sample(broken, "circle")], (16, 64))
    assert found.images == 9
    assert len(found.unreadable) == 1
    assert found.values == pytest.approx(layer_cka(saved, samples[:9], (16, 64)).values, abs=1e-6)
    with pytest.raises(UserError, match="none of 1 images can be read"):
        layer_cka(saved, [Sample(broken, "circle")], (16, 64))


def test_the_picture(saved, samples):
    found = [layer_cka(saved, samples[:9], SCALES[::2], name=name) for name in ("a", "b")]
    found[1].values["stage 2"] = None
    (axes,) = plot_cka(found).axes
    one, other = axes.get_lines()
    assert one.get_color() != other.get_color()
    assert one.get_marker() != other.get_marker()
    assert one.get_linestyle() != other.get_linestyle()
    assert [t.get_text() for t in axes.get_xticklabels()] == list(found[0].values)
    assert np.isnan(other.get_ydata()[2])
    assert axes.get_ylim()[0] == 0


@pytest.mark.parametrize("method", ["vanilla", "rsnet", "san"])
def test_every_layer_of_a_network_made_for_the_size(saved, samples, method):
    torch.manual_seed(0)
    model = build_net(NetConfig("thin_resnet10", 10, (16, 32, 64), method=method)).eval()
    for resize in ("native", "ideal"):
        found = layer_cka(replace(saved, model=model), samples[:8], (24, 64), resize=resize)
        assert list(found.values) == layer_names(model)
        assert all(value is not None for value in found.values.values())
