"""Smoke runs: every recipe shrinks to one that is valid, small, and in need of no files."""

import json

import pytest

from msun_fastai.models.net import NetConfig
from msun_fastai.models.weights import build_net
from msun_fastai.recipe import Recipe, load_recipe, shipped_recipes
from msun_fastai.smoke import smoke_recipe, smoke_scales

KEPT = ("verb", "baseline", "consistency", "probe")


@pytest.mark.parametrize("name", shipped_recipes())
def test_every_recipe_shrinks(name):
    from msun_fastai.choices import check_choices

    recipe = load_recipe(name)
    small = smoke_recipe(recipe)
    check_choices(small, None)
    data, model, train = small.data, small.model, small.train
    assert (data.dataset, data.workers, data.classes, data.carve) == ("shapes", 0, None, None)
    assert data.limit <= 16
    assert (model.pretrained, train.epochs, train.bs) == (False, 2, 8)
    assert model.scales[-1] <= 80
    assert len(model.scales) == len(recipe.model.scales)
    for key in KEPT:
        assert getattr(small, key) == getattr(recipe, key)
    assert (model.arch, model.method) == (recipe.model.arch, recipe.model.method)
    for key in ("schedule", "lowest", "optimizer", "momentum", "wd", "views"):
        assert getattr(train, key) == getattr(recipe.train, key)
    shares = [epoch / recipe.train.epochs for epoch in recipe.train.milestones]
    assert [epoch / train.epochs for epoch in train.milestones] == pytest.approx(shares)
    assert smoke_recipe(small) == small


def test_a_warm_up_stays_below_the_first_milestone():
    from msun_fastai.choices import check_choices

    values = {"train.schedule": "step", "train.epochs": 100, "train.warmup": 5.0}
    small = smoke_recipe(Recipe().with_values({**values, "train.milestones": [10]}, "test"))
    assert (small.train.warmup, small.train.milestones) == (0.1, [0.2])
    check_choices(small, None)


@pytest.mark.parametrize("arch", ["resnet50", "densenet121", "vgg16", "mobilenet_v2"])
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_networks_are_built_at_the_small_scales(arch, count):
    scales = smoke_scales([32 * (i + 4) for i in range(count)])
    build_net(NetConfig(arch, 10, tuple(scales)))


def test_scales_of_a_smoke_run():
    assert smoke_scales([32, 128, 224]) == [32, 56, 80]
    assert smoke_scales([224]) == [80]
    assert smoke_scales([128, 224]) == [32, 80]
    assert smoke_scales([16, 32, 64]) == [16, 32, 64]
    many = smoke_scales(list(range(100, 200)))
    assert len(many) == 100


def test_whatever_needs_a_file_or_time_is_taken_out(tmp_path):
    values = {
        "data.path": "somewhere",
        "data.root": "nowhere",
        "data.stream": True,
        "data.hub_id": "a/b",
        "data.revision": "main",
        "data.classes": 3,
        "data.carve": 0.1,
        "data.cache": 2.0,
        "data.limit": 9,
        "data.augment": "rrc",
        "model.grids": [8, 16, 56],
        "model.weights": "w.pth",
        "model.start": "run",
        "model.norm": "per_scale",
        "train.compile": True,
        "train.precision": "fp16",
        "train.patience": 3,
        "train.log": "wandb",
        "train.lr": 1e-4,
        "train.align": 2,
        "train.warmup": 0.0,
        "consistency.weight": 0.3,
        "probe.protocol": "sgd",
    }
    small = smoke_recipe(Recipe().with_values(values, "test"))
    unset = ("path", "root", "classes", "carve", "cache")
    assert [getattr(small.data, key) for key in unset] == [None] * len(unset)
    assert (small.data.stream, small.data.hub_id, small.data.revision) == (False, "", "")
    assert (small.data.limit, small.data.augment) == (9, "rrc")
    assert (small.model.grids, small.model.weights, small.model.start) == (None, None, None)
    train = small.train
    assert train.align == 0  # there are no trained weights
    assert (train.compile, train.precision, train.patience, train.log) == (
        False,
        "full",
        None,
        None,
    )
    assert (train.lr, train.warmup, small.model.norm) == (1e-4, 0.0, "per_scale")
    assert (small.consistency.weight, small.probe.protocol) == (0.3, "sgd")


def distinct():
    """A recipe for each smoke run: several shrink to the same one."""
    return {smoke_recipe(load_recipe(name)).to_toml(): name for name in shipped_recipes()}.values()


@pytest.mark.slow
@pytest.mark.parametrize("name", distinct())
def test_every_recipe_runs_in_smoke(name, run, tmp_path):
    verb = load_recipe(name).verb
    # pictures are the work of other tests, and take a third of the time
    quick = () if name == "demo" else ("--set", "train.report=false")
    code, _, err = run(verb, "--recipe", name, "--smoke", *quick, "--run-dir", tmp_path / "run")
    assert code == 0, err
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["data"] == "shapes"
