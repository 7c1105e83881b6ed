"""`NativeDL`: images of mixed sizes in batches of one scale."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from fastai.data.block import TransformBlock
from fastai.data.load import SkipItemException
from fastai.data.transforms import ToTensor
from fastai.torch_core import TensorImage
from fastai.vision.augment import IntToFloatTensor
from fastcore.foundation import L
from PIL import Image
from torch import Tensor

from msun_fastai.data.bad import MAX_BAD, NAMED, ON_BAD_IMAGE, BadImages, listed, refuse_too_many
from msun_fastai.data.cache import PixelCache, default_budget
from msun_fastai.data.headers import Header, sample_headers
from msun_fastai.data.images import OpenedImage, open_image, read_header
from msun_fastai.data.native import NativeImage, OpenImage
from msun_fastai.data.passes import PassDL
from msun_fastai.data.resize import (
    AUGMENTATIONS,
    RESIZE_RULES,
    as_pixels,
    fit_pixels,
    fit_random,
    fitted,
    reduction_for,
)
from msun_fastai.data.samples import image_of
from msun_fastai.errors import BadImageWarning, ImageError, UserError
from msun_fastai.scales import (
    DEFAULT_SCALES,
    VIEWS,
    check_choice,
    check_routing,
    check_scales,
    target_scale,
)
from msun_fastai.views import resize_batch

GIB = 2**30


class NativeDL(PassDL):
    """A fastai `TfmdDL` whose batches hold one scale, chosen by each image's native size.

    Native sizes come from image headers, without decoding, and survive `new` and `test_dl`. The
    batches are planned in the main process and so do not depend on the number of workers;
    `get_preds` returns predictions in the caller's order. Random augmentation is seeded by epoch
    and index, so it does not depend on the workers either.

    scales: ascending sides in pixels. routing: a rule, see `scales.thresholds`. views: the policy
    that decides to which scale an image is resized (`all`: the canonical one; `native`, `down`: its
    routed one). augment: what the training part does on the way, see `fit_random`. resize: the rule
    by which an image becomes a square, see `fit_whole`.

    cache: GiB of decoded images to keep in memory; a quarter of what is free and at most 4 by
    default. on_bad_image: `skip` goes on without an image that cannot be decoded, warns of it, and
    ends where more than `max_bad` of the training images are so, with the `left_out` ones that were
    found before; `stop` raises `ImageError` for the first. So do predictions by default (on a
    `test_dl`, or from `get_preds`): each image has to have its own.

    rank, world: this process's number and how many there are, see `PassDL`. Predictions by default
    are made by each process for all images. Raises `UserError` for what it does not know, and
    where all images are bad.
    """

    _own: tuple[str, ...] = (
        "scales",
        "routing",
        "views",
        "augment",
        "resize",
        "cache",
        "on_bad_image",
        "max_bad",
        "left_out",
        "rank",
        "world",
    )
    _decoded_by = ("scales", "routing", "views", "resize", "augment")

    def __init__(
        self,
        dataset: Any,
        bs: int = 64,
        scales: Sequence[int] = DEFAULT_SCALES,
        routing: str = "nearest",
        views: str = "native",
        augment: str = "none",
        resize: str = "squish",
        cache: float | None = None,
        on_bad_image: str = "skip",
        max_bad: float = MAX_BAD,
        left_out: int = 0,
        native_sizes: list[int] | None = None,
        **kwargs: Any,
    ):
        self.scales = check_scales(scales)
        self.routing = check_routing(routing)
        self.views = check_choice("views", views, VIEWS)
        self.resize = check_choice("resize", resize, RESIZE_RULES)
        self.augment = check_choice("augment", augment, AUGMENTATIONS)
        self._sizes = native_sizes
        self.cache = cache
        self._kept: dict[str, PixelCache] = {}  # decoded images by the augmentation they are for
        self.on_bad_image = check_choice("on_bad_image", on_bad_image, ON_BAD_IMAGE)
        self.max_bad, self.left_out = max_bad, left_out
        self._bad: BadImages | None = None
        if bs is None:
            raise UserError("NativeDL: bs: a batch needs a number of images")
        super().__init__(dataset, bs=bs, **kwargs)

    def new(self, dataset: Any = None, cls: Any = None, **kwargs: Any) -> NativeDL:
        """A loader like this one with some arguments changed; another dataset gets its own sizes.

        `shuffle=False` on a training loader asks for predictions on its images, which are routed
        as any other image is.
        """
        names = (cls or type(self))._own
        own = {name: getattr(self, name) for name in names if hasattr(self, name)}
        same = dataset is None or dataset is self.dataset
        # of each image once, in the caller's order: as many as there are images
        predicts = not same or "get_idxs" in kwargs or kwargs.get("shuffle") is False
        if predicts:
            own |= {"cache": 0, "on_bad_image": "stop", "rank": 0, "world": 1}
        if same:
            own["native_sizes"] = self._sizes
        if self.shuffle and kwargs.get("shuffle") is False:
            own["views"] = "native"
        dl = super().new(dataset, cls, **{**own, **kwargs})
        if same and type(dl) is type(self):
            dl._bad = self.bad
            if all(getattr(dl, name) == getattr(self, name) for name in self._decoded_by):
                dl._kept, dl.cache = self._kept, self.cache
        return dl

    @property
    def native_sizes(self) -> list[int]:
        """The native size of every image in the dataset, read once from the headers."""
        if self._sizes is None:
            n = len(self.dataset)
            if self._opener is None:  # what opens them is not ours: one at a time
                self._sizes = [self._size_of_item(i) for i in range(n)]
            else:
                sources = [self._source(i) for i in range(n)]
                headers = sample_headers(sources, self.fake_l.num_workers)
                self._sizes = [self._size(i, header) for i, header in enumerate(headers)]
        return self._sizes

    def _read_sizes(self) -> None:
        self.native_sizes  # noqa: B018  reads them

    def _size_of_item(self, i: int) -> int:
        try:
            item = self.dataset[i]
            return self._size(i, read_header(item[0] if isinstance(item, tuple) else item))
        except ImageError as error:
            return self._size(i, str(error))

    def _size(self, i: int, header: Header) -> int:
        if isinstance(header, str):
            if self.on_bad_image == "stop":
                raise ImageError(header)
            self.bad.mark(header, i)
            return self.scales[0]
        return min(header)

    @property
    def _opener(self) -> int | None:
        """Which of the dataset's transforms is `OpenImage`; None where none is."""
        lists = getattr(self.dataset, "tls", None)
        transforms = lists[0].tfms.fs if lists else ()
        return next((k for k, t in enumerate(transforms) if isinstance(t, OpenImage)), None)

    def image_source(self, i: int) -> Any:
        """The image of item `i`, not opened yet where `OpenImage` opens it."""
        if self._opener is None:
            item = self.dataset[i]
            return item[0] if isinstance(item, tuple) else item
        return image_of(self._source(i))

    def reroute(self, rule: str) -> None:
        """Send images to their scales by another routing rule from now on. Raises `UserError`."""
        self.routing = check_routing(rule)
        self._kept, self._counts = {}, None  # what was decoded and counted for other scales

    def _source(self, i: int) -> Any:
        """What `OpenImage` is given of item `i`: what comes before it (a `get_x`) is applied."""
        first = self.dataset.tls[0]
        item = L(first.items, use_list=None)[i]
        for transform in first.tfms.fs[: self._opener]:
            item = transform(item, split_idx=first.split_idx)
        return item

    @property
    def bad(self) -> BadImages:
        """Which images could not be decoded so far, and why."""
        if self._bad is None:
            self._bad = BadImages(len(self.dataset))
        return self._bad

    @property
    def single_side(self) -> int | None:
        """The one side that every batch has, or None where batches are grouped by scale."""
        return self.scales[-1] if self.views == "all" or len(self.scales) == 1 else None

    def target_of(self, idx: int) -> int:
        """The side to which image `idx` is resized; images of one batch share it."""
        return self.single_side or self._routed(self.native_sizes[idx])

    def _routed(self, size: int) -> int:
        return target_scale(size, self.scales, self.views, self.routing)

    def scale_counts(self) -> dict[int, int]:
        """How many of the dataset's images go to each scale; those known to be bad go to none."""
        n, bad = len(self.dataset), set(self.bad.indices())
        found = Counter(self.target_of(i) for i in range(n) if i not in bad)
        return {scale: found[scale] for scale in self.scales}

    def before_iter(self) -> None:
        super().before_iter()
        if self._kind not in self._kept:  # before the workers start, who share it, as `bad`
            budget = default_budget() if self.cache is None else round(self.cache * GIB)
            self._kept[self._kind] = PixelCache(len(self.dataset), budget)
        self.bad.share()

    def __iter__(self) -> Iterator[Any]:
        for batch in super().__iter__():
            self._check_bad()
            yield batch
        self._check_bad()
        if len(self.bad) > self.bad.told:
            self.bad.told = len(self.bad)
            warnings.warn(
                f"{len(self.bad)} of {self._n_images} {self._part} images cannot be read and are "
                f"left out: {listed(self.bad.reasons(NAMED), len(self.bad))}",
                BadImageWarning,
                stacklevel=2,
            )

    @property
    def _kind(self) -> str:
        """The augmentation of the part that the dataset is taken for, which `tta` changes."""
        return self.augment if self._part == "training" else "none"

    def _check_bad(self) -> None:
        bad, n = len(self.bad), self._n_images
        if not bad or self.on_bad_image == "stop":
            return
        if self._part == "training":
            bad, n, share = bad + self.left_out, n + self.left_out, self.max_bad
        else:
            share = 0.0 if bad == n else 1.0
        refuse_too_many(self.bad.reasons(NAMED), bad, n, share, self._part)

    def create_batches(self, samps: Iterator[list[int]]) -> Iterator[Any]:
        if self.dataset is not None:
            self.it = iter(self.dataset)
        for batch in samps:
            items = [item for item in map(self.do_item, batch) if item is not None]
            if self._in_step and len(items) < len(batch):
                items = items or [self._stand_in(batch[0])]
                items = [items[k % len(items)] for k in range(len(batch))]
            yield None if self._makes_none(len(items), len(batch)) else self.do_batch(items)

    def _stand_in(self, i: int) -> Any:
        """An item in the place of item `i`, which cannot be read: of its scale if there is one."""
        n, side = len(self.dataset), self.target_of(i)
        others = [(i + k) % n for k in range(1, n)]
        others.sort(key=lambda j: self.target_of(j) != side)
        item = next((item for item in map(self.do_item, others) if item is not None), None)
        if item is None:
            raise UserError(f"none of {n} images can be read")
        image, *rest = item
        pixels = resize_batch(image[None].as_subclass(Tensor).float(), side)[0].to(image.dtype)
        return (TensorImage(pixels), *rest)

    def do_batch(self, b: list[Any]) -> Any:
        sides = {tuple(item[0].shape[-2:]) for item in b}
        if len(sides) > 1 or not sides <= {(s, s) for s in self.scales}:
            raise UserError(
                f"a batch of sides {sorted(sides)} where the scales are {self.scales}: the loader "
                "resizes by itself; take the resizing out of item_tfms"
            )
        return super().do_batch(b)

    def do_item(self, s: int | None) -> Any:
        try:
            item = self.create_item(s)
        except SkipItemException:
            return None
        if self._only_to_tensor and all(isinstance(part, Tensor) for part in item):
            return item  # finding out that nothing is to be done takes as long as resizing
        return self.after_item(item)

    @property
    def _only_to_tensor(self) -> bool:
        """Whether items come as tensors unless somebody's own transforms may want Pillow images."""
        return all(isinstance(t, ToTensor) for t in getattr(self.after_item, "fs", ()))

    def create_item(self, s: int | None) -> Any:
        if s is None:  # any item will do, to learn what items are like
            items = (self._tried(i) for i in range(len(self.dataset)))
            first = next((item for item in items if item is not None), None)
            if first is None:
                raise UserError(f"none of {len(self.dataset)} images can be read")
            return first
        item = self._tried(s)
        if item is None:
            raise SkipItemException
        return item

    def _tried(self, i: int) -> Any:
        """Item `i`, or None where its image cannot be decoded and is skipped."""
        if self.on_bad_image == "stop":
            return self._made(i)
        if i in self.bad:
            return None
        try:
            return self._made(i)
        except ImageError as error:
            self.bad.mark(str(error), i)
            return None

    def _made(self, i: int) -> Any:
        """Item `i` with its image fitted, decoded no larger than that needs."""
        if self._opener is None or self._opener < len(self.dataset.tls[0].tfms.fs) - 1:
            image, *rest = item if isinstance(item := self.dataset[i], tuple) else (item,)
            return (self.fit_image(image, i), *rest)
        image = self._fitted(image_of(self._source(i)), i)
        return (image, *(tl[i] for tl in self.dataset.tls[1:]))

    def fit_image(self, image: Any, idx: int) -> TensorImage | NativeImage:
        """`image` resized to its batch's side; augmented too if it belongs to the training part.

        uint8 (3, side, side), or a Pillow image where there are item transforms to do. Raises
        `UserError` for what is no `NativeImage`.
        """
        if not isinstance(image, NativeImage):
            raise UserError(
                f"NativeDL: items are {type(image).__name__}, not NativeImage; use "
                "NativeImageBlock in the DataBlock, or a NativeImageDataLoaders factory"
            )
        return self._fitted(image, idx)

    def _fitted(self, source: Any, i: int) -> TensorImage | NativeImage:
        side, kept = self.target_of(i), self._kept.get(self._kind)
        pixels = kept.get(i) if kept is not None else None
        if pixels is None:
            with open_image(source) as image:
                pixels = self._decoded(image, side)
            if kept is not None:
                kept.put(i, pixels)
        return self._finished(pixels, side, i)

    def _decoded(self, image: OpenedImage, side: int) -> np.ndarray:
        """What of an image is the same in every epoch: uint8 (3, side, side), or before a random
        crop (h, w, 3)."""
        if self._kind == "none":
            return fitted(image, side, self.resize).numpy()
        return image.pixels(reduction_for(image.size, side, self.resize, self._kind))

    def _finished(self, pixels: np.ndarray, side: int, i: int) -> TensorImage | NativeImage:
        """What `_decoded` gave, with this epoch's augmentation of image `i`."""
        if self._kind == "none":
            x = torch.from_numpy(pixels)
        else:
            rng = random.Random(self.epoch_seed * 1_000_003 + i)
            # from the decoded size, for what is kept has no other
            size = (pixels.shape[1], pixels.shape[0])
            x = fit_pixels(pixels, fit_random(size, side, self._kind, rng, self.resize))
        if self._only_to_tensor:
            return TensorImage(x)
        return NativeImage(Image.fromarray(as_pixels(x)))


def NativeImageBlock(
    scales: Sequence[int] = DEFAULT_SCALES,
    routing: str = "nearest",
    views: str = "all",
    augment: str = "light",
    **options: Any,
) -> TransformBlock:
    """A fastai `TransformBlock` for images of mixed sizes; its options are those of `NativeDL`,
    scales are sides in pixels.

    `views` and `augment` are the training part's; the validation part is routed by native size.
    """
    options |= {"scales": scales, "routing": routing, "views": views, "augment": augment}
    return TransformBlock(
        type_tfms=OpenImage(),
        batch_tfms=IntToFloatTensor,
        dl_type=NativeDL,
        dls_kwargs={**options, "val_views": "native"},
    )
