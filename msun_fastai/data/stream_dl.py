"""`StreamDL`: the loader of a dataset that is read from shards as it comes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
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
    left in the end makes batches of another length (none with `drop_last`). In training a single
    image that is left at a scale is left out, for batch norm has no statistics of it. Bad images
    are those of the last pass. A pass that is resumed is read from its start, and what was seen of
    it is thrown away: with as many workers as it had it is the same.

    Several processes train in step: on one scale, and each on as many full batches as the shortest
    share has; one whose images are fewer, for some are bad, starts over with them. Elsewhere each
    has the batches of its share.

    dataset: a few of the stream's items, for what fastai asks of a dataset (classes, decoding,
    `test_dl`). rank, world: this process's number and how many there are. seed: of the order.
    """

    _own = (*NativeDL._own, "stream", "seed")

    def __init__(
        self,
        dataset: Any,
        stream: SampleStream,
        rank: int = 0,
        world: int = 1,
        seed: int = 42,
        **kwargs: Any,
    ):
        self.stream, self.seed = stream, seed
        self.share = stream.of_rank(rank, world)
        self.epoch = -1
        super().__init__(dataset, rank=rank, world=world, **kwargs)
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

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "epoch": self.epoch}

    def _set_state(self, state: Mapping[str, Any]) -> None:
        super()._set_state(state)
        self.epoch = state["epoch"]

    def _read_sizes(self) -> None:
        """They come with the images."""

    @property
    def _n_images(self) -> int:
        return len(self.share)

    def scale_counts(self) -> dict[int, int]:
        """How many images of the last pass went to each scale."""
        return dict(zip(self.scales, self._counted.sum(0).tolist()))

    def get_idxs(self) -> list[int]:
        return []

    def __len__(self) -> int:
        """The most batches that there can be: how many are cut short is not known before.

        Of processes in step the number that each has.
        """
        if self._in_step:
            shares = (self.stream.of_rank(rank, self.world) for rank in range(self.world))
            return min(map(len, shares)) // self.bs
        full = len(self.share) // self.bs
        if self.drop_last:
            return full
        scales = 1 if self.single_side else len(self.scales)
        return full + min(len(self.share), len(self._counted) * scales)

    def before_iter(self) -> None:
        if self._in_step and self.single_side is None:
            raise UserError(
                f"a stream for {self.world} processes: each meets images of other scales, and all "
                "have to train on the same; take views 'all', one scale, or data that are not "
                "streamed"
            )
        super().before_iter()
        self.epoch += 1
        self._counted.zero_()
        self.bad.clear()

    def sample(self) -> Iterator[list[int]]:
        return iter(())

    def _left_out(self) -> int:
        return 0  # the workers begin at the beginning

    def _given(self, batches: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        last = len(self) if self._in_step else None
        i = self._skip - 1
        for i, batch in islice(enumerate(batches), self._skip, last):
            yield i, batch
        if last is not None and i + 1 < last:
            raise UserError(f"{self.stream.where}: no {last} batches can be read of it")

    def share_of(self, i: int) -> float:
        return 1.0  # all batches are full

    def create_batches(self, samps: Iterator[list[int]]) -> Iterator[Any]:
        waiting: dict[int, list[Any]] = {}
        for item in self._items():
            group = waiting.setdefault(item[0].shape[-1], [])
            group.append(item)
            if len(group) == self.bs + 2:  # two stay, so that no single one is left in the end
                yield self.do_batch(group[: self.bs])
                del group[: self.bs]
        for _, group in sorted(waiting.items()):
            yield from map(self.do_batch, self._last(group))

    def _items(self) -> Iterator[Any]:
        """What can be read of this worker's share; in step again and again, for as long as the
        main process asks."""
        stream = self.share.shuffled(self.seed, self.epoch) if self.shuffle else self.share
        again = False
        while True:
            readable = False
            for k, sample in enumerate(stream):
                number = (k * self.num_workers + self.offs) * self.world + self.rank
                item = self._item(sample, number, again)
                if item is not None:
                    readable = True
                    yield item
            if not (self._in_step and readable):
                return
            again = True

    def _last(self, group: list[Any]) -> list[list[Any]]:
        """The batches of what is left at a scale, at most one image more than a batch."""
        if self.drop_last:
            return [group[: self.bs]] if len(group) >= self.bs else []
        return [] if self._part == "training" and len(group) == 1 else [group]

    def _item(self, sample: Sample, number: int, again: bool = False) -> Any:
        """The item of a sample, or None where its image cannot be decoded and is skipped.

        again: it is not counted, for it was before.
        """
        try:
            with open_image(sample.image) as image:
                side = self.single_side or self._routed(image.native_size)
                pixels = self._decoded(image, side)
        except ImageError as error:
            if self.on_bad_image == "stop":
                raise
            if not again:
                self.bad.mark(str(error))
            return None
        self._counted[self.offs, self.scales.index(side)] += not again
        labels = (tl.tfms(sample) for tl in self.dataset.tls[1:])
        item = (self._finished(pixels, side, number), *labels)
        return item if self._only_to_tensor else self.after_item(item)
