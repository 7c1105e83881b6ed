"""Every verb that takes a trained model works for every method: a user changes one word."""

import json

import pytest
from conftest import SMALL
from rich.console import Console

from msun_fastai.models.methods import METHODS
from msun_fastai.recipe import Recipe
from msun_fastai.run import run as train

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=METHODS)
def trained(request, tmp_path_factory):
    values = {**SMALL, "data.dataset": "shapes", "data.limit": 24, "train.epochs": 1}
    recipe = Recipe().with_values({**values, "model.method": request.param}, "test")
    folder = tmp_path_factory.mktemp("runs") / request.param
    return request.param, train(recipe, Console(quiet=True), folder).folder


def test_every_verb_takes_every_method(trained, photos, tmp_path, run):
    method, folder = trained

    def ask(verb, *words, model=folder):
        file = tmp_path / "out.json"
        named = (model,) if verb in ("report", "compare") else ("--model", model)
        device = () if verb == "export" else ("--device", "cpu")
        code, _, err = run(verb, *named, *words, *device, "--json", file)
        assert (code, err) == (0, "")
        return json.loads(file.read_text())

    swept = ask("evaluate", "--sizes", "16,24,40")
    metrics = json.loads((folder / "metrics.json").read_text())
    assert swept["accuracy"][:1] == metrics["accuracy"][:1]
    if method in ("rsnet", "san", "vanilla", "mst"):
        assert ask("evaluate", "--sizes", "20", "--resize", "native")["resize"] == "native"
    if method in ("rsnet", "san"):
        assert ask("evaluate", "--sizes", "20", "--resize", "ideal")["resize"] == "ideal"
    own = ask("evaluate", "--native")
    assert own["accuracy"] == pytest.approx(metrics["native_accuracy"], abs=1e-6)
    rows = ask("predict", photos, model=folder)
    assert len(rows) == 49
    assert all(row["error"] is None for row in rows)
    assert "report" in ask("report")
    assert (folder / "report.html").is_file()
    for what in ("bn", "classifier+bn"):
        fitted = tmp_path / what
        found = ask("calibrate", "--size", 20, "--what", what, "--workers", 0, "--run-dir", fitted)
        assert found["scales"] == [20]
        again = ask("evaluate", "--sizes", "20", model=fitted)
        assert again["accuracy"] == [found["accuracy"][found["sizes"].index(20)]]
    predicted = ask("predict", photos, model=fitted)
    assert {row["scale"] for row in predicted} == {20}
    for name, model in (("trained", folder), ("fitted", fitted)):
        exported = ask("export", "--out", tmp_path / "onnx" / name, model=model)
        scales = json.loads((tmp_path / "onnx" / name / "router.json").read_text())["scales"]
        assert scales == (metrics["scales"] if name == "trained" else [20])
        assert exported
    both = ask("compare", fitted, "--sizes", "16,32", model=folder)
    assert len(both["models"]) == 2
