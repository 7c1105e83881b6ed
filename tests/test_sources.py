"""Folders, tables, mirrors and names: what is found, and what is said when it is not."""

import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from torch.utils.data import DataLoader

from msun_fastai.data.folders import source_from_csv, source_from_folder, source_from_table
from msun_fastai.data.headers import sample_headers
from msun_fastai.data.images import load_pixels
from msun_fastai.data.inputs import expand_paths
from msun_fastai.data.samples import Sample, make_source, stratified_split, take_evenly
from msun_fastai.data.sources import source_from_name, source_from_path
from msun_fastai.errors import UserError


def put(folder, *names):
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), "red").save(file)
    return folder


def names(samples):
    return sorted(f"{s.label}/{s.image.name}" for s in samples)


@pytest.mark.parametrize("valid", ["valid", "val", "test"])
def test_train_and_valid_folders(tmp_path, valid):
    put(tmp_path, "train/cat/a.jpg", "train/dog/deep/er/b.png", f"{valid}/cat/c.jpg")
    source = source_from_folder(tmp_path)
    assert (names(source.train), names(source.valid)) == (["cat/a.jpg", "dog/b.png"], ["cat/c.jpg"])
    assert source.classes == ["cat", "dog"]


def test_train_valid_and_test_folders(tmp_path):
    put(tmp_path, *(f"{part}/{c}/{part}.jpg" for part in ("train", "val", "test") for c in "ab"))
    source = source_from_folder(tmp_path)
    parts = [names(p) for p in (source.train, source.valid, source.test)]
    assert parts == [["a/train.jpg", "b/train.jpg"], ["a/val.jpg", "b/val.jpg"], [*parts[2]]]
    assert parts[2] == ["a/test.jpg", "b/test.jpg"] == names(source.measured)
    (tmp_path / "train").rename(tmp_path / "fit")
    assert len(source_from_folder(tmp_path, train="fit").train) == 2
    with pytest.raises(UserError, match="val and test, but no folder train beside it"):
        source_from_folder(tmp_path)
    with pytest.raises(UserError, match="no folder hold in it"):
        source_from_folder(tmp_path, train="fit", test="hold")


def test_a_carved_part_leaves_the_test_alone(tmp_path):
    put(tmp_path, *(f"train/{c}/{i}.jpg" for c in "ab" for i in range(10)), "test/a/9.jpg")
    whole = source_from_folder(tmp_path)
    assert (names(whole.valid), whole.test) == (["a/9.jpg"], [])
    carved, again = whole.carved(0.2, seed=1), whole.carved(0.2, seed=1)
    assert [len(p) for p in (carved.train, carved.valid, carved.test)] == [16, 4, 1]
    assert carved == again != whole.carved(0.2, seed=2)
    assert {s.label for s in carved.valid} == {"a", "b"}
    assert sorted(map(str, [*carved.train, *carved.valid])) == sorted(map(str, whole.train))
    assert names(carved.measured) == ["a/9.jpg"]


def test_class_folders_are_split_by_seed_and_stratified(tmp_path):
    put(tmp_path, *(f"{c}/{i}.png" for c in ("cat", "dog") for i in range(10)))
    (tmp_path / "cat" / "notes.txt").write_text("not an image")
    put(tmp_path, ".hidden/x.png", "cat/.thumb/y.png")
    a, again, other = (source_from_folder(tmp_path, 0.3, seed) for seed in (1, 1, 2))
    assert (len(a.train), len(a.valid)) == (14, 6)
    assert names(a.valid) == names(again.valid) != names(other.valid)
    assert [s.label for s in a.valid].count("cat") == 3


@pytest.mark.parametrize(
    ("files", "says"),
    [
        ((), "no class folders"),
        (("a.jpg",), "images, but no class folders"),
        (("train/cat/a.jpg", "train/dog/a.jpg", "valid/fox/a.jpg"), "class 'fox'|label 'fox'"),
        (("cat/a.jpg", "cat/b.jpg"), "one class only"),
    ],
)
def test_folders_that_cannot_be_used(tmp_path, files, says):
    put(tmp_path, *files)
    with pytest.raises(UserError, match=says):
        source_from_folder(tmp_path)


def test_class_with_no_images_and_missing_folder(tmp_path):
    put(tmp_path, "cat/a.jpg", "cat/b.jpg")
    (tmp_path / "dog").mkdir()
    with pytest.raises(UserError, match="class 'dog' has no images"):
        source_from_folder(tmp_path)
    with pytest.raises(UserError, match="no such folder"):
        source_from_path(tmp_path / "absent")


def test_csv_with_and_without_a_split(tmp_path):
    put(tmp_path, "i/a.png", "i/b.png", "i/c.png", "i/d.png")
    table = pd.DataFrame(
        {"path": ["i/a.png", "i/b.png", "i/c.png", "i/d.png"], "label": [1, 2, 1, 2]}
    )
    table.to_csv(tmp_path / "labels.csv", index=False)
    source = source_from_path(tmp_path / "labels.csv", valid_fraction=0.5)
    assert (len(source.train), len(source.valid), source.classes) == (2, 2, ["1", "2"])
    table["split"] = ["train", "train", "valid", "train"]
    table.to_csv(tmp_path / "labels.csv", index=False)
    assert names(source_from_csv(tmp_path / "labels.csv").valid) == ["1/c.png"]
    table["split"] = ["train", "train", "valid", "test"]
    table.to_csv(tmp_path / "labels.csv", index=False)
    source = source_from_csv(tmp_path / "labels.csv")
    assert (names(source.valid), names(source.test)) == (["1/c.png"], ["2/d.png"])
    odd = table.rename(columns={"path": "photo", "label": "kind", "split": "half"})
    odd.to_csv(tmp_path / "odd.csv", index=False)
    columns = {"path_column": "photo", "label_column": "kind", "split_column": "half"}
    assert names(source_from_path(tmp_path / "odd.csv", columns=columns).test) == ["2/d.png"]
    with pytest.raises(UserError, match="no column 'foto'; did you mean photo"):
        source_from_path(tmp_path / "odd.csv", columns={**columns, "path_column": "foto"})
    with pytest.raises(UserError, match="path_column 'photo': not a CSV file"):
        source_from_path(tmp_path, columns=columns)
    table["split"] = [False, False, True, False]
    assert names(source_from_table(table, tmp_path, split_column="split").valid) == ["1/c.png"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not a CSV"),
        ("path,label\n", "no rows"),
        ("photo,label\nx,1\n", "which column holds the paths"),
        ("path,label\nabsent.png,1\n", "row 1.*no such file"),
        ("path,label\n,1\n", "row 1: no path"),
        ("path,label\na.png,\n", "row 1: no label"),
        ("path,label,split\na.png,1,maybe\n", "row 1: split 'maybe'"),
        ("path,label\na.png,1\na.png,1\n", "one class only"),
    ],
)
def test_csv_that_cannot_be_used(tmp_path, text, says):
    put(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=says):
        source_from_csv(tmp_path / "labels.csv")


def test_split_and_limit_keep_every_class():
    samples = [Sample(i, label) for i, label in enumerate("a" * 50 + "b" * 2 + "c")]
    train, valid = stratified_split(samples, 0.2, seed=0)
    assert {s.label for s in train} == {"a", "b", "c"}
    assert sorted(s.label for s in valid) == ["a"] * 10 + ["b"]
    assert {s.label for s in take_evenly(samples, 3, 0)} == {"a", "b", "c"}
    assert len(take_evenly(samples, 500, 0)) == 53
    assert len({s.image for s in take_evenly(samples, 20, 0)}) == 20


def test_limit_of_a_source():
    samples = [Sample(i, label) for i, label in enumerate("abcabcabc")]
    source = make_source("x", samples, samples)
    limited = source.limited(4)
    assert (len(limited.train), len(limited.valid), limited.classes) == (4, 4, ["a", "b", "c"])
    with pytest.raises(UserError, match="at least 1"):
        source.limited(0)


def test_the_first_classes_of_a_source():
    samples = [Sample(i, label) for i, label in enumerate("abcabcabc")]
    source = make_source("x", samples, samples[:3], list("cba"), test=samples[3:8], notes=("n",))
    some = source.of_classes(2)  # in the order of the labels, not of the alphabet
    assert (some.classes, some.name, some.notes) == (["c", "b"], "x", ("n",))
    assert [len(part) for part in (some.train, some.valid, some.test)] == [6, 2, 3]
    assert {s.label for s in some.samples} == {"b", "c"}
    assert source.of_classes(3) == source.of_classes(None) == source
    assert [s.label for s in some.limited(4).train].count("b") == 2
    for n in (1, 4):
        with pytest.raises(UserError, match=f"classes: {n}: x has 3 classes"):
            source.of_classes(n)


def mirror(folder, split, labels, classes, image="image", label="label"):
    """A Parquet file as the hub has it, with one small image per label."""
    import io

    from datasets import ClassLabel, Dataset, Features
    from datasets import Image as ImageFeature

    rows = {image: [], label: labels}
    for code in labels:
        out = io.BytesIO()
        Image.new("RGB", (20 + code, 50), "blue").save(out, "PNG")
        rows[image].append({"bytes": out.getvalue(), "path": None})
    features = Features({image: ImageFeature(), label: ClassLabel(names=classes)})
    (folder / "data").mkdir(parents=True, exist_ok=True)
    file = folder / "data" / f"{split}-00000-of-00001.parquet"
    Dataset.from_dict(rows, features=features).to_parquet(file)


def test_mirror_of_a_hub_dataset(tmp_path):
    classes = ["cat", "dog", *"abcdefgh"]
    for name, image in (("cifar10", "img"), ("stl10", "picture")):
        mirror(tmp_path / name, "train", [0, 1, 1], classes, image)
        mirror(tmp_path / name, "test", [1], classes, image)
        source = source_from_name(name, tmp_path)
        assert [s.label for s in source.train] == ["cat", "dog", "dog"]
        assert Image.open(__import__("io").BytesIO(source.valid[0].image.open_bytes())).width == 21


def test_mirror_reads_from_the_environment_and_needs_no_catalogue_entry(tmp_path, monkeypatch):
    mirror(tmp_path / "mine", "train", [0, 1], ["cat", "dog"])
    mirror(tmp_path / "mine", "validation", [1], ["cat", "dog"])
    monkeypatch.setenv("MSUN_DATA_ROOT", str(tmp_path))
    assert source_from_name("mine").classes == ["cat", "dog"]
    with pytest.raises(UserError, match="did you mean mine"):
        source_from_name("mime")


def test_mirror_with_a_folder_named_after_its_configuration(tmp_path):
    for split in ("train", "test"):
        mirror(tmp_path / "mine", split, [0, 1], ["cat", "dog"])
    (tmp_path / "mine" / "data").rename(tmp_path / "mine" / "plain_text")
    assert len(source_from_name("mine", tmp_path).train) == 2


def test_mirrors_that_cannot_be_used(tmp_path):
    for split in ("train", "test"):
        mirror(tmp_path / "cifar10", split, [0, 1], ["cat", "dog"])
    with pytest.raises(UserError, match="2 classes; cifar10 has 10"):
        source_from_name("cifar10", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no class folders"):
        source_from_name("empty", tmp_path)
    names = [str(i) for i in range(10)]
    mirror(tmp_path / "stl10", "train", [0, 1], names)
    with pytest.raises(UserError, match=r"no split test; it has train"):
        source_from_name("stl10", tmp_path)
    mirror(tmp_path / "half", "train", [0, 1] * 5, ["cat", "dog"])
    half = source_from_name("half", tmp_path)
    assert (len(half.train), len(half.valid)) == (8, 2)
    mirror(tmp_path / "wide", "train", [0, 1] * 5, ["cat", "dog"], label="kind")
    assert source_from_name("wide", tmp_path).classes == ["cat", "dog"]
    mirror(tmp_path / "half", "test", [0, 1], ["cat", "fox"])
    with pytest.raises(UserError, match="different classes"):
        source_from_name("half", tmp_path)


def test_names_that_lead_nowhere(tmp_path, monkeypatch):
    monkeypatch.delenv("MSUN_DATA_ROOT", raising=False)
    with pytest.raises(UserError, match="did you mean stanford_cars"):
        source_from_name("stanford_car")
    with pytest.raises(UserError, match="--data-root DIR or set MSUN_DATA_ROOT"):
        source_from_name("stanford_cars")
    with pytest.raises(UserError, match="neither in"):
        source_from_name("stanford_cars", tmp_path)
    with pytest.raises(UserError, match="unknown"):
        source_from_name("../half", tmp_path)


def test_real_mirrors(real_data):
    cars = source_from_name("stanford_cars", real_data)
    assert (len(cars.train), len(cars.valid), len(cars.classes)) == (588, 196, 196)
    caltech = source_from_name("caltech101", real_data)
    assert (len(caltech.train), len(caltech.valid), len(caltech.classes)) == (1515, 808, 101)


def test_shapes_is_seeded_and_mixed(shapes):
    from msun_fastai.data.shapes import CLASSES, shapes_source

    again, other = shapes_source(80, 41, seed=7), shapes_source(80, 41, seed=8)
    pairs = zip(shapes.train, again.train, strict=True)
    assert all(np.array_equal(a.image, load_pixels(b.image)) for a, b in pairs)
    assert not np.array_equal(shapes.train[0].image, load_pixels(other.train[0].image))
    assert not np.array_equal(shapes.train[0].image, shapes.valid[0].image)
    sides = [min(s.image.shape[:2]) for s in shapes.train]
    assert 16 <= min(sides) < 32 < 128 < max(sides) <= 256
    assert [s.label for s in shapes.train].count("plain disc") == 8
    assert len(CLASSES) >= 8


def load(image):
    return load_pixels(image).copy()


def test_shapes_are_drawn_when_they_are_opened(shapes, monkeypatch):
    from msun_fastai.data import shapes as drawing

    real, drawn = drawing.draw, []
    monkeypatch.setattr(drawing, "draw", lambda *given: drawn.append(given) or real(*given))
    source = drawing.shapes_source(80, 41, seed=7)
    copied = pickle.loads(pickle.dumps(source.valid))
    sizes = sample_headers(source.valid)
    assert drawn == []
    for sample, size, expected in zip(copied, sizes, shapes.valid, strict=True):
        assert size == sample.size == expected.image.shape[1::-1]
        assert np.array_equal(load_pixels(sample.image), expected.image)
    assert len(drawn) == 41
    # once, whichever of the loader's processes it is that opens it
    opened = list(DataLoader([s.image for s in source.valid], None, num_workers=2, collate_fn=load))
    monkeypatch.setattr(drawing, "draw", None)
    for image, sample, expected in zip(opened, source.valid, shapes.valid, strict=True):
        assert np.array_equal(image, expected.image)
        assert np.array_equal(load_pixels(sample.image), expected.image)
    named = [*source.samples, *drawing.shapes_source(80, 41, seed=8).samples]
    assert len({str(s.image) for s in named}) == len(named)  # features are kept under these


def test_inputs_of_the_command_line(tmp_path, monkeypatch):
    put(tmp_path, "a/1.png", "a/b/2.jpg", "c.png", "odd[1].png")
    (tmp_path / "a" / "notes.txt").write_text("x")
    monkeypatch.chdir(tmp_path)

    def found(*words):
        return [p.as_posix() for p in expand_paths(words)]

    assert found("c.png", "a") == ["c.png", "a/1.png", "a/b/2.jpg"]
    assert found("**/*.png", "absent.png") == ["a/1.png", "c.png", "odd[1].png", "absent.png"]
    assert found("odd[1].png") == ["odd[1].png"]
    assert found("a*") == ["a/1.png", "a/b/2.jpg"]
    assert found("a/**") == ["a/1.png", "a/b/2.jpg", "a/notes.txt"]
    (tmp_path / "none").mkdir()
    for word, says in (("none", "no image files"), ("*.bmp", "matches no image file")):
        with pytest.raises(UserError, match=says):
            expand_paths([word])


def test_folders_that_are_no_part_are_named(tmp_path):
    put(tmp_path, *(f"{part}/{c}/1.jpg" for part in ("Train", "dev", "VAL") for c in "ab"))
    put(tmp_path, "__MACOSX/a/1.jpg")
    source = source_from_folder(tmp_path)
    assert (len(source.train), len(source.valid)) == (2, 2)
    assert source.notes == (f"{tmp_path}: not used: dev; parts are called train, valid and test",)
    shutil.rmtree(tmp_path / "Train")
    with pytest.raises(UserError, match="VAL, but no folder train beside it"):
        source_from_folder(tmp_path)


def test_what_is_in_a_class_without_images_is_said(tmp_path):
    put(tmp_path, "cat/1.jpg")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.heic").write_bytes(b"x")
    with pytest.raises(UserError, match=r"'dog' has no images \(but files of .heic\)"):
        source_from_folder(tmp_path)


def test_a_file_that_is_missing_is_a_bad_image(tmp_path, run):
    put(tmp_path, "a.png", "b.png")
    (tmp_path / "x.csv").write_text("Foto,Art\na.png,1\nb.png,2\nc.png,1\na.png,2\n")
    words = ("datasets", "scan", "--data", tmp_path / "x.csv")
    code, _, err = run(*words)
    assert (code, "'Foto', 'Art'" in err, "path_column" in err) == (2, True, True)
    code, out, _ = run(*words, "--path-column", "Foto", "--label-column", "Art")
    assert (code, f"{tmp_path / 'c.png'}: no such file" in out) == (1, True)


def test_a_carved_part_tells_what_is_not_used():
    samples = [Sample(i, label) for i, label in enumerate("abababab")]
    source = make_source("x", samples, samples[:2], test=samples[:2])
    assert source.carved(0.5).notes == ("x: the 2 images of its validation part are not used",)
    assert source.carved(0.5).test == source.test
    assert make_source("x", samples, samples[:2]).carved(0.5).notes == ()
