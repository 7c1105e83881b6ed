"""A trained network of one scale as weights for networks of every method."""

from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from test_families import ROWS

from msun_fastai.choices import check_choices, resolved
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.entries import parse_entry
from msun_fastai.errors import UserError
from msun_fastai.learner import msun_learner
from msun_fastai.lineup import plan_lineup
from msun_fastai.models.families import find_family
from msun_fastai.models.meta import smallest_side
from msun_fastai.models.methods import METHODS
from msun_fastai.models.net import MultiScaleNet, NetConfig
from msun_fastai.models.plain import plain_state
from msun_fastai.models.saving import Preprocessing, SavedModel, save_model_folder
from msun_fastai.models.weights import build_net
from msun_fastai.recipe import Recipe
from msun_fastai.run import prepare

SCALES = (16, 32, 64)
STATS = Preprocessing("pad", [0.1, 0.2, 0.3], [0.4, 0.5, 0.6])


def used(config):
    """A network of `config` that differs from a new one in its statistics, too."""
    torch.manual_seed(5)
    net = build_net(config).train()
    for scale in net.entry_scales:
        net(torch.randn(4, 3, scale, scale))
    return net.eval()


@pytest.fixture(scope="module")
def make_run(tmp_path_factory, shapes):
    """A function that saves the run of a network, on the classes of `shapes`."""

    def make(method="vanilla", scales=SCALES, recipe=None, **options):
        config = NetConfig("thin_resnet10", len(shapes.classes), scales, method)
        net = used(config)
        if options.get("size"):
            net.keep_for(options["size"])
        run = tmp_path_factory.mktemp(method)
        save_model_folder(run / "model", SavedModel(net, list(shapes.classes), STATS))
        if recipe is not None:
            (run / "recipe.toml").write_text(recipe.to_toml())
        return run, net

    return make


@pytest.fixture(scope="module")
def vanilla(make_run):
    return make_run()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_answers_as_the_network_whose_weights_it_has(vanilla, method):
    run, net = vanilla
    ours = build_net(NetConfig("thin_resnet10", 10, (32, 64), method), weights=run).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), net(x))


@pytest.mark.parametrize(
    ("method", "scales"),
    [("mst", SCALES), ("msun", (64,)), ("snet", (64,)), ("rsnet", (64,)), ("san", (64,))],
)
def test_every_network_of_one_scale_has_weights(make_run, method, scales):
    run, net = make_run(method, scales)
    ours = build_net(NetConfig("thin_resnet10", 10, (64,), "vanilla"), weights=run).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(ours(x), net(x))


@pytest.mark.slow
@pytest.mark.parametrize("arch", ROWS)
def test_of_every_family(arch, tmp_path):
    side = max(64, smallest_side(find_family(arch).build_blank(arch, 7), 224))
    torch.manual_seed(5)
    network = find_family(arch).build(arch, 7)
    given = {name: value.clone() for name, value in network.state_dict().items()}
    net = MultiScaleNet(NetConfig(arch, 7, (side,), method="vanilla"), network)
    names = [f"class {i}" for i in range(7)]
    run = save_model_folder(tmp_path / "model", SavedModel(net.eval(), names, Preprocessing()))
    state = plain_state(run, arch, names)
    assert state.keys() == given.keys()
    assert all(torch.equal(value, given[name]) for name, value in state.items())


def test_classifier_stays_with_its_classes(vanilla, shapes):
    run, net = vanilla
    own = net.state_dict()["head.0.fc.weight"]
    config = NetConfig("thin_resnet10", 10, (64,), "vanilla")
    names = list(shapes.classes)

    def kept(config, classes):
        ours = build_net(config, weights=run, classes=classes).state_dict()["head.0.fc.weight"]
        return ours.shape == own.shape and torch.equal(ours, own)

    assert kept(config, names)
    assert kept(config, None)
    assert not kept(config, names[::-1])
    assert not kept(config, [*names[1:], "another"])
    assert not kept(replace(config, n_classes=9), names[:9])


def test_learner_takes_normalisation_and_classes(vanilla, shapes, dls):
    run, net = vanilla
    learn = msun_learner(dls, "thin_resnet10", weights=run)
    (norm,) = [t for t in learn.dls.train.after_batch.fs if hasattr(t, "mean")]
    assert norm.mean.flatten().tolist() == pytest.approx(STATS.mean)
    assert norm.std.flatten().tolist() == pytest.approx(STATS.std)
    weight = net.state_dict()["head.0.fc.weight"]
    assert torch.equal(learn.model.state_dict()["head.0.fc.weight"], weight)
    assert not next(learn.model.subnets.parameters()).requires_grad  # frozen, as from any weights
    renamed = {name: f"{name} 2" for name in shapes.classes}
    samples = [replace(s, label=renamed[s.label]) for s in shapes.train]
    other = replace(shapes, train=samples, valid=samples[:9], classes=[*renamed.values()])
    loaders = NativeImageDataLoaders.from_source(other, scales=SCALES, num_workers=0, device="cpu")
    learn = msun_learner(loaders, "thin_resnet10", weights=run)
    assert not torch.equal(learn.model.state_dict()["head.0.fc.weight"], weight)


def test_recipe_takes_resize_rule_and_parts(make_run, recipe_of, photos, monkeypatch):
    """Other parts of the same data would have images in them that the network learnt from."""
    parent = recipe_of(**{"train.seed": 7})
    run, _ = make_run(recipe=parent)
    monkeypatch.chdir(run.parent)
    values = parent.model_dump(exclude_unset=True)
    del values["train"]["seed"]
    base = Recipe.model_validate(values)
    recipe = base.with_values({"model.weights": run.name}, "test")
    done = resolved(recipe)
    assert (done.data.resize, done.data.seed, done.train.seed) == ("pad", 7, 42)
    assert done.model.weights == str(run)  # to go on from anywhere
    assert resolved(done) == done
    named = resolved(recipe.with_values({"data.resize": "crop", "data.seed": 3}, "test"))
    assert (named.data.resize, named.data.seed) == ("crop", 3)
    lineup = plan_lineup(recipe, [parse_entry("msun")], 2, run / "methods")
    assert {t.recipe.data.seed for t in lineup.trainings} == {7}
    elsewhere = resolved(recipe.with_values({"data.path": str(photos / "train")}, "test"))
    assert elsewhere.data.seed is None


def test_a_run_is_prepared_with_it(vanilla, recipe_of):
    run, net = vanilla
    values = {"model.scales": [16, 32], "data.path": None, "data.dataset": "shapes"}
    recipe = recipe_of(**values).with_values({"model.weights": str(run), "data.limit": 20}, "test")
    learn = prepare(recipe, Console(quiet=True)).learn
    for name in ("deep.0.layer4.0.conv2.weight", "deep.0.layer4.0.bn2.running_var"):
        assert torch.equal(learn.model.state_dict()[name], net.state_dict()[name]), name
    assert learn.dls.valid.resize == "pad"


def test_what_has_no_such_weights(make_run, vanilla, recipe_of, run, photos, tmp_path):
    msun, _ = make_run("msun")
    calibrated, _ = make_run("vanilla", size=48)
    (tmp_path / "empty").mkdir()
    damaged, _ = make_run()
    file = damaged / "model" / "model.safetensors"
    state = load_file(file)
    state["head.0.fc.bias"] += 1
    save_file(state, file)
    for weights, says in {
        msun: r"its msun has 3 scales, not the one .* --model \(model.start\) starts from all of",
        calibrated: "is calibrated for 48 pixels alone; start from its parent",
        tmp_path / "empty": "no model in it",
        tmp_path / "absent": "no such file or folder",
    }.items():
        recipe = recipe_of().with_values({"model.weights": str(weights)}, "test")
        with pytest.raises(UserError, match=says) as error:
            check_choices(recipe, None)
        assert "\n" not in str(error.value)
    words = ("finetune", "--data", photos, "--weights", vanilla[0])
    code, _, said = run(*words, "--arch", "resnet18")
    assert code == 2
    assert "its backbone is thin_resnet10, not resnet18; give --arch thin_resnet10" in said
    with pytest.raises(UserError, match="another SHA-256"):
        build_net(NetConfig("thin_resnet10", 10, SCALES), weights=damaged)
    with pytest.raises(UserError, match="its msun has 3 scales"):
        build_net(NetConfig("thin_resnet10", 10, SCALES), weights=msun)
