"""A pass is taken up where it was left: the same batches, whatever workers and bad images are."""

import copy
import io
import warnings

import hostile
import pytest
import torch
from fastai.learner import load_learner
from test_bad_images import photos
from test_stream import _no_pause, root  # noqa: F401  fixtures
from test_stream import loaders as stream_loaders

from msun_fastai.data.folders import source_from_folder
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.data.samples import Sample, make_source
from msun_fastai.errors import UserError

SCALES = (16, 32, 64)
WORKERS = (0, 1, 2, 4)


def fresh(source, workers=0, **options):
    """A training loader whose random state is none that was there before."""
    given = {"scales": SCALES, "bs": 7, "num_workers": workers, "device": "cpu", "views": "native"}
    given |= {"drop_last": False, "augment": "rrc", "max_bad": 0.9}
    return NativeImageDataLoaders.from_source(source, **{**given, **options}).train


def through_a_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def take(dl, n):
    """The first `n` batches of a pass, which is left there, and its state then."""
    batches = []
    for batch in dl:
        batches.append(batch)
        if len(batches) == n:
            break
    return batches, through_a_file(dl.pass_state())


def whole(dl):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(dl)


def assert_same(a, b):
    assert len(a) == len(b)
    for (x, y), (other_x, other_y) in zip(a, b):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


@pytest.mark.parametrize(
    ("workers", "views"), [(0, "all"), (2, "all"), *((w, "native") for w in WORKERS)]
)
def test_a_pass_that_is_resumed_is_the_same(shapes, workers, views):
    dl = fresh(shapes, workers, views=views)
    first_state = dl.pass_state()
    assert first_state == dl.pass_state(next=True)
    first, second, third = list(dl), list(dl), list(dl)
    assert not torch.equal(first[0][0], second[0][0])
    again = fresh(shapes, (workers + 1) % 3, views=views)
    again.resume_pass(first_state, 0)
    assert_same(list(again), first)
    for seen in (1, len(second) - 1) if workers < 2 else (5,):
        head, state = take(again, seen)
        assert_same(head, second[:seen])
        again = fresh(shapes, workers, views=views)
        again.resume_pass(state, seen)
        assert again.pass_state() == again.pass_state(next=True) == state
        assert len(again) == len(dl) == len(second)
        assert_same(list(again), second[seen:])
        again.resume_pass(state, len(second))
        assert list(again) == []
        between = through_a_file(again.pass_state(next=True))
        assert_same(list(again), third)
        again.resume_pass(between, 2)
        assert_same(list(again), third[2:])
        again.resume_pass(first_state, len(first))
        assert list(again) == []  # as it was before the next head is taken


def test_what_was_seen_is_not_decoded(shapes, monkeypatch):
    dl = fresh(shapes, cache=0)
    state, n = dl.pass_state(), len(list(dl))
    decoded = []
    real = type(dl)._decoded
    monkeypatch.setattr(type(dl), "_decoded", lambda *a: decoded.append(a) or real(*a))
    dl.resume_pass(state, n - 1)
    (last,) = list(dl)
    assert len(decoded) == len(last[0])


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """Every third training image of each class is bad, one so that only decoding shows it."""
    folder = tmp_path_factory.mktemp("spoilt")
    source = source_from_folder(photos(folder / "good", 30), 0.2)
    cases = dict.fromkeys(range(20), hostile.BAD["PNG of noise"])
    cases[20] = hostile.BAD["text"]
    files = hostile.write(folder / "bad", cases)
    train = list(source.train)
    for k, file in enumerate(files):
        train.insert(1 + 3 * k, Sample(file, "dark"))
    return make_source("photos", train, source.valid, source.classes)


@pytest.mark.parametrize(
    ("workers", "bs"), [(0, 1), (0, 2), (0, 5), (1, 1), (1, 2), (2, 2), (4, 1), (4, 2)]
)
def test_with_bad_images_too(spoilt, workers, bs):
    """Batches of which they leave nothing were none: many, with so small ones."""
    options = {"bs": bs, "scales": (16, 32)}
    dl = fresh(spoilt, workers, **options)
    begun = dl.pass_state()
    passes = [whole(dl) for _ in range(2)]
    assert len(dl.bad) == 21
    assert len(passes[0]) < len(dl) or bs == 5
    halfway = len(passes[0]) // 2
    for seen, workers_then in ((5, 0), (halfway, 2)) if workers < 2 else ((halfway, 0),):
        start = fresh(spoilt, workers, **options)
        start.resume_pass(begun, 0)
        head, state = take(start, seen)
        assert_same(head, passes[0][:seen])
        again = fresh(spoilt, workers_then, **options)
        again.resume_pass(state, seen)
        assert again.bad.marks() == [tuple(mark) for mark in [*state["bad"], *state["found"]]]
        assert_same(whole(again), passes[0][seen:])
        assert_same(whole(again), passes[1])
        assert sorted(again.bad.marks()) == sorted(dl.bad.marks())


@pytest.mark.parametrize("workers", WORKERS)
def test_a_stream_is_replayed(root, workers):  # noqa: F811
    def fresh():
        return stream_loaders(root, workers, bs=8, views="native", augment="light").train

    dl = fresh()
    first_state = through_a_file(dl.pass_state())
    passes = [list(dl) for _ in range(3)]
    again = fresh()
    again.resume_pass(first_state, 0)
    assert_same(list(again), passes[0])
    head, state = take(again, 3)
    assert_same(head, passes[1][:3])
    again = fresh()
    again.resume_pass(state, 3)
    assert_same(list(again), passes[1][3:])
    assert again.scale_counts() == {16: 60, 32: 30}
    assert_same(list(again), passes[2])


@pytest.mark.parametrize("workers", [0, 2])
def test_torchs_global_generator_is_left_alone(shapes, workers):
    dl = fresh(shapes, workers)
    before = torch.get_rng_state()
    a = list(dl)
    assert torch.equal(before, torch.get_rng_state())
    assert len(a) == len(dl)


def test_another_dataset_or_batch_size_is_refused(shapes):
    state = fresh(shapes).pass_state()
    for other in (fresh(shapes, bs=8), fresh(shapes.limited(50)), fresh(shapes, world=2)):
        with pytest.raises(UserError, match="leave data, bs and number of processes"):
            other.resume_pass(state, 1)


def test_loaders_are_still_copied_and_exported(tmp_path, shapes, make_learner):
    learn = make_learner()
    learn.path = tmp_path
    learn.fit(1, 1e-3)
    other = copy.deepcopy(learn.dls.train)
    assert_same(list(other), list(learn.dls.train))
    image = shapes.valid[0].image
    expected = learn.predict(image)[2]
    learn.export("whole.pkl")
    again = load_learner(tmp_path / "whole.pkl")
    assert torch.allclose(again.predict(image)[2], expected)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("bs", [1, 2])
def test_bad_images_leave_processes_in_step(spoilt, bs, workers):
    """Two of five are bad, so that of many shares nothing is left."""
    loaders = []
    for rank in (0, 1):
        loaders.append(fresh(spoilt, workers, bs=bs, scales=(16, 32), rank=rank, world=2))
    loaders[1].rng.setstate(loaders[0].rng.getstate())
    first, second = map(whole, loaders)
    assert [len(x) for x, _ in first] == [len(x) for x, _ in second]
    assert [x.shape for x, _ in first] == [x.shape for x, _ in second]
    assert len(loaders[0]) - 1 <= len(first) <= len(loaders[0])  # one header was bad before
    assert {i for dl in loaders for i, _ in dl.bad.marks()} == {
        i for i, s in enumerate(loaders[0].dataset.items) if "bad" in s.image.name
    }


def test_a_scale_of_which_nothing_can_be_read(spoilt):
    """The bad ones are 80 pixels wide, the others here 16."""
    bad = [s for s in spoilt.train if "bad" in s.image.name][:4]
    good = [s for s in spoilt.train if "good" in s.image.name and int(s.image.stem[4:]) % 2]
    source = make_source("x", [*bad, *good], spoilt.valid, spoilt.classes)
    for world, sides in ((1, {16}), (2, {16, 32})):
        seen = whole(fresh(source, scales=(16, 32), world=world))
        assert {x.shape[-1] for x, _ in seen} == sides
