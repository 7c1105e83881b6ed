"""The catalogue on the command line, and the parts that a dataset's splits become."""

import fnmatch
import json
import shutil

import pytest
from official import WRITERS

from msun_fastai.data.catalog import CATALOG, Entry
from msun_fastai.data.parts import source_from_splits
from msun_fastai.data.samples import Sample
from msun_fastai.data.sources import source_from_name
from msun_fastai.errors import UserError


def samples(*labels):
    return [Sample(f"{i}.jpg", label) for i, label in enumerate(labels)]


ENTRY = Entry.unknown("birds")


def test_the_list_says_what_is_here(run, tmp_path):
    WRITERS["raf_db"](tmp_path)
    code, out, _ = run("datasets", "--data-root", tmp_path)
    assert code == 0
    assert all(name in out for name in CATALOG)
    code, out, _ = run("datasets", "--data-root", tmp_path, "--json", "-")
    here = {row["name"]: row["here"] for row in json.loads(out)}
    assert here.pop("raf_db").endswith("basic")
    assert set(here.values()) == {""}


@pytest.mark.parametrize("name", [*CATALOG, "digits"])
def test_info_of_every_dataset_without_a_copy(run, name):
    code, out, err = run("datasets", "info", name)
    assert (code, err) == (0, "")
    assert name in out
    if name in CATALOG:
        assert "no copy of it here" in out
        assert CATALOG[name].citation in out


def test_info_counts_sizes_and_routes(run, tmp_path):
    WRITERS["stanford_cars"](tmp_path)
    (tmp_path / "stanford_cars/cars_test/00002.jpg").write_bytes(b"no image")
    words = ("datasets", "info", "stanford_cars", "--data-root", tmp_path)
    code, out, _ = run(*words, "--scales", "32,64", "--json", "-")
    here = json.loads(out)["here"]
    assert code == 0
    assert here["parts"] == {"train": 3, "valid": 3}
    assert here["native_sizes"] == {"64": 5}
    assert here["routed"] == {"64": 5}
    assert here["unreadable_count"] == 1
    assert "00002.jpg: not an image" in here["unreadable"][0]
    code, out, _ = run(*words)
    assert "3 of 8,144 images in train" in out
    assert "routed to 32: 5" in out
    assert "1 images cannot be read" in out


@pytest.mark.parametrize("words", [[], ["info", "dtd"]])
def test_a_data_root_that_is_not_there(run, tmp_path, words):
    code, _, err = run("datasets", *words, "--data-root", tmp_path / "nowhere")
    assert code == 2
    assert "nowhere: no such folder" in err


def test_info_of_an_unknown_dataset(run, tmp_path):
    code, _, err = run("datasets", "info", "stanford_car", "--data-root", tmp_path)
    assert code == 2
    assert "did you mean stanford_cars?" in err


@pytest.mark.parametrize("name", list(CATALOG))
def test_how_to_get_each(tmp_path, name):
    with pytest.raises(UserError, match="give --data-root DIR"):
        source_from_name(name)
    with pytest.raises(UserError, match=f"DIR/{CATALOG[name].official}"):
        source_from_name(name, tmp_path)


def test_digits():
    source = source_from_name("digits")
    assert len(source.train) + len(source.valid) == 1797
    assert source.train[0].image.shape == (8, 8)
    assert int(source.train[0].image.max()) > 200
    labels = [[s.label for s in source_from_name("digits", seed=s).train] for s in (1, 1, 2)]
    assert labels[0] == labels[1]
    assert sorted(labels[0]) == sorted(labels[2])


def test_roles_of_splits():
    parts = {"train": samples("a", "b"), "val": samples("a"), "test": samples("b", "a")}
    source = source_from_splits("x", ENTRY, parts, ["a", "b"])
    assert [len(p) for p in (source.train, source.valid, source.test)] == [2, 1, 2]
    assert source.measured == source.test
    del parts["val"]
    source = source_from_splits("x", ENTRY, parts, ["a", "b"])
    assert [len(p) for p in (source.train, source.valid, source.test)] == [2, 2, 0]
    assert source.measured == source.valid


@pytest.mark.parametrize(
    ("parts", "classes", "says"),
    [
        ({"train": [], "test": samples("a", "b")}, ["a", "b"], "x: no images in train"),
        ({"dev": samples("a", "b")}, ["a", "b"], "x: no split train; it has dev"),
        ({"train": samples(*"aacc")}, ["a", "b"], "'c' is not among the 2 classes"),
        ({"train": samples("a"), "test": samples("b")}, ["a", "b"], "'b' has images to validate"),
    ],
)
def test_splits_that_make_no_dataset(parts, classes, says):
    with pytest.raises(UserError, match=says):
        source_from_splits("x", ENTRY, parts, classes)


def test_another_number_of_classes():
    parts = {"train": samples("a", "b"), "test": samples("a")}
    with pytest.raises(UserError, match="2 classes; raf_db has 7"):
        source_from_splits("x", CATALOG["raf_db"], parts, ["a", "b"])


def test_limit_reaches_every_part():
    parts = {"train": samples(*"abab"), "val": samples(*"abab"), "test": samples(*"abab")}
    source = source_from_splits("x", ENTRY, parts, ["a", "b"]).limited(2)
    assert [len(p) for p in (source.train, source.valid, source.test)] == [2, 2, 2]


# ---- the hub ----------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A stand-in for the hub: a repository on disk and the calls that were made for it."""
    import huggingface_hub
    from datasets import ClassLabel, Dataset, Features, Image

    repository, calls = tmp_path / "repository", []
    (repository / "data").mkdir(parents=True)
    pixel = b"\x89PNG"
    features = Features({"image": Image(), "label": ClassLabel(names=[str(i) for i in range(196)])})
    for split in ("train", "test", "gaussian_noise"):  # the last as its corrupted splits are named
        rows = {"image": [{"bytes": pixel, "path": None}] * 4, "label": [0, 1, 0, 1]}
        table = Dataset.from_dict(rows, features=features)
        table.to_parquet(repository / "data" / f"{split}-00000-of-00001.parquet")
    (repository / "README.md").write_text("about")

    def snapshot_download(repo_id, repo_type, revision, allow_patterns, local_dir):
        calls.append((repo_id, repo_type, revision))
        if repo_id.startswith("nobody/"):
            raise OSError("404 Client Error\nmore lines")
        for file in repository.rglob("*"):
            path = str(file.relative_to(repository))
            if file.is_file() and any(fnmatch.fnmatch(path, p) for p in allow_patterns):
                (local_dir / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, local_dir / path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    return calls


def test_prepare_fetches_what_is_needed_once(run, hub, tmp_path):
    words = ("datasets", "prepare", "stanford_cars", "--data-root", tmp_path / "data")
    code, out, err = run(*words)
    assert code == 0, err
    assert hub == [("tanganke/stanford_cars", "dataset", "main")]
    files = {p.name.split("-")[0] for p in (tmp_path / "data").rglob("*.parquet")}
    assert files == {"train", "test"}
    assert "196 classes, 4 to train on, 4 to watch" in out
    assert "4 of 8,144 images in train, 4 of 8,041 images in test" in out
    code, out, _ = run(*words, "--json", "-")
    assert json.loads(out)["parts"] == {"train": 4, "valid": 4}
    assert len(hub) == 1
    code, _, err = run(*words, "--strict")
    assert code == 2
    assert "4 of 8,144" in err


def test_prepare_from_elsewhere(run, hub, tmp_path):
    words = ("datasets", "prepare", "stanford_cars", "--data-root", tmp_path)
    code, _, err = run(*words, "--hub-id", "nobody/cars", "--revision", "abc")
    assert code == 2
    assert "nobody/cars at abc could not be fetched" in err
    assert "404 Client Error)" in err
    assert "--hub-id" in err
    assert run(*words, "--hub-id", "me/cars", "--revision", "abc")[0] == 0
    assert hub[-1] == ("me/cars", "dataset", "abc")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["raf_db", "--data-root", "."], "on no hub; ask its authors"),
        (["dtd", "--data-root", "."], "has no Parquet files of"),
        (["dtd"], "no data root"),
        (["dtdd", "--data-root", "."], "did you mean dtd"),
    ],
)
def test_what_cannot_be_prepared(run, hub, tmp_path, monkeypatch, words, says):
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "repository" / "data")
    code, _, err = run("datasets", "prepare", *words)
    assert code == 2
    assert says in err
