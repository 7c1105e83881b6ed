"""Damaged and hostile files through scan, training, evaluation and prediction: named, counted, and
never another image's pixels in their place."""

import csv
import errno
import json
import multiprocessing
import os
import pickle
import subprocess
import sys
import warnings

import hostile
import numpy as np
import pytest
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.transforms import IndexSplitter
from PIL import Image

from msun_fastai.data import native_dl
from msun_fastai.data.bad import BadImages, refuse_too_many, too_many
from msun_fastai.data.folders import image_files, source_from_folder
from msun_fastai.data.images import load_pixels, read_header
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.data.native import NativeImage
from msun_fastai.data.samples import Sample, make_source
from msun_fastai.data.scan import find_bad, scan
from msun_fastai.errors import BadImageWarning, ImageError, UserError

SCALES = (16, 32)
GOOD = 12  # in each class and part


def photos(folder, n=GOOD):
    """Two classes told apart by their brightness."""
    rng = np.random.default_rng(1)
    for name, level in (("dark", 30), ("light", 200)):
        (folder / name).mkdir(parents=True)
        for i in range(n):
            side = 16 if i % 2 else 40
            pixels = rng.integers(level, level + 40, (side, side + 4, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"good{i:03d}.png")
    return folder


def test_there_are_enough_kinds():
    assert len(hostile.BAD) >= 40
    assert len(hostile.BOMBS) >= 20


@pytest.mark.parametrize("case", hostile.BAD_HEADERS)
def test_a_bad_header_is_named(tmp_path, case):
    (file,) = hostile.write(tmp_path, {case: hostile.BAD_HEADERS[case]})
    for look in (read_header, load_pixels):
        with pytest.raises(ImageError) as caught:
            look(file)
        assert str(caught.value).startswith(f"{file}: ")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", hostile.BAD_PIXELS)
def test_bad_pixels_are_found_by_decoding(tmp_path, case):
    (file,) = hostile.write(tmp_path, {case: hostile.BAD_PIXELS[case]})
    assert min(read_header(file)) > 0
    for _ in range(2):
        with pytest.raises(ImageError, match="cannot be decoded") as caught:
            load_pixels(file)
        assert str(caught.value).startswith(f"{file}: ")


@pytest.mark.parametrize("case", hostile.WHOLE)
def test_damage_beside_the_pixels_costs_nothing(case):
    assert load_pixels(hostile.WHOLE[case]).shape[:2] in ((8, 8), (64, 80))


BOMB_TEST = """
import resource, sys, time
from pathlib import Path
from msun_fastai.data.images import load_pixels, read_header
from msun_fastai.errors import ImageError
for file in sys.argv[1:]:
    for look in (read_header, load_pixels):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        started = time.process_time()
        try:
            look(Path(file))
            print("decoded")
        except ImageError:
            spent = time.process_time() - started
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            print(round(spent * 1000), grown // 1024)
"""


def test_bombs_are_refused_before_they_cost_anything(tmp_path):
    """Under 200 ms of processor time and 50 MB each, in a process of their own."""
    files = hostile.write(tmp_path, hostile.BOMBS)
    command = [sys.executable, "-W", "ignore", "-c", BOMB_TEST, *map(str, files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = done.stdout.split("\n")[:-1]
    assert len(rows) == 2 * len(files)
    for row in rows:
        milliseconds, megabytes = map(int, row.split())
        assert milliseconds < 200
        assert megabytes < 50


@pytest.mark.parametrize("kind", ["pipe", "broken link", "link to itself"])
def test_what_is_no_regular_file(tmp_path, kind):
    file = photos(tmp_path / "data") / "dark" / "odd.jpg"
    if kind == "pipe":
        os.mkfifo(file)
    else:
        file.symlink_to(file if kind == "link to itself" else tmp_path / "nowhere.jpg")
    assert file in image_files(tmp_path / "data")
    found = find_bad(source_from_folder(tmp_path / "data"))
    (bad,) = found.bad
    said = {"pipe": "not a regular file", "broken link": "no such file"}
    assert bad.reason.startswith(f"{file}: {said.get(kind, 'cannot be opened')}")


def test_a_file_name_that_is_not_utf8(run, tmp_path, saved_run):
    photos(tmp_path / "data")
    name = os.fsencode(tmp_path / "data" / "dark") + b"/\xff\xfe.jpg"
    with open(name, "wb") as file:
        file.write(b"no image")
    code, out, _ = run("datasets", "scan", "--data", tmp_path / "data")
    assert (code, "1 cannot be read" in out) == (1, True)
    words = ("predict", tmp_path / "data", "--model", saved_run, "--out", tmp_path / "rows.csv")
    code, out, _ = run(*words)
    assert (code, "1 of 25 images could not be read" in out) == (1, True)


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """Every kind of bad file in each of three parts, beside good ones."""
    root = tmp_path_factory.mktemp("damaged")
    for part in ("train", "valid", "test"):
        photos(root / part)
        hostile.write(root / part / "dark", hostile.BAD)
    return root


def test_scan_names_them(run, damaged):
    code, out, _ = run("datasets", "scan", "--data", damaged, "--json", "-")
    found = json.loads(out)
    n = len(hostile.BAD)
    assert code == 1
    assert found["parts"] == dict.fromkeys(("train", "valid", "test"), 2 * GOOD + n)
    assert len(found["bad"]) == 3 * len(hostile.BAD_HEADERS)
    code, out, _ = run("datasets", "scan", "--data", damaged, "--decode")
    assert code == 1
    assert f"{3 * n} cannot be read" in out
    for i in range(n):
        assert f"train: {damaged / 'train' / 'dark' / f'bad{i:02d}.jpg'}: " in out
    code, out, _ = run("datasets", "scan", "--data", damaged / "train" / "light" / "..", "--decode")
    assert f"{n} cannot be read" in out


def test_scan_of_good_data(run):
    code, out, _ = run("datasets", "scan", "--dataset", "digits", "--decode")
    assert code == 0
    assert "0 cannot be read" in out
    assert run("datasets", "scan")[0] == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_training_goes_on_without_them(run, damaged, tmp_path, workers):
    """Training, evaluation after each epoch, and the test at every size, in one run."""
    n, run_dir = len(hostile.BAD), tmp_path / "run"
    words = ("finetune", "--data", damaged, "--arch", "thin_resnet10", "--no-pretrained")
    words += ("--set", "train.report=false")
    words += ("--scales", "16,32", "--epochs", "2", "--bs", "8", "--run-dir", run_dir)
    words += ("--set", "data.max_bad=0.9", "--set", f"data.workers={workers}")
    code, out, err = run(*words, "--json", tmp_path / "m.json")
    assert (code, err) == (0, "")
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["bad_images"] == {"train": n, "valid": n, "test": n}
    assert metrics["train_images"] == metrics["test_images"] == 2 * GOOD + n
    assert metrics["measured_images"] == 2 * GOOD
    assert sum(metrics["routing"].values()) == 2 * GOOD
    rights = [a * 2 * GOOD for a in [*metrics["accuracy"], metrics["native_accuracy"]]]
    assert rights == pytest.approx([round(r) for r in rights], abs=1e-3)
    rows = list(csv.DictReader((run_dir / "bad_images.csv").open()))
    for part in ("train", "valid", "test"):
        named = {r["reason"].split(": ")[0] for r in rows if r["part"] == part}
        assert named == {str(damaged / part / "dark" / f"bad{i:02d}.jpg") for i in range(n)}
    assert len(rows) == 3 * n
    assert f"{3 * n} images could not be read" in out
    assert "left out: " in out


def test_prediction_gives_each_its_row(run, damaged, saved_run):
    code, out, _ = run("predict", damaged / "valid", "--model", saved_run, "--json", "-")
    rows = json.loads(out)
    bad = [row for row in rows if row["error"]]
    assert code == 1
    assert len(rows) == 2 * GOOD + len(hostile.BAD)
    assert [r["path"] for r in rows] == [str(f) for f in image_files(damaged / "valid")]
    assert len(bad) == len(hostile.BAD)
    assert all("bad" in row["path"] and row["label"] is None for row in bad)
    assert all(row["error"].startswith(row["path"]) for row in bad)


def test_too_many_bad_images_stop_the_run(run, damaged, tmp_path):
    words = ("finetune", "--data", damaged, "--arch", "thin_resnet10", "--no-pretrained")
    words += ("--set", "train.report=false")
    code, _, err = run(*words, "--scales", "16,32", "--run-dir", tmp_path / "run")
    assert code == 2
    assert f"{len(hostile.BAD_HEADERS)} of {2 * GOOD + len(hostile.BAD)} training images" in err
    assert "more than 1.00%" in err
    assert not (tmp_path / "run").exists()
    code, _, err = run(*words, "--on-bad-image", "stop")
    assert code == 2
    assert f"bad00.jpg: empty file (and {3 * len(hostile.BAD_HEADERS) - 1} more" in err
    code, _, err = run(*words, "--on-bad-image", "ignore")
    assert (code, "on_bad_image: unknown value 'ignore'" in err) == (2, True)


def samples(folder, n=GOOD):
    return source_from_folder(photos(folder, n), 0.5)


def with_bad(folder, *cases, n=60):
    """A source with bad files among its training images."""
    source = samples(folder, n)
    bad = hostile.write(folder / "bad", {case: hostile.BAD[case] for case in cases})
    train = [*(Sample(file, "dark") for file in bad), *source.train]
    return make_source("photos", train, source.valid, source.classes)


def loaders(source, workers=0, **options):
    given = {"scales": SCALES, "bs": 8, "num_workers": workers, "device": "cpu"}
    return NativeImageDataLoaders.from_source(source, **{**given, "drop_last": False, **options})


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("views", ["all", "native"])
def test_what_is_trained_on_is_every_good_image_once(tmp_path, workers, views):
    source = with_bad(tmp_path, "text", "PNG of noise", "JPEG of half its bytes")
    dls = loaders(source, workers, views=views, max_bad=0.1, augment="none")
    with pytest.warns(BadImageWarning, match=r"3 of 63 training images cannot be read"):
        means = [x.mean((1, 2, 3)) for x, _ in dls.train]
    assert sum(map(len, means)) == 60
    assert sorted(dls.train.bad.indices()) == [
        i for i, s in enumerate(dls.train_ds.items) if "bad" in s.image.name
    ]
    with warnings.catch_warnings():  # told once
        warnings.simplefilter("error")
        again = [x.mean((1, 2, 3)) for x, _ in dls.train]
    assert len(set(np.round(np.concatenate(again), 6))) == 60  # every image another one
    assert sorted(np.concatenate(means)) == pytest.approx(sorted(np.concatenate(again)))


def test_a_run_ends_where_too_many_cannot_be_decoded(tmp_path):
    source = with_bad(tmp_path, "PNG of noise", n=98)
    with pytest.raises(UserError, match=r"1 of 99 training images cannot be read, more than 1.00%"):
        list(loaders(source).train)
    with pytest.warns(BadImageWarning):
        assert sum(len(x) for x, _ in loaders(source, max_bad=0.02).train) == 98


def test_stop_names_the_first(tmp_path):
    source = with_bad(tmp_path, "PNG of noise")
    with pytest.raises(ImageError, match=r"bad00.jpg: cannot be decoded"):
        list(loaders(source, on_bad_image="stop").train)


def test_predictions_are_never_fewer_than_their_images(tmp_path, make_learner):
    source = samples(tmp_path / "data")
    learn = make_learner(dls=loaders(source))
    (bad,) = hostile.write(tmp_path / "bad", {"": hostile.BAD["PNG of noise"]})
    items = [s.image for s in source.valid] + [bad]
    with pytest.raises(ImageError, match=r"bad00.jpg: cannot be decoded"):
        learn.get_preds(dl=learn.dls.test_dl(items))
    with pytest.raises(ImageError, match=r"bad00.jpg: cannot be decoded"):
        learn.predict(bad)
    held = make_source("x", source.train, [*source.valid, Sample(bad, "dark")], source.classes)
    learn = make_learner(dls=loaders(held))
    with pytest.raises(ImageError, match=r"bad00.jpg: cannot be decoded"):
        learn.get_preds()
    with pytest.warns(BadImageWarning, match="1 of 13 validation images"):
        learn.validate()


def test_nothing_can_be_read(tmp_path, make_learner):
    source = samples(tmp_path / "data")
    files = hostile.write(tmp_path / "bad", {k: hostile.BAD[k] for k in list(hostile.BAD_PIXELS)})
    bad = [Sample(file, "dark") for file in files]
    with pytest.raises(UserError, match="none of 16 training images can be read"):
        loaders(make_source("x", bad, bad, ["dark", "light"]))
    learn = make_learner(dls=loaders(make_source("x", source.train, bad, source.classes)))
    with pytest.raises(UserError, match="16 of 16"):
        learn.validate()


def test_scan_of_a_part_without_a_readable_image(tmp_path):
    source = samples(tmp_path / "data")
    (bad,) = hostile.write(tmp_path / "bad", {"": b"text"})
    held = make_source("photos", source.train, [Sample(bad, "dark")], source.classes)
    with pytest.raises(UserError, match=r"photos: no image in valid can be read; .*not an image"):
        scan(held)
    found = find_bad(held)
    assert found.count("valid") == 1
    assert found.source.train[0].size == read_header(found.source.train[0].image)


def test_the_limit():
    assert not too_many(0, 5)
    assert not too_many(1, 100)
    assert too_many(2, 100)
    assert too_many(1, 99)
    refuse_too_many([], 0, 0, 0.01)
    with pytest.raises(UserError, match=r"9 of 10 .*: a; b; c; d; e; and 4 more"):
        refuse_too_many(list("abcdefghi"), 9, 10, 0.5)


def test_flags():
    bad = BadImages(5)
    bad.mark("three: no", 3)
    bad.mark("three: again", 3)
    bad.mark("\udcff" + "é" * 1000, 1)
    assert (len(bad), bad.indices(), 3 in bad, 2 in bad) == (2, [1, 3], True, False)
    assert bad.reasons()[0] == "three: no"
    assert bad.reasons()[1].startswith("\\udcffé")
    assert len(bad.reasons(1)) == 1
    copy = pickle.loads(pickle.dumps(bad))
    assert (len(copy), copy.n, 3 in copy) == (0, 5, False)
    bad.clear()
    assert (len(bad), bad.indices(), bad.reasons()) == (0, [], [])
    stream = BadImages()
    stream.mark("a")
    stream.mark("b")
    assert (len(stream), 0 in stream, stream.reasons()) == (2, False, ["a", "b"])


def test_processes_lose_no_count():
    bad = BadImages(400)
    bad.share()
    fork = multiprocessing.get_context("fork")
    jobs = [fork.Process(target=mark_some, args=(bad, k)) for k in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(bad) == len(set(bad.reasons())) == len(bad.indices()) == 400
    stream = BadImages()
    stream.share()
    jobs = [fork.Process(target=mark_many, args=(stream, MANY)) for _ in range(4)]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(stream) == 4 * MANY


MANY = 20_000


def mark_many(bad, n):
    for _ in range(n):
        bad.mark("bad")


def mark_some(bad, k):
    for i in range(k, 400, 4):
        bad.mark(f"image {i}", i)
        bad.mark("the same", i)


def test_known_bad_images_are_not_opened_again(tmp_path, monkeypatch):
    source = with_bad(tmp_path, "text", "PNG of noise", "empty")
    dls = loaders(source, max_bad=0.1, views="all")
    with pytest.warns(BadImageWarning):
        list(dls.train)
    opened = []
    real = native_dl.open_image
    monkeypatch.setattr(native_dl, "open_image", lambda s: opened.append(s) or real(s))
    assert sum(len(x) for x, _ in dls.train) == 60
    assert opened == []  # the good ones are kept in memory
    assert len(dls.train.bad.reasons()) == 3


def test_the_share_is_of_what_the_scan_left_out_too(run, tmp_path):
    """2 of 200 are one per cent; the two that the scan finds and one more are above it."""
    photos(tmp_path / "train", 100)
    photos(tmp_path / "valid")
    hostile.write(tmp_path / "train" / "dark", dict.fromkeys(("one", "two"), b"text"))
    words = ("finetune", "--data", tmp_path, "--arch", "thin_resnet10", "--no-pretrained")
    words += ("--set", "train.report=false")
    words += ("--scales", "16", "--epochs", "1", "--set", "data.workers=0")
    code, out, err = run(*words, "--run-dir", tmp_path / "a")
    assert code == 0, err
    assert "train: 2 classes" not in out
    assert "2 classes; 202 to train on, 24 to watch" in out
    noise = hostile.BAD["PNG of noise"]
    (tmp_path / "train" / "dark" / "worse.png").write_bytes(noise)
    code, _, err = run(*words, "--run-dir", tmp_path / "b")
    assert (code, "3 of 203 training images cannot be read" in err) == (2, True)


def test_a_batch_of_one_is_not_trained_on(tmp_path):
    source = with_bad(tmp_path, "PNG of noise", n=60)
    some = [source.train[0], *source.train[1::5]]
    small = make_source("x", some, source.valid, source.classes)
    dls = loaders(small, views="native", bs=2, max_bad=0.5, augment="none", drop_last=True)
    with pytest.warns(BadImageWarning):
        sizes = [len(x) for _ in range(3) for x, _ in dls.train]
    assert set(sizes) == {2}


def test_every_image_of_a_class_is_bad(tmp_path):
    source = samples(tmp_path / "data")
    (bad,) = hostile.write(tmp_path / "bad", {"": b"text"})
    train = [*source.train, Sample(bad, "rare")]
    lost = make_source("photos", train, source.valid, [*source.classes, "rare"])
    with pytest.raises(UserError, match=r"no training image of class 'rare' can be read; .*bad00"):
        scan(lost, max_bad=0.5)


def test_predictions_without_reordering_are_as_many(tmp_path, make_learner):
    source = samples(tmp_path / "data")
    (bad,) = hostile.write(tmp_path / "bad", {"": hostile.BAD["PNG of noise"]})
    held = make_source("x", source.train, [*source.valid, Sample(bad, "dark")], source.classes)
    learn = make_learner(dls=loaders(held))
    with pytest.raises(ImageError, match=r"bad00.jpg: cannot be decoded"):
        learn.get_preds(reorder=False)


def test_too_many_open_files_say_nothing_of_the_image(tmp_path, monkeypatch):
    file = next((photos(tmp_path) / "dark").iterdir())

    def full(*args, **options):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(Image, "open", full)
    with pytest.raises(OSError, match="Too many open files"):
        read_header(file)


def test_images_that_something_else_opens(tmp_path):
    """Without our own transform in front, each is opened by whatever does it."""
    source = with_bad(tmp_path, "text")
    block = DataBlock(
        blocks=(native_dl.NativeImageBlock(SCALES, max_bad=0.1), CategoryBlock),
        get_x=lambda s: NativeImage.create(s.image),
        get_y=lambda s: s.label,
        splitter=IndexSplitter([1, 2]),
    )
    block.type_tfms[0] = block.type_tfms[0][1:]
    good_first = [*source.train[1:], source.train[0]]
    dls = block.dataloaders(good_first, bs=8, num_workers=0)
    with pytest.warns(BadImageWarning, match="1 of 59"):
        assert sum(len(x) for x, _ in dls.train.new(drop_last=False, shuffle=True)) == 58
    assert dls.valid.native_sizes == [read_header(s.image)[1] for s in good_first[1:3]]
