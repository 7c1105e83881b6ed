"""A trained model in files for elsewhere: the plain network of each scale, and what routes images
to them.

A file takes images of one side and any number of them. With a dynamic side, too, the route that
the example took would be built in, without an error; so routing stays outside, in `router.json`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from msun_fastai import __version__
from msun_fastai.data.images import REDUCTIONS
from msun_fastai.data.resize import CROPPED, GREY, SPARE
from msun_fastai.errors import UserError
from msun_fastai.files import replacing, write_json, write_text
from msun_fastai.flops import count_macs
from msun_fastai.models.checked import digest
from msun_fastai.models.folding import folded
from msun_fastai.models.saving import SavedModel
from msun_fastai.scales import check_choice, thresholds

FORMATS = ("onnx", "torch-export", "fastai")
ROUTER_FORMAT = 1
ROUTER_FILE, RUNNER_FILE, LEARNER_FILE = "router.json", "run_onnx.py", "learner.pkl"
INPUT, OUTPUT = "images", "logits"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
LARGEST_ONNX = 2**31 - 2**20  # bytes of weights: a protobuf file holds 2 GiB, graph and all
TOLERANCE = 1e-3  # of the largest logit: single precision leaves a thousandth of that, an error all
CHECKED = (
    3  # images on which a file has to answer as the model; it was captured with another number
)
Run = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ExportedNetwork:
    """The file of one scale: for images of that side in pixels.

    macs: multiply-accumulates for one image. difference: the largest one between its logits and
    the model's, on random images.
    """

    scale: int
    file: str
    sha256: str
    macs: int
    difference: float


@dataclass(frozen=True)
class Exported:
    """What was written: the files in `folder` with their sizes in bytes, and the networks among
    them (none where the model went into one file whole)."""

    folder: Path
    kind: str
    files: dict[str, int]
    networks: list[ExportedNetwork]

    def as_dict(self) -> dict[str, Any]:
        """The figures as JSON takes them."""
        networks = [asdict(network) for network in self.networks]
        return {**self.__dict__, "folder": str(self.folder), "networks": networks}


def export_model(saved: SavedModel, folder: Path | str, kind: str = "onnx") -> Exported:
    """Write the model to `folder`, which is new or empty, in the format `kind`; see `FORMATS`.

    On an error nothing is left behind. `router.json` comes last: a folder that has it is whole.
    Raises `UserError`.
    """
    check_choice("format", kind, FORMATS)
    if kind == "onnx":
        check_onnx(saved)
    path = Path(folder)
    networks: list[ExportedNetwork] = []
    with _filled(path):
        if kind == "fastai":
            _write_learner(saved, path / LEARNER_FILE)
        else:
            networks = _write_networks(saved, path, kind)
            if kind == "onnx":
                example = Path(__file__).parent / "elsewhere" / RUNNER_FILE
                write_text(path / RUNNER_FILE, example.read_text(encoding="utf-8"))
            write_json(path / ROUTER_FILE, router(saved, kind, networks))
    names = [n.file for n in networks] + [RUNNER_FILE, ROUTER_FILE, LEARNER_FILE]
    files = [path / name for name in names if (path / name).is_file()]
    return Exported(path, kind, {file.name: file.stat().st_size for file in files}, networks)


def check_onnx(saved: SavedModel) -> None:
    """Raise `UserError` where ONNX files cannot be made here, or not of this model."""
    missing = [name for name in ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise UserError(
            f"--format onnx: {' and '.join(missing)} not installed; pip install 'msun-fastai[onnx]'"
        )
    for i, scale in enumerate(saved.model.entry_scales):
        weights = saved.model.at_scale(i).parameters()
        size = sum(p.numel() * p.element_size() for p in weights)
        if size > LARGEST_ONNX:
            raise UserError(
                f"--format onnx: the network of scale {scale} has {size / 2**30:.1f} GiB of "
                "weights, and an ONNX file holds 2; --format torch-export has no such limit"
            )


def router(saved: SavedModel, kind: str, networks: list[ExportedNetwork]) -> dict[str, Any]:
    """All that has to be known beside the networks, as `router.json` has it.

    An image whose shorter side is at most `thresholds[i]` goes to the i-th network, or to one
    before it; what is above all thresholds to the last.
    """
    model, preprocessing = saved.model, saved.preprocessing
    cropped = preprocessing.resize == "crop"
    return {
        "format": ROUTER_FORMAT,
        "msun_fastai": __version__,
        "files": kind,
        "arch": model.config.arch,
        "method": model.config.method,
        "scales": list(model.entry_scales),
        "routing": model.config.routing,
        "thresholds": list(thresholds(tuple(model.entry_scales), model.config.routing)),
        "resize": {
            "rule": preprocessing.resize,
            "interpolation": "bilinear, antialiased, on 8-bit pixels",
            "kept": CROPPED if cropped else 1.0,
            "grey": list(GREY),
            "jpeg_reductions": list(REDUCTIONS),
            "jpeg_spare": SPARE,
        },
        "mean": preprocessing.mean,
        "std": preprocessing.std,
        "classes": saved.classes,
        "input": INPUT,
        "output": OUTPUT,
        "networks": [
            {key: value for key, value in asdict(network).items() if key != "difference"}
            for network in networks
        ],
    }


def captured(network: nn.Module, side: int) -> ExportedProgram:
    """`network` as a graph for images (n, 3, side, side), n from 1 on.

    Without the example that it was captured with, and without the places in the source code, which
    name folders of this machine.
    """
    example = torch.zeros(2, 3, side, side)  # of one, torch would take the number for a constant
    shapes = ({0: Dim("batch")},)
    program = torch.export.export(network, (example,), dynamic_shapes=shapes)
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    program.example_inputs = None
    return program


@contextmanager
def _filled(folder: Path) -> Iterator[None]:
    """`folder` is there, and empty at first; what an error leaves in it is removed."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        what = "exists and is not empty" if folder.is_dir() else "is no folder"
        raise UserError(f"--out {folder}: {what}; name another")
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {folder}: cannot be made ({error.strerror})") from error
    try:
        yield
    except BaseException:
        for file in folder.iterdir():
            file.unlink()
        if made:
            folder.rmdir()
        raise


def _write_networks(saved: SavedModel, folder: Path, kind: str) -> list[ExportedNetwork]:
    suffix, save, load = (
        (".onnx", _save_onnx, _load_onnx) if kind == "onnx" else (".pt2", _save_pt2, _load_pt2)
    )
    networks = []
    for i, scale in enumerate(saved.model.entry_scales):
        name, plain = f"scale-{scale}{suffix}", saved.model.at_scale(i).eval()
        with replacing(folder / name) as temporary:
            save(captured(folded(plain, scale), scale), temporary)
            difference = _difference(load(temporary), plain, scale, name)
        networks.append(
            ExportedNetwork(
                scale, name, digest(folder / name), count_macs(plain, scale), difference
            )
        )
    return networks


def _save_onnx(program: ExportedProgram, file: Path) -> None:
    made = torch.onnx.export(
        program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT]
    )
    assert made is not None
    file.write_bytes(made.model_proto.SerializeToString())


def _load_onnx(file: Path) -> Run:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run([OUTPUT], {INPUT: x.numpy()})[0])


def _save_pt2(program: ExportedProgram, file: Path) -> None:
    with file.open("wb") as out:  # of a path, torch would warn that it does not end in .pt2
        torch.export.save(program, out)


def _load_pt2(file: Path) -> Run:
    with file.open("rb") as content:
        return torch.export.load(content).module()


@torch.no_grad()
def _difference(run: Run, plain: nn.Module, side: int, name: str) -> float:
    """The largest difference between the logits of a file and the model's, if it is small."""
    x = torch.randn(CHECKED, 3, side, side, generator=torch.Generator().manual_seed(0))
    expected = plain(x)
    difference = float((run(x) - expected).abs().max())
    if not difference <= TOLERANCE * float(expected.abs().max()):  # nor is it not a number
        raise RuntimeError(f"{name}: its logits differ from the model's by {difference:g}")
    return difference


def _write_learner(saved: SavedModel, file: Path) -> None:
    from msun_fastai.learner import prediction_learner

    learn = prediction_learner(saved)
    with replacing(file) as temporary:
        learn.export(temporary.absolute())
