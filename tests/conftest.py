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


@pytest.fixture(scope="session")
def shapes():
    """A small draw of the embedded dataset: 80 images to train, 41 to validate."""
    from msun_fastai.data.shapes import shapes_source

    return shapes_source(80, 41, seed=7)


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
