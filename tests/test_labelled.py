"""Which images a trained model is looked at with."""

import pytest
from PIL import Image

from msun_fastai import labelled
from msun_fastai.data.shapes import CLASSES
from msun_fastai.data.stream import StreamSource
from msun_fastai.errors import UserError
from msun_fastai.files import write_text
from msun_fastai.labelled import find_images
from msun_fastai.models.saving import load_model_folder


@pytest.fixture(scope="module")
def saved(saved_run):
    return load_model_folder(saved_run)


@pytest.fixture
def run_of(recipe_of, tmp_path):
    """A function that makes a folder with the recipe of a run on `photos`."""

    def make(**values):
        write_text(tmp_path / "run" / "recipe.toml", recipe_of(**values).to_toml())
        return tmp_path / "run"

    return make


def pictures(folder, classes=CLASSES[:3], n=2):
    for name in classes:
        for i in range(n):
            file = folder / name / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20 + i, 30)).save(file)
    return folder


def test_the_run_s_own_images(run_of, saved):
    run = run_of()
    found = find_images(run, saved)
    assert (found.part, len(found.samples), found.bad) == ("validation", 9, [])
    assert all(sample.size is not None for sample in found.samples)
    assert len(find_images(run, saved, part="train").samples) == 40
    assert len(find_images(run, saved, part="all").samples) == 49
    assert find_images(run, saved, part="valid").part == "valid"
    few = find_images(run, saved, limit=4)
    assert len({s.label for s in few.samples}) == 4
    with pytest.raises(UserError, match=r"photos.*: has no test part"):
        find_images(run, saved, part="test")
    with pytest.raises(UserError, match="unknown value 'best'; known: measured, train"):
        find_images(run, saved, part="best")
    with pytest.raises(UserError, match="limit: 0 is not a number of images"):
        find_images(run, saved, limit=0)


def test_what_the_run_left_out_stays_out(run_of, saved, photos):
    """Its images are split as they were for training; named, they are all taken."""
    run = run_of(**{"data.carve": 0.25, "data.limit": 6})
    own = find_images(run, saved)
    assert (own.part, len(own.samples)) == ("test", 6)
    whole = find_images(run, saved, data=str(photos))
    assert (whole.part, len(whole.samples)) == ("test", 9)
    assert {str(s.image) for s in own.samples} < {str(s.image) for s in whole.samples}
    train = find_images(run, saved, data=str(photos), part="train").samples
    valid = find_images(run, saved, data=str(photos), part="valid").samples
    assert (len(train), len(valid)) == (30, 10)


def test_the_run_s_own_folder_however_it_is_written(run_of, saved, tmp_path):
    """Taken for another one, it would be tested whole, with the images that were trained on."""
    folder = pictures(tmp_path / "own", n=5)
    run = run_of(**{"data.path": str(folder), "data.valid_fraction": 0.4})
    assert len(find_images(run, saved).samples) == 6
    other = f"{tmp_path}/../{tmp_path.name}/./own/"
    found = find_images(run, saved, data=other)
    assert (found.part, len(found.samples)) == ("validation", 6)


def test_another_folder_is_taken_whole_where_it_has_no_parts(run_of, saved, tmp_path):
    folder = pictures(tmp_path / "more")
    found = find_images(run_of(), saved, data=str(folder))
    assert (found.name, found.part, len(found.samples)) == ("more", "all", 6)
    parts = tmp_path / "parts"
    pictures(parts / "train", n=3)
    pictures(parts / "test", n=1)
    assert len(find_images(run_of(), saved, data=str(parts)).samples) == 3
    # one class alone is enough to test on
    one = pictures(tmp_path / "one", CLASSES[4:5], 5)
    assert len(find_images(run_of(), saved, data=str(one)).samples) == 5


def test_a_table_is_taken_whole_where_it_has_no_parts(run_of, saved, tmp_path):
    pictures(tmp_path)
    lines = [f"{name}/{i}.png,{name}" for name in CLASSES[:3] for i in range(2)]
    write_text(tmp_path / "a.csv", "\n".join(["path,label", *lines]))
    assert len(find_images(run_of(), saved, data=str(tmp_path / "a.csv")).samples) == 6
    split = [f"{line},{part}" for line, part in zip(lines, ("train", "test") * 3)]
    write_text(tmp_path / "b.csv", "\n".join(["path,label,split", *split]))
    assert len(find_images(run_of(), saved, data=str(tmp_path / "b.csv")).samples) == 3


def test_a_dataset_by_name(run_of, saved):
    found = find_images(run_of(), saved, dataset="shapes", limit=10)
    assert (found.name, len(found.samples)) == ("shapes", 10)
    with pytest.raises(UserError, match="choose one"):
        find_images(run_of(), saved, dataset="shapes", data="photos")


def test_images_that_cannot_be_read_are_told(run_of, saved, tmp_path):
    folder = pictures(tmp_path / "some")
    (folder / CLASSES[0] / "torn.png").write_bytes(b"nothing")
    found = find_images(run_of(), saved, data=str(folder))
    assert len(found.samples) == 6
    assert "torn.png" in found.bad[0].reason
    only = tmp_path / "only" / CLASSES[0]
    only.mkdir(parents=True)
    (only / "torn.png").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"no image in measured can be read; .*torn\.png"):
        find_images(run_of(), saved, data=str(tmp_path / "only"))


def test_classes_that_the_model_does_not_know(run_of, saved, tmp_path):
    folder = pictures(tmp_path / "zoo", ("ant", "bee", "cat", "dog", CLASSES[0]))
    with pytest.raises(UserError, match=r"10 classes, .* and not 'ant', 'bee', 'cat' and 1 more"):
        find_images(run_of(), saved, data=str(folder))


def test_no_recipe_and_no_data(saved_run, saved, run_of, monkeypatch):
    with pytest.raises(UserError, match="does not say which data; give --dataset or --data"):
        find_images(saved_run, saved)
    assert find_images(saved_run, saved, dataset="shapes", limit=3).samples
    stream = StreamSource("s", [], [], list(saved.classes))
    monkeypatch.setattr(labelled, "load_source", lambda recipe: stream)
    with pytest.raises(UserError, match="s: the run's data are a stream; take a local copy"):
        find_images(run_of(), saved)
    monkeypatch.undo()
    run = run_of(**{"data.path": None, "data.dataset": "shapes", "data.stream": True})
    assert len(find_images(run, saved, dataset="shapes", limit=5).samples) == 5


def test_data_that_have_moved(run_of, saved, tmp_path):
    run = run_of(**{"data.path": None, "data.dataset": "birds", "data.root": str(tmp_path)})
    with pytest.raises(UserError, match="'birds' is unknown"):
        find_images(run, saved)
    pictures(tmp_path / "elsewhere" / "birds" / "train", n=3)
    pictures(tmp_path / "elsewhere" / "birds" / "valid", n=1)
    found = find_images(run, saved, root=str(tmp_path / "elsewhere"))
    assert len(found.samples) == 3
