"""Batch norms for every input size: what is split, what is fitted, what it says."""

import copy
import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from test_fits import METHODS, recipe, saved_of, source, trained, view  # noqa: F401
from torch.nn.modules.batchnorm import _BatchNorm

from msun_fastai import fits
from msun_fastai.choices import check_choices
from msun_fastai.data.images import open_image
from msun_fastai.errors import UserError
from msun_fastai.evaluate import sweep
from msun_fastai.export import export_model
from msun_fastai.models.config import NetConfig
from msun_fastai.models.heads import refuse_fitted
from msun_fastai.models.moments import Moments
from msun_fastai.models.saving import (
    Preprocessing,
    SavedModel,
    load_model_folder,
    save_model_folder,
)
from msun_fastai.models.weights import build_net
from msun_fastai.predict import Predictor
from msun_fastai.sized import sized_networks
from msun_fastai.views import resize_batch

SIZES = (16, 20, 48, 64)


def sized(samples):
    """The native size of each."""
    for sample in samples:
        with open_image(sample.image) as image:
            yield image.native_size


def split(net, sizes=SIZES):
    ours = copy.deepcopy(net)
    ours.split_by_size(sizes)
    return ours


def several(sizes=SIZES, **values):
    return recipe(None, **{"calibration.sizes": list(sizes), **values})


@pytest.mark.parametrize("method", METHODS)
def test_before_it_is_fitted_it_answers_as_its_parent(method):
    net = trained(method)
    ours = split(net)
    assert ours.entry_scales == ours.config.entries == SIZES
    with torch.no_grad():
        for size in SIZES:
            scale = net.route(size)
            assert torch.equal(ours(view(size)), net(resize_batch(view(size), scale)))
    assert ours.config.test_scales == tuple(net.route(size) for size in SIZES)
    assert ours.config.routing.startswith("calibrated:")


@pytest.mark.parametrize("method", METHODS)
def test_batch_norms_alone_are_its_own(method):
    net, seen = trained(method), set()
    parents = [net.scale_parts(net.entry_scales.index(net.route(size))) for size in SIZES]
    net.split_by_size(SIZES)
    for i, parent in enumerate(parents):
        norms = {
            id(v) for m in parent.modules() if isinstance(m, _BatchNorm) for v in m.parameters()
        }
        shared = {id(v) for v in parent.parameters()} - norms
        found = {id(v) for v in net.scale_parts(i).parameters()}
        assert shared < found
        own = found - shared
        assert len(own) == len(norms)
        assert not own & (norms | seen)
        seen |= own


@pytest.mark.parametrize("method", METHODS)
def test_it_is_saved_and_loaded(method, tmp_path):
    ours = split(trained(method))
    for module in ours.modules():
        if isinstance(module, _BatchNorm):
            module.running_mean.normal_(0, 0.1)
    saved = SavedModel(ours, [f"c{i}" for i in range(10)], Preprocessing())
    again = load_model_folder(save_model_folder(tmp_path, saved)).model
    assert again.config == ours.config
    with torch.no_grad():
        for size in (*SIZES, 30):
            assert torch.equal(again(view(size)), ours(view(size)))


def test_learnt_thresholds_say_which_scale_takes_a_size():
    net = trained("rsnet", ensemble=True, routing="calibrated:15,60")
    ours = split(net)
    assert ours.config.test_scales == (32, 32, 32, 64)
    assert (ours.config.ensemble, ours.ensemble) == (False, None)


@pytest.mark.parametrize("routing", ["nearest", "up", "calibrated:15,60", "calibrated:30,1000000"])
@pytest.mark.parametrize("sizes", [SIZES, (16, 32, 64), (20, 64), (24, 40, 56, 80), (64,)])
def test_an_image_goes_to_the_scale_that_it_went_to(routing, sizes):
    net = trained("msun", routing=routing)
    ours = split(net, sizes)
    scale_of = dict(zip(sizes, ours.config.test_scales))
    reached = set(scale_of.values())
    for size in range(1, 200):
        taken, scale = ours.route(size), net.route(size)
        if scale in reached:
            assert scale_of[taken] == scale
            # of the sizes at that scale it is the nearest
            nearest = min(abs(s - size) for s in sizes if scale_of[s] == scale)
            assert abs(taken - size) <= nearest + 0.5
    assert all(ours.route(size) == size for size in sizes)


@pytest.mark.parametrize("method", ["vanilla", "msun", "san"])
def test_statistics_are_those_of_images_that_had_the_size(method, source, tmp_path):  # noqa: F811
    saved = saved_of(method, source)
    before = {name: value.clone() for name, value in saved.model.state_dict().items()}
    fitted = fits.calibrate(several(), saved, source, tmp_path)
    net = fitted.saved.model
    assert all(torch.equal(v, before[name]) for name, v in saved.model.state_dict().items())
    natives = list(sized(source.train))
    for i, size in enumerate(SIZES):
        network = net.at_scale(i)
        large = [s for s, n in zip(source.train, natives) if SIZES.index(net.route(n)) >= i]
        # of the first batch norm, whose input no other one has a part in
        first = next(m for m in network.modules() if isinstance(m, _BatchNorm))
        seen, moments = [], Moments()
        hook = first.register_forward_pre_hook(lambda _, given, to=seen: to.append(given[0]))
        sweep(fitted.saved, large, [size], bs=16)
        hook.remove()
        for x in seen:
            if x.device.type != "meta":  # there costs are counted
                moments.add(x)
        torch.testing.assert_close(first.running_mean, moments.mean.float(), rtol=1e-4, atol=1e-5)
    report = json.loads((tmp_path / "calibration.json").read_text())
    assert (report["sizes"], list(report["accuracy"])) == (list(SIZES), ["parent", "bn"])
    for step, of in (("parent", saved), ("bn", fitted.saved)):
        assert report["accuracy"][step] == sweep(of, source.measured, SIZES).accuracy
    mean = 100 * np.mean(report["accuracy"]["bn"])
    assert fitted.lines[-1].endswith(f"{mean:.1f} % then")


def test_every_size_has_other_statistics(source, tmp_path):  # noqa: F811
    """One for all sizes of a scale would be the mistake that this is to mend."""
    net = fits.calibrate(several(), saved_of("vanilla", source), source, tmp_path).saved.model
    means = [
        next(m for m in part.modules() if isinstance(m, _BatchNorm)).running_var
        for part in net.subnets
    ]
    # the sharper the images that come in, the further the first layer's answers vary
    assert all((a < b).float().mean() > 0.7 for a, b in pairwise(means))


def test_no_training_image_is_enlarged_for_statistics(source, tmp_path):  # noqa: F811
    natives = list(sized(source.train))
    fitted = fits.calibrate(several(), saved_of("vanilla", source), source, tmp_path)
    found = json.loads((tmp_path / "calibration.json").read_text())["images"]
    net = fitted.saved.model
    for i, size in enumerate(SIZES):
        able = sum(SIZES.index(net.route(native)) >= i for native in natives)
        assert found[str(size)] == able
    small = replace(source, train=[s for s, n in zip(source.train, natives) if n < 30])
    fitted = fits.calibrate(several(), saved_of("vanilla", source), small, tmp_path)
    assert fitted.lines[1] == "no image is as large as 48, 64: these keep their scale's"
    first = next(m for m in fitted.saved.model.subnets[-1].modules() if isinstance(m, _BatchNorm))
    theirs = next(m for m in trained("vanilla").modules() if isinstance(m, _BatchNorm))
    assert torch.equal(first.running_mean, theirs.running_mean)


def test_prediction_and_export_take_it(source, tmp_path):  # noqa: F811
    onnxruntime = pytest.importorskip("onnxruntime")
    saved = fits.calibrate(several(), saved_of("msun", source), source, tmp_path / "fit").saved
    images = [s.image for s in source.valid[:12]]
    predictions = list(Predictor(saved).predict(images))
    for prediction in predictions:
        assert prediction.scale == saved.model.route(prediction.native_size)
    folder = tmp_path / "export"
    (tmp_path / "fit").mkdir(exist_ok=True)
    found = export_model(saved, folder)
    assert [network.scale for network in found.networks] == list(SIZES)
    for network, i in zip(found.networks, range(len(SIZES))):
        session = onnxruntime.InferenceSession(str(folder / network.file))
        pixels = torch.randint(256, (2, 3, network.scale, network.scale), dtype=torch.uint8)
        x = (pixels / 255 - 0.5) / 0.25
        with torch.no_grad():
            expected = saved.model.at_scale(i)(x)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        assert np.allclose(got, expected.numpy(), atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize(
    ("values", "wrong"),
    [
        ({"test_sizes": (16, 32)}, "one of [16, 32, 64] for each size"),
        ({"test_sizes": (16, 32), "test_scales": (16, 33)}, "one of [16, 32, 64] for each size"),
        ({"test_sizes": (32, 16), "test_scales": (16, 32)}, "not ascending"),
        ({"test_sizes": tuple(range(1, 66)), "test_scales": (16,) * 65}, "64 at most"),
        ({"test_sizes": (16,), "test_scales": (16,), "test_size": 16}, "to one size"),
        ({"test_scales": (16,)}, "test_sizes: none given"),
        ({"test_sizes": (16, 64), "test_scales": (16.0, 64)}, "one of [16, 32, 64] for each size"),
        ({"test_sizes": (16, float("inf")), "test_scales": (16, 64)}, "test_sizes: 16,inf: a side"),
        (
            {"test_sizes": (16, 64), "test_scales": (16, 64), "ensemble": True},
            "input sizes has none",
        ),
    ],
)
def test_configurations_that_cannot_be(values, wrong):
    with pytest.raises(UserError) as error:
        replace(trained("msun").config, **values)
    assert wrong in error.value.message


def test_what_it_refuses(tmp_path):
    net = split(trained("rsnet"))
    with pytest.raises(UserError, match="calibrated for input sizes; start from its parent"):
        refuse_fitted(net.config, "runs/x")
    with pytest.raises(UserError, match="take its parent"):
        net.split_by_size((16, 32))
    for sizes, wrong in (((16, 32), "end with 64 or more"), (range(1, 66), "65, 64 at most")):
        with pytest.raises(UserError, match=wrong):
            trained("msun").split_by_size(sizes)
    with pytest.raises(UserError, match="calibrated for input sizes; canonical"):
        sized_networks(net, [24], "native")
    torch.manual_seed(0)
    plain = build_net(NetConfig("convnext_atto", 10, (32, 64), "vanilla"))
    with pytest.raises(UserError, match="has no batch norm"):
        plain.split_by_size((32, 64))
    parent = trained("rsnet")
    save_model_folder(tmp_path, SavedModel(parent, [f"c{i}" for i in range(10)], Preprocessing()))
    for values, wrong in (
        ({"calibration.size": 24}, "--size fits to one size alone"),
        ({"calibration.what": "classifier+bn"}, "leave it bn"),
        ({"calibration.sizes": [32, 16]}, "sizes: 32,16: not ascending"),
        ({"verb": "finetune"}, "finetune calibrates nothing"),
    ):
        with pytest.raises(UserError, match=wrong):
            check_choices(several(**{"model.start": str(tmp_path), **values}), None)


def test_from_the_command_line(tmp_path, run):
    from conftest import SMALL
    from rich.console import Console

    from msun_fastai.recipe import Recipe, load_recipe
    from msun_fastai.run import run as train

    values = {**SMALL, "data.dataset": "shapes", "data.limit": 24, "train.epochs": 1}
    made = Recipe().with_values({**values, "model.method": "msun"}, "test")
    parent = train(made, Console(quiet=True), tmp_path / "parent").folder
    folder = tmp_path / "fitted"
    words = ("--model", parent, "--sizes", "16:32:4", "--workers", 0, "--device", "cpu")
    code, out, err = run("calibrate", *words, "--run-dir", folder)
    assert (code, err) == (0, "")
    assert "training images at 5 sizes" in out
    metrics = json.loads((folder / "metrics.json").read_text())
    assert (metrics["scales"], metrics["sizes"]) == ([16, 20, 24, 28, 32],) * 2
    report = json.loads((folder / "calibration.json").read_text())
    assert metrics["accuracy"] == pytest.approx(report["accuracy"]["bn"])
    assert metrics["calibrated"] == str(parent.resolve())
    assert load_recipe(str(folder / "recipe.toml")).calibration.sizes == [16, 20, 24, 28, 32]
    for option in (("--calibrate",), ("--use", "up")):
        code, _, err = run("routing", "--model", folder, *option)
        assert code == 2
        assert "calibrate the routing of its parent, then the sizes" in err
    code, out, err = run("evaluate", "--model", folder, "--sizes", "16,24,32", "--device", "cpu")
    assert (code, err) == (0, "")
    for words in (("finetune", "--dataset", "shapes"), ("calibrate", "--size", 16)):
        code, _, err = run(*words, "--model", folder, "--run-dir", tmp_path / "no")
        assert code == 2
        assert "is calibrated for input sizes; start from its parent" in err
