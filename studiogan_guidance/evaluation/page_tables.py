"""The tables of a page: columns that are sorted by numbers, the best of each, plain sampling marked."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from studiogan_guidance import samplers
from studiogan_guidance.errors import UserError
from studiogan_guidance.evaluation.tables import (
    HEADINGS,
    PASSES,
    format_difference,
    format_metric,
    format_options,
    format_spread,
    metric_heading,
    present_metrics,
)
from studiogan_guidance.options import dotted

Row = Mapping[str, Any]

LOW = ("fid", "fid_infinity", "kid", "class_fid")  # metrics that are to be small
UNITS = {"low": "↓ lower", "high": "↑ higher", "": ""}
MOST = 6  # options with a column of their own
MISSING = "\N{EN DASH}"


@dataclass(frozen=True)
class Column:
    """A column: its heading, its unit below that, and which of its values are best, ``low``, ``high`` or none."""

    title: str
    unit: str = ""
    best: str = ""
    is_number: bool = True


@dataclass(frozen=True)
class Cell:
    """A text, with the number that rows are sorted by where the column has numbers."""

    text: str
    value: float | None = None
    is_best: bool = False


@dataclass(frozen=True)
class Line:
    """A row of a table."""

    cells: Sequence[Cell]
    is_plain: bool = False


@dataclass(frozen=True)
class Table:
    """A table with a caption above and notes below."""

    caption: str
    columns: Sequence[Column]
    lines: Sequence[Line]
    notes: Sequence[str] = field(default_factory=tuple)


def is_plain(row: Row) -> bool:
    """Whether a row is plain sampling, by its name or by its options."""
    if row["sampler"] == "plain":
        return True
    try:
        return samplers.create(row["sampler"], row["options"]).neutral
    except UserError:  # a sampler of a package that is not installed here
        return False


def best_of(metric: str) -> str:
    """Which values of a metric are best: ``low``, ``high``, or nothing where that is not known."""
    kind = metric.partition("@")[0]
    if kind in LOW:
        return "low"
    return "high" if kind in HEADINGS else ""


def metric_columns(metrics: Sequence[str]) -> list[Column]:
    return [Column(metric_heading(key), UNITS[best_of(key)], best_of(key)) for key in metrics]


def table(caption: str, columns: Sequence[Column], lines: Sequence[Line], notes: Sequence[str] = ()) -> Table:
    """A table whose best values are marked, where a column has several."""
    best: list[float | None] = []
    for number, column in enumerate(columns):
        values = [line.cells[number].value for line in lines]
        known = [value for value in values if value is not None]
        choose = {"low": min, "high": max}.get(column.best)
        best.append(choose(known) if choose and len(set(known)) > 1 else None)

    # Mark all that are equal to the best.
    marked = []
    for line in lines:
        cells = [
            dataclasses.replace(cell, is_best=target is not None and cell.value == target)
            for cell, target in zip(line.cells, best)
        ]
        marked.append(Line(cells, line.is_plain))
    return Table(caption, columns, marked, notes)


def of_rows(caption: str, rows: Sequence[Row], more: Sequence[tuple[Column, Sequence[Cell]]] = ()) -> Table:
    """A table of rows of results: sampler, the options that differ, ``more`` columns, and the metrics."""
    keys, common = options_of(rows)
    metrics = present_metrics(rows)
    are_several = len(keys) > MOST
    columns = [Column("sampler", is_number=False)]
    columns += [Column("options", is_number=False)] if are_several else [_option_column(key, rows) for key in keys]
    columns += [column for column, _ in more]
    columns += metric_columns(metrics)
    has_seconds = all("seconds" in row for row in rows)
    columns += [Column("time", "s")] if has_seconds else []

    # A line for each row.
    lines = []
    for number, row in enumerate(rows):
        options = dotted(row["options"])
        cells = [Cell(row["sampler"])]
        if are_several:
            cells.append(Cell(format_options({key: options[key] for key in keys if key in options})))
        else:
            cells += [_option_cell(options.get(key)) for key in keys]
        cells += [each[number] for _, each in more]
        cells += [metric_cell(key, row["metrics"].get(key)) for key in metrics]
        cells += [Cell(f"{row['seconds']:.1f}", row["seconds"])] if has_seconds else []
        lines.append(Line(cells, is_plain(row)))
    shared = format_options(common)
    return table(caption, columns, lines, [f"Options of all rows: {shared}"] if shared else [])


def options_of(rows: Sequence[Row]) -> tuple[list[str], dict[str, Any]]:
    """The options in which rows differ, and those that all have with one value; rows without options do not count."""
    all_options = [dotted(row["options"]) for row in rows if row["options"]]
    keys = dict.fromkeys(key for options in all_options for key in options)
    common = {}
    for key in keys:
        values = [options.get(key) for options in all_options]
        if all(value == values[0] for value in values):
            common[key] = values[0]
    return [key for key in keys if key not in common], common


def _option_column(key: str, rows: Sequence[Row]) -> Column:
    values = [dotted(row["options"]).get(key) for row in rows]
    return Column(key, is_number=all(value is None or _is_number(value) for value in values))


def _option_cell(value: Any) -> Cell:
    if value is None:
        return Cell(MISSING)
    return Cell(f"{value:.6g}", float(value)) if _is_number(value) else Cell(str(value))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def metric_cell(metric: str, value: float | None) -> Cell:
    return Cell(MISSING) if value is None else Cell(minus(format_metric(metric, value)), value)


def spread_cell(metric: str, value: Mapping[str, Any]) -> Cell:
    """The mean over ranges of seeds, with its standard deviation."""
    mean = value.get("mean")
    return Cell(MISSING) if mean is None else Cell(minus(format_spread(metric, value)), mean)


def difference_cell(metric: str, value: Mapping[str, Any]) -> Cell:
    """A difference to plain sampling, with its standard error."""
    mean = value.get("mean")
    return Cell(MISSING) if mean is None else Cell(minus(format_difference(metric, value)), mean)


def minus(text: str) -> str:
    """A number with a minus sign in place of the hyphen."""
    return f"\N{MINUS SIGN}{text[1:]}" if text.startswith("-") else text


def of_comparison(result: Mapping[str, Any]) -> Table:
    """The table of ``compare``: metrics over the seeds, differences to plain sampling, passes, time."""
    rows = result["rows"]
    metrics = present_metrics(rows)
    differences = [key for key in metrics if any(row["paired"].get(key, {}).get("se") is not None for row in rows)]
    passes = [key for key in PASSES if any(key in row["cost"] for row in rows)]

    columns = [Column("sampler", is_number=False), Column("options", is_number=False)]
    for key in metrics:
        columns += metric_columns([key])
        columns += [Column(f"Δ {metric_heading(key)}", "to plain", best_of(key))] if key in differences[:1] else []
    columns += [Column(PASSES[key], "share" if key == "acceptance" else "per image") for key in passes]
    columns.append(Column("time", "\N{MULTIPLICATION SIGN} plain"))

    # A line for each sampler.
    lines = []
    for row in rows:
        cells = [Cell(row["sampler"]), Cell(format_options(row["differs"]))]
        for key in metrics:
            cells.append(spread_cell(key, row["metrics"].get(key, {})))
            cells += [difference_cell(key, row["paired"].get(key, {}))] if key in differences[:1] else []
        for key in passes:
            value = row["cost"].get(key)
            cells.append(Cell(MISSING) if value is None else Cell(f"{value:.4g}", value))
        cells.append(Cell(MISSING) if row["time"] is None else Cell(f"{row['time']:.2f}", row["time"]))
        lines.append(Line(cells, is_plain(row)))

    # What numbers after the sign are.
    notes = ["Options are those that differ from the defaults."]
    if differences:
        notes.append("After ±: standard deviation over ranges of seeds; of differences (Δ), their standard error.")
    return table("Samplers on equal seeds and labels", columns, lines, notes)
