"""The whole lattice: every method with every consistency and norm trains, is saved, and predicts
the same once it is loaded."""

import pytest
import torch
from fastai.torch_core import set_seed

from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.errors import UserError
from msun_fastai.learner import msun_learner, save_learner
from msun_fastai.models.methods import CONSISTENCIES, METHODS
from msun_fastai.models.saving import load_model_folder
from msun_fastai.models.sharing import NORMS

SCALES = (16, 32)
LATTICE = [(m, kind, norm) for m in METHODS for kind in CONSISTENCIES for norm in NORMS]
# what there is nothing to share for, or nothing to compare
REFUSED = {
    *((m, kind, "per_scale") for m in ("vanilla", "mst", "snet") for kind in CONSISTENCIES),
    *(("vanilla", kind, "shared") for kind in ("si", "sd", "ensemble")),
    ("mst", "ensemble", "shared"),
}


@pytest.fixture(scope="module")
def loaders(shapes):
    return NativeImageDataLoaders.from_source(
        shapes, scales=SCALES, bs=8, num_workers=0, augment="none", device="cpu"
    )


def test_the_lattice_is_whole():
    assert len(LATTICE) == 6 * 4 * 2
    assert len(LATTICE) - len(REFUSED) == 32


@pytest.mark.parametrize(("method", "kind", "norm"), LATTICE)
def test_trains_saves_loads_and_predicts_the_same(loaders, tmp_path, method, kind, norm):
    set_seed(0)
    given = {"method": method, "consistency": kind, "norm": norm, "scale_metrics": False}
    if (method, kind, norm) in REFUSED:
        with pytest.raises(UserError) as raised:
            msun_learner(loaders, "thin_resnet10", pretrained=False, **given)
        assert "\n" not in str(raised.value)
        return
    learn = msun_learner(loaders, "thin_resnet10", pretrained=False, **given)
    learn.remove_cbs(learn._grab_cbs(type(learn.progress)))
    learn.dls.train.n, learn.dls.valid.n = 16, 4
    before = {name: p.detach().clone() for name, p in learn.model.named_parameters()}
    with learn.no_logging():
        learn.fit(1, 1e-2)
    assert learn.train_iter == 2
    still = [n for n, p in learn.model.named_parameters() if torch.equal(p, before[n])]
    assert still == []
    again = load_model_folder(save_learner(learn, tmp_path / "m")).model
    assert again.config == learn.model.config
    learn.model.eval()
    with torch.no_grad():
        for side in (16, 20, 32, 40):
            x = torch.randn(2, 3, side, side)
            assert torch.equal(again(x), learn.model(x))
