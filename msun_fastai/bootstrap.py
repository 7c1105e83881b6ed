"""How sure a mean over images is: percentile bootstrap, the same images drawn in all columns."""

from __future__ import annotations

from typing import Any

import numpy as np

LEVEL = 0.95
RESAMPLES = 1_000
AT_ONCE = 2**24  # values that are resampled at a time


def mean_interval(
    values: Any, level: float = LEVEL, resamples: int = RESAMPLES, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Low and high ends of the confidence interval of the mean of each column, (k,) each.

    values: (n, k), a row an image. Images are resampled, whole rows at a time. For the difference
    of two models on the same images give the differences of their values: that is the paired
    interval. With one image, or no spread, both ends are the mean.
    """
    from scipy.stats import bootstrap

    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"values of shape {values.shape}; expected (images, columns)")
    if len(values) == 1:
        return values[0].copy(), values[0].copy()
    found = bootstrap(
        (values,),
        np.mean,
        axis=0,
        vectorized=True,
        n_resamples=resamples,
        batch=max(1, AT_ONCE // values.size),
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return np.asarray(found.low), np.asarray(found.high)
