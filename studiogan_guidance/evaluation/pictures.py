"""Grids and strips of images, with captions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from studiogan_guidance.files import replacing

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

FONT = 13  # pixels, and the following ones, too
LINE = 17  # of a caption
MARGIN = 4  # around a caption
NARROWEST = 96  # column with a caption
BREAKS = (r"(?<= )", r"(?<=[=_,:])", r"(?<=.)")  # where a line may end: between words, after signs, anywhere
SMALLEST = 128  # side of an image that is easy to see, in pixels
LARGEST = 2**26  # pixels of a picture up to which images are enlarged; image programs refuse somewhat larger ones
STRIP = "strip"  # the text of a PNG file that says what its columns are


@dataclass(frozen=True)
class Strip:
    """Images of the same seeds in columns.

    Attributes:
        sheet: the images as they were made, uint8 [H, W, 3], in equal columns.
        captions: a text for each column.
    """

    sheet: NDArray[np.uint8]
    captions: Sequence[str]

    @property
    def columns(self) -> list[NDArray[np.uint8]]:
        """The picture of each column, uint8 [H, W / columns, 3]."""
        return np.split(self.sheet, len(self.captions), 1)


def grid(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images uint8 [N, H, W, 3] as one picture of ``columns`` columns, missing ones white; [rows*H, columns*W, 3]."""
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * columns, height, width, channels), 255, np.uint8)
    sheet[:n] = images
    return sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def enlarged(image: NDArray[np.uint8], factor: int | None = None) -> NDArray[np.uint8]:
    """One image or several, uint8 [..., H, W, 3], whose pixels have become squares of ``factor`` x ``factor`` pixels.

    By default sides become 128 or more, and larger images stay as they are. So many that they would have over 2**26
    pixels in all are enlarged less.

    Example:
        >>> enlarged(np.zeros((8, 32, 32, 3), np.uint8)).shape, enlarged(np.zeros((200, 200, 3), np.uint8)).shape
        ((8, 128, 128, 3), (200, 200, 3))
    """
    wanted = math.ceil(SMALLEST / min(image.shape[-3:-1]))
    pixels = image.size // image.shape[-1]
    if factor is None:
        factor = max(1, min(wanted, math.isqrt(LARGEST // pixels)))
    return image.repeat(factor, -3).repeat(factor, -2)


def captioned(sheet: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.uint8]:
    """A picture uint8 [H, W, 3] of equal columns, with a text above each, in as many lines as the column asks for.

    Where columns are too narrow to read, every pixel becomes a square of pixels.
    """
    from PIL import Image, ImageDraw

    # Enlarge narrow columns.
    factor = math.ceil(NARROWEST * len(captions) / sheet.shape[1])
    sheet = sheet.repeat(factor, 0).repeat(factor, 1)
    width = sheet.shape[1] // len(captions)

    # Break the texts into lines.
    font = _font()
    broken = [wrapped(text, lambda line: font.getlength(line) <= width - 2 * MARGIN) for text in captions]

    # Write them, each line in the middle of its column.
    head = Image.new("RGB", (sheet.shape[1], max(map(len, broken)) * LINE + 2 * MARGIN), "white")
    draw = ImageDraw.Draw(head)
    for column, lines in enumerate(broken):
        for number, line in enumerate(lines):
            place = ((column + 0.5) * width, MARGIN + (number + 0.5) * LINE)
            draw.text(place, line, "black", font, anchor="mm")
    return np.concatenate([np.asarray(head), sheet])


def named_rows(sheet: NDArray[np.uint8], names: Sequence[str]) -> NDArray[np.uint8]:
    """A picture uint8 [H, W, 3] of equal rows, with a name in one line left of each.

    Where rows are lower than a line, every pixel becomes a square of pixels.
    """
    from PIL import Image, ImageDraw

    # Enlarge low rows.
    factor = math.ceil(LINE * len(names) / len(sheet))
    sheet = sheet.repeat(factor, 0).repeat(factor, 1)
    height = len(sheet) // len(names)

    # Write the names in a margin that is as wide as the longest, each in the middle of its row.
    font = _font()
    width = math.ceil(max(map(font.getlength, names))) + 2 * MARGIN
    margin = Image.new("RGB", (width, len(sheet)), "white")
    draw = ImageDraw.Draw(margin)
    for row, name in enumerate(names):
        draw.text((MARGIN, (row + 0.5) * height), name, "black", font, anchor="lm")
    return np.concatenate([np.asarray(margin), sheet], 1)


def _font() -> FreeTypeFont:
    """The font of captions; matplotlib brings it."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", FONT)


def wrapped(text: str, fits: Callable[[str], bool], breaks: Sequence[str] = BREAKS) -> list[str]:
    """``text`` in lines that fit; ``breaks`` are the patterns of places where a line may end, the best ones first.

    Example:
        >>> wrapped("joint=class_subset, scale=1.25", lambda line: len(line) <= 12)
        ['joint=class_', 'subset,', 'scale=1.25']
    """
    if fits(text.strip()) or not breaks:
        return [text.strip()]

    lines = [""]
    for piece in re.split(breaks[0], text):
        if fits((lines[-1] + piece).strip()):
            lines[-1] += piece
        else:
            lines += wrapped(piece, fits, breaks[1:])
    return [line.strip() for line in lines if line.strip()]


def save_strip(path: Path, strip: Strip) -> None:
    """Write a strip with its captions above; a text in the file keeps what ``read_strip`` takes it apart by."""
    facts = {"captions": list(strip.captions), "shape": strip.sheet.shape[:2]}
    save_png(path, captioned(strip.sheet, strip.captions), facts=facts)


def read_strip(path: Path) -> Strip | None:
    """The strip in a file that ``save_strip`` has written; None for any other picture, and for a damaged file."""
    from PIL import Image

    # The picture, and what its columns are.
    try:
        with Image.open(path) as image:
            picture = np.asarray(image.convert("RGB"))
            facts = json.loads(image.info[STRIP])
        captions = [str(text) for text in facts["captions"]]
        height, width = map(int, facts["shape"])
        factor = picture.shape[1] // width
    except Exception:  # a damaged file can make an image library raise anything
        return None

    # Below the captions, every pixel once.
    sheet = picture[max(0, len(picture) - factor * height) :: max(1, factor), :: max(1, factor)]
    is_whole = sheet.shape[:2] == (height, width) and captions and width % len(captions) == 0
    return Strip(sheet, captions) if is_whole else None


def save_png(path: Path, image: NDArray[np.uint8], sync: bool = True, facts: object = None) -> None:
    """Write one picture [H, W, 3], whole or not at all; ``sync`` as in ``files.replacing``.

    The file may have a text that programs read, ``facts`` as JSON.
    """
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if facts is not None:
        info.add_itxt(STRIP, json.dumps(facts))
    with replacing(path, sync) as temporary:
        Image.fromarray(image).save(temporary, pnginfo=info)
