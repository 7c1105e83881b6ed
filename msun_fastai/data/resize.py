"""How an image becomes a square: the resize rule and the augmentation that goes with it.

A `Fit` is chosen from the image's size alone, before anything is decoded; `fit_pixels` does what
it says.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from msun_fastai.data.images import REDUCTIONS, OpenedImage, open_image
from msun_fastai.scales import check_choice

# squish: the whole image onto a square, as the paper's multi-scale testing; crop: the square in the
# middle, as torchvision's resize and centre crop; pad: the whole image, unbent, on a grey square
RESIZE_RULES = ("squish", "crop", "pad")
CROPPED = 224 / 256  # of the shorter side: what torchvision's reference tests on
GREY = (124, 116, 104)  # ImageNet's mean, which is zero for the network
# light: for transfer; rrc: torchvision's random resized crop, for training from random weights
AUGMENTATIONS = ("none", "light", "rrc")
AREAS = {"light": (0.5, 1.0), "rrc": (0.08, 1.0)}  # share of the image that a crop keeps
RATIO = (3 / 4, 4 / 3)  # of a crop's sides, in torchvision's reference
# pixels decoded for one that is kept, at least, as Pillow's `thumbnail` has it: on photographs the
# result differs from that of decoding everything by 1 to 2 of 255 levels on average. The smallest
# of random crops has one for one; most have more
SPARE, SPARE_RANDOM = 2, 1
Size = tuple[int, int]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Fit:
    """What part of an image goes where in a square of `side` pixels.

    box: left, upper, right, lower, as shares of width and height. inner: width and height in
    pixels that the box is resampled to, in the middle of a grey square. flip: mirrored.
    """

    side: int
    box: Box
    inner: Size
    flip: bool = False


def fit_whole(size: Size, side: int, rule: str = "squish") -> Fit:
    """The `Fit` of an image of `size` (width, height) by the resize `rule`, nothing random."""
    check_choice("resize", rule, RESIZE_RULES)
    if rule == "squish":
        return Fit(side, (0, 0, 1, 1), (side, side))
    if rule == "pad":
        return Fit(side, (0, 0, 1, 1), _unbent(size, side))
    edge = CROPPED * min(size)
    left, upper = (1 - edge / size[0]) / 2, (1 - edge / size[1]) / 2
    return Fit(side, (left, upper, 1 - left, 1 - upper), (side, side))


def _unbent(size: tuple[float, float], side: int) -> Size:
    """Width and height of an image of `size` with its longer side at `side`."""
    longer = max(size)
    return max(1, round(side * size[0] / longer)), max(1, round(side * size[1] / longer))


def fit_random(size: Size, side: int, kind: str, rng: random.Random, rule: str = "squish") -> Fit:
    """The `Fit` of an image of `size` with the augmentation `kind` drawn from `rng`.

    `light`: a random crop that keeps at least half of the image, resized by `rule`. `rrc`: a random
    resized crop of at least 8 %, never padded. Both give a mirror image half of the time.
    """
    check_choice("augment", kind, AUGMENTATIONS)
    if kind == "none":
        return fit_whole(size, side, rule)
    # a box of the image's own proportions where it is bent to a square or padded, else about square
    bends = kind == "light" and rule != "crop"
    left, upper, right, lower = crop_box(size, rng, AREAS[kind], bends)
    padded = kind == "light" and rule == "pad"
    inner = _unbent((right - left, lower - upper), side) if padded else (side, side)
    width, height = size
    box = (left / width, upper / height, right / width, lower / height)
    return Fit(side, box, inner, rng.random() < 0.5)


def crop_box(size: Size, rng: random.Random, areas: tuple[float, float], bends: bool) -> Box:
    """A random box in pixels inside an image of `size` (width, height), its share of the area in
    `areas`.

    Its sides' ratio is drawn from `RATIO`, times the image's own where it `bends`. Where such a box
    does not fit, its longer side is cut.
    """
    width, height = size
    area = width * height * rng.uniform(*areas)
    ratio = math.exp(rng.uniform(*map(math.log, RATIO))) * (width / height if bends else 1)
    w = min(width, max(1.0, math.sqrt(area * ratio)))
    h = min(height, max(1.0, math.sqrt(area / ratio)))
    left, upper = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return left, upper, left + w, upper + h


def reduction_for(size: Size, side: int, rule: str = "squish", kind: str = "none") -> int:
    """1, 2, 4 or 8: how much smaller an image of `size` may be decoded for a square of `side`.

    Whatever part of it the augmentation `kind` may draw keeps so many pixels (`SPARE`,
    `SPARE_RANDOM`) for each of the square's. It depends on no draw, so that what is decoded can be
    kept for the next epoch.
    """
    if kind == "none":
        share, spare = CROPPED if rule == "crop" else 1.0, SPARE
    else:
        share, spare = math.sqrt(AREAS[kind][0] * RATIO[0]), SPARE_RANDOM
    pixels = share * (max(size) if rule == "pad" and kind != "rrc" else min(size))
    return next((r for r in REDUCTIONS if pixels >= r * spare * side), 1)


def fit_pixels(pixels: np.ndarray, fit: Fit) -> Tensor:
    """uint8 pixels (h, w, 3) as a uint8 tensor (3, side, side), as `fit` says.

    Antialiased, from one resampling, so nothing is blurred twice. The box is rounded to pixels.
    """
    height, width = pixels.shape[:2]
    left, right = _whole(fit.box[0], fit.box[2], width)
    upper, lower = _whole(fit.box[1], fit.box[3], height)
    x = torch.from_numpy(pixels[upper:lower, left:right]).permute(2, 0, 1)[None]
    inner = fit.inner[::-1]
    if tuple(x.shape[-2:]) != inner:
        x = interpolate(x, inner, mode="bilinear", antialias=True)
    x = x[0]
    if inner != (fit.side, fit.side):
        x = _padded(x, fit.side)
    return x.flip(-1) if fit.flip else x


def as_pixels(x: Tensor) -> np.ndarray:
    """A uint8 tensor (3, h, w) as an array (h, w, 3)."""
    return x.permute(1, 2, 0).contiguous().numpy()


def _whole(start: float, end: float, length: int) -> Size:
    """Shares of `length` in whole pixels, one at least."""
    first = min(round(start * length), length - 1)
    return first, max(first + 1, round(end * length))


def _padded(x: Tensor, side: int) -> Tensor:
    """`x` (3, h, w) in the middle of a grey square."""
    square = torch.tensor(GREY, dtype=torch.uint8)[:, None, None].repeat(1, side, side)
    upper, left = (side - x.shape[-2]) // 2, (side - x.shape[-1]) // 2
    square[:, upper : upper + x.shape[-2], left : left + x.shape[-1]] = x
    return square


def fitted(image: OpenedImage, side: int, rule: str = "squish") -> Tensor:
    """An opened image as a uint8 tensor (3, side, side) by the resize `rule`.

    Decoded no larger than that needs. Raises `ImageError`.
    """
    pixels = image.pixels(reduction_for(image.size, side, rule))
    return fit_pixels(pixels, fit_whole(image.size, side, rule))


def load_fitted(source: Any, side: int, rule: str = "squish") -> Tensor:
    """`fitted` for whatever `open_image` takes."""
    with open_image(source) as image:
        return fitted(image, side, rule)
