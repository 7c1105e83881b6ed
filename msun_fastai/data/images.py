"""Safe decoding: any input form to upright RGB pixels, with a named error for what is none.

No fastai and no torch import here, so that headers are read without either. Pillow decodes:
torchvision's decoder takes three quarters of its time, but is deprecated since 0.29.
"""

from __future__ import annotations

import errno
import io
import stat
import warnings
from pathlib import Path
from typing import Any

import numpy as np

# imported for Pillow to know them: asked for a format it does not know it loads all of its readers
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    WebPImagePlugin,  # noqa: F401
)

from msun_fastai.data.modes import rgb_from_array, to_rgb
from msun_fastai.errors import ImageError

# Pillow warns above this many pixels and lets twice as many pass; we refuse them by the header
MAX_PIXELS = int(Image.MAX_IMAGE_PIXELS or 89_478_485)
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# of EXIF blocks that are cut short: they say nothing of the pixels
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.TiffImagePlugin")

# what an image file may be, whatever its name says: some other readers of Pillow's start programs
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "TIFF", "GIF", "PPM")
JPEG = {".jpg", ".jpeg", ".jpe", ".jfif"}
SUFFIXES = JPEG | {".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".pbm", ".pnm"}
REDUCTIONS = (8, 4, 2)  # at which libjpeg decodes for less
ORIENTATION = 0x0112  # EXIF
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # too many open files, no memory


class OpenedImage:
    """An image whose header is read and checked; its pixels are decoded when they are asked for.

    size: (width, height) in pixels, upright, as the whole image decodes to. Close it, or use it as
    a context manager.
    """

    def __init__(
        self, stored: Image.Image | np.ndarray, name: str, trim: int = 0, ours: bool = False
    ):
        self._stored, self._name, self._ours = stored, name, ours
        if isinstance(stored, np.ndarray):
            self._turn, size = 1, (stored.shape[1], stored.shape[0])
        else:
            self._turn, size = _orientation(stored), stored.size
        width, height = size[::-1] if self._turn >= 5 else size
        self._trim = trim if height > trim else 0  # an image of no more keeps it all
        self.size = width, height - self._trim

    def __enter__(self) -> OpenedImage:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file, if it was opened here."""
        if self._ours and isinstance(self._stored, Image.Image):
            self._stored.close()

    @property
    def native_size(self) -> int:
        """The shorter side in pixels."""
        return min(self.size)

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """uint8 RGB (h, w, 3): the image, or where it is a JPEG the image at 1 / `reduction`.

        EXIF rotation is applied, alpha laid on white, 16-bit grey scaled to 8 bits, CMYK and the
        other modes converted, the first frame taken of several, a banner at the bottom cut where
        the source has a `trim`. reduction: 1, 2, 4 or 8. Raises `ImageError`.
        """
        if isinstance(self._stored, np.ndarray):
            return self._stored
        try:
            a = self._decoded(self._stored, reduction)
        except Exception as error:  # the decoders raise whatever the bytes lead them to
            _raise_if_ours(error)
            raise ImageError(f"{self._name}: cannot be decoded ({_reason(error)})") from error
        a = _turned(a, self._turn)
        # the same share of the height, whatever it was reduced to
        return a[: a.shape[0] * self.size[1] // (self.size[1] + self._trim)]

    def _decoded(self, image: Image.Image, reduction: int) -> np.ndarray:
        if reduction > 1 and self._ours and image.format == "JPEG":
            width, height = image.size
            image.draft(image.mode, (width // reduction, height // reduction))
        image.load()
        return np.array(to_rgb(image))  # a copy, for torch takes none that is read-only


def open_image(source: Any) -> OpenedImage:
    """`source` opened, its header checked; see `OpenedImage`.

    A path, bytes, a Pillow image, an array or a tensor, or anything with `open_bytes()`. Arrays are
    (h, w), (h, w, c) or (c, h, w), tensors (h, w) or (c, h, w), of uint8, uint16, or floats in
    [0, 1]. Raises `ImageError`.
    """
    name, trim = _name(source), getattr(source, "trim", 0)
    if hasattr(source, "open_bytes"):
        source = _fetched(source, name)
    if isinstance(source, (str, Path, bytes, bytearray)):
        return OpenedImage(_opened(source, name), name, trim, ours=True)
    if not isinstance(source, Image.Image):
        source = rgb_from_array(source)
        _checked((source.shape[1], source.shape[0]), name)
    else:
        _checked(source.size, name)
    return OpenedImage(source, name, trim)


def read_header(source: Any) -> tuple[int, int]:
    """Width and height in pixels, upright, from the header alone: nothing is decoded.

    `source` is what `open_image` takes. Raises `ImageError`.
    """
    with open_image(source) as image:
        return image.size


def native_size(source: Any) -> int:
    """The image's shorter side in pixels, from its header."""
    return min(read_header(source))


def load_pixels(source: Any) -> np.ndarray:
    """The whole image as uint8 RGB (h, w, 3), upright; see `OpenedImage.pixels`."""
    with open_image(source) as image:
        return image.pixels()


def load_image(source: Any) -> Image.Image:
    """The whole image as an upright Pillow image of mode RGB; see `OpenedImage.pixels`."""
    return Image.fromarray(load_pixels(source))


def _name(source: Any) -> str:
    if isinstance(source, (str, Path)) or hasattr(source, "open_bytes"):
        return str(source)
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or f"a Pillow image of mode {source.mode}"
    return f"an image of {len(source)} bytes" if isinstance(source, (bytes, bytearray)) else "array"


def _fetched(source: Any, name: str) -> Any:
    try:
        return source.open_bytes()
    except ImageError:
        raise
    except Exception as error:  # of whatever holds it
        _raise_if_ours(error)
        raise ImageError(f"{name}: cannot be opened ({_reason(error)})") from error


def _raise_if_ours(error: Exception) -> None:
    """Raise `error` again where it says nothing of the image: this process has no more room."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) in NO_ROOM:
        raise error


def _checked(size: tuple[int, int], name: str) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise ImageError(f"{name}: an image of {width}x{height} has no pixels")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width}x{height} is more than the {MAX_PIXELS} pixels that "
            "are accepted; reduce it first"
        )


def _opened(source: str | Path | bytes | bytearray, name: str) -> Image.Image:
    """The file opened lazily, its header checked."""
    try:
        if isinstance(source, (bytes, bytearray)):
            if not source:
                raise ImageError(f"{name}: empty")
            file: Any = io.BytesIO(source)
        else:
            file = Path(source)
            _check_file(file.stat(), name)
        image = Image.open(file, formats=FORMATS)
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
        _raise_if_ours(error)
        raise ImageError(f"{name}: cannot be opened ({_reason(error)})") from error
    try:
        _checked(image.size, name)
    except ImageError:
        image.close()
        raise
    return image


def _check_file(status: Any, name: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(f"{name}: is a directory, not an image")
    if not stat.S_ISREG(status.st_mode):  # a pipe would wait for a writer for ever
        raise ImageError(f"{name}: not a regular file")
    if status.st_size == 0:
        raise ImageError(f"{name}: empty file")


def _reason(error: BaseException) -> str:
    return str(error).strip() or type(error).__name__


def _orientation(image: Image.Image) -> int:
    if image.format == "PNG" and "exif" not in image.info:
        return 1  # Pillow would decode it here, to look behind the pixels
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except Exception:  # an unreadable EXIF block says nothing about rotation; the pixels are good
        return 1
    return turn if turn in range(1, 9) else 1


def _turned(a: np.ndarray, orientation: int) -> np.ndarray:
    """Stored pixels (h, w, 3) as they are to be looked at."""
    if orientation >= 5:
        a = a.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        a = a[::-1]
    if orientation in (2, 3, 6, 7):
        a = a[:, ::-1]
    return np.ascontiguousarray(a)
