"""`learn.sweep()`, `learn.routing()` and `MultiScaleInterpretation` on a small Learner."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from msun_fastai import evaluate
from msun_fastai.errors import UserError
from msun_fastai.interpret import MultiScaleInterpretation, samples_of
from msun_fastai.learner import msun_learner, save_learner, saved_model
from msun_fastai.models.saving import load_model_folder
from msun_fastai.predict import Predictor
from msun_fastai.routed import routed_test
from msun_fastai.scales import NEVER


@pytest.fixture
def learn(make_learner):
    made = make_learner()
    torch.manual_seed(1)
    for parameter in made.model.parameters():  # else one class is the answer to everything
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return made


def test_samples_behind_a_loader(learn, shapes):
    samples = samples_of(learn.dls.valid)
    assert [s.label for s in samples] == [s.label for s in shapes.valid]
    assert all(a.image is b.image for a, b in zip(samples, shapes.valid))
    test = learn.dls.test_dl(shapes.train[:5], with_labels=True)
    assert [s.label for s in samples_of(test)] == [s.label for s in shapes.train[:5]]
    with pytest.raises(UserError, match="no list of labelled images"):
        samples_of(learn.dls.test_dl([s.image for s in shapes.train[:5]]))


def test_sweep_and_routing_are_those_of_the_saved_model(learn, shapes):
    saved = saved_model(learn)
    found = learn.sweep((16, 40))
    expected = evaluate.sweep(saved, shapes.valid, (16, 40))
    assert np.array_equal(found.right, expected.right)
    assert found.macs == expected.macs
    assert len(learn.sweep().sizes) == 13
    assert learn.sweep("16:48:16").sizes == (16, 32, 48)
    assert repr(found).startswith("Sweep(41 images at sizes 16, 40; mean accuracy ")
    part = learn.dls.test_dl(shapes.train[:12], with_labels=True)
    assert len(learn.sweep((16,), dl=part).answers.codes) == 12
    routed = learn.routing()
    again = routed_test(saved, shapes.valid)
    assert np.array_equal(routed.cell.predicted, again.cell.predicted)
    losses, accuracy = learn.validate()[:2]
    assert routed.accuracy == pytest.approx(accuracy)
    assert routed.cell.loss.mean() == pytest.approx(losses, rel=1e-3)
    up = learn.routing("up")
    assert up.scale.tolist() != routed.scale.tolist()
    assert learn.model.config.routing == "nearest"


def test_a_rule_is_used_from_then_on(learn, shapes, tmp_path):
    learn.validate()  # what was counted and decoded for the rule before
    image = np.full((60, 60, 3), 90, np.uint8)
    at_64 = learn.predict(image)[2]
    everything_small = f"calibrated:{NEVER},{NEVER}"
    assert learn.set_routing(everything_small) is learn
    at_16 = learn.predict(image)[2]
    assert not torch.allclose(at_64, at_16)
    assert learn.dls.valid.scale_counts() == {16: 41, 32: 0, 64: 0}
    assert learn.validate()[1] == pytest.approx(learn.routing().accuracy)
    assert learn.routing().counts == {16: 41, 32: 0, 64: 0}
    predictor = Predictor(load_model_folder(save_learner(learn, tmp_path / "model")))
    prediction = predictor.predict_one(image)
    assert prediction.scale == 16
    assert prediction.probability == pytest.approx(float(at_16.max()), abs=1e-4)
    again = msun_learner(learn.dls, start=tmp_path / "model")
    assert again.dls.valid.routing == again.model.config.routing == everything_small
    learn.set_routing("calibrated:20,30")  # a side that is routed elsewhere once it was resized
    predicted = learn.get_preds()[0].argmax(1)
    assert predicted.tolist() == learn.routing().cell.predicted.tolist()
    with pytest.raises(UserError, match="number of thresholds 1, of scales 3"):
        learn.set_routing("calibrated:9")
    assert learn.model.config.routing == "calibrated:20,30"


def test_calibrated_routing_is_not_below_the_fixed_rules(learn):
    fixed = [learn.routing(rule).accuracy for rule in ("nearest", "up")]
    rule = learn.calibrate_routing()
    assert rule == learn.model.config.routing == learn.dls.valid.routing
    assert learn.routing().accuracy >= max(fixed)
    learn.calibrate_routing(budget=0.8)
    assert learn.routing().saving >= 0.2 - 1e-9
    with pytest.raises(UserError, match="budget"):
        learn.calibrate_routing(budget=3)


def test_interpretation(learn, shapes):
    interp = MultiScaleInterpretation.from_learner(learn, sizes=(16, 32, 64))
    counts = interp.confusion_matrix()
    assert counts.sum() == 41
    assert counts.trace() / 41 == pytest.approx(learn.routing().accuracy)
    at_16 = interp.confusion_matrix(16)
    assert at_16.trace() / 41 == pytest.approx(interp.swept.accuracy[0])
    assert (at_16.sum(1) == counts.sum(1)).all()
    worst = interp.top_losses(5, size=32)
    losses = interp.swept.loss[:, 1]
    assert [loss for _, loss in worst] == sorted(losses.tolist(), reverse=True)[:5]
    assert losses[worst[0][0]] == pytest.approx(worst[0][1])
    pair = interp.most_confused(n=1)[0]
    row, column = (interp.saved.classes.index(pair[key]) for key in ("true", "predicted"))
    assert counts[row, column] == pair["images"] == (counts - np.diag(counts.diagonal())).max()
    with pytest.raises(UserError, match="size: 48 was not tested; 16, 32, 64 were"):
        interp.top_losses(size=48)


def test_every_picture(learn):
    interp = MultiScaleInterpretation.from_learner(learn, sizes=(16, 64))
    pictures = [
        *(interp.plot_accuracy(), interp.plot_cost(), interp.plot_subnets(), interp.plot_routing()),
        *(interp.plot_confusion_matrix(), interp.plot_confusion_matrix(16)),
        *(interp.plot_top_losses(4), interp.plot_gradcam(2), interp.plot_cka()),
        interp.plot_pca(),
    ]
    assert all(isinstance(picture, Figure) for picture in pictures)
    assert all(picture.axes for picture in pictures)
    assert interp.gradcam(2, (16, 64)).images
    assert interp.cka((16, 64)).sizes == (16, 64)
    assert set(interp.pca(sizes=(16, 64)).sides) == {16, 64}


def test_from_a_run(saved_run, shapes):
    interp = MultiScaleInterpretation.from_run(
        saved_run, dataset="shapes", limit=12, sizes=(16, 64)
    )
    assert len(interp.samples) == 12
    assert interp.swept.sizes == (16, 64)


def test_a_notebook_shows_pictures_without_pyplot():
    from IPython.core.formatters import DisplayFormatter

    from msun_fastai.plots import new_figure

    figure, axes = new_figure(2, 1)
    axes.plot([0, 1])
    shown, _ = DisplayFormatter().format(figure)
    assert shown["image/png"].startswith(b"\x89PNG")
