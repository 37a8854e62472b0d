"""Charts of results: a metric against an option, fidelity against diversity."""

from __future__ import annotations

import itertools
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.tables import format_metric, format_options, format_spread, metric_heading
from studiogan_guidance.files import replacing
from studiogan_guidance.options import dotted
from studiogan_guidance.registry import FAMILIES
from studiogan_guidance.samplers import SAMPLERS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation
    from matplotlib.transforms import Bbox

Row = Mapping[str, Any]
Point = tuple[Any, Row]  # value of the axis, row
Line = tuple[str, list[Point]]  # label, points
Boxes = NDArray[np.float64]  # [4] or [N, 4]: left, bottom, right, top in pixels

TRADE_OFFS = (("recall", "precision"), ("coverage", "density"))  # diversity and fidelity: x and y of the scatter
MEANINGS = {
    "fid": "lower is better",
    "precision": "fidelity, 0 to 1",
    "recall": "diversity, 0 to 1",
    "density": "fidelity, higher is better",
    "coverage": "diversity, 0 to 1",
}
DPI = 130
SMALL = (5.2, 3.7)  # inches
LARGE = (8.2, 6)

# Colours that stay apart for the colour-blind, dark enough on white.
INK = "#1b1b1f"
FAINT = "#d8d9de"
SURFACE = "#fefefe"
COLORS = ("#0069a8", "#c24e00", "#00785c", "#9a3f86", "#6b5a00", "#50525c")
MARKERS = "osD^vP"
STYLE: dict[Any, Any] = {
    "text.parse_math": False,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.facecolor": "none",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": FAINT,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.facecolor": "none",
    "legend.edgecolor": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "svg.fonttype": "none",
    "svg.hashsalt": "studiogan_guidance",
}

# Where the name of a point may stand: (right, up) of it in points, the best places first.
DIRECTIONS = ((1, 1), (1, -1), (-1, 1), (-1, -1), (1, 0), (-1, 0), (0, 1), (0, -1))
PLACES = [(radius * right, radius * up) for radius in range(6, 72, 6) for right, up in DIRECTIONS]
CLEAR = 7  # pixels around a point that no name may cover
THIN = 3  # and around a line
LINE_GAP = np.array([-1, -5, 1, 5])  # and around a name: lines of a browser are higher than letters


@dataclass(frozen=True)
class Chart:
    """A figure with the text of each of its points: what a page shows where the pointer rests on it."""

    figure: Figure
    axes: Axes
    titles: list[str] = field(default_factory=list)

    def add(self, x: float, y: float, title: str, color: str, marker: str, size: float = 6, **settings: Any) -> None:
        """A point that stands apart from others by a rim of the colour of the page."""
        name = f"mark-{len(self.titles)}"
        rim = {"markeredgecolor": SURFACE, "markeredgewidth": 0.7, "linestyle": "", "zorder": 5 if marker == "*" else 3}
        self.axes.plot(x, y, marker, color=color, markersize=size, gid=name, **{**rim, **settings})
        self.titles.append(title)


@contextmanager
def _new(size: tuple[float, float], x: str, y: str) -> Iterator[Chart]:
    """An empty chart in the style of this package, for as long as the block lasts."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(STYLE):
        figure = Figure(size, layout="constrained")
        yield Chart(figure, figure.add_subplot(xlabel=x, ylabel=y))


def save_charts(folder: Path, rows: Sequence[Row], axis: str, plain: Row | None) -> None:
    """FID against the option ``axis`` and precision against recall, a line for each setting of the other options.

    ``plain`` is the row of plain sampling, if there is one. Writes fid.png and precision_recall.png, each if all rows
    have its metrics.
    """
    if have(rows, "fid"):
        save(over_option(rows, axis, plain), folder / "fid.png")
    if have(rows, "precision", "recall"):
        save(trade_off(rows, axis, plain), folder / "precision_recall.png")


def have(rows: Sequence[Row], *metrics: str) -> bool:
    """Whether all rows have all of these metrics."""
    return all(row["metrics"].get(key) is not None for row in rows for key in metrics)


def chart_lines(rows: Sequence[Row], axis: str) -> list[Line]:
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


def label_of(metric: str) -> str:
    """The name of an axis: the metric and what it means."""
    meaning = MEANINGS.get(metric)
    return f"{metric_heading(metric)} ({meaning})" if meaning else metric_heading(metric)


def over_option(
    rows: Sequence[Row], axis: str, plain: Row | None, metric: str = "fid", is_connected: bool = True
) -> Chart:
    """A metric against the option ``axis``; the level of plain sampling is a dotted line."""
    lines = chart_lines(rows, axis)
    with _new(SMALL, _axis_name(rows, axis), label_of(metric)) as chart:
        names = []
        for number, (label, points) in enumerate(lines):
            places = [(value, row["metrics"][metric]) for value, row in points]
            _add_line(chart, number, points, places, axis, is_connected)
            if len(lines) > 1 and is_connected:
                names.append((*places[-1], label))

        # Room at the right for the names of lines.
        left, right = chart.axes.get_xlim()
        chart.axes.set_xlim(left, right + (right - left) / 6 if len(lines) > 1 else right)

        # Plain sampling, with its name at the right end, too.
        if plain:
            level = plain["metrics"][metric]
            chart.axes.axhline(level, color=INK, linestyle=":", linewidth=1.2, zorder=1)
            most = max((value for _, points in lines for value, _ in points), default=0)
            names.append((most, level, f"plain {level:.4g}"))
        name_points(chart.figure, chart.axes, names)
    return chart


def trade_off(rows: Sequence[Row], axis: str, plain: Row | None, is_connected: bool = True) -> Chart:
    """Precision against recall. One line has the value of ``axis`` at each point, several have their names."""
    lines = chart_lines(rows, axis)
    with _new(SMALL, label_of("recall"), label_of("precision")) as chart:
        names = []
        for number, (label, points) in enumerate(lines):
            places = [(row["metrics"]["recall"], row["metrics"]["precision"]) for _, row in points]
            _add_line(chart, number, points, places, axis, is_connected)
            if len(lines) == 1:
                names += [(x, y, f"{value:g}") for (value, _), (x, y) in zip(points, places)]
            elif is_connected:
                names.append((*places[-1], label))

        # Plain sampling, and what the words beside the points are.
        if plain:
            x, y = plain["metrics"]["recall"], plain["metrics"]["precision"]
            chart.add(x, y, _title("plain", plain, axis), INK, "*", 12)
            names.append((x, y, "plain"))
        values = [value for _, points in lines for value, _ in points]
        if len(lines) > 1 and is_connected:
            text = f"lines go from {axis}={min(values):g} to {max(values):g}, where their names stand"
            chart.axes.set_title(text, fontsize=8.5, loc="left")
        elif len(lines) == 1:
            chart.axes.set_title(f"numbers at points: {axis}", fontsize=8.5, loc="left")
        name_points(chart.figure, chart.axes, names)
    return chart


def _axis_name(rows: Sequence[Row], axis: str) -> str:
    guided = {row["sampler"] for row in rows if dotted(row["options"]).get(axis) is not None}
    return f"{axis} of {', '.join(sorted(guided))}"


def _add_line(
    chart: Chart,
    number: int,
    points: Sequence[Point],
    places: Sequence[tuple[float, float]],
    axis: str,
    is_connected: bool,
) -> None:
    """A line of a chart with its points; ``number`` counts the lines, which differ in colour, marker and dashes."""
    color = COLORS[number % len(COLORS)]
    if is_connected:
        dashes = ("-", "--", "-.")[number // len(COLORS) % 3]
        chart.axes.plot(*zip(*places), dashes, color=color, linewidth=1.5, zorder=2)
    for (value, row), (x, y) in zip(points, places):
        chart.add(x, y, _title(f"{axis}={value:g}", row, axis), color, MARKERS[number % len(MARKERS)])


def _title(name: str, row: Row, axis: str) -> str:
    """What a page shows of a point: its options and its metrics."""
    options = format_options({key: value for key, value in dotted(row["options"]).items() if key != axis})
    metrics = [f"{metric_heading(key)} {format_metric(key, value)}" for key, value in row["metrics"].items()]
    return "\n".join(filter(None, [f"{row['sampler']} {name}", options, ", ".join(metrics)]))


def save_scatter(path: Path, result: Mapping[str, Any]) -> None:
    """Write the picture of ``scatter``; without its metrics, remove that of an earlier comparison."""
    chart = scatter(result)
    if chart is None:
        path.unlink(missing_ok=True)
        return
    save(chart, path)


def scatter(result: Mapping[str, Any]) -> Chart | None:
    """Fidelity against diversity: a point with its name for each sampler of ``compare``, one colour a family.

    Precision against recall, or density against coverage if a row lacks one of those; without either, None. Bars
    are standard deviations over the seeds. Plain sampling is a star.
    """
    rows = result["rows"]
    metrics = next((metrics for metrics in TRADE_OFFS if _have_means(rows, metrics)), None)
    if metrics is None:
        return None

    # A point with faint error bars for each row.
    x, y = metrics
    names = []
    with _new(LARGE, label_of(x), label_of(y)) as chart:
        for row in rows:
            across, up = row["metrics"][x], row["metrics"][y]
            place = (across["mean"], up["mean"])
            chart.axes.errorbar(*place, up["std"], across["std"], fmt="none", ecolor=FAINT, elinewidth=1.2, zorder=1)
            color, marker, family = _style_of(row["sampler"])
            chart.add(*place, _spreads(row, metrics), color, marker, 13 if marker == "*" else 7, label=family)
            names.append((*place, _short(row["label"])))

        # Families in the legend, once each, and the name beside each point.
        families = dict(zip(*reversed(chart.axes.get_legend_handles_labels())))
        handles = list(families.values())
        chart.figure.legend(handles, list(families), loc="outside lower center", ncols=3, fontsize=9)
        name_points(chart.figure, chart.axes, names)
    return chart


def _short(label: str) -> str:
    """A label in at most three lines: numbers with four digits, files without their folders.

    Example:
        >>> _short("gandance scale=1.25905179 joint_ckpt=/runs/a/joint.safetensors")
        'gandance scale=1.259\\njoint_ckpt=joint.safetensors'
    """
    rounded = re.sub(r"\d+\.\d{4,}", lambda found: f"{float(found[0]):.4g}", label)
    without_folders = re.sub(r"=[^\s=]*/", "=", rounded)
    return "\n".join(textwrap.wrap(without_folders, 30, max_lines=3, placeholder=" ..."))


def _spreads(row: Row, metrics: Sequence[str]) -> str:
    """What a page shows of a sampler: its label and its metrics over the seeds."""
    values = [f"{metric_heading(key)} {format_spread(key, row['metrics'][key])}" for key in metrics]
    return "\n".join([row["label"], *values])


def _style_of(sampler: str) -> tuple[str, str, str]:
    """Colour and marker of a sampler's family, and its entry in the legend."""
    if sampler == "plain":
        return INK, "*", "plain sampling"
    try:
        family = SAMPLERS[sampler].family
    except UserError:  # of a package that is not installed here
        family = ""
    number = list(FAMILIES).index(family)
    return COLORS[number], MARKERS[number], FAMILIES[family]


def name_points(figure: Figure, axes: Axes, points: Sequence[tuple[float, float, str]]) -> None:
    """Write a name beside each point (x, y, name), where it covers least of points, lines, other names and the frame.

    A thin line leads to the point where the name is not next to it.
    """
    # Lay the figure out, so that positions in pixels are known; names leave it as it is.
    figure.draw_without_rendering()
    frame = _corners(axes.get_window_extent())
    taken = _drawn(axes, [(x, y) for x, y, _ in points])

    for number, (x, y, text) in enumerate(points):
        words: dict[str, Any] = {"textcoords": "offset points", "in_layout": False}
        name = axes.annotate(text, (x, y), (0, 0), fontsize=8, gid=f"name-{number}", zorder=6, **words)

        def covered(place: tuple[int, int], name: Annotation = name, taken: Boxes = taken) -> float:
            box = _moved(name, place)
            outside = np.prod(box[2:] - box[:2]) - _common_area(box, frame[None])
            return float(outside + _common_area(box, taken))

        place = min(PLACES, key=covered)
        taken = np.vstack([taken, _moved(name, place) + LINE_GAP])
        if max(map(abs, place)) > PLACES[0][0]:
            line = {"arrowstyle": "-", "linewidth": 0.5, "color": COLORS[-1], "shrinkA": 0, "shrinkB": 3}
            axes.annotate("", (x, y), place, arrowprops=line, **words)


def _drawn(axes: Axes, points: Sequence[tuple[float, float]]) -> Boxes:
    """The boxes of what no name may cover: points, of a chart and those given, and lines piece by piece."""
    lines = [np.asarray(line.get_xydata()) for line in axes.lines if line.get_transform() == axes.transData]
    marks = [data for data in lines if len(data) == 1]
    centres = axes.transData.transform(np.concatenate([np.reshape(points, (-1, 2)), *marks]))

    # Pieces of lines, a few pixels apart.
    pieces = [np.empty((0, 2))]
    for data in lines:
        ends = axes.transData.transform(data)
        for start, end in itertools.pairwise(ends):
            count = 2 + int(np.hypot(*(end - start)) / (2 * THIN))
            pieces.append(np.linspace(start, end, count))
    along = np.concatenate(pieces)
    return np.concatenate([np.hstack([each - room, each + room]) for each, room in ((centres, CLEAR), (along, THIN))])


def _corners(box: Bbox) -> Boxes:
    return np.array([box.x0, box.y0, box.x1, box.y1])


def _moved(name: Annotation, place: tuple[int, int]) -> Boxes:
    """Put a name at (right, up) of its point, in points; its box in pixels."""
    right, up = place
    name.set_position(place)
    name.set_horizontalalignment("left" if right > 0 else "right" if right else "center")
    name.set_verticalalignment("bottom" if up > 0 else "top" if up else "center")
    return _corners(name.get_window_extent())


def _common_area(box: Boxes, others: Boxes) -> float:
    """The area that a box has in common with others, float64 [N, 4], in all."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    return float(np.prod(np.maximum(sides, 0), 1).sum())


def _have_means(rows: Sequence[Row], metrics: Sequence[str]) -> bool:
    return all(row["metrics"].get(key, {}).get("mean") is not None for row in rows for key in metrics)


def save(chart: Chart, path: Path) -> None:
    """Write a chart as a picture, whole or not at all."""
    with replacing(path) as temporary:
        chart.figure.savefig(temporary, dpi=DPI)
