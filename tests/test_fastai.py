"""What a fastai user expects of a Learner, on ours."""

import warnings

import numpy as np
import pytest
import torch
from fastai.callback.core import Callback
from fastai.callback.mixup import MixUp
from fastai.data.transforms import Normalize
from fastai.interpret import ClassificationInterpretation
from fastai.learner import load_learner
from fastai.vision.augment import aug_transforms
from PIL import Image
from torchvision.models import resnet18

from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.errors import UserError
from msun_fastai.learner import msun_learner

SCALES = (16, 32, 64)


@pytest.fixture
def learn(make_learner):
    return make_learner()


def test_every_input_form_of_predict_gives_the_same_answer(learn, shapes, tmp_path):
    a = shapes.valid[0].image
    file = tmp_path / "a.png"
    Image.fromarray(a).save(file)
    forms = [a, Image.fromarray(a), Image.open(file), file, str(file), file.read_bytes()]
    forms.append(torch.from_numpy(a).permute(2, 0, 1))
    answers = [learn.predict(form) for form in forms]
    label, code, probabilities = answers[0]
    assert label == learn.dls.vocab[int(code)]
    assert probabilities.sum() == pytest.approx(1, abs=1e-5)
    assert all(torch.allclose(p, probabilities, atol=1e-6) for _, _, p in answers)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("size", [(1, 1), (1, 400), (800, 10), (64, 64)])
def test_predict_takes_every_mode_and_shape(learn, mode, size):
    if mode == "I;16":
        image = Image.fromarray(np.full(size[::-1], 30_000, np.uint16))
    else:
        image = Image.new(mode, size)
    assert torch.isfinite(learn.predict(image)[2]).all()


def test_freezing_and_discriminative_learning_rates(make_learner):
    learn = make_learner()
    learn.freeze()
    trainable = {
        name.split(".")[0]
        for name, p in learn.model.named_parameters()
        if p.requires_grad and "bn" not in name and "downsample" not in name
    }
    assert trainable == {"head"}
    learn.unfreeze()
    learn.fit_one_cycle(1, slice(1e-4, 1e-2))
    rates = [h["lr"] for h in learn.opt.hypers]
    assert len(rates) == 3
    assert rates[0] < rates[1] < rates[2]


def test_fine_tune_trains_the_head_first_then_everything(learn):
    trainable = []

    class Look(Callback):
        def before_train(self):
            weight = self.learn.model.deep[0].layer4[0].conv1.weight
            trainable.append(
                (weight.requires_grad, self.learn.model.head[0].fc.weight.requires_grad)
            )

    learn.fine_tune(1, freeze_epochs=1, cbs=Look())
    assert trainable == [(False, True), (True, True)]


def test_a_pretrained_learner_comes_frozen(make_learner, tmp_path):
    torch.save(resnet18().state_dict(), tmp_path / "w.pth")
    learn = make_learner(arch=resnet18, pretrained=False, weights=tmp_path / "w.pth")
    assert not learn.model.deep[0].layer4[0].conv1.weight.requires_grad
    assert learn.model.head[0].fc.weight.requires_grad


def test_lr_find(learn):
    assert 1e-7 < learn.lr_find(num_it=12, show_plot=False).valley < 10


def test_tta_and_predictions_on_the_training_part(learn, shapes):
    preds, targets = learn.tta(n=2)
    assert not torch.allclose(preds, learn.get_preds()[0], atol=1e-4)  # it does augment
    assert preds.shape == (len(shapes.valid), 10)
    assert targets.tolist() == [shapes.classes.index(s.label) for s in shapes.valid]
    preds, targets = learn.get_preds(ds_idx=0)
    assert targets.tolist() == [shapes.classes.index(s.label) for s in shapes.train]


def test_predictions_with_loss_input_and_decoded(learn, shapes):
    dl = learn.dls.test_dl(shapes.valid, with_labels=True)
    preds, targets, decoded, losses = learn.get_preds(dl=dl, with_decoded=True, with_loss=True)
    assert torch.equal(decoded, preds.argmax(1))
    expected = -preds[torch.arange(len(targets)), targets].log()
    assert torch.allclose(losses, expected, atol=1e-4)


def test_show_batch_and_show_results(learn):
    learn.dls.show_batch(max_n=4)
    learn.dls.valid.show_batch(max_n=4)
    learn.dls.train.show_batch(unique=True, max_n=2)
    learn.show_results(max_n=4)


def test_interpretation(learn):
    interpretation = ClassificationInterpretation.from_learner(learn)
    assert interpretation.confusion_matrix().sum() == len(learn.dls.valid_ds)


def test_the_worst_images_are_shown_with_their_own_losses(make_learner, shapes):
    """Interpretation asks for a handful without reordering; each must get its own answer."""
    learn = make_learner()
    learn.fit(1, 3e-3)
    interpretation = ClassificationInterpretation.from_learner(learn)
    losses, idxs = interpretation.top_losses(9)
    _, preds, targets, _, _ = interpretation[idxs]
    assert targets.tolist() == [shapes.classes.index(shapes.valid[int(i)].label) for i in idxs]
    assert torch.allclose(-preds[range(9), targets].log(), losses, atol=1e-4)
    interpretation.plot_top_losses(4)


def test_labelled_test_items_as_fastai_takes_them(tmp_path, make_learner):
    for label in ("cat", "dog"):
        for i in range(10):
            file = tmp_path / label / f"{i}.png"
            file.parent.mkdir(exist_ok=True)
            Image.new("RGB", (20 + 10 * i, 200), "red" if label == "cat" else "blue").save(file)
    dls = NativeImageDataLoaders.from_folder(tmp_path, scales=SCALES, bs=4, num_workers=0)
    learn = make_learner(dls=dls)
    files = sorted(tmp_path.rglob("*.png"))
    _, targets = learn.get_preds(dl=learn.dls.test_dl(files, with_labels=True))
    assert targets.tolist() == [0] * 10 + [1] * 10


def test_a_datablock_with_a_getter(tmp_path, make_learner):
    import pandas as pd
    from fastai.data.block import CategoryBlock, DataBlock
    from fastai.data.transforms import ColReader

    from msun_fastai.data.native_dl import NativeImageBlock

    rows = []
    for i in range(20):
        Image.new("RGB", (20 + 10 * i, 250), "red").save(tmp_path / f"{i}.png")
        rows.append({"name": f"{i}.png", "label": "ab"[i % 2]})
    block = DataBlock(
        blocks=(NativeImageBlock(scales=SCALES), CategoryBlock),
        get_x=ColReader("name", pref=f"{tmp_path}/"),
        get_y=ColReader("label"),
    )
    dls = block.dataloaders(pd.DataFrame(rows), bs=4, num_workers=0)
    assert (dls.train.views, dls.train.augment, dls.valid.views) == ("all", "light", "native")
    assert min(dls.train.native_sizes + dls.valid.native_sizes) == 20
    make_learner(dls=dls).fit(1)


def test_arguments_in_fastais_own_forms(dls):
    from fastai.metrics import accuracy, error_rate
    from fastcore.foundation import L

    learn = msun_learner(
        dls, "thin_resnet10", pretrained=False, cbs=MixUp(), metrics=L(accuracy, error_rate)
    )
    assert [m.name for m in learn.metrics][:2] == ["accuracy", "error_rate"]
    assert hasattr(learn, "mix_up")


def test_normalisation_follows_the_loaders_device(shapes, monkeypatch):
    """Not fastai's default device, which may be an accelerator that the user did not ask for."""
    monkeypatch.setattr("fastai.data.transforms.default_device", lambda *a: torch.device("meta"))
    dls = NativeImageDataLoaders.from_source(
        shapes, scales=SCALES, bs=8, num_workers=0, device="cpu"
    )
    learn = msun_learner(dls, "thin_resnet10", pretrained=False)
    norm = next(t for t in learn.dls.train.after_batch.fs if isinstance(t, Normalize))
    assert norm.mean.device.type == "cpu"


def test_a_transform_that_resizes_is_refused(shapes):
    dls = NativeImageDataLoaders.from_source(
        shapes, scales=SCALES, bs=8, num_workers=0, batch_tfms=aug_transforms(size=64)
    )
    with pytest.raises(UserError, match="take the resizing out of batch_tfms"):
        msun_learner(dls, "thin_resnet10", pretrained=False)
    from fastai.vision.augment import Resize

    with pytest.raises(UserError, match="take the resizing out of item_tfms"):
        NativeImageDataLoaders.from_source(
            shapes, scales=SCALES, bs=8, num_workers=0, item_tfms=Resize(50)
        ).one_batch()


def test_export_and_load_in_a_process_without_the_data(learn, shapes, tmp_path):
    learn.path = tmp_path
    learn.fit(1)
    expected = [learn.predict(s.image)[2] for s in shapes.valid[:5]]
    learn.export("l.pkl")
    assert (tmp_path / "l.pkl").stat().st_size < 40_000_000  # weights and optimizer, no images
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fastai's own warning that this is a pickle
        loaded = load_learner(tmp_path / "l.pkl")
    for sample, probabilities in zip(shapes.valid, expected):
        assert torch.allclose(loaded.predict(sample.image)[2], probabilities, atol=1e-6)


def test_save_and_load_weights(learn, tmp_path, shapes):
    learn.path = tmp_path
    learn.fit(1)
    learn.save("w")
    expected = learn.predict(shapes.valid[0].image)[2]
    learn.fit(1)
    learn.load("w")
    assert torch.allclose(learn.predict(shapes.valid[0].image)[2], expected)


def test_batch_transforms_and_normalisation_are_added_once(shapes, make_learner):
    dls = NativeImageDataLoaders.from_source(
        shapes, scales=SCALES, bs=16, num_workers=0, batch_tfms=aug_transforms(), device="cpu"
    )
    for _ in range(2):
        learn = make_learner(dls=dls)
    assert sum(isinstance(t, Normalize) for t in learn.dls.train.after_batch.fs) == 1
    learn.fit(1, cbs=MixUp())


def test_factories(tmp_path, make_learner):
    import pandas as pd

    rows = []
    for label in ("cat", "dog"):
        for i in range(10):
            file = tmp_path / "photos" / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + 10 * i, 200), "red" if label == "cat" else "blue").save(file)
            rows.append({"path": f"photos/{label}/{i}.png", "label": label, "is_valid": i < 2})
    table = pd.DataFrame(rows)
    table.to_csv(tmp_path / "labels.csv", index=False)
    options = {"scales": SCALES, "bs": 4, "num_workers": 0}
    for dls in (
        NativeImageDataLoaders.from_folder(tmp_path / "photos", **options),
        NativeImageDataLoaders.from_csv(tmp_path, **options),
        NativeImageDataLoaders.from_df(table, tmp_path, valid_col="is_valid", **options),
    ):
        assert list(dls.vocab) == ["cat", "dog"]
        assert (len(dls.train_ds), len(dls.valid_ds)) == (16, 4)
        learn = make_learner(dls=dls)
        learn.fit(1)
    named = table.rename(columns={"path": "photo", "label": "animal"})
    dls = NativeImageDataLoaders.from_df(
        named, tmp_path, "photo", "animal", valid_col="is_valid", **options
    )
    learn = make_learner(dls=dls)
    _, targets = learn.get_preds(dl=learn.dls.test_dl(named, with_labels=True))
    assert targets.tolist() == [0] * 10 + [1] * 10
    assert len(learn.get_preds(dl=learn.dls.test_dl(named[["photo"]]))[0]) == 20
    by_number = NativeImageDataLoaders.from_df(table, tmp_path, 0, 1, valid_col=2, **options)
    assert len(by_number.valid_ds) == 4
    shapes = NativeImageDataLoaders.from_dataset("shapes", limit=20, **options)
    assert (len(shapes.train_ds), len(shapes.valid_ds), shapes.c) == (20, 20, 10)
