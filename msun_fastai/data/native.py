"""`NativeImage` and `NativeDL`: images that remember their size, in batches of one scale."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from fastai.data.block import TransformBlock
from fastai.data.core import TfmdDL
from fastai.vision.augment import IntToFloatTensor
from fastai.vision.core import PILImage
from fastcore.foundation import L
from fasttransform import Transform
from PIL import Image
from torch import Tensor

from msun_fastai.data.batches import batch_count, cut_batches, same_scale_order
from msun_fastai.data.images import load_image, native_size
from msun_fastai.data.resize import RESIZE_RULES, augment_image, resize_image
from msun_fastai.data.samples import Sample
from msun_fastai.errors import UserError
from msun_fastai.scales import (
    DEFAULT_SCALES,
    ROUTING,
    VIEWS,
    check_choice,
    check_scales,
    target_scale,
)

TRAIN = 0  # fastai's split_idx of the training part


class NativeImage(PILImage):
    """An upright RGB image that remembers its native size, from any input form."""

    @classmethod
    # the union in the signature is what fastai dispatches on when it is given items to predict
    def create(
        cls, fn: Sample | Path | str | Tensor | np.ndarray | bytes | Image.Image, **kwargs: Any
    ) -> NativeImage:
        """Decode a path, bytes, a Pillow image, an array, a tensor or a `Sample`.

        See `msun_fastai.data.images.load_image` for modes and shapes; raises `ImageError`.
        """
        if isinstance(fn, NativeImage):
            return fn
        image = cls(load_image(fn.image if isinstance(fn, Sample) else fn))
        # in `info`, which Pillow carries through resizing, copying and pickling
        image.info["native_size"] = min(image.size)
        return image

    @property
    def native_size(self) -> int:
        """The shorter side in pixels of the image as it was decoded."""
        return self.info.get("native_size", min(self.size))


class OpenImage(Transform):
    """fastai's item transform to `NativeImage`, from whatever `NativeImage.create` takes."""

    def __init__(self) -> None:
        super().__init__(
            NativeImage.create
        )  # its signature is what items to predict are matched by


def sample_label(item: Sample | Path | str) -> str:
    """The label of a `Sample`, or the name of the folder that a path is in.

    At module level, so that an exported Learner can name it.
    """
    return item.label if isinstance(item, Sample) else Path(item).parent.name


class NativeDL(TfmdDL):
    """A fastai `TfmdDL` whose batches hold one scale, chosen by each image's native size.

    Native sizes come from image headers, without decoding, and survive `new` and `test_dl`. The
    batches are planned in the main process and so do not depend on the number of workers;
    `get_preds` returns predictions in the caller's order. Random augmentation is seeded by epoch
    and index, so it does not depend on the workers either.

    scales: ascending sides in pixels. routing: `nearest` or `up`. views: the policy that decides to
    which scale an image is resized (`all`: the canonical one; `native`, `down`: its routed one).
    augment: what the training part does on the way, see `augment_image`. resize: the rule by which
    an image becomes a square, see `resize_image`.
    """

    _own = ("scales", "routing", "views", "augment", "resize")

    def __init__(
        self,
        dataset: Any,
        bs: int = 64,
        scales: Sequence[int] = DEFAULT_SCALES,
        routing: str = "nearest",
        views: str = "native",
        augment: str = "none",
        resize: str = "squish",
        native_sizes: list[int] | None = None,
        **kwargs: Any,
    ):
        self.scales = check_scales(scales)
        self.routing = check_choice("routing", routing, ROUTING)
        self.views = check_choice("views", views, VIEWS)
        self.resize = check_choice("resize", resize, RESIZE_RULES)
        self.augment, self._sizes, self.epoch_seed = augment, native_sizes, 0
        self._counts: Counter[int] | None = None
        super().__init__(dataset, bs=bs, **kwargs)

    def new(self, dataset: Any = None, cls: Any = None, **kwargs: Any) -> NativeDL:
        """A loader like this one with some arguments changed; another dataset gets its own sizes.

        `shuffle=False` on a training loader asks for predictions on its images, which are routed
        as any other image is.
        """
        own = {name: getattr(self, name) for name in self._own}
        if dataset is None or dataset is self.dataset:
            own["native_sizes"] = self._sizes
        if self.shuffle and kwargs.get("shuffle") is False:
            own["views"] = "native"
        return super().new(dataset, cls, **{**own, **kwargs})

    @property
    def native_sizes(self) -> list[int]:
        """The native size of every image in the dataset, read once from the headers."""
        if self._sizes is None:
            items = L(getattr(self.dataset, "items", self.dataset), use_list=None)
            self._sizes = [self._header_size(items[i]) for i in range(len(items))]
        return self._sizes

    def _header_size(self, item: Any) -> int:
        """The native size of one item: what comes before `OpenImage` (a `get_x`) is applied."""
        lists = getattr(self.dataset, "tls", None)
        for transform in lists[0].tfms.fs if lists else ():
            if isinstance(transform, OpenImage):
                break
            item = transform(item)
        return native_size(item.image if isinstance(item, Sample) else item)

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
        """How many of the dataset's images go to each scale."""
        found = Counter(self.target_of(i) for i in range(len(self.dataset)))
        return {scale: found[scale] for scale in self.scales}

    @property
    def _keeps_order(self) -> bool:
        """Whether batches are cut from the caller's order as it is.

        Up to one batch of images, so that whoever asks for a handful without reordering, as
        fastai's `Interpretation` does, gets each image's own answer.
        """
        return not self.shuffle and self.n is not None and self.n <= (self.bs or 0)

    def get_idxs(self) -> Any:
        idxs = super().get_idxs()
        if not isinstance(idxs, list) or self.bs is None or self._keeps_order:
            return idxs
        rng = self.rng if self.shuffle else None
        return same_scale_order(idxs, self.target_of, self.bs, rng, self.drop_last)

    def __len__(self) -> int:
        if self.bs is None or self.n is None:
            return super().__len__()
        if self._keeps_order:
            return sum(1 for _ in cut_batches(range(self.n), self.target_of, self.bs))
        if self._counts is None:  # asked for on every epoch, and ImageNet has 1.28 million images
            self._counts = Counter(self.target_of(i) for i in range(self.n))
        return batch_count(self._counts, self.bs, self.drop_last)

    def before_iter(self) -> None:
        super().before_iter()
        self.epoch_seed = self.rng.getrandbits(32)  # in the main process: the same for all workers

    def sample(self) -> Iterator[list[int]]:
        """This worker's share of the batches, each a list of indices."""
        order = self._DataLoader__idxs  # fastai's private name for the order of this iteration
        batches = cut_batches(order, self.target_of, self.bs or 1)
        return (b for i, b in enumerate(batches) if i % self.num_workers == self.offs)

    def create_batches(self, samps: Iterator[list[int]]) -> Iterator[Any]:
        if self.dataset is not None:
            self.it = iter(self.dataset)
        for batch in samps:
            items = [item for item in map(self.do_item, batch) if item is not None]
            if items:
                yield from map(self.do_batch, items if self.bs is None else [items])

    def do_batch(self, b: list[Any]) -> Any:
        sides = {tuple(item[0].shape[-2:]) for item in b}
        if len(sides) > 1 or not sides <= {(s, s) for s in self.scales}:
            raise UserError(
                f"a batch of sides {sorted(sides)} where the scales are {self.scales}: the loader "
                "resizes by itself; take the resizing out of item_tfms"
            )
        return super().do_batch(b)

    def create_item(self, s: int | None) -> Any:
        item = super().create_item(s)
        image, *rest = item if isinstance(item, tuple) else (item,)
        return (self.fit_image(image, s or 0), *rest)

    def fit_image(self, image: Any, idx: int) -> NativeImage:
        """`image` resized to its batch's side; augmented too if it belongs to the training part."""
        if not isinstance(image, NativeImage):
            raise UserError(
                f"NativeDL: items are {type(image).__name__}, not NativeImage; use "
                "NativeImageBlock in the DataBlock, or a NativeImageDataLoaders factory"
            )
        side = self.single_side or self._routed(image.native_size)
        if self.augment == "none" or getattr(self.dataset, "split_idx", None) != TRAIN:
            return NativeImage(resize_image(image, side, self.resize))
        rng = random.Random(self.epoch_seed * 1_000_003 + idx)
        return NativeImage(augment_image(image, side, self.augment, rng, self.resize))


def NativeImageBlock(
    scales: Sequence[int] = DEFAULT_SCALES,
    routing: str = "nearest",
    views: str = "all",
    augment: str = "light",
    resize: str = "squish",
) -> TransformBlock:
    """A fastai `TransformBlock` for images of mixed sizes; its options are those of `NativeDL`.

    `views` and `augment` are the training part's; the validation part is routed by native size.
    """
    options = {"scales": scales, "routing": routing, "views": views, "augment": augment}
    options["resize"] = resize
    return TransformBlock(
        type_tfms=OpenImage(),
        batch_tfms=IntToFloatTensor,
        dl_type=NativeDL,
        dls_kwargs={**options, "val_views": "native"},
    )
