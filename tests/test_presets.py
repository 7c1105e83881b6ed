"""Presets: MSUN as its paper has it, and as the study found it best."""

import json

import pytest

from msun_fastai.choices import check_choices, resolved
from msun_fastai.cli.training import KEYS, chosen_recipe
from msun_fastai.errors import UserError
from msun_fastai.models.families import find_family
from msun_fastai.recipe import (
    Recipe,
    default_recipe,
    load_recipe,
    presets,
    shipped_recipes,
    with_preset,
)

VERBS = ("pretrain", "finetune", "linear-probe")
NOTHING = {"model": None, "recipe": None, "preset": None, "assign": None, "smoke": False}


def chosen(verb, **given):
    options = {**dict.fromkeys(KEYS), "scales": None, "grids": None, **NOTHING, **given}
    return chosen_recipe(verb, options)


def test_there_are_two():
    assert list(presets()) == ["best", "paper"]
    with pytest.raises(UserError, match="did you mean paper"):
        with_preset(Recipe(), "papr")


@pytest.mark.parametrize("preset", presets())
@pytest.mark.parametrize("verb", VERBS)
def test_they_give_recipes_that_can_be_run(verb, preset):
    recipe = chosen(verb, preset=preset, dataset="shapes")
    assert recipe.model.method == "msun"
    check_choices(recipe, None)
    trained = recipe.model.is_trained and verb != "linear-probe"
    assert recipe.train.align == (4 if preset == "best" and trained else 0)


@pytest.mark.parametrize("preset", presets())
@pytest.mark.parametrize("name", shipped_recipes())
def test_they_lie_on_any_recipe(name, preset):
    """Or say in one line why not: a ScaleNet has one scale and bears no subnets."""
    recipe = load_recipe(name)
    if len(recipe.model.scales) == 1:
        with pytest.raises(UserError, match="two scales or more"):
            with_preset(recipe, preset)
        return
    recipe = with_preset(recipe, preset)
    if not find_family(recipe.model.arch).subnets:
        return
    check_choices(recipe, None)
    config = resolved(recipe)
    assert config.model.method == "msun"
    assert config.consistency.kind == (
        "none" if recipe.train.views == "native" else {"paper": "si", "best": "sd"}[preset]
    )


@pytest.mark.parametrize("verb", VERBS)
def test_the_paper_is_trained_as_the_paper_trains(verb):
    recipe = chosen(verb, preset="paper")
    assert recipe.train == default_recipe("pretrain").train.model_copy(
        update={"epochs": 90 if verb == "pretrain" else 30, "views": recipe.train.views}
    )
    assert (recipe.consistency.kind, recipe.model.norm) == ("si", "shared")
    assert chosen("finetune", preset="best").train.optimizer == "adam"  # fastai's


def test_what_the_study_found_comes_with_trained_weights_alone(tmp_path):
    best = chosen("finetune", preset="best")
    assert (best.consistency.kind, best.model.norm, best.train.align) == ("sd", "per_scale", 4)
    assert chosen("finetune", preset="best", pretrained=False).train.align == 0
    weights = str(tmp_path / "w.pth")
    assert chosen("pretrain", preset="best").train.align == 0
    for words, align in (("model.pretrained=false", 0), (f"model.weights='{weights}'", 4)):
        assert chosen("finetune", preset="best", assign=[words]).train.align == align
    assert chosen("pretrain", preset="best", weights=weights).train.align == 4
    assert chosen("finetune", preset="best", assign=["train.align=1"]).train.align == 1


def test_it_lies_between_recipe_and_options():
    own = load_recipe("study-san")
    best = chosen("pretrain", recipe="study-san", preset="best", norm="shared")
    assert (own.model.method, best.model.method) == ("san", "msun")
    assert (best.model.norm, best.consistency.kind) == ("shared", "sd")
    assert best.model.scales == own.model.scales == [16, 32, 64]
    assert best.data == own.data
    assert best.train.epochs == own.train.epochs
    grids = {"model.grids": [4, 8, 16], "model.alignment": "native", "model.meta_hidden": 8}
    left = with_preset(own.with_values(grids, "test"), "paper").model
    assert (left.grids, left.alignment, left.meta_hidden) == (None, "canonical", 0)


@pytest.mark.parametrize(
    ("words", "wrong"),
    [
        (("--preset", "good"), "preset 'good' is unknown"),
        (("--preset", "best", "--method", "mst"), "its method is msun; leave mst out"),
        (("--preset", "best", "--set", "model.method=mst"), "its method is msun; leave mst out"),
        (("--preset", "best", "--model", "r"), "preset best: r brings its own network"),
        (("--preset", "best", "--set", "model.start=r"), "r brings its own network"),
        (("--preset", "paper", "--scales", "64"), "two scales or more, not 64 alone"),
    ],
)
def test_errors_are_one_line(words, wrong, run):
    code, _, err = run("finetune", "--dataset", "shapes", *words)
    assert (code, err.count("\n")) == (2, 1)
    assert wrong in err


def test_a_run_that_goes_on_has_its_own(run):
    code, _, err = run("finetune", "--preset", "best", "--resume", "r")
    assert (code, err.count("\n")) == (2, 1)
    assert "leave --preset out" in err


def test_a_run_says_what_it_was(tmp_path, run):
    words = ("--dataset", "shapes", "--no-pretrained", "--arch", "thin_resnet10", "--epochs", 1)
    small = ("--scales", "16,32", "--limit", 24, "--bs", 8, "--device", "cpu")
    quiet = ("--set", "train.report=false", "--set", "data.workers=0")
    folder = tmp_path / "run"
    code, _, err = run("finetune", "--preset", "best", *words, *small, *quiet, "--run-dir", folder)
    assert (code, err) == (0, "")
    recipe = load_recipe(str(folder / "recipe.toml"))
    assert (recipe.consistency.kind, recipe.model.norm) == ("sd", "per_scale")
    assert json.loads((folder / "metrics.json").read_text())["method"] == "msun"
