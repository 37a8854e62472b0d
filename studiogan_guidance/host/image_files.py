"""One image file as 8-bit RGB, or the reason why that would take a guess."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError
from torch import Tensor

from studiogan_guidance.errors import UserError, one_line
from studiogan_guidance.files import regular_file
from studiogan_guidance.weights.forms import form

PLAIN = {"1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr", "HSV"}  # modes of Pillow that become RGB without a loss
ALPHA = {"RGBA", "LA", "PA"}  # and these do where they are opaque
DEEP = {"I", "F", "I;16", "I;16B", "I;16L", "I;16N"}  # modes of more than 8 bits
PAGES = {"GIF", "PNG", "TIFF", "WEBP"}  # formats whose further pictures are no previews of the first


def open_image(path: str | Path) -> Image.Image:
    """The pixels of a file as 8-bit RGB, bit for bit those of torchvision's loader.

    As the host does, this leaves the orientation of a photograph (EXIF) and its colour profile aside.

    Raises:
        UserError: it names the file, which is no image, is damaged, may not be read, is a pipe or a device, or has
            more than 8 bits a channel, transparent pixels or several pictures.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            regular_file(Path(path), "the image")  # says what it is
        with open(path, "rb") as file:
            image = Image.open(file)
            loss = _loss(image)
            if loss is None:
                image.info.pop("transparency", None)  # of no pixel; Pillow would warn of it
                return image.convert("RGB")
    except UserError:
        raise
    except Exception as error:  # damaged files raise SyntaxError, struct.error, IndexError and more
        raise UserError(f"cannot read the image {path}: {_reason(error, path)}") from error

    # Refuse what has no 8-bit RGB of its own.
    raise UserError(f"cannot read the image {path} without a guess: {loss}")


def _loss(image: Image.Image) -> str | None:
    """What an image would lose as 8-bit RGB, with the way out; None if nothing."""
    kind = str(image.format)
    if kind == "EPS":
        return "it is a PostScript program; save it as PNG"
    if kind in PAGES and getattr(image, "is_animated", False):
        return "it holds several pictures; save the one that is meant"

    # Pixels that are no 8-bit RGB.
    if image.mode in DEEP or _bits(image) > 8:
        return "its pixels have more than 8 bits a channel; convert it to 8-bit RGB"
    if image.mode not in PLAIN and image.mode not in ALPHA:
        return f"its pixels (mode {image.mode} of Pillow) have no RGB of their own; convert it to 8-bit RGB"

    # Transparent pixels.
    alpha = image if image.mode in ALPHA else image.convert("RGBA") if "transparency" in image.info else None
    if alpha is not None and alpha.getchannel("A").getextrema() != (255, 255):
        return "it has transparent pixels; put it on a background and save it as RGB"
    return None


def _bits(image: Any) -> int:
    """Bits of a channel in the file; Pillow itself reads the upper 8 of 16 in colour images."""
    if image.format == "TIFF":
        bits = image.tag_v2.get(258, 1)  # BitsPerSample
        return int(max(bits)) if isinstance(bits, tuple) else int(bits)

    # PNG and PPM say it in the arguments of their decoder.
    arguments = image.tile[0][3] if image.tile else ""
    if image.format == "PNG":
        return 16 if str(arguments).endswith(";16B") else 8
    if image.format == "PPM" and isinstance(arguments, tuple):
        return int(arguments[1]).bit_length()
    return 8


def _reason(error: Exception, path: str | Path) -> str:
    """Why a file could not be read, in a few words."""
    if not isinstance(error, UnidentifiedImageError):
        return getattr(error, "strerror", None) or one_line(error)

    # What stands there in place of an image, unless only those who want weights are told.
    words = form(Path(path))
    if words is None or "weights" in words or "checkpoint" in words:
        return "it is no image, or of a format that Pillow does not know"
    return f"it is {words}"


def check_size(pixels: Tensor, size: tuple[int, int], path: str | Path, advice: str) -> None:
    """Raise UserError unless an image [3, H, W] has ``size`` (H, W).

    Args:
        pixels: the image.
        size: that it must have.
        path: of its file, or of the folder of a file of many images.
        advice: what to do.
    """
    height, width = pixels.shape[-2:]
    if (height, width) == size:
        return
    what = f"images in {path} are"
    if Path(path).is_file():
        what = f"the image {path} is"
        width, height = Image.open(path).size  # before the host cut it to a square
    raise UserError(f"{what} {width}x{height}, the configuration wants {size[1]}x{size[0]}: {advice}")
