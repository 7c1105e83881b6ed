"""Decoding: every mode and form to the right values, every bad file to a named error."""

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from msun_fastai.data.images import (
    MAX_PIXELS,
    load_image,
    load_pixels,
    native_size,
    open_image,
    read_header,
)
from msun_fastai.errors import ImageError


def encoded(image, kind, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def pixel(image):
    return image.getpixel((0, 0))


def sixteen_bit(value):
    return Image.fromarray(np.full((4, 4), value, dtype=np.uint16))


KNOWN = {
    "1": (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
    "L": (Image.new("L", (4, 4), 100), "PNG", (100, 100, 100)),
    "LA on white": (Image.new("LA", (4, 4), (0, 0)), "PNG", (255, 255, 255)),
    "LA half": (Image.new("LA", (4, 4), (0, 128)), "PNG", (127, 127, 127)),
    "RGBA": (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "PNG", (255, 0, 0)),
    "RGBA clear": (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
    "P": (Image.new("RGB", (4, 4), (10, 200, 30)).quantize(4), "PNG", (10, 200, 30)),
    "CMYK": (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
    "I;16 black": (sixteen_bit(0), "PNG", (0, 0, 0)),
    "I;16 middle": (sixteen_bit(128 * 257), "PNG", (128, 128, 128)),
    "I;16 white": (sixteen_bit(65535), "PNG", (255, 255, 255)),
    "F unit": (Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF", (128, 128, 128)),
    "F of 16 bits": (Image.fromarray(np.full((4, 4), 32896, np.float32)), "TIFF", (128, 128, 128)),
    "GIF": (Image.new("P", (4, 4), 0), "GIF", (0, 0, 0)),
}


@pytest.mark.parametrize("case", KNOWN)
def test_modes_give_known_values(case):
    image, kind, expected = KNOWN[case]
    for source in (encoded(image, kind), image):
        out = load_image(source)
        assert out.mode == "RGB"
        assert np.abs(np.subtract(pixel(out), expected)).max() <= 1


def test_a_transparent_palette_colour_is_laid_on_white():
    image = Image.new("P", (4, 4), 0)
    image.putpalette([200, 0, 0] + [0, 0, 0] * 255)
    assert pixel(load_image(encoded(image, "PNG", transparency=0))) == (255, 255, 255)
    assert pixel(load_image(encoded(image, "PNG"))) == (200, 0, 0)


def test_exif_rotation_is_applied_and_keeps_the_native_size(tmp_path):
    image = Image.new("RGB", (30, 10), "white")
    image.paste("black", (0, 0, 5, 10))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to view
    file = tmp_path / "turned.jpg"
    image.save(file, exif=exif, quality=95)
    out = load_image(file)
    assert out.size == (10, 30)
    assert max(out.getpixel((5, 1))) < 30 < 200 < min(out.getpixel((5, 28)))
    assert native_size(file) == min(out.size) == 10


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_orientation_is_pillows(turn, kind):
    a = np.zeros((24, 32, 3), np.uint8)
    a[:8, :8], a[16:, 16:] = 255, (200, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = turn
    data = encoded(Image.fromarray(a), kind, exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(load_pixels(data), upright)
    assert read_header(data) == upright.shape[1::-1]


def test_a_jpeg_is_reduced_as_much_as_is_asked_for(tmp_path):
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((160, 120))
    for kind, sides in (("JPEG", (160, 80, 40, 20)), ("PNG", (160,) * 4)):
        smooth.save(tmp_path / kind, kind, quality=95)
        for reduction, side in zip((1, 2, 4, 8), sides):
            with open_image(tmp_path / kind) as image:
                a = image.pixels(reduction)
            assert (image.size, a.shape[1]) == ((160, 120), side)
            small = Image.fromarray(a).resize((20, 15), Image.Resampling.BOX)
            whole = smooth.resize((20, 15), Image.Resampling.BOX)
            assert np.abs(np.subtract(small, whole, dtype=int)).mean() < 6


def test_what_holds_an_image_may_fail():
    class Lost:
        def open_bytes(self):
            raise KeyError("gone")

        def __str__(self):
            return "row 7"

    with pytest.raises(ImageError, match="row 7: cannot be opened"):
        read_header(Lost())


@pytest.mark.parametrize("size", [(1, 1), (1, 4000), (8000, 10)])
def test_extreme_shapes(size):
    data = encoded(Image.new("RGB", size, "red"), "PNG")
    assert load_image(data).size == size
    assert native_size(data) == min(size)


def test_every_input_form_gives_the_same_image(tmp_path):
    a = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    file = tmp_path / "a.png"
    Image.fromarray(a).save(file)
    channels_first = torch.from_numpy(a).permute(2, 0, 1)
    forms = [file, str(file), file.read_bytes(), Image.open(file), a, a.transpose(2, 0, 1)]
    forms += [a / 255, a.astype(np.uint16) * 257, channels_first, channels_first.float() / 255]
    for form in forms:
        assert np.array_equal(np.asarray(load_image(form)), a)
        assert read_header(form) == (7, 9)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (1, 5, 7), (5, 7, 4), (4, 5, 7)])
def test_array_shapes(shape):
    assert load_image(np.full(shape, 255, np.uint8)).size == (7, 5)


def jpeg():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), "JPEG")


def bomb(side):
    """A PNG header that promises side x side pixels and holds none."""
    import struct
    import zlib

    def chunk(kind, data):
        crc = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + crc

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


BAD = {
    "empty": (b"", "empty"),
    "text": (b"not an image at all", "not an image"),
    "truncated": (jpeg()[: len(jpeg()) // 2], "truncated"),
    "header only": (jpeg()[:30], "cannot be opened"),
    "small bomb": (bomb(10_000), f"more than the {MAX_PIXELS} pixels"),
    "large bomb": (bomb(40_000), f"more than the {MAX_PIXELS} pixels"),
    "signature only": (bomb(9)[:8], "not an image|cannot be opened"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_named_with_their_reason(tmp_path, case):
    data, reason = BAD[case]
    file = tmp_path / "bad.jpg"
    file.write_bytes(data)
    with pytest.raises(ImageError, match=reason) as caught:
        load_image(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)
    with pytest.raises(ImageError, match=reason):
        load_image(data)


def test_directory_missing_file_and_nonsense(tmp_path):
    with pytest.raises(ImageError, match="is a directory"):
        load_image(tmp_path)
    with pytest.raises(ImageError, match="no such file"):
        load_image(tmp_path / "absent.png")
    for nonsense in (None, object(), np.zeros((2, 3, 4, 5)), np.zeros(7), np.zeros((0, 3))):
        with pytest.raises(ImageError):
            load_image(nonsense)


def test_a_broken_exif_block_does_not_lose_the_image():
    data = encoded(Image.new("RGB", (8, 6)), "JPEG", exif=b"Exif\x00\x00garbage")
    assert load_image(data).size == (8, 6)
