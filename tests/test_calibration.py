"""Calibrated routing: against all thresholds tried one by one, and against the fixed rules."""

from itertools import combinations_with_replacement

import numpy as np
import pytest

from msun_fastai import calibration
from msun_fastai.calibration import calibrate
from msun_fastai.errors import UserError
from msun_fastai.scales import NEVER, route, thresholds

SCALES = (16, 32, 64)
MACS = (10, 20, 40)


def images(n=60, seed=0, scales=SCALES, largest=80):
    """Native sizes, and which subnet is right on which image: the larger the likelier."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(8, largest, n)
    near = np.abs(np.log(sizes[:, None] / np.array(scales)))
    return sizes, rng.random((n, len(scales))) < np.exp(-near) * 0.9


def score(sizes, right, rule, scales=SCALES, macs=MACS):
    index = [scales.index(route(int(s), scales, rule)) for s in sizes]
    hits = sum(right[row, i] for row, i in enumerate(index))
    return int(hits), sum(macs[i] for i in index) / len(index) / macs[-1]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("budget", [None, 0.3, 0.5, 0.8])
def test_no_other_thresholds_are_better(seed, budget):
    sizes, right = images(seed=seed)
    rule = calibrate(sizes, right, MACS, SCALES, budget)
    hits, cost = score(sizes, right, rule)
    assert budget is None or cost <= budget + 1e-9
    places = [0, *sorted(set(sizes.tolist()))]
    for pair in combinations_with_replacement(places, 2):
        other, price = score(sizes, right, f"calibrated:{pair[0]},{pair[1]}")
        if budget is None or price <= budget + 1e-9:
            assert (hits, -cost) >= (other, -price - 1e-9)


@pytest.mark.parametrize("n_scales", [2, 4])
def test_other_numbers_of_scales(n_scales):
    scales = (16, 32, 48, 64)[-n_scales:]
    sizes, right = images(40, 3, scales)
    macs = tuple(range(1, n_scales + 1))
    rule = calibrate(sizes, right, macs, scales)
    hits = score(sizes, right, rule, scales, macs)[0]
    for fixed in ("nearest", "up"):
        assert hits >= score(sizes, right, fixed, scales, macs)[0]


@pytest.mark.parametrize("budget", [None, 0.6])
def test_more_sizes_than_are_tried_one_by_one(monkeypatch, budget):
    """Over quantiles it is still never below a fixed rule within the budget."""
    monkeypatch.setattr(calibration, "MOST_GROUPS", 8)
    for seed in range(8):
        sizes, right = images(300, seed)
        assert len(np.unique(sizes)) > 8
        hits, cost = score(sizes, right, calibrate(sizes, right, MACS, SCALES, budget))
        assert budget is None or cost <= budget + 1e-9
        for fixed in ("nearest", "up"):
            other, price = score(sizes, right, fixed)
            if budget is None or price <= budget:
                assert hits >= other


def test_a_tie_goes_to_the_cheapest():
    sizes = np.array([10, 30, 60])
    rule = calibrate(sizes, np.ones((3, 3), bool), MACS, SCALES)
    assert thresholds(SCALES, rule) == (NEVER, NEVER)


def test_thresholds_lie_between_the_sizes_that_were_seen():
    sizes = np.array([10, 10, 40, 40, 60])
    right = np.zeros((5, 3), bool)
    right[[0, 1], 0] = right[[2, 3], 1] = right[4, 2] = True
    rule = calibrate(sizes, right, MACS, SCALES)
    assert rule == "calibrated:25,50"
    assert [route(s, SCALES, rule) for s in (1, 25, 26, 50, 51, 5000)] == [16, 16, 32, 32, 64, 64]


def test_a_subnet_that_is_never_best_takes_nothing():
    sizes = np.array([10, 40, 60])
    right = np.array([[0, 0, 1], [0, 0, 1], [0, 0, 1]], bool)
    assert calibrate(sizes, right, MACS, SCALES) == "calibrated:0,0"


def test_what_cannot_be_calibrated():
    sizes, right = images()
    with pytest.raises(UserError, match=r"budget: 0\.1 .* the cheapest subnet takes 0.25"):
        calibrate(sizes, right, MACS, SCALES, 0.1)
    with pytest.raises(UserError, match="one scale"):
        calibrate(sizes, right[:, :1], (1,), (64,))
