"""Decoded images kept in memory: the same pixels, decoded once, whatever the workers."""

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from msun_fastai.data import cache, native_dl
from msun_fastai.data.cache import PixelCache, default_budget, free_memory
from msun_fastai.data.images import OpenedImage
from msun_fastai.data.loaders import NativeImageDataLoaders
from msun_fastai.data.samples import Sample, make_source

SCALES = (16, 32)


def array(i, *shape):
    return np.full(shape, i, np.uint8)


def test_what_fits_is_kept():
    kept = PixelCache(4, 100)
    kept.put(2, array(7, 3, 4, 4))
    kept.put(0, array(8, 2, 5, 6))
    assert kept.get(0) is None  # 60 bytes, where 48 of 100 are taken
    kept.put(1, array(9, 1, 5, 3))
    assert (len(kept), kept.get(2).shape, kept.get(1).tolist()) == (2, (3, 4, 4), [[[9] * 3] * 5])
    kept.put(2, array(1, 3, 4, 4))
    assert kept.get(2).max() == 7  # the first stays
    assert PixelCache(3, 0).get(0) is None
    PixelCache(0, 10).put(0, array(1, 1, 1, 1))


def test_a_child_process_shares_it_and_a_pickle_has_none():
    kept = PixelCache(3, 1000)
    fork = multiprocessing.get_context("fork")
    child = fork.Process(target=kept.put, args=(1, array(5, 2, 2, 3)))
    child.start()
    child.join()
    assert kept.get(1).tolist() == array(5, 2, 2, 3).tolist()
    copy = pickle.loads(pickle.dumps(kept))
    copy.put(0, array(1, 1, 1, 1))
    assert len(copy) == 0


def test_the_budget_depends_on_what_is_free(monkeypatch):
    assert free_memory() is None or free_memory() > 0
    for free, budget in ((2**30, 2**28), (2**40, cache.MOST), (None, cache.UNKNOWN)):
        monkeypatch.setattr(cache, "free_memory", lambda free=free: free)
        assert default_budget() == budget
    monkeypatch.setattr(cache.mmap, "mmap", lambda *a: (_ for _ in ()).throw(OSError("too much")))
    assert PixelCache(3, 10**9).budget == 0


@pytest.fixture
def source(tmp_path):
    rng = np.random.default_rng(0)
    samples = []
    for i in range(24):
        file = tmp_path / f"{i}.jpg"
        pixels = rng.integers(0, 256, (8, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((150 if i % 2 else 30, 120 if i % 2 else 24)).save(file)
        samples.append(Sample(file, "ab"[i % 2]))
    return make_source("noise", samples[:16], samples[16:])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("augment", ["none", "light"])
@pytest.mark.parametrize("views", ["all", "native"])
def test_the_second_epoch_decodes_nothing_and_sees_the_same(source, workers, augment, views):
    def epochs(amount):
        torch.manual_seed(0)
        dls = NativeImageDataLoaders.from_source(
            source, scales=SCALES, bs=4, num_workers=workers, device="cpu", cache=amount,
            augment=augment, views=views, drop_last=False,
        )  # fmt: skip
        dls.train.rng.seed(1)
        return dls, [torch.cat([x.flatten(1).sum(1) for x, _ in dls.train]) for _ in range(2)]

    kept_dls, kept = epochs(0.01)
    other_dls, others = epochs(0)
    assert all(torch.equal(a, b) for a, b in zip(kept, others, strict=True))
    assert len(kept_dls.train._kept[augment]) == 16
    assert len(other_dls.train._kept[augment]) == 0
    for sample in source.samples:
        sample.image.unlink()
    assert len(list(kept_dls.train)) == 4


def test_the_validation_part_keeps_what_it_needs_alone(source, monkeypatch):
    dls = NativeImageDataLoaders.from_source(
        source, scales=SCALES, bs=4, num_workers=0, device="cpu"
    )
    list(dls.valid)
    assert dls.valid._kept["none"].get(1).shape == (3, 32, 32)
    monkeypatch.setattr(OpenedImage, "pixels", lambda *a: pytest.fail("decoded again"))
    list(dls.valid.new(bs=3))
    with pytest.raises(pytest.fail.Exception):
        list(dls.valid.new(resize="pad"))  # other pixels
    with pytest.raises(pytest.fail.Exception):
        list(dls.test_dl([source.valid[0].image]))


def test_predictions_keep_nothing(source):
    dls = NativeImageDataLoaders.from_source(source, scales=SCALES, num_workers=0, device="cpu")
    dl = dls.test_dl([s.image for s in source.valid])
    list(dl)
    assert dl._kept["none"].budget == 0
    assert native_dl.GIB == 2**30
