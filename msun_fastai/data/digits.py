"""scikit-learn's handwritten digits: 1,797 grey images of 8 x 8 pixels that need no download."""

from __future__ import annotations

import numpy as np

from msun_fastai.data.samples import Sample, Source, make_source, stratified_split

VALID_FRACTION = 0.2
WHITE = 16  # the largest value in the set


def digits_source(seed: int = 42) -> Source:
    """The digits, a fifth of each class held out by `seed`."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = (digits.images * (255 / WHITE)).round().astype(np.uint8)
    samples = [Sample(image, str(label)) for image, label in zip(images, digits.target)]
    train, valid = stratified_split(samples, VALID_FRACTION, seed)
    return make_source("digits", train, valid, [str(name) for name in digits.target_names])
