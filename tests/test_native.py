"""`NativeImage` and `NativeDL`: sizes without decoding, one scale a batch, order kept."""

import pickle

import numpy as np
import pytest
import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.torch_core import set_seed
from fastai.vision.core import PILImage
from PIL import Image

from msun_fastai.data import native_dl
from msun_fastai.data.images import OpenedImage
from msun_fastai.data.loaders import NativeImageDataLoaders, pins_memory, with_scales
from msun_fastai.data.native import NativeImage, sample_label
from msun_fastai.errors import UserError

SCALES = (16, 32, 64)


def test_native_size_survives_resizing_copying_and_pickling():
    image = NativeImage.create(np.zeros((40, 90, 3), np.uint8))
    assert image.native_size == 40
    for other in (NativeImage(image.resize((8, 8))), pickle.loads(pickle.dumps(image))):
        assert NativeImage(other).native_size == 40


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("views", ["all", "native", "down"])
def test_a_batch_has_one_side_and_every_image_is_seen(shapes, views, workers):
    dls = NativeImageDataLoaders.from_source(
        shapes, scales=SCALES, bs=7, views=views, num_workers=workers, drop_last=False
    )
    sides = [x.shape[-1] for x, _ in dls.train]
    seen = torch.cat([y for _, y in dls.train])
    assert len(sides) == len(dls.train)
    assert sorted(seen.tolist()) == sorted(shapes.classes.index(s.label) for s in shapes.train)
    assert set(sides) == ({64} if views == "all" else set(SCALES))


def test_sizes_are_read_without_decoding_and_survive_new(dls, shapes, monkeypatch):
    monkeypatch.setattr(OpenedImage, "pixels", lambda *a: pytest.fail("decoded"))
    sizes = [min(s.image.shape[:2]) for s in shapes.valid]
    assert dls.valid.native_sizes == sizes
    again = dls.valid.new(bs=3)
    monkeypatch.setattr(native_dl, "sample_headers", lambda *a: pytest.fail("read again"))
    assert again.native_sizes == sizes
    assert sum(dls.valid.scale_counts().values()) == len(sizes)


def test_test_dl_has_sizes_of_its_own(dls):
    items = [np.zeros((s, 2 * s, 3), np.uint8) for s in (10, 100, 30, 12)]
    dl = dls.test_dl(items, bs=2)
    assert dl.native_sizes == [10, 100, 30, 12]
    assert [x.shape[-1] for (x,) in dl] == [16, 32, 64]


def test_batches_do_not_depend_on_the_workers(shapes):
    def batches(workers):
        set_seed(5)
        dls = NativeImageDataLoaders.from_source(
            shapes, scales=SCALES, bs=8, views="down", num_workers=workers, device="cpu"
        )
        return [x for x, _ in dls.train]

    for a, b in zip(batches(0), batches(3), strict=True):
        assert torch.equal(a, b)


def test_augmentation_is_for_training_only_and_changes_every_epoch(dls, shapes):
    train = dls.train.new(augment="light")
    item = NativeImage.create(shapes.train[0])
    train.epoch_seed = 1
    first, same = train.fit_image(item, 0), train.fit_image(item, 0)
    train.epoch_seed = 2
    other = train.fit_image(item, 0)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)
    valid = dls.valid.new(augment="light")
    plain = np.asarray(item.resize((valid.target_of(0),) * 2, Image.Resampling.BILINEAR))
    assert np.abs(valid.fit_image(item, 0).permute(1, 2, 0).numpy().astype(int) - plain).max() <= 1


def test_with_scales_leaves_the_given_loaders_alone(dls):
    other = with_scales(dls, (64,), "all")
    assert other.train.scales == other.valid.scales == (64,)
    assert dls.train.scales == SCALES
    assert {x.shape[-1] for x, _ in other.valid} == {64}


def test_a_training_loader_that_is_not_shuffled_routes_by_native_size(dls):
    assert {x.shape[-1] for x, _ in dls.train.new(shuffle=False)} == set(SCALES)


def test_pinned_memory_is_for_cuda():
    assert pins_memory("cuda:1")
    assert pins_memory(torch.device("cuda"))
    assert not pins_memory("cpu")
    assert pins_memory() == torch.cuda.is_available()


def test_images_of_another_type_get_a_clear_error(shapes):
    block = DataBlock(
        blocks=(native_dl.NativeImageBlock(scales=SCALES), CategoryBlock),
        get_x=lambda s: PILImage.create(s.image),
        get_y=sample_label,
    )
    block.type_tfms[0] = block.type_tfms[0][:0]
    with pytest.raises(UserError, match="use NativeImageBlock"):
        block.dataloaders(shapes.train, num_workers=0).one_batch()


def stored(folder, source, part):
    """The images of a part of a source as files, in another order than their sizes'."""
    files = []
    for i, sample in enumerate(getattr(source, part)):
        files.append(folder / f"{i}.png")
        Image.fromarray(sample.image).save(files[-1])
    return files


@pytest.mark.parametrize("workers", [0, 1, 2, 4])
def test_predictions_come_back_in_the_callers_order(tmp_path, make_learner, shapes, workers):
    learn = make_learner()
    learn.model.eval()
    files = stored(tmp_path, shapes, "valid")
    one_by_one = torch.stack([learn.predict(f)[2] for f in files])
    for bs in (1, 7, 64):
        dl = learn.dls.test_dl(files, bs=bs, num_workers=workers)
        preds = learn.get_preds(dl=dl)[0]
        assert (preds - one_by_one).abs().max() < 1e-4


@pytest.mark.slow
def test_order_on_the_real_photographs(real_data, make_learner):
    """The 808 Caltech test images at the default scales, 0 to 4 workers, one by one."""
    from msun_fastai.data.sources import source_from_name

    source = source_from_name("caltech101", real_data)
    dls = NativeImageDataLoaders.from_source(source, bs=60, num_workers=0, device="cpu")
    learn = make_learner(dls=dls)
    items = [s.image.open_bytes() for s in source.valid]
    one_by_one = torch.stack([learn.predict(item)[2] for item in items])
    assert one_by_one.std(0).mean() > 1e-4  # else any order would pass
    for workers in (0, 1, 2, 4):
        for bs in (33, 60):
            dl = learn.dls.test_dl(items, bs=bs, num_workers=workers)
            assert (learn.get_preds(dl=dl)[0] - one_by_one).abs().max() < 1e-4
    preds, targets = learn.get_preds()
    assert (preds - one_by_one).abs().max() < 1e-4
    assert targets.tolist() == [source.classes.index(s.label) for s in source.valid]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"scale": (16, 32)}, "unknown option 'scale'; did you mean scales"),
        ({"data_root": "."}, "unknown option 'data_root'"),
        ({"augment": "rcc"}, "did you mean rrc"),
        ({"bs": None}, "a batch needs a number"),
        ({"scales": "32,16"}, "not ascending"),
    ],
)
def test_mistyped_options_of_the_loaders(shapes, options, says):
    with pytest.raises(UserError, match=says):
        NativeImageDataLoaders.from_source(shapes, num_workers=0, **options)


def test_options_of_fastais_loaders(shapes):
    dls = NativeImageDataLoaders.from_source(
        shapes,
        scales="16,32",
        bs=8,
        val_bs=5,
        num_workers=0,
        shuffle=False,
        timeout=0,
        verbose=False,
    )
    assert (dls.train.scales, dls.valid.bs) == ((16, 32), 5)


def test_predictions_on_the_training_part_keep_no_pixels(dls, make_learner):
    learn = make_learner()
    for _ in range(2):
        dl = learn.dls.train.new(shuffle=False, drop_last=False)
        assert (dl.cache, dl.on_bad_image, dl.views) == (0, "stop", "native")
    dl = learn.dls.valid.new(shuffle=False)
    assert (dl.cache, dl._kept) == (learn.dls.valid.cache, learn.dls.valid._kept)


def of_ranks(source, world, part="train", **options):
    """The loaders of all processes, as each makes its own."""
    given = {"scales": SCALES, "bs": 4, "views": "native", "num_workers": 0, "device": "cpu"}
    given |= {"augment": "none", **options}
    for rank in range(world):
        set_seed(5)
        dls = NativeImageDataLoaders.from_source(source, rank=rank, world=world, **given)
        yield getattr(dls, part)


def plans(dl):
    """The indices of a pass's batches, and their factors."""
    list(dl)
    return list(dl.sample()), [dl.share_of(i) for i in range(len(dl))]


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("bs", [1, 2, 4, 16])
@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_train_in_step_on_every_image_once(shapes, world, bs, drop_last):
    loaders = list(of_ranks(shapes, world, bs=bs, drop_last=drop_last))
    for _ in range(2):
        batches, factors = zip(*map(plans, loaders))
        count = len(loaders[0])
        assert {len(b) for b in batches} == {len(f) for f in factors} == {count}
        for at_once, weights in zip(zip(*batches), zip(*factors)):
            assert len({loaders[0].target_of(i) for batch in at_once for i in batch}) == 1
            assert sum(weights) == pytest.approx(world)
        pairs = [p for r in range(world) for p in zip(batches[r], factors[r])]
        counted = [i for batch, weight in pairs if weight for i in batch]
        assert len(set(counted)) == len(counted)
        if not drop_last:
            assert len(counted) == len(shapes.train)
    assert batches != plans(loaders[0])


@pytest.mark.parametrize("workers", [0, 2])
def test_the_batches_of_a_process_are_its_shares(shapes, workers):
    whole, *parts = (
        next(of_ranks(shapes, 1, bs=8, num_workers=workers)),
        *of_ranks(shapes, 2, num_workers=workers),
    )
    state = parts[0].pass_state()
    for all_of_them, a, b in zip(whole, *parts, strict=True):
        sizes, weights = [len(a[1]), len(b[1])], [dl.weight for dl in parts]
        assert sorted([*a[1], *b[1]]) == sorted(all_of_them[1]) or 0 in weights
        assert len(all_of_them[1]) == sum(s for s, w in zip(sizes, weights) if w)
    for dl in parts:
        dl.resume_pass(state, 2)
        assert len(list(dl)) == len(whole) - 2


@pytest.mark.parametrize("world", [1, 2, 3])
def test_processes_validate_every_image_once(shapes, world):
    loaders = list(of_ranks(shapes, world, "valid"))
    seen = [i for dl in loaders for batch in plans(dl)[0] for i in batch]
    assert sorted(seen) == list(range(len(shapes.valid)))
    assert all(len(list(dl)) == len(dl) for dl in loaders)
    for dl in loaders:
        assert (dl.new(bs=3).world, dl.new(shuffle=False).world) == (world, 1)
        assert len(dl.new(shuffle=False)) == sum(map(len, loaders))


def test_ranks_are_counted_from_0(shapes):
    for rank, world in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(UserError, match="counted from 0"):
            NativeImageDataLoaders.from_source(shapes, rank=rank, world=world)


def test_predictions_are_each_processs_own(make_learner, shapes):
    dl = next(of_ranks(shapes, 2, "valid"))
    learn = make_learner()
    learn.dls.loaders[1] = dl
    assert len(learn.get_preds()[0]) == len(shapes.valid)
    assert learn.dls.test_dl([s.image for s in shapes.valid]).world == 1
