"""Batches of one scale: invariants over many sizes, orders and worker counts."""

import random
from itertools import pairwise

import pytest

from msun_fastai.data.batches import batch_count, cut_batches, rank_share, same_scale_order


def plan(n, bs, seed, shuffle, drop_last=False, scales=(16, 32, 64)):
    rng = random.Random(seed)
    scale = [rng.choice(scales) for _ in range(n)]
    order = same_scale_order(
        list(range(n)), scale.__getitem__, bs, rng if shuffle else None, drop_last
    )
    return scale, order, list(cut_batches(order, scale.__getitem__, bs))


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("bs", [1, 2, 7, 16, 1000])
@pytest.mark.parametrize("n", [0, 1, 2, 17, 200])
def test_one_scale_a_batch_and_every_index_once(n, bs, shuffle):
    for seed in range(5):
        scale, order, batches = plan(n, bs, seed, shuffle)
        assert sorted(order) == list(range(n))
        assert [i for b in batches for i in b] == order
        assert all(1 <= len(b) <= bs and len({scale[i] for i in b}) == 1 for b in batches)


@pytest.mark.parametrize("drop_last", [False, True])
@pytest.mark.parametrize("bs", [1, 3, 16, 64])
def test_the_count_is_the_number_of_batches(bs, drop_last):
    for seed in range(20):
        scale, _, batches = plan(150, bs, seed, True, drop_last)
        counts = {s: scale.count(s) for s in set(scale)}
        assert batch_count(counts, bs, drop_last) == len(batches)


def test_drop_last_keeps_a_scale_that_has_no_full_batch_but_no_single_image():
    scale = [16] * 70 + [32] * 5 + [64]
    order = same_scale_order(list(range(76)), scale.__getitem__, 32, drop_last=True)
    kept = [scale[i] for i in order]
    assert (kept.count(16), kept.count(32), kept.count(64)) == (64, 5, 0)


def test_shuffling_mixes_the_scales_and_depends_on_the_seed():
    scale, order, batches = plan(400, 8, 1, True)
    runs = [scale[b[0]] for b in batches]
    assert sum(a != b for a, b in pairwise(runs)) > 10
    assert order == plan(400, 8, 1, True)[1]
    assert order != plan(400, 8, 2, True)[1]


def test_cutting_is_lazy():
    endless = iter(lambda: 0, 1)
    batches = cut_batches(endless, lambda i: 16, 4)
    assert next(batches) == [0, 0, 0, 0]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
@pytest.mark.parametrize("bs", [1, 2, 3, 16])
def test_shares_of_a_batch(bs, world):
    for n in range(1, world * bs + 1):
        batch = list(range(100, 100 + n))
        shares = [rank_share(batch, rank, world, bs) for rank in range(world)]
        taken = [i for share, factor in shares if factor for i in share]
        assert sorted(taken) == batch
        assert all(share and set(share) <= set(batch) for share, _ in shares)
        assert all(min(n, bs, 2) <= len(share) <= max(bs, 3) for share, _ in shares)
        loss = sum(factor * sum(share) / len(share) for share, factor in shares) / world
        assert loss == pytest.approx(sum(batch) / n)
        if n == world * bs:
            assert {(len(share), factor) for share, factor in shares} == {(bs, 1.0)}
