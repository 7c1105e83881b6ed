"""Headers of many images: in order, in parallel, and kept for the next run."""

import numpy as np
import pytest
from PIL import Image

from msun_fastai.data import headers
from msun_fastai.data.archive_files import TrimmedFile
from msun_fastai.data.headers import index_file, read_headers, sample_headers
from msun_fastai.data.samples import Sample


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("MSUN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos").mkdir()
    paths = [tmp_path / "photos" / f"{i}.png" for i in range(40)]
    for i, path in enumerate(paths):
        Image.new("RGB", (i + 1, 50)).save(path)
    return paths


SIZES = [(i + 1, 50) for i in range(40)]


@pytest.mark.parametrize("workers", [None, 0, 1, 3])
def test_order_and_reasons(files, monkeypatch, workers):
    monkeypatch.setattr(headers, "PARALLEL", 10)
    monkeypatch.setattr(headers, "CHUNK", 7)
    files[5].write_bytes(b"no image")
    found = read_headers([str(files[0]), *files[1:]], workers)
    assert found[:5] + found[6:] == SIZES[:5] + SIZES[6:]
    assert found[5] == f"{files[5]}: not an image that can be read"
    assert not index_file(list(map(str, files))).exists()  # few files need no index
    assert read_headers([]) == []


def test_samples_that_know_their_size_are_not_opened(files):
    files[1].unlink()
    samples = [Sample(files[0], "a"), Sample(files[1], "a", (7, 9)), files[2]]
    assert sample_headers(samples) == [(1, 50), (7, 9), (3, 50)]


def test_the_index_saves_opening_what_has_not_changed(files, monkeypatch):
    monkeypatch.setattr(headers, "INDEXED", 30)
    files[7].write_bytes(b"no image")
    first = read_headers(files)
    opened = []
    real = headers.read_header
    monkeypatch.setattr(headers, "read_header", lambda f: opened.append(f) or real(f))
    assert read_headers(files) == first
    assert opened == [files[7]]  # what could not be read is tried again
    Image.new("RGB", (99, 60)).save(files[7])
    Image.new("RGB", (98, 60)).save(files[3])
    again = read_headers(list(reversed(files)))[::-1]
    assert (again[3], again[7]) == ((98, 60), (99, 60))
    assert set(opened[1:]) == {files[3], files[7]}
    files[9].unlink()
    assert "no such file" in read_headers(files)[9]


def test_a_damaged_or_unwritable_index_is_no_obstacle(files, monkeypatch, tmp_path):
    monkeypatch.setattr(headers, "INDEXED", 30)
    assert read_headers(files) == SIZES
    index = index_file(list(map(str, files)))
    assert index.is_relative_to(tmp_path / "cache")
    index.write_bytes(index.read_bytes()[:50])
    assert read_headers(files) == SIZES
    monkeypatch.setenv("MSUN_CACHE", str(files[0]))  # a file where a folder should be
    assert read_headers(files) == SIZES


def test_a_user_without_a_home(files, monkeypatch):
    monkeypatch.setattr(headers, "INDEXED", 30)
    for variable in ("MSUN_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(variable, raising=False)

    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(headers.Path, "home", nowhere)
    assert read_headers(files) == SIZES


def test_what_is_no_plain_file_is_read_without_an_index(files, monkeypatch):
    monkeypatch.setattr(headers, "INDEXED", 30)
    monkeypatch.setattr(headers, "_store", lambda *a: pytest.fail("indexed"))
    assert read_headers([TrimmedFile(f, 20) for f in files])[3] == (4, 30)
    arrays = [np.zeros((5, 6, 3), np.uint8)] * 40
    assert read_headers(arrays) == [(6, 5)] * 40
