"""A trained network fitted to one input size: what is kept, what is fitted, what it says."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from test_heads import SCALES, saved_net, small_net
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from msun_fastai import fits
from msun_fastai.choices import calibration_recipe, check_choices, resolved
from msun_fastai.data.chosen import load_source
from msun_fastai.data.samples import Sample, Source
from msun_fastai.errors import UserError
from msun_fastai.evaluate import sweep
from msun_fastai.flops import count_params
from msun_fastai.models.config import NetConfig
from msun_fastai.models.families import find_family
from msun_fastai.models.heads import classifiers
from msun_fastai.models.metalearners import MetaConv2d
from msun_fastai.models.net import MultiScaleNet
from msun_fastai.models.saving import (
    Preprocessing,
    SavedModel,
    load_model_folder,
    save_model_folder,
)
from msun_fastai.models.weights import build_net
from msun_fastai.recipe import Recipe, load_recipe
from msun_fastai.sized import sized_networks

METHODS = ("vanilla", "mst", "msun", "snet", "rsnet", "san")


def trained(method, **options):
    """A network in which every scale and every batch norm differs, as after training."""
    torch.manual_seed(0)
    net = build_net(NetConfig("thin_resnet10", 10, SCALES, method, **options)).eval()
    with torch.no_grad():
        for value in net.parameters():
            value += 0.02 * torch.randn_like(value)
        for module in net.modules():
            if isinstance(module, _BatchNorm):
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return net


def kept(net, size):
    ours = copy.deepcopy(net)
    ours.keep_for(size)
    return ours


def view(side, n=3):
    return torch.randn(n, 3, side, side, generator=torch.Generator().manual_seed(side))


@pytest.mark.parametrize("method", METHODS)
def test_at_a_scale_of_its_own_it_answers_as_before(method):
    net = trained(method)
    for i, scale in enumerate(net.entry_scales):
        ours = kept(net, scale)
        with torch.no_grad():
            assert torch.equal(ours(view(scale)), net(view(scale)))
        assert ours.entry_scales == ours.config.entries == (scale,)
        assert count_params(ours) == count_params(net.at_scale(i))


@pytest.mark.parametrize("method", METHODS)
def test_between_the_scales_it_sees_the_size_itself(method):
    """As networks of one scale, and of switched ones the nearest scale's, run at any size."""
    net = trained(method)
    ours = kept(net, 48)
    nearest = 64 if len(net.entry_scales) == 1 else 32
    i = net.entry_scales.index(nearest)
    x = view(48)
    with torch.no_grad():
        found = ours(x)
        if method in ("vanilla", "mst", "rsnet"):
            assert torch.equal(found, sized_networks(net, [48], "native")[0].network(x))
        parts = net.scale_parts(i)
        features = parts.subnet(x)
        if method == "san":
            assert not torch.allclose(found, parts.head(parts.deep(features)))  # another encoding
            kernels = [m for m in net.modules() if isinstance(m, MetaConv2d)]
            last = kernels[-1].kernel_for(48)
            convs = [m for m in ours.modules() if isinstance(m, nn.Conv2d)]
            assert torch.equal(convs[-1].weight, last)
        else:
            aligned = parts.align(features) if method == "msun" else features
            assert torch.equal(found, parts.head(parts.deep(aligned)))
        # any other side is brought to it
        assert torch.equal(
            ours(view(64)),
            ours(nn.functional.interpolate(view(64), (48, 48), mode="bilinear", antialias=True)),
        )


def test_the_network_itself_is_left_as_it_was(tmp_path):
    net = trained("san", meta_hidden=8)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ours = kept(net, 20)
    for value in ours.state_dict().values():
        value.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_it_is_saved_and_loaded(method, tmp_path):
    saved = SavedModel(kept(trained(method), 48), [f"c{i}" for i in range(10)], Preprocessing())
    again = load_model_folder(save_model_folder(tmp_path, saved)).model
    assert again.config == saved.model.config
    assert (again.config.test_size, again.config.scales) == (48, SCALES)
    with torch.no_grad():
        assert torch.equal(again(view(48)), saved.model(view(48)))


def test_no_ensemble_and_no_routing_are_left():
    net = trained("rsnet", ensemble=True, routing="calibrated:20,40")
    ours = kept(net, 32)
    assert ours.ensemble is None
    assert (ours.config.ensemble, ours.config.routing) == (False, "nearest")
    assert ours.route(500) == 32


@pytest.fixture
def source(shapes):
    """All its images have their class's order, as a folder gives them."""
    train = sorted(shapes.train, key=lambda s: s.label)
    return replace(shapes, train=train)


def recipe(size, **values):
    given = {"verb": "calibrate", "calibration.size": size, "model.start": "somewhere"}
    given |= {"train.bs": 128, "data.workers": 0}
    return Recipe().with_values({**given, **values}, "test")


def saved_of(method, source, **options):
    return SavedModel(trained(method, **options), list(source.classes), Preprocessing())


@pytest.mark.parametrize("method", ["vanilla", "msun", "san"])
def test_statistics_are_those_of_the_images_at_that_size(method, source, tmp_path):
    saved = saved_of(method, source)
    before = {name: value.clone() for name, value in saved.model.state_dict().items()}
    fitted = fits.calibrate(recipe(24), saved, source, tmp_path)
    net = fitted.saved.model
    seen = {}

    def keep(module, given):
        if given[0].device.type != "meta":  # there costs are counted
            seen[module] = given[0]

    norms = [m for m in net.modules() if isinstance(m, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(keep) for norm in norms]
    swept = sweep(fitted.saved, source.train, [24], bs=128)  # all 80 in one batch
    assert len(norms) == len(seen) == 12
    for norm in norms:
        variance, mean = torch.var_mean(seen[norm], (0, 2, 3), correction=0)
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(norm.running_var, variance, rtol=1e-3, atol=1e-4)
    for hook in hooks:
        hook.remove()
    assert swept.subnet == (24,)
    assert all(torch.equal(v, before[name]) for name, v in saved.model.state_dict().items())
    report = json.loads((tmp_path / "calibration.json").read_text())
    assert list(report["accuracy"]) == ["parent", "kept", "bn"]
    measured = sweep(fitted.saved, source.measured, [24])
    assert report["accuracy"]["bn"] == measured.mean_accuracy
    assert report["accuracy"]["parent"] == sweep(saved, source.measured, [24]).mean_accuracy


def test_batches_hold_images_of_many_classes(source, monkeypatch):
    taken = []

    def batches(samples, *given):
        taken.extend(samples)
        return iter([])

    monkeypatch.setattr(fits, "multi_view_batches", batches)
    saved = saved_of("vanilla", source)
    with pytest.raises(UserError, match="no images"):
        fits.fit_statistics(saved, source.train, [24], recipe(24))
    assert sorted(s.label for s in taken) == [s.label for s in source.train]
    assert len({s.label for s in taken[:16]}) > 5


def test_the_classifier_too(source, tmp_path):
    saved = saved_of("rsnet", source)
    bn = fits.calibrate(recipe(24), saved, source, tmp_path / "bn").saved.model
    chosen = recipe(24, **{"calibration.what": "classifier+bn"})
    both = fits.calibrate(chosen, saved, source, tmp_path / "both")
    own = both.saved.model
    different = {n for n, v in own.state_dict().items() if not torch.equal(v, bn.state_dict()[n])}
    assert different == {"head.0.fc.weight", "head.0.fc.bias"}
    report = json.loads((tmp_path / "both" / "calibration.json").read_text())
    assert report["probe"]["heads"][0]["scales"] == [24]
    assert (
        report["accuracy"]["classifier+bn"] == sweep(both.saved, source.valid, [24]).mean_accuracy
    )
    assert classifiers(own)[0].weight.shape == (10, 256)


def test_without_batch_norm_the_classifier_alone(source, tmp_path):
    torch.manual_seed(0)
    net = build_net(NetConfig("convnext_atto", 10, (32, 64), "vanilla")).eval()
    saved = SavedModel(net, list(source.classes), Preprocessing())
    with pytest.raises(UserError, match="no batch norm"):
        fits.calibrate(recipe(32), saved, source, tmp_path)
    chosen = recipe(32, **{"calibration.what": "classifier+bn"})
    fitted = fits.calibrate(chosen, saved, source, tmp_path)
    assert fitted.lines[0] == "it has no batch norm: the classifier alone is fitted"
    report = json.loads((tmp_path / "calibration.json").read_text())
    assert list(report["accuracy"]) == ["parent", "kept", "classifier+bn"]


def test_what_cannot_be_read(source, tmp_path):
    saved = saved_of("vanilla", source)
    bad = [Sample(tmp_path / "none.png", source.classes[0])]
    more = replace(source, train=[*source.train, *bad])
    options = {"data.max_bad": 0.05}
    fitted = fits.calibrate(recipe(24, **options), saved, more, tmp_path)
    assert len(fitted.unreadable) == 1
    assert "none.png" in fitted.unreadable[0]
    with pytest.raises(UserError, match=r"more than 0\.10%"):
        fits.calibrate(recipe(24, **{"data.max_bad": 0.001}), saved, more, tmp_path)
    with pytest.raises(UserError, match=r"none\.png"):
        fits.calibrate(recipe(24, **{"data.on_bad_image": "stop"}), saved, more, tmp_path)


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    """A run on the embedded images, as short as it gets."""
    from conftest import SMALL
    from rich.console import Console

    from msun_fastai.run import run

    values = {**SMALL, "data.dataset": "shapes", "data.limit": 24, "train.epochs": 1}
    made = Recipe().with_values({**values, "model.method": "san"}, "test")
    return run(made, Console(quiet=True), tmp_path_factory.mktemp("runs") / "parent").folder


def test_calibrate_from_the_command_line(parent, tmp_path, run):
    folder, words = tmp_path / "fitted", ("--size", 20, "--workers", 0, "--device", "cpu")
    code, out, err = run("calibrate", "--model", parent, *words, "--run-dir", folder)
    assert (code, err) == (0, "")
    assert "% its parent, which brings them to 16\n" in out
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics["calibrated"] == str(parent.resolve())
    assert (metrics["scales"], metrics["sizes"]) == ([20], [16, 20, 24, 28, 32])
    assert metrics["routing"] == {"20": 24}
    report = json.loads((folder / "calibration.json").read_text())
    assert metrics["accuracy"][1] == report["accuracy"]["bn"]
    assert load_recipe(str(folder / "recipe.toml")).calibration.size == 20
    assert "Calibrated from" in (folder / "report.html").read_text()
    again, plain = tmp_path / "again", tmp_path / "recipe.toml"
    plain.write_text(
        (folder / "recipe.toml").read_text().replace("report = true", "report = false")
    )
    code, _, err = run("calibrate", "--recipe", plain, "--run-dir", again)
    assert (code, err) == (0, "")
    model = "model/model.safetensors"
    assert (again / model).read_bytes() == (folder / model).read_bytes()
    for verb, extra in (("finetune", ()), ("calibrate", ("--size", 24))):
        code, _, err = run(verb, "--dataset", "shapes", "--model", folder, *extra)
        assert code == 2
        assert err == (
            f"msun-fastai: {folder}: is calibrated for 20 pixels alone; start from its parent\n"
        )


ERRORS = [
    ((), "give --model, or the --recipe of a calibration"),
    (("--model", "RUN"), "it takes a trained network and a size; give --model and --size"),
    (("--model", "RUN", "--size", 0), "calibration.size = 0"),
    (("--model", "RUN", "--size", 5000), "size: 5000: a side is a whole number of pixels"),
    (("--model", "RUN", "--size", 24, "--what", "norm"), "what: unknown value 'norm'"),
    (("--model", "RUN", "--size", 24, "--dataset", "digits"), "and not the 10 of"),
    (("--model", "nothing", "--size", 24), "no such folder"),
    (("--recipe", "demo"), "one for `msun-fastai finetune`, not for calibrate"),
]


@pytest.mark.parametrize(("words", "wrong"), ERRORS)
def test_errors_are_one_line(parent, tmp_path, run, words, wrong):
    words = [parent if word == "RUN" else word for word in words]
    code, _, err = run("calibrate", *words, "--run-dir", tmp_path / "r")
    assert (code, err.count("\n")) == (2, 1)
    assert wrong in err
    assert not (tmp_path / "r").exists()


def test_another_unfinished_calibration_is_not_to_be_resumed(parent, tmp_path, run):
    stopped = calibration_recipe(str(parent), {"calibration.size": 24})
    (tmp_path / "recipe.toml").write_text(stopped.to_toml())
    words = ("--size", 20, "--workers", 0, "--device", "cpu", "--run-dir", tmp_path)
    code, _, err = run("calibrate", "--model", parent, *words)
    assert (code, err.count("\n")) == (2, 1)
    assert "its unfinished run has calibration.size = 24, not 20; name another folder" in err


def test_a_size_is_for_calibrations_alone():
    with pytest.raises(UserError, match="finetune calibrates nothing"):
        check_choices(Recipe().with_values({"calibration.size": 32}, "test"), None)


def test_a_model_folder_without_a_run_needs_data_and_the_same_classes(tmp_path):
    saved = saved_net(small_net())
    save_model_folder(tmp_path, saved)
    made = calibration_recipe(str(tmp_path), {"calibration.size": 24, "data.dataset": "digits"})
    assert (made.data.dataset, made.data.path) == ("digits", None)
    classes = list(saved.classes)
    fits.check_parent(made, classes)
    with pytest.raises(UserError, match="fine-tune for these"):
        fits.check_parent(made, classes[::-1])


@pytest.mark.parametrize(("own", "drawn"), [({}, 7), ({"data.seed": 3}, 3)])
def test_the_parts_are_those_that_the_parent_had(tmp_path, own, drawn):
    values = {"data.dataset": "shapes", "data.limit": 24, "train.seed": 7, **own}
    parent = Recipe().with_values(values, "test")
    (tmp_path / "recipe.toml").write_text(parent.to_toml())
    save_model_folder(tmp_path / "model", saved_net(small_net()))
    made = calibration_recipe(str(tmp_path), {"calibration.size": 24, "train.seed": 5})
    made = resolved(made)
    assert (made.data.seed, made.train.seed) == (drawn, 5)
    before, now = load_source(parent), load_source(made)
    assert [s.image for s in now.train] == [s.image for s in before.train]
    assert [s.image for s in now.valid] == [s.image for s in before.valid]
    for verb in ("finetune", "linear-probe"):
        again = Recipe().with_values({**values, "verb": verb, "train.seed": 5}, "test")
        again = again.with_values({"model.start": str(tmp_path)}, "test")
        assert resolved(again).data.seed == drawn
        other = again.with_values({"data.dataset": "digits", "data.seed": None}, "test")
        assert resolved(other).data.seed is None


def test_too_small_a_size():
    net = trained("vanilla")
    with pytest.raises(UserError, match="test_size: 0: a side is"):
        replace(net.config, test_size=0)
    inception = NetConfig("inception_v3", 10, (96, 128), "vanilla")
    with torch.device("meta"):
        big = MultiScaleNet(inception, find_family("inception_v3").build_blank("inception_v3", 10))
        with pytest.raises(UserError, match="size: inception_v3 cannot run at 40 pixels"):
            big.keep_for(40)


def test_what_its_parent_cannot_have_is_refused_before_anything_is_written(tmp_path):
    torch.manual_seed(0)
    net = build_net(NetConfig("vgg11", 10, (32,), "vanilla")).eval()
    saved = saved_net(net)
    save_model_folder(tmp_path, saved)
    for size, says in ((16, "size: vgg11 cannot run at 16 pixels"), (32, "has no batch norm")):
        made = calibration_recipe(str(tmp_path), {"calibration.size": size})
        with pytest.raises(UserError, match=says):
            fits.check_parent(made, saved.classes)
    both = {"calibration.size": 32, "calibration.what": "classifier+bn"}
    fits.check_parent(calibration_recipe(str(tmp_path), both), saved.classes)


def test_a_stream_is_refused(source, tmp_path):
    from msun_fastai.data.stream import StreamSource

    stream = object.__new__(StreamSource)
    assert isinstance(source, Source)
    with pytest.raises(UserError, match="take a local copy"):
        fits.fit(recipe(24), saved_of("vanilla", source), stream, tmp_path)
