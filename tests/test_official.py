"""The twelve datasets in their official layouts: what is read, what is refused, training."""

import json
import os
import pickle

import numpy as np
import official as writers
import pytest
from official import WRITERS

from msun_fastai.cli import main
from msun_fastai.data.catalog import CATALOG
from msun_fastai.data.describe import parts_of
from msun_fastai.data.images import load_image, read_header
from msun_fastai.data.official import READERS
from msun_fastai.data.sources import find_layout, source_from_name
from msun_fastai.errors import UserError


@pytest.fixture(scope="module", params=list(WRITERS))
def laid_out(request, tmp_path_factory):
    root = tmp_path_factory.mktemp(request.param)
    return request.param, root, WRITERS[request.param](root)


def expected_parts(name, counts):
    """Datasets without a validation split are watched on their test split."""
    if "valid" in counts:
        return counts
    return {"train": counts["train"], "valid": counts["test"]}


def test_every_dataset_has_a_reader_and_a_writer():
    assert set(READERS) == set(CATALOG) == set(WRITERS)
    assert len(CATALOG) == 12


def test_what_is_read(laid_out):
    name, root, counts = laid_out
    assert find_layout(name, root)[0] == "official"
    source = source_from_name(name, root)
    assert parts_of(source) == expected_parts(name, counts)
    assert len(source.classes) == CATALOG[name].classes
    assert all(load_image(s.image).mode == "RGB" for s in source.samples[:5])
    assert all(min(read_header(s.image)) > 0 for s in source.samples[:5])
    assert "a part of the dataset" in source.notes[0]


def test_finetune_on_every_dataset(laid_out, tmp_path, capsys):
    name, root, _ = laid_out
    words = [
        *("finetune", "--dataset", name, "--data-root", str(root), "--limit", "64"),
        *("--epochs", "1", "--arch", "thin_resnet10", "--no-pretrained", "--scales", "16,32"),
        *("--bs", "16", "--device", "cpu", "--set", "data.workers=0"),
        *("--run-dir", str(tmp_path / "run"), "--set", "train.report=false"),
    ]
    with pytest.raises(SystemExit) as ended:
        main(words)
    out = capsys.readouterr()
    assert ended.value.code == 0, out.err
    assert "a part of the dataset" in out.out
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["classes"] == CATALOG[name].classes
    if metrics["test_images"]:
        assert f"({metrics['test_images']} test images)" in out.out


def test_class_folders_under_a_known_name(tmp_path):
    for label in "ab":
        for k in range(3):
            writers.jpeg(tmp_path / "stanford_cars" / label / f"{k}.jpg")
    assert find_layout("stanford_cars", tmp_path) == ("folders", tmp_path / "stanford_cars")
    assert source_from_name("stanford_cars", tmp_path).classes == ["a", "b"]


def test_labels_and_pixels_of_the_array_datasets(tmp_path):
    writers.cifar10(tmp_path)
    batch = pickle.loads((tmp_path / "cifar-10-batches-py" / "test_batch").read_bytes())
    last = source_from_name("cifar10", tmp_path).valid[-1]
    assert last.label == "class9"
    red = batch["data"][3][:1024].reshape(32, 32)
    assert np.array_equal(np.asarray(load_image(last.image))[..., 0], red)
    writers.stl10(tmp_path)
    raw = np.fromfile(tmp_path / "stl10_binary" / "test_X.bin", np.uint8)[: 96 * 96]
    first = source_from_name("stl10", tmp_path).valid[0]
    assert first.label == "class0"
    # the archive stores columns
    assert np.array_equal(np.asarray(load_image(first.image))[..., 0], raw.reshape(96, 96).T)
    writers.fashion_mnist(tmp_path)
    source = source_from_name("fashion_mnist", tmp_path)
    assert [s.label for s in source.train[:3]] == ["T-shirt/top", "Trouser", "Ankle boot"]


def test_labels_of_the_file_datasets(tmp_path):
    for write in WRITERS.values():
        if write.__name__ not in ("imagenet", "caltech101", "dtd"):
            write(tmp_path)
    by_name = {n: source_from_name(n, tmp_path) for n in ("stanford_cars", "oxford_pets", "raf_db")}
    assert [s.label for s in by_name["stanford_cars"].train] == [
        *("Make Model 0", "Make Model 1", "Make Model 195")
    ]
    pet = by_name["oxford_pets"].train[1]
    assert (pet.label, pet.image.name) == ("dog_breed2", "dog_breed2_1.jpg")
    assert by_name["raf_db"].train[3].label == "happiness"
    flowers = source_from_name("oxford_flowers102", tmp_path)
    assert [s.label for s in flowers.test] == ["1", "2", "77", "102"]
    assert flowers.test[0].image.name == "image_00009.jpg"


def test_the_banner_below_aircraft_is_cut(tmp_path):
    writers.fgvc_aircraft(tmp_path)
    source = source_from_name("fgvc_aircraft", tmp_path)
    for sample in source.samples:
        assert read_header(sample.image) == (80, 40)
        image = load_image(sample.image)
        assert image.size == (80, 40)
        assert np.asarray(image)[-4:].mean() < 210  # the banner is white


def test_caltech_gives_30_of_each_class_by_seed(tmp_path):
    writers.caltech101(tmp_path)
    one, same, other = (source_from_name("caltech101", tmp_path, seed=s) for s in (1, 1, 2))
    assert one.train == same.train != other.train
    assert sum(s.label == "class000" for s in one.train) == 30
    assert not {s.image for s in one.train} & {s.image for s in one.valid}


def test_lists_that_do_not_fit_are_named(tmp_path):
    from scipy.io import savemat

    writers.oxford_flowers102(tmp_path)
    ids = {"trnid": [[1]], "valid": [[2]], "tstid": [[99]]}
    savemat(tmp_path / "flowers-102" / "setid.mat", ids)
    with pytest.raises(UserError, match="flowers-102 is not as the official archive"):
        source_from_name("oxford_flowers102", tmp_path)
    fashion = tmp_path / "FashionMNIST" / "raw"
    writers.fashion_mnist(tmp_path)
    (fashion / "train-images-idx3-ubyte.gz").write_bytes(b"not packed")
    with pytest.raises(UserError, match="raw is not as the official archive"):
        source_from_name("fashion_mnist", tmp_path)


class Hostile:
    def __reduce__(self):
        return os.system, ("touch hacked",)


@pytest.mark.parametrize(
    ("name", "file", "damage", "says"),
    [
        ("cifar10", "cifar-10-batches-py/data_batch_1", pickle.dumps(Hostile()), "is no array"),
        ("cifar10", "cifar-10-batches-py/data_batch_1", b"cos\nsystem\n(S'x'\ntR.", "is no array"),
        ("cifar10", "cifar-10-batches-py/test_batch", b"", "not a batch of CIFAR"),
        ("cifar10", "cifar-10-batches-py/test_batch", pickle.dumps({"labels": [1]}), "not a batch"),
        ("cifar10", "cifar-10-batches-py/data_batch_2", None, "data_batch_2 is missing"),
        (
            "cifar100",
            "cifar-100-python/test",
            pickle.dumps({"data": np.zeros((1, 3072), np.uint8), "fine_labels": [100]}, 2),
            r"test, row 1: label 100 is outside 0 to 99",
        ),
        ("cifar100", "cifar-100-python/meta", pickle.dumps({"fine_label_names": ["a"]}), "outside"),
        ("stl10", "stl10_binary/train_X.bin", bytes(100), "100 bytes do not fit 6 labels"),
        ("fashion_mnist", "FashionMNIST/raw/t10k-labels-idx1-ubyte", b"\0\0\x08\x01", "cut short"),
        ("stanford_cars", "stanford_cars/devkit/cars_meta.mat", b"x", "not a .mat file"),
        ("stanford_cars", "stanford_cars/devkit/cars_meta.mat", None, "cars_meta.mat is missing"),
        ("oxford_pets", "oxford-iiit-pet/annotations/test.txt", b"Cat_1\n", "test.txt, row 1"),
        (
            "fgvc_aircraft",
            "fgvc-aircraft-2013b/data/images_variant_val.txt",
            b"1 Zeppelin\n",
            "row 1: unknown variant 'Zeppelin'",
        ),
        ("stl10", "stl10_binary/train_X.bin", b"", "stl10_binary is not as the official archive"),
        ("cifar10", "cifar-10-batches-py/batches.meta", pickle.dumps({}), "'label_names'"),
        ("dtd", "dtd/dtd/labels/test1.txt", None, "test1.txt is missing"),
        ("raf_db", "raf_db/basic/EmoLabel/list_patition_label.txt", b"train_1.jpg 8\n", "1 to 7"),
        ("raf_db", "raf_db/basic/EmoLabel/list_patition_label.txt", b"dev_1.jpg 1\n", "neither"),
    ],
)
def test_damaged_archives_are_named(tmp_path, monkeypatch, name, file, damage, says):
    monkeypatch.chdir(tmp_path)
    WRITERS[name](tmp_path)
    if damage is None:
        (tmp_path / file).unlink()
    else:
        (tmp_path / file).write_bytes(damage)
    with pytest.raises(UserError, match=says):
        source_from_name(name, tmp_path)
    assert not (tmp_path / "hacked").exists()
