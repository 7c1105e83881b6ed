"""Accuracy by depth: which features each classifier sees, and that it finds what is in them."""

import csv
import json

import pytest
import torch
from test_heads import saved_net
from torch import nn

from msun_fastai.analysis.depth import block_modules, depth_accuracy, pooled_features
from msun_fastai.analysis.plots import plot_depth
from msun_fastai.data.resize import load_fitted
from msun_fastai.errors import UserError
from msun_fastai.models.net import NetConfig
from msun_fastai.models.saving import SavedModel, save_model_folder
from msun_fastai.models.scalenet import couples_of
from msun_fastai.models.weights import build_net
from msun_fastai.predict import normalize

ARCH = "scalenet_d2s2_w8x6x5-16x12_cifar"


def small_saved(classes, arch=ARCH, method="vanilla", scales=(24,), **options):
    torch.manual_seed(0)
    net = build_net(NetConfig(arch, len(classes), scales, method, **options)).eval()
    return SavedModel(net, list(classes), saved_net(net).preprocessing)


def test_what_each_classifier_sees(shapes):
    """The smallest map, normalised and rectified, averaged: worked out block by block."""
    saved = small_saved(shapes.classes)
    network = saved.model.at_scale(0)
    images = shapes.valid[:6]
    found = pooled_features(saved, block_modules(saved.model, 0), images, 24)
    pixels = torch.stack([load_fitted(sample.image, 24) for sample in images])
    x = normalize(pixels, saved.preprocessing)
    seen = []
    for couple in couples_of(network):

        def look(module, given, couple=couple):
            maps = given[0]
            half = couple.downs[0](maps[0])
            half = half + maps[1]
            if len(couple.downs) == 2:
                half = couple.downs[1](half) + maps[2]
            seen.append(couple.ups[0].norm(half).relu().mean((2, 3)))

        couple.register_forward_pre_hook(look)
    with torch.no_grad():
        logits = network(x)
    assert list(found.x) == ["block 1", "block 2", "block 3", "block 4"]
    assert [f.shape[1] for f in found.x.values()] == [5, 5, 12, 12]
    for ours, theirs in zip(found.x.values(), seen, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert torch.allclose(found.logits, logits, atol=1e-5)
    assert [saved.classes[c] for c in found.codes] == [s.label for s in images]


def test_a_block_that_says_nothing_is_at_chance(shapes):
    """The first block's map is made the same for all images; what follows still sees them. (Tested
    on the images that it was fitted on, so that it does not depend on luck.)"""
    saved = small_saved(shapes.classes)
    first = couples_of(saved.model)[0].ups[0].norm
    nn.init.zeros_(first.weight)
    result = depth_accuracy(saved, shapes.train, shapes.train, 24, strengths=(1.0,))
    counts = [sum(s.label == c for s in shapes.train) for c in shapes.classes]
    assert result.blocks[0].accuracy <= max(counts) / 80
    assert min(b.accuracy for b in result.blocks[1:]) > 2 * max(counts) / 80
    assert result.images == (80, 80)
    assert [b.features for b in result.blocks] == [5, 5, 12, 12]


def test_the_network_s_own_answer_ends_it(shapes):
    """A network that always answers the first class is right where that is the class."""
    saved = small_saved(shapes.classes)
    head = saved.model.head[0].classifier
    nn.init.zeros_(head.weight)
    with torch.no_grad():
        head.bias.copy_(torch.arange(10, 0, -1))
    result = depth_accuracy(saved, shapes.train[:30], shapes.valid, 24, strengths=(1.0,))
    share = sum(s.label == saved.classes[0] for s in shapes.valid) / len(shapes.valid)
    assert result.main == pytest.approx(share)
    rows = result.rows()
    assert [row["layer"] for row in rows] == [1, 2, 3, 4, 5]
    assert (rows[-1]["name"], rows[-1]["accuracy"]) == ("network", result.main)
    assert json.loads(json.dumps(result.as_dict()))["blocks"][0]["name"] == "block 1"


def test_accuracies_are_of_the_images_to_test_on(shapes):
    """Of one image alone, so that a classifier gets all right or none."""
    saved = small_saved(shapes.classes)
    result = depth_accuracy(saved, shapes.train, [shapes.valid[0]] * 3, 24, strengths=(1.0,))
    assert {b.accuracy for b in result.blocks} <= {0.0, 1.0}


@pytest.mark.parametrize("method", ["vanilla", "msun"])
def test_other_networks_have_a_stem_and_stages(shapes, method):
    saved = small_saved(shapes.classes, "thin_resnet10", method, (16, 32))
    modules = block_modules(saved.model, 0)
    assert list(modules) == ["stem", "stage 1", "stage 2", "stage 3", "stage 4"]
    found = pooled_features(saved, modules, shapes.valid[:3], 16)
    assert [x.shape[1] for x in found.x.values()] == [32, 32, 64, 128, 256]


def test_a_subnet_has_blocks_of_its_own(shapes):
    saved = small_saved(shapes.classes, ARCH, "msun", (16, 32), blocks=1)
    one, other = (list(block_modules(saved.model, i).values()) for i in (0, 1))
    assert [a is b for a, b in zip(one, other, strict=True)] == [False, True, True, True]


def test_the_picture_has_a_line_a_model(shapes):
    saved = small_saved(shapes.classes)
    result = depth_accuracy(saved, shapes.train[:30], shapes.valid, 24, "one", strengths=(1.0,))
    (axes,) = plot_depth([result, result]).axes
    lines, points = axes.lines[0].get_xydata(), axes.lines[1].get_xydata()
    assert lines[:, 1].tolist() == [100 * b.accuracy for b in result.blocks]
    assert points.tolist() == [[5, 100 * result.main]]
    assert len(axes.lines) == 4


def test_no_images_to_fit_on(shapes):
    saved = small_saved(shapes.classes)
    with pytest.raises(UserError, match="images can be read"):
        depth_accuracy(saved, [], shapes.valid, 24)


def test_the_verb(run, photos, tmp_path, shapes):
    model = save_model_folder(tmp_path / "net", small_saved(shapes.classes))
    out = tmp_path / "out"
    words = ("--data", photos, "--device", "cpu", "--limit", "30")
    code, text, _ = run("analyze", "depth", model, *words, "--out", out)
    assert code == 0
    assert sorted(f.name for f in out.iterdir()) == ["depth.csv", "depth.json", "depth.png"]
    (found,) = json.loads((out / "depth.json").read_text())
    assert found["images"] == [30, 9]
    assert "accuracy by depth at 24 pixels (30 images to fit on, 9 to test)" in text
    for block in found["blocks"]:
        assert f"{100 * block['accuracy']:.1f} %" in text
    rows = list(csv.DictReader((out / "depth.csv").open()))
    assert [row["name"] for row in rows] == [f"block {k}" for k in range(1, 5)] + ["network"]


def test_the_verb_at_a_size_that_is_none(run, photos, tmp_path, shapes):
    model = save_model_folder(tmp_path / "net", small_saved(shapes.classes))
    code, _, err = run("analyze", "depth", model, "--data", photos, "--size", "9999")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
