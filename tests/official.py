"""Small datasets in the exact layout of the official archives, written for the tests."""

import gzip
import io
import pickle
import struct

import numpy as np
from PIL import Image
from scipy.io import savemat

from msun_fastai.data.archive_files import RAF_DB

rng = np.random.default_rng(5)
BANNER = 20


def jpeg(path, width=48, height=40, banner=0, text=None):
    """A photo-like file, with a white banner at the bottom where one is asked for."""
    pixels = rng.integers(0, 200, (height // 8, width // 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((width, height))
    if banner:
        image.paste("white", (0, height - banner, width, height))
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, "JPEG")
    return path


def lines(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows))


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(value, protocol=2))


def pixels(n, size):
    return rng.integers(0, 256, (n, size), dtype=np.uint8)


def cifar10(root):
    folder = root / "cifar-10-batches-py"
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        dump(folder / name, {"data": pixels(4, 3072), "labels": [0, 1, 2, 9]})
    dump(folder / "batches.meta", {"label_names": [f"class{i}" for i in range(10)]})
    return {"train": 20, "test": 4}


def cifar100(root):
    folder = root / "cifar-100-python"
    for name in ("train", "test"):
        dump(folder / name, {"data": pixels(6, 3072), "fine_labels": [0, 1, 99] * 2})
    dump(folder / "meta", {"fine_label_names": [f"fine{i}" for i in range(100)]})
    return {"train": 6, "test": 6}


def stl10(root):
    folder = root / "stl10_binary"
    lines(folder / "class_names.txt", [f"class{i}" for i in range(10)])
    for split in ("train", "test"):
        pixels(6, 3 * 96 * 96).tofile(folder / f"{split}_X.bin")
        np.array([1, 2, 10] * 2, np.uint8).tofile(folder / f"{split}_y.bin")
    return {"train": 6, "test": 6}


def caltech101(root):
    folder = root / "caltech101" / "101_ObjectCategories"
    for i in range(101):
        for k in range(33 if i == 0 else 2):
            jpeg(folder / f"class{i:03d}" / f"image_{k:04d}.jpg")
    jpeg(folder / "BACKGROUND_Google" / "image_0001.jpg")
    return {"train": 30 + 100, "test": 3 + 100}


def fashion_mnist(root):
    folder = root / "FashionMNIST" / "raw"
    folder.mkdir(parents=True)
    for prefix in ("train", "t10k"):
        images = struct.pack(">iiii", 0x803, 6, 28, 28) + pixels(6, 784).tobytes()
        labels = struct.pack(">ii", 0x801, 6) + bytes([0, 1, 9] * 2)
        (folder / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(images))
        (folder / f"{prefix}-labels-idx1-ubyte").write_bytes(labels)
    return {"train": 6, "test": 6}


def oxford_flowers102(root):
    folder = root / "flowers-102"
    for i in range(1, 13):
        jpeg(folder / "jpg" / f"image_{i:05d}.jpg")
    savemat(folder / "imagelabels.mat", {"labels": np.array([[1, 2, 77, 102] * 3], np.uint8)})
    ids = {"trnid": [1, 2, 3, 4], "valid": [5, 6, 7, 8], "tstid": [9, 10, 11, 12]}
    savemat(folder / "setid.mat", {k: np.array([v], np.uint16) for k, v in ids.items()})
    return {"train": 4, "valid": 4, "test": 4}


def oxford_pets(root):
    folder = root / "oxford-iiit-pet"
    breeds = [f"{'Cat' if i % 2 else 'dog'}_breed{i}" for i in range(1, 38)]
    for part, k in (("trainval", 1), ("test", 2)):
        rows = [f"{b}_{k} {i} 1 {i}" for i, b in enumerate(breeds, start=1)]
        lines(folder / "annotations" / f"{part}.txt", ["# a comment", *rows])
        for b in breeds:
            jpeg(folder / "images" / f"{b}_{k}.jpg")
    return {"train": 37, "test": 37}


def stanford_cars(root):
    folder = root / "stanford_cars"
    kit = folder / "devkit"
    kit.mkdir(parents=True)
    names = np.array([f"Make Model {i}" for i in range(196)], dtype=object)
    savemat(kit / "cars_meta.mat", {"class_names": names[None]})
    kind = [("bbox_x1", "u1"), ("class", "u1"), ("fname", object)]
    for split, name in (("train", "cars_train_annos"), ("test", "cars_test_annos_withlabels")):
        rows = [(1, c, f"{i:05d}.jpg") for i, c in enumerate((1, 2, 196), start=1)]
        savemat(kit / f"{name}.mat", {"annotations": np.array([rows], dtype=kind)})
        for _, _, file in rows:
            jpeg(folder / f"cars_{split}" / file, 90, 60)
    return {"train": 3, "test": 3}


def fgvc_aircraft(root):
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = [f"{i}-200" if i % 2 else f"DHC {i}" for i in range(100)]
    lines(data / "variants.txt", variants)
    for split, start in (("train", 0), ("val", 10), ("test", 20)):
        rows = [f"{1000000 + start + i} {variants[i]}" for i in range(3)]
        lines(data / f"images_variant_{split}.txt", rows)
        for row in rows:
            jpeg(data / "images" / f"{row.split()[0]}.jpg", 80, 60, banner=BANNER)
    return {"train": 3, "valid": 3, "test": 3}


def dtd(root):
    folder = root / "dtd" / "dtd"
    classes = [f"texture{i:02d}" for i in range(47)]
    for part, k in (("train1", 1), ("val1", 2), ("test1", 3)):
        lines(folder / "labels" / f"{part}.txt", [f"{c}/{c}_{k:04d}.jpg" for c in classes])
        for c in classes:
            jpeg(folder / "images" / c / f"{c}_{k:04d}.jpg")
    # another of the ten splits, which nobody asked for
    lines(folder / "labels" / "train2.txt", [f"{classes[0]}/{classes[0]}_0003.jpg"])
    return {"train": 47, "valid": 47, "test": 47}


def raf_db(root):
    folder = root / "raf_db" / "basic"
    rows = [f"{s}_{i:05d}.jpg {i}" for s in ("train", "test") for i in range(1, len(RAF_DB) + 1)]
    lines(folder / "EmoLabel" / "list_patition_label.txt", rows)
    for row in rows:
        name = row.split()[0].replace(".jpg", "_aligned.jpg")
        jpeg(folder / "Image" / "aligned" / name, 100, 100)
    return {"train": 7, "test": 7}


def imagenet(root):
    data = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(data, "JPEG")
    for part, name in (("train", "n{}_1.JPEG"), ("val", "ILSVRC2012_val_{}.JPEG")):
        for i in range(1000):
            file = root / "imagenet" / part / f"n{i:08d}" / name.format(i)
            file.parent.mkdir(parents=True)
            file.write_bytes(data.getvalue())
    return {"train": 1000, "valid": 1000}


WRITERS = {
    f.__name__: f
    for f in (
        *(cifar10, cifar100, stl10, caltech101, fashion_mnist, oxford_flowers102, oxford_pets),
        *(stanford_cars, fgvc_aircraft, dtd, raf_db, imagenet),
    )
}
