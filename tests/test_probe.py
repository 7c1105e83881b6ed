"""Features and the linear probe on them."""

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from test_heads import SCALES, saved_net, small_net

from msun_fastai import features as features_module
from msun_fastai.data.images import open_image
from msun_fastai.data.resize import fitted
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.evaluate import sweep
from msun_fastai.features import COLUMNS, Features, cached, extract, fingerprint, load, save
from msun_fastai.models.heads import classifiers, penultimate
from msun_fastai.models.saving import load_model_folder, save_model_folder
from msun_fastai.predict import Predictor, normalize
from msun_fastai.probe import ABSENT, fit_probe, linear_probe, set_classifier


@pytest.fixture
def saved(saved_run):
    return load_model_folder(saved_run)


@pytest.fixture(scope="module")
def sized(shapes):
    """24 samples whose shorter sides go to all three scales, and beyond."""
    sides = (12, 20, 32, 40, 64, 90)
    return [
        Sample(resized(s.image, sides[i % 6], sides[i % 6] + 7), s.label)
        for i, s in enumerate(shapes.train[:24])
    ]


def resized(image, height, width):
    from PIL import Image

    return np.array(Image.fromarray(image).resize((width, height)))


class Stream:
    """Samples that can only be read one after the other."""

    where = "a stream"

    def __init__(self, samples):
        self.samples = samples

    def __iter__(self):
        return iter(self.samples)


def same(a, b, tolerance=1e-5):
    assert torch.allclose(a.x, b.x, rtol=0, atol=tolerance)
    assert a.unreadable == b.unreadable
    return all(torch.equal(getattr(a, c), getattr(b, c)) for c in COLUMNS if c != "x")


# ---- features ---------------------------------------------------------------------------------


def test_features_are_those_of_one_image_at_a_time(saved, sized):
    found = extract(saved, sized, bs=7)
    assert found.x.dtype == torch.float32
    assert found.images.tolist() == list(range(24))
    for row, sample in enumerate(sized):
        scale = saved.model.route(min(sample.image.shape[:2]))
        assert found.scales[row] == scale
        assert saved.classes[found.codes[row]] == sample.label
        with open_image(sample.image) as image:
            pixels = fitted(image, scale, saved.preprocessing.resize)
        x = normalize(pixels[None], saved.preprocessing)
        expected = penultimate(saved.model, x, SCALES.index(scale))[0]
        assert torch.allclose(found.x[row], expected, rtol=0, atol=1e-5)
    assert set(found.scales.tolist()) == set(SCALES)


@pytest.mark.parametrize("views", ["native", "down", "all"])
def test_batches_and_workers_change_nothing(saved, sized, views):
    first = extract(saved, sized, views, bs=64)
    assert first.x.std(0).max() > 0.01
    for bs, workers in ((1, 0), (5, 0), (5, 2)):
        assert same(first, extract(saved, sized, views, bs, workers))
        assert same(first, extract(saved, Stream(sized), views, bs, workers))


def test_policies_give_their_scales(saved, sized):
    routed = [saved.model.route(min(s.image.shape[:2])) for s in sized]
    expected = {
        "native": [(i, s) for i, s in enumerate(routed)],
        "down": [(i, s) for i, r in enumerate(routed) for s in SCALES if s <= r],
        "all": [(i, s) for i in range(24) for s in SCALES],
    }
    for views, rows in expected.items():
        found = extract(saved, sized, views, bs=10)
        assert list(zip(found.images.tolist(), found.scales.tolist())) == rows
    one = extract(saved_net_of(saved, "vanilla"), sized, "down")
    assert one.scales.tolist() == [64] * 24
    private = extract(saved_net_of(saved, "snet"), sized, "native")
    assert len(private.x) == 72


def saved_net_of(saved, method):
    return replace(saved, model=small_net(method))


def test_routing_up(saved, sized):
    up = replace(saved, model=small_net(routing="up"))
    found = extract(up, sized)
    assert found.scales.tolist() == [up.model.route(min(s.image.shape[:2])) for s in sized]
    assert found.scales.tolist() != extract(saved, sized).scales.tolist()


@pytest.mark.parametrize("workers", [0, 2])
def test_images_that_cannot_be_read_are_reported(saved, sized, tmp_path, workers):
    torn = tmp_path / "torn.jpg"
    torn.write_bytes(b"\xff\xd8\xff\xe0 nothing")
    bad = [sized[0], Sample(torn, sized[0].label), sized[1], Sample(b"", sized[1].label), sized[2]]
    found = extract(saved, bad, bs=2, workers=workers)
    assert found.images.tolist() == [0, 2, 4]
    assert len(found.unreadable) == 2
    assert "torn.jpg" in found.unreadable[0]
    assert found.seen == 3
    with pytest.raises(UserError, match=r"torn\.jpg"):
        extract(saved, bad, bs=2, workers=workers, on_bad="stop")
    with pytest.raises(UserError, match="none of 1 images can be read"):
        extract(saved, bad[1:2], workers=workers)
    with pytest.raises(UserError, match=r"^label 'cow' is not among the 10 classes"):
        extract(saved, [replace(sized[0], label="cow")], workers=workers)


# ---- the cache --------------------------------------------------------------------------------


def test_what_was_kept_is_not_computed_again(saved, sized, tmp_path, monkeypatch):
    file = tmp_path / "features" / "train.safetensors"
    bad = [*sized, Sample(b"", sized[0].label)]
    mark = fingerprint(saved, bad, "down")
    calls = []

    def make():
        calls.append(1)
        return extract(saved, bad, "down")

    first = cached(file, mark, make)
    again = cached(file, mark, make)
    assert len(calls) == 1
    assert same(first, again, 0)
    assert len(again.unreadable) == 1
    cached(file, "another", make)
    assert len(calls) == 2
    assert load(file)[1] == "another"
    for damage in (file.read_bytes()[:-40], b"", b"\xff" * 100):
        file.write_bytes(damage)
        assert same(first, cached(file, mark, make), 0)
    assert len(calls) == 5


def test_a_file_of_other_columns_is_not_used(tmp_path):
    file = tmp_path / "f.safetensors"
    good = Features(torch.zeros(3, 2), *(torch.zeros(3, dtype=torch.int64) for _ in range(3)))
    save(good, file)
    assert len(load(file)[0].x) == 3
    for wrong in (replace(good, x=torch.zeros(2, 2)), replace(good, codes=torch.zeros(3))):
        save(wrong, file)
        with pytest.raises(UserError, match=r"f\.safetensors: cannot be read"):
            load(file)


def test_the_fingerprint_is_of_all_that_features_depend_on(saved, sized, tmp_path):
    usual = fingerprint(saved, sized, "native")
    assert usual == fingerprint(saved, list(sized), "native")
    (layer,) = classifiers(saved.model)
    torch.nn.init.normal_(layer.weight)
    assert fingerprint(saved, sized, "native") == usual  # features know nothing of the classifier
    other_pixels = [replace(sized[0], image=255 - sized[0].image), *sized[1:]]
    padded = replace(saved, preprocessing=replace(saved.preprocessing, resize="pad"))
    others = [
        fingerprint(saved, sized, "down"),
        fingerprint(saved, sized[:-1], "native"),
        fingerprint(saved, other_pixels, "native"),
        fingerprint(saved, [replace(sized[0], label="x"), *sized[1:]], "native"),
        fingerprint(saved, [replace(s, image=tmp_path / "a.jpg") for s in sized], "native"),
        fingerprint(saved, [replace(s, image=tmp_path / "b.jpg") for s in sized], "native"),
        fingerprint(saved, Stream(sized), "native"),
        fingerprint(padded, sized, "native"),
        fingerprint(replace(saved, classes=saved.classes[::-1]), sized, "native"),
        fingerprint(replace(saved, model=small_net(routing="up")), sized, "native"),
    ]
    with torch.no_grad():
        next(saved.model.parameters()).view(-1)[0] += 1e-3
    others.append(fingerprint(saved, sized, "native"))
    assert len({usual, *others}) == len(others) + 1


# ---- the fit ----------------------------------------------------------------------------------


def points(n, centres, spread, seed):
    """`n` rows around each of `centres` (k, d), off the origin and of very different deviations."""
    g = torch.Generator().manual_seed(seed)
    k, d = centres.shape
    codes = torch.arange(k).repeat(n)
    x = centres[codes] + spread * torch.randn(n * k, d, generator=g)
    x = x * torch.logspace(-2, 2, d) + torch.arange(d) * 3.0
    order = torch.arange(n * k)
    return Features(x, codes, order, torch.full_like(order, 64))


CENTRES = 3 * torch.randn(5, 12, generator=torch.Generator().manual_seed(1))


def test_what_is_separable_is_separated():
    probe = fit_probe(points(30, CENTRES, 0.3, 2), points(30, CENTRES, 0.3, 3), 5)
    test = points(50, CENTRES, 0.3, 4)
    assert (probe.logits(test.x).argmax(1) == test.codes).all()
    assert dict(probe.table)[probe.strength] == 1
    assert probe.notes == []


@pytest.mark.parametrize("k", [2, 5])
def test_the_standardisation_is_folded_in(k):
    train, valid = points(30, CENTRES[:k], 2.0, 2), points(30, CENTRES[:k], 2.0, 3)
    train.x[:, 4] = 7  # a feature that is always the same
    probe = fit_probe(train, valid, k, [0.1])
    scaler = StandardScaler().fit(train.x.numpy())
    model = LogisticRegression(C=0.1, max_iter=1000)
    model.fit(scaler.transform(train.x.numpy()), train.codes.numpy())
    expected = torch.tensor(model.decision_function(scaler.transform(valid.x.numpy())))
    logits = probe.logits(valid.x)
    assert logits.shape == (len(valid.x), k)
    found = logits[:, 1] - logits[:, 0] if k == 2 else logits
    assert (found - expected).abs().max() < 1e-4
    expected = model.score(scaler.transform(valid.x.numpy()), valid.codes.numpy())
    assert probe.table == [(0.1, pytest.approx(expected))]


def test_the_strength_is_the_best_on_validation_data():
    train, valid = points(4, CENTRES / 3, 1.5, 2), points(60, CENTRES / 3, 1.5, 3)
    strengths = [100.0, 1e-5, 0.01, 1.0, 0.01]
    probe = fit_probe(train, valid, 5, strengths)
    assert [c for c, _ in probe.table] == [1e-5, 0.01, 1.0, 100.0]
    accuracies = [a for _, a in probe.table]
    assert len(set(accuracies)) > 1
    best = max(accuracies)
    assert probe.strength == next(c for c, a in probe.table if a == best)
    assert ((probe.logits(valid.x).argmax(1) == valid.codes).double().mean()) == best
    lone = {c: fit_probe(train, valid, 5, [c]) for c in (1e-5, 0.01, 1.0, 100.0)}
    norms = [p.weight.mul(train.x.std(0)).norm() for p in lone.values()]
    assert norms == sorted(norms)  # less penalty, larger weights
    for c, accuracy in probe.table:  # starting from another fit leads to the same place
        assert lone[c].table[0][1] == pytest.approx(accuracy, abs=0.01)


def test_a_tie_goes_to_the_stronger_penalty():
    easy = points(30, CENTRES, 0.1, 2), points(30, CENTRES, 0.1, 3)
    probe = fit_probe(*easy, 5, [1.0, 0.1, 10.0])
    assert [a for _, a in probe.table] == [1, 1, 1]
    assert probe.strength == 0.1


def test_a_class_without_training_rows_is_never_the_answer():
    train, valid = points(30, CENTRES, 0.3, 2), points(30, CENTRES, 0.3, 3)
    for kept, n_classes in (([1, 3, 4], 5), ([1, 3], 7)):
        rows = torch.isin(train.codes, torch.tensor(kept))
        part = Features(train.x[rows], train.codes[rows], train.images[rows], train.scales[rows])
        probe = fit_probe(part, valid, n_classes, [0.1])
        assert probe.weight.shape == (n_classes, 12)
        absent = sorted(set(range(n_classes)) - set(kept))
        assert (probe.weight[absent] == 0).all()
        assert (probe.bias[absent] == ABSENT).all()
        logits = probe.logits(100 * valid.x)
        assert not torch.isin(probe.logits(valid.x).argmax(1), torch.tensor(absent)).any()
        assert logits.isfinite().all()
        answers = probe.logits(part.x).argmax(1)
        assert (answers == part.codes).all()


def test_a_fit_that_does_not_converge_is_a_note():
    train, valid = points(30, CENTRES, 2.0, 2), points(30, CENTRES, 2.0, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe = fit_probe(train, valid, 5, [0.01, 10.0], max_iterations=2)
        assert fit_probe(train, valid, 5, [0.01, 10.0]).notes == []
    assert probe.notes == [
        f"strength {c}: stopped after 2 steps, not converged" for c in ("0.01", "10")
    ]


def test_what_cannot_be_fitted():
    train, valid = points(5, CENTRES, 1.0, 2), points(5, CENTRES, 1.0, 3)
    for strengths in ([], [0.0], [-1.0, 1.0], [float("inf")], [float("nan")]):
        with pytest.raises(UserError, match=r"probe\.strengths: .*positive"):
            fit_probe(train, valid, 5, strengths)
    with pytest.raises(UserError, match="all training features are of one class"):
        fit_probe(replace(train, codes=train.codes * 0), valid, 5)
    with pytest.raises(UserError, match="no validation features"):
        fit_probe(train, valid.at(32), 5)
    broken = replace(train, x=train.x.clone())
    broken.x[3, 2] = float("nan")
    with pytest.raises(UserError, match="training features are not finite"):
        fit_probe(broken, valid, 5)


# ---- the whole --------------------------------------------------------------------------------


@pytest.mark.parametrize("views", ["native", "all"])
def test_a_probed_network_answers_as_its_probe(saved, shapes, tmp_path, views):
    before = {n: p.clone() for n, p in saved.model.state_dict().items()}
    result, report = linear_probe(saved, shapes.train, shapes.valid, views=views, folder=tmp_path)
    assert result is saved
    changed = {n for n, p in result.model.state_dict().items() if not torch.equal(p, before[n])}
    assert changed == {"head.0.fc.weight", "head.0.fc.bias"}
    (head,) = report["heads"]
    rows = 3 if views == "all" else 1
    assert report["rows"] == {"train": 80 * rows, "valid": 41 * rows}
    assert report["images"] == {"train": 80, "valid": 41}
    assert report["features"] == classifiers(saved.model)[0].in_features
    assert report["unreadable"] == {"train": [], "valid": []}
    assert report["seconds"]["features"] > 0 < report["seconds"]["fit"]
    assert head["notes"] == []
    json.dumps(report, allow_nan=False)
    best = max(row["accuracy"] for row in head["table"])
    save_model_folder(tmp_path / "model", result)
    if views == "all":
        found = sweep(result, shapes.valid, SCALES).accuracy
        assert np.mean(found) == pytest.approx(best)
    else:
        predictions = Predictor.from_run(tmp_path, "cpu").predict([s.image for s in shapes.valid])
        right = [p.label == s.label for p, s in zip(predictions, shapes.valid)]
        assert np.mean(right) == pytest.approx(best)


def test_private_heads_are_fitted_on_their_own_rows(shapes, tmp_path):
    saved = replace(saved_net(small_net("snet")), classes=list(shapes.classes))
    train, valid = (extract(saved, part, "all") for part in (shapes.train, shapes.valid))
    result, report = linear_probe(saved, shapes.train, shapes.valid, [0.01, 1], folder=tmp_path)
    assert report["views"] == "all"
    assert [head["scales"] for head in report["heads"]] == [[s] for s in SCALES]
    by_size = sweep(result, shapes.valid, SCALES).accuracy
    for layer, scale, head, accuracy in zip(
        classifiers(result.model), SCALES, report["heads"], by_size, strict=True
    ):
        expected = fit_probe(train.at(scale), valid.at(scale), 10, [0.01, 1])
        assert torch.equal(layer.weight, expected.weight)
        assert head["strength"] == expected.strength
        assert max(row["accuracy"] for row in head["table"]) == pytest.approx(accuracy)
    with pytest.raises(ValueError, match="1 probes for 3"):
        set_classifier(result.model, [expected])


def test_a_second_probe_takes_what_was_kept(saved, shapes, tmp_path, monkeypatch):
    _, first = linear_probe(saved, shapes.train, shapes.valid, folder=tmp_path)

    def fails(*given):
        raise AssertionError("computed again")

    monkeypatch.setattr(features_module, "penultimate", fails)
    _, again = linear_probe(saved, shapes.train, shapes.valid, folder=tmp_path)
    assert again["heads"] == first["heads"]
    with pytest.raises(AssertionError, match="computed again"):
        linear_probe(saved, shapes.train, shapes.valid, views="down", folder=tmp_path)


def test_too_many_unreadable_training_images_end_it(saved, shapes, tmp_path):
    broken = [*shapes.train, Sample(b"", shapes.classes[0])]
    with pytest.raises(UserError, match="1 of 81 training images cannot be read"):
        linear_probe(saved, broken, shapes.valid, folder=tmp_path)
    _, report = linear_probe(saved, broken, shapes.valid, folder=tmp_path, max_bad=0.05)
    assert len(report["unreadable"]["train"]) == 1
    assert report["images"]["train"] == 80
    with pytest.raises(UserError, match="empty"):
        linear_probe(saved, broken, shapes.valid, folder=tmp_path / "new", on_bad="stop")


class Ended(Exception):
    """What a check raises."""


def test_it_can_be_ended_between_two_steps(saved, shapes, tmp_path):
    """Two batches of training images, two of the others, two fits; finished parts are kept."""
    before = classifiers(saved.model)[0].weight.clone()
    for steps, kept in enumerate((0, 0, 1, 1, 2, 2)):
        left = iter(range(steps))

        def check(left=left):
            if next(left, None) is None:
                raise Ended

        folder, strengths = tmp_path / str(steps), (0.1, 1.0)
        with pytest.raises(Ended):
            linear_probe(
                saved, shapes.train, shapes.valid, strengths, bs=40, folder=folder, check=check
            )
        assert len(list(folder.rglob("*.safetensors"))) == kept
        assert torch.equal(classifiers(saved.model)[0].weight, before)


def test_refit_takes_what_was_held_out(saved_run, shapes, tmp_path):
    saved = load_model_folder(saved_run)
    train, valid = shapes.train[:40], shapes.train[40:60]
    strengths = [0.001, 0.1]
    chosen, first = linear_probe(saved, train, valid, strengths, folder=tmp_path)
    before = classifiers(chosen.model)[0].weight.clone()
    again, report = linear_probe(
        load_model_folder(saved_run), train, valid, strengths, folder=tmp_path, refit=True
    )
    assert report["heads"][0]["table"] == first["heads"][0]["table"]
    strength = report["heads"][0]["strength"]
    whole, _ = linear_probe(
        load_model_folder(saved_run), [*train, *valid], valid, [strength], folder=tmp_path / "both"
    )
    weight = classifiers(again.model)[0].weight
    assert not torch.allclose(weight, before, atol=1e-3)
    same = (weight - classifiers(whole.model)[0].weight).abs().max()
    other = (before - classifiers(whole.model)[0].weight).abs().max()
    assert same < other / 10  # as near as two ways down to the same minimum end
