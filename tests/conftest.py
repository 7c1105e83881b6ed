"""Shared fixtures: small data, a small Learner, and the real images where they are."""

import os
from pathlib import Path

import matplotlib
import pytest

matplotlib.use("Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "10000")  # as the command line does, and for its reason

SCALES = (16, 32, 64)
ROOT = Path(__file__).parent.parent


# a recipe of 5 steps an epoch, with a checkpoint after each
SMALL = {
    "data.workers": 0,
    "model.arch": "thin_resnet10",
    "model.scales": [16, 24, 32],
    "model.pretrained": False,
    "train.epochs": 2,
    "train.bs": 8,
    "train.device": "cpu",
    "train.save_minutes": 1e-9,  # after every step
    "train.report": False,  # seconds of pictures; tests/test_report.py has them
}


@pytest.fixture(scope="session")
def shapes():
    """A small draw of the embedded dataset, as arrays: 80 images to train, 41 to validate."""
    from dataclasses import replace

    from msun_fastai.data.images import load_pixels
    from msun_fastai.data.shapes import shapes_source

    source = shapes_source(80, 41, seed=7)
    parts = {
        part: [
            replace(s, image=load_pixels(s.image).copy(), size=None) for s in getattr(source, part)
        ]
        for part in ("train", "valid")
    }
    return replace(source, **parts)


@pytest.fixture
def dls(shapes):
    """Loaders over `shapes` at small scales, with no worker processes."""
    from msun_fastai.data.loaders import NativeImageDataLoaders

    return NativeImageDataLoaders.from_source(
        shapes, scales=SCALES, bs=16, num_workers=0, device="cpu"
    )


@pytest.fixture
def make_learner(dls):
    """A function that makes a seeded Learner with a thin network on `dls`."""
    from fastai.callback.progress import ProgressCallback
    from fastai.metrics import accuracy
    from fastai.torch_core import set_seed

    from msun_fastai.learner import msun_learner

    def make(**options):
        set_seed(3)
        given = {"dls": dls, "arch": "thin_resnet10", "pretrained": False, "metrics": accuracy}
        learn = msun_learner(**{**given, **options})
        learn.remove_cbs(learn._grab_cbs(ProgressCallback))
        learn.logger = lambda row: None
        return learn

    return make


@pytest.fixture(scope="session")
def real_data():
    """The folder of real images beside the project, or a skip that says it is absent."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"real images not found in {os.path.relpath(folder, ROOT)}")
    return folder


@pytest.fixture(scope="session")
def saved_run(tmp_path_factory, shapes):
    """A model folder with random weights, for tests of what comes after training."""
    import torch

    from msun_fastai.models.net import NetConfig
    from msun_fastai.models.saving import Preprocessing, SavedModel, save_model_folder
    from msun_fastai.models.weights import build_net

    torch.manual_seed(0)
    model = build_net(NetConfig("thin_resnet10", 10, SCALES))
    saved = SavedModel(model, list(shapes.classes), Preprocessing())
    return save_model_folder(tmp_path_factory.mktemp("run") / "model", saved).parent


@pytest.fixture
def run(capsys):
    """The command line, called as a function: exit code, standard output, standard error."""
    from msun_fastai.cli import main

    def call(*words):
        with pytest.raises(SystemExit) as ended:
            main([str(w) for w in words])
        out = capsys.readouterr()
        return ended.value.code, out.out, out.err

    return call


@pytest.fixture(scope="session")
def photos(tmp_path_factory):
    """Class folders of small pictures, of sides that go to every scale: 40 to train, 9 to watch."""
    from PIL import Image

    from msun_fastai.data.images import load_pixels
    from msun_fastai.data.shapes import shapes_source

    folder = tmp_path_factory.mktemp("photos")
    source = shapes_source(40, 9, seed=5)
    for part in ("train", "valid"):
        for i, sample in enumerate(getattr(source, part)):
            file = folder / part / sample.label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            side = (15, 22, 34)[i % 3]
            Image.fromarray(load_pixels(sample.image)).resize((side, side)).save(file)
    return folder


@pytest.fixture
def recipe_of(photos, tmp_path):
    """A function that makes a small recipe on `photos`, with some of its values changed."""
    from safetensors.torch import save_file

    from msun_fastai.models.thin import thin_resnet10
    from msun_fastai.recipe import Recipe

    def make(**values):
        if "model.weights" in values:
            file = tmp_path / values["model.weights"]
            save_file(thin_resnet10(1000).state_dict(), file)
            values = {**values, "model.weights": str(file)}
        return Recipe().with_values({**SMALL, "data.path": str(photos), **values}, "test")

    return make
