"""`msun-fastai analyze` from the command line."""

import csv
import json
import shutil

import pytest
from PIL import Image

from msun_fastai.compare import names_of


@pytest.fixture(scope="module")
def models(saved_run, tmp_path_factory):
    """Two run folders of different names, whose data are named on the command line."""
    other = tmp_path_factory.mktemp("runs") / "other"
    shutil.copytree(saved_run, other)
    return [saved_run, other]


def files(folder):
    return sorted(f.name for f in folder.iterdir())


def one_line(err):
    assert len(err.strip().splitlines()) == 1
    return err


def test_cka(run, models, photos, tmp_path):
    out = tmp_path / "out"
    code, text, _ = run(
        *("analyze", "cka", *models, "--data", photos, "--out", out, "--device", "cpu")
    )
    assert code == 0
    assert files(out) == ["cka.csv", "cka.json", "cka.png"]
    assert "CKA between 16 and 64 pixels, 9 images, exact" in text
    first, second = json.loads((out / "cka.json").read_text())
    assert first["values"] == second["values"]
    assert second["name"] == "other"
    assert f"{first['values']['stage 4']:.3f}" in text
    rows = list(csv.DictReader((out / "cka.csv").open()))
    assert len(rows) == 10
    assert rows[-1]["layer"] == "stage 4"
    with Image.open(out / "cka.png") as image:
        assert image.size[0] > 600


def test_cka_from_batches_to_standard_output(run, models, photos, tmp_path):
    words = ("--data", photos, "--out", tmp_path, "--sizes", "20,64", "--batch", "4", "--json", "-")
    code, text, err = run("analyze", "cka", models[0], *words, "--part", "train", "--limit", "24")
    assert code == 0
    (found,) = json.loads(text)
    assert (found["batch"], found["images"], found["sizes"]) == (4, 24, [20, 64])
    assert "mini-batches of 4" in err


def test_gradcam(run, models, photos, tmp_path):
    code, text, _ = run(
        *("analyze", "gradcam", *models, "--data", photos, "--out", tmp_path / "out"),
        *("--count", "3", "--class", "plain disc"),
    )
    assert code == 0
    names = [f"gradcam-{name}.png" for name in names_of([str(m) for m in models])]
    assert files(tmp_path / "out") == sorted([*names, "gradcam.csv", "gradcam.json"])
    assert "all pairs" in text
    found = json.loads((tmp_path / "out" / "gradcam.json").read_text())[0]
    assert found["images"] == 3
    assert {row["class"] for row in found["rows"]} == {"plain disc"}
    assert len(found["rows"]) == 9
    assert set(found["pairs"]) == {"16-32", "16-64", "32-64"}


def test_gradcam_of_images_that_have_no_labels(run, models, photos, tmp_path):
    files_given = sorted((photos / "valid").rglob("*.png"))[:2]
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    words = [w for f in [*files_given, broken] for w in ("--image", f)]
    code, text, _ = run(
        *("analyze", "gradcam", models[0], *words, "--out", tmp_path / "out", "--sizes", "16,64")
    )
    assert code == 0
    assert "left out as they could not be read: 1, such as" in text
    assert "gradcam.png" in files(tmp_path / "out")
    (found,) = json.loads((tmp_path / "out" / "gradcam.json").read_text())
    assert [row["image"] for row in found["rows"][::2]] == [str(f) for f in files_given]


def test_pca(run, models, photos, tmp_path):
    words = (
        "--data",
        photos,
        "--part",
        "train",
        "--out",
        tmp_path,
        "--classes",
        "plain disc, plain star",
    )
    code, text, _ = run("analyze", "pca", models[0], *words, "--sizes", "16,64")
    assert code == 0
    assert files(tmp_path) == ["pca.csv", "pca.json", "pca.png"]
    assert "separation of plain disc, plain star" in text
    assert "of the variance" in text
    (found,) = json.loads((tmp_path / "pca.json").read_text())
    assert found["classes"] == ["plain disc", "plain star"]
    assert [row["size"] for row in found["sizes"]] == [16, 64]
    points = list(csv.DictReader((tmp_path / "pca.csv").open()))
    assert len(points) == 2 * found["images"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("cka", "RUN", "--sizes", "32,9999"), "a side is a whole number of pixels"),
        (("cka", "RUN", "--resize", "native"), "native is for networks of one scale"),
        (("cka", "EMPTY"), "no model in it"),
        (
            ("gradcam", "RUN", "--class", "plan disc"),
            "class 'plan disc'; did you mean",
        ),
        (("gradcam", "RUN", "--image", "EMPTY"), "no image files in this folder"),
        (("gradcam", "RUN", "--image", "absent.png"), "absent.png: no such file"),
        (("pca", "RUN", "--classes", "plain disc,disk"), "no image of 'disk'; "),
        (("pca", "RUN", "--data", "EMPTY"), "EMPTY"),
        (("pca", "RUN", "--out", "FILE"), "--out"),
    ],
)
def test_errors_of_one_line(run, models, photos, tmp_path, words, message):
    empty, file = tmp_path / "EMPTY", tmp_path / "FILE"
    empty.mkdir()
    file.write_text("")
    named = {"RUN": models[0], "EMPTY": empty, "FILE": file}
    data = () if "--data" in words or "--image" in words else ("--data", photos)
    out = () if "--out" in words else ("--out", tmp_path / "out")
    code, _, err = run("analyze", *(named.get(w, w) for w in words), *data, *out)
    assert code == 2
    assert message in one_line(err)
    assert not (tmp_path / "out").exists()
