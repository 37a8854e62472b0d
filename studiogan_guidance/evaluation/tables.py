"""Results as text for the screen and as tables for a spreadsheet."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.results import plain_data
from studiogan_guidance.files import replacing
from studiogan_guidance.options import Spec

if TYPE_CHECKING:
    from rich.table import Table

Row = Mapping[str, Any]

HEADINGS = {
    "fid": "FID",
    "is": "IS",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "accuracy": "accuracy",
    "fid_infinity": "FID-inf",
    "kid": "KID",
    "class_fid": "class fid",
    "class_precision": "class precision",
    "class_recall": "class recall",
    "class_density": "class density",
    "class_coverage": "class coverage",
}
OFF = {None: "none", False: "false"}
DIFFERENCES = ("fid", "accuracy")  # metrics whose difference to plain sampling has a column of its own
PASSES = {
    "mapping": "mapping",
    "synthesis": "G",
    "discriminator": "D",
    "backward": "backward",
    "weights": "w",
    "acceptance": "accepted",
}


def table(rows: Sequence[Row]) -> str:
    """Rows of an evaluation as text: one line a sampler, and the protocol below."""
    headings, lines = _cells(rows)
    grid = _empty_table(headings[2:])
    for line in lines:
        grid.add_row(*line)
    return _text(grid, rows[0]["protocol"])


def html_table(rows: Sequence[Row]) -> str:
    """Rows of an evaluation as a table in HTML, with the protocol below; for notebooks."""
    headings, lines = _cells(rows)
    head = _html_line("th", headings)
    body = "".join(_html_line("td", line) for line in lines)
    return f"<table><thead>{head}</thead><tbody>{body}</tbody></table><p>{escape(_facts(rows[0]['protocol']))}</p>"


def _html_line(tag: str, cells: Sequence[str]) -> str:
    """A line of ``html_table``: sampler and options on the left of their columns, numbers on the right."""
    sides = ["left"] * 2 + ["right"] * (len(cells) - 2)
    texts = [f'<{tag} style="text-align: {side}">{escape(cell)}</{tag}>' for cell, side in zip(cells, sides)]
    return f"<tr>{''.join(texts)}</tr>"


def _cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The headings of an evaluation's table, and the texts of each row: sampler, options, metrics, seconds."""
    metrics = present_metrics(rows)
    lines = []
    for row, options in zip(rows, telling_options(rows), strict=True):
        values = [format_metric(key, row["metrics"].get(key)) for key in metrics]
        lines.append([row["sampler"], format_options(options), *values, f"{row['seconds']:.1f}"])
    return ["sampler", "options", *map(metric_heading, metrics), "s"], lines


def flat(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Rows of an evaluation without nested parts: sampler, options in one text, each metric, seconds."""
    return [
        {"sampler": row["sampler"], "options": format_options(options), **row["metrics"], "seconds": row["seconds"]}
        for row, options in zip(rows, telling_options(rows), strict=True)
    ]


def sampled(result: Mapping[str, Any]) -> str:
    """The result of ``sample`` as text: the files, the sampler with its options, and the number of images."""
    (options,) = telling_options([result])
    lines = {**result, "sampler": f"{result['sampler']} {format_options(options)}".rstrip()}
    del lines["options"]
    return "\n".join(f"{key}: {value}" for key, value in lines.items())


def compared(result: Mapping[str, Any]) -> str:
    """The result of ``compare`` as text: one line a sampler, and the protocol below.

    The columns after the metrics are the passes per image (mapping network, generator, discriminator, backward, weights
    of latents), the share of the proposals that were accepted, and the time of sampling as a multiple of that of plain
    sampling. Over several ranges of seeds, differences to plain sampling stand before them.
    """
    rows = result["rows"]
    metrics = present_metrics(rows)
    differences = _differences(rows, metrics)
    passes = _present(PASSES, rows, "cost")

    # One line a sampler.
    headings = [*map(metric_heading, metrics), *(f"d{metric_heading(key)}" for key in differences)]
    grid = _empty_table([*headings, *(PASSES[key] for key in passes), "time"])
    for row in rows:
        values = [format_spread(key, row["metrics"].get(key, {})) for key in metrics]
        values += [format_difference(key, row["paired"].get(key, {})) for key in differences]
        costs = [f"{row['cost'][key]:.4g}" if key in row["cost"] else "-" for key in passes]
        time = "-" if row["time"] is None else f"{row['time']:.2f}"
        grid.add_row(row["sampler"], format_options(row["differs"]), *values, *costs, time)

    # What the differences are.
    names = ", ".join(f"d{metric_heading(key)}" for key in differences)
    note = f"{names}: difference to plain on equal seeds, mean ± standard error over ranges of seeds"
    return _text(grid, result["protocol"], [note] if differences else [])


def _differences(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """The metrics whose differences to plain sampling have a column: the first one, distances, and accuracy."""
    known = {key for row in rows for key, value in row["paired"].items() if value["se"] is not None}
    shown = {*metrics[:1], *DIFFERENCES}
    return [key for key in metrics if key in known and (key in shown or "@" in key)]


def metric_heading(metric: str) -> str:
    """The name of a metric for people, such as FID@random for fid@random."""
    kind, at, space = metric.partition("@")
    return f"{HEADINGS.get(kind, kind)}{at}{space}"


def present_metrics(rows: Sequence[Row]) -> list[str]:
    """The metrics that some row has: those with headings in the order of HEADINGS, then all others.

    Those of another feature space, such as fid@random, stand behind those of the feature network.
    """
    order = list(HEADINGS)

    def place(metric: str) -> int:
        kind = metric.partition("@")[0]
        return order.index(kind) if kind in order else len(order)

    known = [*_present(HEADINGS, rows, "metrics"), *(key for row in rows for key in row["metrics"])]
    return sorted(dict.fromkeys(known), key=place)


def _present(keys: Iterable[str], rows: Sequence[Row], part: str) -> list[str]:
    """The ``keys`` that at least one row has in its ``part``, in the order of ``keys``."""
    return [key for key in keys if any(key in row[part] for row in rows)]


def _empty_table(numbers: Sequence[str]) -> Table:
    """A table with columns for the sampler and its options, then one for each heading in ``numbers``."""
    from rich.table import Table

    grid = Table(box=None, pad_edge=False)
    for heading in ("sampler", "options"):
        grid.add_column(heading, justify="left", no_wrap=True)
    for heading in numbers:
        grid.add_column(heading, justify="right", no_wrap=True)
    return grid


def _text(grid: Table, protocol: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """A table as plain text, with notes below, and the protocol as the last line."""
    from rich.console import Console

    with open(os.devnull, "w") as nowhere:
        console = Console(width=1000, record=True, file=nowhere, force_jupyter=False)  # else it shows itself there
        console.print(grid)
    lines = [line.rstrip() for line in console.export_text().rstrip().splitlines()]
    return "\n".join([*lines, "", *notes, _facts(protocol)])


def _facts(protocol: Mapping[str, Any]) -> str:
    """The protocol as the last line below a table."""
    return f"protocol: {'  '.join(f'{key}={value}' for key, value in protocol.items())}"


def tuned(result: Mapping[str, Any]) -> str:
    """The result of ``tune`` as text: the candidates in their order, then the choice against plain sampling."""
    lines = []

    # Each candidate of the search.
    for step in result["searched"]:
        metrics = [f"{metric_heading(key)} {format_metric(key, value)}" for key, value in step["metrics"].items()]
        lines.append(f"{format_options(step['options'])}: {', '.join(metrics)}")

    # Plain sampling, the best candidate and the choice on fresh seeds.
    objective = result["objective"]
    seeds = len(result["plain"].get(objective, {}).get("values", ()))
    lines.append(f"\non {seeds} fresh seed ranges against the {result['reference']} split, mean ± standard deviation:")
    for name in ("plain", "found", "chosen"):
        summary = result[name]
        values = {key: value for key, value in summary.items() if key != "options"}
        metrics = [f"{metric_heading(key)} {format_spread(key, value)}" for key, value in values.items()]
        lines.append(f"{name:<7} {format_options(summary['options'])}: {', '.join(metrics)}")

    # The difference, and how to use the choice.
    lines.append(f"found - plain: {format_spread(objective, result['difference'])}, paired by seeds")
    lines.append(f"{result['evaluations']} evaluations; use it: eval -c {result['config']}")
    return "\n".join(lines)


def decided(result: Mapping[str, Any]) -> str:
    """The result of ``tune --auto`` as text: the settings on all images, the best one against plain, the choice."""
    objective = result["objective"]
    heading = HEADINGS.get(objective, objective)
    lines = [f"{heading} minus plain's on all images of the search, {len(result['trials'])} settings tried:"]
    for trial in result["trials"]:
        if trial["share"] == 1:
            difference = format_metric(objective, trial["difference"])
            lines.append(f"  {trial['kind']}: {trial['sampler']} {format_options(trial['options'])}: {difference}")

    # The best of them on fresh seeds.
    count = len(result["plain"]["metrics"])
    found = result["found"]
    lines.append(f"\nbest: {found['sampler']} {format_options(found['options'])}")
    lines.append(f"its difference to plain on {count} fresh seed ranges of the {result['reference']} split:")
    for key, value in result["paired"].items():
        mean, error = (format_metric(key, value[part]) for part in ("mean", "se"))
        interval = {objective: result["interval"], **result["judges"]}.get(key)
        ends = [] if interval is None else [format_metric(key, interval[end]) for end in ("low", "high")]
        text = f", 95 % within {' to '.join(ends)}" if ends else ""
        lines.append(f"  {HEADINGS.get(key, key)} {mean} ± {error} (standard error){text}")

    # The choice, and how to use it.
    options = {key: value for key, value in result["choice"].items() if key != "name"}
    lines.append(f"\nchosen: {result['choice']['name']} {format_options(options)} ({result['reason']})")
    cost = f"{result['evaluations']:g} evaluations, {result['seconds']:g} s"
    lines.append(f"{cost}; use it: eval -c {result['config']}, or -o scale=auto")
    return "\n".join(lines)


def classes(result: Mapping[str, Any]) -> str:
    """The result of ``class_table`` as text: a line a class, a column of images for each split.

    Splits of other classes stand below each other.
    """
    splits: Mapping[str, Sequence[Row]] = result["splits"]
    same: dict[tuple[str, ...], list[str]] = {}
    for split, rows in splits.items():
        same.setdefault(tuple(row["name"] for row in rows), []).append(split)

    # One table for the splits of the same classes.
    lines: list[str] = []
    for names, alike in same.items():
        width = max(map(len, ("class", *names)))
        lines.append(f"index  {'class':<{width}}{''.join(f'  {split:>7}' for split in alike)}")
        for index, name in enumerate(names):
            images = "".join(f"  {splits[split][index]['images']:>7}" for split in alike)
            lines.append(f"{index:>5}  {name:<{width}}{images}")
        lines.append("")

    # The generator beside them.
    if len(same) > 1:
        lines.append("the splits have different classes, so an index is not the same class in all of them")
    lines.append(_generator_line(result))
    return "\n".join(lines)


def _generator_line(result: Mapping[str, Any]) -> str:
    """Whether the generator takes the classes of the data."""
    num_classes = result["generator"]
    if not num_classes:
        return "the generator takes no classes (MODEL.g_cond_mtd W/O)"
    if result["agrees"]:
        return f"the generator takes {num_classes} classes, as many as the data have"
    counts = ", ".join(f"{split} {len(rows)}" for split, rows in result["splits"].items())
    return (
        f"the generator takes {num_classes} classes, which the data do not have ({counts}): labels do not mean the same"
    )


def save_csv(path: Path, rows: Sequence[Row]) -> None:
    """Rows as a table for a spreadsheet: sampler, seconds, options, metrics, cost, set-up, notes, protocol.

    Every value has a column of its own; the base of a sampler is one text. An option that has the name of a metric, a
    pass or a part of the protocol is in the column ``options.<name>``.
    """
    # Names that options must not take.
    reserved = {"sampler", "seconds"}
    for row in rows:
        for part in ("metrics", "cost", "protocol"):
            reserved |= set(row[part])

    # One flat line a row; columns in the order of their first use.
    lines = [_csv_line(row, reserved) for row in rows]
    columns = dict.fromkeys(key for line in lines for key in line)
    with replacing(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(columns))
        writer.writeheader()
        writer.writerows(lines)


def _csv_line(row: Row, reserved: set[str]) -> dict[str, Any]:
    """A row without nested parts; options whose names are ``reserved`` are called ``options.<name>``."""
    line: dict[str, Any] = {"sampler": row["sampler"], "seconds": row["seconds"]}
    for key, value in row["options"].items():
        line[f"options.{key}" if key in reserved else key] = format_value(value)
    line |= row["metrics"]
    line |= row["cost"]
    for part in ("setup", "notes"):
        for key, value in row.get(part, {}).items():
            line[f"{part}.{key}"] = value
    line |= row["protocol"]
    return line


def format_metric(metric: str, value: float | None) -> str:
    """A metric for the screen: three decimals, but six digits for KID, which is of the order of 0.001, and others.

    Distances in another space, which may have any scale, have four digits.
    """
    if value is None:
        return "-"
    if "@" in metric:
        return f"{value:.4g}"
    return f"{value:.6g}" if metric == "kid" or metric not in HEADINGS else f"{value:.3f}"


def format_spread(metric: str, value: Mapping[str, Any]) -> str:
    """The mean of a metric for the screen, with its standard deviation if there is one."""
    tail = "" if value.get("std") is None else f" ± {format_metric(metric, value['std'])}"
    return format_metric(metric, value.get("mean")) + tail


def format_difference(metric: str, value: Mapping[str, Any]) -> str:
    """A difference for the screen with its sign, and its standard error."""
    if value.get("mean") is None:
        return "-"
    sign = "" if value["mean"] < 0 else "+"
    tail = "" if value["se"] is None else f" ± {format_metric(metric, value['se'])}"
    return sign + format_metric(metric, value["mean"]) + tail


def telling_options(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Of each row, the options that tell it from others: those that guide, or are not the default in a row of its name.

    Options that guide are those of the sampler's neutral setting, where they are not neutral.
    """
    neutral = {entry.name: entry.neutral or {} for entry in samplers.SAMPLERS}
    names: dict[str, set[str]] = {}
    for row in rows:
        settings = neutral.get(row["sampler"], {})
        guiding = {key for key, value in settings.items() if row["options"].get(key, value) != value}
        differing = non_default_options(row["sampler"], row["options"])
        names.setdefault(row["sampler"], set()).update(guiding, differing)
    return [{key: value for key, value in row["options"].items() if key in names[row["sampler"]]} for row in rows]


def non_default_options(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from the defaults of the sampler; of a base, those that differ from the base's.

    An option that is off, but not by default, has the word ``none`` or ``false`` as its value.
    """
    try:
        defaults = plain_data(samplers.options(samplers.create(name)))
    except UserError:  # a sampler of a package that is not installed here
        defaults = {}

    differing: dict[str, Any] = {}
    for key, value in options.items():
        if key in defaults and value == defaults[key]:
            continue
        if isinstance(value, Mapping):
            base = Spec.parse(value)
            differing[key] = {"name": base.name, **non_default_options(base.name, base.options)}
        else:
            differing[key] = OFF[value] if value is None or value is False else value
    return differing


def format_options(options: Mapping[str, Any]) -> str:
    """Options that are not off, as key=value words; those of a base are in parentheses after its name.

    Example:
        >>> format_options({"steps": 5, "mala": False, "base": {"name": "gandance", "scale": 1.1}})
        'steps=5 base=gandance(scale=1.1)'
    """
    shown = {key: value for key, value in options.items() if value is not None and value is not False}
    return " ".join(f"{key}={format_value(value)}" for key, value in shown.items())


def format_value(value: Any) -> Any:
    """The value of an option for a table: a base with its options as one text, anything else unchanged."""
    if not isinstance(value, Mapping):
        return value
    spec = Spec.parse(value)
    options = format_options(spec.options)
    return f"{spec.name}({options})" if options else spec.name
