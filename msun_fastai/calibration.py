"""Calibrated routing: thresholds on the native size, learnt from which subnet is right on what.

Sizes and scales are sides in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from msun_fastai.errors import UserError
from msun_fastai.scales import NEVER, calibrated, thresholds

MOST_GROUPS = 256  # of sizes, between which thresholds can lie


def calibrate(
    sizes: Any,
    right: Any,
    macs: Sequence[float],
    scales: Sequence[int],
    budget: float | None = None,
) -> str:
    """The routing rule of highest accuracy on these images, `calibrated:...` with its thresholds.

    sizes: native sizes (n,). right: which subnet is right on which image, bool (n, scales). macs:
    what an image costs in each subnet. budget: the most that the mean cost may be, as a share of
    the canonical subnet's. Among rules of the same accuracy the cheapest is taken. The choice is
    exact over all thresholds between sizes that were seen (with more than 256 different sizes, over
    their quantiles and the thresholds of `nearest` and `up`), so that no rule of those two within
    the budget is better. Raises `UserError`.
    """
    sizes, right = np.asarray(sizes), np.asarray(right, dtype=np.int64)
    cost = np.asarray(macs, dtype=np.float64) / macs[-1]
    if len(scales) == 1:
        raise UserError("routing: this network has one scale; there is nothing to route")
    if budget is not None and not cost.min() <= budget:
        raise UserError(
            f"budget: {budget:g} of the canonical cost: the cheapest subnet takes {cost.min():.3g}"
        )
    edges = candidates(sizes, scales)
    group = np.searchsorted(edges, sizes)  # a group's images are above the edge before, up to its
    counts = np.bincount(group, minlength=len(edges))
    gains = np.stack(
        [np.bincount(group, column, len(edges)) for column in right.T.astype(float)], 1
    ).astype(int)
    chosen = _best_split(counts, gains, cost, np.inf if budget is None else budget * len(sizes))
    return calibrated(_as_thresholds(np.unique(sizes), edges, chosen, len(scales)))


def candidates(sizes: np.ndarray, scales: Sequence[int]) -> np.ndarray:
    """Sizes that a threshold may have, ascending; the last is the largest image's."""
    seen = np.unique(sizes)
    if len(seen) > MOST_GROUPS:
        shares = np.linspace(0, 1, MOST_GROUPS)
        known = [t for rule in ("nearest", "up") for t in thresholds(tuple(scales), rule)]
        # the largest size seen that is not above the threshold: it divides the images as that does
        below = [seen[seen <= t].max() for t in known if (seen <= t).any()]
        seen = np.unique([*np.quantile(sizes, shares, method="inverted_cdf"), *below, seen[-1]])
    return seen.astype(np.int64)


def _best_split(counts: np.ndarray, gains: np.ndarray, cost: np.ndarray, most: float) -> list[int]:
    """The subnet of each group of sizes, never one of a smaller scale after a larger.

    counts: images of each group (g,). gains: how many of them each subnet gets right (g, s). cost:
    of an image in each subnet (s,). most: the total cost allowed. Dynamic programming over groups,
    subnets and the number of right answers, which keeps the least cost of each: exact, for the
    number is whole.
    """
    n_groups, n_subnets = gains.shape
    reach = int(gains.max(1).sum()) + 1
    least = np.full((n_subnets, reach), np.inf)  # by the subnet of the last group and right answers
    least[:, 0] = 0.0
    before = np.zeros((n_groups, n_subnets, reach), dtype=np.int8)
    for g in range(n_groups):
        # the cheapest way to here whose last subnet is not above s, and which subnet that is
        cheapest = np.minimum.accumulate(least, 0)
        new = np.full_like(least, np.inf)
        for s in range(n_subnets):
            came = np.argmin(least[: s + 1], 0)
            gain = gains[g, s]
            new[s, gain:] = cheapest[s, : reach - gain] + counts[g] * cost[s]
            before[g, s, gain:] = came[: reach - gain]
        least = new
    # a hair above, for sums of shares are not exact
    cheapest = least.min(0)
    allowed = np.isfinite(cheapest) & (cheapest <= most * (1 + 1e-9))
    total = int(np.flatnonzero(allowed)[-1])
    s = int(np.argmin(least[:, total]))
    chosen = [s]
    for g in range(n_groups - 1, 0, -1):
        s, total = int(before[g, s, total]), total - int(gains[g, s])
        chosen.append(s)
    return chosen[::-1]


def _as_thresholds(
    seen: np.ndarray, edges: np.ndarray, chosen: Sequence[int], n_scales: int
) -> list[int]:
    """The thresholds that send each group of sizes to its subnet.

    Between two sizes that were seen a threshold lies in the middle; images smaller or larger than
    all that were seen go where the nearest of those go.
    """
    found = []
    for s in range(n_scales - 1):
        last = int(np.searchsorted(chosen, s, side="right")) - 1  # its and smaller scales' groups
        if last < 0:
            found.append(0)
        elif last == len(edges) - 1:
            found.append(NEVER)
        else:
            found.append(int(edges[last] + seen[seen > edges[last]][0]) // 2)
    return found
