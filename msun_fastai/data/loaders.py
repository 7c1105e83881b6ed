"""`NativeImageDataLoaders`: fastai DataLoaders over images of mixed sizes, from every source."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from fastai.data.block import CategoryBlock, DataBlock
from fastai.data.core import DataLoaders, FilteredBase, TfmdDL
from fastai.data.load import DataLoader
from fastai.data.transforms import IndexSplitter
from fastai.torch_core import default_device

from msun_fastai.data.bad import MAX_BAD
from msun_fastai.data.folders import (
    source_from_csv,
    source_from_folder,
    source_from_table,
    table_paths,
    table_samples,
)
from msun_fastai.data.images import load_pixels
from msun_fastai.data.native import sample_label
from msun_fastai.data.native_dl import NativeDL, NativeImageBlock
from msun_fastai.data.samples import Sample, Source
from msun_fastai.data.sources import source_from_name
from msun_fastai.data.stream import StreamSource
from msun_fastai.data.stream_dl import StreamDL
from msun_fastai.errors import ImageError, UserError, did_you_mean
from msun_fastai.processes import process_rank
from msun_fastai.scales import DEFAULT_SCALES, parse_scales

PEEKED = 100  # images of a stream among which one has to be readable


class NativeImageDataLoaders(DataLoaders):
    """DataLoaders whose batches hold one scale, chosen by each image's native size.

    Every factory takes the options of `from_source`. The validation part is always routed by
    native size, as prediction is.
    """

    columns: tuple[str | int, str | int] = ("", "")  # of paths and labels, where they were named

    def test_dl(
        self, test_items: Any, rm_type_tfms: Any = None, with_labels: bool = False, **options: Any
    ) -> DataLoaders:
        """fastai's `test_dl`; of a DataFrame the rows, whose paths are relative to `path`."""
        if hasattr(test_items, "columns"):
            paths, labels = self.columns
            if with_labels:
                test_items = table_samples(test_items, self.path, paths, labels)
            else:
                test_items = table_paths(test_items, self.path, paths)
        return super().test_dl(test_items, rm_type_tfms, with_labels, **options)

    @classmethod
    def from_source(
        cls,
        source: Source,
        *,
        scales: Sequence[int] | str = DEFAULT_SCALES,
        routing: str = "nearest",
        views: str = "all",
        augment: str = "light",
        resize: str = "squish",
        cache: float | None = None,
        on_bad_image: str = "skip",
        max_bad: float = MAX_BAD,
        left_out: int = 0,
        limit: int | None = None,
        seed: int = 42,
        item_tfms: Any = None,
        batch_tfms: Any = None,
        path: Path | str = ".",
        **options: Any,
    ) -> DataLoaders:
        """From a `Source` of labelled samples.

        scales: ascending sides in pixels, or `S2` to `S5`. routing: a rule, see
        `msun_fastai.scales.thresholds`. views: `all`, `native` or `down`, see `target_scale` there.
        augment: `light`, `rrc` or `none`. resize: `squish`, `crop` or `pad`, for every part and
        saved with the model. cache: GiB of decoded images to keep in memory. on_bad_image,
        left_out: see `NativeDL`; max_bad: the share of the training images that may be bad. limit:
        at most so many images in each part. `options` (bs, val_bs, num_workers, device, ...) are
        fastai's.
        Raises `UserError`, for an option that there is not, too.
        """
        check_options(options)
        if isinstance(scales, str):
            scales = parse_scales(scales)
        source = source.limited(limit, seed)
        train = readable_first(source.train) if on_bad_image == "skip" else source.train
        n = len(train)
        images = NativeImageBlock(
            scales,
            routing,
            views,
            augment,
            resize=resize,
            cache=cache,
            on_bad_image=on_bad_image,
            max_bad=max_bad,
            left_out=left_out,
        )
        if pins_memory(options.get("device")):
            options = {"pin_memory": True, **options}
        block = DataBlock(
            blocks=(
                images,
                CategoryBlock(vocab=source.classes, sort=False),
            ),
            get_y=sample_label,
            splitter=IndexSplitter(list(range(n, n + len(source.valid)))),
            item_tfms=item_tfms,
            batch_tfms=batch_tfms,
        )
        # a list of one type, so that fastai asks for no length of an item
        dls = block.dataloaders([*train, *source.valid], path=path, **options)
        return cls(*dls.loaders, path=dls.path, device=dls.device)

    @classmethod
    def from_stream(
        cls,
        source: StreamSource,
        *,
        rank: int | None = None,
        world: int | None = None,
        seed: int = 42,
        drop_last: bool = False,
        **options: Any,
    ) -> DataLoaders:
        """From a `StreamSource`, whose images are read as they come; see `StreamDL`.

        rank, world: this process's number and how many there are, as `torchrun` says by default.
        seed: of the order. drop_last: leave out the training part's last, short batches. `options`
        are those of `from_source`, without a cache and a limit. Raises `UserError`.
        """
        if "limit" in options:
            raise UserError("from_stream: limit: the first images of a stream are source.first(n)")
        where = process_rank()
        rank, world = where[0] if rank is None else rank, where[1] if world is None else world
        first = readable_first(list(islice(source.train, PEEKED)))[:1]
        template = Source(source.name, first, first, list(source.classes))
        dls = cls.from_source(template, seed=seed, **{**options, "cache": 0})
        shared = {"cls": StreamDL, "rank": rank, "world": world, "seed": seed}
        train, valid = dls.loaders
        train = train.new(stream=source.train, drop_last=drop_last, **shared)
        valid = valid.new(stream=source.valid, **shared)
        return cls(train, valid, path=dls.path, device=dls.device)

    @classmethod
    def from_folder(
        cls,
        path: Path | str,
        train: str = "",
        valid: str = "",
        valid_pct: float = 0.2,
        seed: int = 42,
        **options: Any,
    ) -> DataLoaders:
        """From class folders below `path/train` and `path/valid`, or below `path` and split."""
        source = source_from_folder(path, valid_pct, seed, train, valid)
        return cls.from_source(source, seed=seed, **{"path": path, **options})

    @classmethod
    def from_dataset(
        cls, name: str, root: Path | str | None = None, seed: int = 42, **options: Any
    ) -> DataLoaders:
        """From a dataset by name: `shapes`, or a copy of a hub dataset below `root`."""
        return cls.from_source(source_from_name(name, root, seed), seed=seed, **options)

    @classmethod
    def from_df(
        cls,
        df: Any,
        path: Path | str = ".",
        fn_col: str | int = "",
        label_col: str | int = "",
        valid_col: str | int = "",
        valid_pct: float = 0.2,
        seed: int = 42,
        **options: Any,
    ) -> DataLoaders:
        """From a DataFrame with a column of paths relative to `path` and one of labels."""
        source = source_from_table(df, path, fn_col, label_col, valid_col, valid_pct, seed)
        dls = cls.from_source(source, seed=seed, **{"path": path, **options})
        dls.columns = (fn_col, label_col)
        return dls

    @classmethod
    def from_csv(
        cls,
        path: Path | str,
        csv_fname: str = "labels.csv",
        fn_col: str | int = "",
        label_col: str | int = "",
        valid_col: str | int = "",
        valid_pct: float = 0.2,
        seed: int = 42,
        **options: Any,
    ) -> DataLoaders:
        """From the CSV file `path/csv_fname`, or `path`; its paths are relative to its folder."""
        if Path(path).suffix.lower() == ".csv":
            path, csv_fname = Path(path).parent, Path(path).name
        source = source_from_csv(
            Path(path) / csv_fname,
            path_column=fn_col,
            label_column=label_col,
            split_column=valid_col,
            valid_fraction=valid_pct,
            seed=seed,
        )
        dls = cls.from_source(source, seed=seed, **{"path": path, **options})
        dls.columns = (fn_col, label_col)
        return dls


def check_options(options: Mapping[str, Any]) -> None:
    """Raise `UserError` for an option that neither we nor fastai's loaders have."""
    takers = (DataBlock.dataloaders, FilteredBase.dataloaders, TfmdDL.__init__, DataLoader.__init__)
    known = {name for taker in takers for name in inspect.signature(taker).parameters}
    known -= {"self", "source", "dataset", "kwargs", "dl_kwargs"}
    known |= {*NativeDL._own, *DataLoader._methods}
    for name in options:
        if name.removeprefix("val_") not in known:
            raise UserError(f"loaders: unknown option {name!r}; {did_you_mean(name, known)}")


def pins_memory(device: Any = None) -> bool:
    """Whether batches for `device`, fastai's default one if None, are copied faster from pinned
    memory."""
    return torch.device(default_device() if device is None else device).type == "cuda"


def readable_first(samples: Sequence[Sample]) -> list[Sample]:
    """`samples` with one that can be decoded in front, for fastai looks at the first of them.

    Raises `UserError` where none can be.
    """
    reason = ""
    for i, sample in enumerate(samples):
        try:
            load_pixels(sample.image)
        except ImageError as error:
            reason = reason or str(error)
            continue
        return [sample, *samples[:i], *samples[i + 1 :]]
    raise UserError(f"none of {len(samples)} training images can be read; {reason}")


def with_scales(dls: DataLoaders, scales: Sequence[int], views: str, **options: Any) -> DataLoaders:
    """The same loaders for a network that takes images at `scales`; `dls` stay as they are.

    The training part makes views by the policy `views`; the others are routed by native size.
    options: others of `NativeDL`'s that are to change.
    """
    train, *others = dls.loaders
    loaders = [train.new(scales=scales, views=views, **options)]
    loaders += [dl.new(scales=scales, views="native", **options) for dl in others]
    again = type(dls)(*loaders, path=dls.path, device=dls.device)
    if isinstance(dls, NativeImageDataLoaders):
        again.columns = dls.columns
    return again
