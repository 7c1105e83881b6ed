"""`StreamDL`: the loader of a dataset that is read from shards as it comes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from msun_fastai.data.bad import BadImages
from msun_fastai.data.images import open_image
from msun_fastai.data.native_dl import NativeDL
from msun_fastai.data.samples import Sample
from msun_fastai.data.stream import SampleStream
from msun_fastai.errors import ImageError, UserError


class StreamDL(NativeDL):
    """A `NativeDL` whose images come from a `SampleStream`, every one of them once an epoch.

    Shards are shared out over ranks, and over the workers of each. A worker puts together batches
    of one scale as the images come, so their order depends on the number of workers, and what is
    left in the end makes batches of another length (none with `drop_last`). Ranks need not have
    equally many, as synchronised training would ask for. In training a single image that is left
    at a scale is left out, for batch norm has no statistics of it. Bad images are those of the last
    pass.

    dataset: a few of the stream's items, for what fastai asks of a dataset (classes, decoding,
    `test_dl`). rank, world: this process's number and how many there are. seed: of the order.
    """

    _own = (*NativeDL._own, "stream", "rank", "world", "seed")

    def __init__(
        self,
        dataset: Any,
        stream: SampleStream,
        rank: int = 0,
        world: int = 1,
        seed: int = 42,
        **kwargs: Any,
    ):
        self.stream, self.rank, self.world, self.seed = stream, rank, world, seed
        self.share = stream.of_rank(rank, world)
        self.epoch = -1
        super().__init__(dataset, **kwargs)
        self.cache = 0  # what fits into memory needs no stream
        workers = self.fake_l.num_workers
        # a row for each worker: two that count in one would lose some
        shape = (max(1, workers), len(self.scales))
        self._counted = torch.zeros(shape, dtype=torch.int64).share_memory_()
        self._bad = BadImages()

    def new(self, dataset: Any = None, cls: Any = None, **kwargs: Any) -> NativeDL:
        if dataset is not None and dataset is not self.dataset:
            return super().new(dataset, cls or NativeDL, **kwargs)
        if "get_idxs" in kwargs:
            raise UserError(
                "predictions on a stream have no order to come back in; ask for them on a test_dl, "
                "or with reorder=False"
            )
        return super().new(dataset, cls, **kwargs)

    @property
    def _n_images(self) -> int:
        return len(self.share)

    def scale_counts(self) -> dict[int, int]:
        """How many images of the last pass went to each scale."""
        return dict(zip(self.scales, self._counted.sum(0).tolist()))

    def get_idxs(self) -> list[int]:
        return []

    def __len__(self) -> int:
        """The most batches that there can be: how many are cut short is not known before."""
        full = len(self.share) // self.bs
        if self.drop_last:
            return full
        scales = 1 if self.single_side else len(self.scales)
        return full + min(len(self.share), len(self._counted) * scales)

    def before_iter(self) -> None:
        super().before_iter()
        self.epoch += 1
        self._counted.zero_()
        self.bad.clear()

    def sample(self) -> Iterator[list[int]]:
        return iter(())

    def create_batches(self, samps: Iterator[list[int]]) -> Iterator[Any]:
        stream = self.share.shuffled(self.seed, self.epoch) if self.shuffle else self.share
        waiting: dict[int, list[Any]] = {}
        for k, sample in enumerate(stream):
            item = self._item(sample, (k * self.num_workers + self.offs) * self.world + self.rank)
            if item is None:
                continue
            group = waiting.setdefault(item[0].shape[-1], [])
            group.append(item)
            if len(group) == self.bs + 2:  # two stay, so that no single one is left in the end
                yield self.do_batch(group[: self.bs])
                del group[: self.bs]
        for _, group in sorted(waiting.items()):
            yield from map(self.do_batch, self._last(group))

    def _last(self, group: list[Any]) -> list[list[Any]]:
        """The batches of what is left at a scale, at most one image more than a batch."""
        if self.drop_last:
            return [group[: self.bs]] if len(group) >= self.bs else []
        return [] if self._part == "training" and len(group) == 1 else [group]

    def _item(self, sample: Sample, number: int) -> Any:
        """The item of a sample, or None where its image cannot be decoded and is skipped."""
        try:
            with open_image(sample.image) as image:
                side = self.single_side or self._routed(image.native_size)
                pixels = self._decoded(image, side)
        except ImageError as error:
            if self.on_bad_image == "stop":
                raise
            self.bad.mark(str(error))
            return None
        self._counted[self.offs, self.scales.index(side)] += 1
        labels = (tl.tfms(sample) for tl in self.dataset.tls[1:])
        item = (self._finished(pixels, side, number), *labels)
        return item if self._only_to_tensor else self.after_item(item)
