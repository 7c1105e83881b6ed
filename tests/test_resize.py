"""The resize rules and augmentations on images whose pixels are known."""

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from msun_fastai.data.images import REDUCTIONS
from msun_fastai.data.resize import (
    AUGMENTATIONS,
    CROPPED,
    GREY,
    RESIZE_RULES,
    SPARE,
    SPARE_RANDOM,
    as_pixels,
    crop_box,
    fit_pixels,
    fit_random,
    fit_whole,
    load_fitted,
    reduction_for,
)
from msun_fastai.errors import UserError
from msun_fastai.learner import msun_learner, saved_model
from msun_fastai.predict import Predictor


def ramp(width, height):
    """Red grows from left to right, green from top to bottom."""
    red = np.broadcast_to(np.linspace(0, 255, width), (height, width))
    green = np.broadcast_to(np.linspace(0, 255, height)[:, None], (height, width))
    return Image.fromarray(np.stack([red, green, 0 * red], -1).round().astype(np.uint8))


def pixels(image):
    return np.asarray(image).astype(int)


def resize_image(image, side, rule="squish"):
    return as_pixels(load_fitted(image, side, rule))


def augment_image(image, side, kind, rng, rule="squish"):
    return as_pixels(fit_pixels(np.array(image), fit_random(image.size, side, kind, rng, rule)))


@pytest.mark.parametrize("rule", RESIZE_RULES)
@pytest.mark.parametrize("size", [(1, 1), (300, 200), (7, 400), (64, 64)])
def test_every_rule_gives_a_square(rule, size):
    assert resize_image(ramp(*size), 64, rule).shape == (64, 64, 3)


def test_squish_keeps_everything():
    a = pixels(resize_image(ramp(300, 200), 64))
    assert a[32, 0, 0] < 5
    assert a[32, -1, 0] > 250
    assert a[0, 32, 1] < 5
    assert a[-1, 32, 1] > 250


def test_crop_keeps_the_middle_as_torchvision_does():
    from torchvision.transforms import v2

    image = ramp(320, 256)
    reference = v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(image)
    assert np.abs(pixels(resize_image(image, 224, "crop")) - pixels(reference)).max() <= 1
    small = pixels(resize_image(image, 32, "crop"))
    edge = CROPPED * 256 / 320 / 2
    assert small[16, 0, 0] == pytest.approx(255 * (0.5 - edge), abs=8)
    assert small[16, -1, 0] == pytest.approx(255 * (0.5 + edge), abs=8)


def test_pad_keeps_everything_unbent_on_grey():
    a = pixels(resize_image(ramp(300, 200), 60, "pad"))
    assert (a[:10] == GREY).all()
    assert (a[-10:] == GREY).all()
    assert (a[10:50] != GREY).any(-1).all()
    assert a[30, 0, 0] < 5
    assert a[30, -1, 0] > 250
    tall = pixels(resize_image(ramp(200, 300), 60, "pad"))
    assert (tall[:, :10] == GREY).all()


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_augmentations_by_rule(rule):
    image, sizes = ramp(300, 200), set()
    for seed in range(20):
        for kind in AUGMENTATIONS:
            out = augment_image(image, 48, kind, random.Random(seed), rule)
            again = augment_image(image, 48, kind, random.Random(seed), rule)
            assert out.shape == (48, 48, 3)
            assert out.tobytes() == again.tobytes()
            if kind == "none":
                assert out.tobytes() == resize_image(image, 48, rule).tobytes()
            if kind == "rrc":
                assert not (pixels(out) == GREY).all(-1).any()
                sizes.add(out.tobytes())
    assert len(sizes) == 20


def test_half_of_the_images_are_mirrored():
    image, rng = np.array(ramp(60, 40)), random.Random(0)
    fits = [fit_random((60, 40), 16, "light", rng) for _ in range(200)]
    assert 80 < sum(fit.flip for fit in fits) < 120
    for fit in fits[:10]:
        plain = fit_pixels(image, replace(fit, flip=False))
        assert torch.equal(fit_pixels(image, fit), plain.flip(-1) if fit.flip else plain)
        assert plain[0, 8, 0] < plain[0, 8, -1]


def test_boxes_keep_their_share_and_proportions():
    rng = random.Random(0)
    for areas, bends in (((0.5, 1.0), True), ((0.5, 1.0), False), ((0.08, 1.0), False)):
        for _ in range(200):
            left, upper, right, lower = crop_box((300, 200), rng, areas, bends)
            assert 0 <= left < right <= 300
            assert 0 <= upper < lower <= 200
            share = (right - left) * (lower - upper) / 60_000
            assert share <= areas[1]
            ratio = (right - left) / (lower - upper) / (1.5 if bends else 1)
            if right - left < 299.9 and lower - upper < 199.9:  # it fits as it was drawn
                assert share >= areas[0] - 1e-9
                assert 3 / 4 - 1e-9 <= ratio <= 4 / 3 + 1e-9


def test_unknown_rules_and_kinds():
    with pytest.raises(UserError, match="did you mean squish"):
        resize_image(ramp(4, 4), 8, "squisch")
    with pytest.raises(UserError, match="did you mean light"):
        augment_image(ramp(4, 4), 8, "lite", random.Random(0))


@pytest.mark.parametrize("rule", RESIZE_RULES)
@pytest.mark.parametrize("kind", AUGMENTATIONS)
def test_enough_is_decoded_for_whatever_is_drawn(rule, kind):
    rng = random.Random(1)
    for size, side in (((3000, 2000), 32), ((640, 480), 32), ((300, 500), 64), ((90, 80), 32)):
        r = reduction_for(size, side, rule, kind)
        assert r in (1, *REDUCTIONS)
        for _ in range(100):
            fit = fit_random(size, side, kind, rng, rule)
            for k in (0, 1):
                kept = (fit.box[2 + k] - fit.box[k]) * size[k] / r
                spare = SPARE if kind == "none" else SPARE_RANDOM
                assert r == 1 or kept >= spare * fit.inner[k] * 0.999
    assert reduction_for((3000, 2000), 32, rule, kind) == 8
    if rule == "squish":
        expected = {"none": 4, "light": 4, "rrc": 1}
        assert reduction_for((260, 256), 32, rule, kind) == expected[kind]
    assert reduction_for((90, 80), 64, rule, kind) == 1


def test_a_box_is_never_empty():
    one = np.zeros((1, 1, 3), np.uint8)
    assert fit_pixels(one, fit_whole((1, 1), 8, "crop")).shape == (3, 8, 8)
    for seed in range(50):
        fit = fit_random((2, 3), 8, "rrc", random.Random(seed))
        assert fit_pixels(np.zeros((3, 2, 3), np.uint8), fit).shape == (3, 8, 8)


@pytest.mark.parametrize("rule", RESIZE_RULES)
def test_the_rule_is_saved_and_prediction_uses_it(shapes, rule):
    from msun_fastai.data.loaders import NativeImageDataLoaders

    dls = NativeImageDataLoaders.from_source(
        shapes, scales=(16, 32, 64), resize=rule, bs=8, num_workers=0, device="cpu"
    )
    learn = msun_learner(dls, "thin_resnet10", pretrained=False)
    saved = saved_model(learn)
    assert saved.preprocessing.resize == rule
    image = ramp(90, 50)
    _, _, ours = learn.predict(image)
    saved.model.eval()
    answer = Predictor(saved).predict_one(image, top=10)
    theirs = dict(answer.top)
    assert [theirs[c] for c in dls.vocab] == pytest.approx(ours.tolist(), abs=1e-4)
