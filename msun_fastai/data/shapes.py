"""`shapes`: an embedded dataset of mixed native sizes, drawn by the code and seeded.

Ten classes, five outlines each plain or striped, on cluttered backgrounds, with shorter sides from
16 to 256 pixels, more of them large than small. Outlines survive reduction to 16 pixels, stripes
barely do, so a network that was trained for one size has to lose on the small ones.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import cycle

import numpy as np
from PIL import Image, ImageDraw

from msun_fastai.data.cache import PixelCache
from msun_fastai.data.samples import Sample, Source, make_source

OUTLINES = ("disc", "square", "triangle", "cross", "star")
FILLS = ("plain", "striped")
CLASSES = tuple(f"{fill} {outline}" for outline in OUTLINES for fill in FILLS)
PARTS = ("training", "validation")
SIDES = (16, 256)  # shorter side in pixels
SKEW = (
    0.75  # below 1: sides lean to the large ones, as photographs do; 1 is uniform in the logarithm
)
STRIPE = 0.5  # period of the stripes, in radii of the outline
MIN_CONTRAST = 0.35  # of the figure against its surroundings, in luminance
LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)  # ITU-R BT.601


@dataclass(frozen=True, slots=True)
class DrawnImage:
    """Image `number` of a part (0 to train on, 1 to validate on), drawn when it is first opened.

    kept: where the pixels are then, for this process and those forked from it; at `place`.
    """

    label: str
    seed: int
    part: int
    number: int
    place: int = field(compare=False)
    kept: PixelCache = field(compare=False, repr=False)

    def __str__(self) -> str:  # all that it depends on, for features that are kept are known by it
        return f"shapes of seed {self.seed}, {PARTS[self.part]} image {self.number}: {self.label}"

    def open_bytes(self) -> np.ndarray:
        """The pixels, for there is no file to decode them from: uint8 (height, width, 3)."""
        pixels = self.kept.get(self.place)
        if pixels is None:
            rng = _rng(self.seed, self.part, self.number)
            pixels = draw(self.label, *_size(rng), rng)
            self.kept.put(self.place, pixels)
        return pixels


def shapes_source(train: int = 2000, valid: int = 600, seed: int = 42) -> Source:
    """`train` and `valid` labelled images, the classes in turn, none drawn before it is opened."""
    sizes = [
        [_size(_rng(seed, part, i)) for i in range(n)] for part, n in enumerate((train, valid))
    ]
    pixels = sum(width * height for part in sizes for width, height in part)
    kept = PixelCache(train + valid, 3 * pixels)
    parts = [
        [
            Sample(DrawnImage(label, seed, part, i, part * train + i, kept), label, size)
            for i, (label, size) in enumerate(zip(cycle(CLASSES), sizes[part]))
        ]
        for part in (0, 1)
    ]
    return make_source("shapes", parts[0], parts[1], CLASSES)


def _rng(seed: int, part: int, number: int) -> np.random.Generator:
    return np.random.default_rng((seed, part, number))


def _size(rng: np.random.Generator) -> tuple[int, int]:
    """Width and height, the first that is drawn from `rng`."""
    low, high = SIDES
    side = round(low * (high / low) ** (rng.random() ** SKEW))
    longer = round(side * rng.uniform(1, 1.4))
    return (side, longer) if rng.random() < 0.5 else (longer, side)


def draw(label: str, width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """A uint8 array (height, width, 3) that shows `label`."""
    fill, outline = label.split()
    canvas = _background(width, height, rng)
    radius = rng.uniform(0.34, 0.44) * min(width, height)
    cx = rng.uniform(radius, width - radius)
    cy = rng.uniform(radius, height - radius)
    angle = rng.uniform(-0.3, 0.3)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32) + 0.5
    dx, dy = (x - cx) / radius, (y - cy) / radius
    u = np.cos(angle) * dx + np.sin(angle) * dy
    v = np.cos(angle) * dy - np.sin(angle) * dx
    # an edge one pixel wide, so that a large image is sharp and a small one is not jagged
    inside = np.clip(0.5 - _distance(outline, u, v) * radius, 0, 1)[..., None]
    surroundings = float((canvas * inside).sum((0, 1)) @ LUMA / max(float(inside.sum()), 1e-6))
    light, dark = _colours(surroundings, rng)
    figure = np.broadcast_to(light, canvas.shape)
    if fill == "striped":
        across = np.sin(2 * np.pi * (u / STRIPE + rng.random()))
        figure = np.where(across[..., None] > 0, light, dark)
    image = canvas * (1 - inside) + figure * inside
    image = image + rng.normal(0, 0.03, image.shape)
    return (image.clip(0, 1) * 255).round().astype(np.uint8)


def _distance(outline: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Roughly the signed distance to the outline in radii, negative inside."""
    if outline == "disc":
        return np.hypot(u, v) - 0.9
    if outline == "square":
        return np.maximum(abs(u), abs(v)) - 0.8
    if outline == "triangle":
        return np.maximum(v - 0.65, 0.87 * abs(u) - 0.5 * v - 0.5)
    if outline == "cross":
        arm, bar = np.minimum(abs(u), abs(v)), np.maximum(abs(u), abs(v))
        return np.maximum(arm - 0.28, bar - 0.95)
    # a star's radius swings between its five points and the notches between them
    sector = np.abs((np.arctan2(u, -v) / (2 * np.pi / 5)) % 1 - 0.5) * 2
    return np.hypot(u, v) - (0.38 + 0.62 * sector**1.5)


def _colours(surroundings: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """The figure's colour and that of its dark or light stripes, both apart from what is behind."""
    while True:
        first, second = rng.random((2, 3)).astype(np.float32)
        lights = first @ LUMA, second @ LUMA
        if (
            abs(lights[0] - lights[1]) > MIN_CONTRAST
            and abs(lights[0] - surroundings) > MIN_CONTRAST / 2
            and abs(lights[1] - surroundings) > MIN_CONTRAST / 4
        ):
            return first, second


def _background(width: int, height: int, rng: np.random.Generator) -> np.ndarray:
    """Cloudy colour with a dozen small discs and bars: float32 (height, width, 3) in [0, 1]."""
    clouds = rng.uniform(0.2, 0.8, 3) + rng.normal(0, 0.12, (4, 4, 3))
    coarse = Image.fromarray((clouds.clip(0, 1) * 255).astype(np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    pen = ImageDraw.Draw(image)
    short = min(width, height)
    for _ in range(rng.integers(8, 16)):
        x, y, size = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0.02, 0.07) * short
        colour = tuple(int(c) for c in rng.integers(0, 256, 3))
        if rng.random() < 0.5:
            pen.ellipse((x - size, y - size, x + size, y + size), fill=colour)
        else:
            dx, dy = rng.uniform(-4, 4, 2) * size
            pen.line((x, y, x + dx, y + dy), fill=colour, width=max(1, round(size)))
    return np.asarray(image, dtype=np.float32) / 255
