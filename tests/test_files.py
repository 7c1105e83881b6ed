"""Files are whole or not there."""

import json

import pytest

from msun_fastai.files import replacing, write_json, write_text


def test_an_error_keeps_the_old_file_and_leaves_nothing_else(tmp_path):
    file = tmp_path / "deep" / "a.txt"
    write_text(file, "old")

    def fail():
        with replacing(file) as temporary:
            temporary.write_text("half")
            raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert file.read_text() == "old"
    assert list(file.parent.iterdir()) == [file]
    write_text(file, "new")
    assert file.read_text() == "new"


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "a.json", {"é": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"é": [1, None]}
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text()) == {"é": [1, None]}
