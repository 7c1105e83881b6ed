"""Model folders that were made to do harm: each is refused in one line, and nothing runs."""

import io
import json
import os
import pickle
import shutil
import time
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from msun_fastai.errors import UserError
from msun_fastai.models.checked import MOST_HEADER, digest
from msun_fastai.models.saving import CONFIG_FILE, WEIGHTS_FILE, load_model_folder

SECONDS = 20  # none may take longer on a busy machine; an endless read would


class Malice:
    """Unpickling this makes a folder."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return (os.mkdir, (str(self.canary),))


def weights(folder):
    return folder / WEIGHTS_FILE


def header(folder):
    """The header of the weights, and the bytes behind it."""
    data = weights(folder).read_bytes()
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def with_header(folder, content, data):
    """Weights with this header, and a configuration whose checksum is theirs."""
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    weights(folder).write_bytes(len(text).to_bytes(8, "little") + text + data)
    sealed(folder)


def sealed(folder):
    config(folder, lambda c: c.update(sha256=digest(weights(folder))))


def config(folder, edit):
    file = folder / CONFIG_FILE
    data = json.loads(file.read_text())
    edit(data)
    file.write_text(json.dumps(data))


def with_bytes(make):
    def case(folder, canary):
        weights(folder).write_bytes(make(canary))
        sealed(folder)

    return case


def zipped(canary):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        archive.writestr("../../evil.py", "import os")
        archive.writestr("archive/data.pkl", pickle.dumps(Malice(canary)))
    return held.getvalue()


def bomb(canary):
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data/0", bytes(50_000_000))
    return held.getvalue()


def torch_file(canary):
    held = io.BytesIO()
    torch.save({"weight": torch.zeros(3), "code": Malice(canary)}, held)
    return held.getvalue()


def with_offsets(edit):
    """A header in which the offsets of two tensors beside each other are changed."""

    def case(folder, canary):
        found, data = header(folder)
        order = sorted(
            (n for n in found if n != "__metadata__"), key=lambda n: found[n]["data_offsets"]
        )
        edit(found[order[3]]["data_offsets"], found[order[4]]["data_offsets"])
        with_header(folder, found, data)

    return case


def with_tensors(edit):
    def case(folder, canary):
        tensors = load_file(weights(folder))
        edit(tensors)
        save_file(tensors, weights(folder), metadata={"format": "pt"})
        sealed(folder)

    return case


def with_entry(edit):
    def case(folder, canary):
        found, data = header(folder)
        edit(next(v for n, v in found.items() if n.endswith("conv1.weight")))
        with_header(folder, found, data)

    return case


def with_config(edit):
    return lambda folder, canary: config(folder, edit)


def instead(name, make):
    """Something else in the place of a file."""

    def case(folder, canary):
        (folder / name).unlink()
        make(folder / name)

    return case


def sparse(name, size, start=b""):
    """A file of `size` bytes, which takes no room on the disk."""

    def case(folder, canary):
        with (folder / name).open("wb") as file:
            file.write(start)
            file.truncate(size)

    return case


def flipped(folder, canary):
    data = bytearray(weights(folder).read_bytes())
    data[-1000] ^= 1
    weights(folder).write_bytes(data)


def cut(folder, canary):
    weights(folder).write_bytes(weights(folder).read_bytes()[:-100])
    sealed(folder)


def deep_header(folder, canary):
    with_header(folder, b'{"a":' * 10_000 + b"1" + b"}" * 10_000, b"")


def trailing(folder, canary):
    weights(folder).write_bytes(weights(folder).read_bytes() + pickle.dumps(Malice(canary)))
    sealed(folder)


def overlap(first, second):
    second[0] = first[0]


def hole(first, second):
    first[1] -= 4


def backwards(first, second):
    first.reverse()


def beyond(first, second):
    second[1] = 2**62


HUGE = 2**40
CASES = {
    "pickle": (with_bytes(lambda canary: pickle.dumps(Malice(canary))), "no safetensors file"),
    "torch file with code": (with_bytes(torch_file), "no safetensors file"),
    "zip with paths": (with_bytes(zipped), "no safetensors file"),
    "zip bomb": (with_bytes(bomb), "no safetensors file"),
    "empty": (with_bytes(lambda canary: b""), "no safetensors file"),
    "pickle behind the tensors": (trailing, "does not hold the weights"),
    "endless header": (with_bytes(lambda canary: b"\xff" * 8 + b"{}"), "no safetensors file"),
    "header of 100 MB": (
        sparse(WEIGHTS_FILE, 2 * 10**8, (10**8).to_bytes(8, "little")),
        f"a header of {10**8:,} bytes",
    ),
    "longest header, empty": (
        sparse(WEIGHTS_FILE, MOST_HEADER + 9, MOST_HEADER.to_bytes(8, "little")),
        "does not hold the weights",
    ),
    "header of noise": (lambda f, c: with_header(f, b"\x80" * 64, b""), "does not hold"),
    "deep header": (deep_header, "does not hold the weights"),
    "overlapping offsets": (with_offsets(overlap), "does not hold the weights"),
    "hole between tensors": (with_offsets(hole), "does not hold the weights"),
    "offsets backwards": (with_offsets(backwards), "does not hold the weights"),
    "offsets beyond the file": (with_offsets(beyond), "does not hold the weights"),
    "shape that overflows": (
        with_entry(lambda e: e.update(shape=[HUGE, HUGE, HUGE])),
        "does not hold the weights",
    ),
    "negative shape": (with_entry(lambda e: e.update(shape=[-1, 3])), "does not hold the weights"),
    "unknown type": (with_entry(lambda e: e.update(dtype="PY")), "does not hold the weights"),
    "wrong shape": (
        with_tensors(lambda t: t.update({"head.0.fc.weight": torch.zeros(10, 3)})),
        r"shape \[10, 3\], not \[10, 256\]",
    ),
    "tensor too many": (
        with_tensors(lambda t: t.update({"../../evil": torch.zeros(1)})),
        r"'\.\./\.\./evil' is not a part of it",
    ),
    "tensor missing": (
        with_tensors(lambda t: t.pop("head.0.fc.bias")),
        "'head.0.fc.bias' is missing",
    ),
    "cut": (cut, "does not hold the weights"),
    "a bit flipped": (flipped, "is not what it was saved as"),
    "checksum altered": (with_config(lambda c: c.update(sha256="0" * 64)), "is not what it was"),
    "checksum no text": (with_config(lambda c: c.update(sha256=None)), "is not what it was"),
    "checksum left out": (with_config(lambda c: c.pop("sha256")), "'sha256'"),
    "weights named elsewhere": (
        with_config(lambda c: c.update(weights="../../etc/passwd")),
        "unknown key 'weights'",
    ),
    "backbone as a path": (
        with_config(lambda c: c["model"].update(arch="../../evil")),
        "unknown backbone",
    ),
    "backbone as code": (
        with_config(lambda c: c["model"].update(arch="__import__('os').system('x')")),
        "unknown backbone",
    ),
    "a ScaleNet without end": (
        with_config(lambda c: c["model"].update(arch="scalenet_d99999999999")),
        "scalenet_d99999999999",
    ),
    "a billion classes": (
        with_config(lambda c: c["model"].update(n_classes=10**9)),
        "10 class names",
    ),
    "a million scales": (
        with_config(lambda c: c["model"].update(scales=list(range(1, 4097)))),
        "4096; 64 at most",
    ),
    "meta learners without end": (
        with_config(
            lambda c: c["model"].update(
                method="san", alignment="native", norm="per_scale", meta_hidden=10**12
            )
        ),
        "meta_hidden = 1,000,000,000,000",
    ),
    "thresholds without end": (
        with_config(lambda c: c["model"].update(routing="calibrated:" + "1," * 10**5 + "1")),
        "routing",
    ),
    "statistics no numbers": (
        with_config(lambda c: c["preprocessing"].update(std=[float("nan"), 1, 1])),
        "finite numbers",
    ),
    "division by zero": (
        with_config(lambda c: c["preprocessing"].update(std=[0, 1, 1])),
        "above 0",
    ),
    "JSON of 100 MB": (sparse(CONFIG_FILE, 10**8), "100,000,000 bytes"),
    "JSON of depth 10,000": (
        lambda folder, canary: (folder / CONFIG_FILE).write_text("[" * 10_000 + "]" * 10_000),
        "not JSON that can be read|not a model's configuration",
    ),
    "JSON of other bytes": (
        lambda folder, canary: (folder / CONFIG_FILE).write_bytes(b"\xff\xfe{}"),
        "not JSON that can be read",
    ),
    "weights as a folder": (instead(WEIGHTS_FILE, lambda p: p.mkdir()), "not a file"),
    "weights as a pipe": (instead(WEIGHTS_FILE, os.mkfifo), "not a file"),
    "weights without end": (
        instead(WEIGHTS_FILE, lambda p: p.symlink_to("/dev/zero")),
        "not a file",
    ),
}


def test_there_are_thirty_of_them():
    assert len(CASES) >= 30


@pytest.mark.parametrize("case", CASES)
def test_refused_in_one_line(saved_run, tmp_path, case):
    folder, canary = tmp_path / "model", tmp_path / "ran"
    shutil.copytree(saved_run / "model", folder)
    make, says = CASES[case]
    make(folder, canary)
    started = time.monotonic()
    with pytest.raises(UserError, match=says) as caught:
        load_model_folder(folder)
    assert time.monotonic() - started < SECONDS
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert not canary.exists()


def test_the_canary_sings(tmp_path):
    """What the pickles hold does run where they are read by pickle."""
    pickle.loads(pickle.dumps(Malice(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_links_to_the_files_are_followed(saved_run, tmp_path):
    """As the hub's cache has them."""
    for name in (CONFIG_FILE, WEIGHTS_FILE):
        (tmp_path / name).symlink_to(saved_run / "model" / name)
    assert load_model_folder(tmp_path).model.config.arch == "thin_resnet10"


def test_what_is_beside_the_files_is_not_read(saved_run, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(saved_run / "model", folder)
    for name in ("export.pkl", "pytorch_model.bin", "__init__.py", "conftest.py"):
        (folder / name).write_bytes(pickle.dumps(Malice(tmp_path / "ran")))
    load_model_folder(folder)
    assert not (tmp_path / "ran").exists()
