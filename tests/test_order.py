"""Predictions come back in order from every source, whatever the workers and the batch size."""

import numpy as np
import official
import pandas as pd
import pytest
import torch
from PIL import Image
from test_stream import shards

from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.data.samples import make_source
from msun_fastai.data.sources import source_from_name, source_from_path

SCALES = (16, 32)


def folder(root):
    rng = np.random.default_rng(2)
    for i in range(36):
        file = root / "photos" / "ab"[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        side = (12, 30, 60)[i % 3]
        Image.fromarray(rng.integers(0, 256, (side, side + 5, 3), dtype=np.uint8)).save(file)
    return source_from_path(root / "photos", valid_fraction=0.4)


def table(root):
    folder(root)
    rows = [(f"photos/{'ab'[i % 2]}/{i}.png", "xy"[i % 2], i % 3 == 0) for i in range(36)]
    columns = ["path", "label", "is_valid"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "labels.csv", index=False)
    return source_from_path(root / "labels.csv")


def parquet(root):
    for split in ("train", "test"):
        shards(root / "grey", split, 30)
    return source_from_name("grey", root)


def archive(name):
    def source(root):
        official.WRITERS[name](root)
        found = source_from_name(name, root)
        if name == "imagenet":  # its writer links one image a thousand times
            for sample in found.train[:20]:
                sample.image.unlink()
                official.jpeg(sample.image)
        return make_source(name, found.train[:20], found.train[:20], found.classes)

    return source


SOURCES = {
    "folder": folder,
    "table": table,
    "Parquet": parquet,
    "embedded": lambda root: source_from_name("shapes").limited(20),
    **{name: archive(name) for name in official.WRITERS},
}


@pytest.mark.parametrize("name", SOURCES)
def test_in_order_with_any_number_of_workers(tmp_path, make_learner, name):
    source = SOURCES[name](tmp_path)
    dls = NativeImageDataLoaders.from_source(
        source, scales=SCALES, bs=5, num_workers=0, device="cpu"
    )
    learn = make_learner(dls=dls)
    learn.model.eval()
    one_by_one = torch.stack([learn.predict(sample)[2] for sample in source.valid])
    assert one_by_one.std(0).mean() > 1e-5  # else any order would pass
    for workers in (0, 1, 2, 4):
        dl = learn.dls.test_dl(source.valid, bs=5, num_workers=workers)
        assert (learn.get_preds(dl=dl)[0] - one_by_one).abs().max() < 1e-4
    preds, targets = learn.get_preds()
    assert (preds - one_by_one).abs().max() < 1e-4
    assert targets.tolist() == [source.classes.index(s.label) for s in source.valid]
