"""Models on the hub: what is pushed, what its card says, and that it comes back."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest
import torch
import yaml
from conftest import SMALL
from hub_stub import TOKEN, serving
from huggingface_hub import HfApi, constants
from rich.console import Console

from msun_fastai import hub
from msun_fastai.card import model_card, plain_card, public
from msun_fastai.errors import UserError
from msun_fastai.hub import MSUN, write_repository
from msun_fastai.models.saving import load_model_folder
from msun_fastai.recipe import Recipe

# pushes the run, loads it again, and says what it answers to an image; then what fails
SCRIPT = """
import contextlib, io, json, sys
from msun_fastai.cli import main
from msun_fastai.hub import MSUN
run, image = sys.argv[1:]

def ask(*words):
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            main([str(w) for w in words])
    except SystemExit as ended:
        return ended.code, err.getvalue().splitlines()[-1:]

found = {"push": ask("push", run, "you/cars", "--license", "cc-by-4.0")}
model = MSUN.from_pretrained("you/cars")
found["top"] = model.predict(image, 10).top
found["name"] = ask("push", run, "no/such/name")
found["absent"] = ask("push", "nowhere", "you/cars")
try:
    MSUN.from_pretrained("you/boats")
except Exception as error:
    found["boats"] = [type(error).__name__, str(error)]
import os, huggingface_hub
huggingface_hub.constants.HF_TOKEN_PATH = "nowhere"
os.environ["HF_TOKEN"] = "wrong"
found["refused"] = ask("push", run, "you/cars")
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory, photos):
    from msun_fastai.run import run

    values = {**SMALL, "data.path": str(photos), "train.epochs": 1, "train.report": True}
    recipe = Recipe().with_values(values, "test")
    return run(recipe, Console(quiet=True), tmp_path_factory.mktemp("runs") / "cars").folder


@pytest.mark.slow
def test_pushed_and_fetched_again(trained, photos, tmp_path):
    image = sorted(photos.rglob("*.png"))[0]
    with serving() as (served, address):
        env = {
            **os.environ,
            "HF_ENDPOINT": address,
            "HF_TOKEN": TOKEN,
            "HF_HOME": str(tmp_path),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
        }
        env.pop("HF_HUB_CACHE", None)
        words = [sys.executable, "-c", SCRIPT, str(trained), str(image)]
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["push"][0] == 0
    files = served.files("you/cars")
    assert set(files) == {"README.md", "accuracy.png", "config.json", "model.safetensors"}
    for name in ("config.json", "model.safetensors"):
        assert files[name] == (trained / "model" / name).read_bytes()
    expected = MSUN.from_pretrained(trained).predict(image, 10).top
    assert found["top"] == [list(pair) for pair in expected]
    for key, code in (("name", 2), ("absent", 2), ("refused", 2)):
        assert found[key][0] == code
        assert found[key][1][0].startswith("msun-fastai: "), found[key]
    assert "no/such/name" in found["name"][1][0]
    assert found["boats"][0] == "UserError"
    assert "\n" not in found["boats"][1]
    assert "you/boats" in found["boats"][1]


@pytest.mark.slow
def test_the_card(trained, tmp_path, photos):
    write_repository(trained, "you/cars", tmp_path, "cc-by-4.0")
    text = (tmp_path / "README.md").read_text()
    _, head, body = text.split("---\n", 2)
    told = yaml.safe_load(head)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert (told["license"], told["pipeline_tag"]) == ("cc-by-4.0", "image-classification")
    (result,) = told["model-index"][0]["results"]
    assert result["metrics"][0]["value"] == round(metrics["mean_accuracy"], 4)
    for size, accuracy in zip(metrics["sizes"], metrics["accuracy"]):
        assert f"| {size} |" in body
        assert f"{100 * accuracy:.1f} %" in body
    assert "![accuracy at each input size](accuracy.png)" in body
    assert 'MSUN.from_pretrained("you/cars")' in body
    recipe = body.split("```toml\n")[1].split("```")[0]
    assert f'path = "{photos.name}"' in recipe
    assert str(photos.parent) not in text  # nor any other path of the machine
    assert str(trained) not in text


def test_no_place_of_the_machine_is_public():
    values = {"data.root": "/home/me/data", "model.weights": "/home/me/w.pt", "data.dataset": "dtd"}
    values |= {
        "model.start": "/home/me/runs/a",
        "data.path": "/home/me/x",
        "train.device": "cuda:3",
    }
    told = public(Recipe().with_values(values, "test"))
    assert "/home" not in told.to_toml()
    assert (told.data.root, told.train.device, told.data.path) == (None, None, "x")
    # without these it would be one of a training from random weights
    assert (told.model.start, told.model.weights) == ("a", "w.pt")


@pytest.mark.parametrize(
    ("what", "told"),
    [("bn", "its batch norms fitted"), ("classifier+bn", "its batch norms and classifier fitted")],
)
def test_a_calibrated_network_was_not_trained_on_these_images(saved_run, tmp_path, what, told):
    metrics = {
        **{"data": "cars", "train_images": 74, "test_images": 0, "measured_images": 20},
        **{"sizes": [48], "subnet": [48], "accuracy": [0.5], "macs": [10**6]},
        **{"mean_accuracy": 0.5, "mean_macs": 10**6, "native_accuracy": 0.5},
    }
    values = {"verb": "calibrate", "calibration.size": 48, "calibration.what": what}
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    (tmp_path / "recipe.toml").write_text(Recipe().with_values(values, "test").to_toml())
    text = model_card(tmp_path, load_model_folder(saved_run), "you/cars")
    assert f"a trained network, {told} (FixRes) to 48 pixels on 74 images" in text
    assert "`cars`: trained on" not in text


def test_a_folder_without_a_run_has_a_plain_card(saved_run, tmp_path):
    write_repository(saved_run, "you/x", tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text == plain_card(load_model_folder(saved_run), "you/x")
    assert "Accuracy" not in text
    assert not (tmp_path / "accuracy.png").exists()


def test_save_pretrained_and_from_pretrained(saved_run, tmp_path):
    model = MSUN.from_pretrained(saved_run)
    assert not model.training
    model.save_pretrained(tmp_path / "saved")
    again = MSUN.from_pretrained(tmp_path / "saved")
    assert again.classes == model.classes
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    assert "# FOLDER" in (tmp_path / "saved" / "README.md").read_text()
    (tmp_path / "saved" / "config.json").write_text("[" * 10_000)
    with pytest.raises(UserError, match="not JSON that can be read"):
        MSUN.from_pretrained(tmp_path / "saved")


def test_a_hub_that_cannot_be_reached(saved_run, run, monkeypatch):
    nobody = "http://127.0.0.1:9"  # the port of a service that throws everything away
    monkeypatch.setattr(hub, "HfApi", partial(HfApi, endpoint=nobody))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    code, _, err = run("push", saved_run, "you/x")
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("msun-fastai: hub you/x: ")


def test_push_can_be_looked_at_first(saved_run, tmp_path, run):
    code, _, err = run("push", saved_run, "you/x", "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "config.json", "model.safetensors"}
    code, _, err = run("push", saved_run, "you/x", "--out", tmp_path / "out")
    assert code == 2
    assert "exists and is not empty" in err


def test_a_name_that_the_hub_refuses_is_refused_first(saved_run, tmp_path, run):
    for name in ("you/my cars", "a/b/c"):
        code, _, err = run("push", saved_run, name, "--out", tmp_path / "out")
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith(f"msun-fastai: hub {name}: ")
        assert not (tmp_path / "out").exists()
