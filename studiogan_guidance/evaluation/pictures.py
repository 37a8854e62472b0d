"""Pictures of results: charts of a sweep, the scatter of a comparison, grids of images."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from studiogan_guidance.files import replacing

if TYPE_CHECKING:
    pass
from studiogan_guidance.evaluation.tables import HEADINGS, dotted, format_options

MARKS = "osD^v"  # of points of one colour
CHOSEN = ("precision", "recall"), ("density", "coverage")  # fidelity against diversity
CAPTION = 14  # pixels


def save_charts(folder: Path, rows: Sequence[Mapping[str, Any]], axis: str, plain: Mapping[str, Any] | None) -> None:
    """FID against the option ``axis`` and precision against recall, a line for each setting of the other options.

    ``plain`` is the row of plain sampling, if there is one. Writes fid.png and precision_recall.png, as far as every
    row has their metrics.
    """
    from matplotlib.figure import Figure

    lines: dict[tuple[str, ...], list[tuple[Any, Mapping[str, Any]]]] = {}  # by words: (value of the axis, row)
    for row in rows:
        options = dotted(row["options"])
        if options.get(axis) is not None:
            words = (format_options({key: value}) for key, value in options.items() if key != axis)
            lines.setdefault(tuple(filter(None, words)), []).append((options[axis], row))
    common = set.intersection(*map(set, lines)) if len(lines) > 1 else set()
    charts = {"fid": ("", "fid"), "precision_recall": ("recall", "precision")}
    for name, (x, y) in charts.items():
        if any(row["metrics"].get(key) is None for row in rows for key in filter(None, (x, y))):
            continue
        figure = Figure((5, 3.6), layout="constrained")
        axes = figure.add_subplot(xlabel=x or axis, ylabel=HEADINGS[y])
        for label, points in lines.items():
            points = sorted(points, key=lambda point: point[0])
            xs = [row["metrics"][x] if x else value for value, row in points]
            ys = [row["metrics"][y] for _, row in points]
            text = " ".join(word for word in label if word not in common)
            axes.plot(xs, ys, "o-", markersize=4, label=text if len(lines) > 1 else points[0][1]["sampler"])
            for (value, _), at_x, at_y in zip(points, xs, ys) if x else ():
                axes.annotate(f"{value:g}", (at_x, at_y), (4, 4), textcoords="offset points", fontsize=8)
        if plain and x:
            axes.plot(plain["metrics"][x], plain["metrics"][y], "k*", markersize=9, label="plain")
        elif plain:
            axes.axhline(plain["metrics"][y], color="black", linestyle=":", label="plain")
        axes.legend(fontsize=8)
        with replacing(folder / f"{name}.png") as beside:
            figure.savefig(beside, dpi=130)


def save_scatter(path: Path, result: Mapping[str, Any]) -> None:
    """Fidelity against diversity, a point for each sampler of ``compare``, plain sampling as a star; names at the side.

    Precision against recall, or density against coverage where there is no such row; without either, no picture.
    """
    from matplotlib.figure import Figure

    rows = result["rows"]
    for y, x in CHOSEN:
        if all(row["metrics"].get(key, {}).get("mean") is not None for row in rows for key in (x, y)):
            break
    else:
        path.unlink(missing_ok=True)  # that of other rows
        return
    figure = Figure((8, 4.5), layout="constrained")
    axes = figure.add_subplot(xlabel=x, ylabel=y)
    for i, row in enumerate(rows):
        (at_x, of_x), (at_y, of_y) = ((row["metrics"][key]["mean"], row["metrics"][key]["std"]) for key in (x, y))
        colour, mark, size = (
            ("black", "*", 12) if row["sampler"] == "plain" else (f"C{i}", MARKS[i // 10 % len(MARKS)], 6)
        )
        label = textwrap.fill(row["label"], 36)
        axes.errorbar(at_x, at_y, of_y, of_x, marker=mark, markersize=size, color=colour, linestyle="", label=label)
    figure.legend(loc="outside right upper", fontsize=8)
    with replacing(path) as beside:
        figure.savefig(beside, dpi=130)


def grid(images: NDArray[np.uint8], columns: int) -> NDArray[np.uint8]:
    """Images uint8 [N, H, W, 3] as one picture of ``columns`` columns, missing ones white; [rows*H, columns*W, 3]."""
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    sheet = np.full((rows * columns, height, width, channels), 255, np.uint8)
    sheet[:n] = images
    return sheet.reshape(rows, columns, height, width, channels).swapaxes(1, 2).reshape(rows * height, -1, channels)


def captioned(sheet: NDArray[np.uint8], captions: Sequence[str]) -> NDArray[np.uint8]:
    """A picture [H, W, 3] of equal columns, with a line of text above each."""
    from PIL import Image, ImageDraw

    width = sheet.shape[1] // len(captions)
    head = Image.new("RGB", (sheet.shape[1], CAPTION), "white")
    for column, text in enumerate(captions):
        ImageDraw.Draw(head).text(((column + 0.5) * width, CAPTION / 2), text, "black", anchor="mm")
    return np.concatenate([np.asarray(head), sheet])


def save_png(path: Path, image: NDArray[np.uint8]) -> None:
    """Write one picture [H, W, 3], whole or not at all."""
    from PIL import Image

    with replacing(path) as beside:
        Image.fromarray(image).save(beside)
