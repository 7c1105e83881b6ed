"""Bootstrap intervals: against simulated data whose mean is known, and against the formula."""

import numpy as np
import pytest

from msun_fastai.bootstrap import mean_interval


def test_the_interval_covers_the_mean_as_often_as_it_says():
    """Of 300 samples of 150 images at 70 % right, 95 % of the intervals hold 0.7."""
    rng = np.random.default_rng(1)
    right = rng.random((150, 300)) < 0.7  # 300 simulated tests, a column each
    low, high = mean_interval(right, seed=3)
    covered = ((low <= 0.7) & (high >= 0.7)).mean()
    # two standard errors of 300 draws around 0.95, and one point that a percentile interval loses
    assert 0.915 <= covered <= 0.975
    narrow, wide = mean_interval(right, level=0.5, seed=3)
    assert 0.42 <= ((narrow <= 0.7) & (wide >= 0.7)).mean() <= 0.58


def test_the_width_is_that_of_the_normal_approximation():
    right = np.arange(1000)[:, None] < 600
    low, high = mean_interval(right, resamples=4000)
    half = 1.96 * np.sqrt(0.6 * 0.4 / 1000)
    assert low[0] == pytest.approx(0.6 - half, abs=0.003)
    assert high[0] == pytest.approx(0.6 + half, abs=0.003)


def test_paired_differences_are_narrower_than_unpaired():
    """Two models that agree on most images: the images' own difficulty cancels."""
    rng = np.random.default_rng(2)
    hard = rng.random(400)
    a, b = hard < 0.6, hard < 0.65
    low, high = mean_interval((b.astype(float) - a)[:, None])
    assert low[0] > 0
    alone = mean_interval(np.column_stack([a, b]))
    assert high[0] - low[0] < 0.6 * (alone[1][0] - alone[0][0])


def test_columns_are_resampled_together():
    values = np.random.default_rng(4).random((50, 1))
    low, high = mean_interval(np.hstack([values, 1 - values]))
    assert low[0] == pytest.approx(1 - high[1])
    assert high[0] == pytest.approx(1 - low[1])


def test_no_spread_and_the_same_seed():
    low, high = mean_interval(np.ones((20, 2)))
    assert (low == 1).all()
    assert (high == 1).all()
    values = np.random.default_rng(5).random((30, 3))
    assert np.array_equal(mean_interval(values), mean_interval(values))
    assert not np.array_equal(mean_interval(values), mean_interval(values, seed=1))
    one = mean_interval(np.array([[0.25, 1.0]]))
    assert np.array_equal(one, [[0.25, 1.0]] * 2)


@pytest.mark.parametrize("values", [np.zeros((0, 2)), np.zeros(3)])
def test_nothing_to_resample(values):
    with pytest.raises(ValueError, match="shape"):
        mean_interval(values)
