"""Streams: every image once an epoch, over ranks and workers, in batches of one scale."""

import io
import json
import warnings
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hostile import BAD
from PIL import Image as Pillow

from msun_fastai.data import stream as streams
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.data.mirror import source_from_mirror
from msun_fastai.data.stream import stream_source
from msun_fastai.data.stream_dl import StreamDL
from msun_fastai.errors import BadImageWarning, UserError
from msun_fastai.processes import process_rank

SCALES = (16, 32)
COUNT, SHARDS = 90, 3


def encoded(level, side):
    out = io.BytesIO()
    Pillow.fromarray(np.full((side, side + 6, 3), level, np.uint8)).save(out, "PNG")
    return out.getvalue()


def shards(folder, split, count=COUNT, n_shards=SHARDS, bad=()):
    """`count` images of three classes, told apart by their grey level; some of them bad."""
    from datasets import ClassLabel, Dataset, Features, Image

    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    data = [encoded(i + 1, 16 if i % 3 else 40) for i in range(count)]
    for i, case in bad:
        data[i] = BAD[case]
    rows = {"image": [{"bytes": d, "path": f"{i}.png"} for i, d in enumerate(data)]}
    table = Dataset.from_dict({**rows, "label": [i % 3 for i in range(count)]}, features)
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for k in range(n_shards):
        name = f"{split}-{k:05d}-of-{n_shards:05d}.parquet"
        table.shard(n_shards, k, contiguous=True).to_parquet(folder / "data" / name)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch):
    """`datasets` waits 5 s after a shuffled pass for its threads to end; these shards are tiny."""
    import datasets

    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0, raising=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    shards(root / "grey", "train")
    shards(root / "grey", "test", 30, 2)
    return root


def loaders(root, workers=0, **options):
    given = {"scales": SCALES, "bs": 8, "num_workers": workers, "device": "cpu", "augment": "none"}
    return NativeImageDataLoaders.from_stream(stream_source("grey", root), **{**given, **options})


def levels(dl):
    """Every image of a pass, by its grey level."""
    return [round(level) for x, _ in dl for level in (x[:, 0].mean((1, 2)) * 255).tolist()]


@pytest.mark.parametrize(
    ("workers", "world", "views"),
    [(w, r, "native") for w in (0, 1, 2, 4) for r in (1, 2, 3)] + [(0, 3, "all"), (4, 1, "all")],
)
def test_every_image_once_an_epoch_over_ranks_and_workers(root, workers, world, views):
    """Of training in step see below: there some images of the end have no batch."""
    seen, count = [], COUNT if world == 1 else 30
    for rank in range(world):
        dl = loaders(root, workers, rank=rank, world=world, views=views)[int(world > 1)]
        seen.append(levels(dl))
        assert len(seen[-1]) == len(dl.share) == count // world
    assert sorted(level for part in seen for level in part) == list(range(1, count + 1))


def test_another_order_each_epoch_and_the_same_for_a_seed(root, monkeypatch):
    monkeypatch.setattr(streams, "SHUFFLED", 20)
    first, again, other = (loaders(root, seed=s, views="all").train for s in (1, 1, 2))
    a, b = levels(first), levels(first)
    assert a != b
    assert sorted(a) == sorted(b)
    assert a == levels(again) != levels(other)
    assert sorted(levels(loaders(root, views="all").valid)) == list(range(1, 31))


def test_a_batch_has_one_side_and_its_labels(root):
    dls = loaders(root, 2, views="native")
    sides = Counter()
    for x, y in dls.train:
        assert x.shape[-1] in SCALES
        assert ((x[:, 0].mean((1, 2)) * 255).round().int() - 1).remainder(3).tolist() == y.tolist()
        sides[x.shape[-1]] += len(x)
    assert sides == dls.train.scale_counts() == {16: 60, 32: 30}
    assert list(dls.vocab) == ["a", "b", "c"]
    assert len(dls.train) == 11 + 2 * 2


def test_a_stream_is_limited_before_it_is_loaded(root):
    with pytest.raises(UserError, match=r"source.first\(n\)"):
        loaders(root, limit=5)


def test_short_batches_can_be_left_out(root):
    sizes = [len(x) for x, _ in loaders(root, views="native", drop_last=True).train]
    assert set(sizes) == {8}


def test_a_learner_trains_on_it_and_predicts(root, make_learner):
    learn = make_learner(dls=loaders(root, 2, views="native", augment="light"))
    assert isinstance(learn.dls.train, StreamDL)
    learn.fit(1, 1e-3)
    assert learn.recorder.values[0][2] is not None
    image = Pillow.fromarray(np.full((50, 50, 3), 9, np.uint8))
    assert learn.predict(image)[0] in ("a", "b", "c")
    dl = learn.dls.test_dl([np.zeros((9, 9, 3), np.uint8)] * 3)
    assert learn.get_preds(dl=dl)[0].shape == (3, 3)
    with pytest.raises(UserError, match="no order to come back in"):
        learn.get_preds()
    assert len(learn.get_preds(reorder=False)[0]) == 30


def test_bad_images_of_a_stream(tmp_path):
    bad = [(0, "text"), (7, "PNG of noise"), (80, "empty")]
    shards(tmp_path / "grey", "train", bad=bad)
    shards(tmp_path / "grey", "test", 30)
    for workers in (0, 2):
        dls = loaders(tmp_path, workers, max_bad=0.05)
        with pytest.warns(BadImageWarning, match="3 of 90 training images.*0.png"):
            seen = levels(dls.train)
        assert sorted(seen) == [i + 1 for i in range(COUNT) if i not in (0, 7, 80)]
        assert len(dls.train.bad.reasons()) == 3
        with pytest.raises(UserError, match=r"of 90 training images cannot be read, more than 1"):
            levels(loaders(tmp_path, workers).train)
    with pytest.raises(UserError, match=r"0.png: not an image that can be read"):
        levels(loaders(tmp_path, on_bad_image="stop").train)


@pytest.mark.slow
def test_finetune_on_a_stream(run, root, tmp_path):
    words = ("finetune", "--dataset", "grey", "--data-root", root, "--set", "data.stream=true")
    words += ("--arch", "thin_resnet10", "--no-pretrained", "--scales", "16,32", "--bs", "8")
    words += ("--set", "train.report=false", "--set", "data.workers=0")
    code, out, err = run(*words, "--epochs", "1", "--run-dir", tmp_path / "r", "--json", "-")
    metrics = json.loads(out)
    assert code == 0, err
    assert (metrics["train_images"], metrics["valid_images"], metrics["test_images"]) == (90, 30, 0)
    assert metrics["routing"] == {"16": 20, "32": 10}
    assert metrics["measured_images"] == 30
    rights = [a * 30 for a in [*metrics["accuracy"], metrics["native_accuracy"]]]
    assert rights == pytest.approx([round(r) for r in rights], abs=1e-3)
    few = ("--limit", "20", "--epochs", "1")
    code, out, _ = run(*words, *few, "--run-dir", tmp_path / "s", "--json", "-")
    assert json.loads(out)["train_images"] == 20
    for more in (("--set", "data.carve=0.1"), ("--set", "data.cache=1"), ("--data", "x")):
        assert run(*words, *more)[0] == 2
    code, _, err = run("finetune", "--dataset", "digits", "--set", "data.hub_id=a/b")
    assert (code, "for data.stream" in err) == (2, True)


def test_what_is_missing(root, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="no Parquet files in"):
        stream_source("grey", tmp_path)
    shards(tmp_path / "grey", "train")
    with pytest.raises(UserError, match="no split validation or test; it has train"):
        stream_source("grey", tmp_path)
    shards(tmp_path / "cifar10", "train")
    shards(tmp_path / "cifar10", "test")
    with pytest.raises(UserError, match="3 classes; cifar10 has 10"):
        stream_source("cifar10", tmp_path)


def test_from_the_hub(root, monkeypatch):
    """The hub's own function, replaced by one that reads a local repository the same way."""
    import datasets

    asked, real = [], datasets.load_dataset

    def load(repository, revision, data_files, split, streaming):
        asked.append((repository, revision, split))
        pattern = data_files[split][0]
        files = [str(f) for f in sorted((root / "grey" / "data").glob(pattern.rpartition("/")[2]))]
        return real("parquet", data_files={split: files}, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", load)
    entry = streams.CATALOG["imagenet"]
    monkeypatch.setitem(
        streams.CATALOG,
        "grey",
        SimpleNamespace(
            **{**entry.__dict__, "name": "grey", "classes": 3, "valid": "", "test": "test"}
            | {"splits": {"train": 90, "test": 30}, "hub_id": "some/grey"}
        ),
    )
    source = stream_source("grey", None, revision="v2")
    assert asked == [("some/grey", "v2", "train"), ("some/grey", "v2", "test")]
    assert (len(source.train), len(source.valid), sum(1 for _ in source.train)) == (90, 30, 90)

    def fail(*args, **options):
        raise OSError("no network")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UserError, match=r"some/grey at main cannot be streamed \(no network\)"):
        stream_source("grey")


def test_the_rank_is_the_launchers(monkeypatch):
    assert process_rank() == (0, 1)
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert process_rank() == (2, 4)


def test_a_stream_and_a_mirror_hold_the_same(root):
    mirror = source_from_mirror(root / "grey")
    stream = stream_source("grey", root)
    assert [s.label for s in stream.train] == [s.label for s in mirror.train]
    assert [s.image.open_bytes() for s in stream.valid] == [
        s.image.open_bytes() for s in mirror.valid
    ]
    assert torch.equal(torch.tensor(len(stream.train)), torch.tensor(len(mirror.train)))


@pytest.mark.slow
def test_a_bad_image_counts_once_however_often_it_comes(run, tmp_path):
    shards(tmp_path / "grey", "train", bad=[(7, "PNG of noise")], count=120)
    shards(tmp_path / "grey", "test", 30)
    words = ("finetune", "--dataset", "grey", "--data-root", tmp_path, "--set", "data.stream=true")
    words += ("--arch", "thin_resnet10", "--no-pretrained", "--scales", "16,32", "--bs", "8")
    words += ("--set", "train.report=false", "--set", "data.workers=0")
    code, out, err = run(*words, "--epochs", "3", "--run-dir", tmp_path / "r", "--json", "-")
    assert code == 0, err
    assert json.loads(out)["bad_images"] == {"train": 1, "valid": 0, "test": 0}
    assert (tmp_path / "r" / "bad_images.csv").read_text().count("7.png") == 1


@pytest.mark.parametrize("bs", [4, 7, 30])
@pytest.mark.parametrize("workers", [0, 3])
def test_never_more_batches_than_announced_and_none_of_one(root, bs, workers):
    dl = loaders(root, workers, views="native", bs=bs).train
    sizes = [len(x) for x, _ in dl]
    assert sum(sizes) == COUNT
    assert len(sizes) <= len(dl)
    assert min(sizes) > 1
    assert max(sizes) <= bs + 1


def test_shards_of_unequal_length(tmp_path):
    shards(tmp_path / "grey", "test", 30)
    for k, count in enumerate((80, 5, 5)):
        shards(tmp_path / f"part{k}", "train", count, 1)
        (tmp_path / f"part{k}" / "data" / "train-00000-of-00001.parquet").rename(
            tmp_path / "grey" / "data" / f"train-{k:05d}-of-00003.parquet"
        )
    for world in (1, 2, 3):
        parts = [stream_source("grey", tmp_path).train.of_rank(r, world) for r in range(world)]
        assert [sum(1 for _ in part) for part in parts] == [len(part) for part in parts]
        assert sum(map(len, parts)) == 90
    first = stream_source("grey", tmp_path).first(60)
    assert (len(first.train), len(first.valid)) == (60, 30)
    assert first.train[59].image.name.endswith("59.png")


def test_a_row_without_an_image(tmp_path, run):
    from datasets import ClassLabel, Dataset, Features, Image

    shards(tmp_path / "grey", "test", 30)
    rows = [{"bytes": encoded(i + 1, 20), "path": None} for i in range(40)]
    rows[3], rows[5] = None, {"bytes": None, "path": str(tmp_path / "here.png")}
    (tmp_path / "here.png").write_bytes(encoded(6, 20))
    features = Features({"image": Image(), "label": ClassLabel(names=["a", "b", "c"])})
    table = Dataset.from_dict({"image": rows, "label": [i % 3 for i in range(40)]}, features)
    table.to_parquet(tmp_path / "grey" / "data" / "train-00000-of-00001.parquet")
    code, out, _ = run("datasets", "scan", "--dataset", "grey", "--data-root", tmp_path)
    assert code == 1
    assert "row 3: no image in this row" in out
    assert "1 cannot be read" in out
    dls = loaders(tmp_path, max_bad=0.1)
    with pytest.warns(BadImageWarning, match="no image in this row"):
        assert len(levels(dls.train)) == 39


def test_what_is_no_parquet_file(tmp_path, run):
    shards(tmp_path / "grey", "train")
    shards(tmp_path / "grey", "test")
    file = tmp_path / "grey" / "data" / "test-00000-of-00003.parquet"
    file.write_bytes(file.read_bytes()[:100])
    words = ("finetune", "--dataset", "grey", "--data-root", tmp_path, "--no-pretrained")
    for more in ((), ("--set", "data.stream=true")):
        code, _, err = run(*words, *more)
        assert code == 2
        assert err.startswith(f"msun-fastai: {file}: not a Parquet file that can be read")


@pytest.mark.parametrize(("workers", "world"), [(0, 2), (2, 2), (0, 3), (4, 3)])
def test_processes_train_in_step_on_a_stream(root, workers, world):
    """30 or 45 images each in batches of 7; of three shards a worker has one or none."""
    dls = [loaders(root, workers, rank=r, world=world, views="all", bs=7) for r in range(world)]
    for _ in range(2):
        sizes = [[len(x) for x, _ in dl.train] for dl in dls]
        assert sizes == [[7] * (COUNT // world // 7)] * world
        assert {len(dl.train) for dl in dls} == {len(sizes[0])}
    state = dls[0].train.pass_state(next=True)
    whole = [x for x, _ in dls[0].train]
    dls[0].train.resume_pass(state, 3)
    rest = [x for x, _ in dls[0].train]
    assert len(rest) == len(whole) - 3
    assert all(map(torch.equal, rest, whole[3:]))


def test_scales_that_processes_would_meet_in_another_order(root):
    for more in ({}, {"drop_last": True}):
        train = loaders(root, rank=1, world=2, views="native", **more).train
        with pytest.raises(UserError, match=r"for 2 processes.*take views 'all'"):
            list(train)


@pytest.mark.parametrize("workers", [0, 3])
def test_a_process_with_fewer_images_starts_over(tmp_path, workers):
    """Almost all of one's two shards are bad; then one has no image at all."""
    shards(tmp_path / "grey", "train", n_shards=4, bad=[(i, "text") for i in range(1, 22)])
    shards(tmp_path / "grey", "test", 30)
    options = {"world": 2, "views": "all", "max_bad": 1.0, "bs": 5}
    found = 0
    for rank in (0, 1):
        train = loaders(tmp_path, workers, rank=rank, **options).train
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert [len(x) for x, _ in train] == [5] * 9
        found += len(train.bad)
    assert found == 21
    for file in (tmp_path / "grey" / "data").glob("train-*"):
        file.unlink()
    shards(tmp_path / "grey", "train", n_shards=2, bad=[(i, "text") for i in range(45)])
    ends = []
    for rank in (0, 1):  # which of them has the bad shard depends on the epoch
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                list(loaders(tmp_path, workers, rank=rank, **options).train)
            ends.append("")
        except UserError as error:
            ends.append(str(error))
    assert sorted(map(bool, ends)) == [False, True]
    assert "no 9 batches can be read" in max(ends)
