"""Pictures of results: charts of a sweep, the scatter of a comparison, grids of images."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.tables import HEADINGS, format_options
from studiogan_guidance.files import replacing
from studiogan_guidance.options import dotted
from studiogan_guidance.registry import FAMILIES
from studiogan_guidance.samplers import SAMPLERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox
    from PIL.ImageFont import FreeTypeFont

Row = Mapping[str, Any]
Point = tuple[Any, Row]  # value of the axis, row
Line = tuple[str, list[Point]]  # label, points

MARKERS = dict(zip(FAMILIES, "osD^v"))  # of the points of a family of samplers
TRADE_OFFS = (("recall", "precision"), ("coverage", "density"))  # diversity and fidelity: x and y of the scatter
FONT = 11  # pixels, and the following ones, too
LINE = 14  # of a caption
MARGIN = 4  # around a caption
NARROWEST = 96  # column with a caption
BREAKS = (r"(?<= )", r"(?<=[=_,:])", r"(?<=.)")  # where a line may end: between words, after signs, anywhere
DPI = 130
SMALLEST = 128  # side of an image that is easy to see, in pixels
LARGEST = 2**26  # pixels of a picture up to which images are enlarged; image programs refuse somewhat larger ones

# Where the name of a point may stand: (right, up) of it in points, the best places first.
DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
PLACES = [(radius * right, radius * up) for radius in range(6, 48, 6) for right, up in DIRECTIONS]
CLEAR = 7  # pixels around a point that no name may cover


def save_charts(folder: Path, rows: Sequence[Row], axis: str, plain: Row | None) -> None:
    """FID against the option ``axis`` and precision against recall, a line for each setting of the other options.

    ``plain`` is the row of plain sampling, if there is one. Writes fid.png and precision_recall.png, each if all rows
    have its metrics.
    """
    lines = _chart_lines(rows, axis)
    if _have(rows, "fid"):
        _save_fid(folder / "fid.png", lines, axis, plain)
    if _have(rows, "precision", "recall"):
        _save_trade_off(folder / "precision_recall.png", lines, plain)


def _have(rows: Sequence[Row], *metrics: str) -> bool:
    return all(row["metrics"].get(key) is not None for row in rows for key in metrics)


def _chart_lines(rows: Sequence[Row], axis: str) -> list[Line]:
    """The lines of a chart along ``axis``; the label of each names the options in which lines differ."""
    settings: dict[tuple[str, ...], list[Point]] = {}
    for row in rows:
        options = dotted(row["options"])
        if options.get(axis) is None:
            continue
        words = [format_options({key: value}) for key, value in options.items() if key != axis]
        settings.setdefault(tuple(filter(None, words)), []).append((options[axis], row))

    # One line is called by its sampler, several by the words that they do not share.
    if len(settings) == 1:
        (points,) = settings.values()
        labels = [min(points, key=_axis_value)[1]["sampler"]]
    else:
        common = set.intersection(*map(set, settings)) if settings else set()
        labels = [_words_without(common, words) for words in settings]
    return [(label, sorted(points, key=_axis_value)) for label, points in zip(labels, settings.values())]


def _words_without(common: set[str], words: Sequence[str]) -> str:
    return " ".join(word for word in words if word not in common)


def _axis_value(point: Point) -> Any:
    return point[0]


def _save_fid(path: Path, lines: Sequence[Line], axis: str, plain: Row | None) -> None:
    from matplotlib.figure import Figure

    figure = Figure((5, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel=axis, ylabel=HEADINGS["fid"])
    for label, points in lines:
        values = [value for value, _ in points]
        fids = [row["metrics"]["fid"] for _, row in points]
        axes.plot(values, fids, "o-", markersize=4, label=label)
    if plain:
        axes.axhline(plain["metrics"]["fid"], color="black", linestyle=":", label="plain")
    axes.legend(fontsize=8)
    _save(figure, path)


def _save_trade_off(path: Path, lines: Sequence[Line], plain: Row | None) -> None:
    from matplotlib.figure import Figure

    # Lines and points.
    figure = Figure((5, 3.6), layout="constrained")
    axes = figure.add_subplot(xlabel="recall", ylabel=HEADINGS["precision"])
    names = []
    for label, points in lines:
        recalls = [row["metrics"]["recall"] for _, row in points]
        precisions = [row["metrics"]["precision"] for _, row in points]
        axes.plot(recalls, precisions, "o-", markersize=4, label=label)
        names += [(x, y, f"{value:g}") for (value, _), x, y in zip(points, recalls, precisions)]
    if plain:
        axes.plot(plain["metrics"]["recall"], plain["metrics"]["precision"], "k*", markersize=9, label="plain")

    # The value of the axis beside each.
    axes.legend(fontsize=8)
    name_points(figure, axes, names)
    _save(figure, path)


def save_scatter(path: Path, result: Mapping[str, Any]) -> None:
    """Fidelity against diversity: a point with its name for each sampler of ``compare``, one colour a family.

    Precision against recall, or density against coverage if a row lacks one of those; without either, no picture. Bars
    are standard deviations over the seeds. Plain sampling is a star.
    """
    from matplotlib.figure import Figure

    rows = result["rows"]
    trade_off = next((metrics for metrics in TRADE_OFFS if _have_means(rows, metrics)), None)
    if trade_off is None:
        path.unlink(missing_ok=True)  # the picture of an earlier comparison
        return

    # A point with faint error bars for each row.
    x, y = trade_off
    figure = Figure((8, 5), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    names = []
    for row in rows:
        across = row["metrics"][x]
        up = row["metrics"][y]
        style, label = _style_of(row["sampler"])
        axes.errorbar(across["mean"], up["mean"], up["std"], across["std"], ecolor="lightgrey", zorder=1, fmt="none")
        axes.plot(across["mean"], up["mean"], linestyle="", label=label, **style)
        names.append((across["mean"], up["mean"], textwrap.fill(row["label"], 30)))

    # Families in the legend, once each, and the name beside each point.
    families = dict(zip(*reversed(axes.get_legend_handles_labels())))
    figure.legend(list(families.values()), list(families), loc="outside lower center", ncols=3, fontsize=8)
    name_points(figure, axes, names)
    _save(figure, path)


def _style_of(sampler: str) -> tuple[dict[str, Any], str]:
    """Colour and marker of a sampler's family, and its entry in the legend."""
    if sampler == "plain":
        return {"color": "black", "marker": "*", "markersize": 12}, "plain sampling"
    try:
        family = SAMPLERS[sampler].family
    except UserError:  # of a package that is not installed here
        family = ""
    color = f"C{list(FAMILIES).index(family)}"
    return {"color": color, "marker": MARKERS[family], "markersize": 6}, FAMILIES[family]


def name_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write a name beside each point (x, y, name), where it covers least of points, other names and the frame.

    A thin line leads to the point where the name is not next to it.
    """
    from matplotlib.transforms import Bbox

    # Lay the figure out, so that positions in pixels are known; names leave it as it is.
    figure.draw_without_rendering()
    frame = axes.get_window_extent()
    centres = axes.transData.transform([(x, y) for x, y, _ in points])
    taken = [Bbox([centre - CLEAR, centre + CLEAR]) for centre in centres]
    if legend := axes.get_legend():
        taken.append(legend.get_window_extent())

    for x, y, text in points:
        name = axes.annotate(text, (x, y), (0, 0), textcoords="offset points", fontsize=7, in_layout=False)

        def covered(place: tuple[int, int], name: Annotation = name) -> float:
            box = _moved(name, place)
            outside = box.width * box.height - _common_area(box, frame)
            return outside + sum(_common_area(box, other) for other in taken)

        place = min(PLACES, key=covered)
        taken.append(_moved(name, place))
        if max(map(abs, place)) > PLACES[0][0]:
            line = {"arrowstyle": "-", "linewidth": 0.4, "color": "grey"}
            axes.annotate("", (x, y), place, textcoords="offset points", arrowprops=line, in_layout=False)


def _moved(name: Annotation, place: tuple[int, int]) -> Bbox:
    """Put a name at (right, up) of its point, in points; its box in pixels."""
    right, up = place
    name.set_position(place)
    name.set_horizontalalignment("left" if right > 0 else "right" if right else "center")
    name.set_verticalalignment("bottom" if up > 0 else "top" if up else "center")
    return name.get_window_extent()


def _common_area(box: Bbox, other: Bbox) -> float:
    width = min(box.x1, other.x1) - max(box.x0, other.x0)
    height = min(box.y1, other.y1) - max(box.y0, other.y0)
    return float(max(width, 0) * max(height, 0))


def _have_means(rows: Sequence[Row], metrics: Sequence[str]) -> bool:
    return all(row["metrics"].get(key, {}).get("mean") is not None for row in rows for key in metrics)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=DPI)


def grid(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images uint8 [N, H, W, 3] as one picture of ``columns`` columns, missing ones white; [rows*H, columns*W, 3]."""
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * columns, height, width, channels), 255, np.uint8)
    sheet[:n] = images
    return sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def enlarged(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One image or several, uint8 [..., H, W, 3], whose pixels have become squares of pixels: sides are 128 or more.

    Larger images stay as they are. So many that they would have over 2**26 pixels in all are enlarged less.

    Example:
        >>> enlarged(np.zeros((8, 32, 32, 3), np.uint8)).shape, enlarged(np.zeros((200, 200, 3), np.uint8)).shape
        ((8, 128, 128, 3), (200, 200, 3))
    """
    wanted = math.ceil(SMALLEST / min(image.shape[-3:-1]))
    pixels = image.size // image.shape[-1]
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


def save_png(path: Path, image: NDArray[np.uint8], sync: bool = True) -> None:
    """Write one picture [H, W, 3], whole or not at all; ``sync`` as in ``files.replacing``."""
    from PIL import Image

    with replacing(path, sync) as temporary:
        Image.fromarray(image).save(temporary)
