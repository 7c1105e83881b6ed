"""Predictions in files that grow: killed and resumed, a run gives what one in one go gives."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from msun_fastai.data.resize import load_fitted
from msun_fastai.errors import UserError
from msun_fastai.inference import Options, normalize
from msun_fastai.models.heads import penultimate
from msun_fastai.models.saving import load_model_folder
from msun_fastai.predict import Prediction, Predictor
from msun_fastai.predict_files import PredictionFiles
from msun_fastai.progress import progress_file, refuse_unfinished
from msun_fastai.rowfiles import COLUMNS

TABLES = ("x.csv", "x.json", "x.jsonl", "x.parquet")
ARRAYS = ("e.npy", "e.parquet")


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """30 files of three sizes in folders; two of them are no images, one has an odd name."""
    folder = tmp_path_factory.mktemp("images")
    noise = np.random.default_rng(0)
    for i in range(30):
        side = (14, 30, 70)[i % 3]
        name = "two\nlines, é" if i == 11 else f"{i:02d}"
        file = folder / "abc"[i // 10] / f"{name}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(noise.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(file)
    for i in (4, 20):
        next(folder.glob(f"*/{i:02d}.png")).write_bytes(b"no image")
    return sorted(folder.rglob("*.png"))


@pytest.fixture(scope="module")
def saved(saved_run):
    """The model, which nothing here changes."""
    return load_model_folder(saved_run)


@pytest.fixture
def open_files(saved, tmp_path):
    """A function that opens the files of a run in a folder: a chunk has 8 images."""

    def make(folder, table, array=None, resume=False, **about):
        options = Options(embeddings=array is not None)
        predictor = Predictor(saved, bs=2, options=options)
        if not resume:  # that takes the chunks of the run before
            predictor.load_state_dict({"chunk": 8, "sizes": {}})
        at = [None if name is None else tmp_path / folder / name for name in (table, array)]
        return PredictionFiles(predictor, *at, {"--top": 5, **about}, resume)

    return make


def same(a, b):
    """Whether two files are equal byte by byte, or as Parquet row by row."""
    if a.suffix == ".parquet":
        return pq.read_table(a).equals(pq.read_table(b))
    return a.read_bytes() == b.read_bytes()


def rows_of(file):
    """What a reader makes of a table, its numbers as text."""
    if file.suffix == ".csv":
        return list(csv.DictReader(file.open(newline="")))
    if file.suffix in (".parquet", ".parts"):
        return pq.read_table(file).to_pylist()
    if file.suffix == ".json":
        return json.loads(file.read_text())
    return [json.loads(line) for line in file.read_text().splitlines()]


@pytest.mark.parametrize("table", TABLES)
def test_an_interrupted_run_goes_on_to_the_same_rows(open_files, images, tmp_path, table):
    list(open_files("whole", table).chunks(images))
    for _ in zip(range(2), open_files("cut", table).chunks(images)):
        pass
    cut = tmp_path / "cut"
    known = sorted(p.name for p in cut.iterdir())
    left = cut / f"{table}.parts" if table.endswith("parquet") else cut / table
    assert known == sorted([left.name, f"{table}.progress.json"])
    assert [r["path"] for r in rows_of(left)] == [str(p) for p in images[:16]]
    damage(left)
    with pytest.raises(UserError, match="--resume goes on"):
        refuse_unfinished([cut / table])
    resumed = open_files("cut", table, resume=True)
    assert [len(chunk) for chunk in resumed.chunks(images)] == [8, 6]
    assert resumed.counts.total() == 30
    assert resumed.counts[None] == 2
    assert same(cut / table, tmp_path / "whole" / table)
    assert [p.name for p in cut.iterdir()] == [table]
    rows = rows_of(cut / table)
    assert [r["path"] for r in rows] == [str(p) for p in images]
    assert all(list(r) == list(COLUMNS) for r in rows)


def damage(left):
    """What a kill in the middle of a write leaves behind the last whole part."""
    if left.is_dir():
        for name in ("00000002.parquet", "00000007.parquet"):
            (left / name).write_bytes(b"PAR1 half")
    else:
        with left.open("ab") as file:
            file.write(b'"half a row' * 10_000)


def test_columns_are_those_of_a_prediction():
    assert list(Prediction("x").as_row()) == list(COLUMNS)


def test_json_is_what_one_dump_would_write(open_files, images, tmp_path):
    rows = [p.as_row() for chunk in open_files("a", "x.json").chunks(images) for p in chunk]
    whole = json.dumps(rows, indent=2, ensure_ascii=False) + "\n"
    assert (tmp_path / "a" / "x.json").read_text() == whole


@pytest.mark.parametrize("array", ARRAYS)
def test_embeddings_are_in_order_and_resumed(open_files, images, saved, tmp_path, array):
    for _ in zip(range(2), open_files("cut", "x.csv", array).chunks(images)):
        pass
    list(open_files("cut", "x.csv", array, resume=True).chunks(images))
    list(open_files("whole", "x.csv", array).chunks(images))
    found = {}
    for folder in ("cut", "whole"):
        file = tmp_path / folder / array
        if array.endswith("npy"):
            found[folder] = np.load(file, mmap_mode="r")
        else:
            table = pq.read_table(file)
            assert table["path"].to_pylist() == [str(p) for p in images]
            found[folder] = np.array(table["embedding"].to_pylist(), np.float32)
    x = found["cut"]
    assert np.array_equal(x, found["whole"], equal_nan=True)
    assert (len(x), x.dtype) == (30, np.float32)
    assert np.flatnonzero(np.isnan(x).any(1)).tolist() == [
        i for i, p in enumerate(images) if p.read_bytes() == b"no image"
    ]
    for i, side in ((0, 16), (1, 32), (2, 64)):
        view = normalize(load_fitted(images[i], side)[None], saved.preprocessing)
        expected = penultimate(saved.model, view, (16, 32, 64).index(side))[0].numpy()
        assert np.allclose(x[i], expected, atol=1e-5)


def test_a_resumed_run_has_to_be_the_same_one(open_files, images, tmp_path):
    for _ in zip(range(1), open_files("a", "x.csv").chunks(images)):
        pass
    left = (tmp_path / "a" / "x.csv").read_bytes()
    with pytest.raises(UserError, match="begun with another --top; give"):
        open_files("a", "x.csv", resume=True, **{"--top": 3})
    for others, says in (
        (images[1:], "8 images are done, the list has others before it"),
        ([images[1], images[0], *images[2:]], "has others before it"),
        (images[:5], "the list ends after 5"),
    ):
        with pytest.raises(UserError, match=says):
            list(open_files("a", "x.csv", resume=True).chunks(others))
    assert (tmp_path / "a" / "x.csv").read_bytes() == left
    (tmp_path / "a" / "x.csv").write_bytes(left[:100])
    with pytest.raises(UserError, match="shorter than it was"):
        list(open_files("a", "x.csv", resume=True).chunks(images))
    progress_file(tmp_path / "a" / "x.csv").write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        open_files("a", "x.csv", resume=True)
    progress_file(tmp_path / "a" / "x.csv").unlink()
    with pytest.raises(UserError, match="is not unfinished"):
        open_files("a", "x.csv", resume=True)
    assert list(open_files("new", "x.csv", resume=True).chunks(images[:2]))


@pytest.mark.slow
@pytest.mark.parametrize("table", ["x.csv", "x.jsonl", "x.parquet"])
def test_five_kills(saved_run, tmp_path, table):
    """The command line, killed when its file has grown to five sizes, and resumed each time."""
    folder = tmp_path / "images"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for i in range(600):
        side = (14, 30, 70)[i % 3]
        pixels = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    words = [sys.executable, "-m", "msun_fastai", "predict", str(folder), "--bs", "1"]
    words += ["--model", str(saved_run), "--device", "cpu", "--out"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole, cut = tmp_path / f"whole{table}", tmp_path / f"cut{table}"
    subprocess.run([*words, str(whole)], env=environment, check=True, capture_output=True)
    parts = cut.with_name(f"{cut.name}.parts")
    by_parts = table.endswith("parquet")
    total = 38 if by_parts else whole.stat().st_size  # parts of 16 of 600 images

    def grown():
        if by_parts:
            return len(list(parts.glob("0*.parquet"))) if parts.exists() else 0
        return cut.stat().st_size if cut.exists() else 0

    for k in range(5):
        run = subprocess.Popen(
            [*words, str(cut), *["--resume"][: bool(k)]],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        while run.poll() is None and grown() < total * (k + 0.5) / 6:
            time.sleep(0.001)
        run.kill()
        _, said = run.communicate()
        assert run.returncode == -signal.SIGKILL, said
        assert progress_file(cut).exists()
        if table == "x.jsonl":  # all but a cut last line are whole rows
            assert all(json.loads(line) for line in cut.read_text().splitlines()[:-1])
    last = subprocess.run([*words, str(cut), "--resume"], env=environment, capture_output=True)
    assert last.returncode == 0, last.stderr
    assert b"of them before" in last.stdout
    assert same(cut, whole)
    assert [r["path"] for r in rows_of(cut)] == [str(p) for p in sorted(folder.iterdir())]
    assert not progress_file(cut).exists()
    assert not parts.exists()
    shutil.rmtree(folder)


def test_the_command_line_reads_a_list_and_writes_both(
    run, images, saved_run, tmp_path, monkeypatch
):
    table, array = tmp_path / "x.parquet", tmp_path / "e.npy"
    listed = b"\0".join(os.fsencode(p) for p in images)
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(listed)))
    words = ("predict", "-", "-0", "--model", saved_run, "--device", "cpu", "--bs", 4)
    code, out, _ = run(*words, "--out", table, "--embeddings", array, "--tta", "--workers", 1)
    assert code == 1
    assert "30 images, " in out
    assert "subnets 16: 35.7 %, 32: 32.1 %, 64: 32.1 %" in out
    assert "2 of 30 images could not be read" in out
    assert pq.read_table(table)["path"].to_pylist() == [str(p) for p in images]
    assert len(np.load(array)) == 30
    assert sorted(p.name for p in tmp_path.iterdir()) == ["e.npy", "x.parquet"]


def test_errors_of_the_command_line(run, images, saved_run, tmp_path):
    progress_file(tmp_path / "cut.csv").write_text("{}")
    for words, says in (
        (("--bs", "few"), "--bs few"),
        (("--bs", "0"), "from 1, or auto"),
        (("--embeddings", tmp_path / "e.csv"), ".npy or .parquet"),
        (("--out", "x.parquet", "--embeddings", "x.parquet"), "a file each"),
        (("--resume",), "--resume: goes on with --out"),
        (("--resume", "--out", tmp_path / "x.csv", "--json", "-"), "not with --json"),
        (("--out", tmp_path / "cut.csv"), "--resume goes on with it, or remove"),
        (("--precision", "fp16"), "precision"),
        (("--compile", "--embeddings", tmp_path / "e.npy"), "not with embeddings"),
    ):
        code, _, err = run("predict", images[0], "--model", saved_run, *words)
        assert (code, err.count("\n")) == (2, 1), err
        assert says in err
    assert [p.name for p in tmp_path.iterdir()] == ["cut.csv.progress.json"]
