"""`PassDL`: passes over a dataset that can be taken up where they were left, and be shared out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from fastai.data.core import TfmdDL
from fastai.data.load import _loaders
from fastai.torch_core import to_detach, to_device

from msun_fastai.data.bad import BadImages
from msun_fastai.data.batches import batch_count, cut_batches, rank_share, same_scale_order
from msun_fastai.errors import UserError

TRAIN = 0  # fastai's split_idx of the training part


class PassDL(TfmdDL):
    """A fastai `TfmdDL` whose main process plans each pass: its order, and so its batches.

    What is in a batch depends on the state in which the pass began and on nothing else: not on the
    number of workers, nor on which images turn out to be bad, and torch's global generator is left
    alone. So `resume_pass` can repeat it from any of its batches.

    rank, world: this process's number and how many there are. In training they move in step: they
    plan the same pass, provided that `rng` and `bad` are equal, in batches of `world * bs` images
    of one scale, and each takes its share of every one (`rank_share`); none is left out by one
    process alone, and images that cannot be read are replaced by others. Elsewhere each takes every
    `world`-th batch whole, so that the numbers of batches may differ by one.
    """

    def __init__(self, dataset: Any, rank: int = 0, world: int = 1, **kwargs: Any):
        if not 0 <= rank < world:
            raise UserError(f"rank {rank} of {world}: ranks are counted from 0")
        self.rank, self.world = rank, world
        self.epoch_seed = 0
        self.weight = 1.0  # of the batch that was given last, see share_of
        self._began: dict[str, Any] | None = None  # the state in which the pass began
        self._resumed: tuple[dict[str, Any], int] | None = None  # what the next pass repeats
        self._skip = self._first = 0  # batches that are left out, and where in the plan that is
        self._known: set[int] | None = None  # bad images without which a pass is planned
        self._factors: list[float] = []
        self._counts: Counter[int] | None = None
        super().__init__(dataset, **kwargs)

    @property
    def bad(self) -> BadImages:
        """Which images could not be decoded so far, and why."""
        raise NotImplementedError

    @property
    def single_side(self) -> int | None:
        """The one side that every batch has, or None where batches are grouped by scale."""
        raise NotImplementedError

    def target_of(self, idx: int) -> int:
        """The side to which image `idx` is resized; images of one batch share it."""
        raise NotImplementedError

    # where a pass stands

    def pass_state(self, next: bool = False) -> dict[str, Any]:
        """The state in which the pass under way began, or the last one where none is under way.

        With `next`, or where there was no pass yet, the state in which the next one will begin:
        what to keep between passes. Between `resume_pass` and the pass both are the state that
        was given there. Plain numbers, strings, lists and tuples, for `torch.save` or JSON:

        rng: of `random.Random`. bad: the images known to be bad at the beginning, which are not in
        the plan, each with its index and reason. found: those that were found since, which are,
        and are skipped again. batch: images in a batch of all processes. n: images in a pass.
        """
        if self._resumed is not None:
            return self._resumed[0]
        if next or self._began is None:
            return self._state()
        known = {i for i, _ in self._began["bad"]}
        return {**self._began, "found": [m for m in self.bad.marks() if m[0] not in known]}

    def resume_pass(self, state: Mapping[str, Any], batches: int) -> None:
        """Let the next iteration repeat the pass that began in `state`, without `batches` batches.

        batches: how many of it were seen already; they are not decoded. What bad images had left
        of nothing was no batch and does not count: which they were is known from `found`, however
        many workers there are, for every batch before the last one seen had been tried by then.
        `len` stays that of the whole pass. The passes after it are those that would have followed.
        """
        if (state["n"], state["batch"]) != (self._n_images, self.bs * self.world):
            raise UserError(
                f"a pass over {state['n']} images in batches of {state['batch']} cannot be taken "
                f"up with {self._n_images} in batches of {self.bs * self.world}; leave data, bs "
                "and number of processes as they were"
            )
        for i, reason in [*state["bad"], *state["found"]]:
            self.bad.mark(reason, i)
        self.bad.told = max(self.bad.told, state["told"])
        self._resumed = dict(state), batches

    def _state(self) -> dict[str, Any]:
        if self.shuffle and self.single_side is None:
            self._read_sizes()  # whose headers cannot be read is known before, not in between
        return {
            "rng": self.rng.getstate(),
            "bad": self.bad.marks(),
            "found": [],
            "told": self.bad.told,
            "n": self._n_images,
            "batch": self.bs * self.world,
        }

    def _set_state(self, state: Mapping[str, Any]) -> None:
        version, numbers, gauss = state["rng"]
        self.rng.setstate((version, tuple(numbers), gauss))

    def _read_sizes(self) -> None:
        """Have what `target_of` needs to know of the images."""

    @property
    def _n_images(self) -> int:
        return len(self.dataset)

    def randomize(self) -> None:
        """Begin a pass: a new one, or the one to be resumed."""
        resumed, self._resumed = self._resumed, None
        if resumed is None:
            self._began, self._skip = self._state(), 0
        else:
            self._began, self._skip = resumed
            self._set_state(self._began)
        self._known = {i for i, _ in self._began["bad"]}
        super().randomize()

    # its plan

    @property
    def _part(self) -> str:
        return "training" if getattr(self.dataset, "split_idx", None) == TRAIN else "validation"

    @property
    def _in_step(self) -> bool:
        """Whether the processes have to have equally many batches of equal scales."""
        return self.world > 1 and (self.shuffle or self._part == "training")

    @property
    def _planned_bs(self) -> int:
        return self.bs * self.world if self._in_step else self.bs

    @property
    def _keeps_order(self) -> bool:
        """Whether batches are cut from the caller's order as it is.

        Up to one batch of images, so that whoever asks for a handful without reordering, as
        fastai's `Interpretation` does, gets each image's own answer.
        """
        return not self.shuffle and self.n is not None and self.n <= self.bs

    def get_idxs(self) -> Any:
        idxs = super().get_idxs()
        if not isinstance(idxs, list) or self._keeps_order:
            return idxs
        if self.shuffle:  # or their batches would be short
            bad = set(self.bad.indices()) if self._known is None else self._known
            idxs = [i for i in idxs if i not in bad] if bad else idxs
        rng = self.rng if self.shuffle else None
        return same_scale_order(idxs, self.target_of, self._planned_bs, rng, self.drop_last)

    def _plan(self) -> Iterator[list[int]]:
        """The batches of this pass, of all processes together where they move in step."""
        order = self._DataLoader__idxs  # fastai's private name for the order of this iteration
        batches = cut_batches(order, self.target_of, self._planned_bs)
        return batches if self._in_step else islice(batches, self.rank, None, self.world)

    def _share(self, batch: list[int]) -> tuple[list[int], float]:
        if not self._in_step:
            return batch, 1.0
        return rank_share(batch, self.rank, self.world, self.bs)

    def sample(self) -> Iterator[list[int]]:
        """This worker's share of the batches, each a list of indices."""
        for k, batch in enumerate(islice(self._plan(), self._first, None)):
            if k % self.num_workers == self.offs:
                yield self._share(batch)[0]

    def share_of(self, i: int) -> float:
        """The factor of this process's mean loss of batch `i` of the pass, counted from its start.

        The mean over the processes of what it gives is the mean over the batch of all of them.
        0 for images that stand in where a process has none. `weight` is that of the last batch.
        """
        return self._factors[i] if self._in_step else 1.0

    def __len__(self) -> int:
        if self.n is None:
            return super().__len__()
        if self._keeps_order:
            count = sum(1 for _ in cut_batches(range(self.n), self.target_of, self._planned_bs))
        else:
            if self._counts is None:  # asked for on every epoch, and ImageNet has 1.28 million
                self._counts = Counter(self.target_of(i) for i in range(self.n))
            count = batch_count(self._counts, self._planned_bs, self.drop_last)
        return count if self._in_step else len(range(self.rank, count, self.world))

    def _makes_none(self, left: int, planned: int) -> bool:
        """Whether the images that are left of those planned make no batch: there are none, or in
        training a single one, on which batch norm cannot train."""
        return not left or (left == 1 < planned and self._part == "training")

    def _left_out(self) -> int:
        """How many batches of the plan come before the first that is not to be left out."""
        if self._in_step:  # where every one of them is given
            return self._skip
        seen = place = 0
        for batch in self._plan():
            if seen == self._skip:
                break
            left = sum(i not in self.bad for i in batch)
            seen += not self._makes_none(left, len(batch))
            place += 1
        return place

    # and the pass itself

    def before_iter(self) -> None:
        super().before_iter()
        self.epoch_seed = self.rng.getrandbits(32)  # in the main process: the same for all workers

    def __iter__(self) -> Iterator[Any]:
        """fastai's own loop, but that an iterator's seed is the pass's own instead of a draw from
        torch's global generator, and that a batch of which nothing is left is passed over here, so
        that the others stay where they are."""
        self.randomize()
        self.before_iter()
        self._DataLoader__idxs = self.get_idxs()
        self._known = None
        self._first = self._left_out() if self._skip else 0
        if self._in_step:
            self._factors = [self._share(batch)[1] for batch in self._plan()]
        self.fake_l.generator = torch.Generator().manual_seed(self.epoch_seed)
        batches = _loaders[self.fake_l.num_workers == 0](self.fake_l)
        for i, batch in self._given(iter(batches)):
            if batch is None:
                continue
            if self.pin_memory and type(batch) is list:  # pinning makes lists of tuples
                batch = tuple(batch)
            if self.device is not None:
                batch = to_device(batch, self.device)
            self.weight = self.share_of(i)
            yield self.after_batch(batch)
        self.after_iter()
        if hasattr(self, "it"):
            del self.it

    def to_detach(self, b: Any, cpu: bool = True, gather: bool = True) -> Any:
        """fastai's, for metrics and predictions, but never gathered over the processes: one may
        have more batches than another, or work alone. `DistributedTraining` adds metrics up."""
        return to_detach(b, cpu, gather=False)

    def _given(self, batches: Iterator[Any]) -> Iterator[tuple[int, Any]]:
        """What the workers give, with its place in the pass."""
        return enumerate(batches, self._first)
