"""The command line as a user types it: exit codes, one-line errors, tables, JSON, CSV."""

import csv
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

SMALL = [
    *("--set", "train.report=false"),
    *("--arch", "thin_resnet10", "--no-pretrained", "--scales", "16,32,64", "--epochs", "1"),
    *("--bs", "8", "--device", "cpu", "--set", "data.workers=0"),
]


@pytest.fixture
def photos(tmp_path, shapes):
    """Eight class-less files of many kinds, and the folder that holds them."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, sample in enumerate(shapes.valid[:5]):
        Image.fromarray(sample.image).save(folder / f"{i}.png")
    (folder / "broken.jpg").write_bytes(b"not an image")
    return folder


def test_help_lists_the_verbs(run):
    code, out, _ = run("--help")
    assert code == 0
    assert "finetune" in out
    assert "predict" in out
    assert run()[:2] == (code, out)


def test_version(run):
    from msun_fastai import __version__

    assert run("--version") == (0, f"msun-fastai {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["predikt"], "Did you mean"),
        (["finetune", "--epoch", "3"], "--epochs"),
        (["finetune", "--epochs", "many"], "valid integer"),
        (["finetune"], "either --dataset NAME or --data PATH"),
        (["finetune", "--dataset", "shapes", "--data", "x"], "either --dataset NAME or --data"),
        (["finetune", "--dataset", "shape"], "did you mean shapes"),
        (["finetune", "--data", "absent"], "no such folder"),
        (["finetune", "--dataset", "shapes", "--scales", "64,32"], "write 32,64"),
        (["finetune", "--dataset", "shapes", "--scales", "big"], "whole numbers"),
        (["finetune", "--dataset", "shapes", "--method", "msum"], "did you mean msun"),
        (["finetune", "--dataset", "shapes", "--arch", "resnet19"], "did you mean resnet1"),
        (["finetune", "--dataset", "shapes", "--weights", "absent.pth"], "no such file"),
        (["finetune", "--dataset", "shapes", "--limit", "0"], "data.limit"),
        (["finetune", "--dataset", "shapes", "--set", "train.x=1"], "unknown key 'train.x'"),
        (["finetune", "--dataset", "shapes", "--set", "train"], "write key=value"),
        (["finetune", "--recipe", "demoo"], "did you mean demo"),
        (["finetune", "--recipe", "demo", "--baseline", "msun"], "is the method itself"),
        (["finetune", "--recipe", "demo", "--device", "tpu9"], "not to be used here"),
        (["predict", "x.png"], "--model"),
        (["predict", "x.png", "--model", "absent"], "no such folder"),
        (
            ["predict", "x.png", "--model", "absent", "--out", "x.xls"],
            ".csv, .json, .jsonl or .parquet",
        ),
        (["predict", "*.nothing", "--model", "absent"], "matches no image file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(run, words, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert list(tmp_path.iterdir()) == []  # nothing is written before the input is known to be good


def test_debug_shows_the_traceback_wherever_it_stands(run):
    for words in (["--debug", "finetune"], ["finetune", "--debug"]):
        code, _, err = run(*words)
        assert code == 2
        assert "Traceback" in err


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (RuntimeError("odd\nend"), "RuntimeError: odd end"),
        (EOFError("too short"), "EOFError: too short"),  # typer ends at it without a word
    ],
)
def test_an_unforeseen_failure_is_one_line_and_exit_code_1(run, monkeypatch, error, says):
    def fails(name):
        raise error

    monkeypatch.setattr("msun_fastai.recipe.load_recipe", fails)
    code, _, err = run("finetune", "--recipe", "demo")
    assert code == 1
    assert err.strip() == f"msun-fastai: {says} (--debug shows where)"


def test_finetune_writes_a_run_folder_that_predicts(run, tmp_path, photos):
    folder = tmp_path / "run"
    code, out, _ = run(
        *("finetune", "--dataset", "shapes", "--limit", 40, *SMALL),
        *("--baseline", "vanilla", "--run-dir", folder, "--json", tmp_path / "m.json"),
    )
    assert code == 0
    assert "accuracy at each input size (40 validation images)" in out
    assert "difference" in out
    assert str(folder) in out
    assert "msun epoch 1/1" in out  # captured output is no terminal: plain lines
    assert "\x1b[" not in out
    names = {"recipe.toml", "environment.json", "history.csv", "metrics.json", "model"}
    names |= {"checkpoints", "plots"}
    assert {p.name for p in folder.iterdir()} == {*names, "baseline"}
    assert {p.name for p in (folder / "baseline").iterdir()} == names
    metrics = json.loads((folder / "metrics.json").read_text())
    assert json.loads((tmp_path / "m.json").read_text()) == {"run": str(folder), **metrics}
    assert metrics["sizes"] == [16, 24, 32, 48, 64]
    assert sum(metrics["routing"].values()) == metrics["valid_images"] == 40
    assert metrics["baseline"]["method"] == "vanilla"
    assert metrics["baseline"]["routing"] == {"64": 40}
    history = list(csv.DictReader((folder / "history.csv").open()))
    assert [row["epoch"] for row in history] == ["0"]
    assert {"train_loss", "valid_loss", "accuracy", "acc_16", "ce", "si"} < set(history[0])

    code, out, _ = run("predict", "--model", folder, photos / "0.png")
    assert code == 0
    again = run("finetune", "--dataset", "shapes", *SMALL, "--run-dir", folder)
    assert again[0] == 2
    assert "its run is finished" in again[2]


def test_the_recipe_of_a_run_runs_it_again(run, tmp_path):
    words = ("finetune", "--dataset", "shapes", "--limit", 30, *SMALL, "--baseline", "mst")
    assert run(*words, "--run-dir", tmp_path / "a")[0] == 0
    again = ("finetune", "--recipe", tmp_path / "a" / "recipe.toml", "--run-dir", tmp_path / "b")
    assert run(*again)[0] == 0
    for part in ("model", "baseline/model"):
        a, b = (tmp_path / n / part / "model.safetensors" for n in ("a", "b"))
        assert a.read_bytes() == b.read_bytes()


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [(("--lr", "1e12"), 1, "the loss is not finite"), (("--limit", "1"), 2, "make no batch")],
)
def test_training_that_comes_to_nothing_says_so(run, tmp_path, options, code, says):
    words = ("finetune", "--dataset", "shapes", "--limit", 30, *SMALL, *options)
    found, _, err = run(*words, "--run-dir", tmp_path / "r")
    assert (found, err.count("\n")) == (code, 1)
    assert says in err
    assert not (tmp_path / "r" / "model").exists()


def test_outputs_are_checked_before_the_work(run, tmp_path, photos, saved_run):
    for words in (
        ("finetune", "--recipe", "demo", "--json", tmp_path),
        ("predict", photos, "--model", saved_run, "--json", photos / "0.png" / "x.json"),
        ("predict", photos, "--model", saved_run, "--out", photos / "0.png" / "x.csv"),
    ):
        code, _, err = run(*words)
        assert code == 2
        assert "is a directory" in err or "cannot be written" in err


def test_odd_file_names(run, tmp_path, photos, saved_run):
    names = ["Caught fish.jpg", "two  spaces.png", "b\udcff.png"]
    for name in names:
        (tmp_path / name).write_bytes((photos / "0.png").read_bytes())
    (tmp_path / names[0]).write_bytes(b"nothing")
    words = ("predict", "--model", saved_run, *(tmp_path / n for n in names))
    for kind in ("csv", "json"):
        assert run(*words, "--out", tmp_path / f"x.{kind}")[0] == 1
    rows = json.loads((tmp_path / "x.json").read_text())
    assert [r["path"] for r in rows] == [str(tmp_path / n) for n in names]
    assert "Caught fish.jpg: not an image" in rows[0]["error"]


def test_same_command_same_weights(run, tmp_path):
    words = ("finetune", "--dataset", "shapes", "--limit", 30, *SMALL, "--run-dir")
    for name in ("a", "b"):
        assert run(*words, tmp_path / name)[0] == 0
    a, b = (tmp_path / n / "model" / "model.safetensors" for n in ("a", "b"))
    assert a.read_bytes() == b.read_bytes()


def test_predict_writes_a_row_for_every_image_in_order(run, saved_run, photos, tmp_path):
    words = ("predict", "--model", saved_run, photos / "3.png", photos, photos / "absent.png")
    for kind in ("csv", "json"):
        code, out, _ = run(*words, "--out", tmp_path / f"x.{kind}", "--top", 2)
        assert code == 1
        assert "2 of 8 images could not be read" in out
    rows = json.loads((tmp_path / "x.json").read_text())
    names = [r["path"].rpartition("/")[2] for r in rows]
    assert names == [
        *("3.png", "0.png", "1.png", "2.png", "3.png", "4.png", "broken.jpg", "absent.png"),
    ]
    table = list(csv.DictReader((tmp_path / "x.csv").open()))
    for row, line in zip(rows, table, strict=True):
        assert list(line) == [
            *("path", "width", "height", "native_size", "scale", "label", "probability"),
            *("top", "error"),
        ]
        assert line["path"] == row["path"]
        assert json.loads(line["top"]) == row["top"]
        assert (row["label"] is None) == (row["error"] is not None)
    assert "not an image" in rows[6]["error"]
    assert "no such file" in rows[7]["error"]
    assert rows[0]["probability"] == pytest.approx(rows[4]["probability"], abs=1e-5)


def test_json_on_standard_output_is_alone_there(run, saved_run, photos):
    code, out, err = run("predict", "--model", saved_run, photos / "0.png", "--json", "-")
    assert code == 0
    (row,) = json.loads(out)
    assert row["path"].endswith("0.png")
    assert "0.png" in err.replace("\n", "")


def test_predict_on_hostile_images(run, saved_run, tmp_path):
    """Issue list: shapes, modes, rotation, and files that are none."""
    good = {
        "1x1.png": Image.new("RGB", (1, 1)),
        "1x4000.png": Image.new("RGB", (1, 4000)),
        "8000x10.png": Image.new("RGB", (8000, 10)),
        **{f"{m}.png": Image.new(m, (40, 30)) for m in ("1", "L", "LA", "P", "RGBA")},
        "CMYK.tif": Image.new("CMYK", (40, 30)),
        "I16.png": Image.fromarray(np.full((30, 40), 40_000, np.uint16)),
    }
    for name, image in good.items():
        image.save(tmp_path / name)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "text.jpg").write_text("hello")
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "cut.jpg")
    whole = (tmp_path / "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    names = [*good, "turned.jpg", "empty.png", "text.jpg", "cut.jpg"]
    code, out, _ = run(
        "predict", "--model", saved_run, *(tmp_path / n for n in names), "--json", "-"
    )
    assert code == 1
    rows = dict(zip(names, json.loads(out), strict=True))
    assert all(row["path"].endswith(name) for name, row in rows.items())
    assert {n for n, row in rows.items() if row["error"]} == {"empty.png", "text.jpg", "cut.jpg"}
    assert (rows["turned.jpg"]["width"], rows["turned.jpg"]["height"]) == (30, 40)
    assert (rows["1x4000.png"]["native_size"], rows["1x4000.png"]["scale"]) == (1, 16)
    assert "empty" in rows["empty.png"]["error"]
    assert "truncated" in rows["cut.jpg"]["error"]


@pytest.mark.parametrize(
    ("data", "says"), [(b"no image", "not an image"), (None, "cannot be decoded")]
)
def test_a_bad_training_image_is_named(run, tmp_path, photos, data, says):
    """A bad header before anything is written; a truncated file from within a worker process."""
    (photos / "broken.jpg").unlink()
    for label in ("cat", "dog"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(5):
            target = tmp_path / "data" / label / f"{i}.png"
            target.write_bytes((photos / f"{i}.png").read_bytes())
    bad = tmp_path / "data" / "cat" / "3.png"
    bad.write_bytes(bad.read_bytes()[:-300] if data is None else data)
    options = [*SMALL, "--set", "data.workers=2", "--on-bad-image", "stop"]
    code, _, err = run(
        "finetune", "--data", tmp_path / "data", *options, "--run-dir", tmp_path / "r"
    )
    assert code == 2
    assert err.count("\n") == 1
    assert err.startswith(f"msun-fastai: {bad}: ")
    assert says in err
    assert (tmp_path / "r").exists() == (data is None)


def test_it_runs_as_a_module():
    out = subprocess.run(
        [sys.executable, "-m", "msun_fastai", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert out.stdout.startswith("msun-fastai ")


# ---- costs ------------------------------------------------------------------------------------


def test_flops_as_a_table_and_as_json(run):
    words = ["flops", "--arch", "thin_resnet10", "--scales", "16,32,64", "--classes", "10"]
    code, out, _ = run(*words)
    assert code == 0
    assert "of canonical" in out
    assert "100.0 %" in out
    code, out, err = run(*words, "--sizes", "16:64:16", "--alignment", "native", "--json", "-")
    figures = json.loads(out)
    assert code == 0
    assert "mean" in err
    assert {"params", "macs_per_subnet", "macs_by_size", "mean_macs"} <= set(figures)
    assert list(figures["macs_per_subnet"]) == ["16", "32", "64"]
    assert list(figures["macs_by_size"]) == ["16", "32", "48", "64"]
    by_size = figures["macs_by_size"].values()
    assert figures["mean_macs"] == pytest.approx(sum(by_size) / 4)
    assert figures["alignment"] == "native"


@pytest.mark.slow
def test_flops_beside_the_paper(run):
    code, out, _ = run("flops", "--paper", "--json", "-")
    lines = json.loads(out)
    assert code == 0
    assert {line["network"] for line in lines} >= {"densenet121", "resnet50 SNet"}
    snet = next(line for line in lines if line["network"] == "resnet50 SNet")
    assert (snet["paper"], round(snet["here"], 1)) == (76.7, 76.7)
    assert abs(snet["difference"]) < 0.002


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--grids", "16,32"], "2 given for 3 scales"),
        (["--arch", "densenet121", "--grids", "1,1,28", "--alignment", "native"], "grids: "),
        (["--scales", ""], "scales: : write whole numbers"),
        (["--arch", ""], "unknown backbone ''"),
        (["--paper", "--arch", "vgg16"], "--paper takes no --arch"),
        (["--arch", "alexnet"], "takes the methods vanilla, mst, rsnet and san"),
        (["--sizes", "32:x"], "START:STOP:STEP"),
        (["--alignment", "natve"], "did you mean native"),
        (["--arch", "alexnet", "--method", "vanilla", "--scales", "32"], "smallest it takes is 63"),
    ],
)
def test_flops_of_what_cannot_be(run, words, says):
    code, out, err = run("flops", *words)
    assert (code, out) == (2, "")
    assert says in err
    assert err.count("\n") == 1


def test_finetune_takes_the_choices_of_the_lattice(run, tmp_path):
    words = [
        *("finetune", "--dataset", "shapes", "--limit", "12", *SMALL, "--run-dir", tmp_path / "r"),
        *("--method", "msun", "--norm", "per_scale", "--alignment", "native", "--blocks", "0"),
        *("--consistency", "none", "--baseline", "mst", "--grids", "4,8,16"),
    ]
    code, _, err = run(*words, "--json", tmp_path / "m.json")
    assert code == 0, err
    config = json.loads((tmp_path / "r/model/config.json").read_text())["model"]
    assert (config["norm"], config["alignment"], config["blocks"]) == ("per_scale", "native", 0)
    assert config["grids"] == [4, 8, 16]
    other = json.loads((tmp_path / "r/baseline/model/config.json").read_text())["model"]
    assert (other["method"], other["norm"], other["grids"]) == ("mst", "shared", None)
    recipe = (tmp_path / "r/recipe.toml").read_text()
    assert 'kind = "none"' in recipe
    assert 'alignment = "native"' in recipe
    header = (tmp_path / "r/history.csv").read_text().splitlines()[0]
    assert ",si" not in header


def test_a_baseline_that_shares_no_batch_norm(run, tmp_path):
    code, _, err = run(
        *("finetune", "--dataset", "shapes", "--limit", "12", *SMALL, "--run-dir", tmp_path / "r"),
        *("--norm", "per_scale", "--baseline", "snet"),
    )
    assert code == 0, err
    recipe = (tmp_path / "r/baseline/recipe.toml").read_text()
    assert 'alignment = "native"' in recipe  # the baseline's own, and its own consistency
    assert 'kind = "none"' in recipe
    assert 'kind = "si"' in (tmp_path / "r/recipe.toml").read_text()


def test_a_baseline_does_without_what_its_method_does_not_have(run, tmp_path):
    code, _, err = run(
        *("finetune", "--dataset", "shapes", "--limit", "12", *SMALL, "--run-dir", tmp_path / "r"),
        *("--method", "snet", "--consistency", "si", "--baseline", "vanilla"),
    )
    assert code == 0, err
    assert ",si" in (tmp_path / "r/history.csv").read_text().splitlines()[0]
    assert ",si" not in (tmp_path / "r/baseline/history.csv").read_text().splitlines()[0]


def test_vanilla_has_nothing_to_compare(run):
    code, _, err = run(
        *("finetune", "--dataset", "shapes", *SMALL, "--method", "vanilla", "--consistency", "si")
    )
    assert code == 2
    assert "vanilla has no two views of an image to compare" in err
