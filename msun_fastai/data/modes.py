"""Every Pillow mode and every array to 8-bit RGB, with the right values."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image

from msun_fastai.errors import ImageError

CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded Pillow image of any mode as RGB; one that is RGB as it is."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_to_uint8(np.asarray(image))).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _to_uint8(a: np.ndarray) -> np.ndarray:
    """Grey or colour values of any type as uint8: floats up to 1 span black to white, numbers
    above 255 are 16-bit, everything else is 8-bit already."""
    if a.dtype == np.bool_:
        return a.astype(np.uint8) * 255
    if a.dtype == np.uint8:
        return a
    if np.issubdtype(a.dtype, np.floating):
        a = np.nan_to_num(a.astype(np.float32), nan=0.0)
        most = float(a.max()) if a.size else 0.0
        scale = 255 if most <= 1.0 else 1 if most <= 255 else 1 / 257
        return (a * scale).round().clip(0, 255).astype(np.uint8)
    two_bytes = a.dtype.kind == "u" and a.dtype.itemsize == 2
    a = a.astype(np.int64)  # room for the rounding
    wide = two_bytes or (a.size > 0 and int(a.max()) > 255)
    return ((a.clip(0, 65535) + 128) // 257 if wide else a.clip(0, 255)).astype(np.uint8)


def rgb_from_array(source: Any) -> np.ndarray:
    """uint8 RGB (h, w, 3) from an array or tensor of a shape that `open_image` names.

    Raises `ImageError`.
    """
    channels_first = hasattr(source, "detach")  # a tensor: (c, h, w) by custom, arrays (h, w, c)
    try:
        a = np.asarray(source.detach().cpu() if channels_first else source)
    except Exception as error:
        raise ImageError(f"{type(source).__name__}: not an image ({error})") from error
    if a.ndim == 3 and a.shape[0] in CHANNELS and (channels_first or a.shape[2] not in CHANNELS):
        a = a.transpose(1, 2, 0)
    if a.dtype == object or a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[2] not in CHANNELS):
        raise ImageError(
            f"{type(source).__name__} of shape {tuple(a.shape)} and type {a.dtype}: not an image; "
            "give (h, w), (h, w, c) or (c, h, w) with 1, 3 or 4 channels"
        )
    a = np.require(_to_uint8(a), requirements=["C", "W"])
    if a.size == 0 or (a.ndim == 3 and a.shape[2] == 3):
        return a.reshape(*a.shape[:2], 3)
    return np.array(to_rgb(Image.fromarray(a[..., 0] if a.ndim == 3 and a.shape[2] == 1 else a)))
