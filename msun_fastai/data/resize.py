"""The resize rule and the augmentation that goes with it, on Pillow images."""

from __future__ import annotations

import math
import random

from PIL import Image

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
Box = tuple[float, float, float, float]


def resize_image(image: Image.Image, side: int, rule: str = "squish") -> Image.Image:
    """`image` at side x side by `rule`, antialiased, from one resampling of the original pixels."""
    check_choice("resize", rule, RESIZE_RULES)
    if rule == "pad":
        return _padded(image, side, (0, 0, *image.size))
    return _resampled(image, (side, side), _middle(image.size) if rule == "crop" else None)


def _resampled(image: Image.Image, size: tuple[int, int], box: Box | None) -> Image.Image:
    """The `box` (left, upper, right, lower; the whole by default) of `image` at `size`."""
    if image.size == size and box is None:
        return image
    return image.resize(size, Image.Resampling.BILINEAR, box=box)


def _middle(size: tuple[int, int]) -> Box:
    """The square in the middle of an image of `size` (width, height) that `crop` keeps."""
    edge = CROPPED * min(size)
    left, upper = (size[0] - edge) / 2, (size[1] - edge) / 2
    return left, upper, left + edge, upper + edge


def _padded(image: Image.Image, side: int, box: Box) -> Image.Image:
    """The `box` of `image`, its longer side at `side`, in the middle of a grey square."""
    width, height = box[2] - box[0], box[3] - box[1]
    longer = max(width, height)
    size = (max(1, round(side * width / longer)), max(1, round(side * height / longer)))
    small = _resampled(image, size, box)
    if size == (side, side):
        return small
    square = Image.new("RGB", (side, side), GREY)
    square.paste(small, ((side - size[0]) // 2, (side - size[1]) // 2))
    return square


def augment_image(
    image: Image.Image, side: int, kind: str, rng: random.Random, rule: str = "squish"
) -> Image.Image:
    """`image` resized to side x side with the random augmentation `kind` drawn from `rng`.

    `light`: a random crop that keeps at least half of the image, resized by `rule`. `rrc`: a random
    resized crop of at least 8 %, never padded. Both give a mirror image half of the time. One
    resampling from the original pixels, so nothing is blurred twice.
    """
    check_choice("augment", kind, AUGMENTATIONS)
    if kind == "none":
        return resize_image(image, side, rule)
    # a box of the image's own proportions where it is bent to a square or padded, else about square
    bends = kind == "light" and rule != "crop"
    box = crop_box(image.size, rng, AREAS[kind], bends)
    if kind == "light" and rule == "pad":
        out = _padded(image, side, box)
    else:
        out = _resampled(image, (side, side), box)
    return out.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else out


def crop_box(
    size: tuple[int, int], rng: random.Random, areas: tuple[float, float], bends: bool
) -> Box:
    """A random box inside an image of `size` (width, height): its share of the area in `areas`.

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
