"""Image files that are damaged, hostile or none at all, made in memory for the tests."""

import gzip
import io
import pickle
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

rng = np.random.default_rng(3)
NOISE = Image.fromarray(rng.integers(0, 256, (64, 80, 3), dtype=np.uint8))


def encoded(kind, image=NOISE, **options):
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def chunk(kind, data, crc=None):
    crc = zlib.crc32(kind + data) if crc is None else crc
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", crc)


def png(width=8, height=8, depth=8, colour=2, data=None, before=b"", crc=None):
    """A PNG of the given header; its pixels are zeros unless `data` says otherwise."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    if data is None:
        data = chunk(b"IDAT", zlib.compress(bytes((width * 3 + 1) * height)))
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header, crc) + before + data + chunk(b"IEND", b"")


def tiff(width, height, *more, offset=8):
    """A TIFF header with one directory at `offset`: 8-bit grey, no compression, one strip."""
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 200, 277: 1, 278: height}
    tags |= {279: min(width * height, 2**32 - 1), **dict(more)}
    rows = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<IH", offset, len(tags)) + rows + struct.pack("<I", 0)


def bmp(width, height, bits=24, compression=0, data=b""):
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, bits, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + len(data), 0, 0, 54) + info + data


def gif(width, height, data=b""):
    frame = b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08" + data + b"\0;"
    return b"GIF89a" + struct.pack("<HHBBB", width, height, 0xF7, 0, 0) + bytes(768) + frame


def webp_canvas(width, height):
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + size
    return b"RIFF" + struct.pack("<I", len(body)) + body


def jpeg_of(width, height):
    """A JPEG whose frame header promises width x height."""
    data = bytearray(encoded("JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = struct.pack(">HH", height, width)
    return bytes(data)


def zipped():
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("a.jpg", encoded("JPEG"))
    return out.getvalue()


JPEG, PROGRESSIVE = encoded("JPEG"), encoded("JPEG", progressive=True)
PNG, GIF, BMP = encoded("PNG"), encoded("GIF", NOISE.quantize(64)), encoded("BMP")
TIFF, LZW, WEBP = encoded("TIFF"), encoded("TIFF", compression="tiff_lzw"), encoded("WEBP")
PPM = encoded("PPM")

rows = rng.integers(0, 256, (64, 193), dtype=np.uint8)
rows[:, 0] = 0  # no filter
HOLED = bytearray(zlib.compress(rows.tobytes()))
HOLED[len(HOLED) // 2 : len(HOLED) // 2 + 200] = bytes(200)

# what a look at the header finds
BAD_HEADERS = {
    "empty": b"",
    "text": b"not an image at all",
    "an error page": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
    "zeros": bytes(4096),
    "noise": rng.integers(0, 256, 4096, dtype=np.uint8).tobytes(),
    "utf-16 text": "no image".encode("utf-16"),
    "a pickle": pickle.dumps({"a": 1}),
    "a zip archive": zipped(),
    "a gzipped image": gzip.compress(JPEG),
    "PDF": b"%PDF-1.7\n1 0 obj\n<< >>\nendobj\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>',
    "EPS, which starts a program": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "a Photoshop file": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 9, 9, 8, 3) + bytes(64),
    "HEIC": b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64),
    "JPEG signature": JPEG[:3],
    "JPEG cut before its frame": JPEG[:30],
    "JPEG without a frame": JPEG[:2] + JPEG[-2:],
    "PNG signature": PNG[:8],
    "PNG cut in its header": PNG[:20],
    "PNG of no width": png(0, 8),
    "PNG of a wrong checksum": png(crc=1),
    "PNG of 3 bits": png(depth=3),
    "GIF cut in its header": GIF[:8],
    "GIF of no size": gif(0, 0),
    "BMP cut in its header": BMP[:20],
    "BMP of no width": bmp(0, 8),
    "BMP of 7 bits": bmp(8, 8, bits=7),
    "TIFF signature": TIFF[:4],
    "TIFF directory behind its end": tiff(8, 8, offset=10_000),
    "WebP signature": WEBP[:12],
    "WebP cut in its header": WEBP[:24],
    "WebP of half its bytes": WEBP[: len(WEBP) // 2],
    "PPM of no number": b"P6 eight 8 255\n",
    "PPM of no range": b"P6 8 8 0\n" + bytes(192),
}
# what decoding alone finds
BAD_PIXELS = {
    "JPEG of half its bytes": JPEG[: len(JPEG) // 2],
    "JPEG without its last bytes": JPEG[:-20],
    "progressive JPEG cut": PROGRESSIVE[: len(PROGRESSIVE) // 2],
    "JPEG without quantization tables": JPEG.replace(b"\xff\xdb", b"\xff\xfe"),
    "PNG of half its bytes": PNG[: len(PNG) // 2],
    "PNG without pixels": png(data=b""),
    "PNG of noise": png(64, 64, data=chunk(b"IDAT", rng.integers(0, 256, 999, np.uint8).tobytes())),
    "PNG of too few rows": png(data=chunk(b"IDAT", zlib.compress(bytes(30)))),
    "PNG with a hole": png(64, 64, data=chunk(b"IDAT", HOLED)),
    "GIF of half its bytes": GIF[: len(GIF) // 2],
    "BMP of half its bytes": BMP[: len(BMP) // 2],
    "run-length BMP cut": bmp(8, 8, bits=8, compression=1, data=bytes(1024) + b"\x08"),
    "TIFF of half its bytes": TIFF[: len(TIFF) // 2],
    "TIFF strip behind its end": tiff(8, 8, (273, 10**6)),
    "TIFF of broken LZW": LZW.replace(LZW[200:400], b"\xff" * 200),
    "PPM of half its bytes": PPM[: len(PPM) // 2],
}
BAD = BAD_HEADERS | BAD_PIXELS
# damaged where it does not matter: the pixels are all there
WHOLE = {
    "PNG of a wrong pixel checksum": png(data=chunk(b"IDAT", zlib.compress(bytes(25 * 8)), crc=7)),
    "JPEG with something behind it": JPEG + b"<script>" * 100,
    "JPEG of a broken EXIF block": encoded("JPEG", exif=b"Exif\0\0garbage"),
    "PNG without an end": PNG[:-12],
    "two JPEGs in one": JPEG + JPEG,
}

MUCH = zlib.compress(bytes(200 * 2**20), 9)  # 200 MiB in 200 KiB
# more pixels, or more of anything else, than a file of this size should come to
BOMBS = {
    "PNG 10,000": png(10_000, 10_000, data=b""),
    "PNG 40,000": png(40_000, 40_000, data=b""),
    "PNG 2^31 - 1": png(2**31 - 1, 2**31 - 1, data=b""),
    "PNG a pixel high": png(2**31 - 1, 1, data=b""),
    "PNG of 16 bits": png(30_000, 30_000, depth=16, colour=6, data=b""),
    "PNG with its pixels": png(20_000, 20_000, data=chunk(b"IDAT", MUCH)),
    "PNG with a text": png(before=chunk(b"zTXt", b"Comment\0\0" + MUCH), data=b""),
    "PNG with a long text": png(before=chunk(b"iTXt", b"a\0\1\0\0\0" + MUCH), data=b""),
    "PNG with a profile": png(before=chunk(b"iCCP", b"icc\0\0" + MUCH), data=b""),
    "JPEG 65,500": jpeg_of(65_500, 65_500),
    "JPEG 10,000": jpeg_of(10_000, 10_000),
    "GIF 65,535": gif(65_535, 65_535),
    "BMP 100,000": bmp(100_000, 100_000),
    "BMP upside down": bmp(100_000, -100_000),
    "run-length BMP": bmp(60_000, 60_000, bits=8, compression=1),
    "TIFF 100,000": tiff(100_000, 100_000),
    "TIFF 2^31 - 1": tiff(2**31 - 1, 2**31 - 1),
    "WebP 16,384": webp_canvas(16_384, 16_384),
    "PPM 100,000": b"P6 100000 100000 255\n",
    "PBM 10^9": b"P4 1000000000 1000000000\n",
    "PGM of 16 bits": b"P5 50000 50000 65535\n",
}


def write(folder, files):
    """The files in `folder`, under names that say nothing of what they are; by path, the case."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for i, (case, data) in enumerate(files.items()):
        path = folder / f"bad{i:02d}.jpg"
        path.write_bytes(data)
        paths[path] = case
    return paths
