"""Exported models: the same answers elsewhere, the same routes, and honest errors."""

import hashlib
import importlib.util
import json
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, SCALES
from PIL import Image
from test_families import ROWS, smallest_side_of
from test_folding import shaken

from msun_fastai import export
from msun_fastai.errors import UserError
from msun_fastai.export import check_onnx, export_model
from msun_fastai.models.net import NetConfig
from msun_fastai.models.saving import Preprocessing, SavedModel, save_model_folder
from msun_fastai.models.weights import build_net
from msun_fastai.predict import Predictor, normalize

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
CLASSES = [f"class {i}" for i in range(10)]


@cache
def saved(method="msun", scales=SCALES, arch="thin_resnet10", **options):
    torch.manual_seed(2)
    # with statistics of its own: of many a random network the logits are next to nothing
    model = shaken(build_net(NetConfig(arch, 10, scales, method=method, **options)))
    return SavedModel(model, CLASSES, Preprocessing())


@pytest.fixture(scope="module")
def onnx_folder(tmp_path_factory):
    """The MSUN's files, made once; a test that changes them takes a copy."""
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export_model(saved(), folder)
    return folder


def read_router(folder):
    return json.loads((folder / "router.json").read_text())


def answers_as_the_model(model, folder, batches=(1, 7), bound=1e-4):
    """Every file gives the logits of its scale's network, whatever the size of the batch."""
    networks = read_router(folder)["networks"]
    assert [network["scale"] for network in networks] == list(model.entry_scales)
    for i, network in enumerate(networks):
        file, side = folder / network["file"], network["scale"]
        if file.suffix == ".onnx":
            session = onnxruntime.InferenceSession(file)
            assert session.get_inputs()[0].shape[1:] == [3, side, side]
        else:
            program = torch.export.load(file).module()
        for n in batches:
            x = torch.randn(n, 3, side, side)
            with torch.no_grad():
                expected = model.at_scale(i)(x)
                if file.suffix == ".onnx":
                    found = torch.from_numpy(session.run(["logits"], {"images": x.numpy()})[0])
                else:
                    found = program(x)
            assert (found - expected).abs().max() <= bound * max(1, expected.abs().max())
            assert expected.abs().max() > 100 * bound  # or else it would say little


def test_onnx_of_every_scale(onnx_folder):
    answers_as_the_model(saved().model, onnx_folder)
    onnx = pytest.importorskip("onnx")
    graph = onnx.load(onnx_folder / "scale-16.onnx").graph
    kinds = {node.op_type for node in graph.node}
    assert "Conv" in kinds
    assert "BatchNormalization" not in kinds


# one scale has all that is peculiar to generated kernels; torch.export has the same graphs of three
@pytest.mark.parametrize("scales", [(16,), pytest.param(SCALES, marks=pytest.mark.slow)])
def test_onnx_of_generated_kernels(scales, tmp_path):
    given = with_slopes(saved("san", scales))
    export_model(given, tmp_path)
    answers_as_the_model(given.model, tmp_path)


def with_slopes(given):
    """A SAN whose kernels differ from scale to scale: those of an untrained one are all alike."""
    for name, value in given.model.named_parameters():
        if name.endswith("slope"):
            torch.nn.init.normal_(value, std=0.05)
    return given


@pytest.mark.parametrize(
    "method", ["san", *(pytest.param(m, marks=pytest.mark.slow) for m in ("snet", "rsnet", "mst"))]
)
def test_torch_export(method, tmp_path):
    given = with_slopes(saved(method))
    export_model(given, tmp_path, "torch-export")
    answers_as_the_model(given.model, tmp_path)
    assert not (tmp_path / "run_onnx.py").exists()


def test_torch_export_loads_without_this_package(tmp_path, monkeypatch):
    """A network fitted to one size is one file."""
    fitted = shaken(build_net(NetConfig("thin_resnet10", 10, SCALES)))
    fitted.keep_for(40)
    found = export_model(SavedModel(fitted, CLASSES, Preprocessing()), tmp_path, "torch-export")
    assert list(found.files) == ["scale-40.pt2", "router.json"]
    with monkeypatch.context() as patch:
        for name in [n for n in sys.modules if n.split(".")[0] == "msun_fastai"]:
            patch.setitem(sys.modules, name, None)  # whatever imports it fails
        run = torch.export.load(tmp_path / "scale-40.pt2").module()
    x = torch.randn(5, 3, 40, 40)
    with torch.no_grad():
        assert torch.allclose(run(x), fitted(x), atol=1e-4)


# ---- what is beside the networks --------------------------------------------------------------


def test_the_router(onnx_folder):
    router, config = read_router(onnx_folder), saved().model.config
    assert router["thresholds"] == [24, 48]
    assert (router["scales"], router["classes"]) == (list(SCALES), CLASSES)
    assert (router["method"], router["routing"]) == ("msun", config.routing)
    assert router["resize"]["rule"] == "squish"
    assert router["mean"] == saved().preprocessing.mean
    for network in router["networks"]:
        content = (onnx_folder / network["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == network["sha256"]
    macs = [network["macs"] for network in router["networks"]]
    assert macs == sorted(macs)
    assert macs[0] > 1e7


def test_files_name_no_folder_of_this_machine(onnx_folder):
    for file in onnx_folder.iterdir():
        content = file.read_bytes()
        assert str(ROOT).encode() not in content, file
        assert str(Path(torch.__file__).parent).encode() not in content, file


# ---- the example ------------------------------------------------------------------------------


def run_example(folder, *images):
    """What `run_onnx.py` prints where torch and this package cannot be imported."""
    code = (
        "import runpy, sys;"
        "sys.modules.update(dict.fromkeys(['torch', 'torchvision', 'msun_fastai', 'fastai']));"
        "script, *sys.argv[1:] = sys.argv[1:]; runpy.run_path(script, run_name='__main__')"
    )
    words = [sys.executable, "-c", code, folder / "run_onnx.py", *images]
    return subprocess.run([str(w) for w in words], capture_output=True, text=True)


def routed_alike(rule, onnx_folder, folder):
    """The example and `Predictor` send images of sizes around every threshold to one subnet, and
    answer the same."""
    exported = shutil.copytree(onnx_folder, folder / "exported")
    model = build_net(replace(saved().model.config, routing=rule)).eval()
    model.load_state_dict(saved().model.state_dict())
    given = SavedModel(model, CLASSES, Preprocessing())
    networks = [
        export.ExportedNetwork(**n, difference=0) for n in read_router(exported)["networks"]
    ]
    (exported / "router.json").write_text(json.dumps(export.router(given, "onnx", networks)))
    sizes = [s for t in read_router(exported)["thresholds"] for s in (int(t), int(t) + 1)]
    rng, files = np.random.default_rng(1), []
    for i, size in enumerate([7, *sizes, 300]):
        shape = (size, size + 5, 3) if i % 2 else (size + 9, size, 3)
        files.append(folder / f"{i}.png")
        Image.fromarray(rng.integers(0, 255, shape, np.uint8)).save(files[-1])
    done = run_example(exported, *files)
    assert done.stderr == ""
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    expected = list(Predictor(given).predict(files))
    assert [(row[0], int(row[3])) for row in rows] == [(p.path, p.scale) for p in expected]
    assert [row[1] for row in rows] == [p.label for p in expected]
    for row, p in zip(rows, expected, strict=True):
        assert float(row[2]) == pytest.approx(p.probability, abs=2e-3)
    return {p.scale for p in expected}


@pytest.mark.parametrize("rule", ["nearest", "calibrated:20,90"])
def test_the_example_routes_as_predict_does(rule, onnx_folder, tmp_path):
    assert routed_alike(rule, onnx_folder, tmp_path) == set(SCALES)


def example(folder):
    spec = importlib.util.spec_from_file_location("run_onnx", folder / "run_onnx.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def odd_images(folder):
    """Images of every mode that our decoder converts, turned, and too large for their scale."""
    rng = np.random.default_rng(3)
    colour = Image.fromarray(rng.integers(0, 255, (9, 13, 3), np.uint8)).resize((660, 420))
    rgba = colour.convert("RGBA")
    rgba.putalpha(Image.linear_gradient("L").resize(colour.size))
    exif = Image.Exif()
    grey16 = np.linspace(0, 65535, 660 * 420).reshape(420, 660).astype(np.uint16)
    images = {
        "plain.jpg": (colour, {}),
        "cmyk.jpg": (colour.convert("CMYK"), {}),
        "grey.jpg": (colour.convert("L"), {}),
        "alpha.png": (rgba, {}),
        "palette.png": (colour.quantize(16), {"transparency": 3}),
        "grey_alpha.png": (rgba.convert("LA"), {}),
        "sixteen.png": (Image.fromarray(grey16), {}),
        "float.tif": (Image.fromarray((grey16 / 65535).astype(np.float32)), {}),
        "one_bit.png": (colour.convert("1"), {}),
    }
    for turn in range(2, 9):
        exif[0x0112] = turn
        images[f"turn_{turn}.jpg"] = (colour, {"exif": exif.tobytes()})
    images["turned.png"] = (colour, {"exif": exif.tobytes()})
    for name, (image, options) in images.items():
        image.save(folder / name, **options)
    return [folder / name for name in images]


@pytest.mark.parametrize("rule", ["squish", "crop", "pad"])
def test_the_example_prepares_images_as_predict_does(rule, onnx_folder, tmp_path):
    """Within a level of 255 in a pixel: the two resample alike, but round each in its own way."""
    given = replace(saved(), preprocessing=Preprocessing(rule))
    networks = [
        export.ExportedNetwork(**n, difference=0) for n in read_router(onnx_folder)["networks"]
    ]
    router, module = export.router(given, "onnx", networks), example(onnx_folder)
    predictor = Predictor(given)
    std = np.array(router["std"])[:, None, None]
    for file in odd_images(tmp_path):
        prediction, pixels = predictor._decode(file)
        network, x = module.prepare(str(file), router)
        assert network["scale"] == prediction.scale
        expected = normalize(pixels[None], given.preprocessing).numpy()
        assert (np.abs(x - expected) * std * 255).max() <= 1.01, file.name


def test_an_altered_or_missing_file_is_one_line(onnx_folder, tmp_path):
    image = tmp_path / "a.png"
    Image.new("RGB", (16, 16)).save(image)
    (tmp_path / "broken.png").write_bytes(b"no image")
    folder = shutil.copytree(onnx_folder, tmp_path / "exported")
    done = run_example(folder, tmp_path / "broken.png", image, tmp_path / "absent.png")
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 1
    assert ["cannot be read" in line for line in done.stderr.splitlines()] == [True, True]

    module = example(folder)
    small = folder / "scale-16.onnx"
    small.write_bytes(small.read_bytes()[:-1] + b"!")
    for file, does, says in (
        (small, lambda: None, "scale-16.onnx: was changed after the export"),
        (small, small.unlink, "scale-16.onnx: No such file"),
        (None, lambda: (folder / "router.json").write_text('{"format": 9}'), "router.json: cannot"),
        (None, lambda: (folder / "router.json").unlink(), "router.json: cannot be read"),
    ):
        does()
        with pytest.raises(SystemExit, match=f"{says}.*export the model again$"):
            module.main([str(image)])
        assert file is None or file.name in says


# ---- errors -----------------------------------------------------------------------------------


def test_what_is_refused(run, saved_run, tmp_path, monkeypatch):
    def refused(*words):
        code, out, err = run("export", "--model", saved_run, *words)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1
        return err

    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").touch()
    assert "exists and is not empty; name another" in refused("--out", tmp_path / "full")
    new = tmp_path / "new"
    assert "did you mean onnx?" in refused("--out", new, "--format", "onxx")
    assert "cannot be written to" in refused("--out", tmp_path / "full" / "mine" / "x")
    monkeypatch.setattr(export, "LARGEST_ONNX", 100)
    assert "GiB of weights, and an ONNX file holds 2" in refused("--out", new)
    monkeypatch.setattr(export, "ONNX_PACKAGES", ("onnx", "no_such_package"))
    assert "no_such_package not installed; pip install 'msun-fastai[onnx]'" in refused("--out", new)
    assert [p.name for p in tmp_path.iterdir()] == ["full"]
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["mine"]


def test_a_file_that_answers_otherwise_is_not_kept(tmp_path, monkeypatch):
    """And nothing of the export is, for the second of two files is wrong here."""
    captured = export.captured

    def wrong(network, side):
        with torch.no_grad():
            if side == 64:
                next(network.parameters()).add_(0.5)
        return captured(network, side)

    monkeypatch.setattr(export, "captured", wrong)
    with pytest.raises(RuntimeError, match=r"scale-64.pt2: its logits differ from the model's"):
        export_model(saved(scales=(16, 64)), tmp_path / "new", "torch-export")
    assert list(tmp_path.iterdir()) == []
    assert check_onnx(saved()) is None
    with pytest.raises(UserError, match="is no folder"):
        export_model(saved(), Path(__file__), "torch-export")


# ---- a pickled Learner ------------------------------------------------------------------------


@pytest.mark.parametrize("fitted", [False, True])
def test_a_learner_answers_as_predict_does(fitted, run, tmp_path):
    """Without the data that the model was trained on, with its routing, resizing, statistics."""
    from fastai.learner import load_learner

    model = build_net(NetConfig("thin_resnet10", 10, SCALES, routing="calibrated:20,30")).eval()
    if fitted:
        model.keep_for(40)
    about = Preprocessing("pad", [0.4] * 3, [0.3] * 3)
    save_model_folder(tmp_path / "model", SavedModel(model, CLASSES, about))
    out = tmp_path / "out"
    code, told, _ = run("export", "--model", tmp_path, "--format", "fastai", "--out", out)
    assert code == 0
    assert "a pickle, which runs code when it is loaded" in told
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fastai's own warning of pickles
        learn = load_learner(out / "learner.pkl")
    predictor = Predictor.from_run(tmp_path, "cpu")
    rng = np.random.default_rng(4)
    for size in (12, 22, 40):
        image = Image.fromarray(rng.integers(0, 255, (size, size + 7, 3), np.uint8))
        expected = predictor.predict_one(image, top=10)
        label, code, probabilities = learn.predict(image)
        assert (label, CLASSES[int(code)]) == (expected.label, expected.label)
        found = dict(zip(CLASSES, probabilities.tolist(), strict=True))
        assert found == pytest.approx(dict(expected.top), abs=1e-5)


def test_the_verb(run, tmp_path):
    """A network of one scale is one file, whose size is told."""
    given, folder = saved("vanilla", (64,)), tmp_path / "out"
    save_model_folder(tmp_path / "model", given)
    code, out, err = run("export", "--model", tmp_path, "--out", folder, "--json", "-")
    assert code == 0
    found = json.loads(out)
    sizes = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert found["files"] == sizes
    assert set(sizes) == {"scale-64.onnx", "run_onnx.py", "router.json"}
    assert found["networks"][0]["difference"] < 1e-4
    assert f"{sizes['scale-64.onnx']:,}" in err
    assert read_router(folder)["thresholds"] == []
    answers_as_the_model(given.model, folder)


# ---- other networks ---------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["resnet50", "densenet121", "vgg16", "mobilenet_v2"])
def test_large_networks(arch, tmp_path):
    given = saved.__wrapped__(arch=arch, scales=(32, 128, 224))
    export_model(given, tmp_path)
    answers_as_the_model(given.model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ROWS)
def test_every_family(arch, tmp_path):
    side = max(32, smallest_side_of(arch))
    given = saved.__wrapped__("vanilla", (side,), arch)
    export_model(given, tmp_path)
    answers_as_the_model(given.model, tmp_path)


@pytest.mark.slow
def test_real_photographs(real_data, onnx_folder, tmp_path):
    """The example and `Predictor` on photographs, two thirds of them reduced: the same subnets, the
    same classes, logits that hardly differ."""
    from msun_fastai.data.sources import source_from_name

    given, module, router = saved(), example(onnx_folder), read_router(onnx_folder)
    images = source_from_name("caltech101", real_data, 1).limited(60, 1).train
    predictor, subnets, same = Predictor(given), set(), 0
    for i, sample in enumerate(images):
        file = tmp_path / f"{i}.jpg"
        file.write_bytes(sample.image.open_bytes())
        if side := (0, 20, 40)[i % 3]:
            with Image.open(file) as image:
                small = image.convert("RGB").resize((side, side + i))
            small.save(file)
        prediction, pixels = predictor._decode(file)
        network, x = module.prepare(str(file), router)
        assert network["scale"] == prediction.scale
        subnets.add(network["scale"])
        with torch.no_grad():
            expected = given.model(normalize(pixels[None], given.preprocessing))[0]
        (found,) = module.load(network).run(["logits"], {"images": x})
        assert np.abs(found[0] - expected.numpy()).max() <= 0.02
        same += int(found.argmax()) == int(expected.argmax())
    assert subnets == set(SCALES)
    assert same >= 0.95 * len(images)
