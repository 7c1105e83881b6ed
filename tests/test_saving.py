"""Model folders: what is saved comes back, and nothing but data is read."""

import json
import pickle

import pytest
import torch

from msun_fastai.errors import UserError
from msun_fastai.learner import save_learner
from msun_fastai.models.saving import CONFIG_FILE, KEYS, WEIGHTS_FILE, load_model_folder
from msun_fastai.predict import Predictor


@pytest.mark.parametrize("options", [{}, {"alignment": "native"}, {"method": "mst"}, {"blocks": 0}])
def test_a_saved_learner_predicts_the_same(make_learner, shapes, tmp_path, options):
    learn = make_learner(**options)
    learn.fit(1)
    save_learner(learn, tmp_path / "model")
    predictor = Predictor.from_run(tmp_path)
    assert predictor.saved.classes == shapes.classes
    assert predictor.saved.model.config == learn.model.config
    for sample in shapes.valid[:6]:
        expected = learn.predict(sample.image)[2]
        found = predictor.predict_one(sample.image, top=10)
        assert dict(found.top) == pytest.approx(
            dict(zip(shapes.classes, expected.tolist())), abs=1e-5
        )


def test_the_folder_holds_json_and_safetensors_alone(saved_run):
    folder = saved_run / "model"
    assert sorted(f.name for f in folder.iterdir()) == [CONFIG_FILE, WEIGHTS_FILE]
    config = json.loads((folder / CONFIG_FILE).read_text())
    assert set(config) == {*KEYS}
    assert config["preprocessing"]["resize"] == "squish"
    assert config["model"]["routing"] == "nearest"


def changed(saved_run, tmp_path, edit=None, weights=None):
    folder = tmp_path / "model"
    folder.mkdir()
    config = json.loads((saved_run / "model" / CONFIG_FILE).read_text())
    if edit is not None:
        edit(config)
    (folder / CONFIG_FILE).write_text(json.dumps(config))
    data = (saved_run / "model" / WEIGHTS_FILE).read_bytes() if weights is None else weights
    (folder / WEIGHTS_FILE).write_bytes(data)
    return folder


class Malice:
    """Unpickling this leaves a file behind."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (lambda c: c.update(format=9), "format 9"),
        (lambda c: c.pop("classes"), "KeyError"),
        (lambda c: c["classes"].pop(), "9 class names for 10 classes"),
        (lambda c: c["model"].update(arch="os.system"), "unknown backbone"),
        (lambda c: c["model"].update(arch="resnet18"), "does not hold the weights of resnet18"),
        (lambda c: c["model"].update(scales=[64, 16]), "not ascending"),
        (lambda c: c["model"].update(scales="big"), "scales|not a model"),
        (lambda c: c["model"].update(scales=[10**7]), "from 1 to 4096"),
        (lambda c: c["model"].update(blocks="one"), "blocks"),
        (lambda c: c.update(classes=10), "TypeError"),
        (lambda c: c["preprocessing"].update(mean=[0.5]), "one value per channel"),
        (lambda c: c["model"].update(surprise=1), "unknown key 'surprise'"),
        (lambda c: c["preprocessing"].update(resize="fold"), "resize: unknown value"),
        (lambda c: c.update(model=[]), "not a model's configuration"),
    ],
)
def test_altered_configurations(saved_run, tmp_path, edit, says):
    with pytest.raises(UserError, match=says) as caught:
        load_model_folder(changed(saved_run, tmp_path, edit))
    assert "\n" not in str(caught.value)


def test_altered_weights_and_missing_files(saved_run, tmp_path):
    whole = (saved_run / "model" / WEIGHTS_FILE).read_bytes()
    for i, data in enumerate(
        (b"", whole[:-100], pickle.dumps(Malice(tmp_path / "ran")), whole[:8] + b"x" * 50)
    ):
        place = tmp_path / str(i)
        place.mkdir()
        with pytest.raises(UserError, match="does not hold the weights"):
            load_model_folder(changed(saved_run, place, weights=data))
    folder = changed(saved_run, tmp_path)
    (folder / WEIGHTS_FILE).unlink()
    with pytest.raises(UserError, match="no such file"):
        load_model_folder(folder)
    with pytest.raises(UserError, match="no model in it"):
        load_model_folder(saved_run.parent)
    with pytest.raises(UserError, match="no such folder"):
        load_model_folder(tmp_path / "absent")
    assert not (tmp_path / "ran").exists()


def test_compiled_models_are_saved_under_plain_names(make_learner, tmp_path):
    learn = make_learner()
    learn.model = torch.compile(learn.model, backend="eager")
    save_learner(learn, tmp_path)
    assert load_model_folder(tmp_path).model.config.arch == "thin_resnet10"
