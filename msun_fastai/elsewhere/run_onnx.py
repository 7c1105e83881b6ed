"""Classify images of any size with the networks that are beside this file:

    python run_onnx.py photo.jpg [more ...]

prints path, class, probability and subnet of each image, with tabs between them. It needs
onnxruntime, numpy and Pillow alone. `msun-fastai export` wrote it as an example to start from:
`prepare` is what happens to an image, `router.json` says with which numbers.
"""

from __future__ import annotations

import hashlib
import json
import sys
from bisect import bisect_left
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from PIL import Image

FOLDER = Path(__file__).resolve().parent
ROUTER, FORMAT = "router.json", 1
# some other readers of Pillow's start programs
READ = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")
MOST_PIXELS = 89_478_485  # from which on Pillow warns of a decompression bomb
ORIENTATION = 0x0112  # EXIF
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def read_router() -> dict[str, Any]:
    """What `router.json` says; the program ends with one line where it says nothing."""
    try:
        router = json.loads((FOLDER / ROUTER).read_text(encoding="utf-8"))
        version, kind = router["format"], router["files"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(
            f"run_onnx.py: {FOLDER / ROUTER}: cannot be read ({error}); export the model again"
        )
    if (version, kind) != (FORMAT, "onnx"):
        sys.exit(f"run_onnx.py: {FOLDER / ROUTER}: is not of ONNX files in format {FORMAT}")
    return router


def network_for(size: int, router: dict[str, Any]) -> dict[str, Any]:
    """The network for an image whose shorter side is `size`: up to the first threshold the first
    one, and so on; the last takes the rest."""
    return router["networks"][bisect_left(router["thresholds"], size)]


def load(network: dict[str, Any]) -> onnxruntime.InferenceSession:
    """A network, once its file is known to be the one that was exported."""
    file = FOLDER / network["file"]
    try:
        content = file.read_bytes()
    except OSError as error:
        sys.exit(f"run_onnx.py: {file}: {error.strerror}; export the model again")
    if hashlib.sha256(content).hexdigest() != network["sha256"]:
        sys.exit(f"run_onnx.py: {file}: was changed after the export; export the model again")
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def prepare(path: str, router: dict[str, Any]) -> tuple[dict[str, Any], np.ndarray]:
    """The network for an image file, and the image as it takes it: float32 (1, 3, side, side)."""
    with Image.open(path, formats=READ) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f"{image.width}x{image.height} is more than {MOST_PIXELS} pixels")
        turn = orientation(image)
        size = image.size[::-1] if turn >= 5 else image.size
        network = network_for(min(size), router)
        side, rule = network["scale"], router["resize"]
        reduction = reduction_for(size, side, rule)
        if reduction > 1 and image.format == "JPEG":  # decoded smaller, which takes less time
            image.draft(image.mode, (image.width // reduction, image.height // reduction))
        image.load()
        upright = to_rgb(image)
    if turn in TURNS:
        upright = upright.transpose(TURNS[turn])
    pixels = np.asarray(to_square(upright, size, side, rule), np.float32)
    mean, std = np.float32(router["mean"]), np.float32(router["std"])
    return network, ((pixels / 255 - mean) / std).transpose(2, 0, 1)[None]


def orientation(image: Image.Image) -> int:
    """How the stored pixels have to be turned, 1 to 8 as in EXIF."""
    if image.format == "PNG" and "exif" not in image.info:
        return 1
    try:
        return image.getexif().get(ORIENTATION, 1)
    except Exception:  # an EXIF block that cannot be read says nothing of the pixels
        return 1


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode as RGB: alpha laid on white, 16-bit grey scaled to 8 bits."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        return Image.fromarray(to_uint8(np.asarray(image))).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


def to_uint8(grey: np.ndarray) -> np.ndarray:
    """Floats up to 1 span black to white, numbers above 255 are 16-bit, others 8-bit already."""
    if grey.dtype.kind == "f":
        grey = np.nan_to_num(grey, nan=0.0)
        most = grey.max()
        scale = 255 if most <= 1 else 1 if most <= 255 else 1 / 257
        return (grey * scale).round().clip(0, 255).astype(np.uint8)
    wide = grey.dtype.itemsize == 2 or grey.max() > 255
    grey = grey.astype(np.int64)
    return ((grey.clip(0, 65535) + 128) // 257 if wide else grey.clip(0, 255)).astype(np.uint8)


def reduction_for(size: tuple[int, int], side: int, rule: dict[str, Any]) -> int:
    """1, 2, 4 or 8: how much smaller a JPEG of `size` is decoded for a square of `side`."""
    pixels = rule["kept"] * (max(size) if rule["rule"] == "pad" else min(size))
    fitting = (r for r in rule["jpeg_reductions"] if pixels >= r * rule["jpeg_spare"] * side)
    return next(fitting, 1)


def to_square(
    image: Image.Image, size: tuple[int, int], side: int, rule: dict[str, Any]
) -> Image.Image:
    """`image`, which has `size` when it is decoded whole, as a square of `side`: squished, its
    middle cropped, or padded with grey."""
    width, height = size
    across = down = (0.0, 1.0)
    inner = (side, side)
    if rule["rule"] == "crop":
        edge = rule["kept"] * min(size)
        across = ((1 - edge / width) / 2, (1 + edge / width) / 2)
        down = ((1 - edge / height) / 2, (1 + edge / height) / 2)
    elif rule["rule"] == "pad":
        inner = (max(1, round(side * width / max(size))), max(1, round(side * height / max(size))))
    left, right = whole(across, image.width)
    upper, lower = whole(down, image.height)
    image = image.crop((left, upper, right, lower))
    if image.size != inner:
        image = image.resize(inner, Image.Resampling.BILINEAR)  # antialiased, as Pillow always is
    if inner == (side, side):
        return image
    square = Image.new("RGB", (side, side), tuple(rule["grey"]))
    square.paste(image, ((side - inner[0]) // 2, (side - inner[1]) // 2))
    return square


def whole(share: tuple[float, float], length: int) -> tuple[int, int]:
    """A part of `length` in whole pixels, one at least."""
    first = min(round(share[0] * length), length - 1)
    return first, max(first + 1, round(share[1] * length))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, classes)."""
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def main(paths: list[str]) -> int:
    """Print a line for each image; 1 if any of them could not be read."""
    if not paths:
        sys.exit("usage: python run_onnx.py IMAGE [IMAGE ...]")
    router, failed = read_router(), False
    sessions: dict[str, onnxruntime.InferenceSession] = {}
    for path in paths:
        try:
            network, x = prepare(path, router)
        except Exception as error:  # Pillow's readers raise whatever the bytes lead them to
            print(f"run_onnx.py: {path}: cannot be read ({error})", file=sys.stderr)
            failed = True
            continue
        file = network["file"]
        if file not in sessions:
            sessions[file] = load(network)
        (logits,) = sessions[file].run([router["output"]], {router["input"]: x})
        probabilities = softmax(logits)[0]
        best = int(probabilities.argmax())
        print(
            path, router["classes"][best], f"{probabilities[best]:.4f}", network["scale"], sep="\t"
        )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
