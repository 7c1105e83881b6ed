"""Batches of one scale, planned in the main process: pure functions on indices."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import ceil


def _kept(group: int, bs: int, drop_last: bool) -> int:
    """How many of a scale's `group` images make batches.

    Dropping the last, short batch keeps batch norm from seeing a handful of images; but a scale
    with fewer images than a batch would never be trained at all, so there the short one stays,
    unless it is a single image, on which batch norm has no statistics.
    """
    if not drop_last:
        return group
    full = group - group % bs
    return full or (group if group > 1 else 0)


def batch_count(counts: Mapping[int, int], bs: int, drop_last: bool = False) -> int:
    """Number of batches for `counts` images per scale."""
    return sum(ceil(_kept(n, bs, drop_last) / bs) for n in counts.values())


def same_scale_order(
    idxs: Sequence[int],
    scale_of: Callable[[int], int],
    bs: int,
    rng: random.Random | None = None,
    drop_last: bool = False,
) -> list[int]:
    """`idxs` rearranged so that `cut_batches` finds batches of one scale in them.

    Within a scale the given order stays. With `rng` the batches come in random order, so that
    scales alternate; without it scale by scale, ascending. Every index occurs once, except those
    that `drop_last` leaves out.
    """
    groups: dict[int, list[int]] = {}
    for i in idxs:
        groups.setdefault(scale_of(i), []).append(i)
    batches = []
    for scale in sorted(groups):
        group = groups[scale][: _kept(len(groups[scale]), bs, drop_last)]
        batches += [group[at : at + bs] for at in range(0, len(group), bs)]
    if rng is not None:
        rng.shuffle(batches)
    return [i for batch in batches for i in batch]


def cut_batches(
    idxs: Iterable[int], scale_of: Callable[[int], int], bs: int
) -> Iterator[list[int]]:
    """Cut a flat order of indices where the scale changes or the batch is full, lazily.

    The cut depends on the order alone, so every worker process finds the same batches and takes
    its share, and an order that is stored (to undo it afterwards) stores the batches too. Where a
    scale's short batch happens to stand before one of its full ones, the two swap lengths; their
    number stays.
    """
    batch: list[int] = []
    for i in idxs:
        if batch and (len(batch) == bs or scale_of(i) != scale_of(batch[-1])):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def rank_share(batch: Sequence[int], rank: int, world: int, bs: int) -> tuple[list[int], float]:
    """What process `rank` of `world` takes of a batch for all, and the factor of its mean loss.

    The mean over the processes of factor times mean loss is the mean loss of the batch. One that is
    shorter than `world * bs` goes to so few processes that each has two images of it, or three (of
    one image: one), for batch norm has no statistics of a single one; the others stand by with the
    same images again, which count nothing: their factor is 0.
    """
    takers = max(1, min(world, len(batch) // min(2, bs)))
    share = list(batch[rank % takers :: takers])
    return share, len(share) * world / len(batch) if rank < takers else 0.0
