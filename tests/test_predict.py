"""Prediction from a saved model: right for every image, never another image's answer."""

import numpy as np
import pytest
import torch
from PIL import Image

from msun_fastai.data.resize import load_fitted
from msun_fastai.errors import ImageError
from msun_fastai.evaluate import sweep
from msun_fastai.evaluate import test_sizes as sizes_of_test
from msun_fastai.predict import Predictor, normalize


@pytest.fixture
def predictor(saved_run):
    return Predictor.from_run(saved_run, bs=3)


def test_answers_stay_with_their_images(predictor, shapes, monkeypatch):
    monkeypatch.setattr("msun_fastai.predict.CHUNK", 2)  # several chunks, several scales in each
    images = [s.image for s in shapes.train]
    images[5:5] = [b"", np.zeros((3, 3, 3, 3))]
    found = list(predictor.predict(images, top=10))
    assert len(found) == 82
    for image, prediction in zip(images, found):
        if prediction.error:
            continue
        alone = predictor.predict_one(image, top=10)
        assert prediction.native_size == min(image.shape[:2]) == alone.native_size
        assert dict(prediction.top) == pytest.approx(dict(alone.top), abs=1e-5)
    assert [i for i, p in enumerate(found) if p.error] == [5, 6]
    assert {p.scale for p in found if not p.error} == {16, 32, 64}


def test_the_row_says_size_scale_and_the_best_classes(predictor):
    row = predictor.predict_one(Image.new("L", (50, 24)), top=3).as_row()
    assert (row["width"], row["height"], row["native_size"], row["scale"]) == (50, 24, 24, 16)
    assert len(row["top"]) == 3
    assert row["top"][0] == {"label": row["label"], "probability": row["probability"]}
    shares = [t["probability"] for t in row["top"]]
    assert shares == sorted(shares, reverse=True)


def test_one_unreadable_image_raises(predictor):
    with pytest.raises(ImageError, match="no such file"):
        predictor.predict_one("absent.png")


def test_more_classes_wanted_than_there_are(predictor):
    assert len(predictor.predict_one(Image.new("RGB", (9, 9)), top=99).top) == 10


def test_sweep_equals_prediction_on_resized_images(predictor, shapes):
    samples = shapes.valid[:12]
    found = sweep(predictor.saved, samples, (16, 40, 64), bs=5)
    assert found.sizes == (16, 40, 64)
    assert found.subnet == (16, 32, 64)
    for size, accuracy in zip(found.sizes, found.accuracy):
        resized = [load_fitted(s.image, size) for s in samples]
        model, preprocessing = predictor.saved.model, predictor.saved.preprocessing
        with torch.no_grad():
            logits = model(normalize(torch.stack(resized), preprocessing))
        codes = torch.tensor([shapes.classes.index(s.label) for s in samples])
        assert accuracy == pytest.approx(float((logits.argmax(1) == codes).float().mean()))


def test_sizes_of_the_test():
    assert sizes_of_test((16, 32, 64)) == (16, 24, 32, 48, 64)
    assert sizes_of_test((32,)) == (32,)
