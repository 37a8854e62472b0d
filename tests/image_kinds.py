"""Image files of every kind: those that are read, and those that are refused with some words."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

SIZE = (7, 5)
Maker = Callable[[], bytes]


def noise(mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (SIZE[1], SIZE[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, kind: str = "png", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_alpha(mode: str, alpha: int) -> Image.Image:
    image = noise(mode)
    image.putalpha(255)
    image.getchannel("A").load()
    values = Image.new("L", SIZE, 255)
    values.putpixel((3, 2), alpha)
    image.putalpha(values)
    return image


def png(bits: int, colour: int, row: bytes, *chunks: tuple[bytes, bytes], size: tuple[int, int] = (2, 1)) -> bytes:
    """A PNG from its raw row, since Pillow writes no 16-bit colours."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    head = struct.pack(">IIBBBBB", *size, bits, colour, 0, 0, 0)
    parts = [chunk(b"IHDR", head), *(chunk(*more) for more in chunks)]
    parts += [chunk(b"IDAT", zlib.compress(b"\0" + row)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def palette(transparent: Any) -> bytes:
    return encoded(noise().quantize(4), transparency=transparent)


def bilevel() -> Image.Image:
    return noise().convert("1")


def oriented() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    return encoded(noise(), "jpeg", exif=exif)


READ: dict[str, Maker] = {
    "RGB": lambda: encoded(noise()),
    "grey": lambda: encoded(noise("L")),
    "bilevel": lambda: encoded(bilevel()),
    "palette": lambda: encoded(noise("P")),
    "palette whose transparent colours are not used": lambda: palette(bytes([255] * 4 + [0])),
    "palette with opaque colours": lambda: palette(bytes([255] * 4)),
    "opaque RGBA": lambda: encoded(with_alpha("RGB", 255)),
    "opaque grey and alpha": lambda: encoded(with_alpha("L", 255)),
    "a colour key that no pixel has": lambda: png(8, 2, bytes(range(6)), (b"tRNS", bytes(6))),
    "2-bit grey": lambda: png(2, 0, b"\x80"),
    "4-bit grey": lambda: png(4, 0, b"\x8f"),
    "interlaced": lambda: encoded(noise(), interlace=1),
    "JPEG": lambda: encoded(noise(), "jpeg"),
    "grey JPEG": lambda: encoded(noise("L"), "jpeg"),
    "CMYK JPEG": lambda: encoded(noise("CMYK"), "jpeg"),
    "progressive JPEG": lambda: encoded(noise(), "jpeg", progressive=True),
    "JPEG with an orientation": oriented,
    "JPEG with a preview": lambda: encoded(noise(), "mpo", save_all=True, append_images=[noise("L").convert("RGB")]),
    "TIFF": lambda: encoded(noise(), "tiff"),
    "CMYK TIFF": lambda: encoded(noise("CMYK"), "tiff"),
    "YCbCr TIFF": lambda: encoded(noise("YCbCr"), "tiff"),
    "bilevel TIFF": lambda: encoded(bilevel(), "tiff"),
    "LZW TIFF": lambda: encoded(noise(), "tiff", compression="tiff_lzw"),
    "WebP": lambda: encoded(noise(), "webp"),
    "opaque WebP": lambda: encoded(with_alpha("RGB", 255), "webp", lossless=True),
    "BMP": lambda: encoded(noise(), "bmp"),
    "palette BMP": lambda: encoded(noise("P"), "bmp"),
    "PPM": lambda: encoded(noise(), "ppm"),
    "PGM": lambda: encoded(noise("L"), "ppm"),
    "PGM of 16 levels": lambda: b"P5 2 1 15\n\x00\x0f",
    "plain PPM": lambda: b"P3 1 1 255\n1 2 3\n",
    "a GIF called .png": lambda: encoded(noise("P"), "gif"),
    "APNG of one picture": lambda: encoded(noise(), save_all=True),
}

REFUSED: dict[str, tuple[Maker, str]] = {
    "16-bit grey": (lambda: encoded(Image.fromarray(np.full((5, 7), 257, np.uint16))), "more than 8 bits"),
    "16-bit RGB": (lambda: png(16, 2, bytes(range(12))), "more than 8 bits"),
    "16-bit RGBA": (lambda: png(16, 6, b"\xff" * 16), "more than 8 bits"),
    "16-bit grey and alpha": (lambda: png(16, 4, b"\xff" * 8), "more than 8 bits"),
    "16-bit TIFF": (lambda: encoded(Image.fromarray(np.full((5, 7), 257, np.uint16)), "tiff"), "more than 8 bits"),
    "32-bit TIFF": (lambda: encoded(Image.new("I", SIZE, 7), "tiff"), "more than 8 bits"),
    "float TIFF": (lambda: encoded(Image.new("F", SIZE, 0.5), "tiff"), "more than 8 bits"),
    "16-bit PGM": (lambda: b"P5 1 1 65535\n\x01\x02", "more than 8 bits"),
    "12-bit PGM": (lambda: b"P5 1 1 4095\n\x01\x02", "more than 8 bits"),
    "16-bit PPM": (lambda: b"P6 1 1 65535\n\x01\x02\x03\x04\x05\x06", "more than 8 bits"),
    "16-bit plain PPM": (lambda: b"P3 1 1 65535\n1 2 3\n", "more than 8 bits"),
    "RGBA": (lambda: encoded(with_alpha("RGB", 254)), "transparent pixels"),
    "grey and alpha": (lambda: encoded(with_alpha("L", 0)), "transparent pixels"),
    "palette with a transparent colour": (lambda: palette(0), "transparent pixels"),
    "palette with a half transparent colour": (lambda: palette(bytes([128, 255, 255, 255])), "transparent pixels"),
    "RGB with a colour key": (lambda: png(8, 2, bytes(6), (b"tRNS", bytes(6))), "transparent pixels"),
    "grey with a colour key": (lambda: png(8, 0, b"\x07\x08", (b"tRNS", b"\0\x07")), "transparent pixels"),
    "transparent WebP": (lambda: encoded(with_alpha("RGB", 0), "webp", lossless=True), "transparent pixels"),
    "transparent TIFF": (lambda: encoded(with_alpha("RGB", 9), "tiff"), "transparent pixels"),
    "transparent GIF": (lambda: encoded(noise().quantize(4), "gif", transparency=0), "transparent pixels"),
    "animated PNG": (lambda: encoded(noise(), save_all=True, append_images=[bilevel()]), "several pictures"),
    "animated GIF": (
        lambda: encoded(noise("P"), "gif", save_all=True, append_images=[bilevel().convert("P")]),
        "several pictures",
    ),
    "animated WebP": (
        lambda: encoded(noise(), "webp", save_all=True, append_images=[bilevel().convert("RGB")]),
        "several pictures",
    ),
    "TIFF of two pages": (
        lambda: encoded(noise(), "tiff", save_all=True, append_images=[noise("L")]),
        "several pictures",
    ),
    "LAB TIFF": (lambda: encoded(Image.new("LAB", SIZE), "tiff"), "mode LAB"),
    "PostScript": (lambda: encoded(noise(), "eps"), "PostScript"),
    "half a PNG": (lambda: encoded(noise())[:90], "truncated"),
    "half a JPEG": (lambda: encoded(noise().resize((64, 64)), "jpeg")[:900], "truncated"),
    "half a WebP": (lambda: encoded(noise().resize((64, 64)), "webp")[:300], "read the image"),
    "half a TIFF": (lambda: encoded(noise().resize((64, 64)), "tiff", compression="tiff_lzw")[:300], "read the image"),
    "empty": (lambda: b"", "it is an empty file"),
    "text": (lambda: b"hello", "it is no image"),
    "zeros": (lambda: bytes(1000), "read the image"),
    "LFS pointer": (lambda: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "web page": (lambda: b"\n<!DOCTYPE html><html>not found</html>", "a web page"),
    "bomb": (lambda: png(1, 0, b"\x80", size=(60000, 60000)), "bomb"),
}
