"""One projection of features at several sizes, and how well classes part in them."""

import numpy as np
import pytest
import torch
from test_heads import SCALES, saved_net, small_net

from msun_fastai.analysis.pca import choose_classes, project, separation
from msun_fastai.analysis.plots import plot_pca
from msun_fastai.analysis.size_pca import size_features, size_pca
from msun_fastai.data.images import open_image
from msun_fastai.data.resize import fitted
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.models.heads import penultimate
from msun_fastai.predict import normalize


@pytest.fixture(scope="module")
def samples(shapes):
    labels = sorted({s.label for s in shapes.train})[:3]
    return [Sample(s.image, s.label) for s in shapes.train if s.label in labels]


def test_one_projection_for_all_sizes():
    rng = np.random.default_rng(0)
    features = {s: rng.normal(size=(30, 6)).astype(np.float32) * [9, 5, 1, 1, 1, 1] for s in (8, 9)}
    features[9] += 3
    found = project(features, np.arange(30) % 3)
    rows = np.concatenate(list(features.values())).astype(np.float64)
    rows -= rows.mean(0)
    _, values, axes = np.linalg.svd(rows, full_matrices=False)
    assert found.explained == pytest.approx(values[:2] ** 2 / (values**2).sum())
    points = np.concatenate([found.points[8], found.points[9]])
    assert np.abs(points) == pytest.approx(np.abs(rows @ axes[:2].T), abs=1e-6)
    assert found.separation_2d[9] == separation(found.points[9], np.arange(30) % 3)


def test_separation_by_hand():
    """Classes {0, 1} and {10, 11} on a line: a = 1; b = 10.5, 9.5, 9.5, 10.5."""
    x = np.array([[0.0], [1], [10], [11]])
    expected = np.mean([1 - 1 / 10.5, 1 - 1 / 9.5] * 2)
    assert separation(x, np.array([0, 0, 1, 1])) == pytest.approx(expected)
    assert separation(x, np.array([0, 1, 0, 1])) < 0
    assert separation(x, np.array([0, 0, 0, 0])) is None
    assert separation(x, np.array([0, 1, 2, 3])) is None


@pytest.mark.parametrize(
    "rows", [np.zeros((9, 4)), np.ones((1, 4)), np.ones((9, 1)), np.full((9, 4), np.nan)]
)
def test_nothing_to_project(rows):
    with pytest.raises(UserError, match="nothing to project"):
        project({32: rows}, np.arange(len(rows)))


def test_which_classes():
    samples = [Sample(None, label) for label in "ffaabbbccdde" + "g" * 3]
    assert choose_classes(samples) == ["a", "b", "c", "d", "g"]  # not e, and f comes behind d
    assert choose_classes(samples, ["g", "a", "g"]) == ["g", "a"]
    with pytest.raises(UserError, match="classes: no image of 'x'"):
        choose_classes(samples, ["a", "x"])
    with pytest.raises(UserError, match="classes: 1; two or more"):
        choose_classes(samples, ["a"])


@pytest.mark.parametrize("method", ["msun", "snet", "vanilla"])
def test_the_features_are_what_the_classifier_sees(method, samples):
    saved = saved_net(small_net(method).train())
    found = size_features(saved, samples, (20, 64))
    assert saved.model.training
    assert [found.labels[c] for c in found.codes] == [s.label for s in samples]
    last = len(saved.model.entry_scales) - 1
    for size, i in ((20, 0), (64, last)):
        side = saved.model.entry_scales[i]
        views = []
        for sample in samples[:4]:
            with open_image(sample.image) as image:
                views.append(fitted(image, size))
        x = normalize(torch.stack(views), saved.preprocessing)
        x = torch.nn.functional.interpolate(x, (side, side), mode="bilinear", antialias=True)
        expected = penultimate(saved.model, x, i)
        assert found.x[size][:4] == pytest.approx(expected.numpy(), abs=1e-5)


def test_private_heads_are_told(samples):
    for method, count in (("msun", 0), ("vanilla", 0), ("snet", 1)):
        found = size_pca(saved_net(small_net(method)), samples, (16, 64))
        assert len(found.notes) == count
    assert "not comparable" in found.as_dict()["notes"][0]
    assert not size_pca(saved_net(small_net("snet")), samples, (60, 64)).notes  # both of one scale


def test_the_network_at_the_size_itself(samples):
    saved = saved_net(small_net("vanilla"))
    native = size_pca(saved, samples, (32, 64), resize="native")
    resized = size_pca(saved, samples, (32, 64))
    assert (native.sides, resized.sides) == ({32: 32, 64: 64}, {32: 64, 64: 64})
    assert native.projection.separation[32] != resized.projection.separation[32]


def test_the_picture(samples):
    found = [size_pca(saved_net(small_net()), samples, SCALES, name=name) for name in ("a", "b")]
    found[1].projection.separation[16] = None
    found[1].projection.separation[32] = -0.001
    axes = plot_pca(found).axes
    assert len(axes) == 6
    assert {a.get_xlim() for a in axes[:3]} == {axes[0].get_xlim()}
    assert axes[3].get_title() == "16 px\nseparation not defined"
    assert axes[4].get_title() == "32 px\nseparation 0.00"
    assert sum(len(c.get_offsets()) for c in axes[0].collections) == len(samples)
    rows = found[0].rows()
    assert len(rows) == 3 * len(samples)
    assert set(rows[0]) == {"model", "size", "class", "x", "y"}
