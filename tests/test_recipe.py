"""Recipes: shipped ones are valid, unknown keys are errors, TOML goes both ways."""

import pytest

from msun_fastai.errors import UserError
from msun_fastai.recipe import Recipe, load_recipe, parse_assignment, shipped_recipes


def test_shipped_recipes_are_found_and_valid():
    found = shipped_recipes()
    assert "demo" in found
    for name, file in found.items():
        header = file.read_text().split("\n\n")[0]
        for word in ("paper", "command", "hardware", "expected", "achieved"):
            assert f"# {word}" in header, f"{name}: its header lacks {word}"
        assert load_recipe(name) == load_recipe(str(file))


def test_round_trip(tmp_path):
    recipe = Recipe().with_values({"train.lr": 0.5, "model.scales": [16, 64]}, "test")
    (tmp_path / "r.toml").write_text(recipe.to_toml())
    assert load_recipe(str(tmp_path / "r.toml")) == recipe


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("train.epoch", 3, "unknown key 'train.epoch'; did you mean epochs"),
        ("trian.epochs", 3, "unknown key 'trian'; did you mean train"),
        ("train.epochs", "many", "train.epochs = 'many'"),
        ("train.epochs", 0, "greater than or equal to 1"),
        ("train.lr", -1.0, "greater than 0"),
        ("model.scales", "32", "model.scales"),
        ("baseline.x", 1, "baseline"),
    ],
)
def test_wrong_keys_and_values(key, value, says):
    with pytest.raises(UserError, match=says):
        Recipe().with_values({key: value}, "test")


def test_assignments():
    assert parse_assignment("train.lr=1e-3") == ("train.lr", 0.001)
    assert parse_assignment("model.scales=[16, 32]") == ("model.scales", [16, 32])
    assert parse_assignment("train.views=native") == ("train.views", "native")
    assert parse_assignment("model.pretrained=false") == ("model.pretrained", False)
    with pytest.raises(UserError, match="write key=value"):
        parse_assignment("train.lr")


def test_files_that_are_no_recipes(tmp_path):
    file = tmp_path / "r.toml"
    for text, says in (("= x", "not TOML"), ("[train]\nspeed = 1", "unknown key 'train.speed'")):
        file.write_text(text)
        with pytest.raises(UserError, match=says):
            load_recipe(str(file))
    with pytest.raises(UserError, match="no such file"):
        load_recipe(str(tmp_path / "absent.toml"))
    with pytest.raises(UserError, match="did you mean demo"):
        load_recipe("demos")
