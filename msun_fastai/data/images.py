"""Safe decoding: every input form and every Pillow mode to upright RGB, with a named error.

No fastai and no torch import here, so that the command line can predict without either.
"""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from msun_fastai.errors import ImageError

# Pillow warns above this many pixels and lets twice as many pass; we refuse them by the header
MAX_PIXELS = int(Image.MAX_IMAGE_PIXELS or 89_478_485)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}
SUFFIXES = JPEG | {".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"}
CHANNELS = (1, 3, 4)  # grey, RGB, RGBA


def read_header(source: Any) -> tuple[int, int]:
    """Width and height in pixels as stored, from the header alone: nothing is decoded.

    `source` is a path, bytes, an open Pillow image, an array or a tensor. The shorter side, which
    is the native size, is the same before and after EXIF rotation. Raises `ImageError`.
    """
    name, trim = _name(source), getattr(source, "trim", 0)
    if hasattr(source, "open_bytes"):
        source = source.open_bytes()
    if isinstance(source, Image.Image):
        return _checked(source.size, name)
    if isinstance(source, (str, Path, bytes, bytearray)):
        with _opened(source, name) as image:
            return _trimmed(image.size, trim)
    return image_from_array(source).size


def _trimmed(size: tuple[int, int], trim: int) -> tuple[int, int]:
    """Width and height without `trim` pixels at the bottom; an image of no more keeps them all."""
    return (size[0], size[1] - trim) if size[1] > trim else size


def native_size(source: Any) -> int:
    """The image's shorter side in pixels, from its header."""
    return min(read_header(source))


def load_image(source: Any) -> Image.Image:
    """Decode `source` (path, bytes, Pillow image, array or tensor) to an upright RGB image.

    EXIF rotation is applied, alpha laid on white, 16-bit grey scaled to 8 bits, CMYK and the other
    modes converted, the first frame taken of several, a banner at the bottom cut where the source
    has a `trim`. Arrays are (h, w), (h, w, c) or (c, h, w),
    tensors (h, w) or (c, h, w), of uint8, uint16, or floats in [0, 1]. Raises `ImageError`.
    """
    name, trim = _name(source), getattr(source, "trim", 0)
    if hasattr(source, "open_bytes"):
        source = source.open_bytes()
    if isinstance(source, (str, Path, bytes, bytearray)):
        with _opened(source, name) as image:
            rgb = _decoded(image, name)
            return rgb.crop((0, 0, *_trimmed(rgb.size, trim))) if trim else rgb
    if isinstance(source, Image.Image):
        _checked(source.size, name)
        return _decoded(source, name)
    return image_from_array(source)


def _name(source: Any) -> str:
    if isinstance(source, (str, Path)) or hasattr(source, "open_bytes"):
        return str(source)
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"a Pillow image of mode {source.mode}"
    return f"an image of {len(source)} bytes" if isinstance(source, (bytes, bytearray)) else "array"


def _checked(size: tuple[int, int], name: str) -> tuple[int, int]:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: an image of {width}x{height} has no pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width}x{height} is more than the {MAX_PIXELS} pixels that "
            "are accepted; reduce it first"
        )
    return size


def _opened(source: str | Path | bytes | bytearray, name: str) -> Image.Image:
    """The file opened lazily, its header checked."""
    try:
        if isinstance(source, (bytes, bytearray)):
            if not source:
                raise ImageError(f"{name}: empty")
            file: Any = io.BytesIO(source)
        else:
            file = Path(source)
            if file.is_dir():
                raise ImageError(f"{name}: is a directory, not an image")
            if file.stat().st_size == 0:
                raise ImageError(f"{name}: empty file")
        image = Image.open(file)
    except ImageError:
        raise
    except FileNotFoundError:
        raise ImageError(f"{name}: no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"{name}: not an image that can be read") from None
    except Image.DecompressionBombError:  # Pillow's own limit is twice ours
        raise ImageError(f"{name}: more than the {MAX_PIXELS} pixels that are accepted") from None
    # Pillow's readers raise whatever a malformed header leads them to
    except Exception as error:
        raise ImageError(f"{name}: cannot be opened ({_reason(error)})") from error
    try:
        _checked(image.size, name)
    except ImageError:
        image.close()
        raise
    return image


def _reason(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _decoded(image: Image.Image, name: str) -> Image.Image:
    try:
        image.load()
        return to_rgb(_upright(image))
    except Exception as error:  # as above: the decoders raise whatever the bytes lead them to
        raise ImageError(f"{name}: cannot be decoded ({_reason(error)})") from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # an unreadable EXIF block says nothing about rotation; the pixels are good
        return image


def to_rgb(image: Image.Image) -> Image.Image:
    """A decoded Pillow image of any mode as RGB, a new image."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(_to_uint8(np.asarray(image))).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.copy() if image.mode == "RGB" else image.convert("RGB")


def _to_uint8(a: np.ndarray) -> np.ndarray:
    """Grey or colour values of any type as uint8: floats up to 1 span black to white, integers
    above 255 are 16-bit, everything else is 8-bit already."""
    if a.dtype == np.bool_:
        return a.astype(np.uint8) * 255
    if a.dtype == np.uint8:
        return a
    if np.issubdtype(a.dtype, np.floating):
        a = np.nan_to_num(a.astype(np.float32), nan=0.0)
        unit = a.size == 0 or float(a.max()) <= 1.0
        return (a * (255 if unit else 1)).round().clip(0, 255).astype(np.uint8)
    two_bytes = a.dtype.kind == "u" and a.dtype.itemsize == 2
    a = a.astype(np.int64)  # room for the rounding
    wide = two_bytes or (a.size > 0 and int(a.max()) > 255)
    return ((a.clip(0, 65535) + 128) // 257 if wide else a.clip(0, 255)).astype(np.uint8)


def image_from_array(source: Any) -> Image.Image:
    """An RGB image from an array or tensor of a shape that `load_image` names, or `ImageError`."""
    channels_first = hasattr(source, "detach")  # a tensor: (c, h, w) by custom, arrays (h, w, c)
    try:
        a = np.asarray(source.detach().cpu() if channels_first else source)
    except Exception as error:
        raise ImageError(f"{type(source).__name__}: not an image ({_reason(error)})") from error
    if a.ndim == 3 and a.shape[0] in CHANNELS and (channels_first or a.shape[2] not in CHANNELS):
        a = a.transpose(1, 2, 0)
    if a.dtype == object or a.ndim not in (2, 3) or (a.ndim == 3 and a.shape[2] not in CHANNELS):
        raise ImageError(
            f"{type(source).__name__} of shape {tuple(a.shape)} and type {a.dtype}: not an image; "
            "give (h, w), (h, w, c) or (c, h, w) with 1, 3 or 4 channels"
        )
    _checked((a.shape[1], a.shape[0]), "array")
    a = np.ascontiguousarray(_to_uint8(a))
    return to_rgb(Image.fromarray(a[..., 0] if a.ndim == 3 and a.shape[2] == 1 else a))
