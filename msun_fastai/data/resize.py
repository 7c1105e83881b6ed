"""The resize rule and the augmentation that goes with it, on Pillow images."""

from __future__ import annotations

import math
import random

from PIL import Image

from msun_fastai.scales import check_choice

RESIZE_RULES = ("squish",)  # the whole image onto a square, as the paper's multi-scale testing
AUGMENTATIONS = ("none", "light")
LIGHT_AREA = (0.5, 1.0)  # share of the image that a light crop keeps
LIGHT_RATIO = (3 / 4, 4 / 3)  # torchvision's RandomResizedCrop
Box = tuple[float, float, float, float]


def resize_image(image: Image.Image, side: int, box: Box | None = None) -> Image.Image:
    """`image` (or its `box`: left, upper, right, lower) squished to side x side, antialiased."""
    if image.size == (side, side) and box is None:
        return image
    return image.resize((side, side), Image.Resampling.BILINEAR, box=box)


def augment_image(image: Image.Image, side: int, kind: str, rng: random.Random) -> Image.Image:
    """`image` resized to side x side with the random augmentation `kind` drawn from `rng`.

    `light`, for transfer: a random crop that keeps at least half of the image, and a mirror image
    half of the time. One resampling from the original pixels, so nothing is blurred twice.
    """
    check_choice("augment", kind, AUGMENTATIONS)
    if kind == "none":
        return resize_image(image, side)
    out = resize_image(image, side, crop_box(image.size, rng))
    return out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else out


def crop_box(size: tuple[int, int], rng: random.Random) -> Box:
    """A random box inside an image of `size` (width, height): area and ratio drawn as above."""
    width, height = size
    area = width * height * rng.uniform(*LIGHT_AREA)
    ratio = math.exp(rng.uniform(*map(math.log, LIGHT_RATIO))) * width / height
    w = min(width, max(1.0, math.sqrt(area * ratio)))
    h = min(height, max(1.0, math.sqrt(area / ratio)))
    left, upper = rng.uniform(0, width - w), rng.uniform(0, height - h)
    return left, upper, left + w, upper + h
